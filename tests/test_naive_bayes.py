"""Naive Bayes: closed forms against scikit-learn, importance sampling, enumeration and NUTS.

Statistical checks fail for right code with a chance below ``statistics.LEVEL`` over the module.
"""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import special, stats
from sklearn.naive_bayes import BernoulliNB, CategoricalNB, GaussianNB

from inference import CAVI, EM, NUTS, Gibbs, ImportanceSampling, Target, fit
from inference.program import Program, isolated
from ppl_models import DataError, EngineError, ModelError, NaiveBayes, Noise
from tests.statistics import check, critical, quiet, surprises
from tests.targets import Known

RNG = np.random.default_rng(4)
Y = RNG.integers(0, 3, 40)
BITS = (RNG.random((40, 4)) < 0.2 + 0.25 * Y[:, None]).astype(float)
CODES = np.stack(
    [RNG.integers(0, 2 + d, 40) * (RNG.random(40) < 0.6 + 0.1 * Y) for d in range(3)], 1
)
REALS = RNG.normal(size=(40, 3)) * [1.0, 5.0, 0.1] + Y[:, None] * [1.0, -2.0, 0.05] + 100.0
X = {"bernoulli": BITS, "categorical": CODES, "gaussian": REALS}
KINDS = list(X)


def data(kind):
    return {"x": X[kind], "y": Y}


# -- scikit-learn ----------------------------------------------------------------------------------


def peer(kind, alpha):
    return (BernoulliNB if kind == "bernoulli" else CategoricalNB)(alpha=alpha).fit(X[kind], Y)


