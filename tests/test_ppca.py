"""Principal components as a program, against eigenvectors, quadrature and dense normals.

Statistical checks fail for right code with a chance below ``statistics.LEVEL`` over the module.
"""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn.datasets import load_iris
from sklearn.decomposition import PCA

from inference import EM, NUTS, Gibbs, Target, fit
from inference.program import Program, isolated
from ppl_models import PPCA, DataError, ModelError, Noise, ppca
from ppl_models.low_rank import LowRankNormal
from tests.statistics import check, draws, surprises
from tests.targets import Known

IRIS = load_iris().data
ROWS = np.random.default_rng(5).normal(size=(30, 4)) @ np.diag([3.0, 2.0, 0.7, 0.5]) + 10.0

# log likelihoods of iris at the maximum, and at the estimate with divisor N - 1 that
# scikit-learn's PCA.score reports
MAXIMUM = {1: (-470.6694583, -470.6761548), 2: (-404.9627802, -404.9694766)}


def normal(x, params):
    """The log likelihood of rows by SciPy's dense normal."""
    loadings, mean = params["loadings"].numpy(), params["mean"].numpy()
    covariance = loadings @ loadings.T + float(params["variance"]) * np.eye(len(mean))
    return stats.multivariate_normal(mean, covariance).logpdf(x).sum()


# -- the density -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "batch", [((), (), ()), ((3,), (3,), (3,)), ((3, 1), (3, 1), (3, 1)), ((5,), (3, 1), ())]
)
def test_the_density_is_that_of_a_dense_normal(batch):
    noise = Noise.seeded(1, 1)
    loc, loadings = noise.normal(*batch[0], 4)[0], noise.fold(1).normal(*batch[1], 4, 2)[0]
    variance = noise.fold(2).exponential(*batch[2])[0]
    law = LowRankNormal(loc, loadings, variance)
    eye = torch.eye(4, dtype=torch.float64)
    dense = torch.distributions.MultivariateNormal(
        loc, loadings @ loadings.mT + variance[..., None, None] * eye
    )
    assert law.batch_shape == dense.batch_shape
    x = noise.fold(3).normal(*law.batch_shape, 4)[0]
    torch.testing.assert_close(law.log_prob(x), dense.log_prob(x))
    if law.batch_shape[-1:] == (1,):  # rows of a plate
        wide = law.expand(torch.Size((*law.batch_shape[:-1], 6)))
        rows = noise.fold(4).normal(6, 4)[0]
        torch.testing.assert_close(wide.log_prob(rows), dense.log_prob(rows))
        assert wide.sample().shape == (3, 6, 4)


def test_draws_of_the_density_have_its_covariance():
    loadings = torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.0, -1.0]])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = LowRankNormal(torch.zeros(3), loadings, torch.tensor(0.5)).sample((40_000,))
    expected = loadings @ loadings.mT + 0.5 * torch.eye(3)
    # the sd of a sample covariance is at most sqrt(2 / N) times the product of the sds
    sds = expected.diagonal().sqrt()
    away = (torch.cov(x.mT) - expected).abs() / (sds[:, None] * sds)
    assert float(away.max()) < 5 * math.sqrt(2 / len(x))


# -- maximum likelihood ----------------------------------------------------------------------------


@pytest.mark.parametrize("latent", [1, 2])
def test_em_reaches_the_maximum_of_the_likelihood(latent):
    best = PPCA(latent).maximum_likelihood(IRIS)
    maximum, divided = MAXIMUM[latent]
    assert normal(IRIS, best) == pytest.approx(maximum, abs=1e-6)
    assert PCA(latent).fit(IRIS).score(IRIS) * len(IRIS) == pytest.approx(divided, abs=1e-6)
    fitted = fit(PPCA(latent), IRIS, EM(objective="likelihood"))
    assert fitted.warnings == []
    assert fitted.posterior.attributes["objective_value"] == pytest.approx(maximum, abs=1e-6)
    for name, value in best.items():
        torch.testing.assert_close(fitted.posterior.draws[name], value, rtol=1e-4, atol=1e-5)


