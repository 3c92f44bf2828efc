"""Mixtures of Gaussians: densities, passes and laws exactly, posteriors against closed forms.

Statistical checks fail for right code with a chance below ``statistics.LEVEL`` over the module.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import special, stats
from scipy.special import multigammaln
from sklearn.datasets import load_iris
from torch.distributions import biject_to
from torch.func import vmap
from torch.fx.experimental.proxy_tensor import make_fx

from inference import CAVI, EM, MH, NUTS, SVI, Gibbs, InferenceWarning, fit
from inference.engine import Problem
from inference.fit import bind
from inference.program import isolated
from ppl_models import DataError, EngineError, GaussianMixture, ModelError, Noise, kmeans
from ppl_models.conjugate_normal import STRUCTURES, Structure
from ppl_models.inverse_wishart import (
    Covariances,
    InverseWishart,
    ScaledInverseChiSquared,
    Variances,
)
from ppl_models.quadratic_rows import Moments, Rows
from ppl_models.relabel import matched, relabelled
from tests.statistics import check, draws, quiet, surprises
from tests.targets import Known, names
from tests.test_sabotage import Sabotage

KINDS = list(STRUCTURES)
RNG = np.random.default_rng(11)
CENTRES = np.array([[-2.0, 0.0], [2.0, 1.0], [0.0, 5.0]])
LABELS = RNG.integers(3, size=90)
ROWS = 3.0 + CENTRES[LABELS] + RNG.normal(size=(90, 2)) @ [[1.0, 0.4], [0.0, 0.7]]


@pytest.fixture(autouse=True)
def without_validation():
    """As in a fit's hot loop."""
    with isolated(torch.float64):
        yield


def real(value: Any) -> torch.Tensor:
    return torch.as_tensor(np.asarray(value), dtype=torch.float64)


def bound(kind: str, rows: Any = ROWS, components: int = 3, **settings: Any) -> Problem:
    return bind(GaussianMixture(components, kind, **settings), rows)


def full(kind: str, covariance: Any, components: int, dim: int) -> np.ndarray:
    """Covariances of any structure as matrices (K, D, D)."""
    structure = STRUCTURES[kind]
    each = structure.by_component(real(covariance), components, dim)
    return (each if structure.matrix else torch.diag_embed(each)).numpy()


def some_params(kind: str, components: int = 3, dim: int = 2, batch: int = 2) -> dict[str, Any]:
    """Legal values in no special place."""
    noise = Noise.seeded(3, batch)
    structure = STRUCTURES[kind]
    weights = noise.dirichlet(torch.full((batch, components), 3.0, dtype=torch.float64))
    mean = 3 + 2 * noise.fold(1).normal(components, dim)
    lead = () if structure.tied else (components,)
    if structure.matrix:
        root = noise.fold(2).normal(*lead, dim, dim)
        covariance = root @ root.mT + 0.3 * torch.eye(dim, dtype=torch.float64)
    else:
        shape = lead if structure.shared else (*lead, dim)
        covariance = 0.3 + noise.fold(2).exponential(*shape)
    return {"weights": weights, "mean": mean, "covariance": covariance}


# -- laws of covariances ---------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, 2, 4])
def test_inverse_wishart_density_is_that_of_scipy(dim):
    noise = Noise.seeded(1, 5)
    root, other = noise.normal(dim, dim), noise.fold(1).normal(dim, dim)
    eye = torch.eye(dim, dtype=torch.float64)
    scale, value = root @ root.mT + eye, other @ other.mT + 0.1 * eye
    found = InverseWishart(dim + 0.7, torch.linalg.cholesky(scale)).log_prob(value)
    pairs = zip(scale.numpy(), value.numpy(), strict=True)
    expected = [stats.invwishart(dim + 0.7, s).logpdf(v) for s, v in pairs]
    torch.testing.assert_close(found, real(expected))


def test_scaled_inverse_chi_squared_is_the_inverse_wishart_of_one_column():
    scale, value = real([0.5, 2.0]), real([0.7, 3.0])
    found = ScaledInverseChiSquared(3.4, scale).log_prob(value)
    wide = InverseWishart(3.4, scale.sqrt()[:, None, None]).log_prob(value[:, None, None])
    torch.testing.assert_close(found, wide)


