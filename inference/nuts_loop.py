"""The bookkeeping of ``nuts.NUTS.step`` for the CPU, compiled by numba, one pass over the chains.

The same arithmetic on the same random numbers as the tensor version, which is its reference. The
point handed to the gradient has already moved: a step ends one leapfrog of every chain, does what
it completes, and begins the next. ``run`` goes on without Python where the gradient is a C
function.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from inference.hmc import DIVERGENCE
from inference.leapfrog_cpu import drift, whiten
from inference.native import evaluate
from inference.warmup_cpu import average
from ppl_models.loops import compiled, inlined
from ppl_models.noise_cpu import block_of, folded, normals, uniform

# rows of the vectors (row, C, D): points, whitened momenta, whitened gradients
(LEAF_X, LEAF_R, LEAF_G, LEFT_X, LEFT_R, LEFT_G, RIGHT_X, RIGHT_R, RIGHT_G,
 TREE_X, TREE_G, TREE_SUM, SUB_X, SUB_G, SUB_SUM, LAST_X, WORK) = range(17)  # fmt: skip
# rows of the scalars (row, C)
(ENERGY, TREE_WEIGHT, TREE_LOG_DENSITY, TREE_ENERGY, SUB_WEIGHT, SUB_LOG_DENSITY, SUB_ENERGY,
 ACCEPTANCE, DIRECTION, STEP_SIZE, LAST_LOG_DENSITY) = range(11)  # fmt: skip
# rows of the integers (row, C)
DEPTH, LEAVES, STEPS = range(3)


class Stream(NamedTuple):
    """Random numbers of each step, made where they are needed."""

    key: np.ndarray  # (C, 2) of the noise
    block: np.ndarray  # (3,) the block of steps that ``keys`` are of; see ``block_of``
    keys: np.ndarray  # (C, 4) of its normal and of its uniform numbers
    bits: int


class Settings(NamedTuple):
    """What a block of steps is made with."""

    scale: Any  # a ``leapfrog_cpu.Scale``
    average: np.ndarray  # (5, C) dual averaging; (5, 0) if nothing adapts
    goal: float  # of the acceptance rate


class Record(NamedTuple):
    """The transitions that were finished: row n is the n-th of each chain."""

    made: np.ndarray  # (C,) how many there are
    x: np.ndarray  # (K, C, D)
    reals: np.ndarray  # (3, K, C): log density, energy, acceptance rate
    integers: np.ndarray  # (4, K, C): diverging, depth, steps, whether the depth was the largest


@compiled
def run(
    address: int, context: int, value: Any, gradient: Any, state: Any, stream: Any, settings: Any,
    record: Any, low: int, first: int, most: int, enough: int,
) -> Any:  # fmt: skip
    """End a leapfrog of every chain and begin the next one, so many times.

    The density and its gradient are by the C function at ``address``; without one, 0, they are
    those given, for a single time. Steps from number ``first`` on end after ``most``, with
    ``enough`` transitions of all chains together, or where a chain has filled its rows: how many
    there were, and whether these limits were met. The chains are those from ``low`` on of the
    record.
    """
    point = state.vectors.ctypes.data  # of its first row, LEAF_X
    for step in range(first, first + most):
        if address != 0:
            evaluate(address, len(value), point, value.ctypes.data, gradient.ctypes.data, context)
        finished = _advance(value, gradient, state, stream, settings, record, low, step)
        if finished and _over(record, enough):
            return step + 1 - first, True
    return most, False


@compiled
def _advance(
    value: Any, gradient: Any, state: Any, stream: Any, settings: Any, record: Any, low: int,
    step: int,
) -> bool:  # fmt: skip
    """The same once; whether a chain has finished a transition."""
    vectors, scalars, integers = state.vectors, state.scalars, state.integers
    _, chains, dim = vectors.shape
    max_depth = state.checkpoints.shape[2]
    slope = vectors[LEAF_G]
    _turn_to(stream, step)
    own = 3 * (step - stream.block[1])  # the first of the step's uniform numbers
    finished = False
    for c in range(chains):
        eps = scalars[DIRECTION, c] * scalars[STEP_SIZE, c]
        whiten(settings.scale, gradient, c, slope)
        kinetic = 0.0
        for i in range(dim):
            vectors[LEAF_R, c, i] += 0.5 * eps * slope[c, i]
            kinetic += vectors[LEAF_R, c, i] * vectors[LEAF_R, c, i]
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
        if not diverging and (n == 0 or np.log(_uniform(stream, c, own)) < weight - joint):
            for i in range(dim):
                vectors[SUB_X, c, i] = vectors[LEAF_X, c, i]
                vectors[SUB_G, c, i] = slope[c, i]
            scalars[SUB_LOG_DENSITY, c] = value[c]
            scalars[SUB_ENERGY, c] = energy
        for i in range(dim):
            before = vectors[SUB_SUM, c, i] if n > 0 else 0.0
            vectors[SUB_SUM, c, i] = before + vectors[LEAF_R, c, i]
        turning = _checkpoint(vectors, state.checkpoints, c, n)
        integers[LEAVES, c] = n + 1
        failed = diverging or turning

        # a whole subtree joins the tree
        done, over = failed, False
        whole = not failed and n + 1 == 1 << integers[DEPTH, c]
        if whole:
            gain = scalars[SUB_WEIGHT, c] - scalars[TREE_WEIGHT, c]
            _join(state, c, np.log(_uniform(stream, c, own + 1)) < gain)
            over = integers[DEPTH, c] >= max_depth
            done = over or _turns(vectors, c)

        # what comes next
        end = LEAF_X
        if done:
            finished = True
            rate = scalars[ACCEPTANCE, c] / integers[STEPS, c]
            _keep(state, record, low, c, rate, diverging, failed, over)
            if settings.average.shape[1] > 0:
                scalars[STEP_SIZE, c] = average(settings.average, c, rate, settings.goal)
            _momentum(stream, step, c, vectors[TREE_SUM, c])
            begin(state, c)
        if done or whole:
            right = _uniform(stream, c, own + 2) > 0.5
            scalars[DIRECTION, c] = 1.0 if right else -1.0
            integers[LEAVES, c] = 0
            end = RIGHT_X if right else LEFT_X
        _move(state, settings.scale, c, end)
    return finished


@compiled
def begin(state: Any, c: int) -> None:
    """Start a transition of a chain at the tree's choice, with the momentum in its sum."""
    vectors, scalars, integers = state.vectors, state.scalars, state.integers
    kinetic = 0.0
    for i in range(vectors.shape[2]):
        momentum = vectors[TREE_SUM, c, i]
        kinetic += momentum * momentum
        vectors[LEFT_X, c, i] = vectors[RIGHT_X, c, i] = vectors[TREE_X, c, i]
        vectors[LEFT_G, c, i] = vectors[RIGHT_G, c, i] = vectors[TREE_G, c, i]
        vectors[LEFT_R, c, i] = vectors[RIGHT_R, c, i] = momentum
    energy = 0.5 * kinetic - scalars[TREE_LOG_DENSITY, c]
    scalars[ENERGY, c] = scalars[TREE_ENERGY, c] = energy
    scalars[TREE_WEIGHT, c] = scalars[ACCEPTANCE, c] = 0.0
    integers[DEPTH, c] = integers[STEPS, c] = 0