def test_the_maximum_is_none_of_another_scale_or_place():
    moved = 1e3 * ROWS - 7e4
    one, other = PPCA(2).maximum_likelihood(ROWS), PPCA(2).maximum_likelihood(moved)
    torch.testing.assert_close(other["loadings"], 1e3 * one["loadings"])
    torch.testing.assert_close(other["variance"], 1e6 * one["variance"])
    em = [fit(PPCA(2), x, EM(restarts=2)).posterior for x in (ROWS, moved)]
    torch.testing.assert_close(
        em[1].draws["loadings"], 1e3 * em[0].draws["loadings"], rtol=1e-4, atol=1e-2
    )


@pytest.mark.parametrize("objective", ["joint", "likelihood"])
@pytest.mark.parametrize("latent", [1, 3])
def test_em_never_descends(latent, objective):
    model = PPCA(latent)
    with isolated(torch.float64):
        data = model.prepare(ROWS)
        program = Program(model, data)
        density = program.log_joint if objective == "joint" else program.log_likelihood
        params = model.start(data, 3, Noise.seeded(1, 3))
        before = torch.full((3,), -math.inf)
        for _ in range(30):
            each = [{k: v[r] for k, v in params.items()} for r in range(3)]
            value = torch.stack([density(one) for one in each])
            assert bool((value >= before - 1e-10 * value.abs()).all())
            before = value
            params = model.m_step(data, model.e_step(data, params), objective)


def test_em_ends_where_the_slope_of_the_joint_is_zero():
    fitted = fit(PPCA(2), ROWS, EM(tol=1e-10))
    with isolated(torch.float64):
        program = Program(PPCA(2), fitted.data)
        point = {site.name: fitted.posterior.draws[site.name] for site in program.sites}
        slope = torch.func.grad(program.log_joint)(point)
    for name, value in slope.items():
        assert float(value.abs().max()) < 1e-5, name


def test_the_sums_of_the_e_step_are_those_over_the_rows():
    model = PPCA(2)
    data = model.prepare(ROWS)
    params = model.start(data, 3, Noise.seeded(4, 3))
    params["mean"] = params["mean"] + torch.tensor([0.3, -0.2, 0.1, 0.5])
    sums, _ = model.e_step(data, params)
    z = model.transform(params, ROWS)  # (R, N, q)
    _, spread = ppca.latent_map(params["loadings"], params["variance"])
    x = data["x"] - data["centre"]
    torch.testing.assert_close(sums.gram[:, 0, 1:], z.sum(1))
    torch.testing.assert_close(sums.gram[:, 1:, 1:], z.mT @ z + len(x) * spread)
    torch.testing.assert_close(sums.cross[:, :, 1:], x.mT @ z)


# -- the posterior, by quadrature ------------------------------------------------------------------

SMALL = np.array([[0.1, 1.9], [1.4, 2.2], [-0.9, 0.4], [2.3, 3.1], [-1.6, 0.9], [0.7, 0.5]])


def quadrature():
    """Exact moments for two columns and one latent dimension, W in polar coordinates.

    Given W and the noise variance the mean is normal and is integrated out in closed form, along
    the direction of W and across it.
    """
    x = SMALL
    count = len(x)
    centre, scale2 = x.mean(0), x.var(0).mean()
    scatter = (x - centre).T @ (x - centre)
    prior = (3**2) * scale2
    radius = (np.arange(300) + 0.5) / 300 * 9 * math.sqrt(scale2)
    angle = (np.arange(60) + 0.5) / 60 * math.pi
    log_v = np.linspace(math.log(scale2) - 7, math.log(scale2) + 4, 300)
    r, t, v = np.meshgrid(radius, angle, np.exp(log_v), indexing="ij")
    direction = np.stack([np.cos(t), np.sin(t)])
    along = np.einsum("irtv,ij,jrtv->rtv", direction, scatter, direction)
    across = np.trace(scatter) - along
    large = r**2 + v
    # the rows' mean is the prior's centre, so that the mean has expectation zero about it
    log_p = -(count - 1) / 2 * (np.log(large) + np.log(v)) - along / large / 2 - across / v / 2
    log_p += -0.5 * np.log(large + count * prior) - 0.5 * np.log(v + count * prior)
    log_p += -(r**2) / (2 * scale2) + np.log(r)  # and the area in polar coordinates
    log_p += -(2 + 1) * np.log(v) - 0.1 * scale2 / v + np.log(v)  # and of log v
    p = np.exp(log_p - log_p.max())
    p /= p.sum()
    mean_along, mean_across = (1 / (1 / prior + count / c) for c in (large, v))
    var0 = (p * (direction[0] ** 2 * mean_along + direction[1] ** 2 * mean_across)).sum()
    cov = (p * (direction[0] * direction[1] * (mean_along - mean_across))).sum()
    var1 = (p * (direction[1] ** 2 * mean_along + direction[0] ** 2 * mean_across)).sum()
    log_large, log_noise = (p * np.log(large)).sum(), (p * np.log(v)).sum()
    return centre, np.array([var0, var1, cov]), log_large, log_noise, p, np.log(large), np.log(v)


