"""Tails too heavy for a mean or an sd to be estimated from draws.

The error of an average of h(x) falls as 1 / sqrt(S) only where h has a variance. If the tail of h
falls as a power, P(h > t) ~ t^(-1/k), the average converges as S^(k - 1), and by k = 0.7 no sample
of practical size will do (Vehtari, Simpson, Gelman, Yao & Gabry 2024, section 3). For the variance
of x, h = (x - mean)^2 has twice the k of x. It is estimated from the draws, and where the
program is at hand read off the density itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from inference import mixing, psis
from inference.engine import Problem
from inference.finding import Finding
from inference.padded import Density

LIMIT = 0.7
"""The k of (x - mean)^2 above which the sd of draws says little."""

_KURTOSIS = 5.0  # of draws; a lighter sample is not looked at further
_MOST = 200  # scalars that are looked at, those of largest kurtosis
_LEVEL = 1.64  # standard errors, one-sided
_LEAST = 100  # draws below which tails are not judged
_SDS = (15.0, 30.0, 100.0, 300.0)  # from the centre; the fall is measured over every two
_REMOTE = (1e6, 2e6)  # times one plus the sd, for draws much narrower than the density
_PROPER = 0.05  # a power that is told from none
_CENTRES = 5
_STEP = 1e-4  # in sds, to differentiate by
_GROWTH = 0.1  # of log v between the two, below which a value is bounded


class Tail(NamedTuple):
    """The shape k of the squared distance from the mean, and its standard error."""

    k: float
    error: float


def tail_of(x: np.ndarray) -> Tail:
    """The k of (x - mean)^2 from draws (chain, draw), by a Pareto law for the largest of them.

    M = min(S / 5, 3 sqrt(S)) of S draws, unless the highest third alone falls faster: where some
    draws are of a small mode apart, only all together look heavy. Shrunk towards 0.5 as in PSIS.
    The standard error is (1 + k) / sqrt(M) (Zhang & Stephens 2009), with as many of the M as
    are independent: the share that the effective size for E(x - mean)^2 has of S. Where a
    quarter are copies of one draw, as of a chain that stays where it is, there is no tail to see.
    """
    square = np.square(x - x.mean())
    tail = math.ceil(min(0.2 * x.size, 3 * math.sqrt(x.size)))
    largest = np.sort(square, axis=None)[-tail - 1 :]
    third = max(tail // 3, 5)
    excess = [largest[-m:] - largest[-m - 1] for m in (tail, third)]
    if any(part[len(part) // 4] == 0 for part in excess):
        return Tail(-math.inf, 0.0)
    k, higher = (psis.fit_pareto(part)[0] for part in excess)
    share = min(1.0, float(mixing.ess_mean(square)) / x.size)
    error = (1 + max(k, 0.0)) / math.sqrt(tail * share)
    return Tail(k if higher > LIMIT else min(k, higher), error)


def tails(draws: Mapping[str, np.ndarray]) -> list[Finding]:
    """The finding that some scalar's draws have too heavy a tail, (chain, draw, *event) by site.

    An *error* where k of (x - mean)^2 is above 0.7 at a level of 5 %, a *warning* above 0.7.
    """
    worst, name, low = -np.inf, "", -np.inf
    for site, value in draws.items():
        flat = value.reshape(value.shape[0], value.shape[1], -1)
        kurtosis = np.nan_to_num(mixing.kurtosis(flat))
        order = np.argsort(-kurtosis)[:_MOST]
        for index in order[kurtosis[order] > _KURTOSIS]:
            if len(np.unique(flat[:, :, index])) < _LEAST:
                continue
            k, error = tail_of(flat[:, :, index])
            if math.isfinite(k) and k - _LEVEL * error > low:
                where = np.unravel_index(index, value.shape[2:])
                text = ", ".join(str(i) for i in where)
                worst, name, low = k, f"{site}[{text}]" if text else site, k - _LEVEL * error
    if not worst > LIMIT:
        return []
    return [_heavy(name, worst, "its draws", severe=low > LIMIT)]


@torch.no_grad()
def tails_of_density(problem: Problem, target: Density, draws: Tensor) -> list[Finding]:
    """The finding that the density itself falls too slowly along some coordinate, or not at all.

    With all other coordinates held at those of a draw, x_i is moved 15 sds to a million away. If
    the site's value v has the tail P(v > t) ~ t^(-nu), then p(x) |dx / d log v| ~ v^(-nu), so that
    nu is the fall of its logarithm per unit of log v, and k of (v - mean)^2 is 2 / nu. The tail of
    v over all draws is at least as heavy as that. Where nu is not positive the density has no
    finite integral. Values that are bounded have no tail.

    Args:
        problem: model and data.
        target: its log density.
        draws: unconstrained, (chain, draw, D).
    """
    flat = draws.flatten(0, 1)
    if not flat.shape[1] or not bool(torch.isfinite(flat).all()):
        return []
    index = _indices(problem, target, flat)
    heaviest = int(index.argmin())
    nu, name = float(index[heaviest]), coordinate_names(problem)[heaviest]
    if nu > 2 / LIMIT:
        return []
    if nu > _PROPER:
        return [_heavy(name, 2 / nu, "its density", severe=True)]
    text = (
        f"the density does not fall as {name} grows, other things equal (its tail has the power "
        f"{nu:.2f}): the posterior is improper, and the draws are of nothing"
    )
    remedy = f"give {name} a proper prior, or look for data that separate or do not identify it"
    return [Finding("improper", "error", nu, text, remedy)]


def _indices(problem: Problem, target: Density, flat: Tensor) -> Tensor:
    """The nu of each coordinate on its heavier side, infinite where there is none: (D,).

    The middle one of those at several draws, and the larger of those nearer and farther away; where
    values overflow nothing is known.
    """
    dim = flat.shape[1]
    centre = flat[torch.linspace(0, len(flat) - 1, min(_CENTRES, len(flat))).long()]
    mean, sd = flat.mean(0), flat.std(0, correction=0).clamp(min=torch.finfo(flat.dtype).tiny)
    distance = torch.cat(
        [
            torch.tensor(_SDS).to(flat)[:, None] * sd,
            torch.tensor(_REMOTE).to(flat)[:, None] * (1 + sd),
        ]
    )  # (distance, D)
    side = torch.tensor([-1.0, 1.0]).to(flat)[:, None, None]
    eye = torch.eye(dim, dtype=torch.bool, device=flat.device)
    shape = (2, len(distance), len(centre), dim, dim)
    moved = (mean + side * distance)[:, :, None, None, :].expand(shape)
    x = torch.where(eye, moved, centre[:, None, :].expand(shape))  # row d moves x_d
    log_density = target.log_density(x.reshape(-1, dim)).reshape(shape[:-1])
    step = _STEP * sd
    log_value = _values(problem, flat[0], x).abs().log()
    beside = _values(problem, flat[0], x + step * eye).abs().log()
    log_tail = log_density - ((beside - log_value) / step).abs().log()
    gain = log_value[:, 1::2] - log_value[:, ::2]
    nu = -(log_tail[:, 1::2] - log_tail[:, ::2]) / gain  # (side, pair, centre, D)
    nu = torch.where((gain > _GROWTH) & torch.isfinite(nu), nu, -torch.inf)
    nu = nu.amax(1).median(1).values  # (side, D)
    return torch.where(nu == -torch.inf, torch.inf, nu).amin(0)


def _values(problem: Problem, draw: Tensor, x: Tensor) -> Tensor:
    """The value that each moved coordinate belongs to, NaN where it is none's: (..., D, D) -> D.

    The draw leads: the program is traced there if it fails at remote points.
    """
    points = torch.cat([draw[None], x.reshape(-1, x.shape[-1])])
    constrained = problem.outputs.constrain(points)
    result = torch.full(x.shape[:-1], torch.nan).to(x)
    for site in problem.program.sites:
        if site.shape != site.unconstrained:
            continue  # a simplex or a matrix, whose coordinates belong to all elements
        at = slice(site.offset, site.offset + site.size)
        value = constrained[site.name][1:].reshape(*x.shape[:-1], site.size)
        result[..., at] = value[..., at, :].diagonal(dim1=-2, dim2=-1)
    return result


def coordinate_names(problem: Problem) -> list[str]:
    """The name of each coordinate's value, in order."""
    names = []
    for site in problem.program.sites:
        for index in np.ndindex(tuple(site.unconstrained)):
            text = ", ".join(str(i) for i in index)
            names.append(f"{site.name}[{text}]" if text else site.name)
    return names


def _heavy(name: str, k: float, source: str, *, severe: bool) -> Finding:
    lacks = "neither a mean nor an sd" if k > 2 * LIMIT else "no sd"
    text = (
        f"{name} has a heavy tail (k = {k:.2f} of its squared distance from the mean, by {source}; "
        f"limit {LIMIT}): {lacks} can be estimated from draws"
    )
    remedy = f"report the median and quantiles of {name}, or give its prior lighter tails"
    return Finding("tails", "error" if severe else "warning", k, text, remedy)
