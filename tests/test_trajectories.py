"""Trajectories that chains share: their criterion, what is learnt of it, and where it is kept."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from inference import MAMS, ChEES, Target, chees, mams, trajectories, warmup
from inference.chains import Tuning
from inference.chees import Ascent, derivative
from inference.hmc import Phase
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


@pytest.mark.parametrize("share", [0.01, 0.3, 0.99])
def test_a_trajectory_is_its_share_of_the_longest_to_the_end(share):
    engine = ChEES(chains=4, max_steps=20)
    tuning = Tuning(torch.full((4,), 0.3, dtype=torch.float64), torch.ones(2).double())
    path = engine.path(2)._replace(stage=FIXED)
    number, part = engine._leapfrogs(path, share, tuning)
    assert number * part * 0.3 == pytest.approx(share * math.pi / 2)
    assert number == math.ceil(share * math.pi / 2 / 0.3)
    assert engine._leapfrogs(path._replace(log_length=9.0), share, tuning)[0] <= 20


def test_two_chains_are_enough_to_run():
    fitted = quiet(normals, None, ChEES(chains=2, warmup=100, draws=50, **TRACED))
    assert bool(torch.isfinite(fitted.posterior.draws["x"]).all())


def test_without_warm_up_trajectories_have_the_first_length():
    engine = ChEES(chains=4, warmup=0, draws=15, step_size=0.01, **TRACED)
    stats = quiet(normals, None, engine).posterior.stats
    assert int(stats["n_steps"].max()) == math.ceil(math.pi / 2 / 0.01 * 15 / 16)


# -- trajectories of constant speed ----------------------------------------------------------------

DIM = 3
LOWER = torch.tensor([[0.5, 0, 0], [0.3, 1.0, 0], [-0.2, 0.4, 2.0]], dtype=torch.float64)
WHITENING = {"diagonal": LOWER.diagonal().contiguous(), "dense": LOWER}


def quartic(x):
    return -0.25 * (x**4).sum() - 0.5 * (x[0] * x[1] + x[2]) ** 2 + 0.3 * x[1]


QUARTIC = Target(quartic, DIM, tier="traced")


def travel(x, velocity, step, scale, number):
    tuning = Tuning(torch.full((len(x),), step, dtype=torch.float64), scale)
    phase = Phase(x, *QUARTIC.log_density_and_grad(x))
    return MAMS().travel(QUARTIC, phase, tuning, velocity, number)


def directions(chains, dim, seed):
    normal = Noise.seeded(seed, chains).normal(dim)
    return normal / normal.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("dim", [2, 3, 7])
def test_a_kick_solves_the_equation_of_motion(dim):
    velocity, gradient = directions(5, dim, 0), 3 * Noise.seeded(1, 5).normal(dim)
    time, number = 1.5, 3000

    def slope(u):
        return (gradient - u * (u * gradient).sum(-1, keepdim=True)) / (dim - 1)

    u, h = velocity, time / number
    for _ in range(number):  # by the midpoint rule
        u = u + h * slope(u + h / 2 * slope(u))
    turned, _ = mams.kick(velocity, gradient, torch.full((5, 1), time, dtype=torch.float64))
    torch.testing.assert_close(turned, u, rtol=1e-5, atol=1e-5)


def test_kicks_at_one_place_add_up():
    velocity, gradient = directions(5, DIM, 0), 3 * Noise.seeded(1, 5).normal(DIM)
    parts = [torch.full((5, 1), part, dtype=torch.float64) for part in (0.7, 0.4, 1.1)]
    once, whole = mams.kick(velocity, gradient, parts[2])
    first, change = mams.kick(velocity, gradient, parts[0])
    twice, further = mams.kick(first, gradient, parts[1])
    torch.testing.assert_close(twice, once, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(change + further, whole, rtol=1e-12, atol=1e-12)


def test_kicks_by_huge_and_by_no_gradients_stay_on_the_sphere():
    velocity = directions(4, DIM, 0)
    size = torch.tensor([1e6, -1e6, 1e-3, 0.0], dtype=torch.float64)
    gradient = size[:, None] * velocity + torch.tensor([0, 1.0, 0, 0]).double()[:, None]
    turned, change = mams.kick(velocity, gradient, torch.ones(4, 1).double())
    torch.testing.assert_close(turned.norm(dim=-1), torch.ones(4).double())
    assert bool(torch.isfinite(change).all())
    torch.testing.assert_close(change[[0, 3]], torch.tensor([1e6, 0.0]).double())


def tangent(u):
    """An orthonormal basis of the directions in which a unit vector can turn: (D, D - 1)."""
    whole = torch.cat([u[:, None], torch.eye(len(u)).double()[:, :-1]], 1)
    return torch.linalg.qr(whole)[0][:, 1:]


def volume(number, scale):
    """The log of the volume's growth along a trajectory, and the kinetic energy that it tells."""
    x, u = 0.5 * Noise.seeded(2, 1).normal(DIM)[0], directions(1, DIM, 3)[0]
    step, h = 0.4, 1e-5
    moves = torch.block_diag(torch.eye(DIM).double(), tangent(u))  # (2 D, 2 D - 1)

    def move(z):
        end = travel(z[None, :DIM], z[None, DIM:], step, scale, number)
        return torch.cat([end.phase.x[0], end.velocity[0]])

    z = torch.cat([x, u])
    columns = [(move(z + h * e) - move(z - h * e)) / (2 * h) for e in moves.T]
    end = travel(x[None], u[None], step, scale, number)
    onto = torch.block_diag(torch.eye(DIM).double(), tangent(end.velocity[0]))
    growth = torch.linalg.det(onto.T @ torch.stack(columns, 1)).abs().log()
    return float(growth), float(end.after + end.phase.log_density)


