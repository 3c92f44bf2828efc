"""Predictions before and after the data, and leave-one-out, against exact answers."""

from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from scipy import stats
from scipy.special import logsumexp

from inference import (
    EM,
    HMC,
    arviz_bridge,
    criticism,
    fit,
    loo,
    loo_pit,
    predictive_checks,
    prior_predictive,
)
from inference.criticism import loo_of, loo_pit_of, thinned
from ppl_models import EngineError, ModelError, ORing

pytestmark = pytest.mark.filterwarnings("ignore::inference.InferenceWarning")

PRIOR_MEAN, PRIOR_SD = 1.0, 2.0
Y = np.array([-0.9, 0.3, 0.8, 1.4, 4.1])
Z = 4.5  # of the largest of some tens of z statistics


def normal_mean(y, sd=1.0):
    m = pyro.sample("m", dist.Normal(PRIOR_MEAN, PRIOR_SD))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(m, sd), obs=y)


def exact(y, sd=1.0):
    """Mean and variance of m, (...,) for data (..., N)."""
    precision = PRIOR_SD**-2 + y.shape[-1] * sd**-2
    return (PRIOR_MEAN * PRIOR_SD**-2 + y.sum(-1) * sd**-2) / precision, 1 / precision


def others(y):
    """The data without each observation: (N, N - 1)."""
    return np.array([np.delete(y, i) for i in range(len(y))])


