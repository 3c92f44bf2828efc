"""Annealed importance sampling against the exact likelihood of a linear-Gaussian model."""

import pytest
import torch
from scipy import stats

from inference import AIS, HMC, MH, NUTS, bidirectional, fit, hmc
from inference.ais import Annealing
from inference.fit import bind
from inference.program import isolated
from ppl_models import EngineError, HasRows
from tests.programs import Linear
from tests.statistics import LEVEL
from tests.test_sabotage import Sabotage

pytestmark = pytest.mark.filterwarnings("ignore::inference.InferenceWarning")

ROWS, CHAINS = 12, 48
MODEL = Linear(2, 5)
MODEL.trained = True
DATA = {"x": MODEL.simulated(ROWS)}
EXACT = MODEL.exact(DATA["x"]).detach()
CRITICAL = float(stats.norm.isf(LEVEL / 12))
TEMPERATURES = 30  # few, so that what is wrong at each is large
ENGINE = AIS(chains=CHAINS, temperatures=TEMPERATURES, kernel=HMC(steps=2))


def statistics(engine=ENGINE):
    """T statistics of E w / p(x) = 1 forward and E p(x) / w = 1 backward, from exact draws."""
    problem = bind(MODEL, DATA, seed=1)
    mean, covariance = (value.detach() for value in MODEL.posterior(DATA["x"]))
    unit = torch.randn(
        ROWS, CHAINS, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )
    exact = mean[:, None] + unit @ torch.linalg.cholesky(covariance).T
    with isolated(problem.dtype), torch.no_grad():
        annealing = Annealing(engine, problem, problem.noise(1))
        noise = problem.noise(annealing.points)
        forward = annealing.rows.unchained(annealing.forward(noise.fold(1)).log_weight)
        backward = annealing.backward(exact.flatten(0, 1), noise.fold(2)).log_weight
        backward = annealing.rows.unchained(backward)
    ratios = ((forward - EXACT).exp() - 1, (EXACT - backward).exp() - 1)
    return [float(r.mean() / r.std() * r.numel() ** 0.5) for r in ratios]


@pytest.mark.parametrize("kernel", [HMC(steps=2), MH(), NUTS(max_depth=3)])
def test_weights_are_unbiased_in_both_directions(kernel):
    engine = AIS(chains=CHAINS, temperatures=TEMPERATURES, kernel=kernel)
    assert max(abs(t) for t in statistics(engine)) < CRITICAL


MOVE = "x, rate = self._move(x, k, ladder, noise)\n"
WEIGH = "log_weight = log_weight + (ladder[k] - ladder[k - 1]) * difference(self, x)\n"
INDENT = 8 * " "  # of the loop in a method


def swapped(first, second):
    """Two lines of a loop, and the same in the other order."""
    return first + INDENT + second, second + INDENT + first


SABOTAGE = {
    "weights are those of another ladder": Sabotage(
        Annealing, "forward", "ladder[k] - ladder[k - 1]", "1 / self.engine.temperatures"
    ),
    "weights are taken after the move": Sabotage(Annealing, "forward", *swapped(WEIGH, MOVE)),
    "weights on the way back are taken before it": Sabotage(
        Annealing, "backward", *swapped(MOVE, WEIGH)
    ),
    "hmc leaves the kinetic energy out of its acceptance": Sabotage(
        hmc,
        "energy",
        "0.5 * momentum.square().sum(-1, dtype=log_density.dtype) - log_density",
        "-log_density",
    ),
}


@pytest.mark.parametrize("name", SABOTAGE)
def test_sabotaged_annealing_is_exposed(name, monkeypatch):
    SABOTAGE[name].commit(monkeypatch)
    assert max(abs(t) for t in statistics()) > CRITICAL


def test_the_likelihood_of_each_row_and_draws_of_its_latents():
    found = fit(MODEL, DATA, AIS(chains=CHAINS, temperatures=300, kernel=HMC(steps=2))).posterior
    value = torch.tensor(found.attributes["log_likelihood"], dtype=torch.float64)
    error = torch.tensor(found.attributes["log_likelihood_error"], dtype=torch.float64)
    assert float((value - EXACT).mean().abs()) < 0.05
    assert ((value - EXACT).abs() < CRITICAL * error).all()
    total, spread = (found.attributes[f"log_evidence{s}"] for s in ("", "_error"))
    assert abs(total - float(EXACT.sum())) < CRITICAL * spread
    z = found.draws["z"]
    assert z.shape == (1, CHAINS, ROWS, 2)
    mean, covariance = MODEL.posterior(DATA["x"])
    away = ((z[0] - mean) / covariance.diagonal().sqrt()).detach()
    size = sum(found.attributes["weight_ess"])  # independent draws, resampled once
    assert (away.mean((0, 1)).abs() < CRITICAL * size**-0.5).all()
    assert ((away.square().mean((0, 1)) - 1).abs() < CRITICAL * (2 / size) ** 0.5).all()


def test_simulated_rows_are_bounded_from_both_sides():
    engine = AIS(chains=16, temperatures=200, kernel=HMC(steps=2))
    bounds = bidirectional(MODEL, DATA, engine, seed=5)
    exact = MODEL.exact(bounds.data["x"]).detach()
    assert not torch.equal(bounds.data["x"], DATA["x"])
    error = (bounds.upper - bounds.lower).std() / ROWS**0.5
    assert abs(float((bounds.lower - exact).mean())) < 0.05
    assert abs(float((bounds.upper - exact).mean())) < 0.05
    assert -CRITICAL * error < bounds.gap < 0.05
    assert f"{bounds.gap:.4f} +- {bounds.gap_error:.4f} nats" in repr(bounds)


def test_too_few_temperatures_are_told_of():
    sharp = Linear(2, 5)
    sharp.trained = True
    with torch.no_grad():
        sharp.decoder.weight.mul_(20)
    engine = AIS(chains=16, temperatures=2, kernel=HMC(steps=2))
    found = fit(sharp, {"x": sharp.simulated(6)}, engine)
    assert any("worth less than 25% of their 16 chains" in text for text in found.warnings)


class Blind(HasRows):
    forward = Linear.forward
    decoder = MODEL.decoder
    latent = 2


def test_what_cannot_be_annealed_is_refused():
    blind = Blind()
    blind.trained = True
    with pytest.raises(EngineError, match="the model has no guide; use 'prior'"):
        fit(blind, DATA, AIS(reference="guide"))
    with pytest.raises(EngineError, match=r"AIS\(reference='posterior'\)"):
        AIS(reference="posterior")  # type: ignore[arg-type]
    with pytest.raises(EngineError, match=r"AIS\(kernel=.*give a sampler"):
        AIS(kernel=None)  # type: ignore[arg-type]
