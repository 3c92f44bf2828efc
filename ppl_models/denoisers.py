"""Networks that see a noisy value and how noisy it is; any ``nn.Module`` may take their place.

A denoiser is called with x (B, *shape) and the time t / T in (0, 1], (B,), and returns (B, *shape);
with twice the first dimension of shape where the variance is learned.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional


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
            h = h + layer(functional.silu(h + shift(when)))
        return self.last(functional.silu(h))


class _Residual(nn.Module):
    """Two convolutions that see the time, beside a way around: (B, C, H, W) -> (B, C', H, W)."""

    def __init__(self, before: int, after: int, times: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(_groups(size), size) for size in (before, after))
        self.first = nn.Conv2d(before, after, 3, padding=1)
        self.second = nn.Conv2d(after, after, 3, padding=1)
        self.shift = nn.Linear(times, after)
        self.around = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor, when: Tensor) -> Tensor:
        h = self.first(functional.silu(self.norms[0](x))) + self.shift(when)[:, :, None, None]
        return self.around(x) + self.second(functional.silu(self.norms[1](h)))


class UNetDenoiser(nn.Module):
    """A small U-Net for images: x (B, C, H, W) and time (B,) -> (B, outputs C, H, W).

    Ronneberger, Fischer & Brox (2015); residual blocks that see the time as in Ho, Jain & Abbeel
    (2020), without attention. Any height and width will do.

    Args:
        channels: C.
        width: channels within at full size; doubled wherever the size is halved.
        levels: how many sizes.
        outputs: 2 where the variance is learned.
    """

    def __init__(self, channels: int, width: int = 32, levels: int = 2, outputs: int = 1) -> None:
        super().__init__()
        times, widths = 4 * width, [width * 2**level for level in range(levels)]
        self.time = nn.Sequential(TimeFeatures(64), nn.Linear(64, times), nn.SiLU())
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.down = nn.ModuleList(_Residual(size, size, times) for size in widths)
        pairs = list(itertools.pairwise(widths))
        self.halve = nn.ModuleList(
            nn.Conv2d(size, below, 3, stride=2, padding=1) for size, below in pairs
        )
        self.middle = _Residual(widths[-1], widths[-1], times)
        self.up = nn.ModuleList(_Residual(size + below, size, times) for size, below in pairs)
        self.norm = nn.GroupNorm(_groups(width), width)
        self.last = nn.Conv2d(width, outputs * channels, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        when = self.time(time)
        h, kept = self.first(x), []
        for block, halve in zip(self.down, [*self.halve, None], strict=True):
            h = block(h, when)
            if halve is not None:
                kept.append(h)
                h = halve(h)
        h = self.middle(h, when)
        for block in reversed(self.up):
            beside = kept.pop()
            h = functional.interpolate(h, size=beside.shape[-2:])  # the nearest pixel's
            h = block(torch.cat([h, beside], 1), when)
        return self.last(functional.silu(self.norm(h)))


def _groups(width: int) -> int:
    """The largest of 8, 4, 2, 1 groups that divides the channels."""
    return math.gcd(8, width)


class LinearDenoiser(nn.Module):
    """A matrix and an offset per step: the best for Gaussian data, whose score is linear.

    A learned variance has a constant per step and number: that of x_0 given x_t is the same for all
    x_t. Between steps all are interpolated.

    Args:
        dim: D.
        steps: T.
        outputs: 2 where the variance is learned.
    """

    def __init__(self, dim: int, steps: int, outputs: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(steps, dim, dim))
        self.offset = nn.Parameter(torch.zeros(steps, outputs * dim))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        place = (time * len(self.offset) - 1).clamp(0, len(self.offset) - 1)
        below = place.floor().long()
        above = place.ceil().long()
        share = (place - below)[:, None]
        weight = torch.lerp(self.weight[below], self.weight[above], share[..., None])
        offset = torch.lerp(self.offset[below], self.offset[above], share)
        linear = torch.einsum("bij,bj->bi", weight, x)
        return nn.functional.pad(linear, (0, offset.shape[1] - linear.shape[1])) + offset
