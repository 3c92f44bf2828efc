"""Densities that are C functions: the same trajectories and draws as by torch."""

import os
import signal
import threading

import pyro
import pyro.distributions as dist
import pytest
import torch
from numba import types

from inference import HMC, MAMS, NUTS, Target, Until, fit, nuts_cpu, stopping
from inference.chains import Tuning
from inference.hmc import Phase, leapfrog, trajectory
from inference.native import Native
from inference.recording import Recorder
from ppl_models import Noise, noise_cpu
from ppl_models.errors import EngineError
from tests import natives
from tests.test_laws import DIM, SCALES, quartic, stepped

pytestmark = pytest.mark.filterwarnings("ignore::inference.InferenceWarning")

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


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", REALS)
def test_trajectories_of_constant_speed_are_those_by_tensors(scale, dtype, monkeypatch):
    noise = Noise.seeded(3, 5)._replace(dtype=dtype)
    x, normal = noise.fold(0).normal(DIM), noise.fold(1).normal(DIM)
    step = 0.02 + 0.3 * noise.fold(2).uniform()
    target, tuning = (
        Target(quartic, DIM, dtype=dtype, tier="traced"),
        Tuning(step, SCALES[scale].to(dtype)),
    )
    phase = Phase(x, *target.log_density_and_grad(x))
    before = x.clone(), normal.clone()
    expected = MAMS().travel(target, phase, tuning, normal, 7)
    with_native(target, natives.quartic(REALS[dtype]), monkeypatch)
    found = MAMS().travel(target, phase, tuning, normal, 7)
    exact = dtype == torch.float64
    torch.testing.assert_close(
        [*found.phase, *found[1:]],
        [*expected.phase, *expected[1:]],
        rtol=1e-11 if exact else 1e-3,
        atol=1e-11 if exact else 1e-3,
    )
    assert torch.equal(x, before[0])
    assert torch.equal(normal, before[1])


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


def test_nuts_never_goes_where_a_c_function_is_not_a_number(monkeypatch):
    target = with_native(
        Target(lambda x: -0.5 * (x**2).sum(), 2, tier="traced"), natives.broken(2), monkeypatch
    )
    noise = Noise.seeded(1, 50)
    tuning = Tuning(torch.full((50,), 0.3).double(), torch.ones(2).double())
    engine = NUTS()
    first = engine.randomness(target, noise.fold(2), 1)[0]
    state = engine.init(target, -noise.fold(0).uniform(2), tuning, first)
    _, found = stepped(engine, target, state, tuning, noise.fold(1), 300)
    x = torch.cat([own["x"] for own in found])
    assert bool(torch.isfinite(x).all())
    assert 0.9 < float(x[:, 0].max()) <= 1
    assert 100 < sum(int(own["diverging"].sum()) for own in found) < len(x) / 2


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("count", [1, 2, 7, 320])
def test_numbers_one_at_a_time_are_those_of_the_stream(dtype, count):
    noise = Noise.seeded(3, 2, dtype=dtype).fold(5)
    bits = 32 if dtype == torch.float64 else 23
    normal, uniform = noise.normal(count), noise.uniform(count)
    for c, (k0, k1) in enumerate(noise.key.numpy().astype("uint64")):
        units = [noise_cpu.uniform(k0, k1, i, bits) for i in range(count)]
        assert units == uniform[c].tolist()
        for first in {0, count // 3, count - 1}:
            found = torch.empty(count - first, dtype=dtype)
            noise_cpu.normals(k0, k1, first, count, bits, found.numpy())
            torch.testing.assert_close(found, normal[c, first:])


def test_blocks_of_steps_follow_one_another():
    step, number = 0, 0
    while step < 300:
        found, start, length = noise_cpu.block_of(step)
        assert (found, start) == (number, step)
        assert all(
            noise_cpu.block_of(k) == (found, start, length) for k in range(step, step + length)
        )
        step, number = step + length, number + 1
    assert length == 64


def normals():
    pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("engine", [NUTS, HMC])
def test_where_a_run_is_cut_changes_nothing(engine, dtype, native, monkeypatch):
    if native:
        natives.serve(monkeypatch, natives.normal(3, REALS[dtype]), 3)
    engine = engine(chains=3, warmup=60, draws=90, thin=2, tier="traced")
    drawn = []
    for look, room in ((0.0, 1 << 24), (1e3, 1 << 24), (1e3, 3000)):
        monkeypatch.setattr(stopping, "LOOK", look)
        monkeypatch.setattr(nuts_cpu, "_ROOM", room)
        drawn.append(fit(normals, {}, engine, dtype=dtype).posterior.unconstrained)
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("engine", [NUTS, HMC, MAMS])
@pytest.mark.parametrize(("chains", "work"), [(53, 10), (5, 20_000)])
def test_threads_change_no_draw(engine, chains, work, monkeypatch):
    """Few chains are shared where each is much work, many in any case."""
    natives.serve(monkeypatch, natives.normal(3)._replace(single=3, work=work), 3)
    groups, own = set(), Native.groups

    def watched(*given):
        groups.add(tuple(own(*given)))
        return list(own(*given))

    monkeypatch.setattr(Native, "groups", watched)
    monkeypatch.setattr("inference.native._WORTH_THREADS", 1000)
    before, drawn = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            run = engine(chains=chains, warmup=150, draws=100, tier="traced")
            drawn.append(fit(normals, {}, run).posterior.unconstrained)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])
    shared = {((0, 32), (32, 53))} if chains == 53 else {((0, 3), (3, 5)), ((0, 2), (2, 4), (4, 5))}
    assert shared < groups


