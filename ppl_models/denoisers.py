"""Networks that see a noisy value and how noisy it is; any ``nn.Module`` may take their place.

A denoiser is called with x (B, *shape) and the time t / T in (0, 1], (B,), and returns (B, *shape);
with twice the first dimension of shape where the variance is learned.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class TimeFeatures(nn.Module):
    """Sines and cosines of the time at frequencies from 1 to 1,000: (B,) -> (B, width)."""

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        octaves = torch.exp(torch.linspace(0.0, math.log(1000.0), width // 2))
        self.register_buffer("frequencies", octaves)

    def forward(self, time: Tensor) -> Tensor:
        angle = time[:, None] * self.frequencies
        return torch.cat([angle.sin(), angle.cos()], -1)


class MLPDenoiser(nn.Module):
    """A perceptron with residual layers for vectors: x (B, D) and time (B,) -> (B, outputs D).

    Args:
        dim: D.
        hidden: width of each layer.
        layers: residual layers, each of which sees the time.
        outputs: 2 where the variance is learned.
    """

    def __init__(self, dim: int, hidden: int = 128, layers: int = 3, outputs: int = 1) -> None:
        super().__init__()
        self.time = nn.Sequential(TimeFeatures(64), nn.Linear(64, hidden), nn.SiLU())
        self.first = nn.Linear(dim, hidden)
        self.layers = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(layers))
        self.shifts = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(layers))
        self.last = nn.Linear(hidden, outputs * dim)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        when = self.time(time)
        h = self.first(x)
        for layer, shift in zip(self.layers, self.shifts, strict=True):
            h = h + layer(nn.functional.silu(h + shift(when)))
        return self.last(nn.functional.silu(h))


class LinearDenoiser(nn.Module):
    """A matrix and an offset per step: the best for Gaussian data, whose score is linear.

    Between steps they are interpolated.

    Args:
        dim: D.
        steps: T.
    """

    def __init__(self, dim: int, steps: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(steps, dim, dim))
        self.offset = nn.Parameter(torch.zeros(steps, dim))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        place = (time * len(self.offset) - 1).clamp(0, len(self.offset) - 1)
        below = place.floor().long()
        above = place.ceil().long()
        share = (place - below)[:, None]
        weight = torch.lerp(self.weight[below], self.weight[above], share[..., None])
        offset = torch.lerp(self.offset[below], self.offset[above], share)
        return torch.einsum("bij,bj->bi", weight, x) + offset
