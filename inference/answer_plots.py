"""Plots of answers and predictions: each draws on axes and says what it shows in words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from inference.calibration import Band
from inference.plots import COLOURS, GREY, INK, RED, VECTOR, density, grid_of, number

_NATS = 0.01  # of an ELBO that matter to nobody


def forest(
    axes: Axes, name: str, rows: Sequence[tuple[str, float, float, float]], truth: float | None
) -> str:
    """Means and 94 % intervals of a scalar by fit; rows are (fit, mean, low, high)."""
    for row, (_, mean, low, high) in enumerate(rows[::-1]):
        colour = COLOURS[(len(rows) - 1 - row) % len(COLOURS)]
        axes.plot([low, high], [row, row], color=colour, linewidth=1.6)
        axes.plot([mean], [row], "o", color=colour, markersize=4)
    if truth is not None:
        axes.axvline(truth, color=RED, linewidth=1, linestyle="--")
    longest = min(22, max(len(row[0]) for row in rows))
    axes.figure.subplots_adjust(left=(0.15 + 0.068 * longest) / 2.9)
    axes.set_yticks(range(len(rows)), [_short(row[0]) for row in rows[::-1]])
    axes.set(title=name, ylim=(-0.6, len(rows) - 0.4))
    said = "; ".join(
        f"{fit} {number(mean)}" + (f" ({number(low)} to {number(high)})" if high > low else "")
        for fit, mean, low, high in rows[:12]
    )
    known = "" if truth is None else f". The reference, dashed, is {number(truth)}"
    return f"{name} by fit, mean and 94 % interval: {said}{known}"


def ascent(axes: Axes, path: np.ndarray, what: str = "ELBO") -> str:
    """What was maximised, look by look, with the plateau on which it ended shaded."""
    at = np.arange(1, len(path) + 1)
    axes.plot(at, path, color=COLOURS[0])
    last = path[-max(5, len(path) // 5) :]
    level = float(np.median(last))
    # second differences know nothing of a trend; of white noise their variance is six times its own
    bends = np.diff(path[-max(8, len(path) // 3) :], 2)
    noise = 1.4826 * float(np.median(np.abs(bends))) / np.sqrt(6) if len(bends) else 0.0
    outside = np.flatnonzero(np.abs(path - level) > max(4 * noise, _NATS))
    begin = int(outside[-1]) + 2 if len(outside) else 1
    words = "no plateau was reached"
    if begin <= len(path) - 2:
        axes.axvspan(begin, len(path), color=COLOURS[2], alpha=0.18, linewidth=0)
        words = f"on its plateau, shaded, from look {begin} of {len(path)}"
    # the first looks are far below: leave the scale to the rest
    low = float(np.quantile(path, 0.1))
    span = path.max() - low
    if span > 0:
        axes.set_ylim(low - 0.05 * span, path.max() + 0.05 * span)
    axes.figure.subplots_adjust(left=0.16)
    axes.set(xlabel=f"look at the {what}", ylabel=f"{what} (nats)")
    return f"{what} from {number(path[0])} to {path[-1]:.6g} nats: {words}"


def weights(axes: Axes, log_weight: np.ndarray, k_hat: float, limit: float) -> str:
    """Log importance weights about their median."""
    centred = log_weight - np.median(log_weight)
    axes.hist(centred, 40, color=COLOURS[0], alpha=0.8)
    axes.set(xlabel="log weight about its median", ylabel="draws", yscale="log")
    verdict = "below" if k_hat <= limit else "above"
    return (
        f"Log importance weights: sd {number(float(centred.std()))}, largest "
        f"{number(float(centred.max()))} above the median; Pareto k-hat {k_hat:.2f}, {verdict} its "
        f"limit {limit:.2f}"
    )


def predictive(axes: Axes, name: str, observed: np.ndarray, drawn: np.ndarray) -> str:
    """Observed values (N,) against replications (S, N): densities, or shares of whole numbers."""
    values = np.unique(observed)
    whole = bool((values == np.round(values)).all()) and bool((drawn == np.round(drawn)).all())
    if whole and np.ptp(values) <= 40:
        low, high = int(values.min()), int(min(drawn.max(), values.max() + 10))
        bins = np.arange(min(low, int(drawn.min())), high + 2)
        share = np.histogram(observed, bins)[0] / observed.size
        shares = np.stack([np.histogram(row, bins)[0] for row in drawn]) / observed.size
        a, m, b = np.quantile(shares, (0.05, 0.5, 0.95), axis=0)
        axes.bar(bins[:-1], share, 0.8, color=COLOURS[0], alpha=0.6, label="observed")
        axes.errorbar(bins[:-1], m, np.stack([m - a, b - m]), fmt="o", markersize=3, color=INK,
                      elinewidth=1, label="replicated, 90 %")  # fmt: skip
        axes.set(title=name, ylabel="share")
        axes.legend()
        outside = int(((share < a) | (share > b)).sum())
        return (
            f"Shares of the values of {name}, observed and replicated: {outside} of {len(share)} "
            "observed shares lie outside the 90 % interval of the replicated ones"
        )
    rows = drawn[:: max(1, len(drawn) // 50)][:50]
    few = observed[:: max(1, len(observed) // 2000)]
    grid = grid_of(np.concatenate([few, rows[:, :: max(1, rows.shape[1] // 200)].ravel()]))
    heights = np.stack([density(row[:: max(1, len(row) // 2000)], grid) for row in rows])
    axes.plot(grid, heights.T, color=COLOURS[0], linewidth=0.5, alpha=0.25, rasterized=True)
    own = density(few, grid)
    axes.plot(grid, own, color=INK, linewidth=1.6)
    axes.set(title=name, yticks=[], ylim=(0, 1.15 * max(own.max(), np.quantile(heights, 0.995))))
    outside = np.mean((own < heights.min(0)) | (own > heights.max(0)))
    return (
        f"Density of {name}, observed (dark line) and of {len(rows)} replications: the observed "
        f"one leaves the range of the replications over {outside:.0%} of the axis"
    )


def uniform_ecdf(axes: Axes, name: str, values: np.ndarray, band: Band, inside: bool) -> str:
    """The ECDF of what should be uniform, less the uniform one, in its simultaneous band."""
    ecdf = np.searchsorted(np.sort(values), band.at, side="right") / len(values)
    axes.fill_between(band.at, band.lower - band.at, band.upper - band.at, color=GREY, alpha=0.25,
                      step="mid", linewidth=0)  # fmt: skip
    axes.step(band.at, ecdf - band.at, where="mid", color=COLOURS[0])
    axes.axhline(0, color=INK, linewidth=0.5)
    axes.set(title=name, xlabel="LOO-PIT", ylabel="ECDF less uniform", xlim=(0, 1))
    axes.figure.subplots_adjust(left=0.21)
    gap = ecdf - band.at
    worst = int(np.abs(gap).argmax())
    return (
        f"ECDF of the LOO-PIT values of {name} less that of a uniform law: it "
        f"{'stays inside' if inside else 'leaves'} the 95 % band; farthest off, "
        f"{gap[worst]:+.2f}, at {band.at[worst]:.2f}"
    )


def pareto(axes: Axes, name: str, k_hat: np.ndarray, limit: float) -> str:
    """Pareto k-hat of every observation."""
    at = np.arange(len(k_hat))
    high = k_hat > limit
    many = len(k_hat) > VECTOR
    axes.plot(at[~high], k_hat[~high], ".", color=COLOURS[0], markersize=3, rasterized=many)
    axes.plot(at[high], k_hat[high], "x", color=RED, markersize=4, rasterized=many)
    axes.axhline(limit, color=GREY, linewidth=0.8, linestyle=":")
    axes.set(title=name, xlabel="observation", ylabel="Pareto k-hat")
    worst = int(np.argmax(k_hat))
    return (
        f"Pareto k-hat of the {len(k_hat)} observations of {name}: {int(high.sum())} above "
        f"{limit:.2f}; largest {number(k_hat[worst])} at observation {worst}"
    )


def _short(name: str) -> str:
    return name if len(name) <= 22 else f"{name[:21]}…"
