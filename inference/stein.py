"""Kernel Stein discrepancy: how far draws are from a density known up to its constant.

Gorham & Mackey (2017), "Measuring sample quality with kernels"; Liu, Lee & Jordan (2016), "A
kernelized Stein discrepancy for goodness-of-fit tests". With the score s(x) = grad log p(x) and a
kernel k,

    k_p(x, y) = s(x).s(y) k + s(x).grad_y k + s(y).grad_x k + trace grad_x grad_y k

has mean zero under p in each argument, and KSD^2 = E k_p(X, Y), X and Y independent draws. The
inverse multiquadric k = (c^2 + |x - y|^2)^(-1/2), unlike a Gaussian kernel, controls convergence in
distribution in any dimension.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from inference.target import Target
from ppl_models.errors import EngineError

_POWER = -0.5


class Discrepancy(NamedTuple):
    """The kernel Stein discrepancy of n draws.

    Args:
        value: sqrt of the mean of k_p over all pairs, a draw with itself included: positive, of
            order 1 / sqrt(n) for exact draws.
        squared: KSD^2 without bias, from pairs of different draws: around zero for exact draws.
        error: standard error of ``squared`` for independent draws that are not exact.
        draws: n.
    """

    value: float
    squared: float
    error: float
    draws: int


def ksd(
    target: Target,
    draws: Tensor | np.ndarray,
    *,
    scale: Tensor | np.ndarray | None = None,
    c: float = 1.0,
    block: int = 1024,
) -> Discrepancy:
    """The kernel Stein discrepancy of draws from a target.

    No reference is needed, so that it ranks approximations: a Langevin chain's bias, a variational
    family's misfit. It sees nothing of modes without draws, and compares draws of equal number.
    Time grows with n^2 D, memory with n D.

    Args:
        target: as from ``inference.target(model, data)``.
        draws: unconstrained, (..., D), as in ``fit.posterior.unconstrained``; chains are pooled.
        scale: the unit of distance: sds (D,), or a square root S of a covariance S S^T (D, D). The
            same for all that is compared; by default 1 in every direction.
        c: the kernel's length in those units.
        block: draws at a time.

    Raises:
        EngineError: the draws do not fit the target, or the density is zero at one.

    Example:
        >>> import torch
        >>> from inference import Target, ksd
        >>> normal = Target(lambda x: -0.5 * x.square().sum(), 1, tier="eager")
        >>> x = torch.linspace(-2.5, 2.5, 101)[:, None].double()
        >>> ksd(normal, x).value < ksd(normal, x + 1).value
        True
    """
    x = torch.as_tensor(draws, dtype=target.dtype, device=target.device)
    if x.dim() < 2 or x.shape[-1] != target.dim:
        raise EngineError(
            f"the draws have shape {tuple(x.shape)}, the target has dimension {target.dim}; give "
            "unconstrained draws (..., D), as in fit.posterior.unconstrained"
        )
    x = x.reshape(-1, target.dim)
    number = len(x)
    if number < 2:
        raise EngineError("one draw has no discrepancy; give at least two")
    with torch.no_grad():
        score = _scores(target, x, block)
        if not bool(torch.isfinite(score).all()):
            raise EngineError(
                "the density is zero or not smooth at some draws, so that they have no score; "
                "leave them out, or give draws of this target"
            )
        x, score = _whitened(x, score, scale)
        sums = x.new_zeros(number)  # of k_p with every other draw
        own = x.new_zeros(number)
        for i in range(0, number, block):
            rows = slice(i, i + block)
            for j in range(0, number, block):
                kernel = stein_kernel(
                    x[rows], score[rows], x[j : j + block], score[j : j + block], c
                )
                sums[rows] += kernel.sum(1)
                if i == j:
                    own[rows] = kernel.diagonal()
    others = (sums - own) / (number - 1)
    squared = float(others.mean())
    return Discrepancy(
        float((sums.sum() / number**2).clamp(min=0).sqrt()),
        squared,
        float(2 * others.std() / number**0.5),
        number,
    )


def stein_kernel(x: Tensor, s: Tensor, y: Tensor, t: Tensor, c: float = 1.0) -> Tensor:
    """k_p of points x (n, D) with scores s and points y (m, D) with scores t: (n, m)."""
    # |x - y|^2 without an (n, m, D) tensor
    square = (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T).clamp(min=0)
    base = c**2 + square
    kernel = base**_POWER
    slope = 2 * _POWER * base ** (_POWER - 1)  # grad_x k = slope (x - y)
    # (t - s).(x - y)
    across = x @ t.T - (y * t).sum(1) - (s * x).sum(1)[:, None] + s @ y.T
    trace = -slope * x.shape[1] - 4 * _POWER * (_POWER - 1) * base ** (_POWER - 2) * square
    return (s @ t.T) * kernel + slope * across + trace


def _scores(target: Target, x: Tensor, block: int) -> Tensor:
    size = min(block, len(x))
    padded = torch.cat([x, x[:1].expand(-len(x) % size, -1)])  # one shape, traced once
    parts = [target.log_density_and_grad(part)[1] for part in padded.split(size)]
    return torch.cat(parts)[: len(x)]


def _whitened(x: Tensor, score: Tensor, scale: Any) -> tuple[Tensor, Tensor]:
    """S^-1 x and S^T s, in which distances are in units of the scale."""
    if scale is None:
        return x, score
    unit = torch.as_tensor(scale, dtype=x.dtype, device=x.device)
    if unit.shape not in ((x.shape[1],), (x.shape[1], x.shape[1])):
        raise EngineError(
            f"scale has shape {tuple(unit.shape)}; give sds ({x.shape[1]},) or a square root of a "
            "covariance"
        )
    if unit.dim() == 1:
        return x / unit, score * unit
    return torch.linalg.solve(unit, x.T).T, score @ unit