def iid(fitted, mean, variance, draws=4000, seed=0):
    """The fit with exact draws of its posterior in place of its own."""
    m = mean + variance**0.5 * np.random.default_rng(seed).normal(size=(4, draws // 4))
    m = torch.as_tensor(m)
    posterior = replace(fitted.posterior, draws={"m": m}, unconstrained=m[..., None], stats={})
    return replace(fitted, posterior=posterior)


@pytest.fixture(scope="module")
def fitted():
    engine = HMC(chains=2, warmup=20, draws=20, steps=4, tier="traced")
    return iid(fit(normal_mean, {"y": Y}, engine), *exact(Y))


def test_prior_predictive_has_the_exact_moments():
    drawn = prior_predictive(normal_mean, {"y": np.zeros(3)}, draws=4000, seed=1)
    assert {name: tuple(v.shape) for name, v in drawn.items()} == {"m": (4000,), "y": (4000, 3)}
    m, y = drawn["m"].numpy() - PRIOR_MEAN, drawn["y"].numpy().T - PRIOR_MEAN
    variance = PRIOR_SD**2
    products = [
        (m, 0.0), (y[0], 0.0), (m * m, variance), (y[0] * y[0], variance + 1),
        (y[0] * y[1], variance), (m * y[2], variance),
    ]  # fmt: skip
    for values, truth in products:
        z = (values.mean() - truth) / (values.std() / np.sqrt(len(values)))
        assert abs(z) < Z


def test_prior_that_cannot_be_drawn_from_is_refused():
    def flat(y):
        m = pyro.sample("m", dist.ImproperUniform(constraints.real, (), ()))
        pyro.sample("y", dist.Normal(m, 1.0), obs=y)

    with pytest.raises(ModelError, match="proper prior"):
        prior_predictive(flat, {"y": [1.0]})
    with pytest.raises(EngineError, match="draws=0"):
        prior_predictive(normal_mean, {"y": Y}, draws=0)


def test_loo_is_the_exact_density_of_each_observation_given_the_others(fitted):
    result = loo(fitted)
    mean, variance = exact(others(Y))
    truth = stats.norm.logpdf(Y, mean, np.sqrt(variance + 1))
    assert (result.k_hat < result.limit).all()
    assert (np.abs(result.elpd_i - truth) < Z * result.mcse_i).all()
    assert abs(result.elpd - truth.sum()) < Z * result.mcse
    assert result.mcse < 0.1
    # the density of the observations themselves is another: the test tells them apart
    log_likelihood = fitted.log_likelihood()["y"].numpy().reshape(-1, len(Y))
    unweighted = logsumexp(log_likelihood, axis=0) - np.log(len(log_likelihood))
    assert (np.abs(unweighted - truth) > Z * result.mcse_i).any()


def test_loo_is_that_of_arviz(fitted):
    result = loo(fitted)
    elpd, se, bad = arviz_bridge.loo(fitted.to_arviz(log_likelihood=True), "y")
    assert result.elpd == pytest.approx(elpd, abs=0.01)
    assert result.se == pytest.approx(se, rel=0.01)
    assert len(result.unreliable) == bad


def test_observation_that_the_draws_do_not_reach_is_unreliable():
    m = np.random.default_rng(0).normal(0.0, 0.3, size=(4, 250, 1))
    log_likelihood = stats.norm.logpdf(np.array([0.1, 0.3, 30.0]), m, 1.0)
    assert loo_of(log_likelihood).unreliable.tolist() == [2]


def test_loo_pit_is_the_exact_probability(fitted):
    result = loo_pit(fitted)
    mean, variance = exact(others(Y))
    truth = stats.norm.cdf(Y, mean, np.sqrt(variance + 1))
    weights = 4000 / 2  # the least effective size of the weighted draws, by far
    assert (np.abs(result.values - truth) < Z * np.sqrt(truth * (1 - truth) / weights)).all()
    assert not result.randomised


@pytest.mark.parametrize(("sd", "uniform"), [(1.0, True), (0.5, False), (2.0, False)])
def test_loo_pit_is_uniform_where_the_model_is_right(sd, uniform):
    rng = np.random.default_rng(3)
    y = rng.normal(0.4, 1.0, size=200)
    mean, variance = exact(y, sd)
    m = mean + np.sqrt(variance) * rng.normal(size=(4, 250, 1))
    result = loo_pit_of(stats.norm.logpdf(y, m, sd), m + sd * rng.normal(size=(4, 250, 200)), y)
    assert (result.p > 0.01) == uniform
    ends = np.mean((result.values < 0.1) | (result.values > 0.9))
    if sd < 1:  # too small a predictive sd: a U
        assert ends > 0.35
    if sd > 1:
        assert ends < 0.05


def test_pit_of_counts_is_uniform_by_lot():
    rng = np.random.default_rng(5)
    y = rng.poisson(1.5, size=300).astype(float)
    rate = np.full((2, 500, 1), 1.5)
    log_likelihood = np.broadcast_to(stats.poisson.logpmf(y, rate), (2, 500, 300))
    result = loo_pit_of(log_likelihood, rng.poisson(1.5, size=(2, 500, 300)), y)
    assert result.randomised
    assert result.p > 0.01
    doubled = loo_pit_of(log_likelihood, 2 * rng.poisson(0.75, size=(2, 500, 300)), y)
    assert doubled.p < 1e-3


def test_p_value_of_the_mean_is_exact(fitted):
    table = predictive_checks(fitted, draws=4000).set_index("statistic")
    assert list(table.index) == ["mean", "sd", "min", "max"]
    mean, variance = exact(Y)
    truth = stats.norm.sf(Y.mean(), mean, np.sqrt(variance + 1 / len(Y)))
    assert abs(table.loc["mean", "p"] - truth) < Z * np.sqrt(truth * (1 - truth) / 4000)
    # a sample sd of 1.7 under sd 1: a chi-squared with four degrees of freedom
    tail = stats.chi2.sf(np.square(Y - Y.mean()).sum(), len(Y) - 1)
    assert abs(table.loc["sd", "p"] - tail) < Z * np.sqrt(tail * (1 - tail) / 4000)
    assert table.loc["sd", "meaning"].startswith("the model makes the sd too small")


def test_statistics_of_ones_own_and_of_counts():
    def counts(y):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Poisson(rate), obs=y)

    engine = HMC(chains=2, warmup=50, draws=50, steps=4, tier="traced")
    result = fit(counts, {"y": [0.0] * 20 + [5.0] * 5}, engine)
    table = predictive_checks(result).set_index("statistic")
    assert table.loc["share of zeros", "observed"] == 0.8
    assert "too small" in table.loc["share of zeros", "meaning"]
    own = predictive_checks(result, {"range": lambda y: np.ptp(y, axis=1)})
    assert own["statistic"].tolist() == ["range"]
    with pytest.raises(EngineError, match=r"from \(S, N\) to \(S,\)"):
        predictive_checks(result, {"bad": lambda y: y})


def test_points_predict_but_leave_nothing_out():
    point = fit(ORing(), None, EM())
    assert len(predictive_checks(point)) >= 4
    with pytest.raises(EngineError, match="a point has no draws"):
        loo(point)
    with pytest.raises(EngineError, match="choose one of"):
        criticism.loo_pit(fit(ORing(), None, HMC(chains=1, warmup=5, draws=5)), "nothing")


def test_thinning_keeps_draws_of_every_chain_with_their_statistics_left_out(fitted):
    few = thinned(fitted, 40)
    kept = few.posterior.draws["m"]
    assert kept.shape == (1, 40)
    x = few.posterior.unconstrained
    assert x is not None
    assert torch.equal(x[..., 0], kept)
    assert kept[0, 0] == fitted.posterior.draws["m"][0, 0]
    assert kept[0, 10] == fitted.posterior.draws["m"][1, 0]
    assert thinned(fitted, 4000) is fitted
