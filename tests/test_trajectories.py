"""Trajectories that chains share: their criterion, what is learnt of it, and where it is kept."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from inference import ChEES, Target, chees, trajectories
from inference.chees import Ascent, derivative
from inference.sampling import Tuning
from inference.trajectories import FIXED, halton
from ppl_models import Noise
from tests.statistics import quiet
from tests.test_sabotage import Sabotage

TRACED = {"tier": "traced"}
SCALES = torch.tensor([0.3, 1.0, 3.0], dtype=torch.float64)

# of a standard normal in d dimensions, the criterion at time t is d sin(t)^2; averaged over times
# uniform on (0, T) it is d (1 - sin(2 T) / (2 T)) / 2, largest where tan(2 T) = 2 T first
BEST = 4.493409457909064 / 2


def normals():
    pyro.sample("x", dist.Normal(torch.ones(3), SCALES).to_event(1))


def test_halton_sequence_fills_the_interval_evenly():
    values = np.array([halton(n) for n in range(1023)])
    np.testing.assert_array_equal(np.sort(values), np.arange(1, 1024) / 1024)
    first = np.sort(values[:31])
    assert np.diff(first).max() <= 1 / 32 + 1e-12


@pytest.mark.parametrize("time", [0.3, 1.0, 2.0])
def test_derivative_of_the_criterion_is_that_of_its_closed_form(time):
    x, momentum = (Noise.seeded(k, 200_000).normal(4) for k in (0, 1))
    there = math.cos(time) * x + math.sin(time) * momentum
    velocity = math.cos(time) * momentum - math.sin(time) * x
    parts = [derivative(*rows, torch.ones(1000).double()) for rows in zip(
        *(part.split(1000) for part in (x, there, velocity)), strict=True)]  # fmt: skip
    exact = 2 * 4 * math.sin(time) * math.cos(time)
    error = np.std(parts) / len(parts) ** 0.5
    assert abs(np.mean(parts) - exact) < 4.5 * error + 0.003 * 8  # 1000 chains share a centre


def test_chains_that_left_the_numbers_do_not_count():
    x, momentum = (Noise.seeded(k, 20).normal(2) for k in (0, 1))
    rate = torch.linspace(0.1, 1.0, 20, dtype=torch.float64)
    away = [part.clone() for part in (x, x + momentum, momentum)]
    away[1][3], away[2][7] = torch.nan, torch.inf
    silent = rate.clone()
    silent[[3, 7]] = 0.0
    assert derivative(*away, rate) == pytest.approx(derivative(x, x + momentum, momentum, silent))


def learnt_length(engine, monkeypatch):
    """The longest trajectory that a fit has learnt for ``normals``, in the whitened space."""
    kept = []
    own = ChEES.next_path

    def keeping(self, at, window):
        kept.append(own(self, at, window))
        return kept[-1]

    monkeypatch.setattr(ChEES, "next_path", keeping)
    quiet(normals, None, engine)
    assert kept[-1].stage == FIXED
    return math.exp(kept[-1].log_length)


ENGINE = ChEES(warmup=500, draws=1, step_size=0.2, **TRACED)


@pytest.mark.parametrize("start", [0.4, 3.2])
@pytest.mark.parametrize("mass", ["diagonal", "dense"])
def test_learnt_length_is_that_of_the_largest_criterion_whatever_the_scales(
    start, mass, monkeypatch
):
    monkeypatch.setattr(ChEES, "first_length", lambda self, dim: start)
    engine = ChEES(warmup=500, draws=1, step_size=0.2, mass=mass, **TRACED)
    assert learnt_length(engine, monkeypatch) == pytest.approx(BEST, rel=0.15)


BROKEN = {
    "the criterion falls": Sabotage(chees, "ascend", "_RATE * slope", "-_RATE * slope"),
    "the derivative is that of the way out": Sabotage(
        chees, "derivative", "(arrived * velocity)", "(away * velocity)"
    ),
    "the mean is not taken off": Sabotage(
        chees, "derivative", "there - (weight[:, None] * there).sum(0)", "there + 3"
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_learning_ends_elsewhere(name, monkeypatch):
    BROKEN[name].commit(monkeypatch)
    assert learnt_length(ENGINE, monkeypatch) != pytest.approx(BEST, rel=0.15)


def test_lengths_stay_between_one_leapfrog_and_the_most():
    path = trajectories.Path(0.0, 0, FIXED, Ascent(0.0, 0.0, 0))
    assert chees.ascend(path, -1.0, 0.1, 5.0).log_length == 0.0
    assert chees.ascend(path, 1.0, -6.0, 5.0).log_length == 0.0
    assert chees.ascend(path, 1.0, 0.1, 5.0).log_length == pytest.approx(0.025)


def test_nothing_is_learnt_once_draws_are_kept():
    target = Target(lambda x: -0.5 * (x**2).sum(), 3, tier="traced")
    noise = Noise.seeded(0, 8)
    engine = ChEES(chains=8)
    path = engine.path(3)._replace(stage=FIXED)
    tuning = Tuning(torch.full((8,), 0.5).double(), torch.ones(3).double(), path)
    numbers = engine.randomness(target, noise, 20)
    state = engine.init(target, noise.normal(3), tuning, numbers[0])
    steps = []
    for number in numbers:
        state, info = engine.step(target, state, tuning, number)
        steps.append(int(info.statistics["n_steps"][0]))
    assert state.path == path._replace(transitions=20)
    longest = math.pi / 2 / 0.5
    assert steps == [math.ceil(longest * halton(n)) for n in range(20)]


def test_two_chains_are_enough_to_run():
    fitted = quiet(normals, None, ChEES(chains=2, warmup=100, draws=50, **TRACED))
    assert bool(torch.isfinite(fitted.posterior.draws["x"]).all())


def test_without_warm_up_trajectories_have_the_first_length():
    engine = ChEES(chains=4, warmup=0, draws=15, step_size=0.01, **TRACED)
    stats = quiet(normals, None, engine).posterior.stats
    assert int(stats["n_steps"].max()) == math.ceil(math.pi / 2 / 0.01 * 15 / 16)
