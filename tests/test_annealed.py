"""Annealed Langevin dynamics hands down the weights and moments of a mixture's modes."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from inference import MALA, SMC, SVI, ScoreMatching, annealed, annealed_draws, generation
from ppl_models import EngineError, ScoreModel
from ppl_models.denoisers import MLPDenoiser
from tests.statistics import quiet, student
from tests.test_diffusion import VARIANCE, best, table_of
from tests.test_sabotage import Sabotage

SHARE, CENTRES, SD = 0.25, torch.tensor([-3.0, 3.0]).double(), 0.5
SDS = torch.logspace(math.log10(8), -1, 14).tolist()


def noised_score(x, sd):
    """Of the two modes, of a quarter and three quarters, with noise added."""
    width = math.sqrt(SD**2 + sd**2)
    log_p = -0.5 * ((x - CENTRES) / width).square()
    log_p = log_p + torch.tensor([SHARE, 1 - SHARE]).to(x).log()
    return ((CENTRES - x) / width**2 * log_p.softmax(-1)).sum(-1, keepdim=True)


def start(count):
    return 8 * torch.randn(count, 1, generator=torch.Generator().manual_seed(0)).double()


def moments(x, *, slack):
    """The share on the left, and mean and variance of both modes, within chance and a bias."""
    left = (x < 0).double()
    assert float(left.mean()) == pytest.approx(
        SHARE, abs=slack + 4.5 * math.sqrt(SHARE * (1 - SHARE) / len(x))
    )
    for mode, centre in ((x[x < 0], -3.0), (x[x > 0], 3.0)):
        error = SD / math.sqrt(len(mode))
        assert float(mode.mean()) == pytest.approx(centre, abs=slack + 4.5 * error)
        ratio = float(mode.var()) / SD**2
        assert ratio == pytest.approx(1, abs=slack + 4.5 * math.sqrt(2 / len(mode)))


def test_levels_hand_down_the_weights_of_modes():
    """As in Song & Ermon (2019), figure 3: without levels modes have the weights of the start."""
    moments(
        annealed.annealed_draws(noised_score, start(4000), SDS, steps=60, length=0.8), slack=0.06
    )
    alone = annealed_draws(noised_score, start(4000), SDS[-1:], steps=840, length=0.8)
    assert float((alone < 0).double().mean()) > 0.4


def test_half_a_slope_is_noticed(monkeypatch):
    Sabotage(annealed, "annealed_draws", "0.5 * size**2", "0.25 * size**2").commit(monkeypatch)
    with pytest.raises(AssertionError):
        test_levels_hand_down_the_weights_of_modes()


def test_a_trained_score_network_gives_the_mixture_back():
    numbers = np.random.default_rng(1)
    rows = numbers.normal(np.where(numbers.random(20_000) < SHARE, -3, 3), SD)[:, None]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ScoreModel(MLPDenoiser(1, hidden=32, layers=2), 1, SDS)
    engine = SVI(
        objective=ScoreMatching("denoising"),
        steps=1500,
        batch_size=512,
        learning_rate=5e-3,
        average=0.99,
        plateau=False,
        tier="traced",
    )
    trained = quiet(model, rows, engine).model
    at = torch.linspace(-4, 4, 81)[:, None]
    for sd in (SDS[0], SDS[5], SDS[-3]):
        wrong = trained.score(at, sd).detach() - noised_score(at.double(), sd)
        weight = torch.exp(-0.5 * ((at.double() - CENTRES) / math.hypot(SD, sd)) ** 2).sum(-1)
        size = (weight[:, None] * noised_score(at.double(), sd).square()).mean()
        assert float((weight[:, None] * wrong.square()).mean() / size) < 0.02
    drawn = annealed_draws(trained.score, start(4000).float(), SDS, steps=60, length=0.8)
    moments(drawn.double(), slack=0.1)


def test_a_program_is_annealed_by_langevin_steps_with_weights():
    """Its density is known: tempering with MALA finds far modes in their proportions."""

    def modal():
        x = pyro.sample("x", dist.Normal(torch.zeros(1).double(), 8.0).to_event(1))
        modes = dist.Normal(CENTRES, SD).log_prob(x) + torch.tensor([SHARE, 1 - SHARE]).log()
        pyro.factor("modes", modes.logsumexp(-1) - dist.Normal(0.0, 8.0).log_prob(x).sum())

    engine = SMC(particles=100, runs=60, kernel=MALA(), moves=8)
    found = quiet(modal, None, engine).posterior
    x = found.draws["x"][..., 0].numpy()
    mean = 3 * (1 - 2 * SHARE)
    for value, exact in ((x < 0, SHARE), (x, mean), (x**2, 9 + SD**2)):
        assert abs(student(value - exact)) < 4.5
    assert abs(found.attributes["log_evidence"]) < 4.5 * found.attributes["log_evidence_error"]


def test_a_diffusion_has_such_a_score():
    model = best(schedule="linear", steps=50)
    score, sds = generation.score_of(model), generation.noise_levels(model, 10)
    steps = table_of(model)
    assert sds[0] == pytest.approx(float(steps.noise[-1] / steps.signal[-1]))
    assert sds[-1] == pytest.approx(float(steps.noise[0] / steps.signal[0]))
    y = torch.randn(5, 2, generator=torch.Generator().manual_seed(1)).double()
    sd = float(steps.noise[20] / steps.signal[20])
    torch.testing.assert_close(score(y, sd), -y / (VARIANCE + sd**2), rtol=1e-4, atol=1e-4)


def test_what_makes_no_ladder_is_refused():
    with pytest.raises(EngineError, match="numbers that decrease"):
        annealed_draws(noised_score, torch.zeros(3, 1), [1.0, 2.0])
    with pytest.raises(EngineError, match="length=3"):
        annealed_draws(noised_score, torch.zeros(3, 1), [1.0], length=3)
    with pytest.raises(EngineError, match="not finite at the level sd=1"):
        annealed_draws(lambda x, sd: x / 0, torch.zeros(3, 1), [1.0])