@inlined
def _over(record: Any, enough: int) -> bool:
    """Whether there are enough transitions, or a chain has no room for more."""
    total = most = 0
    for made in record.made:
        total, most = total + made, max(most, made)
    return total >= enough or most == len(record.x)


@compiled
def begin_all(state: Any, scale: Any, normal: Any, uniform: Any) -> None:
    """Start a transition of every chain, with the random numbers (C, D) and (C, 3)."""
    for c in range(len(normal)):
        for i in range(normal.shape[1]):
            state.vectors[TREE_SUM, c, i] = normal[c, i]
        begin(state, c)
        state.scalars[DIRECTION, c] = 1.0 if uniform[c, 2] > 0.5 else -1.0
        _move(state, scale, c, LEFT_X)


@inlined
def _move(state: Any, scale: Any, c: int, end: int) -> None:
    """Half a kick and a drift from an end of the tree, or from its newest leaf."""
    vectors = state.vectors
    eps = state.scalars[DIRECTION, c] * state.scalars[STEP_SIZE, c]
    for i in range(vectors.shape[2]):
        vectors[LEAF_R, c, i] = vectors[end + 1, c, i] + 0.5 * eps * vectors[end + 2, c, i]
    drift(scale, vectors[LEAF_R], c, eps, vectors[end], vectors[LEAF_X], vectors[WORK])


