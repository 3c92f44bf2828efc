"""Three densities on the plane with known entropies, to train generative models on.

The shapes and scales are those of the toys of FFJORD (Grathwohl, Chen, Bettencourt, Sutskever &
Duvenaud 2019): the cross entropy of a trained model is a figure against a floor that is known.

    >>> from case_studies.toys import TOYS
    >>> toy = TOYS["checkerboard"]
    >>> x = toy.sample(1000, seed=1)
    >>> round(-float(toy.log_density(x).mean()), 4), round(toy.entropy, 4)
    (3.4657, 3.4657)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ppl_models.errors import DataError
from ppl_models.noise import Noise

_NODES = 120  # of a moon's arc: Gauss's rule is then exact to rounding


@dataclass(frozen=True)
class Toy:
    """A density on the plane.

    Args:
        draw: count rows from one stream, (count, 2).
        log_density: in nats, (..., 2) -> (...,).
        entropy: in nats: no model's mean negative log density of fresh rows is below it.
        modes: the centres of its modes (M, 2), if it has any.
        radius: how far from its centre a row of a mode may be.
    """

    draw: Callable[[int, Noise], Tensor]
    log_density: Callable[[Tensor], Tensor]
    entropy: float
    modes: Tensor | None = None
    radius: float | None = None

    def sample(self, count: int, *, seed: int = 0) -> Tensor:
        """Independent rows: (count, 2). Raises ``DataError`` for a count below 1."""
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise DataError(f"count={count!r}: give a whole number of at least 1")
        return self.draw(count, Noise.seeded(seed, 1))


def eight_gaussians() -> Toy:
    """Eight equal normals, of sd 0.5 on a circle of radius 4, all divided by 1.414.

    Their tails overlap a little, so that the entropy, 2.8319 nats, is less than log 8 more than
    that of one normal.
    """
    sd = 0.5 / 1.414
    angle = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    centres = 4 / 1.414 * torch.stack([angle.cos(), angle.sin()], -1)

    def draw(count: int, noise: Noise) -> Tensor:
        which = (8 * noise.fold(0).uniform(count)[0]).long()
        return centres[which] + sd * noise.fold(1).normal(count, 2)[0]

    def log_density(x: Tensor) -> Tensor:
        square = (x[..., None, :] - centres.to(x)).square().sum(-1)
        each = -0.5 * square / sd**2 - math.log(2 * math.pi * sd**2)
        return each.logsumexp(-1) - math.log(8)

    return Toy(draw, log_density, 2.8318804, centres, 3 * sd)


def two_moons() -> Toy:
    """Two half circles of radius 2, facing each other, blurred by normal noise of sd 0.2.

    The density is the mean of the noise's along the arcs, by Gauss's rule, exact to rounding; the
    entropy is its integral on a fine grid.
    """
    sd = 0.2

    def arcs(angle: Tensor) -> Tensor:
        upper = torch.stack([angle.cos(), angle.sin()], -1)
        lower = upper.new_tensor([1.0, 0.5]) - upper
        return 2 * torch.stack([upper, lower]) - upper.new_tensor([1.0, 0.2])  # (2, ..., 2)

    def draw(count: int, noise: Noise) -> Tensor:
        points = arcs(math.pi * noise.fold(0).uniform(count)[0])  # (2, count, 2)
        which = (2 * noise.fold(1).uniform(count)[0]).long()
        return points[which, torch.arange(count)] + sd * noise.fold(2).normal(count, 2)[0]

    node, weight = np.polynomial.legendre.leggauss(_NODES)
    points = arcs(torch.as_tensor(math.pi / 2 * (node + 1))).flatten(0, 1)  # (2 nodes, 2)
    log_weight = torch.as_tensor(np.log(weight / 4)).repeat(2)  # they sum to 2 over an arc

    def log_density(x: Tensor) -> Tensor:
        square = torch.cdist(x.reshape(-1, 2), points.to(x)).square()
        each = -0.5 * square / sd**2 - math.log(2 * math.pi * sd**2) + log_weight.to(x)
        return each.logsumexp(-1).reshape(x.shape[:-1])

    return Toy(draw, log_density, 2.3938792)


def checkerboard() -> Toy:
    """Uniform on the eight dark squares, of side 2, of a board of sixteen: log 32 nats."""

    def draw(count: int, noise: Noise) -> Tensor:
        column = (4 * noise.fold(0).uniform(count)[0]).floor()
        row = 2 * (2 * noise.fold(1).uniform(count)[0]).floor() + column % 2
        within = noise.fold(2).uniform(count, 2)[0]
        return 2 * (torch.stack([column, row], -1) + within) - 4

    def log_density(x: Tensor) -> Tensor:
        square = ((x + 4) / 2).floor()
        dark = (square.sum(-1) % 2 == 0) & (x.abs().amax(-1) < 4)
        return x.new_full(dark.shape, -math.inf).masked_fill(dark, -math.log(32))

    centres = [[2 * c - 3, 2 * r - 3] for c in range(4) for r in range(4) if (c + r) % 2 == 0]
    modes = torch.tensor(centres, dtype=torch.float64)
    return Toy(draw, log_density, math.log(32), modes, math.sqrt(2))


TOYS = {
    "8gaussians": eight_gaussians(),
    "two moons": two_moons(),
    "checkerboard": checkerboard(),
}
