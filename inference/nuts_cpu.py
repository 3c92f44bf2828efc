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

_ROOM = 1 << 24  # bytes of finished transitions in a block


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
    settings, stream = _settings(tuning, averaging, goal), _stream(noise)
    if averaging is None:  # else the state's are those of the averaging, unrounded
        state.scalars[STEP_SIZE] = tuning.step_size.numpy()
    record = _record(state, most, enough)
    given = state, stream, settings, record
    native = target.native(point)
    if native is not None:
        leaf = state.vectors[LEAF_X]
        room = np.empty_like(leaf[:, 0]), np.empty_like(leaf)
        steps, _ = nuts_loop.run(native.address, native.context, *room, *given, first, most, enough)
    else:
        evaluate, steps, over = target.evaluator(point), 0, False
        while steps < most and not over:
            value, gradient = (part.contiguous().numpy() for part in evaluate(point))
            _, over = nuts_loop.run(0, 0, value, gradient, *given, first + steps, 1, enough)
            steps += 1
    if averaging is not None and goal is not None:
        averaging = Averaging(*(torch.from_numpy(row) for row in settings.average))
    return Block(state, averaging, _history(record), steps)


def _settings(tuning: Tuning, averaging: Averaging | None, goal: float | None) -> Settings:
    if averaging is None or goal is None:
        return Settings(scale_of(tuning.scale), np.zeros((5, 0)), 0.0)
    average = np.stack([row.numpy() for row in averaging])
    return Settings(scale_of(tuning.scale), average, goal)


def _stream(noise: Noise) -> Stream:
    bits = 32 if noise.dtype == torch.float64 else 23
    key = noise.key.contiguous().numpy().view(np.uint64)
    keys = np.empty((noise.chains, 4), dtype=np.uint64)
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