@pytest.mark.parametrize("dim", [1, 2, 4])
def test_log_cholesky_is_a_bijection_with_its_log_determinant(dim):
    noise = Noise.seeded(2, 1)
    root = noise.normal(dim, dim)[0]
    scale = torch.linalg.cholesky(root @ root.mT + torch.eye(dim, dtype=torch.float64))
    transform = biject_to(Covariances(scale))
    x = noise.fold(1).normal(dim * (dim + 1) // 2)[0]
    y = transform(x)
    assert bool(Covariances(scale).check(y))
    torch.testing.assert_close(transform.inv(y), x)
    rows, columns = torch.tril_indices(dim, dim)
    jacobian = torch.autograd.functional.jacobian(lambda z: transform(z)[rows, columns], x)
    expected = torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(transform.log_abs_det_jacobian(x, y), expected)

    def density(z):
        value = transform(z)
        log_det = transform.log_abs_det_jacobian(z, value)
        return InverseWishart(5.0, scale, validate_args=False).log_prob(value) + log_det

    many = noise.fold(2).normal(3, dim * (dim + 1) // 2)[0]
    traced = vmap(make_fx(density)(x))(many)
    torch.testing.assert_close(traced, torch.stack([density(z) for z in many]))


def test_log_variance_is_a_bijection_with_its_log_determinant():
    transform = biject_to(Variances(real([0.5, 3.0])))
    x = real([0.3, -1.0])
    y = transform(x)
    torch.testing.assert_close(transform.inv(y), x)
    slope = torch.autograd.functional.jacobian(transform, x).diagonal()
    torch.testing.assert_close(transform.log_abs_det_jacobian(x, y), slope.log())


def test_inverse_wishart_draws_have_its_mean_and_variances():
    scale = real([[2.0, 0.5], [0.5, 1.0]])
    law = InverseWishart(16.0, torch.linalg.cholesky(scale))
    torch.manual_seed(0)
    values = law.sample((64, 500)).reshape(64, 500, 4)
    mean = scale / 13
    known = Known(
        lambda: None,
        mean=dict(zip(names("s", 4), mean.flatten().tolist(), strict=True)),
        sd={
            "s[0]": float(mean[0, 0]) * math.sqrt(2 / 11),
            "s[3]": float(mean[1, 1] * (2 / 11) ** 0.5),
        },
    )
    check({"s": values}, known, FAMILY)


# -- the program's density and the passes over rows ------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_program_has_the_density_of_a_mixture(kind):
    problem = bound(kind, degrees=5.0, shrinkage=0.3, scale=0.4, concentration=1.7)
    params = some_params(kind)
    found = problem.outputs.log_joint(params)
    location = ROWS.mean(0)
    spread = np.cov(ROWS.T, ddof=0)
    for i in range(2):
        weights, mean = params["weights"][i].numpy(), params["mean"][i].numpy()
        each = full(kind, params["covariance"][i], 3, 2)
        laws = [stats.multivariate_normal(m, c) for m, c in zip(mean, each, strict=True)]
        rows = special.logsumexp(
            [np.log(w) + law.logpdf(ROWS) for w, law in zip(weights, laws, strict=True)], 0
        )
        prior = stats.dirichlet([1.7] * 3).logpdf(weights)
        for m, c in zip(mean, each, strict=True):
            prior += stats.multivariate_normal(location, c / 0.3).logpdf(m)
        value = params["covariance"][i].numpy()
        if kind == "full":
            prior += sum(stats.invwishart(5.0, 0.4 * spread).logpdf(c) for c in value)
        elif kind == "tied":
            prior += stats.invwishart(5.0, 0.4 * spread).logpdf(value)
        else:
            scale = spread.diagonal() if kind == "diagonal" else spread.diagonal().mean()
            prior += stats.invgamma(2.5, scale=0.2 * scale).logpdf(value).sum()
        assert float(found[i]) == pytest.approx(prior + rows.sum(), rel=1e-12)


@pytest.mark.parametrize("kind", ["full", "diagonal"])
def test_passes_in_blocks_are_those_of_all_rows(kind, monkeypatch):
    monkeypatch.setattr("ppl_models.quadratic_rows._ELEMENTS", 1)  # 256 rows in a block
    x = real(RNG.normal(size=(700, 2)) + 5.0)
    problem = bound(kind, x)
    model: Any = problem.model
    params = some_params(kind)
    rows = model._rows(problem.data)
    coefficients = model._coefficients(problem.data, rows, params)
    moments, evidence = rows.expected(coefficients)
    y = x - problem.data["location"]
    logs = torch.stack(
        [
            torch.stack(
                [
                    params["weights"][b, k].log()
                    + real(
                        stats.multivariate_normal(
                            params["mean"][b, k], full(kind, params["covariance"][b], 3, 2)[k]
                        ).logpdf(x)
                    )
                    for k in range(3)
                ]
            )
            for b in range(2)
        ]
    )
    torch.testing.assert_close(evidence, logs.logsumexp(1).sum(-1))
    torch.testing.assert_close(moments, by_hand(logs.softmax(1), y, kind))
    uniform = Noise.seeded(5, 2).uniform(700)
    labels, counted = rows.assigned(coefficients, uniform)
    expected = (uniform[:, None] >= logs.softmax(1).cumsum(1)).sum(1)
    assert bool((labels == expected).all())
    members = torch.nn.functional.one_hot(labels, 3).mT.double()
    torch.testing.assert_close(counted, by_hand(members, y, kind))
    torch.testing.assert_close(rows.tallied(labels, 3), counted)


def by_hand(shares, y, kind):
    second = torch.einsum("bkn,ni,nj->bkij", shares, y, y)
    if not STRUCTURES[kind].matrix:
        second = second.diagonal(dim1=-2, dim2=-1)
    return Moments(shares.sum(-1), shares @ y, second)


def test_kmeans_separates_what_is_apart():
    x = real(CENTRES[LABELS] * 20 + ROWS)
    noise = Noise.seeded(0, 3)
    labels = kmeans.lloyd(x, kmeans.seeds(x, 3, noise), 5).numpy()
    same = LABELS[:, None] == LABELS
    for row in labels:
        assert ((row[:, None] == row) == same).all()


# -- EM --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["joint", "likelihood"])
@pytest.mark.parametrize("kind", KINDS)
def test_em_ascends_the_programs_own_objective_to_a_mode(kind, objective):
    problem = bound(kind, shrinkage=0.5, concentration=1.5)
    model: Any = problem.model
    density = problem.outputs.density(objective)
    params = model.start(problem.data, 3, Noise.seeded(0, 3))
    path = [density(params)]
    for _ in range(400):
        params = model.m_step(problem.data, model.e_step(problem.data, params), objective)
        path.append(density(params))
    rises = torch.stack(path).diff(dim=0)
    assert bool((rises > -1e-9).all())
    assert bool((rises[0] > 1e-3).all())
    # nowhere near the end is the objective higher
    x = problem.outputs.unconstrain(params)
    moves = 1e-3 * Noise.seeded(1, 3).normal(40, x.shape[1])
    away = problem.outputs.constrain(x[:, None] + moves)
    flat = {name: value.flatten(0, 1) for name, value in away.items()}
    assert bool((density(flat).view(3, 40) < path[-1][:, None]).all())


def test_em_of_far_away_rows_is_that_of_rows_at_the_origin():
    near = quiet(GaussianMixture(3), ROWS, EM(objective="likelihood"))
    away = quiet(GaussianMixture(3), ROWS + 1e6, EM(objective="likelihood"))
    value = [f.posterior.attributes["objective_value"] for f in (near, away)]
    assert value[0] == pytest.approx(value[1], abs=1e-6)


def faithful() -> pd.DataFrame:
    path = Path(__file__).parents[2] / "shared" / "data" / "gmm" / "faithful.csv"
    if not path.exists():
        pytest.skip("Old Faithful is not in ../shared/data/gmm")
    return pd.read_csv(path, usecols=["eruptions", "waiting"])


def test_em_on_old_faithful_reaches_the_published_likelihood():
    fitted = fit(GaussianMixture(2), faithful(), EM(restarts=20, objective="likelihood"))
    assert fitted.warnings == []
    assert fitted.posterior.attributes["objective_value"] == pytest.approx(-1130.26396, abs=1e-3)
    draws = fitted.posterior.draws
    np.testing.assert_allclose(draws["weights"], [0.35587, 0.64413], atol=1e-4)
    np.testing.assert_allclose(draws["mean"], [[2.03639, 54.4785], [4.28966, 79.9681]], atol=1e-3)
    summary = fitted.summary()
    assert "mean[0, waiting]" in summary.index


@pytest.mark.parametrize(("components", "value"), [(2, -214.354704), (3, -180.185477)])
def test_em_on_iris_reaches_the_published_likelihood(components, value):
    engine = EM(restarts=20, objective="likelihood")
    fitted = fit(GaussianMixture(components), load_iris(return_X_y=True)[0], engine)
    assert fitted.posterior.attributes["objective_value"] == pytest.approx(value, abs=1e-5)
    assert fitted.warnings == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_component_on_equal_rows_is_kept_at_the_floor_and_named(kind):
    rows = np.concatenate([RNG.normal(size=(30, 2)), np.full((8, 2), 9.0)])
    engine = EM(objective="likelihood", restarts=2)
    if kind == "tied":  # one covariance for both is not singular
        assert quiet(GaussianMixture(2, kind), rows, engine).warnings == []
        return
    with pytest.warns(InferenceWarning, match=r"component 1 has collapsed on about 8 rows.*joint"):
        fitted = fit(GaussianMixture(2, kind), rows, engine)
    problem = bind(GaussianMixture(2, kind), rows)
    model: Any = problem.model
    narrow = model._narrowest(problem.data, fitted.posterior.draws["covariance"])
    assert float(narrow[1]) == pytest.approx(1e-6, rel=1e-6)
    assert not any("fell" in text for text in fitted.warnings)
    assert quiet(GaussianMixture(2, kind), rows, EM()).warnings == []


def test_an_empty_component_is_named():
    model, problem = GaussianMixture(3), bound("full")
    params = some_params("full", batch=1)
    weights = real([[0.5, 0.499, 0.001]])
    found = model.findings(
        problem.data, {k: v[None] for k, v in {**params, "weights": weights}.items()}
    )
    assert len(found) == 1
    assert found[0].startswith("component 2 is empty: it holds 0.09 of 90 rows")


# -- exact posteriors of one component -------------------------------------------------------------

ONE = 1.5 + RNG.normal(size=(24, 2)) @ [[1.0, 0.6], [0.0, 0.8]]
SETTINGS = {"degrees": 6.0, "shrinkage": 2.0, "scale": 1.0}


def conjugate(kind: str) -> tuple[float, np.ndarray, float, np.ndarray]:
    """kappa, the mean, nu and Psi of the posterior, by Gelman et al. (2013), section 3.6."""
    n, d = ONE.shape
    centre, spread = ONE.mean(0), np.cov(ONE.T, ddof=0)  # the prior's location is the mean itself
    scatter = n * spread
    prior = {
        "full": spread,
        "tied": spread,
        "diagonal": spread.diagonal(),
        "spherical": spread.diagonal().mean(),
    }[kind]
    if kind == "diagonal":
        scatter = scatter.diagonal()
    if kind == "spherical":
        scatter = scatter.diagonal().sum()
    return 2.0 + n, centre, 6.0 + n * (d if kind == "spherical" else 1), prior + scatter


def one_component(kind: str) -> Known:
    kappa, centre, nu, psi = conjugate(kind)
    matrix = kind in ("full", "tied")
    dim = 2 if matrix else 1
    mean_covariance = psi / (nu - dim - 1)
    variance = np.broadcast_to(mean_covariance.diagonal() if matrix else mean_covariance, 2)
    lead = "" if kind == "tied" else "0, "
    labels = {
        "full": [f"covariance[{lead}{i}, {j}]" for i in range(2) for j in range(2)],
        "tied": [f"covariance[{lead}{i}, {j}]" for i in range(2) for j in range(2)],
        "diagonal": ["covariance[0, 0]", "covariance[0, 1]"],
        "spherical": ["covariance[0]"],
    }[kind]
    spread = np.sqrt(2 / (nu - dim - 3)) * mean_covariance
    on_diagonal = [0, 3] if matrix else range(len(labels))
    sd = {labels[i]: float(np.ravel(spread)[i]) for i in on_diagonal}
    sd |= {f"mean[0, {i}]": math.sqrt(variance[i] / kappa) for i in range(2)}
    mean = dict(zip(labels, np.ravel(mean_covariance).tolist(), strict=True))
    mean |= {f"mean[0, {i}]": float(centre[i]) for i in range(2)}
    cross = float(mean_covariance[0, 1]) / kappa if matrix else 0.0
    model = GaussianMixture(1, kind, **SETTINGS)
    return Known(model, mean, sd, {("mean[0, 0]", "mean[0, 1]"): cross}, {"x": ONE})


ONES = {kind: one_component(kind) for kind in KINDS}
SAMPLERS = {
    "gibbs": Gibbs(chains=64, warmup=5, draws=200),
    "nuts": NUTS(chains=48, warmup=100, draws=60, tier="traced"),
    "walk": MH(chains=64, warmup=150, draws=100, tier="traced", mass="dense"),
    "mean field": CAVI(restarts=1, draws=12_800),
}
EXACT = [("gibbs", kind) for kind in KINDS] + [("mean field", kind) for kind in KINDS]
EXACT += [("nuts", "full"), ("walk", "diagonal")]
PAIRS = list(itertools.combinations(range(6), 2))
MIXED = ["gibbs", "nuts", "walk"]
FAMILY = sum(ONES[kind].moments for _, kind in EXACT) + len(MIXED) * (len(PAIRS) + 2) + 6


def in_groups(values: Any, groups: int = 64) -> Any:
    """Independent draws (1, S, ...) as if of so many chains."""
    return {name: v.reshape(groups, -1, *v.shape[2:]) for name, v in values.items()}


@pytest.mark.parametrize(("sampler", "kind"), EXACT)
def test_draws_of_one_component_have_the_moments_of_the_closed_form(sampler, kind):
    values = draws(ONES[kind], SAMPLERS[sampler])
    check(in_groups(values) if sampler == "mean field" else values, ONES[kind], FAMILY)


@pytest.mark.parametrize(
    "sabotage",
    [
        Sabotage(Structure, "natural", "prior.degrees + self", "prior.degrees - 3 + self"),
        Sabotage(Structure, "natural", "prior.shrinkage + moments", "0.5 * moments"),
        Sabotage(
            Structure, "draws", "(2 * noise.fold(0).gamma(conc", "(1.8 * noise.fold(0).gamma(conc"
        ),
    ],
    ids=["degrees", "shrinkage", "scale"],
)
def test_moments_expose_a_broken_conditional(sabotage, monkeypatch):
    sabotage.commit(monkeypatch)
    assert surprises(draws(ONES["full"], SAMPLERS["gibbs"]), ONES["full"], FAMILY)


def log_evidence(kind: str) -> float:
    """Of ``ONE``, by the normalisers of the conjugate law before and after."""
    kappa, _, nu, psi = conjugate(kind)
    n, d = ONE.shape
    before = conjugate_prior(kind)
    result = -n * d / 2 * math.log(math.pi) + d / 2 * math.log(2.0 / kappa)
    if kind in ("full", "tied"):
        result += multigammaln(nu / 2, d) - multigammaln(3.0, d)
        return result + 3.0 * np.linalg.slogdet(before)[1] - nu / 2 * np.linalg.slogdet(psi)[1]
    each = (
        special.gammaln(nu / 2) - special.gammaln(3.0) + 3.0 * np.log(before) - nu / 2 * np.log(psi)
    )
    return result + float(np.sum(each))


def conjugate_prior(kind: str) -> np.ndarray:
    spread = np.cov(ONE.T, ddof=0)
    if kind in ("full", "tied"):
        return spread
    return spread.diagonal() if kind == "diagonal" else spread.diagonal().mean()


@pytest.mark.parametrize("kind", KINDS)
def test_elbo_of_one_component_is_the_log_evidence(kind):
    fitted = quiet(ONES[kind].program, {"x": ONE}, CAVI(restarts=1, draws=200))
    assert fitted.posterior.attributes["elbo"] == pytest.approx(log_evidence(kind), rel=1e-12)
    assert fitted.posterior.attributes["pareto_k"] < 0


# -- mean field of several components --------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_elbo_rises_and_is_the_expectation_it_claims_to_be(kind):
    problem = bound(kind)
    model: Any = problem.model
    data = problem.data
    factors = model.initial_factors(data, 2, Noise.seeded(0, 2))
    path, before = [], factors
    for _ in range(40):
        before, (factors, elbo) = factors, model.coordinate_step(data, factors, None)
        path.append(elbo)
    assert bool((torch.stack(path).diff(dim=0) > -1e-9).all())
    # E_q[log p(x, z, theta) - log q(z) - log q(theta)], q(z) being optimal given `before`
    number = 4000
    values = model.factor_draws(data, before, Noise.seeded(1, 2), number)
    prior = model.factor_log_density(data, before, values)
    rows = model._rows(data)
    flat = {name: value.flatten(0, 1) for name, value in values.items()}
    logs = model._coefficients(data, rows, flat) @ next(rows.blocks(1))[1]
    logs = logs.view(2, number, 3, -1)  # log p(x_n, z_n = k | theta)
    expected = logs.mean(1)
    share = expected.softmax(1)  # what q(z) is, up to Monte Carlo error, which is of second order
    joint = problem.outputs.log_joint(values) - logs.logsumexp(2).sum(-1)  # log p(theta)
    terms = joint + (share[:, None] * (logs - share.log()[:, None])).sum((2, 3)) - prior
    error = terms.std(1) / number**0.5
    assert bool(((terms.mean(1) - path[-1]).abs() < 5 * error).all())
    assert bool((error < 0.1).all())


def test_minibatches_reach_the_mean_field_of_all_rows():
    whole = quiet(GaussianMixture(3), ROWS, CAVI(restarts=2, draws=500))
    some = quiet(GaussianMixture(3), ROWS, CAVI(2, 600, draws=500, batch_size=30, forgetting=0.9))
    gap = whole.posterior.attributes["elbo"] - some.posterior.attributes["elbo"]
    assert -1e-6 < gap < 1.0
    svi = bound("full").program.minibatch(30)
    assert svi.fields == ["x"]


# -- a mixture by enumeration of its labels --------------------------------------------------------

FEW = np.array([[-1.2, 0.3], [-0.8, -0.4], [0.2, 0.1], [0.9, 1.1], [1.4, 0.6], [0.1, -1.2]])
TIGHT: dict[str, Any] = {"degrees": 14.0, "shrinkage": 1.0, "scale": 4.0, "concentration": 2.0}


def by_enumeration() -> Known:
    """P(z_i = z_j) and E[sum_k weight_k mean_k], summed over all labellings of six rows."""
    location, spread = FEW.mean(0), np.cov(FEW.T, ddof=0)
    y, nu0, psi0 = FEW - location, 14.0, 4.0 * spread
    logs, same, centre = [], [], []
    for z in itertools.product((0, 1), repeat=6):
        members = [y[np.array(z) == k] for k in (0, 1)]
        counts = np.array([len(m) for m in members])
        log = special.gammaln(2.0 + counts).sum()
        means = []
        for m in members:
            n = len(m)
            total = m.sum(0)
            psi = psi0 + m.T @ m - np.outer(total, total) / (1 + n)
            log += multigammaln((nu0 + n) / 2, 2) - math.log(1 + n)
            log -= (nu0 + n) / 2 * np.linalg.slogdet(psi)[1] + n * math.log(math.pi)
            means.append(total / (1 + n))
        logs.append(log)
        same.append([z[i] == z[j] for i, j in PAIRS])
        centre.append(location + (2.0 + counts) / 10.0 @ np.array(means))
    share = np.exp(np.array(logs) - special.logsumexp(logs))
    return Known(
        GaussianMixture(2, "full", **TIGHT),
        mean=dict(zip(names("same", len(PAIRS)), share @ np.array(same, float), strict=True))
        | dict(zip(names("centre", 2), share @ np.array(centre), strict=True)),
        sd={},
        data={"x": FEW},
    )


MIXTURE = by_enumeration()
FREE = {
    "gibbs": Gibbs(chains=64, warmup=20, draws=300),
    "nuts": NUTS(chains=48, warmup=100, draws=60, tier="traced"),
    "walk": MH(chains=64, warmup=150, draws=100, tier="traced", mass="dense", thin=15),
}


def label_free(values: Any) -> Any:
    z = values["z"]
    first, second = (torch.tensor(side) for side in zip(*PAIRS, strict=True))
    centre = (values["weights"][..., None] * values["mean"]).sum(-2)
    return {"same": (z[..., first] == z[..., second]).double(), "centre": centre}


@pytest.mark.parametrize("sampler", MIXED)
def test_draws_of_a_mixture_agree_with_the_sum_over_all_labellings(sampler):
    check(label_free(draws(MIXTURE, FREE[sampler])), MIXTURE, FAMILY)


def test_gibbs_keeps_its_own_labels_by_their_conditional(monkeypatch):
    """The labels that the sweeps hold, not those that are drawn again from the program."""
    Sabotage(Rows, "assigned", "cumulative[:, -1:] >=", "0.8 * cumulative[:, -1:] >=").commit(
        monkeypatch
    )
    assert surprises(label_free(draws(MIXTURE, FREE["gibbs"])), MIXTURE, FAMILY)


# -- labels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("components", [3, 7])
def test_relabelling_undoes_any_switching(kind, components):
    structure = STRUCTURES[kind]
    chains, number, n = 2, 40, 12
    base = some_params(kind, components, batch=1)
    noise = Noise.seeded(4, chains)
    mean = 3 * base["mean"] + 0.3 * noise.normal(number, components, 2)
    mean = mean.gather(2, mean.mean((0, 1))[:, 0].argsort()[None, None, :, None].expand_as(mean))
    weights = base["weights"] * (1 + 0.1 * noise.fold(1).uniform(number, components))
    covariance = base["covariance"].expand(chains, number, *base["covariance"].shape[1:])
    z = (noise.fold(2).uniform(number, n) * components).long()
    plain = {"weights": weights, "mean": mean, "covariance": covariance, "z": z}
    order = noise.fold(3).uniform(number, components).argsort(-1)
    switched = {
        "weights": weights.gather(-1, order),
        "mean": mean.gather(2, order[..., None].expand_as(mean)),
        "z": order.argsort(-1).gather(-1, z),
        "covariance": covariance
        if structure.tied
        else torch.take_along_dim(
            covariance, order.reshape(*order.shape, *[1] * (covariance.dim() - 3)), 2
        ),
    }
    model = GaussianMixture(components, kind)
    for given in (plain, switched):
        found = model.canonical(given)
        for name, value in plain.items():
            torch.testing.assert_close(found[name], value)
        free = model.invariants({}, given)
        for name, value in model.invariants({}, plain).items():
            torch.testing.assert_close(free[name], value)


def test_assignment_and_permutations_match_alike(monkeypatch):
    features = Noise.seeded(6, 1).normal(60, 4, 3)[0] + real([0.0, 2.0, 4.0, 1.0])[:, None]
    found = matched(features)
    monkeypatch.setattr("ppl_models.relabel._ALL_PERMUTATIONS", 0)
    assert bool((matched(features) == found).all())


def test_a_point_is_ordered_by_its_first_coordinates():
    point = {name: value[0] for name, value in some_params("full").items()}
    found = relabelled(point, STRUCTURES["full"])
    assert bool((found["mean"][:, 0].diff() >= 0).all())
    moved = [int((found["weights"] == w).nonzero()) for w in point["weights"]]
    torch.testing.assert_close(found["covariance"][moved], point["covariance"])


def test_invariants_are_moments_of_the_mixture():
    model, params = GaussianMixture(3), some_params("full", batch=1)
    free = model.invariants({}, {k: v[None] for k, v in params.items()})
    torch.manual_seed(0)
    z = torch.multinomial(params["weights"][0], 200_000, replacement=True)
    root = torch.linalg.cholesky(params["covariance"][0])
    x = params["mean"][0][z] + (root[z] @ torch.randn(len(z), 2, 1, dtype=torch.float64))[..., 0]
    deviation = (x.mean(0) - free["mixture_mean"][0, 0]) / x.std(0) * len(x) ** 0.5
    assert bool((deviation.abs() < 5).all())
    torch.testing.assert_close(x.T.cov(), free["mixture_covariance"][0, 0], rtol=0.03, atol=0.1)


# -- what a user reads -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_responsibilities_and_predictions_are_those_of_the_mixture(kind):
    fitted = quiet(GaussianMixture(3, kind), ROWS, EM())
    point = fitted.posterior.draws
    each = full(kind, point["covariance"], 3, 2)
    means = point["mean"].numpy()
    logs = [stats.multivariate_normal(m, c).logpdf(ROWS) for m, c in zip(means, each, strict=True)]
    expected = special.softmax(np.array(logs).T + np.log(point["weights"].numpy()), 1)
    np.testing.assert_allclose(fitted.responsibilities()["z"], expected, atol=1e-9)
    again = fitted.predict({**fitted.data, "x": None, "rows": 40_000})["x"]
    assert again.shape == (40_000, 2)
    free = GaussianMixture(3, kind).invariants({}, {k: v[None, None] for k, v in point.items()})
    deviation = (again.mean(0) - free["mixture_mean"][0, 0]) / again.std(0) * 200
    assert bool((deviation.abs() < 5).all())
    covariance = free["mixture_covariance"][0, 0]
    torch.testing.assert_close(again.T.cov(), covariance, rtol=0.05, atol=0.2)
    assert fitted.predict({**fitted.data, "x": ROWS[:1]})["x"].shape == (1, 2)
    assert fitted.predict(ROWS[:50])["x"].shape == (50, 2)


def test_rows_of_every_form_are_taken():
    table = pd.DataFrame(ROWS, columns=["a", "b"])
    forms = [ROWS, ROWS.tolist(), torch.as_tensor(ROWS), table, {"x": ROWS}, {"x": table}]
    values = []
    for form in [*forms, {"a": ROWS[:, 0], "b": ROWS[:, 1]}]:
        fitted = quiet(GaussianMixture(2), form, EM())
        values.append(fitted.posterior.attributes["objective_value"])
    assert len(set(values)) == 1
    assert "mean[0, b]" in quiet(GaussianMixture(2), table, EM()).summary().index
    one = quiet(GaussianMixture(2), ROWS[:, 0], EM())
    assert one.posterior.draws["covariance"].shape == (2, 1, 1)


NAN = ROWS.copy()
NAN[7, 1] = np.nan
TABLE = pd.DataFrame(ROWS[:6], columns=["a", "b"])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (NAN, r"x: row 7 is missing \(NaN\); drop the row"),
        (np.where(np.isnan(NAN), np.inf, NAN), "x: row 7 is infinite"),
        (pd.DataFrame(NAN, columns=["a", "b"]), "b: row 7 is missing"),
        (TABLE.assign(name=list("uvwxyz")), "name: holds .* values, not numbers; encode or drop"),
        (ROWS[:2], "x: has 2 rows for 3 components"),
        (ROWS[:0], "empty"),
        (np.tile(ROWS[:2], (300, 1)), "x: has only 2 distinct rows for 3 components"),
        (TABLE.assign(c=1.0), "the column 'c' is constant"),
        (TABLE.assign(c=TABLE.a + TABLE.b), "x: column c is a linear combination .* drop it"),
        (None, "x: "),
        ({"y": ["a"]}, "y: "),
        ({"x": ROWS, "z": ROWS}, "z: unknown beside x"),
        ({"x": ROWS, "features": ["a"]}, "features: 1 names for 2 columns"),
        ({"x": ROWS, "location": [1.0]}, r"location: has shape \(1,\); give \(2,\)"),
        ({"x": None}, "x: is None and location, spread, rows not given"),
    ],
)
def test_bad_rows_are_refused_with_the_remedy(rows, message):
    with pytest.raises(DataError, match=message):
        fit(GaussianMixture(3), rows, EM())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianMixture(0), "components=0: give a whole number of at least 1"),
        (lambda: GaussianMixture(2.5), "components=2.5"),
        (lambda: GaussianMixture(2, "round"), "covariance='round': choose one of 'full'"),
        (lambda: GaussianMixture(2, shrinkage=0.0), "shrinkage=0.0: give a positive number"),
        (lambda: GaussianMixture(2, scale=math.nan), "scale=nan: give a positive number"),
        (
            lambda: fit(GaussianMixture(2, degrees=1.0), ROWS, EM()),
            "degrees=1.0: covariances of 2 columns need more than 1",
        ),
    ],
)
def test_settings_out_of_range_are_refused_with_the_remedy(make, message):
    with pytest.raises(ModelError, match=message):
        make()


