"""Modes that no draw has seen: climbs from dispersed points, compared with climbs from the draws.

Chains that start in one part of the space, and approximations that seek one mode, agree with
themselves however many modes there are; R-hat and k-hat are blind to what was never visited. A
search cannot prove that nothing is left, but a mode that it finds is there.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from inference import psis
from inference.climb import climb
from inference.engine import Problem
from inference.finding import Finding
from inference.laplace import hessian
from inference.padded import Density
from ppl_models.base import Model
from ppl_models.noise import Noise

_FROM_DRAWS, _STARTS = 16, 4  # climbs from draws; and from each group twice as many
_TRIED = 216  # points of each group
_SCALES = (2.0, 5.0, 15.0)  # of the groups around zero, and in sds around the draws
_WEIGHED = 400  # importance draws that measure the mass at a mode
_COMPARED = 1000  # draws that are looked for near a mode
_SAME = 0.5  # squared distance, by the curvature, of two ends of climbs that are one mode
_LEAST = 1e-4  # share of the posterior below which a mode does not matter


class Mode(NamedTuple):
    """A maximum of the log density with the normal there, and its part of the evidence."""

    x: Tensor  # (D,)
    factor: Tensor  # (D, D), Cholesky factor of minus the Hessian
    log_density: float
    log_mass: float
    """log of the integral of the density near the mode, by Laplace's approximation."""


@torch.no_grad()
def unseen_modes(problem: Problem, target: Density, draws: Tensor) -> list[Finding]:
    """The finding that a mode of weight is far from all draws, if one is found.

    Seventy-two climbs begin at draws of the prior (where it is proper), at points of several scales
    around zero and around the draws, and at some of the draws. A mode is unseen where no
    climb from a draw ends in it and hardly a draw is near it by its curvature. Its share of the
    posterior is by importance sampling from a Student t at the mode, that of the draws by Laplace's
    approximation at the modes that they have seen, or if these do not hold most draws by the normal
    of the draws' moments, which is too large rather than too small. It is an *error* where counting
    it would move a mean by more than 0.5 posterior sds or change an sd by more than 30 %, in the
    unconstrained space, and a *warning* above 1 % of the posterior.

    Args:
        problem: model and data.
        target: its log density.
        draws: unconstrained, (chain, draw, D).

    Returns:
        At most one finding.
    """
    flat = draws.flatten(0, 1)
    flat = flat[torch.linspace(0, len(flat) - 1, min(len(flat), _COMPARED)).long()]
    noise = problem.noise(1).fold(31)
    own = flat[torch.linspace(0, len(flat) - 1, min(len(flat), _FROM_DRAWS)).long()]
    scale = _scale(target, flat)
    points = torch.cat([own, _starts(problem, target, flat, noise)])
    ends = climb(target, points, scale)
    x = ends.x
    if isinstance(problem.model, Model):
        x = _canonical(problem, problem.model, x, flat)
    modes, seen = _modes(target, x, ends.log_density, ends.arrived, len(own))
    old = [mode for mode, known in zip(modes, seen, strict=True) if known]
    if all(seen):
        return []
    log_seen = _log_mass(target, old, flat)
    new = []
    for mode, known, visited in zip(modes, seen, _visited(modes, flat), strict=True):
        share = math.exp(mode.log_mass - np.logaddexp(mode.log_mass, log_seen))
        if not known and share > _LEAST and visited < 0.1 * share:
            new.append(mode)
    if not new:
        return []
    weighed = [_weighed(target, mode, modes, noise.fold(2, i)) for i, mode in enumerate(new)]
    return _told(new, np.array(weighed), log_seen, flat, old)


