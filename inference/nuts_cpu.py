"""NUTS on a CPU: the state of all chains in a few packed arrays, moved by ``nuts_loop``."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from inference import nuts_loop
from inference.chains import Block, History, Randomness, Tuning
from inference.hmc import Phase
from inference.leapfrog_cpu import scale_of
from inference.native import Native
from inference.nuts_loop import (
    LAST_LOG_DENSITY,
    LAST_X,
    LEAF_X,
    STEP_SIZE,
    Record,
    Settings,
    Stream,
)
from inference.target import Target
from inference.warmup import Averaging
from ppl_models.noise import Noise
from ppl_models.threads import each

_ROOM = 1 << 24  # bytes of finished transitions in a block
_NEVER = 1 << 62


class Packed(NamedTuple):
    """The state of all chains; arrays share memory with tensors where torch must read them."""

    vectors: np.ndarray  # (17, C, D)
    scalars: np.ndarray  # (11, C)
    integers: np.ndarray  # (3, C)
    checkpoints: np.ndarray  # (2, C, max_depth, D): momenta, sums

    @property
    def point(self) -> Tensor:
        """Where the density is needed, (C, D): the memory of ``vectors[LEAF_X]``."""
        return torch.from_numpy(self.vectors[LEAF_X])

    @property
    def x(self) -> Tensor:
        return torch.from_numpy(self.vectors[LAST_X].copy())

    @property
    def log_density(self) -> Tensor:
        return torch.from_numpy(self.scalars[LAST_LOG_DENSITY].copy())


def usable(device: torch.device) -> bool:
    """Whether this version serves the device."""
    return device.type == "cpu"


def init(phase: Phase, tuning: Tuning, randomness: Randomness, max_depth: int) -> Packed:
    """The start of a transition at ``phase``, moved to its first leaf."""
    chains, dim = phase.x.shape
    vectors = phase.x.new_zeros(17, chains, dim).numpy()
    state = Packed(
        vectors,
        np.zeros((11, chains)),
        np.zeros((3, chains), dtype=np.int64),
        np.zeros((2, chains, max_depth, dim), dtype=vectors.dtype),
    )
    settings = _settings(tuning, None, None)
    state.scalars[STEP_SIZE] = tuning.step_size.numpy()
    vectors[nuts_loop.TREE_X] = vectors[LAST_X] = phase.x.numpy()
    gradient, root = phase.gradient.numpy(), settings.scale.root
    vectors[nuts_loop.TREE_G] = gradient * root[0] if len(root) == 1 else gradient @ root
    for row in (nuts_loop.TREE_LOG_DENSITY, LAST_LOG_DENSITY):
        state.scalars[row] = phase.log_density.numpy()
    normal, uniform = randomness.normal.contiguous(), randomness.uniform.contiguous()
    nuts_loop.begin_all(state, settings.scale, normal.numpy(), uniform.numpy())
    return state


def block(
    target: Target,
    state: Packed,
    tuning: Tuning,
    noise: Noise,
    first: int,
    most: int,
    averaging: Averaging | None,
    goal: float | None,
    enough: int | None,
) -> Block:
    """Leapfrogs of every chain; see ``Sampler.block``. The state is changed in place."""
    point = state.point
    chains = len(point)
    enough = most * chains if enough is None else enough
    settings = _settings(tuning, averaging, goal)
    if averaging is None:  # else the state's are those of the averaging, unrounded
        state.scalars[STEP_SIZE] = tuning.step_size.numpy()
    record = _record(state, most, enough)
    native = target.native(point)
    if native is not None:
        steps = _steps(native, state, noise, settings, record, first, most, enough)
    else:
        evaluate, steps, over, stream = target.evaluator(point), 0, False, _stream(noise, 0, chains)
        while steps < most and not over:
            value, gradient = (part.contiguous().numpy() for part in evaluate(point))
            given = 0, 0, value, gradient, state, stream, settings, record, 0
            _, over = nuts_loop.run(*given, first + steps, 1, enough)
            steps += 1
    if averaging is not None and goal is not None:
        averaging = Averaging(*(torch.from_numpy(row) for row in settings.average))
    return Block(state, averaging, _history(record), steps)


def _steps(
    native: Native, state: Packed, noise: Noise, settings: Settings, record: Record, first: int,
    most: int, enough: int,
) -> int:  # fmt: skip
    """Steps around a C function, as many as limits allow, in place.

    As long as none can be met, threads take groups of chains: what one does depends on its own
    numbers alone.
    """
    chains, taken = len(state.point), 0

    def run(group: _Group, context: int, number: int, enough: int) -> int:
        given = native.address, context, *group.room, group.state, group.stream
        limits = first + taken, number, enough
        return nuts_loop.run(*given, group.settings, record, group.low, *limits)[0]

    def sure() -> int:
        """Steps that meet no limit: each ends one transition of a chain at most."""
        rows = len(record.x) - 1 - int(record.made.max())
        return min((enough - 1 - int(record.made.sum())) // chains, rows, most - taken)

    groups = native.groups(chains, sure())
    if len(groups) > 1:
        parts = [_part(state, noise, settings, low, high) for low, high in groups]
        while (number := sure()) >= native.repaid(chains):
            each(lambda k: run(parts[k], native.single, number, _NEVER), len(parts), len(parts))
            taken += number
        for part in parts:
            part.put_back(state, settings)
    if taken == most:
        return taken
    whole = _Group(state, settings, _stream(noise, 0, chains), _room(state.point), 0)
    return taken + run(whole, native.context, most - taken, enough)


class _Group(NamedTuple):
    """Some chains, in memory of their own: two threads that write to one line of it wait."""

    state: Packed
    settings: Settings
    stream: Stream
    room: tuple[np.ndarray, np.ndarray]
    low: int  # the first of them

    def put_back(self, state: Packed, settings: Settings) -> None:
        """Where they are now, among all."""
        pairs = [*zip(state, self.state, strict=True), (settings.average, self.settings.average)]
        for of_all, own in pairs:
            of_all[:, self.low : self.low + own.shape[1]] = own


def _part(state: Packed, noise: Noise, settings: Settings, low: int, high: int) -> _Group:
    own = Packed(*(part[:, low:high].copy() for part in state))
    average = settings.average[:, low:high].copy()
    stream = _stream(noise, low, high)
    return _Group(own, settings._replace(average=average), stream, _room(own.point), low)


def _room(point: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """For the density and its gradient."""
    return torch.empty_like(point[:, 0]).numpy(), torch.empty_like(point).numpy()


def _settings(tuning: Tuning, averaging: Averaging | None, goal: float | None) -> Settings:
    if averaging is None or goal is None:
        return Settings(scale_of(tuning.scale), np.zeros((5, 0)), 0.0)
    average = torch.stack(averaging).numpy()
    return Settings(scale_of(tuning.scale), average, goal)


def _stream(noise: Noise, low: int, high: int) -> Stream:
    bits = 32 if noise.dtype == torch.float64 else 23
    key = noise.key[low:high].contiguous().numpy().view(np.uint64)
    keys = np.empty((len(key), 4), dtype=np.uint64)
    return Stream(key, np.zeros(3, dtype=np.int64), keys, bits)


def _record(state: Packed, most: int, enough: int) -> Record:
    """Room for the transitions of a block: no more than there can be, and bounded."""
    _, chains, dim = state.vectors.shape
    fitting = _ROOM // (chains * (state.vectors.itemsize * dim + 56))
    rows = max(1, min(most, enough, fitting))
    x = np.empty((rows, chains, dim), dtype=state.vectors.dtype)
    reals, integers = np.empty((3, rows, chains)), np.empty((4, rows, chains), dtype=np.int64)
    return Record(np.zeros(chains, dtype=np.int64), x, reals, integers)


def _history(record: Record) -> History:
    """The rows that some chain has filled."""
    rows = int(record.made.max())
    done = np.arange(rows)[:, None] < record.made
    x, reals, integers = (
        torch.from_numpy(part) for part in (record.x[:rows], record.reals, record.integers)
    )
    log_density, energy, rate = reals[:, :rows]
    diverging, depth, steps, over = integers[:, :rows]
    return History(
        x,
        log_density,
        torch.from_numpy(done),
        rate,
        {
            "energy": energy,
            "diverging": diverging > 0,
            "tree_depth": depth,
            "n_steps": steps,
            "reached_max_depth": over > 0,
        },
    )