def test_batches_of_more_rows_than_there_are_are_refused_before_work(monkeypatch):
    monkeypatch.setattr(GaussianMixture, "initial_factors", None)
    with pytest.raises(
        EngineError, match=r"batch_size=1000\): the data have \d+ rows; give at most"
    ):
        fit(GaussianMixture(2), ROWS, CAVI(batch_size=1000))


def test_em_refuses_a_joint_without_a_mode():
    sparse = GaussianMixture(2, concentration=0.5)
    with pytest.raises(EngineError, match=r"concentration=0\.5 the joint density is infinite"):
        fit(sparse, ROWS, EM())
    assert quiet(sparse, ROWS, EM(objective="likelihood")).warnings == []


def test_approximations_agree_with_gibbs_on_rows_well_apart():
    """Means within a fifth of the posterior's sd, and sds but those of SVI within a quarter.

    CAVI keeps each mean and covariance in one factor, SVI's normals in unconstrained space do not.
    """
    model = GaussianMixture(2)
    rows = np.concatenate([RNG.normal(size=(20, 2)), 12 + RNG.normal(size=(40, 2))])
    gibbs = quiet(model, rows, Gibbs(chains=32, warmup=20, draws=200)).posterior.draws
    others = {
        "cavi": CAVI(draws=4000),
        "svi": SVI(steps=800, draws=2000, tier="traced"),
    }
    for name, engine in others.items():
        found = quiet(model, rows, engine).posterior.draws
        for site in ("weights", "mean", "covariance"):
            value, expected = found[site].flatten(0, 1), gibbs[site].flatten(0, 1)
            gap = (value.mean(0) - expected.mean(0)) / expected.std(0)
            assert float(gap.abs().max()) < 0.2, (name, site, gap)
            ratio = value.std(0) / expected.std(0)
            close = (ratio > 0.8) & (ratio < 1.25)
            assert name == "svi" or bool(close.all()), (name, site, ratio)
