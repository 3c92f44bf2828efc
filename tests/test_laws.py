"""Laws that kernels and adaptation obey exactly, before any moment is looked at."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from inference import HMC, MH, NUTS, Target, nuts_cpu, warmup
from inference.chains import History, Randomness, Tuning
from inference.hmc import Phase, energy, leapfrog
from inference.mh import Independence, Offer, Point, Proposed, metropolis
from inference.nuts import turns
from ppl_models import Noise
from tests import natives

DIM = 3
SCALES = {
    "diagonal": torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64),
    "dense": torch.tensor([[0.5, 0, 0], [0.3, 1.0, 0], [-0.2, 0.4, 2.0]], dtype=torch.float64),
}


def quartic(x):
    """Correlated, skew and light-tailed: nothing about it is special."""
    return -0.25 * (x**4).sum() - 0.5 * (x[0] * x[1] + x[2]) ** 2 + 0.3 * x[1]


@pytest.fixture
def target():
    return Target(quartic, DIM, tier="traced")


def phase_at(target, x):
    return Phase(x, *target.log_density_and_grad(x))


def points(chains=4, seed=0):
    noise = Noise.seeded(seed, chains)
    return noise.fold(0).normal(DIM), noise.fold(1).normal(DIM)


@pytest.mark.parametrize("scale", SCALES)
def test_leapfrog_runs_backwards(target, scale):
    x, momentum = points()
    step = torch.full((4, 1), 0.1, dtype=torch.float64)
    phase, moved = phase_at(target, x), momentum
    for _ in range(20):
        phase, moved = leapfrog(target, phase, moved, step, SCALES[scale])
    moved = -moved
    for _ in range(20):
        phase, moved = leapfrog(target, phase, moved, step, SCALES[scale])
    torch.testing.assert_close(phase.x, x, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(-moved, momentum, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("scale", SCALES)
def test_leapfrog_keeps_volume(target, scale):
    x, momentum = points(1)
    step = torch.full((1, 1), 0.3, dtype=torch.float64)

    def move(z):
        phase = phase_at(target, z[None, :DIM])
        phase, moved = leapfrog(target, phase, z[None, DIM:], step, SCALES[scale])
        return torch.cat([phase.x[0], moved[0]])

    z, h = torch.cat([x[0], momentum[0]]), 1e-5
    columns = [(move(z + h * e) - move(z - h * e)) / (2 * h) for e in torch.eye(2 * DIM).double()]
    assert torch.linalg.det(torch.stack(columns, 1)) == pytest.approx(1, abs=1e-7)


@pytest.mark.parametrize("scale", SCALES)
def test_energy_error_is_of_second_order(target, scale):
    x, momentum = points()
    errors = []
    for number in (32, 64, 128):
        step = torch.full((4, 1), 1.0 / number, dtype=torch.float64)
        phase, moved = phase_at(target, x), momentum
        before = energy(phase.log_density, moved)
        for _ in range(number):
            phase, moved = leapfrog(target, phase, moved, step, SCALES[scale])
        errors.append((energy(phase.log_density, moved) - before).abs().max())
    assert 3 < errors[0] / errors[1] < 5
    assert 3 < errors[1] / errors[2] < 5


def test_metropolis_keeps_detailed_balance():
    # on a ladder of five states the flow from i to j must be the flow back
    log_density = torch.tensor([0.0, -1.0, 0.7, -3.0, 0.2], dtype=torch.float64)
    weight, fine = log_density.exp(), 20_000
    unit = (torch.arange(fine, dtype=torch.float64) + 0.5) / fine
    flow = torch.zeros(5, 5, dtype=torch.float64)
    for i in range(5):
        for j in (i - 1, i + 1):
            if 0 <= j < 5:
                here = Point(torch.full((fine, 1), float(i)), log_density[i].expand(fine))
                there = Point(torch.full((fine, 1), float(j)), log_density[j].expand(fine))
                new, info = metropolis(here, there, there.log_density - here.log_density, unit)
                share = (new.x[:, 0] == j).double().mean()
                assert share == pytest.approx(float(info.acceptance_rate[0]), abs=1e-4)
                flow[i, j] = weight[i] * share
    torch.testing.assert_close(flow, flow.T, rtol=0, atol=1e-3)


def test_metropolis_never_accepts_what_is_not_a_number():
    here = Point(torch.zeros(3, 1), torch.zeros(3))
    there = Point(torch.ones(3, 1), torch.tensor([torch.nan, -torch.inf, torch.inf]))
    new, info = metropolis(here, there, there.log_density, torch.full((3,), 1e-9))
    assert torch.equal(new.x, here.x)
    assert torch.equal(info.acceptance_rate, torch.zeros(3))


def run(engine, target, x, scale, adapting, length=300):
    tuning = Tuning(torch.full((len(x),), 0.35, dtype=torch.float64), SCALES[scale])
    noise = Noise.seeded(5, len(x))
    state = engine.init(target, x, tuning, engine.randomness(target, noise.fold(0), 1)[0])
    averaging = warmup.averaging(tuning.step_size) if adapting else None
    return stepped(engine, target, state, tuning, noise.fold(1), length, averaging)


def stepped(engine, target, state, tuning, noise, length, averaging=None):
    """The dual averaging after so many steps, and each chain's transitions: by name, (n, ...)."""
    blocks, steps = [], 0
    while steps < length:
        block = engine.block(target, state, tuning, noise, steps, length - steps, averaging)
        state, averaging, steps = block.state, block.averaging, steps + block.steps
        if averaging is not None:
            tuning = tuning.stepping(averaging.step_size)
        blocks.append(block.history)
    assert steps == length
    history = History.joined(blocks)
    return averaging, [
        {name: values[:, c][history.done[:, c]] for name, values in history.columns().items()}
        for c in range(history.done.shape[1])
    ]


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("adapting", [False, True])
def test_nuts_in_tensors_and_compiled_give_the_same_draws(
    target, scale, adapting, native, monkeypatch
):
    x, _ = points()
    engine = NUTS()
    with monkeypatch.context() as patch:
        if native:
            density = natives.quartic()
            patch.setattr(target, "native", lambda x: density)
        averaging, compiled = run(engine, target, x, scale, adapting)
    monkeypatch.setattr(nuts_cpu, "usable", lambda device: False)
    expected, tensors = run(engine, target, x, scale, adapting)
    assert sum(len(own["lp"]) for own in tensors) >= 40  # or there was little to compare
    for own, reference in zip(compiled, tensors, strict=True):
        assert list(own) == list(reference)
        for name, values in reference.items():
            torch.testing.assert_close(own[name], values, rtol=1e-7, atol=1e-7, msg=name)
    if adapting:
        torch.testing.assert_close(averaging.log_step, expected.log_step, rtol=1e-7, atol=1e-7)


