"""Leapfrogs of all chains around a C function, compiled by numba: ``hmc.leapfrog`` on a CPU.

The scale S of whitened space is (1, D) where it is diagonal, else a lower triangle. Sums over its
rows are made column by column, which vectorises.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from inference.native import Native, evaluate
from ppl_models.loops import compiled, inlined


class Scale(NamedTuple):
    """S and its transpose, each contiguous: (1, D), or (D, D) and lower triangular."""

    root: np.ndarray
    transposed: np.ndarray


def scale_of(scale: Tensor) -> Scale:
    """The scale (D,) or (D, D) of a tuning as arrays."""
    root = scale.numpy()
    root = np.ascontiguousarray(root[None] if root.ndim == 1 else root)
    return Scale(root, root if len(root) == 1 else np.ascontiguousarray(root.T))


def trajectory(
    native: Native,
    x: Tensor,
    gradient: Tensor,
    momentum: Tensor,
    step: Tensor,
    scale: Tensor,
    steps: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``steps`` leapfrogs of every chain, as by so many calls of ``hmc.leapfrog``.

    Args:
        native: the density.
        x, gradient: where the chains are, and the gradient there: (C, D).
        momentum: in whitened space, (C, D).
        step: of each chain, (C,).
        scale: S, (D,) or (D, D) and lower triangular.
        steps: at least one.

    Returns:
        Points (C, D), log densities (C,), gradients (C, D) and momenta (C, D) at the end.
    """
    end = [part.clone(memory_format=torch.contiguous_format) for part in (x, gradient, momentum)]
    value = torch.empty_like(step)
    room = torch.empty_like(end[0]), torch.empty_like(end[0])
    arrays = (end[0], value, end[1], end[2], step.contiguous(), *room)
    root = scale_of(scale)

    def run(context: int, *parts: np.ndarray) -> None:
        _trajectory(native.address, context, root, steps, *parts)

    native.share(run, [part.numpy() for part in arrays], steps)
    return end[0], value, end[1], end[2]


@inlined
def whiten(scale: Any, gradient: Any, c: int, out: Any) -> None:
    """S^T g of chain ``c``, in its row of ``out``; both (C, D)."""
    root = scale.root
    if len(root) > 1:
        _times(root, gradient, c, False, out)
        return
    for i in range(out.shape[1]):
        out[c, i] = root[0, i] * gradient[c, i]


@inlined
def drift(scale: Any, momentum: Any, c: int, step: float, x: Any, out: Any, work: Any) -> None:
    """Move chain ``c`` to x + step S r, in its row of ``out``; all (C, D)."""
    dim = out.shape[1]
    if len(scale.root) == 1:
        for i in range(dim):
            out[c, i] = x[c, i] + step * (scale.root[0, i] * momentum[c, i])
        return
    _times(scale.transposed, momentum, c, True, work)
    for i in range(dim):
        out[c, i] = x[c, i] + step * work[c, i]


@inlined
def _times(rows: Any, vector: Any, c: int, upper: bool, out: Any) -> None:
    """The sum of the rows of a triangle (D, D) times the numbers of chain ``c``; both (C, D).

    By four rows at once, which halves the time; the other triangle is zero.
    """
    dim = out.shape[1]
    for i in range(dim):
        out[c, i] = 0.0
    whole = dim - dim % 4
    for j in range(0, whole, 4):
        v0, v1, v2, v3 = vector[c, j], vector[c, j + 1], vector[c, j + 2], vector[c, j + 3]
        for i in range(j if upper else 0, dim if upper else j + 4):
            out[c, i] += (
                rows[j, i] * v0 + rows[j + 1, i] * v1 + rows[j + 2, i] * v2 + rows[j + 3, i] * v3
            )
    for j in range(whole, dim):
        number = vector[c, j]
        for i in range(j if upper else 0, dim if upper else j + 1):
            out[c, i] += rows[j, i] * number


@compiled
def _trajectory(
    address: int, context: int, scale: Any, steps: int, x: Any, value: Any, gradient: Any,
    momentum: Any, step: Any, slope: Any, work: Any,
) -> None:  # fmt: skip
    chains, dim = x.shape
    for c in range(chains):
        whiten(scale, gradient, c, slope)
    for _ in range(steps):
        for c in range(chains):
            for i in range(dim):
                momentum[c, i] += 0.5 * step[c] * slope[c, i]
            drift(scale, momentum, c, step[c], x, x, work)
        evaluate(address, chains, x.ctypes.data, value.ctypes.data, gradient.ctypes.data, context)
        for c in range(chains):
            whiten(scale, gradient, c, slope)
            for i in range(dim):
                momentum[c, i] += 0.5 * step[c] * slope[c, i]
