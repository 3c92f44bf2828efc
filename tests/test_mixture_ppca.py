"""Mixtures of principal components against one component, dense normals and their laws."""

import math

import numpy as np
import pytest
import torch
from scipy import special, stats

from inference import EM, NUTS, Target, fit
from inference.program import Program, isolated
from ppl_models import PPCA, DataError, EngineError, MixturePPCA, ModelError, Noise
from tests.statistics import quiet

RNG = np.random.default_rng(8)
LABELS = np.repeat([0, 1, 2], 30)
CENTRES = np.array([[-6.0, 0.0, 0.0, 1.0], [0.0, 5.0, 0.0, 1.0], [6.0, 0.0, -5.0, 1.0]])
PLANES = RNG.normal(size=(3, 4, 1))
X = CENTRES[LABELS] + 2 * RNG.normal(size=(90, 1)) * PLANES[LABELS, :, 0]
X = X + 0.3 * RNG.normal(size=(90, 4)) + 10.0


def log_likelihood(params):
    """By SciPy's dense normals."""
    each = [
        math.log(float(params["weights"][k]))
        + stats.multivariate_normal(
            params["mean"][k].numpy(),
            (params["loadings"][k] @ params["loadings"][k].mT).numpy()
            + float(params["variance"][k]) * np.eye(4),
        ).logpdf(X)
        for k in range(len(params["weights"]))
    ]
    return special.logsumexp(each, 0).sum()


@pytest.mark.parametrize("objective", ["joint", "likelihood"])
def test_one_component_is_ppca(objective):
    one = fit(MixturePPCA(1, 2), X, EM(objective=objective, tol=1e-9))
    other = fit(PPCA(2), X, EM(objective=objective, tol=1e-9))
    for name in ("loadings", "mean", "variance"):
        torch.testing.assert_close(
            one.posterior.draws[name][0], other.posterior.draws[name], rtol=1e-5, atol=1e-6
        )
    # the joint has no more factors: Dirichlet(1) has density one
    ends = [f.posterior.attributes["objective_value"] for f in (one, other)]
    assert ends[0] == pytest.approx(ends[1], abs=1e-7)


