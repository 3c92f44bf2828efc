"""Logistic regression: its program, EM and Gibbs against published and independent figures."""

import math

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from pyro import poutine
from scipy.optimize import minimize
from scipy.special import wrightomega
from torch.fx.experimental.proxy_tensor import make_fx

import ppl_models.logistic
from ppl_models import (
    DataError,
    FlatPrior,
    LogisticRegression,
    ModelError,
    Noise,
    NormalPrior,
    ORing,
    RobertCasella,
)
from ppl_models.oring import flights
from ppl_models.polya_gamma import pg_mean
from ppl_models.quadratic import Quadratic, log_wright_omega

X = torch.tensor(np.random.default_rng(1).normal((1.0, -20.0, 300.0), (1.0, 3.0, 50.0), (40, 3)))
COIN = torch.tensor(np.random.default_rng(2).integers(0, 2, 40))
COUNT = torch.tensor(np.random.default_rng(3).integers(0, 5, 40))

MODELS = {
    **{
        f"oring-{outcome}-{'pressure-' if pressure else ''}{prior}": (
            ORing(outcome, pressure, prior),
            None,
        )
        for outcome in ("incident", "damaged")
        for pressure in (False, True)
        for prior in ("robert-casella", "normal", "flat")
    },
    "normal": (LogisticRegression(), {"x": X, "y": COIN}),
    "as-given": (LogisticRegression(NormalPrior(3.0, 1.0, False)), {"x": X, "y": COIN}),
    "flat-counts": (LogisticRegression(FlatPrior()), {"x": X, "y": COUNT, "trials": 4}),
    "robert-casella-counts": (
        LogisticRegression(RobertCasella(0.4)),
        {"x": X, "y": COUNT, "trials": COUNT + 1},
    ),
}
every_model = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def joint(model, data):
    """The log density of the program's own trace, as a function of the values of its sites."""

    def log_density(params):
        return poutine.trace(poutine.condition(model, params)).get_trace(**data).log_prob_sum()

    return log_density


def no_validation():
    return pyro.validation_enabled(False)


def em(model, data, *, objective="joint", restarts=3, steps=20_000, tol=1e-12):
    """EM to a fixed point, from ``restarts`` random points that all must arrive there."""
    params = model.start(data, restarts, Noise.seeded(0, restarts))
    for _ in range(steps):
        old = model.pack(params)
        params = model.m_step(data, model.e_step(data, params), objective)
        change = (model.pack(params) - old).abs() / (1 + old.abs())
        if float(change.max()) < tol:
            break
    theta = model.pack(params)
    torch.testing.assert_close(theta, theta[:1].expand_as(theta), rtol=1e-6, atol=1e-8)
    return {site: value[0] for site, value in params.items()}


def gibbs(model, data, chains, sweeps, seed=0, warmup=30):
    """Draws of theta by the model's own conditionals: (sweeps, chains, D)."""
    noise = Noise.seeded(seed, chains)
    (block,) = model.conditionals(data).values()
    params = model.start(data, chains, noise.fold(0))
    draws = []
    for sweep in range(warmup + sweeps):
        params = block(params, noise.fold(1, sweep))
        if sweep >= warmup:
            draws.append(model.pack(params))
    return torch.stack(draws)


def assert_moment(values, expected, limit=4.5):
    """By batch means over the independent chains of ``values`` (sweeps, chains)."""
    batch = values.mean(0)
    score = float((batch.mean() - expected) / (batch.std() / math.sqrt(len(batch))))
    assert abs(score) < limit, f"{score:.1f} standard errors off"


def assert_moments(draws, mean, covariance):
    """Means and all second moments of draws (sweeps, chains, D)."""
    centred = draws - mean
    for i in range(len(mean)):
        assert_moment(draws[..., i], mean[i])
        for j in range(i + 1):
            assert_moment(centred[..., i] * centred[..., j], covariance[i, j])


