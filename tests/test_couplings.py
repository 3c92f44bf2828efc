"""L-lag couplings against exact total variation distances and exact means."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from inference import HMC, MH, NUTS, Gibbs, couple_finite, coupling, finite
from inference.coupled import reflected
from inference.couplings import Coupling
from inference.moves import tuned
from ppl_models import EngineError, Noise
from tests.chains import exact_walk, metropolis
from tests.programs import FEW, Means
from tests.targets import CONJUGATE, ORING

TWO = np.array([[0.8, 0.2], [0.1, 0.9]])
LEVEL = 1 - 1e-6  # over a few hundred strongly dependent comparisons
Z = stats.norm.ppf(LEVEL)


def check(bound, exact, factor=2.0):
    """Above the exact distance everywhere, and within a factor where that is above 0.01."""
    assert (bound.upper >= exact).all()
    high = exact > 0.01
    assert (bound.value[high] - Z * bound.error[high] <= factor * exact[high]).all()
    assert bound.value[0] < 1.2


def test_two_state_bound_is_near_the_exact_distance():
    pairs = couple_finite(TWO, 0, lag=30, pairs=20_000)
    t = np.arange(60)
    check(pairs.bound(t, LEVEL), finite.total_variation(TWO, 0, 59), 1.1)
    assert pairs.mixing_time() == finite.mixing_time(TWO)


def test_metropolis_bound_on_ten_states_is_above_the_exact_distance():
    walk = metropolis(True)
    pairs = couple_finite(walk, 9, lag=150, pairs=4000)
    t = np.arange(200)
    bound, exact = pairs.bound(t, LEVEL), finite.total_variation(walk, 9, 199)
    assert (bound.upper >= exact).all()


def normal():
    pyro.sample("x", dist.Normal(0.0, 1.0))


# nothing is learnt without warm-up: the proposal is N(x, 2.38^2)
FIXED = MH(warmup=0, tier="traced")


def far(noise):
    return 4 + 0.5 * noise.normal(1)


def test_gaussian_walk_bound_is_near_the_exact_distance():
    exact = exact_walk(2.38, 4.0, 0.5, 60)
    pairs = coupling(normal, None, FIXED, lag=60, pairs=4000, start=far)
    check(pairs.bound(np.arange(60), LEVEL), exact)


def test_a_bound_needs_the_lag_between_the_chains():
    """Sabotage: chains counted as met as soon as they are near stay apart in law."""
    exact = exact_walk(2.38, 4.0, 0.5, 60)
    pairs = coupling(normal, None, FIXED, lag=60, pairs=1000, start=far)
    early = Coupling(pairs.lag, np.maximum(60, pairs.meeting - 4), pairs.x, pairs.y)
    with pytest.raises(AssertionError):
        check(early.bound(np.arange(60)), exact)


@pytest.mark.parametrize("dense", [False, True])
def test_reflected_proposals_are_standard_normal_and_meet_as_often_as_can_be(dense):
    count = 40_000
    scale = torch.tensor([0.5, 2.0], dtype=torch.float64)
    scale = torch.tensor([[0.5, 0.0], [0.4, 2.0]], dtype=torch.float64) if dense else scale
    noise = Noise.seeded(0, count)
    x = torch.tensor([[0.3, -1.0], [0.0, 0.2]], dtype=torch.float64).repeat_interleave(count, 0)
    normal_ = noise.fold(0).normal(2)
    tuning = tuned(scale, 0.7, 2 * count)
    other = reflected(x, tuning, normal_, noise.fold(1))
    assert stats.kstest(other[:, 0].numpy(), "norm").pvalue > 1e-4
    assert stats.kstest(other[:, 1].numpy(), "norm").pvalue > 1e-4
    matrix = scale if dense else torch.diag(scale)
    moved = [x[i * count] + 0.7 * n @ matrix.T for i, n in enumerate((normal_, other))]
    equal = (moved[0] - moved[1]).abs().max(1).values < 1e-9
    z = torch.linalg.solve(matrix, x[0] - x[-1]) / 0.7
    share = 2 * stats.norm.cdf(-0.5 * float(z.norm()))
    assert stats.binomtest(int(equal.sum()), count, share).pvalue > 1e-4


MODELS = {
    "mh": (CONJUGATE, MH(warmup=200, tier="traced"), 40),
    "hmc": (CONJUGATE, HMC(warmup=200, steps=4, tier="traced"), 20),
    "gibbs": (CONJUGATE, Gibbs(warmup=50), 5),
    "mh-oring": (ORING, MH(warmup=500, tier="traced"), 300),
}


def near(noise):
    """The log variance and the mean, about twice as wide as the posterior."""
    return torch.tensor([0.4, 1.0], dtype=torch.float64) + 0.6 * noise.normal(2)


@pytest.mark.parametrize("name", MODELS)
def test_unbiased_estimates_have_the_moments_of_the_posterior(name):
    known, engine, lag = MODELS[name]
    # from far away HMC overshoots to where it takes long to come back
    start = near if isinstance(engine, HMC) else None
    options = {"lag": lag, "pairs": 150, "length": 3 * lag, "start": start, "seed": 1}
    pairs = coupling(known.program, known.data, engine, **options)
    for site, index in (("alpha", "beta"),) if known is ORING else (("mean", "variance"),):
        for scalar in (site, index):
            centre, sd = known.mean[scalar], known.sd[scalar]
            first = pairs.unbiased(lambda v, s=scalar: v[s], lag, 3 * lag)
            second = pairs.unbiased(lambda v, s=scalar, c=centre: (v[s] - c) ** 2, lag, 3 * lag)
            limit = stats.t.isf(1e-4 / 32, pairs.pairs - 1)
            assert abs(first.value - centre) < limit * first.error
            assert abs(second.value - sd**2) < limit * second.error
            assert first.error < 0.3 * sd
    assert pairs.bound(10_000).value == 0
    assert pairs.bound(0).value > 0.5
    assert "150 pairs" in repr(pairs)


def test_unbiased_estimate_is_the_sum_it_is_defined_by():
    """H_{k:m} as the average of H_l, l = k, ..., m, each summed over its own lags."""
    pairs = couple_finite(TWO, 0, lag=3, pairs=40, length=20)
    x, y, lag = pairs.x.astype(float), pairs.y.astype(float), pairs.lag
    k, m = 2, 9
    each = []
    for pair, tau in enumerate(pairs.meeting):
        total = 0.0
        for step in range(k, m + 1):
            total += x[step, pair]
            t = step + lag
            while t < tau:
                total += x[t, pair] - y[t - lag, pair]
                t += lag
        each.append(total / (m - k + 1))
    result = pairs.unbiased(lambda states: states, k, m)
    assert result.value == pytest.approx(np.mean(each))
    assert result.error == pytest.approx(np.std(each, ddof=1) / np.sqrt(40))


def test_what_cannot_be_coupled_is_refused():
    with pytest.raises(EngineError, match="NUTS cannot be coupled"):
        coupling(normal, None, NUTS())
    with pytest.raises(EngineError, match="lag=0"):
        coupling(normal, None, FIXED, lag=0)
    apart = {"y": np.concatenate([FEW - 12, FEW + 12])}
    with pytest.raises(EngineError, match="have not met after 60"):
        coupling(Means(2), apart, MH(warmup=50, tier="traced"), lag=5, pairs=20, most=60)
    pairs = couple_finite(TWO, 0, pairs=20)
    with pytest.raises(EngineError, match="couple with length=500"):
        pairs.unbiased(lambda states: states, 10, 500)
    with pytest.raises(EngineError, match="keep the first two"):
        pairs.unbiased(lambda states: states.sum(), 0, 1)
