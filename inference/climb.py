"""Many modes at once: BFGS from a batch of starting points (Nocedal & Wright 2006, section 6.1).

All points climb together, each with its own approximation of the inverse Hessian and its own line
search, so that a step of all of them is one batched evaluation.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from inference.padded import Density

_EVALUATIONS = 200  # batched, of a whole climb
_SHORTER = 12  # times that a step may be shortened, to a quarter each
_ARMIJO = 1e-4
_FIRST = 1.0  # scales that the first move is long at most
_GAIN = 1e-6  # nats that a further step may promise where a climb has arrived


class Climbed(NamedTuple):
    """Where each climb ended, how high, and whether it arrived at a stationary point."""

    x: Tensor  # (P, D)
    log_density: Tensor  # (P,)
    arrived: Tensor  # (P,)


@torch.no_grad()
def climb(target: Density, x: Tensor, scale: Tensor) -> Climbed:
    """Ascend the log density from every row of ``x`` (P, D), in units of ``scale`` (D,).

    A climb has arrived where twice in a row the next step promises g^T H g / 2 < 1e-6 nats, H being
    the inverse Hessian so far, which begins as diag(scale^2). One that has not after 200
    evaluations may be on its way to infinity. Starting points without a finite density stay where
    they are and do not arrive.
    """
    number, dim = x.shape
    identity = torch.eye(dim, dtype=x.dtype, device=x.device)
    unknown = x.new_full((number,), -torch.inf)
    end = Climbed(x.clone(), unknown, torch.zeros_like(unknown, dtype=torch.bool))
    value, gradient = target.log_density_and_grad(x)
    end.log_density[:] = torch.where(torch.isfinite(value), value, -torch.inf)
    left = (torch.isfinite(value) & torch.isfinite(gradient).all(-1)).nonzero()[:, 0]
    x, value, gradient = x[left], value[left], gradient[left]
    inverse = torch.diag(scale.square()).expand(len(left), -1, -1).clone()  # (P, D, D)
    before = torch.full_like(value, torch.inf)
    fresh = torch.ones(len(left), dtype=torch.bool, device=x.device)
    spent = 1
    while len(left) and spent < _EVALUATIONS:
        direction = (inverse @ gradient[..., None])[..., 0]
        longest = torch.where(fresh, _FIRST, torch.inf)[:, None]
        length = (direction / scale).norm(dim=-1, keepdim=True).clamp(min=1e-300)
        direction = direction * (longest / length).clamp(max=1.0)
        slope = (direction * gradient).sum(-1)
        new, higher, steeper, moved, tries = _search(target, x, value, gradient, direction, slope)
        spent += tries
        step, bend = new - x, gradient - steeper  # bend: the change of -gradient
        inverse, fresh = _update(inverse, identity, step, bend, fresh, moved)
        x, value, gradient = new, higher, steeper
        promise = 0.5 * (gradient * (inverse @ gradient[..., None])[..., 0]).sum(-1)
        arrived = (promise < _GAIN) & (before < _GAIN)
        stop = arrived | ~(moved | (promise < _GAIN))
        end.x[left], end.log_density[left], end.arrived[left] = x, value, arrived
        keep = ~stop
        left, x, value, gradient = left[keep], x[keep], value[keep], gradient[keep]
        inverse, fresh, before = inverse[keep], fresh[keep], promise[keep]
    return end


def _search(
    target: Density, x: Tensor, value: Tensor, gradient: Tensor, direction: Tensor, slope: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """Shorten each step until the point rises: where it is then, whether it moved, tries."""
    length = torch.ones_like(value)
    found, high, steep = x.clone(), value.clone(), gradient.clone()
    waiting = torch.ones_like(value, dtype=torch.bool)
    tries = 0
    while bool(waiting.any()) and tries < _SHORTER:
        tries += 1
        at = x[waiting] + length[waiting, None] * direction[waiting]
        new, rise = target.log_density_and_grad(at)
        enough = new >= value[waiting] + _ARMIJO * length[waiting] * slope[waiting]
        good = enough & torch.isfinite(new) & torch.isfinite(rise).all(-1)
        index = waiting.nonzero()[:, 0][good]
        found[index], high[index], steep[index] = at[good], new[good], rise[good]
        waiting[index] = False
        length = length / 4
    return found, high, steep, ~waiting, tries


def _update(
    inverse: Tensor, identity: Tensor, step: Tensor, bend: Tensor, fresh: Tensor, moved: Tensor
) -> tuple[Tensor, Tensor]:
    """The inverse Hessians after a step, and which points have no curvature yet."""
    curvature = (step * bend).sum(-1)
    good = moved & (curvature > 1e-10 * step.norm(dim=-1) * bend.norm(dim=-1))
    rho = torch.where(good, 1 / torch.where(good, curvature, 1.0), 0.0)
    left = identity - rho[:, None, None] * step[:, :, None] * bend[:, None, :]
    updated = left @ inverse @ left.transpose(1, 2)
    updated = updated + rho[:, None, None] * step[:, :, None] * step[:, None, :]
    return torch.where(good[:, None, None], updated, inverse), fresh & ~good
