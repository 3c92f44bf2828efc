"""Findings on chains whose faults are known."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.special
import torch

from inference import (
    HMC,
    SVI,
    ChEES,
    InferenceWarning,
    arviz_bridge,
    corrected,
    diagnostics,
    fit,
    target,
)
from ppl_models import Noise
from tests.programs import Means
from tests.statistics import quiet

RNG = np.random.default_rng(3)
GOOD = RNG.normal(size=(4, 1000, 2))
LP = {"lp": RNG.normal(size=(4, 1000))}


def names(*arguments):
    return [finding.name for finding in diagnostics.chains(*arguments)]


def test_independent_draws_have_no_finding():
    assert names({"mu": GOOD}, LP) == []
    assert names({"mu": GOOD}, LP, {"total": GOOD.sum(-1)}) == []


def test_chains_apart_are_found():
    apart = GOOD.copy()
    apart[0] += 5
    assert "r_hat" in names({"mu": apart}, LP)


def test_many_short_chains_are_judged_by_how_far_superchains_lie_apart():
    short = np.random.default_rng(4).normal(size=(64, 20, 2))
    level = {"lp": short[..., 0]}
    assert names({"mu": short}, level, None, 4) == []
    assert "ess" in names({"mu": short}, level)
    start = np.repeat(np.random.default_rng(5).normal(size=(4, 1, 2)), 16, axis=0)
    [found] = [f for f in diagnostics.chains({"mu": 0.5 * start + short}, level, None, 4)
               if f.name == "r_hat"]  # fmt: skip
    assert found.severity == "warning"
    assert "nested R-hat of mu" in found.text
    assert "remember" in found.text
    still = {"mu": start + 1e-3 * short}
    [found] = [f for f in diagnostics.chains(still, level, None, 4) if f.name == "r_hat"]
    assert found.severity == "error"


def test_superchains_in_different_modes_are_named_by_their_levels():
    short = np.random.default_rng(4).normal(size=(12, 40, 2))
    short[:6] += 9
    levels = {"lp": short[..., 0]}
    [found] = [f for f in diagnostics.chains({"mu": short}, levels, {"mu": short}, 2)
               if f.name == "modes"]  # fmt: skip
    assert "the superchains sit in different modes" in found.text
    assert "by superchain: " in found.remedy
    assert len(found.remedy.split(",")) == 4  # two levels


def two():
    pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def test_a_fit_of_superchains_is_judged_as_such_and_so_is_its_file(tmp_path):
    engine = ChEES(chains=12, superchains=3, warmup=100, draws=40, tier="traced")
    fitted = quiet(two, None, engine)
    assert fitted.posterior.attributes["superchains"] == 3
    points = engine.start(
        target(lambda: pyro.sample("x", dist.Normal(0.0, 1.0))), Noise.seeded(0, 12)
    )
    assert [len(group.unique()) for group in points.split(4)] == [1, 1, 1]
    assert len(points.unique()) == 3
    own = [finding.name for finding in fitted.findings]
    loaded = arviz_bridge.load(fitted.save(tmp_path / "fit.nc"))
    assert [finding.name for finding in diagnostics.diagnose(loaded)] == own


def test_chains_that_differ_by_labels_alone_are_said_to_do_so():
    centred = GOOD + np.array([-5.0, 5.0])
    switched = centred.copy()
    switched[0] = switched[0, :, ::-1]
    findings = diagnostics.chains({"mu": switched}, LP, {"sorted_mu": np.sort(switched, -1)})
    assert findings[0].name == "labels"
    assert "trust sorted_mu" in findings[0].text


def test_chains_in_different_modes_are_said_to_be_so_whatever_their_labels():
    stuck = GOOD + np.array([-5.0, 5.0])
    stuck[0] += np.array([0.0, 9.0])
    levels = {"lp": LP["lp"] + np.array([-7.0, 0, 0, 0])[:, None]}
    findings = diagnostics.chains({"mu": stuck}, levels, {"sorted_mu": np.sort(stuck, -1)})
    assert findings[0].name == "modes"
    assert "different modes" in findings[0].text
    assert "-7" in findings[0].text  # the log density of each chain, to tell them apart


def test_one_chain_and_few_draws_are_not_judged():
    assert names({"mu": GOOD[:1]}, {}) == ["chains"]
    assert names({"mu": GOOD[:, :3]}, {}) == ["draws"]


class Sorted(Means):
    """Three means, told apart by their order; their sum does not depend on it."""

    def invariants(self, data, draws):
        return {"total": draws["mu"].sum(-1)}

    def findings(self, data, draws):
        return [f"the largest mean is {float(draws['mu'].mean((0, 1)).max()):.0f}"]


@pytest.mark.filterwarnings("ignore::inference.InferenceWarning")
def test_invariants_and_findings_of_a_model_are_told_with_its_fit():
    y = np.array([-11.0, -10.0, -9.5, 0.0, 0.5, 9.5, 10.0, 11.0])
    engine = HMC(chains=2, warmup=50, draws=20, steps=4, tier="traced")
    result = fit(Sorted(), {"y": y}, engine)
    draws = result.posterior.draws
    torch.testing.assert_close(draws["total"], draws["mu"].sum(-1))
    assert "total" in result.summary().index
    assert any(text.startswith("the largest mean is") for text in result.warnings)


def autoregressive(persistence, chains=4, draws=1000):
    """Stationary chains of sd 1 whose autocorrelation falls as persistence^lag."""
    x = np.empty((chains, draws))
    x[:, 0] = RNG.normal(size=chains)
    for i in range(1, draws):
        x[:, i] = persistence * x[:, i - 1] + (1 - persistence**2) ** 0.5 * RNG.normal(size=chains)
    return x


# the effective size of n draws is n (1 - a) / (1 + a): 2,107, 103 and 4 of 4,000
@pytest.mark.parametrize(
    ("persistence", "expected"),
    [(0.31, None), (0.95, ("ess", "warning")), (0.998, ("mcse", "error"))],
)
def test_a_few_effective_draws_are_an_error_only_where_a_mean_may_be_wrong(persistence, expected):
    found = diagnostics.chains({"x": autoregressive(persistence)}, {})
    sizes = [(finding.name, finding.severity) for finding in found if finding.name != "r_hat"]
    assert sizes == ([expected] if expected else [])


def test_a_single_chain_that_drifts_is_told():
    chain = GOOD[:1]
    assert "drift" not in names({"mu": chain}, {})
    drifting = chain + np.linspace(0, 3, 1000)[:, None]
    found = {finding.name: finding for finding in diagnostics.chains({"mu": drifting}, {})}
    assert found["drift"].severity == "error"
    assert "mu[" in found["drift"].text


@pytest.mark.parametrize(("degrees", "expected"), [(1.0, "error"), (1.5, "error"), (8.0, None)])
def test_draws_with_heavy_tails_are_told(degrees, expected):
    draws = {"x": RNG.standard_t(degrees, size=(4, 2000))}
    found = {finding.name: finding for finding in diagnostics.chains(draws, {})}
    assert (found["tails"].severity if "tails" in found else None) == expected
    if expected:
        assert "median" in found["tails"].remedy


def test_chains_that_stay_far_out_have_no_tail_to_see():
    still = RNG.normal(size=(4, 1000))
    still[0, 900:] = 30.0
    assert "tails" not in {finding.name for finding in diagnostics.chains({"x": still}, {})}


def test_a_heavy_tail_beside_constants_is_seen():
    """As in a Cholesky factor, whose first entry is 1."""
    heavy = RNG.standard_cauchy(size=(4, 1000, 1))
    draws = {"factor": np.concatenate([np.ones_like(heavy), heavy], -1)}
    found = [one for one in diagnostics.chains(draws, {}) if one.name == "tails"]
    assert "factor[1]" in found[0].meaning


def test_whole_numbers_and_truth_values_of_any_library_are_judged():
    counts = RNG.integers(0, 3, size=(4, 500))
    sites = {"count": counts, "yes": counts > 1, "one": np.ones((4, 500))}
    sites["word"] = counts.astype(str)

    def judged(sites):
        group = arviz_bridge.dataset(sites, {}, ("chain", "draw"), {})
        return diagnostics.diagnose(arviz_bridge.build({"posterior": group}, {}))

    assert judged(sites) == []
    counts[0] = 2
    assert judged(sites)[0].name == "r_hat"
    with pytest.raises(ValueError, match="no draws of numbers"):
        judged({"word": sites["word"]})


@pytest.mark.parametrize(("stats", "remedy"), [({}, "use NUTS"), ({"diverging": 0}, "reparam")])
def test_a_sampler_with_gradients_is_not_told_to_use_one(stats, remedy):
    slow = GOOD[:, :200].cumsum(1)
    found = diagnostics.chains({"mu": slow}, {k: np.zeros((4, 200)) for k in stats})
    assert remedy in next(one for one in found if one.name == "mcse").remedy


def test_a_chain_of_thousands_of_scalars_is_judged():
    many = RNG.normal(size=(4, 100, 2000))
    found = diagnostics.chains({"x": many}, {})
    assert all(finding.severity != "error" for finding in found)


def weighted(mean, sd):
    """Draws of N(mean, sd^2) that stand for N(0, 1), with their importance weights."""
    x = mean + sd * RNG.normal(size=(1, 20_000))
    log_q = -0.5 * ((x - mean) / sd) ** 2 - np.log(sd)
    return diagnostics.approximation({"x": x}, {"log_weight": -0.5 * x**2 - log_q})


@pytest.mark.parametrize(
    ("mean", "sd", "expected"),
    [
        (0.0, 1.0, []),
        (0.2, 1.0, [("shift", "warning")]),
        (0.6, 1.0, [("shift", "error")]),
        (0.0, 0.87, [("sd_ratio", "warning")]),
        (0.0, 0.75, [("sd_ratio", "error")]),
        (0.0, 1.5, [("sd_ratio", "error")]),
        (0.0, 0.3, [("pareto_k", "warning"), ("sd_ratio", "error")]),
    ],
)
def test_an_approximation_is_judged_by_its_importance_weights(mean, sd, expected):
    assert [(finding.name, finding.severity) for finding in weighted(mean, sd)] == expected


def test_weights_with_another_tail_but_even_are_a_warning():
    """Student t draws for a normal whose tail is heavier in one draw of a thousand."""
    x = RNG.normal(size=(1, 2000))
    log_weight = 0.05 * RNG.normal(size=(1, 2000))
    log_weight[0, :3] += np.log([60.0, 30.0, 20.0])
    (finding,) = diagnostics.approximation({"x": x}, {"log_weight": log_weight})[:1]
    assert (finding.name, finding.severity) == ("pareto_k", "warning")


def test_an_exact_approximation_with_a_heavy_tail_is_a_rough_sample():
    """The sd of a lognormal, whose logarithm has sd 2, is not that of a thousand draws."""
    normal = scipy.special.ndtri((np.arange(1000) + 0.5) / 1000)
    x = np.exp(2 * RNG.permutation(normal))[None]
    found = diagnostics.approximation({"x": x}, {"log_weight": np.zeros((1, 1000))})
    assert {(one.name, one.severity) for one in found} >= {("mcse", "error")}


def test_copies_count_once_and_runs_must_agree():
    x = RNG.normal(size=(1, 4000))
    assert diagnostics.approximation({"x": x}, {}) == []
    copies = np.repeat(x[:, :12], 300, axis=1)
    (finding,) = diagnostics.approximation({"x": copies}, {})
    assert (finding.name, finding.severity) == ("mcse", "error")
    assert finding.figure == pytest.approx(12**-0.5)
    apart = RNG.normal(size=(4, 500)) + np.array([[0.0], [0.0], [0.0], [3.0]])
    names = [finding.name for finding in diagnostics.approximation({"x": apart}, {})]
    assert names == ["r_hat"]


@pytest.mark.filterwarnings("ignore:HMC:inference.InferenceWarning")
def test_corrected_moments_are_those_of_the_posterior_and_need_weights():
    """A mean field of a correlated normal: its marginal sds are too small by sqrt(1 - rho^2)."""
    rho = 0.6

    def program():
        covariance = torch.tensor([[1.0, rho], [rho, 1.0]])
        pyro.sample("x", dist.MultivariateNormal(torch.tensor([1.0, -2.0]), covariance))

    with pytest.warns(InferenceWarning, match="sd of x"):
        result = fit(program, None, SVI(draws=4000, tier="traced"), progress=False)
    table = corrected(result)
    assert list(table.index) == ["x[0]", "x[1]"]
    np.testing.assert_allclose(table["sd"], (1 - rho**2) ** 0.5, rtol=0.05)
    # the weights' effective size is about half of the draws: errors of 1 / sqrt(2 x 2000)
    np.testing.assert_allclose(table["corrected_sd"], 1.0, atol=4 / 4000**0.5)
    np.testing.assert_allclose(table["corrected_mean"], [1.0, -2.0], atol=4 / 2000**0.5)
    assert table.attrs["k_hat"] < 0.7
    with pytest.raises(ValueError, match="no log_weight"):
        corrected(fit(program, None, HMC(warmup=20, draws=20, tier="traced"), progress=False))
