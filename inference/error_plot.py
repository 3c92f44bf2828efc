"""Error against time: what a second of each engine buys, and where more of them buy nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from scipy import stats

from inference.compare_cells import Cell
from inference.fit import Fit
from inference.references import Reference, scalar_draws
from ppl_models.errors import EngineError

_MARKERS = "osD^vP*Xp<>h"
_POINTS = 30  # of a running mean
_FIRST = 10  # draws per chain
_LEVEL = 0.05  # of the test for a bias
_SEEDS = 3  # that a bias is judged by, at least


class Path(NamedTuple):
    """Error of a fit's running means, the last that of the whole fit.

    Args:
        seconds: wall time up to there (T,).
        error: root mean square over parameters, in reference sds (T,).
        signed: errors of the whole fit by parameter (P,).
    """

    seconds: np.ndarray
    error: np.ndarray
    signed: np.ndarray


def error_path(result: Fit, reference: Reference) -> Path | None:
    """The error against time of one fit; None where the reference knows no parameter of it.

    Of Markov chains after growing numbers of draws, of a point or an approximation at its end.
    """
    summary = result.summary()
    known = [name for name in summary.index if name in reference.moments.index]
    mean, sd = (reference.moments.loc[known, c].to_numpy(float) for c in ("mean", "sd"))
    known, mean, sd = [n for n, s in zip(known, sd, strict=True) if s > 0], mean[sd > 0], sd[sd > 0]
    if not known:
        return None
    signed = (summary.loc[known, "mean"].to_numpy(float) - mean) / sd
    total = result.seconds["total"]
    if result.posterior.kind != "samples":
        return Path(np.array([total]), np.array([_rms(signed)]), signed)
    variables = list(dict.fromkeys(name.split("[")[0] for name in known))
    table = scalar_draws(result.to_arviz(), variables)[known]
    chains, draws = (len(level) for level in table.index.levels)  # pyright: ignore[reportAttributeAccessIssue]
    values = table.to_numpy().reshape(chains, draws, -1).mean(0)  # (S, P), over chains
    ends = np.unique(np.geomspace(min(_FIRST, draws), draws, _POINTS).round().astype(int))
    running = values.cumsum(0)[ends - 1] / ends[:, None]
    sampling = result.seconds.get("sampling", total)
    seconds = total - sampling * (1 - ends / draws)
    return Path(seconds, _rms((running - mean) / sd), signed)


def bias_floor(signed: Sequence[np.ndarray]) -> float | None:
    """The error that no longer run removes: (P,) for each seed; None where it cannot be told.

    The mean error over S seeds, its square averaged over parameters, is B^2 + V / S, with B the
    bias and V the spread between seeds. B is given where at least three seeds agree on it: where
    the ratio to V / S exceeds the 95 % quantile of F(1, S - 1), as if parameters were one.
    """
    if len(signed) < _SEEDS:
        return None
    errors = np.stack(signed)  # (S, P)
    square = float(np.square(errors.mean(0)).mean())
    noise = float(errors.var(0, ddof=1).mean()) / len(errors)
    if square <= noise * float(stats.f.isf(_LEVEL, 1, len(errors) - 1)):
        return None
    return (square - noise) ** 0.5


def error_plot(
    cells: Sequence[Cell], fits: Mapping[str, Fit], references: Mapping[str, Reference]
) -> tuple[Figure, str]:
    """Error against seconds on logarithmic axes, one panel per model, and what it shows in words.

    A line is the running mean of a fit's chains, its marker the whole fit, one for each seed; a
    dashed line is a bias that the seeds agree on.

    Raises:
        EngineError: there is no reference, or none of its parameters is a fit's.
    """
    found: dict[str, dict[str, list[Path]]] = {}
    for cell in cells:
        if cell.name in fits and cell.model in references:
            path = error_path(fits[cell.name], references[cell.model])
            if path is not None:
                found.setdefault(cell.model, {}).setdefault(cell.engine, []).append(path)
    if not found:
        raise EngineError(
            "there is nothing to measure errors against; give compare(..., reference=...) means "
            "and sds, or draws, of the fits' parameters"
        )
    engines = list(dict.fromkeys(cell.engine for cell in cells))
    figure = Figure(figsize=(max(7.0, 4.5 * len(found)), 4.2), layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for axes, (model, by_engine) in zip(panels, found.items(), strict=True):
        for engine, paths in by_engine.items():
            number = engines.index(engine)
            colour, marker = f"C{number % 10}", _MARKERS[number % len(_MARKERS)]
            for path in paths:
                axes.plot(path.seconds, path.error, color=colour, alpha=0.45, lw=1)
            ends = np.array([(path.seconds[-1], path.error[-1]) for path in paths])
            axes.plot(*ends.T, marker, color=colour, label=engine)
            floor = bias_floor([path.signed for path in paths])
            if floor is not None:
                axes.axhline(floor, color=colour, ls="--", lw=1)
        axes.set(xscale="log", yscale="log", xlabel="seconds")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_locator(LogLocator(subs=(2, 5)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter("{x:g}")
        axes.set_title(model if len(found) > 1 else "")
        axes.grid(True, which="major", alpha=0.3)
    panels[0].set_ylabel("error of means (reference sds)")
    panels[-1].legend(fontsize=8)
    return figure, _words(found)


def _words(found: Mapping[str, Mapping[str, list[Path]]]) -> str:
    """What the figure shows, medians over seeds."""
    parts = []
    for model, by_engine in found.items():
        lines = []
        for engine, paths in by_engine.items():
            error = np.median([path.error[-1] for path in paths])
            seconds = np.median([path.seconds[-1] for path in paths])
            floor = bias_floor([path.signed for path in paths])
            bias = "" if floor is None else f", of which {floor:.2g} is bias"
            lines.append(f"{engine} {error:.2g} sds in {seconds:.2g} s{bias}")
        parts.append((f"{model}: " if len(found) > 1 else "") + ", ".join(lines))
    return "Error of the posterior means against time: " + "; ".join(parts)


def _rms(errors: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    return np.sqrt(np.square(errors).mean(-1))
