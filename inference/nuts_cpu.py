"""The bookkeeping of ``nuts.NUTS.step`` for the CPU, compiled by numba, one pass over the chains.

The same arithmetic on the same random numbers as the tensor version, which is its reference. State
lives in a few packed arrays, changed in place: one row per quantity, named below. The point handed
to the gradient has already moved: a call ends one leapfrog and begins the next.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

from inference.hmc import DIVERGENCE, Phase
from inference.sampling import History, Randomness, Tuning
from inference.target import Target
from inference.warmup import _DECAY, _SHRINKAGE, _STABILISATION, Averaging

# rows of the vectors (row, C, D); gradients are whitened
(POINT, MOMENTUM, LEFT_X, LEFT_R, LEFT_G, RIGHT_X, RIGHT_R, RIGHT_G,
 TREE_X, TREE_G, TREE_SUM, SUB_X, SUB_G, SUB_SUM, LAST_X) = range(15)  # fmt: skip
# rows of the scalars (row, C)
(ENERGY, TREE_WEIGHT, TREE_LOG_DENSITY, TREE_ENERGY, SUB_WEIGHT, SUB_LOG_DENSITY, SUB_ENERGY,
 ACCEPTANCE, DIRECTION, LAST_LOG_DENSITY) = range(10)  # fmt: skip
# rows of the integers (row, C)
DEPTH, LEAVES, STEPS = range(3)
# rows of the statistics (row, C) and their names
ENERGY_STAT, DIVERGING, TREE_DEPTH, N_STEPS, REACHED, RATE, DONE = range(7)


class Packed(NamedTuple):
    """The state of all chains; arrays share memory with tensors where torch must read them."""

    vectors: np.ndarray  # (15, C, D)
    scalars: np.ndarray  # (10, C)
    integers: np.ndarray  # (3, C)
    checkpoints: np.ndarray  # (2, C, max_depth, D): momenta, sums

    @property
    def point(self) -> Tensor:
        """Where the density is needed, (C, D): the memory of ``vectors[POINT]``."""
        return torch.from_numpy(self.vectors[POINT])

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
    vectors = phase.x.new_zeros(15, chains, dim).numpy()
    state = Packed(
        vectors,
        np.zeros((10, chains)),
        np.zeros((3, chains), dtype=np.int64),
        np.zeros((2, chains, max_depth, dim), dtype=vectors.dtype),
    )
    scale = _scale(tuning)
    vectors[TREE_X] = vectors[LAST_X] = phase.x.numpy()
    gradient = phase.gradient.numpy()
    vectors[TREE_G] = gradient * scale[0] if len(scale) == 1 else gradient @ scale
    state.scalars[TREE_LOG_DENSITY] = state.scalars[LAST_LOG_DENSITY] = phase.log_density.numpy()
    _begin_all(
        vectors, state.scalars, state.integers, randomness.normal.numpy(),
        randomness.uniform.numpy(), tuning.step_size.numpy().astype(np.float64), scale,
    )  # fmt: skip
    return state


def block(
    target: Target,
    state: Packed,
    tuning: Tuning,
    randomness: list[Randomness],
    averaging: Averaging | None,
    goal: float | None,
) -> tuple[Packed, Averaging | None, History]:
    """As many leapfrogs of every chain as there are ``randomness``."""
    point = state.point
    length, (chains, dim) = len(randomness), point.shape
    x = point.new_empty(length, chains, dim)
    log_density = np.empty((length, chains))
    statistics = np.zeros((7, length, chains))
    step = tuning.step_size.numpy().astype(np.float64)
    average = np.zeros((5, 0)) if averaging is None or goal is None else _pack(averaging)
    scale, positions = _scale(tuning), x.numpy()
    normal = torch.stack([r.normal for r in randomness]).numpy()
    uniform = torch.stack([r.uniform for r in randomness]).numpy()
    evaluate = target.evaluator(point)
    for k in range(length):
        value, gradient = evaluate(point)
        _advance(
            state.vectors, state.scalars, state.integers, state.checkpoints, value.numpy(),
            gradient.numpy(), normal[k], uniform[k], step, scale, average, goal or 0.0,
            positions[k], log_density[k], statistics[:, k],
        )  # fmt: skip
    if averaging is not None and goal is not None:
        averaging = Averaging(*(torch.from_numpy(row).to(averaging.error) for row in average))
    history = History(
        x,
        torch.from_numpy(log_density),
        torch.from_numpy(statistics[DONE] > 0),
        torch.from_numpy(statistics[RATE]),
        {
            "energy": torch.from_numpy(statistics[ENERGY_STAT]),
            "diverging": torch.from_numpy(statistics[DIVERGING] > 0),
            "tree_depth": torch.from_numpy(statistics[TREE_DEPTH].astype(np.int64)),
            "n_steps": torch.from_numpy(statistics[N_STEPS].astype(np.int64)),
            "reached_max_depth": torch.from_numpy(statistics[REACHED] > 0),
        },
    )
    return state, averaging, history


def _scale(tuning: Tuning) -> np.ndarray:
    """S as a matrix, (1, D) where it is diagonal."""
    scale = tuning.scale.numpy()
    return np.ascontiguousarray(scale[None] if scale.ndim == 1 else scale)


def _pack(averaging: Averaging) -> np.ndarray:
    return np.stack([row.numpy().astype(np.float64) for row in averaging])


@njit(cache=True, nogil=True, error_model="numpy")
def _add_exp(a: float, b: float) -> float:
    """log(exp(a) + exp(b)), minus infinity where both are."""
    high, low = max(a, b), min(a, b)
    return high if low == -np.inf else high + np.log1p(np.exp(low - high))


@njit(cache=True, nogil=True, error_model="numpy")
def _turns(left: Any, right: Any, summed: Any) -> bool:
    to_left = to_right = 0.0
    for i in range(len(left)):
        middle = summed[i] - 0.5 * (left[i] + right[i])
        to_left += middle * left[i]
        to_right += middle * right[i]
    return to_left <= 0 or to_right <= 0


@njit(cache=True, nogil=True, error_model="numpy")
def _turns_since(checkpoints: Any, c: int, level: int, right: Any, total: Any) -> bool:
    """The criterion on the stretch from a checkpoint to the present leaf."""
    to_left = to_right = 0.0
    for i in range(len(right)):
        left = checkpoints[0, c, level, i]
        summed = total[i] - checkpoints[1, c, level, i] + left
        middle = summed - 0.5 * (left + right[i])
        to_left += middle * left
        to_right += middle * right[i]
    return to_left <= 0 or to_right <= 0


@njit(cache=True, nogil=True, error_model="numpy")
def _move(
    vectors: Any, c: int, x: Any, momentum: Any, gradient: Any, eps: float, scale: Any
) -> None:
    """Half a kick and a drift of chain ``c`` from (x, momentum)."""
    dim = len(x)
    r = vectors[MOMENTUM, c]
    for i in range(dim):
        r[i] = momentum[i] + 0.5 * eps * gradient[i]
    for i in range(dim):
        drift = 0.0
        if len(scale) == 1:
            drift = scale[0, i] * r[i]
        else:
            for j in range(i + 1):  # a Cholesky factor
                drift += scale[i, j] * r[j]
        vectors[POINT, c, i] = x[i] + eps * drift


@njit(cache=True, nogil=True, error_model="numpy")
def _begin(
    vectors: Any, scalars: Any, integers: Any, c: int, normal: Any, uniform: Any,
    step: Any, scale: Any,
) -> None:  # fmt: skip
    """Start a transition of chain ``c`` at the tree's choice."""
    kinetic = 0.0
    for i in range(vectors.shape[2]):
        kinetic += normal[i] * normal[i]
        vectors[LEFT_X, c, i] = vectors[RIGHT_X, c, i] = vectors[TREE_X, c, i]
        vectors[LEFT_G, c, i] = vectors[RIGHT_G, c, i] = vectors[TREE_G, c, i]
        vectors[LEFT_R, c, i] = vectors[RIGHT_R, c, i] = vectors[TREE_SUM, c, i] = normal[i]
    energy = 0.5 * kinetic - scalars[TREE_LOG_DENSITY, c]
    scalars[ENERGY, c] = scalars[TREE_ENERGY, c] = energy
    scalars[TREE_WEIGHT, c] = scalars[ACCEPTANCE, c] = 0.0
    integers[DEPTH, c] = integers[LEAVES, c] = integers[STEPS, c] = 0
    scalars[DIRECTION, c] = 1.0 if uniform[2] > 0.5 else -1.0
    eps = scalars[DIRECTION, c] * step[c]
    _move(vectors, c, vectors[TREE_X, c], normal, vectors[TREE_G, c], eps, scale)


