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

from inference import warmup_cpu
from inference.warmup_cpu import DECAY, SHRINKAGE, STABILISATION

Mass = Literal["diagonal", "dense"]
MassChoice = Literal["auto", "diagonal", "dense"]

_DENSE_UP_TO = 30  # dimensions; pooled over chains, warm-up's draws determine such a matrix well

_SETTLED = 25  # transitions: in longer windows chains have arrived, or will not
_UNUSUAL = 10.0  # times the median variance
_ALIKE, _AGREEING = 3.0, 1.05  # ratio of variances, and R-hat, of a scale that has converged

Adapt = Literal["until converged", "throughout"]


class Window(NamedTuple):
    """A stretch of warm-up: how many transitions a chain makes on average, and what is learnt."""

    length: int
    learns_scale: bool
    settled: bool = False  # late enough to take chains for samples of the posterior


def windows(warmup: int, *, warm: bool = False) -> list[Window]:
    """Slow windows of 5, 5, 5, 5, 10, 15, 25, 50, 100, 200, ... transitions, then a fast one.

    After a warm start they begin with 25: fewer draws would tell less than what is known.

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
    plan, starts = [], [25] if warm else [5, 5, 5, 5, 10, 15, 25]
    while left > 0:
        length = starts.pop(0) if starts else 2 * length
        following = starts[0] if starts else 2 * length
        # a window whose successor would not fit takes what is left
        length = left if left < length + following else length
        plan.append(Window(length, True, settled=length > _SETTLED))
        left -= length
    return [*plan, Window(last, False)]


class Averaging(NamedTuple):
    """State of dual averaging, one per chain, in double precision."""

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
    log_step = step_size.double().log()
    zero = torch.zeros_like(log_step)
    return Averaging(log_step, log_step.clone(), zero, zero.clone(), log_step + math.log(10))


def update(state: Averaging, acceptance: Tensor, done: Tensor, target: float) -> Averaging:
    """One step of dual averaging for the chains that have just finished a transition."""
    count = state.number + 1
    rate = 1 / (count + STABILISATION)
    error = (1 - rate) * state.error + rate * (target - acceptance)
    log_step = state.centre - count.sqrt() / SHRINKAGE * error
    weight = count**-DECAY
    log_average = weight * log_step + (1 - weight) * state.log_average
    new = Averaging(log_step, log_average, error, count, state.centre)
    return Averaging(*(torch.where(done, a, b) for a, b in zip(new, state, strict=True)))


def pooled_step(state: Averaging, groups: int = 1) -> Tensor:
    """The step size for all chains of a group: the median of their averages."""
    average = torch.where(state.number > 0, state.log_average, state.log_step)
    return pooled(average, groups).exp()


def pooled(values: Tensor, groups: int) -> Tensor:
    """The median of each group of chains, so that one stuck chain cannot set it: (C,) -> (C,).

    The groups are equal and follow one another.
    """
    grouped = values.reshape(groups, -1)
    return grouped.quantile(0.5, 1).repeat_interleave(grouped.shape[1])


class Moments(NamedTuple):
    """Number, mean and summed squares of deviations of each chain's draws."""

    number: Tensor  # (C,)
    mean: Tensor  # (C, D)
    scatter: Tensor  # (C, D) or (C, D, D)


def resolve(mass: MassChoice, dim: int) -> Mass:
    """Dense for few dimensions, where it is cheap and pays most; else diagonal."""
    if mass != "auto":
        return mass
    return "dense" if dim <= _DENSE_UP_TO else "diagonal"


def moments(mass: Mass, like: Tensor) -> Moments:
    """No draws yet, of chains at ``like`` (C, D)."""
    scatter = like[:, :, None] * like[:, None] if mass == "dense" else like
    return Moments(like.new_zeros(len(like)), torch.zeros_like(like), torch.zeros_like(scatter))


def add(state: Moments, rows: Tensor, done: Tensor) -> Moments:
    """With the draws (K, C, D) that are ``done`` (K, C); on a CPU one after another."""
    if rows.device.type != "cpu":
        return merged(state, rows, done)
    new = Moments(*(part.clone(memory_format=torch.contiguous_format) for part in state))
    away = rows.new_empty(rows.shape[2])
    given = new.number, new.mean, new.scatter.flatten(1), rows.contiguous(), done.contiguous(), away
    warmup_cpu.add(*(part.numpy() for part in given))
    return new


def merged(state: Moments, rows: Tensor, done: Tensor) -> Moments:
    """The same for all draws at once (Chan, Golub & LeVeque 1983)."""
    kept = done[..., None]
    n = done.sum(0).to(rows.dtype)
    mean = torch.where(kept, rows, 0.0).sum(0) / n.clamp(min=1)[:, None]
    centred = torch.where(kept, rows - mean, 0.0)
    total = state.number + n
    share = (n / total.clamp(min=1))[:, None]
    shift = torch.where(n[:, None] > 0, mean - state.mean, 0.0)
    weighted = shift * state.number[:, None] * share
    if state.scatter.dim() == 2:
        scatter = state.scatter + centred.square().sum(0) + weighted * shift
    else:
        outer = torch.einsum("kci,kcj->cij", centred, centred)
        scatter = state.scatter + outer + weighted[:, :, None] * shift[:, None]
    return Moments(total, state.mean + shift * share, scatter)