def quadrature(model, data, points=401):
    """Log normaliser, mean and covariance of (alpha, beta) by the trapezoid rule on a grid.

    The grid is in the logit at average x and the slope per sd of x, where the axes are nearly those
    of the posterior; the program's density is taken at the alpha and beta they stand for.
    """
    centre, spread = float(data["centre"]), float(data["spread"])
    level, slope = np.linspace(-14, 10, points), np.linspace(-16, 10, points)
    beta = slope / spread
    alpha = level[:, None] - beta * centre
    theta = torch.tensor(np.stack([alpha, np.broadcast_to(beta, alpha.shape)], -1).reshape(-1, 2))
    with no_validation():
        log_density = torch.vmap(joint(model, data), chunk_size=20_000)(model.unpack(theta))
    cell = (level[1] - level[0]) * (beta[1] - beta[0])
    log_normaliser = torch.logsumexp(log_density, 0) + math.log(cell)
    weight = torch.softmax(log_density, 0)
    mean = weight @ theta
    return float(log_normaliser), mean, (theta - mean).T @ (weight[:, None] * (theta - mean))


# --- the program ---------------------------------------------------------------------------------


@every_model
def test_program_under_vmap_and_make_fx(name):
    model, raw = MODELS[name]
    data = model.prepare(raw)
    params = model.start(data, 3, Noise.seeded(0, 3))
    each = [joint(model, data)({k: v[c] for k, v in params.items()}) for c in range(3)]
    moved = {site: value + 0.01 for site, value in params.items()}
    with no_validation():
        batched = torch.vmap(torch.func.grad_and_value(joint(model, data)))
        torch.testing.assert_close(batched(params)[1], torch.stack(each))
        traced = make_fx(batched)(params)
        torch.testing.assert_close(traced(moved), batched(moved))


@every_model
def test_prepare_takes_its_own_result(name):
    model, raw = MODELS[name]
    data = model.prepare(raw)
    again = model.prepare(data)
    assert data.keys() == again.keys()
    for field, value in data.items():
        same = torch.equal(value, again[field]) if torch.is_tensor(value) else value == again[field]
        assert same, field


@every_model
def test_pack_and_unpack(name):
    model, raw = MODELS[name]
    data = model.prepare(raw)
    theta = torch.randn(4, 2, model.design(data).shape[1], dtype=torch.float64)
    assert torch.equal(model.pack(model.unpack(theta)), theta)
    event = {site: value.shape[2:] for site, value in model.unpack(theta).items()}
    trace = poutine.trace(poutine.condition(model, model.unpack(theta[0, 0]))).get_trace(**data)
    assert event == {site: trace.nodes[site]["value"].shape for site in event}


def test_log_density_by_hand():
    data = LogisticRegression().prepare({"x": X, "y": COUNT, "trials": 4})
    alpha, beta = torch.tensor(-1.3).double(), torch.tensor([0.4, -0.1, 0.002]).double()
    psi = alpha + X @ beta
    choose = torch.tensor([math.comb(4, int(k)) for k in COUNT]).double().log()
    likelihood = (choose + COUNT * psi - 4 * torch.nn.functional.softplus(psi)).sum()
    average, spread = X.mean(0), X.std(0, correction=0)

    def normal(value, scale):
        return (-((value / scale) ** 2) / 2 - scale.log() - math.log(2 * math.pi) / 2).sum()

    prior = normal(alpha + average @ beta, torch.tensor(10.0)) + normal(beta, 2.5 / spread)
    value = joint(LogisticRegression(), data)({"alpha": alpha, "beta": beta})
    torch.testing.assert_close(value, likelihood + prior)


def test_normal_prior_does_not_hang_on_the_units_of_x():
    data = LogisticRegression().prepare({"x": X, "y": COIN})
    celsius = LogisticRegression().prepare({"x": (X - 32) / 1.8, "y": COIN})
    mode, other = em(LogisticRegression(), data), em(LogisticRegression(), celsius)
    torch.testing.assert_close(mode["beta"], other["beta"] / 1.8)
    torch.testing.assert_close(mode["alpha"], other["alpha"] - (other["beta"] * 32 / 1.8).sum())