@njit(cache=True, nogil=True, error_model="numpy")
def _begin_all(
    vectors: Any, scalars: Any, integers: Any, normal: Any, uniform: Any, step: Any, scale: Any
) -> None:
    for c in range(vectors.shape[1]):
        _begin(vectors, scalars, integers, c, normal[c], uniform[c], step, scale)


@njit(cache=True, nogil=True, error_model="numpy")
def _advance(
    vectors: Any, scalars: Any, integers: Any, checkpoints: Any, value: Any, gradient: Any,
    normal: Any, uniform: Any, step: Any, scale: Any, average: Any, goal: float,
    positions: Any, log_density: Any, statistics: Any,
) -> None:  # fmt: skip
    """End the leapfrog of every chain, do what it completes, and begin the next one."""
    _, chains, dim = vectors.shape
    max_depth = checkpoints.shape[2]
    slope = np.empty(dim, dtype=vectors.dtype)
    for c in range(chains):
        eps = scalars[DIRECTION, c] * step[c]
        r = vectors[MOMENTUM, c]
        kinetic = 0.0
        for i in range(dim):
            if len(scale) == 1:
                slope[i] = scale[0, i] * gradient[c, i]
            else:
                total = 0.0
                for j in range(i, dim):
                    total += scale[j, i] * gradient[c, j]
                slope[i] = total
            r[i] += 0.5 * eps * slope[i]
            kinetic += r[i] * r[i]
        energy = 0.5 * kinetic - value[c]
        weight = scalars[ENERGY, c] - energy
        if not np.isfinite(weight):
            weight = -np.inf
        diverging = weight < -DIVERGENCE
        scalars[ACCEPTANCE, c] += np.exp(min(weight, 0.0))
        integers[STEPS, c] += 1

        # the leaf joins the subtree
        n = integers[LEAVES, c]
        old = scalars[SUB_WEIGHT, c] if n > 0 else -np.inf
        joint = _add_exp(old, weight)
        scalars[SUB_WEIGHT, c] = old if diverging else joint
        if not diverging and (n == 0 or np.log(uniform[c, 0]) < weight - joint):
            for i in range(dim):
                vectors[SUB_X, c, i] = vectors[POINT, c, i]
                vectors[SUB_G, c, i] = slope[i]
            scalars[SUB_LOG_DENSITY, c] = value[c]
            scalars[SUB_ENERGY, c] = energy
        for i in range(dim):
            vectors[SUB_SUM, c, i] = r[i] + (vectors[SUB_SUM, c, i] if n > 0 else 0.0)

        # a U-turn within the subtree: see nuts._checkpoints
        last, rest = 0, n >> 1
        while rest > 0:
            last += rest & 1
            rest >>= 1
        turning = False
        if n & 1 == 0:
            for i in range(dim):
                checkpoints[0, c, last, i] = r[i]
                checkpoints[1, c, last, i] = vectors[SUB_SUM, c, i]
        else:
            level, rest = last, n
            while rest & 1 and not turning:
                turning = _turns_since(checkpoints, c, level, r, vectors[SUB_SUM, c])
                level -= 1
                rest >>= 1
        integers[LEAVES, c] = n + 1
        failed = diverging or turning

        # a whole subtree joins the tree
        done = failed
        whole = not failed and n + 1 == 1 << integers[DEPTH, c]
        over = False
        if whole:
            end_x, end_r, end_g = LEFT_X, LEFT_R, LEFT_G
            if scalars[DIRECTION, c] > 0:
                end_x, end_r, end_g = RIGHT_X, RIGHT_R, RIGHT_G
            better = np.log(uniform[c, 1]) < scalars[SUB_WEIGHT, c] - scalars[TREE_WEIGHT, c]
            for i in range(dim):
                vectors[end_x, c, i] = vectors[POINT, c, i]
                vectors[end_r, c, i] = r[i]
                vectors[end_g, c, i] = slope[i]
                if better:
                    vectors[TREE_X, c, i] = vectors[SUB_X, c, i]
                    vectors[TREE_G, c, i] = vectors[SUB_G, c, i]
                vectors[TREE_SUM, c, i] += vectors[SUB_SUM, c, i]
            if better:
                scalars[TREE_LOG_DENSITY, c] = scalars[SUB_LOG_DENSITY, c]
                scalars[TREE_ENERGY, c] = scalars[SUB_ENERGY, c]
            scalars[TREE_WEIGHT, c] = _add_exp(scalars[TREE_WEIGHT, c], scalars[SUB_WEIGHT, c])
            integers[DEPTH, c] += 1
            over = integers[DEPTH, c] >= max_depth
            done = over or _turns(vectors[LEFT_R, c], vectors[RIGHT_R, c], vectors[TREE_SUM, c])

        rate = scalars[ACCEPTANCE, c] / integers[STEPS, c]
        statistics[ENERGY_STAT, c] = scalars[TREE_ENERGY, c]
        statistics[DIVERGING, c] = diverging
        statistics[TREE_DEPTH, c] = integers[DEPTH, c] + failed
        statistics[N_STEPS, c] = integers[STEPS, c]
        statistics[REACHED, c] = over
        statistics[RATE, c] = rate
        statistics[DONE, c] = done
        if done:
            for i in range(dim):
                vectors[LAST_X, c, i] = vectors[TREE_X, c, i]
            scalars[LAST_LOG_DENSITY, c] = scalars[TREE_LOG_DENSITY, c]
            if average.shape[1] > 0:
                _average(average, c, rate, goal)
                step[c] = np.exp(average[0, c])
            _begin(vectors, scalars, integers, c, normal[c], uniform[c], step, scale)
        elif whole:
            integers[LEAVES, c] = 0
            scalars[DIRECTION, c] = 1.0 if uniform[c, 2] > 0.5 else -1.0
            eps = scalars[DIRECTION, c] * step[c]
            if scalars[DIRECTION, c] > 0:
                _move(
                    vectors,
                    c,
                    vectors[RIGHT_X, c],
                    vectors[RIGHT_R, c],
                    vectors[RIGHT_G, c],
                    eps,
                    scale,
                )
            else:
                _move(
                    vectors,
                    c,
                    vectors[LEFT_X, c],
                    vectors[LEFT_R, c],
                    vectors[LEFT_G, c],
                    eps,
                    scale,
                )
        else:
            _move(vectors, c, vectors[POINT, c], r, slope, eps, scale)
        for i in range(dim):
            positions[c, i] = vectors[LAST_X, c, i]
        log_density[c] = scalars[LAST_LOG_DENSITY, c]


@njit(cache=True, nogil=True, error_model="numpy")
def _average(average: Any, c: int, rate: float, goal: float) -> None:
    """``warmup.update`` for one chain; rows as in ``warmup.Averaging``."""
    average[3, c] += 1
    weight = 1 / (average[3, c] + _STABILISATION)
    average[2, c] = (1 - weight) * average[2, c] + weight * (goal - rate)
    average[0, c] = average[4, c] - np.sqrt(average[3, c]) / _SHRINKAGE * average[2, c]
    weight = average[3, c] ** -_DECAY
    average[1, c] = weight * average[0, c] + (1 - weight) * average[1, c]