_CENTRE, _VAR, _LARGE, _NOISE, _P, _LOG_LARGE, _LOG_V = quadrature()

EXACT = Known(
    PPCA(1),
    mean={"mean[0]": _CENTRE[0], "mean[1]": _CENTRE[1], "large": _LARGE, "noise": _NOISE},
    sd={
        "mean[0]": math.sqrt(_VAR[0]),
        "mean[1]": math.sqrt(_VAR[1]),
        "large": math.sqrt((_P * (_LOG_LARGE - _LARGE) ** 2).sum()),
        "noise": math.sqrt((_P * (_LOG_V - _NOISE) ** 2).sum()),
    },
    covariance={
        ("mean[0]", "mean[1]"): _VAR[2],
        ("large", "noise"): (_P * (_LOG_LARGE - _LARGE) * (_LOG_V - _NOISE)).sum(),
    },
    data={"x": SMALL},
)
FAMILY = 4 * EXACT.moments
GIBBS = Gibbs(chains=64, warmup=100, draws=400)


def logged(values):
    """The draws with the logarithms of the eigenvalue and of the noise: tails without weight."""
    return {
        "mean": values["mean"],
        "large": values["eigenvalues"][..., 0].log(),
        "noise": values["variance"].log(),
    }


@pytest.mark.parametrize(
    "engine",
    [GIBBS, NUTS(chains=32, warmup=200, draws=250, tier="traced", target_acceptance=0.9)],
    ids=["Gibbs", "NUTS"],
)
def test_draws_have_the_moments_found_by_quadrature(engine):
    check(logged(draws(EXACT, engine)), EXACT, FAMILY)


def wrong_scale(loadings, z, scale, noise):
    return RESCALED(loadings, z, 2 * scale, noise)


def wrong_shift(offset, loadings, z, scale, noise):
    return SHIFTED(offset, 1.5 * loadings, z, scale, noise)


RESCALED, SHIFTED = ppca.rescaled, ppca.shifted
BROKEN = {"rescaled": wrong_scale, "shifted": wrong_shift}


@pytest.mark.parametrize("name", BROKEN)
def test_sabotage_a_move_that_changes_the_posterior_is_noticed(name, monkeypatch):
    monkeypatch.setattr(ppca, name, BROKEN[name])
    assert surprises(logged(draws(EXACT, GIBBS)), EXACT, FAMILY)


# -- rotations -------------------------------------------------------------------------------------


def test_no_rotation_changes_the_density_the_invariants_or_the_answer():
    model = PPCA(2)
    data = model.prepare(ROWS)
    noise = Noise.seeded(3, 4)
    values = {
        "loadings": noise.normal(5, 4, 2),
        "mean": noise.fold(1).normal(5, 4),
        "variance": noise.fold(2).exponential(5),
    }
    turn, _ = torch.linalg.qr(noise.fold(3).normal(5, 2, 2))
    turned = {**values, "loadings": values["loadings"] @ turn}
    one, other = model.canonical(values), model.canonical(turned)
    torch.testing.assert_close(one["loadings"], other["loadings"])
    for name, value in model.invariants(data, values).items():
        torch.testing.assert_close(model.invariants(data, one)[name], value)
    with isolated(torch.float64):
        density = Program(model, data).log_joint
        at = [{k: v[1, 2] for k, v in draws.items()} for draws in (values, one)]
        assert float(density(at[0])) == pytest.approx(float(density(at[1])), abs=1e-9)