def scale(state: Moments, *, settled: bool, before: Tensor | None = None) -> Tensor:
    """A square root S of the covariance, S S^T, shrunk to 1e-3 I as in Stan: (D,) or (D, D).

    With the scale ``before``, it is shrunk to 1e-3 of that instead, whatever the units.

    Before chains have settled, that of all draws about their common mean: where chains are tells
    more than how far each has come. After, the draws of each about its own mean, so that chains in
    different modes do not widen it; without chains that vary far more than most, on their way from
    elsewhere.
    """
    dense = state.scatter.dim() == 3
    if settled:
        kept = _usual(state)
        scatter, n = state.scatter[kept].sum(0), float(state.number[kept].sum())
        freedom = n - int(kept.sum())
    else:
        n = float(state.number.sum())
        centre = (state.number[:, None] * state.mean).sum(0) / max(n, 1.0)
        away = (state.mean - centre) * state.number.sqrt()[:, None]
        scatter = state.scatter.sum(0) + (away.T @ away if dense else away.square().sum(0))
        freedom = n - 1
    shrunk = n / (n + 5.0) * scatter / max(freedom, 1.0)
    floor = 1e-3 * 5.0 / (n + 5.0)
    if before is None:
        before = torch.eye(len(shrunk)).to(shrunk) if dense else torch.ones_like(shrunk)
    if not dense:
        return (shrunk + floor * before.square()).sqrt()
    return _factor(shrunk + floor * before @ before.T)


def converged(before: Tensor, state: Moments) -> bool:
    """Whether the draws of a settled window show that the scale ``before`` it was good.

    R-hat of every coordinate over chains is below 1.05, and in no direction does the covariance of
    the draws differ from S S^T by more than a factor of 3: by chance alone it would where a dense
    scale has seen too few draws. The scale learnt from the window itself, which replaces that, is
    better by twice as many draws. A single chain cannot show it.
    """
    if len(state.number) < 2:
        return False
    new = scale(state, settled=True, before=before)
    if new.dim() == 1:
        ratio = (new / before).square()
        scatter = state.scatter
    else:
        ratio = torch.linalg.svdvals(torch.linalg.solve_triangular(before, new, upper=False))
        ratio, scatter = ratio.square(), state.scatter.diagonal(dim1=-2, dim2=-1)
    within = (scatter / (state.number - 1).clamp(min=1)[:, None]).mean(0)
    r_hat = (1 - 1 / state.number.mean() + state.mean.var(0) / within).sqrt()
    alike = bool((ratio < _ALIKE).all()) and bool((ratio > 1 / _ALIKE).all())
    return alike and bool((r_hat < _AGREEING).all())


def _factor(covariance: Tensor) -> Tensor:
    """Its Cholesky factor, of correlations a little smaller where rounding has made it singular."""
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if not bool(failed):
        return factor
    sd = covariance.diagonal().sqrt()
    one = torch.eye(len(sd)).to(covariance)
    near = torch.finfo(covariance.dtype).eps ** 0.5 * one
    correlation = covariance / torch.outer(sd, sd) + near
    factor, failed = torch.linalg.cholesky_ex(correlation)
    return sd[:, None] * (one if bool(failed) else factor)


def _usual(state: Moments) -> Tensor:
    """Which chains have variances at most ten times the median over chains: (C,) bool."""
    dense = state.scatter.dim() == 3
    squares = state.scatter.diagonal(dim1=-2, dim2=-1) if dense else state.scatter
    variance = squares / (state.number - 1).clamp(min=1)[:, None]
    middle = variance.quantile(0.5, 0).clamp(min=torch.finfo(variance.dtype).tiny)
    return (variance / middle).amax(-1) <= _UNUSUAL


def scale_of(rows: Tensor, mass: Mass) -> Tensor:
    """The scale of independent draws, (n, D)."""
    done = torch.ones(len(rows), 1, dtype=torch.bool, device=rows.device)
    return scale(add(moments(mass, rows[:1]), rows[:, None], done), settled=False)


def stretch(scale: Tensor, v: Tensor) -> Tensor:
    """S v for each chain: from whitened to unconstrained space, (C, D)."""
    return v * scale if scale.dim() == 1 else v @ scale.T


def whiten(scale: Tensor, gradient: Tensor) -> Tensor:
    """S^T g for each chain: the gradient in whitened space, (C, D)."""
    return gradient * scale if scale.dim() == 1 else gradient @ scale


def unstretch(scale: Tensor, x: Tensor) -> Tensor:
    """S^-1 x for each chain: from unconstrained to whitened space, (C, D)."""
    if scale.dim() == 1:
        return x / scale
    return torch.linalg.solve_triangular(scale, x.T, upper=False).T
