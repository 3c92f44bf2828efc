"""Many modes at once: BFGS from a batch of starting points (Nocedal & Wright 2006, section 6.1).

All points climb together, each with its own approximation of the inverse Hessian and its own line
search, so that a step of all of them is one batched evaluation. Full matrices serve few dimensions;
``inference.pathfinder`` brings factors of low rank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor

from inference.padded import Density

_SHORTER = 12  # times that a step may be shortened, to a quarter each
_ARMIJO = 1e-4
_EXACT, _LONGER = 0.1, 10.0  # slope left after a step, of that before; times a step is prolonged
_FIRST = 1.0  # scales that the first move is long at most
_GAIN = 1e-6  # nats that a further step may promise where a climb has arrived


class Climbed(NamedTuple):
    """Where each climb ended, how high, and whether it arrived at a stationary point."""

    x: Tensor  # (P, D)
    log_density: Tensor  # (P,)
    arrived: Tensor  # (P,)


class Inverse(Protocol):
    """Positive definite approximations H of the inverse Hessian of -log p, one per point."""

    def times(self, v: Tensor) -> Tensor:
        """H v: (P, D) -> (P, D)."""
        ...

    def updated(self, step: Tensor, bend: Tensor, good: Tensor) -> Self:
        """After steps (P, D) that changed -gradient by ``bend`` (P, D), where ``good`` (P,)."""
        ...

    def at(self, points: Tensor) -> Self:
        """Those of some of the points."""
        ...


class Matrices(NamedTuple):
    """The inverse Hessians in full, by the update of BFGS."""

    matrix: Tensor  # (P, D, D)

    def times(self, v: Tensor) -> Tensor:
        return (self.matrix @ v[..., None])[..., 0]

    def updated(self, step: Tensor, bend: Tensor, good: Tensor) -> Matrices:
        identity = torch.eye(step.shape[1], dtype=step.dtype, device=step.device)
        curvature = (step * bend).sum(-1)
        rho = torch.where(good, 1 / torch.where(good, curvature, 1.0), 0.0)
        left = identity - rho[:, None, None] * step[:, :, None] * bend[:, None, :]
        updated = left @ self.matrix @ left.transpose(1, 2)
        updated = updated + rho[:, None, None] * step[:, :, None] * step[:, None, :]
        return Matrices(torch.where(good[:, None, None], updated, self.matrix))

    def at(self, points: Tensor) -> Matrices:
        return Matrices(self.matrix[points])


Watch = Callable[[Tensor, Tensor, Tensor, Inverse], None]


@torch.no_grad()
def climb(
    target: Density,
    x: Tensor,
    scale: Tensor,
    inverse: Inverse | None = None,
    watch: Watch | None = None,
    most: int = 200,
) -> Climbed:
    """Ascend the log density from every row of ``x`` (P, D), in units of ``scale`` (D,).

    A climb has arrived where twice in a row the next step promises g^T H g / 2 < 1e-6 nats, H being
    the inverse Hessian so far. One that has not after ``most`` evaluations may be on its way
    to infinity. Starting points without a finite density stay where they are and do not arrive.

    Args:
        target: the log density.
        x: where the climbs begin.
        scale: a first step is no longer than one of these.
        inverse: the inverse Hessians at the beginning, by default the matrices diag(scale^2).
        watch: called after each step with the numbers of the points that moved or stopped in it,
            (Q,), where they are and their gradients, (Q, D), and their inverse Hessians.
        most: evaluations of a whole climb, each of all points.
    """
    number = len(x)
    value, gradient = target.log_density_and_grad(x)
    known = torch.where(torch.isfinite(value), value, -torch.inf)
    end = Climbed(x.clone(), known, torch.zeros_like(known, dtype=torch.bool))
    left = (torch.isfinite(value) & torch.isfinite(gradient).all(-1)).nonzero()[:, 0]
    x, value, gradient = x[left], value[left], gradient[left]
    if inverse is None:
        inverse = Matrices(torch.diag(scale.square()).expand(number, -1, -1))
    inverse = inverse.at(left)
    uphill = inverse.times(gradient)
    before = torch.full_like(value, torch.inf)
    fresh = torch.ones(len(left), dtype=torch.bool, device=x.device)
    spent = 1
    while len(left) and spent < most:
        direction = uphill
        if bool(fresh.any()):  # nothing is known yet of how far to go
            length = (direction / scale).norm(dim=-1, keepdim=True).clamp(min=1e-300)
            shorter = (_FIRST / length).clamp(max=1.0)
            direction = torch.where(fresh[:, None], direction * shorter, direction)
        slope = (direction * gradient).sum(-1)
        new, higher, steeper, moved, tries = _search(target, x, value, gradient, direction, slope)
        spent += tries
        step, bend = new - x, gradient - steeper  # bend: the change of -gradient
        good = moved & ((step * bend).sum(-1) > 1e-10 * step.norm(dim=-1) * bend.norm(dim=-1))
        inverse, fresh = inverse.updated(step, bend, good), fresh & ~good
        x, value, gradient = new, higher, steeper
        if watch is not None:
            watch(left, x, gradient, inverse)
        uphill = inverse.times(gradient)
        promise = 0.5 * (gradient * uphill).sum(-1)
        small = promise < _GAIN
        arrived = small & (before < _GAIN)
        keep = ~arrived & (moved | small)
        before = promise
        if not bool(keep.all()):
            gone = left[~keep]
            for whole, part in zip(end, (x, value, arrived), strict=True):
                whole[gone] = part[~keep]
            left, x, value, gradient = left[keep], x[keep], value[keep], gradient[keep]
            uphill, fresh, before = uphill[keep], fresh[keep], before[keep]
            inverse = inverse.at(keep)
    end.x[left], end.log_density[left] = x, value
    return end


def _search(
    target: Density, x: Tensor, value: Tensor, gradient: Tensor, direction: Tensor, slope: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """Shorten each step until the point rises: where it is then, whether it moved, tries.

    Where the slope there is far from zero, it goes on to where the slope of a parabola would be:
    after such steps BFGS knows the curvature of a Gaussian exactly when it has gone through its
    dimensions.
    """
    found, high, steep = x.clone(), value.clone(), gradient.clone()
    waiting = torch.arange(len(x), device=x.device)
    begin, along, low, least = x, direction, value, _ARMIJO * slope
    length, tries = 1.0, 0
    while len(waiting) and tries < _SHORTER:
        tries += 1
        at = begin + length * along
        new, there = target.log_density_and_grad(at)
        good = (new >= low + length * least) & torch.isfinite(new + there.abs().sum(-1))
        if tries == 1 and bool(good.all()):
            found, high, steep, waiting = at, new, there, waiting[:0]
            break
        index, left = waiting[good], ~good
        found[index], high[index], steep[index] = at[good], new[good], there[good]
        waiting, begin, along, low, least = (
            part[left] for part in (waiting, begin, along, low, least)
        )
        length /= 4
    moved = torch.ones_like(value, dtype=torch.bool)
    moved[waiting] = False
    after = (steep * direction).sum(-1)
    rough = moved & (after.abs() > _EXACT * slope) & (after < slope)
    if not bool(rough.any()):
        return found, high, steep, moved, tries
    # once more, to the top of the parabola through the slopes at both ends
    index = rough.nonzero()[:, 0]
    along, slope, after = direction[index], slope[index], after[index]
    made = ((found[index] - x[index]) * along).sum(-1) / along.square().sum(-1)
    best = made * (slope / (slope - after)).clamp(max=_LONGER)
    at = x[index] + best[:, None] * along
    new, there = target.log_density_and_grad(at)
    good = (new >= high[index]) & torch.isfinite(new + there.abs().sum(-1))
    index = index[good]
    found[index], high[index], steep[index] = at[good], new[good], there[good]
    return found, high, steep, moved, tries + 1
