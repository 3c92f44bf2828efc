"""Encoders and decoders of rows; any ``nn.Module`` with their arguments may take their place.

An encoder is called with x (B, *shape) and returns (B, 2 latent): means, then log standard
deviations, of q(z | x). A decoder is called with z (B, latent) and returns a number for each pixel,
(B, *shape) or flat. Of a conditional model both are given y (B, classes), one-hot, as their second
argument.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ppl_models.errors import ModelError

Activation = Callable[[], nn.Module]


def perceptron(sizes: Sequence[int], activation: Activation = nn.ReLU) -> nn.Sequential:
    """Linear layers of these sizes, with an activation between each two."""
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(itertools.pairwise(sizes)):
        layers += [activation()] if i else []
        layers.append(nn.Linear(before, after))
    return nn.Sequential(*layers)


def _beside(x: Tensor, y: Tensor | None) -> Tensor:
    return x if y is None else torch.cat([x, y.to(x)], -1)


class MLPEncoder(nn.Module):
    """A perceptron from pixels to means and log standard deviations.

    Args:
        shape: of a row.
        latent: units.
        hidden: widths of the hidden layers, from the pixels on; none for a linear encoder.
        classes: of y, which stands beside the pixels.
        activation: makes the module between two layers.
    """

    def __init__(
        self,
        shape: Sequence[int],
        latent: int,
        hidden: Sequence[int] = (400,),
        *,
        classes: int = 0,
        activation: Activation = nn.ReLU,
    ) -> None:
        super().__init__()
        self.layers = perceptron((math.prod(shape) + classes, *hidden, 2 * latent), activation)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return self.layers(_beside(x.flatten(1), y))


class MLPDecoder(nn.Module):
    """A perceptron from latent units to pixels.

    Args:
        shape: of a row.
        latent: units.
        hidden: widths of the hidden layers, from the units on; none for a linear decoder.
        classes: of y, which stands beside the units.
        activation: makes the module between two layers.
    """

    def __init__(
        self,
        shape: Sequence[int],
        latent: int,
        hidden: Sequence[int] = (400,),
        *,
        classes: int = 0,
        activation: Activation = nn.ReLU,
    ) -> None:
        super().__init__()
        self.layers = perceptron((latent + classes, *hidden, math.prod(shape)), activation)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        return self.layers(_beside(z, y))


class ConvEncoder(nn.Module):
    """Two convolutions that halve the image, then a linear layer.

    Args:
        shape: (height, width) or (channels, height, width).
        latent: units.
        channels: of the two convolutions.
        classes: of y, which stands beside the last features.
    """

    def __init__(
        self,
        shape: Sequence[int],
        latent: int,
        channels: tuple[int, int] = (16, 32),
        *,
        classes: int = 0,
    ) -> None:
        super().__init__()
        self.image = _image(shape)
        self.convolutions = nn.Sequential(
            nn.Conv2d(self.image[0], channels[0], 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels[0], channels[1], 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
        )
        height, width = _halved(self.image)[-1]
        self.last = nn.Linear(channels[1] * height * width + classes, 2 * latent)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return self.last(_beside(self.convolutions(x.reshape(-1, *self.image)), y))


class ConvDecoder(nn.Module):
    """A linear layer, then twice: enlarge to the next size, and convolve.

    Enlarging by copies of pixels leaves no chequered pattern, as transposed convolutions do (Odena,
    Dumoulin & Olah 2016), and serves images of any height and width.

    Args:
        shape: (height, width) or (channels, height, width).
        latent: units.
        channels: of the two layers.
        classes: of y, which stands beside the units.
    """

    def __init__(
        self,
        shape: Sequence[int],
        latent: int,
        channels: tuple[int, int] = (32, 16),
        *,
        classes: int = 0,
    ) -> None:
        super().__init__()
        image = _image(shape)
        half, quarter = _halved(image)
        self.first = nn.Linear(latent + classes, channels[0] * math.prod(quarter))
        self.layers = nn.Sequential(
            nn.ReLU(),
            nn.Unflatten(1, (channels[0], *quarter)),
            nn.Upsample(half),
            nn.Conv2d(channels[0], channels[1], 3, padding=1),
            nn.ReLU(),
            nn.Upsample(image[1:]),
            nn.Conv2d(channels[1], image[0], 3, padding=1),
        )

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        return self.layers(self.first(_beside(z, y)))


def _image(shape: Sequence[int]) -> tuple[int, int, int]:
    """(channels, height, width); raises ``ModelError`` for rows that are no images."""
    if len(shape) not in (2, 3):
        raise ModelError(
            f"shape={tuple(shape)}: convolutions need (height, width) or (channels, height, width)"
        )
    channels, height, width = (1, *shape)[-3:]
    return channels, height, width


def _halved(image: tuple[int, int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Heights and widths after one and after two halvings, rounded up."""
    half = (-(-image[1] // 2), -(-image[2] // 2))
    return half, (-(-half[0] // 2), -(-half[1] // 2))