def test_robert_casella_density_and_draws():
    prior = RobertCasella(15.0429)
    alpha = torch.linspace(-40, 20, 13, dtype=torch.float64)
    log_b = 15.0429 + np.euler_gamma
    site = prior.intercept(torch.zeros((), dtype=torch.float64))
    torch.testing.assert_close(site.log_prob(alpha), alpha - log_b - (alpha - log_b).exp())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = site.sample((100_000, 1))
    assert draws.dtype == torch.float64
    assert_moment(draws.T, 15.0429)
    assert_moment((draws.T - log_b).exp(), 1.0)  # e^alpha / b is exponential
    assert_moment((draws.T - log_b).exp().square(), 2.0)


def test_robert_casella_posterior_by_quadrature():
    model = ORing()
    log_normaliser, mean, covariance = quadrature(model, model.prepare())
    sd = covariance.diag().sqrt()
    assert log_normaliser == pytest.approx(-14.05633, abs=2e-5)
    assert mean.tolist() == pytest.approx([15.09022, -0.2337596], rel=1e-6)
    assert sd.tolist() == pytest.approx([1.22540, 0.0197855], rel=1e-5)
    assert float(covariance[0, 1] / sd.prod()) == pytest.approx(-0.90691, abs=1e-5)


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("name", ["normal", "oring-damaged-pressure-normal"])
def test_prediction(name, parallel):
    model, raw = MODELS[name]
    data = {**model.prepare(raw), "y": None}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        prior = pyro.infer.Predictive(model, num_samples=7, parallel=parallel)(**data)
        sites = (
            ("alpha", "beta", "gamma") if model is not MODELS["normal"][0] else ("alpha", "beta")
        )
        latent = {site: prior[site] for site in sites}
        drawn = pyro.infer.Predictive(model, latent, parallel=parallel)(**data)
    rows = len(model.design(data))
    assert drawn["y"].shape[0] == 7
    assert drawn["y"].numel() == 7 * rows
    assert set(drawn["y"].unique().tolist()) <= set(range(7))
    if "p" in drawn:
        at = torch.tensor(model.predict_at, dtype=torch.float64)
        alpha, beta, gamma = (latent[site].reshape(7, 1) for site in ("alpha", "beta", "gamma"))
        expected = (alpha + beta * at + 200 * gamma).sigmoid()
        torch.testing.assert_close(drawn["p"].reshape(7, 5), expected)


# --- EM ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prior", "objective"),
    [("flat", "joint"), ("normal", "likelihood"), ("robert-casella", "likelihood")],
)
def test_em_finds_the_published_maximum_likelihood(prior, objective):
    model = ORing(prior=prior)
    data = model.prepare()
    mode = em(model, data, objective=objective)
    assert float(mode["alpha"]) == pytest.approx(15.04290, abs=1e-5)
    assert float(mode["beta"]) == pytest.approx(-0.232163, abs=1e-6)
    deviance = -2 * joint(ORing(prior="flat"), data)(mode)
    assert float(deviance) == pytest.approx(20.3152, abs=1e-4)
    assert float((mode["alpha"] + 31 * mode["beta"]).sigmoid()) == pytest.approx(0.99961, abs=1e-5)


def test_em_finds_the_published_binomial_fit():
    model = ORing("damaged", prior="flat")
    data = model.prepare()
    mode = em(model, data)
    assert float(mode["alpha"]) == pytest.approx(5.085, abs=5e-4)
    assert float(mode["beta"]) == pytest.approx(-0.1156, abs=5e-5)
    y, p = data["y"], (mode["alpha"] + mode["beta"] * data["temperature"]).sigmoid()
    g2 = 2 * (torch.xlogy(y, y / (6 * p)) + torch.xlogy(6 - y, (6 - y) / (6 - 6 * p))).sum()
    assert float(g2) == pytest.approx(18.086, abs=1e-3)


@pytest.mark.parametrize("outcome", ["incident", "damaged"])
@pytest.mark.parametrize("pressure", [False, True])
def test_alpha_hat_is_the_maximum_likelihood_estimate(outcome, pressure):
    model = ORing(outcome, pressure)
    mode = em(model, model.prepare(), objective="likelihood")
    assert model.prior.alpha_hat == pytest.approx(float(mode["alpha"]), rel=1e-8)