@pytest.mark.parametrize("alpha", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("kind", ["bernoulli", "categorical"])
def test_the_mode_of_the_joint_has_the_estimates_of_scikit_learn(kind, alpha):
    model = NaiveBayes(kind, alpha=1 + alpha, class_alpha=1)
    fitted = fit(model, data(kind), EM())
    assert fitted.warnings == []
    expected = peer(kind, alpha)
    found = model.predict_proba(fitted.posterior.draws, X[kind])
    np.testing.assert_allclose(found, expected.predict_proba(X[kind]), rtol=0, atol=1e-10)
    logs = fitted.posterior.draws["weights"].log()
    np.testing.assert_allclose(logs, expected.class_log_prior_, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["bernoulli", "categorical"])
def test_the_exact_probabilities_are_those_of_scikit_learn_but_for_smoothed_shares(kind):
    found = NaiveBayes(kind, alpha=0.7, class_alpha=1e-13).exact_proba(data(kind), X[kind])
    expected = peer(kind, 0.7).predict_proba(X[kind])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


def test_the_maximum_of_the_likelihood_is_that_of_scikit_learn():
    model = NaiveBayes("gaussian")
    fitted = fit(model, data("gaussian"), EM(objective="likelihood"))
    expected = GaussianNB(var_smoothing=0.0).fit(REALS, Y)
    np.testing.assert_allclose(fitted.posterior.draws["mean"], expected.theta_, rtol=1e-12)
    np.testing.assert_allclose(fitted.posterior.draws["variance"], expected.var_, rtol=1e-9)
    found = model.predict_proba(fitted.posterior.draws, REALS)
    np.testing.assert_allclose(found, expected.predict_proba(REALS), rtol=0, atol=1e-10)


# -- EM --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["joint", "likelihood"])
@pytest.mark.parametrize("kind", KINDS)
def test_em_ends_where_no_step_along_the_surface_leads_up(kind, objective):
    """In unconstrained coordinates, where the gradient of the density of values is zero."""
    fitted = quiet(
        NaiveBayes(kind, alpha=1.5, class_alpha=2.0), data(kind), EM(objective=objective)
    )
    with isolated(torch.float64):
        program = Program(fitted.model, fitted.data)
        density = program.log_joint if objective == "joint" else program.log_likelihood

        def value(point):
            return density(program.constrain(point))

        point = fitted.posterior.unconstrained
        if bool((point.abs() > 30).any()):  # a probability of zero: at the edge
            return
        assert float(torch.func.grad(value)(point).abs().max()) < 1e-6


# -- the evidence ----------------------------------------------------------------------------------


def dirichlet(counts, alpha):
    """The log evidence of counts (..., C) in one order, summed."""
    counts = np.asarray(counts, float)
    one = special.gammaln(counts + alpha).sum(-1) - special.gammaln((counts + alpha).sum(-1))
    zero = counts.shape[-1] * special.gammaln(alpha) - special.gammaln(counts.shape[-1] * alpha)
    return float((one - zero).sum())


def evidence(kind, alpha, class_alpha):
    """By gamma functions, and for normal features row after row."""
    total = dirichlet(np.bincount(Y), class_alpha)
    for column in X[kind].T:
        size = 2 if kind == "bernoulli" else int(column.max()) + 1
        for k in range(3):
            rows = column[k == Y]
            if kind == "gaussian":
                total += students(rows, column.mean(), column.var())
            else:
                total += dirichlet(np.bincount(rows.astype(int), minlength=size), alpha)
    return total


def students(column, centre, square):
    """Row after row by Student's t: kappa, nu and nu sigma^2 are 0.01, 2 and a fifth."""
    kappa, nu, scale, mean, total = 0.01, 2.0, 0.2 * square, centre, 0.0
    for value in column:
        width = math.sqrt(scale / nu * (1 + 1 / kappa))
        total += stats.t(nu, mean, width).logpdf(value)
        scale += kappa / (kappa + 1) * (value - mean) ** 2
        mean += (value - mean) / (kappa + 1)
        kappa, nu = kappa + 1, nu + 1
    return total


@pytest.mark.filterwarnings("ignore:CAVI. .*variance:inference.InferenceWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_the_elbo_of_mean_field_is_the_log_evidence(kind):
    model = NaiveBayes(kind, alpha=0.6, class_alpha=1.7)
    fitted = fit(model, data(kind), CAVI(restarts=2, draws=500))
    attributes = fitted.posterior.attributes
    assert attributes["elbo"] == pytest.approx(evidence(kind, 0.6, 1.7), abs=1e-8)
    assert attributes["elbo_trace"][0] < attributes["elbo"] - 1.0  # the prior's
    # every weight p(data, theta) / q(theta) is the evidence itself
    assert attributes["pareto_k"] == -math.inf


@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_of_other_factors_is_an_average_under_them(kind):
    model = NaiveBayes(kind, alpha=0.6, class_alpha=1.7)
    with isolated(torch.float64):
        prepared = model.prepare(data(kind))
        start = model.initial_factors(prepared, 1, None)
        end, _ = model.coordinate_step(prepared, start, None)
        between = {name: 0.3 * start[name] + 0.7 * end[name] for name in start}
        _, bound = model.coordinate_step(prepared, between, None)
        noise = Noise.seeded(1, 1)
        values = model.factor_draws(prepared, between, noise, 4000)
        log_q = model.factor_log_density(prepared, between, values)[0]
        log_joint = torch.func.vmap(Program(model, prepared).log_joint)
        each = log_joint({name: value[0] for name, value in values.items()}) - log_q
    error = float(each.std() / math.sqrt(len(each)))
    assert abs(float(bound) - float(each.mean())) < CRITICAL * error
    assert error < 1.0


@pytest.mark.parametrize("kind", ["bernoulli", "categorical"])
def test_importance_sampling_agrees_with_the_evidence(kind):
    few = {"x": X[kind][:5, :2], "y": [0, 1, 0, 1, 1]}
    model = NaiveBayes(kind)
    fitted = quiet(model, few, ImportanceSampling(proposals=20_000, draws=100))
    exact = quiet(model, few, CAVI(draws=100)).posterior.attributes["elbo"]
    found = fitted.posterior.attributes
    # the variance of a weight over its squared mean is proposals / ess - 1
    error = math.sqrt((20_000 / found["importance_ess"] - 1) / 20_000)
    assert abs(math.expm1(found["log_evidence"] - exact)) < CRITICAL * error
    assert error < 0.05


def test_minibatches_end_near_the_posterior():
    model = NaiveBayes("categorical")
    engine = CAVI(batch_size=8, max_steps=400, forgetting=0.9, draws=4000)
    fitted = quiet(model, data("categorical"), engine)
    exact = quiet(model, data("categorical"), CAVI(draws=4000))
    for site, value in exact.posterior.draws.items():
        away = fitted.posterior.draws[site].mean((0, 1)) - value.mean((0, 1))
        assert float(away.abs().max()) < 0.05, site


# -- the posterior ---------------------------------------------------------------------------------


def moments(kind):
    """Exact moments of some parameters."""
    model = NaiveBayes(kind)
    mean, sd = {}, {}

    def beta(name, a, rest):
        mean[name] = a / (a + rest)
        sd[name] = math.sqrt(a * rest / (a + rest + 1)) / (a + rest)

    sizes = np.bincount(Y)
    beta("weights[2]", 1 + sizes[2], 2 + sizes[0] + sizes[1])
    if kind == "bernoulli":
        ones = BITS[Y == 1, 3].sum()
        beta("probability[1, 3]", 1 + ones, 1 + sizes[1] - ones)
    elif kind == "categorical":
        counts = np.bincount(CODES[Y == 0, 2], minlength=CODES[:, 2].max() + 1)
        beta("probability_x2[0, 1]", 1 + counts[1], (1 + counts).sum() - 1 - counts[1])
    else:
        rows, column = REALS[Y == 1, 2], REALS[:, 2]
        kappa, n, c = 0.01, len(rows), column.mean()
        centre = (kappa * c + n * rows.mean()) / (kappa + n)
        scale = 0.2 * column.var() + rows.var() * n
        scale += kappa * n / (kappa + n) * (rows.mean() - c) ** 2
        nu = 2 + n  # the variance is inverse gamma (nu / 2, scale / 2)
        mean["mean[1, 2]"] = centre
        sd["mean[1, 2]"] = math.sqrt(scale / (kappa + n) / (nu - 2))
        mean["variance[1, 2]"] = scale / (nu - 2)
        sd["variance[1, 2]"] = scale / (nu - 2) * math.sqrt(2 / (nu - 4))
    return Known(model, mean, sd, data=data(kind))


KNOWN = {kind: moments(kind) for kind in KINDS}
RUNS = {
    "CAVI": CAVI(draws=6400),
    "Gibbs": Gibbs(chains=64, warmup=0, draws=100),
    "NUTS": NUTS(chains=32, warmup=100, draws=100, tier="traced"),
}
FAMILY = sum(known.moments for known in KNOWN.values()) * len(RUNS)
CRITICAL = critical(20, 1000)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", RUNS)
def test_draws_have_the_exact_moments(name, kind):
    known = KNOWN[kind]
    fitted = quiet(known.program, known.data, RUNS[name])
    draws = dict(fitted.posterior.draws)
    if name == "CAVI":  # independent: 64 groups stand for chains
        draws = {site: value.reshape(64, 100, *value.shape[2:]) for site, value in draws.items()}
    check(draws, known, FAMILY)
    # and so have their predictions the exact probabilities, by another Monte Carlo error
    exact = known.program.exact_proba(known.data, X[kind][:6])
    groups = torch.stack(
        [
            known.program.predict_proba({k: v[c] for k, v in draws.items()}, X[kind][:6])
            for c in range(len(draws["weights"]))
        ]
    )
    whole = known.program.predict_proba(draws, X[kind][:6])
    error = groups.std(0) / math.sqrt(len(groups))
    assert bool(((whole - exact).abs() < 1e-3 + 5 * error).all())


def test_sabotage_a_forgotten_prior_is_noticed(monkeypatch):
    right = NaiveBayes._factors
    forget = lambda *args: {k: v - 1 for k, v in right(*args).items()}  # noqa: E731
    monkeypatch.setattr(NaiveBayes, "_factors", forget)
    draws = quiet(KNOWN["bernoulli"].program, data("bernoulli"), RUNS["Gibbs"]).posterior.draws
    assert surprises(draws, KNOWN["bernoulli"], FAMILY)


def test_the_exact_probabilities_are_ratios_of_evidences():
    """P(y | x, data) = p(data, x, y) / p(data, x), each by the ELBO."""
    model = NaiveBayes("categorical", alpha=0.8)
    new = np.array([[1, 2, 0]])
    categories = model.prepare(data("categorical"))["categories"]
    logs = []
    for k in range(3):
        more = {"x": np.r_[CODES, new], "y": np.r_[Y, k], "categories": categories}
        logs.append(quiet(model, more, CAVI(draws=20)).posterior.attributes["elbo"])
    found = model.exact_proba(data("categorical"), new)[0]
    np.testing.assert_allclose(found, special.softmax(logs), rtol=1e-9)


# -- what users ask for ----------------------------------------------------------------------------


def test_classes_may_be_text_and_name_the_answer():
    frame = pd.DataFrame(REALS, columns=["a", "b", "c"])
    frame["y"] = np.array(["wet", "dry", "icy"])[Y]
    fitted = fit(NaiveBayes("gaussian"), frame, EM())
    assert list(fitted.summary().index[:3]) == ["weights[dry]", "weights[icy]", "weights[wet]"]
    assert "mean[icy, b]" in fitted.summary().index
    numbers = NaiveBayes("gaussian").exact_proba(data("gaussian"), REALS)
    named = NaiveBayes("gaussian").exact_proba(frame, REALS)
    torch.testing.assert_close(named[:, [2, 0, 1]], numbers)


@pytest.mark.parametrize("kind", KINDS)
def test_new_rows_are_predicted(kind):
    fitted = quiet(NaiveBayes(kind), data(kind), Gibbs(chains=2, warmup=0, draws=10))
    drawn = fitted.predict({**fitted.data, "x": X[kind][:7], "y": None})
    assert drawn["y"].shape == (2, 10, 7)
    assert drawn["x"].shape == (2, 10, 7, X[kind].shape[1])
    assert fitted.log_likelihood()["x"].shape == (2, 10, 40)


@pytest.mark.parametrize("kind", KINDS)
def test_prepare_takes_its_own_result(kind):
    once = NaiveBayes(kind).prepare(data(kind))
    again = NaiveBayes(kind).prepare(once)
    assert once.keys() == again.keys()
    assert all(torch.equal(again[k], v) for k, v in once.items() if isinstance(v, torch.Tensor))


def but(kind, row, column, value):
    x = X[kind].astype(float)
    x[row, column] = value
    return {"x": x, "y": Y}


BAD = {
    "no y": ("gaussian", {"x": REALS}, "y: missing"),
    "missing": ("gaussian", but("gaussian", 3, 1, np.nan), "row 3 is missing"),
    "infinite": ("gaussian", but("gaussian", 5, 1, np.inf), "row 5 is infinite"),
    "constant": ("gaussian", {"x": np.c_[REALS, Y * 0], "y": Y}, "column 'x3' is constant"),
    "bit": ("bernoulli", but("bernoulli", 2, 1, 2.0), "row 2 of column 'x1' is 2; give 0 or 1"),
    "negative": ("categorical", but("categorical", 4, 0, -1), "row 4 of column 'x0' is -1; give c"),
    "fraction": ("categorical", but("categorical", 4, 2, 0.5), "row 4 of column 'x2' is 0.5"),
    "gap": ("bernoulli", {"x": BITS, "y": 2 * Y}, "class 1 has no rows.*without gaps"),
    "unlabelled": ("bernoulli", {"x": BITS, "y": np.where(Y == 2, -1, Y)}, "is -1.*drop them"),
    "no class": ("bernoulli", {"x": BITS, "y": [None, *["a", "b", "c"] * 13]}, "y: row 0 is miss"),
    "nan class": ("bernoulli", {"x": BITS, "y": np.where(Y == 2, np.nan, Y)}, "y: row . is missin"),
    "half": ("bernoulli", {"x": BITS, "y": Y / 2}, "classes are 0, 1, ..."),
    "one class": ("bernoulli", {"x": BITS, "y": Y * 0}, "one class only"),
    "one name": ("bernoulli", {"x": BITS, "y": ["a"] * 40}, "one class only"),
    "length": ("bernoulli", {"x": BITS, "y": Y[1:]}, "differ in length"),
    "text": ("gaussian", pd.DataFrame({"a": ["u", "v"], "y": [0, 1]}), "not numbers"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_is_refused_before_any_work(case, monkeypatch):
    monkeypatch.setattr(Target, "log_density_and_grad", None)
    kind, bad, message = BAD[case]
    with pytest.raises(DataError, match=message):
        fit(NaiveBayes(kind), bad, NUTS())


@pytest.mark.parametrize(
    ("kind", "x", "message"),
    [
        ("categorical", [[0, 0, 9]], "row 0 of column 'x2' is 9, which was not among the"),
        ("categorical", [[0, 0]], "2 columns; the fit has 3"),
        ("bernoulli", [[0, 0, 0, 7]], "column 'x3' is 7; give 0 or 1"),
        ("gaussian", [[0, 0, np.nan]], "row 0 is missing"),
    ],
)
def test_bad_rows_to_predict_are_refused(kind, x, message):
    model = NaiveBayes(kind)
    draws = fit(model, data(kind), EM()).posterior.draws
    for predict in (
        lambda: model.predict_proba(draws, x),
        lambda: model.exact_proba(data(kind), x),
    ):
        with pytest.raises(DataError, match=message):
            predict()


def test_a_mode_that_does_not_exist_is_refused():
    with pytest.raises(EngineError, match=r"alpha or class_alpha below 1.*alpha=2 has the estim"):
        fit(NaiveBayes("bernoulli", alpha=0.5), data("bernoulli"), EM())
    flat = REALS.copy()
    flat[Y == 1, 1] = 3.1
    with pytest.raises(EngineError, match="feature x1 is constant within class 1"):
        fit(NaiveBayes("gaussian"), {"x": flat, "y": Y}, EM(objective="likelihood"))
    assert fit(NaiveBayes("gaussian"), {"x": flat, "y": Y}, EM()).warnings == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"features": "poisson"}, "features='poisson': choose one of"),
        ({"alpha": 0}, "alpha=0: give a positive"),
        ({"class_alpha": "1"}, "class_alpha='1'"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ModelError, match=message):
        NaiveBayes(**settings)
