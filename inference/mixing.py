"""R-hat and effective sample sizes of many scalars at once.

The definitions of Vehtari, Gelman, Simpson, Carpenter & Buerkner (2021), as in ArviZ, without a
loop over scalars. Arrays are (chain, draw, *event); results are (*event). A scalar that is not
finite everywhere gets NaN; one that never changes has no R-hat and an effective size of all draws.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.fft import next_fast_len
from scipy.special import ndtri
from scipy.stats import rankdata

_BLOCK = 1 << 22  # numbers worked on at a time


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

    return _blockwise(both, x)


def ess_bulk(x: np.ndarray) -> np.ndarray:
    """Effective sample size of the rank-normalised draws: how well the centre is known."""
    return _blockwise(lambda draws: _ess(_rank(_split(draws))), x)


def ess_tail(x: np.ndarray) -> np.ndarray:
    """The smaller effective sample size of the 5 % and the 95 % quantile."""

    def tails(draws: np.ndarray) -> np.ndarray:
        low, high = np.quantile(draws, (0.05, 0.95), axis=(0, 1))
        split = _split(draws)
        return np.minimum(_ess((split <= low) * 1.0), _ess((split <= high) * 1.0))

    return _blockwise(tails, x)


def ess_mean(x: np.ndarray) -> np.ndarray:
    """Effective sample size for the mean, on which its Monte-Carlo error rests."""
    return _blockwise(lambda draws: _ess(_split(draws)), x)


def mcse_mean(x: np.ndarray) -> np.ndarray:
    """Monte-Carlo standard error of the mean."""
    return np.std(x, axis=(0, 1), ddof=1) / np.sqrt(ess_mean(x))


def mcse_sd(x: np.ndarray) -> np.ndarray:
    """Monte-Carlo standard error of the sd, by the delta method on the variance."""
    square = np.square(x - np.mean(x, axis=(0, 1)))
    variance = np.mean(square, axis=(0, 1))
    spread = np.mean(np.square(square), axis=(0, 1)) - np.square(variance)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.sqrt(spread / ess_mean(square) / (4 * variance))


def autocovariance(x: np.ndarray, *, centred: bool = False) -> np.ndarray:
    """Biased autocovariance at every lag, by FFT along the draws: the shape of ``x``.

    Each chain is centred at its own mean, unless ``centred`` says that it is so already.
    """
    draws = x.shape[1]
    around = x if centred else x - x.mean(1, keepdims=True)
    length = next_fast_len(2 * draws, real=True)
    spectrum = np.fft.rfft(around, n=length, axis=1)
    power = spectrum.real**2 + spectrum.imag**2
    return np.fft.irfft(power, n=length, axis=1)[:, :draws] / draws


def _ess(x: np.ndarray) -> np.ndarray:
    """Effective sample size of (chain, draw, scalar) by Geyer's initial monotone sequence."""
    chains, draws, _ = x.shape
    covariance = autocovariance(x).mean(0)  # (lag, scalar)
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


def _plain_r_hat(x: np.ndarray) -> np.ndarray:
    draws = x.shape[1]
    between = draws * x.mean(1).var(0, ddof=1)
    within = x.var(1, ddof=1).mean(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.sqrt((between / within + draws - 1) / draws)


def _rank(x: np.ndarray) -> np.ndarray:
    """Normal scores of the ranks over chains and draws together, ties averaged."""
    flat = x.reshape(-1, x.shape[-1])
    ranks = rankdata(flat, method="average", axis=0)
    scores = ndtri((ranks - 0.375) / (len(flat) + 0.25))
    return np.where(np.isfinite(flat).all(0), scores, np.nan).reshape(x.shape)


def _split(x: np.ndarray) -> np.ndarray:
    """Each chain as two, the middle draw of an odd number left out."""
    half = x.shape[1] // 2
    return np.concatenate([x[:, :half], x[:, -half:]], axis=0)


def _blockwise(function: Callable[[np.ndarray], np.ndarray], x: np.ndarray) -> np.ndarray:
    """Apply to (chain, draw, scalar) in blocks of scalars, so that memory stays bounded."""
    chains, draws = x.shape[:2]
    flat = np.asarray(x, dtype=float).reshape(chains, draws, -1)
    step = max(1, _BLOCK // max(1, chains * draws))
    parts = [function(flat[:, :, i : i + step]) for i in range(0, flat.shape[2], step)]
    return np.concatenate(parts).reshape(x.shape[2:])
