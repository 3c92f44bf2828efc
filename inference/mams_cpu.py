"""Trajectories of constant speed around a C function, compiled by numba: those of ``mams``."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from inference.leapfrog_cpu import drift, scale_of, whiten
from inference.native import Native, evaluate
from ppl_models.loops import compiled, inlined


def trajectory(
    native: Native,
    x: Tensor,
    gradient: Tensor,
    velocity: Tensor,
    step: Tensor,
    scale: Tensor,
    steps: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``steps`` leapfrogs of every chain, as ``mams.trajectory`` makes them by tensors.

    Args:
        native: the density.
        x, gradient: where the chains are, and the gradient there: (C, D).
        velocity: of length one in whitened space, (C, D).
        step: of each chain, (C,).
        scale: S, (D,) or (D, D) and lower triangular.
        steps: at least one.

    Returns:
        Points (C, D), log densities (C,), gradients (C, D) and velocities (C, D) at the end, and
        kinetic energies (C,).
    """
    end = [part.clone(memory_format=torch.contiguous_format) for part in (x, gradient, velocity)]
    value, kinetic = torch.empty_like(step), torch.zeros_like(step)
    room = torch.empty_like(end[0]), torch.empty_like(end[0])
    arrays = (end[0], value, end[1], end[2], kinetic, step.contiguous(), *room)
    root = scale_of(scale)

    def run(context: int, *parts: np.ndarray) -> None:
        _trajectory(native.address, context, root, steps, *parts)

    native.share(run, [part.numpy() for part in arrays], steps)
    return end[0], value, end[1], end[2], kinetic


@inlined
def _kick(velocity: Any, gradient: Any, c: int, step: float, kinetic: Any) -> None:
    """``mams.kick`` of chain ``c``, by its row of the whitened gradients; all (C, D)."""
    dim = velocity.shape[1]
    square = along = 0.0
    for i in range(dim):
        square += gradient[c, i] * gradient[c, i]
        along += velocity[c, i] * gradient[c, i]
    if square == 0.0:
        return
    size = np.sqrt(square)
    cosine, angle = along / size, step * size / (dim - 1)
    half = np.exp(-angle)
    small = half * half
    towards = (1 - small + cosine * (1 - half) * (1 - half)) / size
    length = 0.0
    for i in range(dim):
        velocity[c, i] = 2 * half * velocity[c, i] + towards * gradient[c, i]
        length += velocity[c, i] * velocity[c, i]
    length = np.sqrt(length)
    for i in range(dim):
        velocity[c, i] /= length
    kinetic[c] += (dim - 1) * (angle + np.log(((1 + cosine) + (1 - cosine) * small) / 2))


@compiled
def _trajectory(
    address: int, context: int, scale: Any, steps: int, x: Any, value: Any, gradient: Any,
    velocity: Any, kinetic: Any, step: Any, slope: Any, work: Any,
) -> None:  # fmt: skip
    chains = len(x)
    for c in range(chains):
        whiten(scale, gradient, c, slope)
        _kick(velocity, slope, c, 0.5 * step[c], kinetic)
    for k in range(steps):
        for c in range(chains):
            drift(scale, velocity, c, step[c], x, x, work)
        evaluate(address, chains, x.ctypes.data, value.ctypes.data, gradient.ctypes.data, context)
        # two half kicks at the same place are a whole one
        share = 0.5 if k == steps - 1 else 1.0
        for c in range(chains):
            whiten(scale, gradient, c, slope)
            _kick(velocity, slope, c, share * step[c], kinetic)