def recursive(momenta):
    """Whether any aligned stretch of 2^k leaves turns, from the definition."""
    number = len(momenta)
    if number == 1:
        return False
    left, right = momenta[: number // 2], momenta[number // 2 :]
    whole = turns(momenta[0], momenta[-1], momenta.sum(0))
    return recursive(left) or recursive(right) or bool(whole)


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
def test_checkpoints_find_the_turns_of_the_recursive_tree(depth):
    from inference.nuts import _checkpoints, begin

    found = {False: 0, True: 0}
    for seed in range(200):
        noise = Noise.seeded(seed, 1)
        # a drift makes long stretches without a turn
        momenta = noise.normal(2**depth, 2)[0] + torch.tensor([2.0, 0.0], dtype=torch.float64)
        phase = Phase(*(torch.zeros(1, 2), torch.zeros(1), torch.zeros(1, 2)))
        phase = Phase(*(value.double() for value in phase))
        tree = begin(phase, Randomness(momenta[:1], noise.uniform(3)), 10)
        turned, summed = False, torch.zeros(1, 2, dtype=torch.float64)
        for leaf, momentum in enumerate(momenta):
            summed = summed + momentum
            subtree = tree.subtree._replace(momentum=summed)
            tree = tree._replace(leaves=torch.tensor([leaf]))
            momenta_kept, sums, turning = _checkpoints(tree, momentum[None], subtree)
            tree = tree._replace(checkpoint_momentum=momenta_kept, checkpoint_sum=sums)
            turned = turned or bool(turning)
        expected = recursive(momenta)
        assert turned == expected
        found[expected] += 1
    assert min(found.values()) > 0 or depth > 3


@pytest.mark.parametrize("length", [1, 5, 19, 20, 50, 149, 150, 500, 1000, 2000])
def test_windows_add_up_to_the_warm_up(length):
    assert sum(window.length for window in warmup.windows(length)) == length


def test_windows_grow_and_the_last_finds_the_step_size():
    lengths = [window.length for window in warmup.windows(1000)]
    assert lengths == [5, 5, 5, 5, 10, 15, 25, 50, 100, 200, 530, 50]
    assert [w.learns_scale for w in warmup.windows(1000)] == [True] * 11 + [False]
    assert [w.settled for w in warmup.windows(1000)] == [False] * 7 + [True] * 4 + [False]
    assert warmup.windows(0) == []
    warm = [window.length for window in warmup.windows(1000, warm=True)]
    assert warm == [25, 50, 100, 200, 575, 50]


def window(mass, draws):
    done = torch.ones(draws.shape[:2], dtype=torch.bool)
    return warmup.add(warmup.moments(mass, draws[0]), draws, done)


@pytest.mark.parametrize("mass", ["diagonal", "dense"])
def test_a_scale_has_converged_where_draws_confirm_it_and_chains_agree(mass):
    draws = torch.from_numpy(np.random.default_rng(5).normal(size=(100, 4, 3)))
    units = torch.tensor([1e-3, 1.0, 20.0], dtype=torch.float64)
    right = torch.diag(units) if mass == "dense" else units
    assert warmup.converged(right, window(mass, draws * units))
    for factor in (0.5, 2.0):  # in one direction
        other = torch.tensor([1.0, factor, 1.0], dtype=torch.float64)
        assert not warmup.converged(right * other, window(mass, draws * units))
    moved = draws.clone()
    moved[:, 0, 2] += 1.0
    assert not warmup.converged(right, window(mass, moved * units))
    assert not warmup.converged(right, window(mass, draws[:, :1] * units))
    stuck = torch.zeros_like(draws)
    assert not warmup.converged(right, window(mass, stuck))


@pytest.mark.parametrize("mass", ["diagonal", "dense"])
def test_a_scale_shrunk_to_that_before_does_not_depend_on_units(mass):
    draws = torch.from_numpy(np.random.default_rng(4).normal(size=(30, 3, 4)))
    units = torch.tensor([1e-4, 1.0, 1e3, 7.0], dtype=torch.float64)
    done = torch.ones(30, 3, dtype=torch.bool)
    before = torch.diag(units) if mass == "dense" else units

    def found(draws, before):
        state = warmup.add(warmup.moments(mass, draws[0]), draws, done)
        return warmup.scale(state, settled=True, before=before)

    plain = found(draws, before / units)
    scaled = found(draws * units, before)
    torch.testing.assert_close(
        scaled, plain * (units[:, None] if mass == "dense" else units), rtol=1e-10, atol=0
    )


@pytest.mark.parametrize("goal", [0.234, 0.6, 0.8, 0.95])
def test_dual_averaging_reaches_its_target(goal):
    # acceptance exp(-step) times noise: the target is met at step = -log(goal)
    state = warmup.averaging(torch.full((50,), 0.01, dtype=torch.float64))
    done = torch.ones(50, dtype=torch.bool)
    noise = Noise.seeded(1, 50).uniform(2000)
    for t in range(2000):
        acceptance = (-state.step_size * 2 * noise[:, t]).exp()
        state = warmup.update(state, acceptance, done, goal)
    step = warmup.pooled_step(state)[0]
    mean = (-step * 2 * noise).exp().mean()
    assert mean == pytest.approx(goal, abs=0.02)


def test_dual_averaging_moves_only_chains_that_are_done():
    state = warmup.averaging(torch.ones(2, dtype=torch.float64))
    done = torch.tensor([True, False])
    new = warmup.update(state, torch.zeros(2, dtype=torch.float64), done, 0.8)
    for before, after in zip(state, new, strict=True):
        assert after[1] == before[1]
    accepting = warmup.update(state, torch.ones(2, dtype=torch.float64), done, 0.8)
    assert new.log_step[0] < accepting.log_step[0]


def scatter_of(mass, draws, *, settled, cuts=(0, 1, 1, 120, 300), add=warmup.add):
    """S S^T of draws (K, C, D), merged in parts of which some chains lack some draws."""
    state = warmup.moments(mass, draws[0])
    for low, high in itertools.pairwise(cuts):
        done = torch.ones(high - low, draws.shape[1], dtype=torch.bool)
        state = add(state, draws[low:high], done)
        state = add(state, torch.full_like(draws[:1], torch.nan), ~done[:1])
    root = warmup.scale(state, settled=settled)
    return root.square() if mass == "diagonal" else root @ root.T


@pytest.mark.parametrize("mass", ["diagonal", "dense"])
@pytest.mark.parametrize("settled", [False, True])
@pytest.mark.parametrize("add", ["add", "merged"])
def test_moments_merged_in_parts_are_those_of_all_draws(mass, settled, add):
    draws = Noise.seeded(2, 4).normal(300, DIM).transpose(0, 1) * 3 + 7
    rows = (draws - draws.mean(0) if settled else draws).flatten(0, 1)
    covariance = np.cov(rows.numpy().T) * (1199 / 1196 if settled else 1)
    expected = np.diag(covariance) if mass == "diagonal" else covariance
    shrunk = 1200 / 1205 * expected + 1e-3 * 5 / 1205 * (1 if mass == "diagonal" else np.eye(DIM))
    found = scatter_of(mass, draws, settled=settled, add=getattr(warmup, add))
    np.testing.assert_allclose(found.numpy(), shrunk, rtol=1e-9)


@pytest.mark.parametrize("mass", ["diagonal", "dense"])
def test_moments_do_not_depend_on_how_draws_are_cut_to_the_bit(mass):
    draws = Noise.seeded(2, 4).normal(300, DIM).transpose(0, 1) * 3 + 7
    cuts = [(0, 300), (0, 1, 2, 64, 299, 300)]
    one, other = (scatter_of(mass, draws, settled=True, cuts=c) for c in cuts)
    assert torch.equal(one, other)


@pytest.mark.parametrize("mass", ["diagonal", "dense"])
def test_chains_apart_or_on_their_way_do_not_widen_the_scale(mass):
    draws = Noise.seeded(3, 4).normal(300, DIM).transpose(0, 1)
    expected = scatter_of(mass, draws, settled=True)
    apart = draws + torch.tensor([-9.0, 0.0, 5.0, 30.0])[:, None]
    torch.testing.assert_close(scatter_of(mass, apart, settled=True), expected)
    on_its_way = draws.clone()
    on_its_way[:, 2, 0] += torch.linspace(-200, 0, 300)
    others = scatter_of(mass, draws[:, [0, 1, 3]], settled=True)
    torch.testing.assert_close(scatter_of(mass, on_its_way, settled=True), others)
    wide = scatter_of(mass, apart, settled=False)
    assert float(wide.diagonal()[0] if mass == "dense" else wide[0]) > 50


def test_steps_of_hmc_are_reversible_in_distribution_on_a_gaussian():
    # exactly stationary start: the joint law of (x_0, x_1) must be symmetric
    target = Target(lambda x: -0.5 * (x**2).sum(), 1, tier="traced")
    chains = 40_000
    noise = Noise.seeded(9, chains)
    x = noise.fold(0).normal(1)
    engine = HMC(steps=3)
    tuning = Tuning(torch.full((chains,), 0.9, dtype=torch.float64), torch.ones(1).double())
    state = engine.init(target, x, tuning, None)
    numbers = engine.randomness(target, noise.fold(1), 1)[0]
    new, _ = engine.step(target, state, tuning, numbers)
    for f, g in ((1, 2), (1, 3), (2, 4)):
        difference = x**f * new.x**g - x**g * new.x**f
        z = difference.mean() / (difference.std() / chains**0.5)
        assert abs(z) < 4.5


def test_every_move_is_as_likely_as_the_move_back():
    # density at the one point times acceptance of the move, against the same the other way round
    target, scale = Target(quartic, DIM, tier="traced"), SCALES["dense"]
    here, there = points(20, seed=3)
    step = torch.full((20,), 0.7, dtype=torch.float64)
    tuning, walk = (
        Tuning(step, scale),
        torch.linalg.solve(scale, (there - here).T).T / step[:, None],
    )
    log_here, log_there = target.log_density(here), target.log_density(there)
    unit = torch.full((20, 1), 0.5, dtype=torch.float64)

    _, forth = MH().step(target, Point(here, log_here), tuning, Randomness(walk, unit))
    _, back = MH().step(target, Point(there, log_there), tuning, Randomness(-walk, unit))
    flow = log_here + forth.acceptance_rate.log(), log_there + back.acceptance_rate.log()
    torch.testing.assert_close(*flow, rtol=1e-10, atol=1e-10)

    log_q = [-(x - 0.3).abs().sum(-1) for x in (here, there)]
    independence = Independence(proposal=None)
    ends = Proposed(here, log_here, log_q[0]), Proposed(there, log_there, log_q[1])
    _, forth = independence.step(target, ends[0], tuning, Offer(there, log_q[1], unit[:, 0]))
    _, back = independence.step(target, ends[1], tuning, Offer(here, log_q[0], unit[:, 0]))
    flow = (
        log_here + log_q[1] + forth.acceptance_rate.log(),
        log_there + log_q[0] + back.acceptance_rate.log(),
    )
    torch.testing.assert_close(*flow, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("scale", SCALES)
def test_hmc_flows_back_along_the_trajectory_as_much_as_forth(target, scale):
    (x, momentum), engine = points(20, seed=4), HMC(steps=4)
    x, step = x / 2, torch.full((20, 1), 0.2, dtype=torch.float64)
    tuning = Tuning(step[:, 0], SCALES[scale])
    # accepted whatever the rate, and without jitter
    unit = torch.tensor([[1e-300, 0.5]], dtype=torch.float64).expand(20, 2)
    phase, moved = phase_at(target, x), momentum
    for _ in range(4):
        phase, moved = leapfrog(target, phase, moved, step, SCALES[scale])
    there, forth = engine.step(target, phase_at(target, x), tuning, Randomness(momentum, unit))
    again, back = engine.step(target, there, tuning, Randomness(-moved, unit))
    torch.testing.assert_close(there.x, phase.x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(again.x, x, rtol=1e-10, atol=1e-10)
    before = energy(target.log_density(x), momentum)
    after = energy(phase.log_density, moved)
    flow = forth.acceptance_rate.log() - before, back.acceptance_rate.log() - after
    torch.testing.assert_close(*flow, rtol=1e-10, atol=1e-10)


def turned(stretch):
    """Betancourt's criterion on the momenta of a stretch of leaves, from the definition."""
    first, last = stretch[0], stretch[-1]
    inner = sum(stretch[1:-1], (first + last) / 2)
    return bool(inner @ first <= 0) or bool(inner @ last <= 0)


def nuts_by_lists(target, x, tuning, first, numbers, max_depth=10):
    """The draws of one chain, x (1, D), by a NUTS that keeps every leaf and tests every subtree."""
    direction, step, draws = None, tuning.step_size[:1], []

    def begin(phase, numbers):
        momentum = numbers.normal
        return phase, [(phase, momentum)], [0.0], energy(phase.log_density, momentum)

    chosen, tree, weights, start = begin(phase_at(target, x), first)
    direction, subtree, new = first.uniform[0, 2] > 0.5, [], []
    for now in numbers:
        last = subtree[-1] if subtree else tree[-1 if direction else 0]
        signed = (step if direction else -step)[:, None]
        leaf = leapfrog(target, *last, signed, tuning.scale)
        subtree.append(leaf)
        new.append(float(start - energy(leaf[0].log_density, leaf[1])))
        if len(new) == 1 or now.uniform[0, 0].log() < new[-1] - np.logaddexp.reduce(new):
            candidate = leaf[0]
        number = len(subtree)
        sizes = [2**k for k in range(1, max_depth) if number % 2**k == 0]
        failed = new[-1] < -1000 or any(turned([r[0] for _, r in subtree[-k:]]) for k in sizes)
        done = failed
        if not failed and number == len(tree):
            if now.uniform[0, 1].log() < np.logaddexp.reduce(new) - np.logaddexp.reduce(weights):
                chosen = candidate
            tree = [*tree, *subtree] if direction else [*subtree[::-1], *tree]
            weights, subtree, new = weights + new, [], []
            direction = now.uniform[0, 2] > 0.5
            done = len(tree) == 2**max_depth or turned([r[0] for _, r in tree])
        if done:
            draws.append(chosen.x[0])
            chosen, tree, weights, start = begin(chosen, now)
            direction, subtree, new = now.uniform[0, 2] > 0.5, [], []
    return torch.stack(draws)


@pytest.mark.parametrize("max_depth", [2, 10])
@pytest.mark.parametrize("scale", SCALES)
def test_nuts_draws_what_a_plain_one_draws_that_keeps_every_leaf(target, scale, max_depth):
    engine, length = NUTS(max_depth=max_depth), 300
    x, _ = points(2, seed=6)
    tuning = Tuning(torch.full((2,), 0.25, dtype=torch.float64), SCALES[scale])
    noise = Noise.seeded(8, 2)
    first = engine.randomness(target, noise.fold(0), 1)[0]
    numbers: list[Any] = []
    while len(numbers) < length:
        numbers += engine.numbers(target, noise.fold(1), len(numbers), length - len(numbers))
    state = engine.init(target, x, tuning, first)
    _, found = stepped(engine, target, state, tuning, noise.fold(1), length)
    for c in range(2):
        own = [Randomness(n.normal[c : c + 1], n.uniform[c : c + 1]) for n in [first, *numbers]]
        draws = nuts_by_lists(target, x[c : c + 1], tuning, own[0], own[1:], max_depth)
        assert len(draws) >= 15
        torch.testing.assert_close(found[c]["x"], draws, rtol=1e-8, atol=1e-8)


def test_windows_of_every_length_add_up_and_grow():
    for length in range(1, 2001):
        plan = warmup.windows(length)
        assert sum(window.length for window in plan) == length
        assert all(window.length > 0 for window in plan)
        slow = [window.length for window in plan if window.learns_scale]
        assert slow == sorted(slow)
        assert not plan[-1].learns_scale


def test_a_covariance_that_rounding_makes_singular_has_a_factor():
    """As of chains that run away along a ridge of an improper posterior."""
    x = 1e9 * Noise.seeded(3, 1).normal(500, 1)[0]
    root = warmup.scale_of(torch.cat([x, x, -x], 1), "dense")
    expected = 500 / 505 * float(x.var()) * torch.tensor([[1, 1, -1], [1, 1, -1], [-1, -1, 1]])
    torch.testing.assert_close(root @ root.T, expected.double(), rtol=1e-6, atol=0.0)
