"""Corruptions of images that an autoencoder is trained to undo; any function may take their place.

A code from which the clean image is restored says less of what the corruption changes: Vincent,
Larochelle, Lajoie, Bengio & Manzagol (2010), "Stacked denoising autoencoders". Small moves as
corruptions before clustering: Guo, Zhu, Liu & Yin (2018), "Deep embedded clustering with data
augmentation". Random numbers are drawn by torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ppl_models.errors import ModelError


@dataclass(frozen=True)
class Masking:
    """Pixels set to zero: (B, *shape) -> (B, *shape).

    Args:
        share: of the pixels, in expectation.

    Raises ``ModelError`` for a share outside [0, 1).
    """

    share: float = 0.2

    def __post_init__(self) -> None:
        _share("Masking", "share", self.share)

    def __call__(self, x: Tensor) -> Tensor:
        return x * (torch.rand_like(x) >= self.share)


@dataclass(frozen=True)
class Jitter:
    """Images turned, shifted and zoomed a little: (B, [channels,] height, width) -> the same.

    Each image has draws of its own, uniform between minus and plus the figure; what comes in from
    outside is zero.

    Args:
        turn: in radians.
        shift: in halves of the image's width and height.
        zoom: as a share of the size.

    Raises ``ModelError`` for a figure outside [0, 1).
    """

    turn: float = 0.2
    shift: float = 0.2
    zoom: float = 0.1

    def __post_init__(self) -> None:
        for name in ("turn", "shift", "zoom"):
            _share("Jitter", name, getattr(self, name))

    def __call__(self, x: Tensor) -> Tensor:
        images = x.reshape(len(x), -1, *x.shape[-2:])
        unit = 2 * torch.rand(4, len(x), dtype=x.dtype, device=x.device) - 1
        angle, size = self.turn * unit[0], 1 + self.zoom * unit[1]
        along, across = size * angle.cos(), size * angle.sin()
        rows = [along, -across, self.shift * unit[2], across, along, self.shift * unit[3]]
        moves = torch.stack(rows, -1).reshape(-1, 2, 3)
        grid = functional.affine_grid(moves, list(images.shape), align_corners=False)
        return functional.grid_sample(images, grid, align_corners=False).reshape(x.shape)


def _share(owner: str, name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ModelError(f"{owner}({name}={value!r}): give a number in [0, 1)")
