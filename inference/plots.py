"""How the plots of the report look, and how they become pictures of the page.

Colours are of middle lightness, so that they stand out on a light page and on a dark one; what is
drawn in ``INK`` takes the colour of the page's text.
"""

from __future__ import annotations

import base64
import io
import re
import textwrap
from collections.abc import Callable
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

INK = "#010203"
GREY = "#808080"
RED = "#e0564f"
COLOURS = (
    "#3b82d0", "#d9730d", "#2a9d5c", "#c8509b", "#8a6fd8", "#1694a8", "#a5714b", "#7d8a1f",
)  # fmt: skip

VECTOR = 2_000  # points of lines in a plot that stay lines; above they become pixels
_GRID = 160
_LARGE = 400_000  # characters of an SVG

_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",  # the same figure gives the same file
    "font.family": "sans-serif",
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.formatter.limits": (-4, 5),
    "axes.prop_cycle": cycler(color=COLOURS),
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "lines.linewidth": 1.1,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "savefig.transparent": True,
    "savefig.dpi": 160,
}
_THEME = (
    "<style>svg{color:#1f1f1f}text{fill:currentColor}"
    "@media screen and (prefers-color-scheme:dark){svg{color:#e6e6e6}}</style>"
)
_NOBODY: Any = {"Date": None, "Creator": None}  # the same figure gives the same file


class Picture(NamedTuple):
    """A figure ready for the page: its data address, and what it shows."""

    source: str
    alt: str
    wide: bool = False


Draw = Callable[[Axes], str]
"""Draws on axes and says what is seen."""


def picture(draw: Draw, *, wide: bool = False, height: float = 1.9) -> Picture:
    """A panel as an SVG whose text takes the page's light or dark colour."""
    with mpl.rc_context(_STYLE):
        width = 4.8 if wide else 2.9
        figure = Figure(figsize=(width, height))  # margins by hand: layout engines draw twice
        FigureCanvasSVG(figure)
        figure.subplots_adjust(0.52 / width, 0.42 / height, 1 - 0.17 / width, 1 - 0.26 / height)
        axes = figure.subplots()
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(4))
        alt = draw(axes)
        title = axes.get_title("left")
        if len(title) > 13 * width - 8:  # characters of its size that fit
            lines = textwrap.wrap(title, round(17 * width - 9), max_lines=2, placeholder=" ...")
            axes.set_title("\n".join(lines), fontsize=6.5, pad=2)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata=_NOBODY)
    return Picture(_address("svg+xml", _themed(buffer.getvalue()).encode()), alt, wide)


def foreign(figure: Figure, alt: str) -> Picture:
    """A figure that somebody else has made: what is black in it takes the page's colour.

    A figure of very many points becomes pixels on white instead.
    """
    with mpl.rc_context({key: _STYLE[key] for key in ("svg.fonttype", "svg.hashsalt")}):
        text = io.StringIO()
        figure.savefig(text, format="svg", bbox_inches="tight", transparent=True,
                       metadata=_NOBODY)  # fmt: skip
    if len(text.getvalue()) <= _LARGE:
        svg = text.getvalue().replace("#000000", INK)
        svg = svg.replace("fill: #ffffff; opacity: 0.8", "fill: none")  # behind a legend
        return Picture(_address("svg+xml", _themed(svg).encode()), alt, True)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight", facecolor="white")
    return Picture(_address("png", buffer.getvalue()), alt, True)


def _themed(svg: str) -> str:
    """An SVG whose ink takes the page's light or dark colour, without its preamble."""
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return svg.replace("<defs>", f"{_THEME}<defs>", 1)


def _address(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def number(value: float) -> str:
    """A figure in words: three digits."""
    return f"{value:.3g}"


def density(values: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """A Gaussian kernel density by histogram and convolution: (N,), (G,) -> (G,)."""
    values = values[(values >= grid[0]) & (values <= grid[-1])]
    if len(values) < 2:
        return np.zeros_like(grid)
    step = grid[1] - grid[0]
    spread = min(values.std(), np.subtract(*np.quantile(values, (0.75, 0.25))) / 1.34 or np.inf)
    width = max(0.9 * spread * len(values) ** -0.2, 0.5 * step)
    edges = np.append(grid - step / 2, grid[-1] + step / 2)
    counts = np.histogram(values, edges)[0] / (len(values) * step)
    half = min(int(4 * width / step) + 1, len(grid) - 1)
    kernel = np.exp(-0.5 * np.square(np.arange(-half, half + 1) * step / width))
    padded = np.pad(counts, half, mode="reflect")  # a bound of the support loses no mass
    return np.convolve(padded, kernel / kernel.sum(), mode="valid")


def grid_of(values: np.ndarray) -> np.ndarray:
    """Where densities are drawn: nearly all values, not beyond them, for there may be a bound."""
    low, high = np.quantile(values, (0.002, 0.998))
    pad = 0.05 * (high - low)
    low, high = max(low - pad, values.min()), min(high + pad, values.max())
    if not high > low:
        low, high = low - 1e-6 * (1 + abs(low)), high + 1e-6 * (1 + abs(high))
    return np.linspace(low, high, _GRID)