def test_the_likelihood_is_that_of_dense_normals_and_planes_are_found():
    fitted = fit(MixturePPCA(3, 1), X, EM(objective="likelihood", restarts=6))
    draws = fitted.posterior.draws
    assert log_likelihood(draws) == pytest.approx(
        fitted.posterior.attributes["objective_value"], abs=1e-8
    )
    share = MixturePPCA(3, 1).responsibilities(draws, X)
    assert (share.argmax(-1).numpy() == LABELS).all()
    torch.testing.assert_close(share, fitted.responsibilities()["z"], rtol=1e-6, atol=1e-9)
    # given the labels, which are certain, each is the maximum-likelihood estimate of its rows
    for k in range(3):
        best = PPCA(1).maximum_likelihood(X[k == LABELS])
        torch.testing.assert_close(draws["loadings"][k], best["loadings"], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(draws["variance"][k], best["variance"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("objective", ["joint", "likelihood"])
@pytest.mark.parametrize("components", [2, 4])
def test_em_never_descends(components, objective):
    model = MixturePPCA(components, 2)
    with isolated(torch.float64):
        data = model.prepare(X)
        program = Program(model, data)
        density = program.log_joint if objective == "joint" else program.log_likelihood
        params = model.start(data, 3, Noise.seeded(1, 3))
        before = torch.full((3,), -math.inf)
        for _ in range(20):
            each = [{k: v[r] for k, v in params.items()} for r in range(3)]
            value = torch.stack([density(one) for one in each])
            assert bool((value >= before - 1e-8 * value.abs()).all())
            before = value
            params = model.m_step(data, model.e_step(data, params), objective)


def test_em_for_the_joint_ends_where_its_slope_is_zero():
    fitted = fit(MixturePPCA(2, 1, concentration=2.0), X, EM(tol=1e-10, restarts=2))
    with isolated(torch.float64):
        program = Program(fitted.model, fitted.data)
        names = ("loadings", "mean", "variance")
        point = {name: value.clone() for name, value in fitted.posterior.draws.items()}
        inputs = [point[name].requires_grad_(True) for name in names]
        slope = torch.autograd.grad(program.log_joint(point), inputs)
    for name, value in zip(names, slope, strict=True):
        assert float(value.abs().max()) < 1e-4, name


def test_restarts_in_a_batch_are_single_runs():
    model = MixturePPCA(3, 1)
    data = model.prepare(X)
    noise = Noise.seeded(2, 3)
    together = model.start(data, 3, noise)
    alone = [model.start(data, 1, noise._replace(key=noise.key[r : r + 1])) for r in range(3)]
    for _ in range(5):
        together = model.m_step(data, model.e_step(data, together), "joint")
        alone = [model.m_step(data, model.e_step(data, one), "joint") for one in alone]
    for r in range(3):
        for name, value in together.items():
            torch.testing.assert_close(value[r], alone[r][name][0], rtol=1e-9, atol=1e-9)


def test_neither_labels_nor_rotations_change_the_density_or_the_answer():
    model = MixturePPCA(3, 2)
    noise = Noise.seeded(3, 2)
    best = fit(model, X, EM()).posterior.draws
    draws = {
        name: value + 0.05 * value.abs() * noise.fold(i).normal(5, *value.shape)
        for i, (name, value) in enumerate(best.items())
        if name in ("loadings", "mean", "variance")
    }
    draws["weights"] = noise.fold(9).dirichlet(best["weights"].expand(2, 5, 3) * 50)
    draws["z"] = (noise.fold(8).uniform(5, 90) * 3).long()
    order = noise.fold(10).uniform(5, 3).argsort(-1)
    turn, _ = torch.linalg.qr(noise.fold(11).normal(5, 3, 2, 2))

    def taken(value, events):
        index = order.reshape(*order.shape, *[1] * events).expand(2, 5, *value.shape[2:])
        return value.gather(2, index)

    other = {
        "weights": taken(draws["weights"], 0),
        "mean": taken(draws["mean"], 1),
        "loadings": taken(draws["loadings"], 2) @ turn,
        "variance": taken(draws["variance"], 0),
        "z": order.argsort(-1).gather(-1, draws["z"]),
    }
    one, again = model.canonical(draws), model.canonical(other)
    for name, value in one.items():
        torch.testing.assert_close(again[name], value)
    with isolated(torch.float64):
        data = model.prepare(X)
        density = Program(model, data).log_joint
        at = [{k: v[1, 2] for k, v in d.items() if k != "z"} for d in (draws, other, one)]
        values = [float(density(point)) for point in at]
    assert values == pytest.approx([values[0]] * 3, abs=1e-8)
    for name, value in model.invariants(data, draws).items():
        torch.testing.assert_close(model.invariants(data, one)[name], value)


def test_a_component_that_collapses_is_named_and_nothing_breaks():
    twice = np.r_[X[:40], np.repeat(X[:1] + 30.0, 4, 0)]
    fitted = quiet(MixturePPCA(2, 1), twice, EM(objective="likelihood"))
    text = " ".join(fitted.warnings)
    assert "has collapsed onto about 4 rows" in text
    assert all(bool(torch.isfinite(v).all()) for v in fitted.posterior.draws.values())
    joint = quiet(MixturePPCA(2, 1), twice, EM())
    assert "collapsed" not in " ".join(joint.warnings)


def test_nuts_runs_on_the_program():
    engine = NUTS(chains=2, warmup=50, draws=20, tier="traced", max_depth=5)
    fitted = quiet(MixturePPCA(2, 1), (X - 10) / 5, engine)
    assert fitted.posterior.draws["loadings"].shape == (2, 20, 2, 4, 1)
    assert fitted.posterior.draws["z"].shape == (2, 20, 90)


BAD = {
    "missing": (np.where(np.isin(X, X[3, 1]), np.nan, X), "row 3 is missing"),
    "distinct": (np.repeat(X[:2], 5, 0), "2 distinct rows for 3 components"),
    "columns": (X[:, :2], "2 columns, so 2 latent"),
    "constant": (np.c_[X, 0 * X[:, 0]], "'x4' is constant"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_is_refused_before_any_work(case, monkeypatch):
    monkeypatch.setattr(Target, "log_density_and_grad", None)
    bad, message = BAD[case]
    with pytest.raises(DataError, match=message):
        fit(MixturePPCA(3, 2), bad, NUTS())


def test_bad_settings_are_refused():
    with pytest.raises(ModelError, match="components=0"):
        MixturePPCA(0, 1)
    with pytest.raises(ModelError, match="floor=-1"):
        MixturePPCA(2, 1, floor=-1)
    with pytest.raises(EngineError, match=r"concentration=0.5 the joint density is infinite"):
        fit(MixturePPCA(2, 1, concentration=0.5), X, EM())
