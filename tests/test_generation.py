"""Draws and densities of diffusions whose every step is a known linear map of Gaussians."""

import contextlib
import math

import numpy as np
import pytest
import torch

from inference import generation
from ppl_models import EngineError
from ppl_models.denoisers import MLPDenoiser
from ppl_models.diffusion import Diffusion
from tests.test_diffusion import VARIANCE, best, rows, table_of

COUNT = 40_000


def check_variance(x, exact):
    """Rows of independent Gaussians: the mean square of n has the relative sd sqrt(2 / n)."""
    number = x.numel()
    assert abs(float(x.mean())) < 4.5 * math.sqrt(exact / number)
    assert float(x.square().mean()) == pytest.approx(exact, rel=4.5 * math.sqrt(2 / number))


def gains(model):
    """E[x_0 | x_t] / x_t of N(0, VARIANCE) data."""
    steps = table_of(model)
    return steps.signal * VARIANCE / (steps.signal**2 * VARIANCE + steps.noise**2)


def chain_variance(model):
    """The variance of the program's x_0, by the recursion of its linear steps."""
    steps, gain, variance = table_of(model), gains(model), 1.0
    for t in range(model.steps, 0, -1):
        own = (
            steps.variance[max(t - 1, 1)] if model.variance == "fixed_small" else steps.beta[t - 1]
        )
        factor = steps.to_data[t - 1] * gain[t - 1] + steps.to_noisy[t - 1]
        variance = factor**2 * variance + own
    return variance


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ancestral_draws_have_the_variance_of_the_chain(variance):
    model = best(variance=variance)
    exact = chain_variance(model)
    assert abs(exact / VARIANCE - 1) > 0.02  # twelve steps are few: the chain is not the data
    check_variance(generation.ancestral(model, COUNT, seed=1), exact)


def test_the_chain_can_be_watched():
    seen = {}
    generation.ancestral(best(), 5000, seed=1, watch=seen.setdefault)
    assert list(seen) == list(range(12, 0, -1))
    check_variance(seen[12], 1.0)


def test_many_steps_draw_the_data():
    model = best(schedule="linear", steps=200, variance="fixed_large")
    check_variance(generation.ancestral(model, COUNT, seed=2), chain_variance(model))
    assert chain_variance(model) == pytest.approx(VARIANCE, rel=0.02)


def test_corrections_bring_a_coarse_chain_nearer_to_the_data():
    model = best(schedule="linear", steps=12, variance="fixed_small")
    plain = generation.ancestral(model, COUNT, seed=3)
    corrected = generation.ancestral(model, COUNT, seed=3, corrections=8)
    off = [abs(float(x.square().mean()) / VARIANCE - 1) for x in (plain, corrected)]
    assert off[1] < 0.5 * off[0]


def implicit_variance(model, kept, eta):
    steps, gain, variance = table_of(model), gains(model), 1.0
    for t, r in zip(kept[:0:-1], kept[-2::-1], strict=True):
        share = (steps.signal[t - 1] / steps.signal[r - 1]) ** 2
        spread = eta * steps.noise[r - 1] / steps.noise[t - 1] * math.sqrt(1 - share)
        rest = math.sqrt(steps.noise[r - 1] ** 2 - spread**2)
        guess = gain[t - 1]
        normal = (1 - steps.signal[t - 1] * guess) / steps.noise[t - 1]
        factor = steps.signal[r - 1] * guess + rest * normal
        variance = factor**2 * variance + spread**2
    return gain[kept[0] - 1] ** 2 * variance


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_implicit_draws_have_the_variance_of_their_steps(eta):
    model = best(steps=12)
    kept = np.unique(np.linspace(1, 12, 5).round().astype(int))
    draws = generation.ddim(model, COUNT, steps=5, eta=eta, seed=4)
    check_variance(draws, implicit_variance(model, kept, eta))


def test_full_noise_at_every_step_is_the_chain():
    """With eta = 1 and all steps, the map to x_1 is that of p with its small variance."""
    model = best(steps=12)
    steps, gain = table_of(model), gains(model)
    kept = np.arange(1, 13)
    before = implicit_variance(model, kept, 1.0) / gain[0] ** 2  # of x_1
    variance = 1.0
    for t in range(12, 1, -1):
        factor = steps.to_data[t - 1] * gain[t - 1] + steps.to_noisy[t - 1]
        variance = factor**2 * variance + steps.variance[t - 1]
    assert before == pytest.approx(variance)


def test_deterministic_draws_are_the_same_for_the_same_seed_and_differ_between_rows():
    model = best()
    one, two = (generation.ddim(model, 3, steps=4, seed=s) for s in (5, 5))
    assert torch.equal(one, two)
    assert not torch.equal(one[0], one[1])


@pytest.mark.parametrize("kind", ["noise", "data", "velocity"])
def test_the_flow_has_the_density_of_the_data(kind):
    model, x = best(kind, schedule="linear", steps=1000), rows(50)
    steps = table_of(model)
    spread = VARIANCE + (steps.noise[0] / steps.signal[0]) ** 2
    exact = -0.5 * (x.square().sum(-1) / spread) - math.log(2 * math.pi * spread)
    found = generation.flow_log_density(model, x, tolerance=1e-7)
    # at the other end N(0, I) stands for N(0, a^2 VARIANCE + s^2): a^2 is 4e-5
    assert float((found - exact).abs().max()) < 2e-4
    assert abs(float(found.mean()) - float(exact.mean())) < 1e-4


def test_the_flow_draws_the_data():
    model = best(schedule="linear", steps=1000)
    check_variance(generation.flow_draws(model, COUNT, seed=6), VARIANCE)


def test_progress_goes_from_none_to_all(monkeypatch):
    shares = []

    @contextlib.contextmanager
    def bar(title, *, show):
        yield lambda share, text="": shares.append(share)

    monkeypatch.setattr(generation, "bar", bar)
    for draw in (generation.flow_draws, generation.ancestral, generation.ddim):
        shares.clear()
        draw(best(), 2, **({"steps": 12} if draw is generation.ddim else {}))
        assert all(0 <= share <= 1 for share in shares)
        assert shares[0] < 0.1
        assert shares[-1] > 0.9


def test_probes_estimate_the_divergence_without_bias():
    torch.manual_seed(0)
    model = Diffusion(MLPDenoiser(3, 16, 1), (3,), steps=20).double()
    x = torch.randn(2, 3, dtype=torch.float64)
    exact = generation.flow_log_density(model, x)
    wide = x.repeat(400, 1)
    found = generation.flow_log_density(model, wide, probes=1, tolerance=1e-4).reshape(400, 2)
    error = found.std(0) / math.sqrt(400)
    assert ((found.mean(0) - exact).abs() < 4.5 * error + 1e-3).all()
    assert (error > 0).all()


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(EngineError, match="steps=13: give 1 to 12"):
        generation.ddim(best(), 2, steps=13)
    with pytest.raises(EngineError, match="eta=2"):
        generation.ddim(best(), 2, steps=3, eta=2)
    with pytest.raises(EngineError, match="count=0"):
        generation.ancestral(best(), 0)
