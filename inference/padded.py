"""A log density evaluated for any number of points, in batches of one size where it is traced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from inference.target import Target

_SIZE = 72


class Density(Protocol):
    """What is needed of a log density to climb it and to measure its curvature.

    Results belong to the caller, who may change them; values may have more digits than points.
    """

    def log_density(self, x: Tensor) -> Tensor: ...

    def log_density_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]: ...


class Padded:
    """A target for many different numbers of points, traced for one; a C function serves any.

    Args:
        target: the log density.
        typical: points (S, D) where it is finite, which the trace is checked at.
        size: of the batches.
    """

    def __init__(self, target: Target, typical: Tensor, size: int = _SIZE) -> None:
        self._target = target
        self._size = size
        self._any_number = target.native(_filled(typical[:size], size)) is not None

    def log_density(self, x: Tensor) -> Tensor:
        """(P, D) -> (P,)."""
        return self._all(lambda part: (self._target.log_density(part),), x)[0]

    def log_density_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(P, D) -> (P,), (P, D)."""
        value, gradient = self._all(self._target.log_density_and_grad, x)
        return value, gradient

    def _all(self, function: Callable[[Tensor], tuple[Tensor, ...]], x: Tensor) -> list[Any]:
        if self._any_number:
            return list(function(x))
        parts = []
        for part in x.split(self._size):
            full = function(_filled(part, self._size))
            parts.append([value[: len(part)] for value in full])
        return [torch.cat(values) for values in zip(*parts, strict=True)]


def _filled(x: Tensor, size: int) -> Tensor:
    """With copies of the last point: (P, D) -> (size, D)."""
    return torch.cat([x, x[-1:].expand(size - len(x), -1)])
