"""Plots of Markov chains: each draws on axes and says what it shows in words.

``x`` is (chain, draw), of one scalar.
"""

from __future__ import annotations

import itertools

import numpy as np
from matplotlib.axes import Axes
from scipy import stats

from inference import ergodic, mixing
from inference.plots import COLOURS, GREY, INK, RED, VECTOR, density, grid_of, number

_POINTS = 250  # of a chain in a trace
_SCATTERED = 1_500


def trace(axes: Axes, name: str, x: np.ndarray) -> str:
    """Draws in their order, by chain, thinned."""
    chains, draws = x.shape
    chosen = _telling(x, 16)
    step = -(-draws // _POINTS)
    at = np.arange(0, draws, step)
    many = len(at) * len(chosen) > VECTOR
    for chain in chosen:
        axes.plot(at, x[chain, ::step], linewidth=0.6, alpha=0.8, rasterized=many)
    axes.set(title=name, xlabel="draw" if step == 1 else f"draw (every {_nth(step)})")
    means = x.mean(1)
    of = "" if len(chosen) == chains else f" (of {chains}, those whose means lie farthest out)"
    return (
        f"Trace of {name} in {len(chosen)} chains{of}, {draws} draws each: "
        f"means by chain from {number(means.min())} to {number(means.max())}, pooled sd "
        f"{number(x.std())}"
    )


def marginal(axes: Axes, name: str, x: np.ndarray) -> str:
    """Density by chain (few chains), and pooled."""
    whole = np.issubdtype(x.dtype, np.integer)
    if whole or len(np.unique(x[:, :1000])) < 12:
        values, counts = np.unique(x, return_counts=True)
        axes.bar(values.astype(float), counts / counts.sum(), color=COLOURS[0], alpha=0.8)
        axes.set(title=name, ylabel="share")
        return (
            f"Shares of the values of {name}: most often {number(values[counts.argmax()])}, with "
            f"{counts.max() / counts.sum():.0%}"
        )
    grid = grid_of(x)
    if 1 < len(x) <= 8:
        for chain in x:
            axes.plot(grid, density(chain, grid), linewidth=0.7, alpha=0.7)
    pooled = density(x.ravel(), grid)
    axes.plot(grid, pooled, color=INK, linewidth=1.4)
    low, high = np.quantile(x, (0.03, 0.97))
    axes.fill_between(
        grid, pooled, where=list((grid >= low) & (grid <= high)), color=GREY, alpha=0.2
    )
    axes.set(title=name, yticks=[], ylim=(0, None))
    return (
        f"Density of {name}: median {number(float(np.median(x)))}, 94 % of the draws between "
        f"{number(low)} and {number(high)}"
    )


def ranks(axes: Axes, name: str, x: np.ndarray) -> str:
    """Histograms of the ranks among all draws, a row for each chain."""
    chains, draws = x.shape
    ranked = stats.rankdata(x, method="average").reshape(x.shape) / x.size
    bins = int(np.clip(draws // 10, 2, 20))
    counts = np.stack([np.histogram(row, bins, (0, 1))[0] for row in ranked]) / (draws / bins)
    off = np.abs(counts - 1).max(1)
    chosen = np.sort(np.argsort(-off, kind="stable")[:8])
    edges = np.linspace(0, 1, bins + 1)
    tallest = max(2.0, float(counts[chosen].max()))
    for row, chain in enumerate(chosen[::-1]):
        heights = counts[chain] / tallest * 0.92
        axes.stairs(row + heights, edges, baseline=row, fill=True, alpha=0.75,
                    color=COLOURS[chain % len(COLOURS)])  # fmt: skip
        axes.axhline(row + 0.92 / tallest, color=INK, linewidth=0.5, linestyle=":")
    axes.set(title=name, xlabel="rank / draws", xlim=(0, 1))
    axes.set_yticks(np.arange(len(chosen)) + 0.4, [f"{chain}" for chain in chosen[::-1]])
    axes.set_ylabel("chain")
    shown = "all chains" if len(chosen) == chains else f"the {len(chosen)} least level of {chains}"
    worst = chosen[int(np.argmax(off[chosen]))]
    return (
        f"Histograms of the ranks of {name} by chain ({shown}): bars between "
        f"{counts.min():.2f} and {counts.max():.2f} times the level height; chain {worst} is "
        "the least level"
    )


def average(axes: Axes, name: str, x: np.ndarray, truth: float | None = None) -> str:
    """The running mean over all chains with its 95 % band."""
    path = ergodic.running_mean(x[..., None])
    mean, lower, upper = path.mean[:, 0], path.lower[:, 0], path.upper[:, 0]
    axes.fill_between(path.draws, lower, upper, color=COLOURS[0], alpha=0.25, linewidth=0)
    axes.plot(path.draws, mean, color=COLOURS[0])
    # the first averages are of a few draws: leave the scale to the rest
    tail = slice(len(path.draws) // 10, None)
    low, high = lower[tail].min(), upper[tail].max()
    words = ""
    if truth is not None:
        axes.axhline(truth, color=RED, linewidth=1, linestyle="--")
        low, high = min(low, truth), max(high, truth)
        words = f"; the reference, dashed, is {number(truth)}"
    if high > low:
        axes.set_ylim(low - 0.03 * (high - low), high + 0.03 * (high - low))
    axes.set(title=name, xlabel="draws per chain")
    return (
        f"Running mean of {name}: {number(mean[-1])} after all draws, 95 % band from "
        f"{number(lower[-1])} to {number(upper[-1])}{words}"
    )


def autocorrelation(axes: Axes, name: str, x: np.ndarray) -> str:
    """Autocorrelation by lag, the mean over chains."""
    chains, draws = x.shape
    covariance = mixing.autocovariance(x[..., None])[:, 0]
    rho = covariance / covariance[0]
    noise = 1.96 / np.sqrt(chains * draws)
    small = np.flatnonzero(np.abs(rho) < max(noise, 0.05))
    first = int(small[0]) if len(small) else draws
    lags = int(np.clip(3 * first, min(20, draws // 2), draws // 2)) or 1
    axes.axhspan(-noise, noise, color=GREY, alpha=0.25, linewidth=0)
    if lags <= 60:
        axes.vlines(np.arange(lags + 1), 0, rho[: lags + 1], color=COLOURS[0], linewidth=1.4)
    else:
        at = np.unique(np.linspace(0, lags, 200).astype(int))
        axes.plot(at, rho[at], color=COLOURS[0])
    axes.axhline(0, color=INK, linewidth=0.5)
    axes.set(title=name, xlabel="lag (draws)", ylim=(min(-0.1, rho[: lags + 1].min()), 1.02))
    fades = f"falls below 0.05 at lag {first}" if len(small) else "does not die out"
    return f"Autocorrelation of {name}: {number(rho[1])} at lag 1; it {fades}"


def growth(axes: Axes, name: str, x: np.ndarray) -> str:
    """Effective sample sizes after every number of draws."""
    chains = len(x)
    ends = []
    for label, size, style in (("bulk", mixing.ess_bulk, "-o"), ("tail", mixing.ess_tail, "--s")):
        at, sizes = mixing.growth(size, x[..., None], points=8)
        axes.plot(at, sizes[:, 0], style, markersize=2.5, label=label)
        ends.append(f"{label} {sizes[-1, 0]:,.0f} after {at[-1]} draws per chain")
        middle = len(at) // 2
        if sizes[-1, 0] < 1.15 * sizes[middle, 0]:
            ends[-1] += f", {sizes[middle, 0]:,.0f} already after {at[middle]}: it has levelled off"
    axes.axhline(100 * chains, color=GREY, linewidth=0.8, linestyle=":")
    axes.set(title=name, xlabel="draws per chain", ylabel="ESS", ylim=(0, None))
    axes.legend()
    return f"Effective sample size of {name}: {'; '.join(ends)}. Dotted: 100 for each chain"


def local_sizes(axes: Axes, name: str, x: np.ndarray) -> str:
    """Effective sample sizes of ten parts of the space, and of quantiles."""
    edges = np.linspace(0, 1, 11)
    column = x[..., None]
    local = np.array([mixing.ess_local(column, a, b)[0] for a, b in itertools.pairwise(edges)])
    levels = np.array([0.05, 0.25, 0.5, 0.75, 0.95])
    quantile = np.array([mixing.ess_quantile(column, p)[0] for p in levels])
    axes.bar(edges[:-1] + 0.05, local, 0.085, color=COLOURS[0], alpha=0.7, label="part")
    axes.plot(levels, quantile, "o", color=COLOURS[1], markersize=3.5, label="quantile")
    axes.axhline(100 * len(x), color=GREY, linewidth=0.8, linestyle=":")
    axes.set(title=name, xlabel="probability", ylabel="ESS", ylim=(0, None), xlim=(0, 1))
    axes.legend(loc="lower center", ncols=2)
    if np.isnan(local).all() or np.isnan(quantile).all():
        return f"Effective sample sizes of parts of the space of {name}: not defined"
    least, worst = np.nanargmin(local), np.nanargmin(quantile)
    return (
        f"Effective sample size of {name} by tenths of its draws: least, {local[least]:,.0f}, "
        f"between the quantiles {edges[least]:.1f} and {edges[least + 1]:.1f}; of quantiles: "
        f"least, {quantile[worst]:,.0f}, at {levels[worst]}"
    )


def energy(axes: Axes, energies: np.ndarray, name: str = "energy") -> str:
    """Energies about their means by chain, and their changes from draw to draw."""
    around = (energies - energies.mean(1, keepdims=True)).ravel()
    jumps = np.diff(energies, axis=1).ravel()
    grid = grid_of(np.concatenate([around, jumps]))
    for label, values, colour in (("energies", around, COLOURS[0]), ("changes", jumps, COLOURS[1])):
        height = density(values, grid)
        axes.plot(grid, height, color=colour, label=label)
        axes.fill_between(grid, height, color=colour, alpha=0.2, linewidth=0)
    axes.set(title=name, yticks=[], xlabel="nats about the mean")
    axes.legend()
    ratios = np.square(np.diff(energies, axis=1)).mean(1) / np.maximum(energies.var(1), 1e-300)
    return (
        f"Distribution of the energies, sd {number(float(around.std()))}, and of their changes, sd "
        f"{number(float(jumps.std()))}: E-BFMI by chain from {ratios.min():.2f} to "
        f"{ratios.max():.2f}"
    )


def depths(axes: Axes, depth: np.ndarray, diverging: np.ndarray | None) -> str:
    """A map of how often each chain made trees of each depth."""
    chains = len(depth)
    depth = depth.astype(int)
    low, high = int(depth.min()), int(depth.max())
    counts = np.stack([np.bincount(row - low, minlength=high - low + 1) for row in depth])
    shares = counts / counts.sum(1, keepdims=True)
    image = axes.imshow(shares, aspect="auto", cmap="viridis", vmin=0, interpolation="nearest",
                        extent=(low - 0.5, high + 0.5, chains - 0.5, -0.5))  # fmt: skip
    axes.figure.colorbar(image, ax=axes, label="share of draws").outline.set_visible(False)
    axes.set(title="tree depth", xlabel="depth", ylabel="chain")
    axes.set_xticks(np.arange(low, high + 1))
    axes.set_yticks(np.unique(np.linspace(0, chains - 1, min(chains, 6)).astype(int)))
    words = f"Tree depth by chain: from {low} to {high}, most often {low + counts.sum(0).argmax()}"
    if diverging is not None and diverging.any():
        worst = int(diverging.sum(1).argmax())
        words += (
            f"; divergences by chain from {diverging.sum(1).min()} to {diverging.sum(1).max()}, "
            f"most in chain {worst}"
        )
    return words


def pair(
    axes: Axes, names: tuple[str, str], x: np.ndarray, y: np.ndarray, diverging: np.ndarray
) -> str:
    """Two scalars against each other, divergent draws marked; all arrays (draw,)."""
    usual = np.flatnonzero(~diverging)
    usual = usual[:: max(1, len(usual) // _SCATTERED)]
    bad = np.flatnonzero(diverging)
    bad = bad[:: max(1, len(bad) // _SCATTERED)]
    axes.plot(x[usual], y[usual], ".", color=COLOURS[0], markersize=2, alpha=0.35, rasterized=True)
    axes.plot(x[bad], y[bad], "x", color=RED, markersize=3.5, rasterized=True)
    axes.set(xlabel=names[0], ylabel=names[1])
    a, b = np.quantile(x[diverging], (0.05, 0.95))
    c, d = np.quantile(y[diverging], (0.05, 0.95))
    return (
        f"{names[1]} against {names[0]}: {diverging.sum()} divergent draws, red crosses, of "
        f"{diverging.size}; 90 % of them lie between {number(a)} and {number(b)} in {names[0]} and "
        f"between {number(c)} and {number(d)} in {names[1]}"
    )


def _telling(x: np.ndarray, most: int) -> np.ndarray:
    """Which chains to draw: all, or those whose means lie farthest out."""
    if len(x) <= most:
        return np.arange(len(x))
    off = np.abs(x.mean(1) - x.mean())
    return np.sort(np.argsort(-off, kind="stable")[:most])


def _nth(step: int) -> str:
    return f"{step}{'nd' if step == 2 else 'rd' if step == 3 else 'th'}"
