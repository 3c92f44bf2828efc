"""What a model has to show beside numbers: plain values, which a report draws as it likes."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class ImageGrid(NamedTuple):
    """Images in rows and columns, of (height, width) or (channels, height, width)."""

    note: str
    images: Tensor  # (R, C, *shape)


class Points(NamedTuple):
    """Points of the plane, or of a space of which its first principal plane is shown."""

    note: str
    points: Tensor  # (N, D)
    labels: Tensor | None = None  # (N,) of whole numbers


class Bars(NamedTuple):
    """Numbers side by side, from the largest on."""

    note: str
    values: Tensor  # (N,)
    unit: str


Exhibit = ImageGrid | Points | Bars