@pytest.mark.parametrize("scale", WHITENING)
def test_kinetic_energy_is_the_volume_that_a_trajectory_loses(scale):
    growth, kinetic = volume(4, WHITENING[scale])
    assert abs(growth) > 0.05
    assert growth == pytest.approx(-kinetic, abs=1e-7)


@pytest.mark.parametrize("scale", WHITENING)
def test_constant_speed_runs_backwards_and_gives_the_energy_back(scale):
    x, velocity = Noise.seeded(0, 6).normal(DIM), directions(6, DIM, 1)
    forth = travel(x, velocity, 0.2, WHITENING[scale], 12)
    back = travel(forth.phase.x, -forth.velocity, 0.2, WHITENING[scale], 12)
    torch.testing.assert_close(back.phase.x, x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(-back.velocity, velocity, rtol=1e-9, atol=1e-9)
    change = forth.after - forth.before
    torch.testing.assert_close(back.before - back.after, change, rtol=1e-8, atol=1e-8)


def test_energy_error_of_constant_speed_is_of_second_order():
    x, velocity = Noise.seeded(0, 6).normal(DIM), directions(6, DIM, 1)
    errors = []
    for number in (32, 64, 128):
        end = travel(x, velocity, 1.0 / number, LOWER, number)
        errors.append((end.after - end.before).abs().max())
    assert 3 < errors[0] / errors[1] < 5
    assert 3 < errors[1] / errors[2] < 5


TURNING = {
    "a kick forgets its turn": Sabotage(mams, "kick", "along * towards", "0.9 * along * towards"),
    "a kick counts a dimension too many": Sabotage(
        mams, "kick", "velocity.shape[1] - 1", "velocity.shape[1]"
    ),
    "the loss of volume is left out": Sabotage(
        mams, "trajectory", "kinetic = kinetic + change", "pass"
    ),
    "the last kick is whole": Sabotage(mams, "trajectory", "0.5 if k == steps else 1.0", "1.0"),
}


def laws_of_constant_speed():
    test_a_kick_solves_the_equation_of_motion(3)
    test_kinetic_energy_is_the_volume_that_a_trajectory_loses("dense")
    test_constant_speed_runs_backwards_and_gives_the_energy_back("dense")


@pytest.mark.parametrize("name", TURNING)
def test_laws_of_constant_speed_expose_a_broken_trajectory(name, monkeypatch):
    TURNING[name].commit(monkeypatch)
    with pytest.raises(AssertionError):
        laws_of_constant_speed()


def test_steps_of_mams_are_reversible_in_distribution_on_a_gaussian():
    # exactly stationary start: the joint law of (x_0, x_1) must be symmetric
    target = Target(lambda x: -0.5 * (x**2).sum(), 2, tier="traced")
    chains = 40_000
    noise = Noise.seeded(9, chains)
    x, engine = noise.fold(0).normal(2), MAMS()
    path = trajectories.Path(math.log(4.0), 2, FIXED)  # three quarters of it
    tuning = Tuning(torch.full((chains,), 1.2).double(), torch.ones(2).double(), path)
    state = engine.init(target, x, tuning, engine.randomness(target, noise, 1)[0])
    numbers = engine.randomness(target, noise.fold(1), 1)[0]
    new, info = engine.step(target, state, tuning, numbers)
    assert 0.5 < float(info.acceptance_rate.mean()) < 0.98
    one, two = x[:, 0], new.x[:, 0]
    for f, g in ((1, 2), (1, 3), (2, 4)):
        difference = one**f * two**g - two**f * one**g
        assert abs(difference.mean() / (difference.std() / chains**0.5)) < 4.5


@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_effective_draws_per_transition_are_those_of_an_autoregression(share):
    # x' = r x + sqrt(1 - r^2) n has (1 - r) / (1 + r) effective draws per transition
    r, chains, length = (1 - share) / (1 + share), 1000, 400
    normal = Noise.seeded(4, chains).normal(length, 2)
    rows = [normal[:, 0]]
    for k in range(1, length):
        rows.append(r * rows[-1] + (1 - r**2) ** 0.5 * normal[:, k])
    x = torch.stack(rows)
    moments = warmup.add(warmup.moments("dense", x[0]), x, torch.ones(x.shape[:2]).bool())
    assert mams.independent(moments) == pytest.approx(share, rel=0.1)
