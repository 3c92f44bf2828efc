"""R-hat and effective sample sizes of many scalars at once.

The definitions of Vehtari, Gelman, Simpson, Carpenter & Buerkner (2021), as in ArviZ, for blocks
of scalars at once. Arrays are (chain, draw, *event); results are (*event). A scalar that is not
finite everywhere gets NaN; one that never changes has no R-hat and an effective size of all draws.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft
from scipy.special import ndtri

from ppl_models.errors import EngineError

_BLOCK = 1 << 18  # numbers worked on at a time
_KEPT = 1 << 20  # ranks whose scores are kept for the next array of as many


def r_hat(x: np.ndarray) -> np.ndarray:
    """Rank-normalised split R-hat: the larger of that of the draws and of their distances.

    Distances are from the median, so that chains of equal mean but different spread are told apart.
    NaN for one chain, which cannot tell whether it has seen every mode.
    """
    if len(x) < 2:
        return np.full(x.shape[2:], np.nan)

    def both(draws: np.ndarray) -> np.ndarray:
        split = _split(draws)
        folded = np.abs(split - np.median(split, axis=(0, 1)))
        return np.maximum(_plain_r_hat(_rank(split)), _plain_r_hat(_rank(folded)))

    return blockwise(both, x)


def ess_bulk(x: np.ndarray) -> np.ndarray:
    """Effective sample size of the rank-normalised draws: how well the centre is known."""
    return blockwise(lambda draws: _ess(_rank(_split(draws))), x)


def ess_tail(x: np.ndarray) -> np.ndarray:
    """The smaller effective sample size of the 5 % and the 95 % quantile."""
    return np.minimum(ess_quantile(x, 0.05), ess_quantile(x, 0.95))


def ess_quantile(x: np.ndarray, probability: float) -> np.ndarray:
    """Effective sample size of the share of draws at or below a quantile.

    How well that quantile is known; NaN where every draw is there, as at an atom.
    """
    return ess_local(x, 0.0, probability)


def ess_local(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """Effective sample size of the share of draws between two quantiles, both counted in.

    Chains that visit a part of the space too seldom have a small one there.
    """
    if not 0 <= low < high <= 1:
        raise EngineError(f"ess_local(low={low!r}, high={high!r}): give 0 <= low < high <= 1")

    def inside(draws: np.ndarray) -> np.ndarray:
        rows = np.ascontiguousarray(draws.reshape(-1, draws.shape[-1]).T)  # (scalar, draw)
        lower, upper = np.quantile(rows, (low, high), axis=1)
        within = (lower <= draws) & (draws <= upper)
        size = _ess(_split(within * 1.0))
        return np.where(np.isfinite(draws).all((0, 1)), size, np.nan)

    return blockwise(inside, x)


def growth(
    size: Callable[[np.ndarray], np.ndarray], x: np.ndarray, points: int = 20
) -> tuple[np.ndarray, np.ndarray]:
    """A figure such as ``ess_bulk`` of the first n draws of every chain, for several n.

    The effective sample size of a chain that mixes grows in proportion to n; one that levels off
    has met a part of the space that it leaves seldom.

    Returns:
        n, from 4 to all draws, and the figures (n, *event).

    >>> x = np.random.default_rng(0).normal(size=(4, 1000))
    >>> n, sizes = growth(ess_bulk, x, points=2)
    >>> n.tolist(), (sizes / (4 * n) > 0.5).tolist()
    ([500, 1000], [True, True])
    """
    draws = x.shape[1]
    at = np.unique(np.linspace(draws / points, draws, points).astype(int).clip(min(4, draws)))
    return at, np.stack([size(x[:, :n]) for n in at])


def nested_r_hat(x: np.ndarray, superchains: int) -> np.ndarray:
    """Nested R-hat, for many short chains: (chain, draw, *event) -> (*event).

    Chains are taken in order as ``superchains`` groups of equal size, the chains of a group having
    begun at one point. With B the variance of the groups' means and W the mean over groups of the
    variance within chains plus that between the chains of the group,

        R-hat = sqrt(1 + B / W),

    so that it is small where the groups forgot where they began, however short the chains; around
    sqrt(1 + 1 / M) for M chains in a group where a chain gives one independent draw. Of split,
    rank-normalised draws, the larger of that of the draws and of their distances from the median,
    as in ArviZ 1.x; chains of fewer than four draws are not split. Source: Margossian, Hoffman,
    Sountsov, Riou-Durand, Vehtari & Gelman (2024), Bayesian Analysis.

    Raises:
        EngineError: fewer than two groups, or chains that do not make equal groups.
    """
    chains, draws = x.shape[:2]
    if not (superchains >= 2 and chains % superchains == 0):
        raise EngineError(
            f"superchains={superchains!r}: {chains} chains do not make so many groups of equal "
            "size; give a divisor of their number, of at least 2"
        )

    def both(values: np.ndarray) -> np.ndarray:
        split = _split(values) if draws >= 4 else values
        # halves of a chain belong to its group: group first, (superchain, chain, draw, scalar)
        grouped = split.reshape(-1, superchains, chains // superchains, *split.shape[1:])
        grouped = grouped.swapaxes(0, 1).reshape(superchains, -1, *split.shape[1:])
        folded = np.abs(grouped - np.median(split, axis=(0, 1)))
        return np.maximum(*(_nested(_rank(part)) for part in (grouped, folded)))

    return blockwise(both, x)


def ess_mean(x: np.ndarray) -> np.ndarray:
    """Effective sample size for the mean, on which its Monte-Carlo error rests."""
    return blockwise(lambda draws: _ess(_split(draws)), x)


def mcse_mean(x: np.ndarray) -> np.ndarray:
    """Monte-Carlo standard error of the mean."""
    return blockwise(lambda draws: draws.std((0, 1), ddof=1) / np.sqrt(_ess(_split(draws))), x)


def mcse_sd(x: np.ndarray) -> np.ndarray:
    """Monte-Carlo standard error of the sd, by the delta method on the variance."""
    return relative_mcse_sd(x) * blockwise(lambda draws: draws.std((0, 1)), x)


def relative_mcse_sd(x: np.ndarray) -> np.ndarray:
    """``mcse_sd`` as a share of the sd: sqrt((kurtosis - 1) / (4 ESS of squares))."""

    def error(draws: np.ndarray) -> np.ndarray:
        square = np.square(draws - draws.mean((0, 1)))
        excess = np.maximum(_kurtosis(square) - 1, 0.0)  # below zero by rounding alone
        return np.sqrt(excess / (4 * _ess(_split(square))))

    return blockwise(error, x)


def distinct(x: np.ndarray) -> float:
    """How many independent draws (S,) stand for, where some are copies: S^2 / sum_j n_j^2.

    As after resampling: n_j copies are a weight n_j / S, and this is Kish's effective size.

    >>> distinct(np.array([1.0, 2.0, 2.0, 1.0]))
    2.0
    """
    counts = np.unique(x, return_counts=True)[1]
    return len(x) ** 2 / float(np.square(counts).sum())


def kurtosis(x: np.ndarray) -> np.ndarray:
    """E[(x - mean)^4] / variance^2, 3 for a normal; NaN for what never changes."""
    return blockwise(lambda draws: _kurtosis(np.square(draws - draws.mean((0, 1)))), x)


def autocovariance(x: np.ndarray, *, centred: bool = False) -> np.ndarray:
    """Mean over chains of the biased autocovariance at every lag, by FFT: (lag, *event).

    Each chain is centred at its own mean, unless ``centred`` says that it is so already.
    """
    draws = x.shape[1]
    around = x if centred else x - x.mean(1, keepdims=True)
    length = next_fast_len(2 * draws, real=True)
    spectrum: Any = rfft(around, n=length, axis=1)
    power = (spectrum.real**2 + spectrum.imag**2).mean(0)
    covariance: Any = irfft(power, n=length, axis=0)
    return covariance[:draws] / draws


def _ess(x: np.ndarray) -> np.ndarray:
    """Effective sample size of (chain, draw, scalar) by Geyer's initial monotone sequence."""
    chains, draws, _ = x.shape
    covariance = autocovariance(x)  # (lag, scalar)
    within = covariance[0] * draws / (draws - 1)
    between = x.mean(1).var(0, ddof=1) if chains > 1 else 0.0
    total = within * (draws - 1) / draws + between
    with np.errstate(invalid="ignore", divide="ignore"):
        rho = 1 - (within - covariance) / total
    rho[0] = 1.0
    # pairs of lags (0, 1), (2, 3), ...; the last one looked at is the first whose sum is not
    # positive, or the last that the length allows, and only its even lag counts
    longest = max(0, -(-(draws - 2) // 2) - 1)
    even, odd = rho[0 : 2 * longest + 2 : 2], rho[1 : 2 * longest + 2 : 2]
    sums = even + odd
    stops = sums <= 0
    last = np.where(stops.any(0), stops.argmax(0), longest)
    before = np.arange(len(sums))[:, None] < last
    tau = -1 + 2 * np.where(before, np.minimum.accumulate(sums, axis=0), 0.0).sum(0)
    even_last = np.take_along_axis(even, last[None], 0)[0]
    sum_last = np.take_along_axis(sums, last[None], 0)[0]
    tau = tau + np.where((even_last > 0) | (sum_last >= 0), even_last, 0.0)
    size = chains * draws
    ess = size / np.maximum(tau, 1 / np.log10(size))
    constant = np.ptp(x, axis=(0, 1)) < np.finfo(float).resolution
    return np.where(np.isfinite(x).all((0, 1)), np.where(constant, size, ess), np.nan)


def _kurtosis(square: np.ndarray) -> np.ndarray:
    """From squared distances from the mean (chain, draw, scalar)."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        return np.square(square).mean((0, 1)) / np.square(square.mean((0, 1)))


def _plain_r_hat(x: np.ndarray) -> np.ndarray:
    draws = x.shape[1]
    between = draws * x.mean(1).var(0, ddof=1)
    within = x.var(1, ddof=1).mean(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.sqrt((between / within + draws - 1) / draws)


def _nested(x: np.ndarray) -> np.ndarray:
    """R-hat of (superchain, chain, draw, scalar), by variances at each level."""

    def variance(values: np.ndarray, axis: int) -> np.ndarray | float:
        return values.var(axis, ddof=1) if values.shape[axis] > 1 else 0.0

    within = variance(x, 2)  # (superchain, chain, scalar)
    across = variance(x.mean(2), 1)  # (superchain, scalar)
    each = across + (within.mean(1) if isinstance(within, np.ndarray) else within)
    between = x.mean((1, 2)).var(0, ddof=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.sqrt(1 + between / np.mean(each, axis=0))


def _rank(x: np.ndarray) -> np.ndarray:
    """Normal scores of the ranks over chains and draws together, ties averaged."""
    rows = np.ascontiguousarray(x.reshape(-1, x.shape[-1]).T)  # (scalar, draw)
    scores = np.full(rows.shape, np.nan)
    size = rows.shape[1]
    of_rank = _normal_scores(size) if size <= _KEPT else _normal_scores.__wrapped__(size)
    for row, score in zip(rows, scores, strict=True):
        order = np.argsort(row)
        ascending = row[order]
        if not np.isfinite(ascending[[0, -1]]).all():
            continue
        differs = np.concatenate([[True], ascending[1:] != ascending[:-1]])
        first = np.flatnonzero(differs)  # of those that are equal
        count = np.diff(first, append=len(row))
        score[order] = np.repeat(of_rank[2 * first + count - 1], count)
    return scores.T.reshape(x.shape)


@functools.lru_cache(maxsize=2)
def _normal_scores(size: int) -> np.ndarray:
    """Those of the ranks 1, 1.5, 2, ..., ``size``."""
    ranks = 1 + np.arange(2 * size - 1) / 2
    scores = ndtri((ranks - 0.375) / (size + 0.25))
    scores.setflags(write=False)
    return scores


def _split(x: np.ndarray) -> np.ndarray:
    """Each chain as two, the middle draw of an odd number left out."""
    half = x.shape[1] // 2
    return np.concatenate([x[:, :half], x[:, -half:]], axis=0)


def blockwise(function: Callable[[np.ndarray], np.ndarray], x: np.ndarray) -> np.ndarray:
    """Apply to (chain, draw, scalar) in blocks of scalars, so that memory stays bounded."""
    chains, draws = x.shape[:2]
    flat = np.asarray(x, dtype=float).reshape(chains, draws, -1)
    step = max(1, _BLOCK // max(1, chains * draws))
    parts = [function(flat[:, :, i : i + step]) for i in range(0, flat.shape[2], step)]
    return np.concatenate(parts).reshape(x.shape[2:])