@every_model
def test_em_never_descends(name):
    model, raw = MODELS[name]
    data = model.prepare(raw)
    params = model.start(data, 4, Noise.seeded(1, 4))
    values = []
    with no_validation():
        for _ in range(40):
            values.append(torch.vmap(joint(model, data))(params))
            params = model.m_step(data, model.e_step(data, params), "joint")
    rise = torch.stack(values).diff(dim=0)
    assert float(rise.min()) > -1e-10 * float(values[-1].abs().max())
    assert float(rise[0].min()) > 0


@every_model
def test_em_stops_at_the_mode_of_the_program(name):
    model, raw = MODELS[name]
    data = model.prepare(raw)
    mode = model.pack(em(model, data))
    with no_validation():
        log_density = joint(model, data)

        def target(theta):
            return -log_density(model.unpack(theta))

        curvature = torch.func.jacrev(torch.func.grad(target))(mode)
        # whitened by the curvature at EM's answer, the search starts two posterior sds away
        basis = torch.linalg.inv(torch.linalg.cholesky(curvature)).T

        def search(z):
            theta = mode + basis @ torch.tensor(z)
            slope, value = torch.func.grad_and_value(target)(theta)
            return float(value), (basis.T @ slope).numpy()

        found = minimize(search, np.full(len(mode), 2.0), jac=True, options={"gtol": 1e-7})
    assert np.abs(found.x).max() < 1e-5


# --- Gibbs ---------------------------------------------------------------------------------------

PUBLISHED_MEAN = torch.tensor([15.09022, -0.2337596], dtype=torch.float64)
PUBLISHED_SD = torch.tensor([1.22540, 0.0197855], dtype=torch.float64)
PUBLISHED_COVARIANCE = PUBLISHED_SD.outer(PUBLISHED_SD) * torch.tensor(
    [[1, -0.90691], [-0.90691, 1]]
)
PUBLISHED_P = [0.999455, 0.963285, 0.732121, 0.476206, 0.233868]


def test_gibbs_has_the_published_posterior():
    model = ORing()
    draws = gibbs(model, model.prepare(), chains=400, sweeps=200)
    assert_moments(draws, PUBLISHED_MEAN, PUBLISHED_COVARIANCE)
    at = torch.tensor(model.predict_at, dtype=torch.float64)
    p = (draws[..., :1] + draws[..., 1:] * at).sigmoid()
    for k, expected in enumerate(PUBLISHED_P):
        assert_moment(p[..., k], expected)


@pytest.mark.parametrize("name", ["normal-damaged", "flat-trials", "robert-casella-trials"])
def test_gibbs_agrees_with_quadrature(name):
    trials = 1 + COUNT
    model, raw = {
        "normal-damaged": (ORing("damaged", prior="normal"), None),
        "flat-trials": (
            LogisticRegression(FlatPrior()),
            {"x": X[:, 1], "y": torch.minimum(COUNT, COIN + 1), "trials": trials},
        ),
        "robert-casella-trials": (
            LogisticRegression(RobertCasella(0.5)),
            {"x": X[:, 1], "y": torch.minimum(COUNT, COIN + 1), "trials": trials},
        ),
    }[name]
    data = model.prepare(raw)
    _, mean, covariance = quadrature(model, data)
    assert_moments(gibbs(model, data, chains=200, sweeps=100), mean, covariance)


@pytest.mark.parametrize(("a", "c"), [(1e-4, 0.3), (0.02, -3.0), (5.0, 40.0)])
def test_intercept_under_robert_casella_is_drawn_exactly(a, c):
    """Against quadrature of exp(c alpha - a alpha^2/2 + alpha - e^alpha/b)."""
    prior, chains = RobertCasella(2.0), 40_000
    precision = torch.tensor([[a + 0.75**2, 0.75], [0.75, 1.0]], dtype=torch.float64)
    quadratic = Quadratic(
        precision.expand(chains, 2, 2), torch.tensor([c, 0.0]).double().expand(chains, 2)
    )
    unit = torch.ones(1, dtype=torch.float64)
    draws = prior.draw(quadratic, 0 * unit, unit, Noise.seeded(0, chains))
    grid = torch.linspace(-200, 40, 400_001, dtype=torch.float64)
    weight = torch.softmax(c * grid - a * grid**2 / 2 + grid - (grid - prior.log_b).exp(), 0)
    mean = weight @ grid
    assert_moment(draws[None, :, 0], mean)
    assert_moment((draws[None, :, 0] - mean).square(), weight @ (grid - mean).square())
    residual = draws[None, :, 1] + 0.75 * draws[None, :, 0]  # beta given alpha is N(-0.75 alpha, 1)
    assert_moment(residual, 0.0)
    assert_moment(residual.square(), 1.0)
    assert_moment(residual * (draws[None, :, 0] - mean), 0.0)