def test_what_repays_threads_is_shared_among_them():
    before = torch.get_num_threads()
    light = Native(0, 2, None, single=1, work=1000)
    heavy = light._replace(work=1_000_000)
    try:
        torch.set_num_threads(4)
        assert light.groups(100, 1000) == [(0, 32), (32, 64), (64, 96), (96, 100)]
        assert light.groups(100, 1) == [(0, 100)]
        assert light.groups(31, 1000) == [(0, 31)]
        assert heavy.groups(6, 1) == [(0, 2), (2, 4), (4, 6)]
        assert heavy.groups(4, 1) == [(0, 1), (1, 2), (2, 3), (3, 4)]
        assert heavy.groups(3, 1) == [(0, 3)]  # which takes four threads itself
        assert heavy._replace(context=1).groups(3, 1) == [(0, 1), (1, 2), (2, 3)]
        assert heavy._replace(single=0).groups(4, 1) == [(0, 4)]
        assert heavy.groups(1, 1) == [(0, 1)]
        assert heavy.groups(0, 1) == [(0, 0)]
    finally:
        torch.set_num_threads(before)


def test_a_block_holds_a_bounded_number_of_transitions(monkeypatch):
    monkeypatch.setattr(nuts_cpu, "_ROOM", 10_000)
    target = with_native(Target(quartic, DIM, tier="traced"), natives.quartic(), monkeypatch)
    noise, x = Noise.seeded(0, 4), torch.zeros(4, DIM).double()
    tuning = Tuning(torch.full((4,), 0.3).double(), torch.ones(DIM).double())
    engine = NUTS()
    state = engine.init(target, x, tuning, engine.randomness(target, noise, 1)[0])
    history = engine.block(target, state, tuning, noise, 0, 10**9).history
    assert 20 < len(history.done) < 40
    assert history.done.sum(0).max() == len(history.done)


def test_chains_of_a_c_function_stop_when_their_time_is_over(monkeypatch):
    natives.serve(monkeypatch, natives.normal(3), 3)
    fit(normals, {}, NUTS(warmup=5, draws=5, tier="traced"))  # what is compiled at a first run
    endless = NUTS(warmup=20, draws=10**8, thin=100, tier="traced")
    fitted = fit(normals, {}, endless, until=Until(seconds=4))
    assert [f.severity for f in fitted.findings if f.name == "seconds"] == ["warning"]
    with pytest.raises(EngineError, match=r"0.2 s were over before .* give more seconds"):
        fit(normals, {}, NUTS(warmup=10**9, tier="traced"), until=Until(seconds=0.2))


@pytest.fixture
def interruptible():
    """Ctrl-C interrupts, though a shell in whose background the tests run lets it be ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_while_a_c_function_is_called_keeps_what_there_is(monkeypatch, interruptible):
    natives.serve(monkeypatch, natives.normal(3), 3)
    own, timers = Recorder.flush, []

    def flush(self):
        own(self)
        if self.draws > 100 and not timers:
            arguments = (os.getpid(), signal.SIGINT)
            timers.append(threading.Timer(0.05, os.kill, arguments))
            timers[0].start()

    monkeypatch.setattr(Recorder, "flush", flush)
    fitted = fit(normals, {}, NUTS(warmup=50, draws=10**6, tier="traced"))
    assert [f.severity for f in fitted.findings if f.name == "interrupted"]
    assert 100 < fitted.posterior.unconstrained.shape[1] < 10**6
