"""Densities that are C functions: the same trajectories and draws as by torch."""

import pytest
import torch
from numba import types

from inference import HMC, Target
from inference.hmc import Phase, leapfrog, trajectory
from inference.sampling import Tuning
from ppl_models import Noise
from tests import natives
from tests.test_laws import DIM, SCALES, quartic

REALS = {torch.float64: types.float64, torch.float32: types.float32}


def with_native(target, native, monkeypatch):
    monkeypatch.setattr(target, "native", lambda x: native)
    return target


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", REALS)
def test_trajectories_are_those_of_leapfrogs(scale, dtype, monkeypatch):
    noise = Noise.seeded(3, 5)._replace(dtype=dtype)
    x, momentum = noise.fold(0).normal(DIM), noise.fold(1).normal(DIM)
    step = 0.02 + 0.1 * noise.fold(2).uniform(1)
    target, root = Target(quartic, DIM, dtype=dtype, tier="traced"), SCALES[scale].to(dtype)
    phase = Phase(x, *target.log_density_and_grad(x))
    expected, moved = phase, momentum
    for _ in range(7):
        expected, moved = leapfrog(target, expected, moved, step, root)
    with_native(target, natives.quartic(REALS[dtype]), monkeypatch)
    before = x.clone(), momentum.clone()
    found, at = trajectory(target, phase, momentum, step, root, 7)
    exact = dtype == torch.float64
    torch.testing.assert_close(
        [*found, at],
        [*expected, moved],
        rtol=1e-12 if exact else 1e-4,
        atol=1e-12 if exact else 1e-4,
    )
    assert torch.equal(x, before[0])  # what came in stays
    assert torch.equal(momentum, before[1])


def test_hmc_refuses_points_where_a_c_function_is_not_a_number(monkeypatch):
    target = with_native(
        Target(lambda x: -0.5 * (x**2).sum(), 2, tier="traced"), natives.broken(2), monkeypatch
    )
    noise = Noise.seeded(1, 50)
    x = -noise.fold(0).uniform(2)
    engine = HMC(steps=5)
    tuning = Tuning(torch.full((50,), 0.3).double(), torch.ones(2).double())
    state = engine.init(target, x, tuning, None)
    numbers = engine.randomness(target, noise.fold(1), 40)
    moved = 0
    for now in numbers:
        state, info = engine.step(target, state, tuning, now)
        assert bool(torch.isfinite(state.x).all())
        assert bool((state.x[:, 0] <= 1).all())
        moved += int(info.statistics["diverging"].sum())
    assert moved > 50  # of 2000