@compiled
def _join(state: Any, c: int, better: bool) -> None:
    """The whole subtree joins the tree; its choice is the tree's if that is ``better``."""
    vectors, scalars = state.vectors, state.scalars
    end = RIGHT_X if scalars[DIRECTION, c] > 0 else LEFT_X
    for i in range(vectors.shape[2]):
        vectors[end, c, i] = vectors[LEAF_X, c, i]
        vectors[end + 1, c, i] = vectors[LEAF_R, c, i]
        vectors[end + 2, c, i] = vectors[LEAF_G, c, i]
        if better:
            vectors[TREE_X, c, i] = vectors[SUB_X, c, i]
            vectors[TREE_G, c, i] = vectors[SUB_G, c, i]
        vectors[TREE_SUM, c, i] += vectors[SUB_SUM, c, i]
    if better:
        scalars[TREE_LOG_DENSITY, c] = scalars[SUB_LOG_DENSITY, c]
        scalars[TREE_ENERGY, c] = scalars[SUB_ENERGY, c]
    scalars[TREE_WEIGHT, c] = _add_exp(scalars[TREE_WEIGHT, c], scalars[SUB_WEIGHT, c])
    state.integers[DEPTH, c] += 1


@compiled
def _keep(
    state: Any, record: Any, low: int, c: int, rate: float, diverging: bool, failed: bool,
    over: bool,
) -> None:  # fmt: skip
    """Record the transition that a chain has finished."""
    vectors, scalars, at = state.vectors, state.scalars, low + c
    row = record.made[at]
    for i in range(vectors.shape[2]):
        vectors[LAST_X, c, i] = record.x[row, at, i] = vectors[TREE_X, c, i]
    scalars[LAST_LOG_DENSITY, c] = record.reals[0, row, at] = scalars[TREE_LOG_DENSITY, c]
    record.reals[1, row, at] = scalars[TREE_ENERGY, c]
    record.reals[2, row, at] = rate
    record.integers[0, row, at] = diverging
    record.integers[1, row, at] = state.integers[DEPTH, c] + failed
    record.integers[2, row, at] = state.integers[STEPS, c]
    record.integers[3, row, at] = over
    record.made[at] = row + 1


@compiled
def _checkpoint(vectors: Any, checkpoints: Any, c: int, n: int) -> bool:
    """Store leaf n if it is even, else whether its subtrees turn: see ``nuts._checkpoints``."""
    dim = vectors.shape[2]
    level, rest = 0, n >> 1
    while rest > 0:
        level += rest & 1
        rest >>= 1
    if n & 1 == 0:
        for i in range(dim):
            checkpoints[0, c, level, i] = vectors[LEAF_R, c, i]
            checkpoints[1, c, level, i] = vectors[SUB_SUM, c, i]
        return False
    while n & 1:
        to_left = to_right = 0.0
        for i in range(dim):
            left, right = checkpoints[0, c, level, i], vectors[LEAF_R, c, i]
            summed = vectors[SUB_SUM, c, i] - checkpoints[1, c, level, i] + left
            middle = summed - 0.5 * (left + right)
            to_left += middle * left
            to_right += middle * right
        if to_left <= 0 or to_right <= 0:
            return True
        level -= 1
        n >>= 1
    return False


@compiled
def _turns(vectors: Any, c: int) -> bool:
    """``nuts.turns`` of the whole tree."""
    to_left = to_right = 0.0
    for i in range(vectors.shape[2]):
        left, right = vectors[LEFT_R, c, i], vectors[RIGHT_R, c, i]
        middle = vectors[TREE_SUM, c, i] - 0.5 * (left + right)
        to_left += middle * left
        to_right += middle * right
    return to_left <= 0 or to_right <= 0


@compiled
def _add_exp(a: float, b: float) -> float:
    """log(exp(a) + exp(b)), minus infinity where both are."""
    high, low = max(a, b), min(a, b)
    return high if low == -np.inf else high + np.log1p(np.exp(low - high))


@compiled
def _turn_to(stream: Any, step: int) -> None:
    """Have the keys of the block that a step is in."""
    number, start, length = block_of(step)
    if stream.block[2] == length and stream.block[1] == start:
        return
    stream.block[0], stream.block[1], stream.block[2] = number, start, length
    for c in range(len(stream.key)):
        k0, k1 = folded(stream.key[c, 0], stream.key[c, 1], number)
        for of in range(2):
            stream.keys[c, 2 * of], stream.keys[c, 2 * of + 1] = folded(k0, k1, of)


@compiled
def _uniform(stream: Any, c: int, index: int) -> float:
    """A uniform number of the block of steps: each step has three."""
    return uniform(stream.keys[c, 2], stream.keys[c, 3], index, stream.bits)


@compiled
def _momentum(stream: Any, step: int, c: int, out: Any) -> None:
    """The normal numbers of a step."""
    dim = len(out)
    first, count = dim * (step - stream.block[1]), dim * stream.block[2]
    normals(stream.keys[c, 0], stream.keys[c, 1], first, count, stream.bits, out)