def test_a_single_matrix_has_orthogonal_columns_of_decreasing_length():
    loadings = ppca.oriented(Noise.seeded(1, 1).normal(5, 3)[0])
    gram = loadings.mT @ loadings
    torch.testing.assert_close(gram, torch.diag(gram.diagonal()))
    assert bool((gram.diagonal().diff() < 0).all())
    assert bool((loadings.gather(0, loadings.abs().argmax(0, keepdim=True)) > 0).all())


def test_chains_agree_once_turned():
    fitted = fit(PPCA(2), IRIS, Gibbs(chains=4, warmup=100, draws=500))
    assert fitted.warnings == []
    best = PPCA(2).maximum_likelihood(IRIS)
    mean = fitted.posterior.draws["loadings"].mean((0, 1))
    sd = fitted.posterior.draws["loadings"].std((0, 1))
    assert bool(((mean - best["loadings"]).abs() < sd).all())


# -- what users ask for ----------------------------------------------------------------------------


def test_transform_and_reconstruct_are_the_regressions_of_the_joint_normal():
    params = PPCA(2).maximum_likelihood(ROWS)
    loadings, centred = params["loadings"], torch.as_tensor(ROWS) - params["mean"]
    covariance = loadings @ loadings.mT + params["variance"] * torch.eye(4, dtype=torch.float64)
    expected = torch.linalg.solve(covariance, centred.mT).mT @ loadings
    z = PPCA(2).transform(params, ROWS)
    torch.testing.assert_close(z, expected)
    torch.testing.assert_close(PPCA(2).reconstruct(params, ROWS), z @ loadings.mT + params["mean"])
    many = draws(Known(PPCA(2), {}, {}, data={"x": ROWS}), Gibbs(chains=2, warmup=5, draws=3))
    assert PPCA(2).transform(many, ROWS[:7]).shape == (2, 3, 7, 2)


def test_the_columns_of_a_table_name_the_answer():
    frame = pd.DataFrame(ROWS, columns=["a", "b", "c", "d"])
    summary = fit(PPCA(1), frame, EM()).summary()
    assert {"loadings[a, 0]", "mean[d]", "variance"} <= set(summary.index)


def test_prepare_takes_its_own_result():
    data = PPCA(2).prepare(ROWS)
    again = PPCA(2).prepare(data)
    assert data.keys() == again.keys()
    torch.testing.assert_close(again["scatter"], data["scatter"])


WIDE = np.random.default_rng(0).normal(size=(6, 3))
BAD = {
    "missing": (np.where(np.isin(WIDE, WIDE[2, 1]), np.nan, WIDE), "row 2 is missing"),
    "infinite": (np.where(np.isin(WIDE, WIDE[4, 0]), np.inf, WIDE), "row 4 is infinite"),
    "text": (pd.DataFrame({"a": [1.0, 2.0], "b": ["u", "v"]}), "x.b: holds .* not numbers"),
    "constant": (np.c_[WIDE, np.ones(6)], "the column 'x3' is constant.*drop it"),
    "few columns": (WIDE[:, :2], "2 columns, so 2 latent dimensions .*latent=1 at most"),
    "few rows": (WIDE[:3], "3 rows, too few for 2 latent.*at least 4"),
    "plane": (WIDE[:, :2] @ np.random.default_rng(1).normal(size=(2, 4)), "plane of 2 dimensions"),
    "empty": (np.empty((0, 3)), "empty"),
    "unknown": ({"x": WIDE, "y": WIDE}, "y: unknown beside x"),
    "names": ({"x": WIDE, "features": ["a"]}, "1 names for 3 columns"),
    "centre": ({"x": WIDE, "centre": [0.0]}, "centre: has shape"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_is_refused_before_any_work(case, monkeypatch):
    monkeypatch.setattr(Target, "log_density_and_grad", None)
    data, message = BAD[case]
    with pytest.raises(DataError, match=message):
        fit(PPCA(2), data, NUTS())


@pytest.mark.parametrize("latent", [0, 1.5, True, "2"])
def test_bad_settings_are_refused(latent):
    with pytest.raises(ModelError, match=r"latent=.*whole number of at least 1"):
        PPCA(latent)


def test_rows_of_other_columns_are_refused():
    with pytest.raises(DataError, match="3 columns; the parameters are of 4"):
        PPCA(1).transform(PPCA(1).maximum_likelihood(ROWS), WIDE)
