"""Adaptation, apart from the kernels: Stan's windows, dual averaging, and pooled covariances.

Windows are those of Stan's reference manual ("Automatic parameter tuning") with a quicker start:
slow windows of growing length learn the scale of the posterior, a last fast one the step size by
dual averaging (Nesterov 2009; Hoffman & Gelman 2014, section 3.2). Each chain averages its own;
scales and the step size handed on are pooled over chains.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Mass = Literal["diagonal", "dense"]
MassChoice = Literal["auto", "diagonal", "dense"]

_DENSE_UP_TO = 30  # dimensions; pooled over chains, warm-up's draws determine such a matrix well

_SHRINKAGE, _STABILISATION, _DECAY = 0.05, 10.0, 0.75  # Stan's gamma, t0, kappa


class Window(NamedTuple):
    """A stretch of warm-up: how many transitions a chain makes on average, and what is learnt."""

    length: int
    learns_scale: bool


def windows(warmup: int) -> list[Window]:
    """Slow windows of 5, 5, 5, 5, 10, 15, 25, 50, 100, 200, ... transitions, then a fast one.

    Unlike Stan, which spends 75 transitions on the step size before it learns a scale, every window
    but the last learns one, pooled over chains and replaced by the next: draws on their way to the
    typical set tell little of the posterior, but enough to shorten the longest trees at once. (On a
    posterior with scales from 1e-3 to 1e2 this halves the gradients of a warm-up of 500, on the
    O-ring model it takes a quarter of them.) The last, a tenth and at most 50, finds the step size.
    """
    if warmup < 1:
        return []
    if warmup < 20:
        return [Window(warmup, False)]
    last = min(50, warmup // 10)
    left, length = warmup - last, 0
    plan, starts = [], [5, 5, 5, 5, 10, 15, 25]
    while left > 0:
        length = starts.pop(0) if starts else 2 * length
        following = starts[0] if starts else 2 * length
        # a window whose successor would not fit takes what is left
        length = left if left < length + following else length
        plan.append(Window(length, True))
        left -= length
    return [*plan, Window(last, False)]


class Averaging(NamedTuple):
    """State of dual averaging, one per chain."""

    log_step: Tensor  # (C,)
    log_average: Tensor  # (C,) the averaged iterate
    error: Tensor  # (C,) running mean of target - acceptance
    number: Tensor  # (C,) of transitions so far
    centre: Tensor  # (C,) the point shrunk towards

    @property
    def step_size(self) -> Tensor:  # (C,)
        return self.log_step.exp()


def averaging(step_size: Tensor) -> Averaging:
    """Start dual averaging at ``step_size`` (C,), shrinking towards ten times it."""
    zero = torch.zeros_like(step_size)
    log_step = step_size.log()
    return Averaging(log_step, log_step.clone(), zero, zero.clone(), log_step + math.log(10))


def update(state: Averaging, acceptance: Tensor, done: Tensor, target: float) -> Averaging:
    """One step of dual averaging for the chains that have just finished a transition."""
    count = state.number + 1
    rate = 1 / (count + _STABILISATION)
    error = (1 - rate) * state.error + rate * (target - acceptance)
    log_step = state.centre - count.sqrt() / _SHRINKAGE * error
    weight = count**-_DECAY
    log_average = weight * log_step + (1 - weight) * state.log_average
    new = Averaging(log_step, log_average, error, count, state.centre)
    return Averaging(*(torch.where(done, a, b) for a, b in zip(new, state, strict=True)))


def pooled_step(state: Averaging) -> Tensor:
    """The step size for all chains, the median of their averages: one stuck chain cannot set it."""
    average = torch.where(state.number > 0, state.log_average, state.log_step)
    return average.quantile(0.5).exp().expand_as(average).contiguous()


class Moments(NamedTuple):
    """Number, mean and summed squares of deviations of draws pooled over chains."""

    number: int
    mean: Tensor  # (D,)
    scatter: Tensor  # (D,) or (D, D)


def resolve(mass: MassChoice, dim: int) -> Mass:
    """Dense for few dimensions, where it is cheap and pays most; else diagonal."""
    if mass != "auto":
        return mass
    return "dense" if dim <= _DENSE_UP_TO else "diagonal"


def moments(dim: int, mass: Mass, like: Tensor) -> Moments:
    """No draws yet."""
    return Moments(
        0, like.new_zeros(dim), like.new_zeros((dim,) if mass == "diagonal" else (dim, dim))
    )


def add(state: Moments, rows: Tensor) -> Moments:
    """Merge draws, (n, D), into the moments (Chan, Golub & LeVeque 1983)."""
    n = len(rows)
    if n == 0:
        return state
    mean = rows.mean(0)
    centred, shift = rows - mean, mean - state.mean
    total = state.number + n
    weight = state.number * n / total
    if state.scatter.dim() == 1:
        scatter = state.scatter + centred.square().sum(0) + weight * shift.square()
    else:
        scatter = state.scatter + centred.T @ centred + weight * torch.outer(shift, shift)
    return Moments(total, state.mean + shift * (n / total), scatter)


def scale(state: Moments) -> Tensor:
    """A square root S of the covariance, S S^T, shrunk to 1e-3 I as in Stan: (D,) or (D, D)."""
    n = state.number
    shrunk = n / (n + 5.0) * state.scatter / max(n - 1, 1)
    floor = 1e-3 * 5.0 / (n + 5.0)
    if shrunk.dim() == 1:
        return (shrunk + floor).sqrt()
    return torch.linalg.cholesky(shrunk + floor * torch.eye(len(shrunk)).to(shrunk))


def stretch(scale: Tensor, v: Tensor) -> Tensor:
    """S v for each chain: from whitened to unconstrained space, (C, D)."""
    return v * scale if scale.dim() == 1 else v @ scale.T


def whiten(scale: Tensor, gradient: Tensor) -> Tensor:
    """S^T g for each chain: the gradient in whitened space, (C, D)."""
    return gradient * scale if scale.dim() == 1 else gradient @ scale
