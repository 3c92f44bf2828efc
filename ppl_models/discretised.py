"""A Gaussian on equally spaced levels: each has the probability of the interval around it."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints


def log_ndtr(x: Tensor) -> Tensor:
    """The logarithm of the normal distribution function: any shape to the same.

    By the complementary error function, scaled by e^(x^2 / 2) in the lower tail. The one of
    ``torch.special`` is slow under ``vmap``, which takes its elements one by one.

    >>> float(log_ndtr(torch.tensor(-40.0, dtype=torch.float64)))
    -804.6084420137538
    """
    low, high = x.clamp(max=-1.0), x.clamp(min=-1.0)
    root = 0.5**0.5
    tail = (torch.special.erfcx(-root * low) / 2).log() - low * low / 2
    return torch.where(x < -1.0, tail, torch.log1p(-torch.erfc(root * high) / 2))


class DiscretisedNormal(TorchDistribution):
    """N(loc, scale^2) rounded to -1, -1 + 2/(levels - 1), ..., 1, the ends taking the tails.

    Ho, Jain & Abbeel (2020), equation 13. Log probabilities far in a tail are computed as
    log(e^a - e^b) of log tail probabilities, so that they neither vanish nor lose gradients.
    """

    def __init__(
        self, loc: Tensor, scale: Tensor, levels: int = 256, validate_args: bool | None = None
    ) -> None:
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        self.levels = levels
        super().__init__(self.loc.shape, validate_args=validate_args)

    @property
    def arg_constraints(self) -> dict[str, constraints.Constraint]:
        return {"loc": constraints.real, "scale": constraints.positive}

    @property
    def support(self) -> constraints.Constraint:
        return constraints.interval(-1.0, 1.0)

    def expand(self, batch_shape: Any, _instance: Any = None) -> DiscretisedNormal:
        shape = torch.Size(batch_shape)
        return DiscretisedNormal(
            self.loc.expand(shape), self.scale.expand(shape), self.levels, validate_args=False
        )

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        shape = self._extended_shape(sample_shape)
        with torch.no_grad():
            value = torch.normal(self.loc.expand(shape), self.scale.expand(shape)).clamp(-1, 1)
            half = (self.levels - 1) / 2
            return ((value + 1) * half).round() / half - 1

    def log_prob(self, value: Tensor) -> Tensor:
        half = 1 / (self.levels - 1)
        end = 1 - half
        upper = (value + half - self.loc) / self.scale
        lower = (value - half - self.loc) / self.scale
        # the interval mirrored to the lower side, where the distribution function is accurate
        flip = upper + lower > 0
        high = torch.where(flip, -lower, upper)
        low = torch.where(flip, -upper, lower)
        above = log_ndtr(high)
        # log(e^above - e^below) = above + log(1 - e^(below - above))
        gap = (log_ndtr(low) - above).clamp(max=-1e-30)
        inside = above + torch.log(-torch.expm1(gap))
        first = log_ndtr(upper)  # the lowest level has all below it
        last = log_ndtr(-lower)
        return torch.where(value < -end, first, torch.where(value > end, last, inside))