def test_a_chain_does_not_see_its_neighbours():
    model = ORing("damaged", pressure=True)
    data = model.prepare()
    few, many = (gibbs(model, data, chains, sweeps=3, warmup=0) for chains in (2, 9))
    torch.testing.assert_close(few, many[:, :2])


def test_sabotage_mean_omega_in_place_of_a_draw_is_noticed(monkeypatch):
    monkeypatch.setattr(ppl_models.logistic, "polya_gamma", lambda n, z, noise: pg_mean(n, z))
    with pytest.raises(AssertionError, match="standard errors"):
        test_gibbs_has_the_published_posterior()


def test_sabotage_forgetting_the_prior_is_noticed(monkeypatch):
    monkeypatch.setattr(RobertCasella, "draw", FlatPrior.draw)
    with pytest.raises(AssertionError, match="standard errors"):
        test_gibbs_has_the_published_posterior()


def test_log_wright_omega():
    z = np.concatenate([np.linspace(-40, 40, 801), [-700.0, 1e4, 1e8]])
    ours = log_wright_omega(torch.tensor(z)).numpy()
    np.testing.assert_allclose(ours, np.log(wrightomega(z)), rtol=1e-13, atol=1e-14)


# --- data ----------------------------------------------------------------------------------------


def test_the_flights():
    table = flights()
    assert list(table.columns) == ["flight", "temperature", "incident", "damaged", "pressure"]
    assert len(table) == table["flight"].nunique() == 23
    assert table["incident"].sum() == 7
    assert table["damaged"].sum() == 9
    hit = table[table["incident"] == 1].set_index("flight")["temperature"]
    assert hit.to_dict() == {
        "2": 70, "41-B": 57, "41-C": 63, "41-D": 70, "51-C": 53, "61-A": 75, "61-C": 58
    }  # fmt: skip
    assert table["temperature"].mean() == pytest.approx(69.5652, abs=1e-4)
    pd.testing.assert_frame_equal(ORing.flights(), table)


def test_oring_takes_a_users_table():
    table = flights().assign(note="text is left alone")
    for outcome in ("incident", "damaged"):
        model = ORing(outcome, pressure=True)
        data = model.prepare(table.iloc[:20])
        assert set(data) == {"temperature", "pressure", "y", "centre", "spread"} | (
            {"trials"} if outcome == "damaged" else set()
        )
        assert data["y"].shape == (20,)
        assert model.coordinates(data) == {"p": {"temperature": [31.0, 50.0, 60.0, 65.0, 70.0]}}
    crowded = ORing().prepare(table.assign(centre=1.0, spread=2.0))
    assert float(crowded["centre"]) == pytest.approx(69.5652, abs=1e-4)
    silent = ORing(predict_at=None)
    assert silent.coordinates(silent.prepare()) == {}
    values = {"alpha": torch.tensor(15.0), "beta": torch.tensor(-0.2)}
    trace = poutine.trace(poutine.condition(silent, values)).get_trace(**silent.prepare())
    assert "p" not in trace.nodes


def test_features_are_named():
    frame = pd.DataFrame({"age": [1.0, 2.0, 4.0], "y": [0, 1, 0], "smoker": [True, False, False]})
    model = LogisticRegression()
    for raw in (
        frame,
        {"x": frame[["age", "smoker"]], "y": frame["y"]},
        {
            "x": [[1.0, 1.0], [2.0, 0.0], [4.0, 0.0]],
            "y": [False, True, False],
            "features": ("age", "smoker"),
        },
    ):
        data = model.prepare(raw)
        assert model.coordinates(data) == {"beta": {"feature": ["age", "smoker"]}}
        assert torch.equal(data["x"], torch.tensor([[1.0, 1], [2, 0], [4, 0]], dtype=torch.float64))
        assert torch.equal(data["y"], torch.tensor([0.0, 1, 0], dtype=torch.float64))
    assert model.prepare({"x": X[:, 0].float(), "y": COIN})["y"].dtype == torch.float32