def _starts(problem: Problem, target: Density, flat: Tensor, noise: Noise) -> Tensor:
    """Dispersed points, of the prior, around zero and around the draws: (P, D).

    Of many in each group some at random, and some where the density is highest against the normal
    of the draws: there they have not been.
    """
    dim = flat.shape[1]
    unit = noise.fold(0).normal(2 * len(_SCALES) * _TRIED, dim)[0].split(_TRIED)
    centre, spread = flat.mean(0), flat.std(0, correction=0)
    groups = [scale * part for scale, part in zip(_SCALES, unit, strict=False)]
    groups += [
        centre + scale * spread * part
        for scale, part in zip(_SCALES, unit[len(_SCALES) :], strict=True)
    ]
    try:
        values = problem.program.sample(_TRIED, noise.fold(1).integers()[0])
        groups.append(problem.outputs.unconstrain(values))
    except NotImplementedError:
        pass  # an improper prior has no draws
    chosen = []
    for x in groups:
        far = ((x - centre) / spread.clamp(min=1e-300)).square().sum(-1)
        gain = torch.nan_to_num(target.log_density(x), -torch.inf, -torch.inf, -torch.inf) + far / 2
        chosen += [x[:_STARTS], x[_STARTS:][gain[_STARTS:].topk(_STARTS).indices]]
    return torch.cat(chosen)


def _canonical(problem: Problem, model: Model, x: Tensor, flat: Tensor) -> Tensor:
    """Ends of climbs under the labels of the draws: symmetric copies are one mode."""
    values = problem.outputs.constrain(torch.cat([flat, x])[None])
    same = {**values, **model.canonical(dict(values))}
    if all(same[name] is values[name] for name in values):
        return x
    return problem.outputs.unconstrain(same)[0, len(flat) :]


def _modes(
    target: Density, x: Tensor, log_density: Tensor, arrived: Tensor, own: int
) -> tuple[list[Mode], list[bool]]:
    """Different maxima where climbs ended, the highest first, and whether a draw's climb did."""
    modes: list[Mode] = []
    seen: list[bool] = []
    for index in log_density.argsort(descending=True).tolist():
        if not bool(arrived[index]):
            continue
        height = float(log_density[index])
        same = [
            k
            for k, mode in enumerate(modes)
            if abs(mode.log_density - height) < 0.05
            and float(_distance(mode, x[index][None])) < _SAME
        ]
        if same:
            seen[same[0]] |= index < own
            continue
        mode = _mode(target, x[index], height)
        if mode is not None:
            modes.append(mode)
            seen.append(index < own)
    return modes, seen


def _mode(target: Density, x: Tensor, log_density: float) -> Mode | None:
    """The mode at ``x``; None where the density does not fall in every direction."""
    factor, fault = torch.linalg.cholesky_ex(-hessian(target, x))
    if bool(fault) or not bool(torch.isfinite(factor).all()):
        return None
    volume = 0.5 * len(x) * math.log(2 * math.pi) - float(factor.diagonal().log().sum())
    return Mode(x, factor, log_density, log_density + volume)


def _distance(mode: Mode, x: Tensor) -> Tensor:
    """Squared distances to a mode in units of its curvature: (S, D) -> (S,)."""
    return ((x - mode.x) @ mode.factor).square().sum(-1)


def _visited(modes: list[Mode], flat: Tensor) -> list[float]:
    """The share of the draws that belong to each mode and are near it."""
    own = _belongs(modes, flat)
    near = [_distance(mode, flat) < _radius(mode) for mode in modes]
    return [float(((own == k) & near[k]).to(flat).mean()) for k in range(len(modes))]


def _belongs(modes: list[Mode], x: Tensor) -> Tensor:
    """The mode whose normal is highest at each point: (S, D) -> (S,)."""
    return torch.stack([mode.log_density - 0.5 * _distance(mode, x) for mode in modes]).argmax(0)


def _scale(target: Density, flat: Tensor) -> Tensor:
    """Units to climb in: by the curvature at the mean of the draws, else their sds: (D,)."""
    curvature = -hessian(target, flat.mean(0)).diagonal()
    sd = flat.std(0, correction=0)
    usable = torch.isfinite(curvature) & (curvature > 0)
    scale = torch.where(usable, curvature.clamp(min=1e-12).rsqrt(), sd)
    return torch.where(torch.isfinite(scale) & (scale > 0), scale, 1.0)


def _radius(mode: Mode) -> float:
    """The squared distance within which draws of the normal at a mode fall, but for 1 in 10,000."""
    dim = len(mode.x)
    return dim + 2 * math.sqrt(dim * 9.2) + 18.4  # Laurent & Massart (2000), lemma 1


