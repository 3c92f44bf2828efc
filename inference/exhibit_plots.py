"""Plots of what models have to show: images, points and bars."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from inference.plots import COLOURS, VECTOR, Draw, number
from ppl_models.exhibits import Bars, Exhibit, ImageGrid, Points

_WIDTH = 4.8  # inches of a wide picture


def drawing(title: str, exhibit: Exhibit) -> tuple[Draw, dict[str, Any]]:
    """How an exhibit is drawn, and the size of its picture."""
    if isinstance(exhibit, ImageGrid):
        tiles, number_of = mosaic(exhibit.images), tuple(exhibit.images.shape[:2])
        height = _WIDTH * tiles.shape[0] / tiles.shape[1]
        draw = functools.partial(_images, title=title, tiles=tiles, shape=number_of)
        return draw, {"wide": True, "height": float(np.clip(height, 0.6, 8.0))}
    if isinstance(exhibit, Points):
        draw = functools.partial(_points, title=title, exhibit=exhibit)
        return draw, {"wide": True, "height": 3.6}
    return functools.partial(_bars, title=title, exhibit=exhibit), {"wide": True}


def figure(title: str, exhibit: Exhibit) -> Figure:
    """An exhibit as a figure of its own, for a file."""
    draw, size = drawing(title, exhibit)
    made = Figure(figsize=(_WIDTH, size.get("height", 3.0)))
    made.subplots_adjust(left=0.15, bottom=0.15)
    draw(made.subplots())
    return made


def mosaic(images: Tensor) -> np.ndarray:
    """Images (R, C, *shape) as one, with gaps between them: (height, width) or (..., channels).

    Values are scaled to [0, 1] where they leave it; the gaps are NaN, of colours 1.
    """
    x = images.detach().float().cpu()
    if x.min() < 0 or x.max() > 1:
        x = (x - x.min()) / (x.max() - x.min())
    x = x if x.dim() == 5 else x[:, :, None]
    rows, columns, channels, height, width = x.shape
    gap = torch.nan if channels == 1 else 1.0
    tall = torch.full((rows, height + 1, columns, width + 1, channels), gap)
    tall[:, :height, :, :width] = x.permute(0, 3, 1, 4, 2)
    whole = tall.reshape(rows * (height + 1), columns * (width + 1), channels)[:-1, :-1]
    return whole[..., :3].numpy() if channels > 2 else whole[..., 0].numpy()


def plane(points: Tensor) -> np.ndarray:
    """Points (N, D) in their first principal plane: (N, 2)."""
    x = points.detach().double().cpu()
    x = x - x.mean(0)
    if x.shape[1] > 2:
        x = x @ torch.linalg.svd(x, full_matrices=False).Vh[:2].T
    if x.shape[1] == 1:
        x = torch.cat([x, torch.zeros_like(x)], -1)
    return x.numpy()


def _images(axes: Axes, *, title: str, tiles: np.ndarray, shape: tuple[int, ...]) -> str:
    axes.figure.subplots_adjust(0, 0, 1, 1)
    axes.imshow(tiles, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.axis("off")
    return f"{title}: {shape[0]} x {shape[1]} images"


def _points(axes: Axes, *, title: str, exhibit: Points) -> str:
    at = plane(exhibit.points)
    raster = len(at) > VECTOR
    labels = exhibit.labels
    groups = np.zeros(len(at), dtype=int) if labels is None else labels.cpu().numpy()
    for group in np.unique(groups):
        chosen = at[groups == group]
        colour = COLOURS[int(group) % len(COLOURS)]
        marker = "osv^D*"[int(group) // len(COLOURS) % 6]
        name = None if labels is None else str(group)
        axes.plot(chosen[:, 0], chosen[:, 1], marker, color=colour, markersize=2.5, alpha=0.7,
                  markeredgewidth=0, label=name, rasterized=raster)  # fmt: skip
    if labels is not None:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=2)
        axes.figure.subplots_adjust(right=0.86)
    principal = exhibit.points.shape[-1] > 2
    names = ("first principal axis", "second") if principal else ("first unit", "second unit")
    axes.set(xlabel=names[0], ylabel=names[1])
    kinds = "" if labels is None else f", coloured by {len(np.unique(groups))} labels"
    return f"{title}: {len(at)} points{kinds}"


def _bars(axes: Axes, *, title: str, exhibit: Bars) -> str:
    values = np.sort(exhibit.values.detach().double().cpu().numpy())[::-1]
    axes.bar(np.arange(1, len(values) + 1), values, color=COLOURS[0])
    axes.set(xlabel="rank", ylabel=exhibit.unit)
    return f"{title}: from {number(values[0])} down to {number(values[-1])} {exhibit.unit}"