def test_separation_matters_only_where_the_prior_is_flat():
    x = torch.tensor([-3.0, -2, -1, 1, 2, 3], dtype=torch.float64)
    y = torch.tensor([0, 0, 0, 1, 1, 1])
    LogisticRegression().prepare({"x": x, "y": y})
    # the slope alone does not separate outcomes at x > 0: the intercept must, and has a prior
    LogisticRegression(RobertCasella(0.0)).prepare({"x": x + 4, "y": y})
    # one row with both outcomes between the groups, and not at their edge, breaks the separation
    counts = {"y": torch.tensor([0, 0, 3, 1, 4, 4]), "trials": 4}
    LogisticRegression(FlatPrior()).prepare({"x": x, **counts})


GOOD = {"x": [[1.0], [2.0], [3.0], [4.0]], "y": [0, 1, 0, 1]}
FLAT = LogisticRegression(FlatPrior())
BAD = {
    "no names": (FLAT, [1, 2], "data is a list; give a mapping"),
    "no y": (FLAT, {"x": [1.0]}, "y: missing; the data have x"),
    "no data": (FLAT, None, "y: missing; the data have no fields"),
    "no x": (FLAT, {"y": [0, 1]}, 'x: missing; give "x", or one field'),
    "no columns": (FLAT, {**GOOD, "x": torch.zeros(4, 0)}, "x: has no columns"),
    "unknown": (FLAT, {**GOOD, "wieght": [1, 1, 1, 1]}, "wieght: unknown beside x"),
    "names": (FLAT, {**GOOD, "features": ["a", "b"]}, "features: 2 names for 1 columns"),
    "centre": (FLAT, {**GOOD, "centre": [1.0, 2.0]}, "centre: has 2 values for 1 columns"),
    "scalar": (FLAT, {**GOOD, "x": 3.0}, "x: is a float; give an array"),
    "3-d": (FLAT, {**GOOD, "x": torch.zeros(4, 1, 1)}, r"x: has shape \(4, 1, 1\)"),
    "column y": (FLAT, {**GOOD, "y": torch.zeros(4, 1)}, r"y: has shape \(4, 1\)"),
    "text x": (FLAT, {"age": ["old", "new"], "y": [0, 1]}, "age: holds .* not numbers; encode"),
    "text y": (FLAT, {**GOOD, "y": ["no", "yes", "no", "yes"]}, "y: holds .* not numbers; encode"),
    "ragged": (FLAT, {**GOOD, "x": [[1.0], [2.0, 3.0]]}, "x: rows differ in length"),
    "nan x": (FLAT, {**GOOD, "x": [1.0, math.nan, 3.0, 4.0]}, r"x: row 1 is missing \(NaN\)"),
    "nan y": (FLAT, {**GOOD, "y": [0, 1, 0, math.nan]}, r"y: row 3 is missing \(NaN\); drop"),
    "nan column": (FLAT, pd.DataFrame({"a": [1.0, None], "y": [0, 1]}), "a: row 1 is missing"),
    "inf": (FLAT, {**GOOD, "x": [1.0, 2.0, -math.inf, 4.0]}, "x: row 2 is infinite"),
    "short y": (FLAT, {**GOOD, "y": [0, 1]}, "differ in length: x has 4, y has 2 rows"),
    "short feature": (FLAT, {"a": [1, 2], "b": [1], "y": [0, 1]}, "a has 2, b has 1"),
    "empty": (FLAT, {"x": torch.zeros(0, 2), "y": []}, "the data are empty; give at least one"),
    "two": (FLAT, {**GOOD, "y": [0, 1, 2, 1]}, "y: row 2 is 2; an outcome is 0 or 1 unless"),
    "half": (FLAT, {**GOOD, "y": [0, 0.5, 0, 1]}, "y: row 1 is 0.5; an outcome is 0 or 1"),
    "over": (FLAT, {**GOOD, "trials": [1, 1, 1, 0]}, "trials: row 3 is 0; give whole numbers"),
    "more": (FLAT, {**GOOD, "y": [0, 4, 0, 1], "trials": 3}, "y: row 1 is 4; .* up to trials"),
    "short trials": (FLAT, {**GOOD, "trials": [1, 1]}, "trials has 2 rows"),
    "constant": (FLAT, {"a": [1, 2, 3], "b": [7, 7, 7], "y": [0, 1, 0]}, "flat prior column b can"),
    "dependent": (FLAT, {"a": [1, 2, 4], "b": [3, 5, 9], "y": [0, 1, 0]}, r"b cannot .* \(the int"),
    "too few rows": (FLAT, {"x": [[1.0, 2.0]], "y": [1]}, "column x0, x1 cannot be told"),
    "separated": (FLAT, {**GOOD, "y": [0, 0, 1, 1]}, "combination of the intercept, x0"),
    "quasi": (FLAT, {"a": [1, 2, 2, 3], "y": [0, 0, 1, 1]}, "separates .* NormalPrior"),
    "one outcome": (FLAT, {**GOOD, "y": [1, 1, 1, 1]}, "separates the outcomes perfectly"),
    "slope alone": (
        LogisticRegression(RobertCasella(0.0)),
        {**GOOD, "y": [0, 0, 0, 0]},
        "a linear combination of x0 separates",
    ),
    "no incident": (ORing(), {"temperature": [60.0, 70.0], "incident": [0, 0]}, "temperature sep"),
    "no temperature": (ORing(), {"incident": [0, 1]}, "temperature: missing; the data"),
    "other outcome": (ORing("damaged"), flights().drop(columns="damaged"), "damaged: missing; the"),
    "no pressure": (ORing(pressure=True), {"temperature": [60.0], "y": [1]}, "pressure: missing"),
    "not data": (ORing(), [60.0, 70.0], "data is a list; give a mapping"),
    "incident 2": (ORing(), {"temperature": [60.0, 70.0], "incident": [2, 0]}, "row 0 is 2"),
    "seven rings": (
        ORing("damaged"),
        {"temperature": [60.0, 70.0], "damaged": [7, 0]},
        "damaged: row 0 is 7",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_data(case):
    model, data, message = BAD[case]
    with pytest.raises(DataError, match=message):
        model.prepare(data)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: NormalPrior(scale=0.0), "scale is 0.0; give a positive number"),
        (lambda: NormalPrior(intercept_scale=math.inf), "intercept_scale is inf"),
        (lambda: RobertCasella(math.nan), "alpha_hat is nan; give a finite number"),
        (lambda: ORing("incidents"), "outcome: is 'incidents'; give \"incident\" or"),
        (lambda: ORing(prior="horseshoe"), "prior: is 'horseshoe'; give one of robert-casella"),
        (lambda: ORing(prior="flat").independence_proposal(), "alpha: its prior is flat"),
    ],
)
def test_bad_settings(build, message):
    with pytest.raises(ModelError, match=message):
        build()


def test_program_asks_for_the_pressure():
    with pytest.raises(DataError, match="pressure: missing"):
        ORing(pressure=True)(**ORing().prepare())


@pytest.mark.parametrize("pressure", [False, True])
def test_independence_proposal(pressure):
    model = ORing(pressure=pressure)
    data = model.prepare()
    values = {"alpha": 14.0, "beta": -0.2, **({"gamma": 0.01} if pressure else {})}
    values = {site: torch.tensor(value, dtype=torch.float64) for site, value in values.items()}
    proposal = poutine.condition(model.independence_proposal(), values)
    trace = poutine.trace(proposal).get_trace(**data)
    trace.compute_log_prob()
    assert set(trace.stochastic_nodes) | set(trace.observation_nodes) == set(values)
    site = trace.nodes["beta"]["fn"]
    assert float(site.loc) == pytest.approx(-0.2415 if pressure else -0.2322, abs=1e-4)
    assert float(site.scale) == pytest.approx(0.1097 if pressure else 0.1082, abs=1e-4)
    log_b = model.prior.alpha_hat + np.euler_gamma
    expected = 14 - log_b - math.exp(14 - log_b)
    assert float(trace.nodes["alpha"]["log_prob"]) == pytest.approx(expected)