def _log_mass(target: Density, old: list[Mode], flat: Tensor) -> float:
    """The evidence of the part of the space that the draws have seen."""
    spread = torch.atleast_2d(torch.cov(flat.T, correction=0))
    sign, log_det = torch.linalg.slogdet(2 * math.pi * math.e * spread)
    heights = target.log_density(flat[:: max(1, len(flat) // 64)])
    whole = float(heights.mean() + 0.5 * log_det) if float(sign) > 0 else -math.inf
    if not old:
        return whole
    near = torch.stack([_distance(mode, flat) < _radius(mode) for mode in old]).any(0)
    if float(near.to(flat).mean()) < 0.9:
        return whole
    return float(np.logaddexp.reduce([mode.log_mass for mode in old]))


def _weighed(target: Density, mode: Mode, modes: list[Mode], noise: Noise) -> float:
    """The log mass of what belongs to a mode, by importance sampling from a Student t.

    Minus infinity where it cannot be told.
    """
    dim, degrees = len(mode.x), 5.0
    unit = noise.fold(0).normal(_WEIGHED, dim)[0]
    shape = torch.full((_WEIGHED,), degrees / 2).to(unit)
    mixing = noise.fold(1).gamma(shape[None])[0] / (degrees / 2)
    unit = unit / mixing[:, None].sqrt()
    x = mode.x + torch.linalg.solve_triangular(mode.factor.T, unit.T, upper=True).T
    constant = math.lgamma((degrees + dim) / 2) - math.lgamma(degrees / 2)
    constant += float(mode.factor.diagonal().log().sum()) - 0.5 * dim * math.log(degrees * math.pi)
    log_q = constant - 0.5 * (degrees + dim) * torch.log1p(unit.square().sum(-1) / degrees)
    own = _belongs(modes, x) == next(k for k, other in enumerate(modes) if other is mode)
    ratios = torch.where(own, target.log_density(x) - log_q, -torch.inf).cpu().numpy()
    if psis.smooth(ratios).k_hat > psis.threshold(_WEIGHED):
        return -math.inf
    finite = np.where(np.isfinite(ratios), ratios, -np.inf)
    return float(np.logaddexp.reduce(finite) - math.log(_WEIGHED))


def _told(
    new: list[Mode], log_mass: np.ndarray, log_seen: float, flat: Tensor, old: list[Mode]
) -> list[Finding]:
    if not np.isfinite(log_mass).any():
        return []
    total = float(np.logaddexp.reduce([log_seen, *log_mass]))
    weights = np.exp([log_seen - total, *(log_mass - total)])
    share = float(weights[1:].sum())
    mean, sd = flat.mean(0).cpu().numpy(), flat.std(0, correction=0).cpu().numpy()
    variances = [np.diag(torch.cholesky_inverse(mode.factor).cpu().numpy()) for mode in new]
    means = np.stack([mean, *(mode.x.cpu().numpy() for mode in new)])
    squares = means**2 + np.stack([sd**2, *variances])
    whole = weights @ means
    whole_sd = np.sqrt(np.maximum(weights @ squares - whole**2, 1e-300))
    shift, ratio = np.abs(whole - mean) / whole_sd, sd / whole_sd
    wrong = bool((shift > 0.5).any() or (ratio < 0.7).any() or (ratio > 1.3).any())
    if not wrong and share < 0.01:
        return []
    number = "a mode" if len(new) == 1 else f"{len(new)} modes"
    equal = any(
        abs(mode.log_density - other.log_density) < 1e-4 * (1 + abs(mode.log_density))
        for mode in new
        for other in old
    )
    text = (
        f"{number} with about {share:.0%} of the posterior {'is' if len(new) == 1 else 'are'} far "
        "from every draw: the draws describe a part of the posterior"
    )
    remedy = (
        "run many chains from dispersed starts or SMC, which tempers; or, where modes differ by "
        "labels alone, order the components in the program or read off what labels do not change"
        if equal
        else "run SMC, which tempers between modes, or chains from dispersed starts"
    )
    return [Finding("unseen_modes", "error" if wrong else "warning", share, text, remedy)]
