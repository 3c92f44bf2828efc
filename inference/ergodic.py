"""Ergodic averages: the running mean of a Markov chain with its central-limit band.

For a function g of a stationary chain the average g_N of N draws obeys

    sqrt(N) (g_N - E g) -> N(0, sigma^2),   sigma^2 = Var g + 2 sum_{n >= 1} Cov(g(X_0), g(X_n)).

Arrays are (chain, draw, *event); chains are taken to be independent copies of one chain.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import numpy as np
from scipy.stats import norm

from inference.mixing import autocovariance
from ppl_models.errors import EngineError

Method = Literal["monotone", "positive", "batch", "overlapping", "spectral"]


LEAST = 10
"""Draws per chain below which nothing is estimated."""


class Average(NamedTuple):
    """The running mean after each number of draws per chain, with its band."""

    draws: np.ndarray  # (K,) draws per chain
    mean: np.ndarray  # (K, *event), over all chains
    lower: np.ndarray  # (K, *event)
    upper: np.ndarray  # (K, *event)


def asymptotic_variance(x: np.ndarray, method: Method = "monotone") -> np.ndarray:
    """sigma^2 of each scalar: (chain, draw, *event) -> (*event).

    Args:
        x: draws, or a function of them.
        method: "positive" and "monotone" sum autocovariances by Geyer's initial positive or
            monotone sequence (Geyer 1992), for reversible chains; "batch" takes the variance of the
            means of sqrt(N) batches, "overlapping" of all windows of that length (Meketon &
            Schmeiser 1984; Flegal & Jones 2010); "spectral" the spectral density at zero with the
            Tukey-Hanning window. The last three are too small while sqrt(N) is not many times the
            autocorrelation time.

    Raises:
        EngineError: an unknown method, or fewer than 10 draws per chain.
    """
    methods: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "positive": lambda c: _geyer(c, monotone=False),
        "monotone": lambda c: _geyer(c, monotone=True),
        "batch": _batch_means,
        "overlapping": _overlapping,
        "spectral": _spectral,
    }
    if method not in methods:
        raise EngineError(f"method={method!r}: choose one of {', '.join(get_args(Method))}")
    x = np.asarray(x, dtype=float)
    if x.shape[1] < LEAST:
        raise EngineError(f"only {x.shape[1]} draws per chain: give at least {LEAST}")
    flat = x.reshape(*x.shape[:2], -1)
    return methods[method](flat).reshape(x.shape[2:])


def running_mean(
    x: np.ndarray, level: float = 0.95, method: Method = "monotone", points: int = 200
) -> Average:
    """The average of the first n draws of every chain, for ``points`` values of n.

    The band at n is mean +- z sigma / sqrt(n * chains), sigma^2 from all draws: it tells how far
    the average is expected to be from the limit, if the chains are stationary.
    """
    x = np.asarray(x, dtype=float)
    chains, draws = x.shape[:2]
    at = np.unique(np.linspace(1, draws, min(points, draws)).astype(int))
    sums = x.mean(0).cumsum(0)[at - 1]
    number = at.reshape(-1, *[1] * (x.ndim - 2))
    mean = sums / number
    half = norm.ppf(0.5 + level / 2) * np.sqrt(asymptotic_variance(x, method) / (number * chains))
    return Average(at, mean, mean - half, mean + half)


def autocorrelation_time(x: np.ndarray, method: Method = "monotone") -> np.ndarray:
    """Integrated autocorrelation time sigma^2 / Var g in draws: (chain, draw, *event) -> event."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return asymptotic_variance(x, method) / np.var(x, axis=(0, 1), ddof=1)


def _geyer(x: np.ndarray, *, monotone: bool) -> np.ndarray:
    draws = x.shape[1]
    # about the pooled mean: chains that disagree then show as correlation that does not die out
    covariance = autocovariance(x - x.mean((0, 1)), centred=True)  # (lag, scalar)
    pairs = draws // 2
    sums = covariance[0 : 2 * pairs : 2] + covariance[1 : 2 * pairs : 2]
    negative = sums <= 0
    ended = np.where(negative.any(0), negative.argmax(0), pairs)
    kept = np.arange(pairs)[:, None] < ended
    if monotone:
        sums = np.minimum.accumulate(sums, axis=0)
    total = 2 * np.where(kept, sums, 0.0).sum(0) - covariance[0]
    # an anticorrelated chain may end at the first pair: its variance is small, never negative
    return np.maximum(total, covariance[0] / draws)


def _batch_means(x: np.ndarray) -> np.ndarray:
    chains, draws, scalars = x.shape
    length = int(np.sqrt(draws))
    number = draws // length
    batches = x[:, draws - number * length :].reshape(chains, number, length, scalars).mean(2)
    return length * batches.reshape(-1, scalars).var(0, ddof=1)


def _overlapping(x: np.ndarray) -> np.ndarray:
    chains, draws, _ = x.shape
    length = int(np.sqrt(draws))
    sums = np.cumsum(np.pad(x - x.mean((0, 1)), ((0, 0), (1, 0), (0, 0))), axis=1)
    means = (sums[:, length:] - sums[:, :-length]) / length  # (chain, draws - length + 1, scalar)
    scale = draws * length / ((draws - length) * (draws - length + 1))
    return scale * np.square(means).sum((0, 1)) / chains


def _spectral(x: np.ndarray) -> np.ndarray:
    draws = x.shape[1]
    length = int(np.sqrt(draws))
    covariance = autocovariance(x - x.mean((0, 1)), centred=True)
    lags = np.arange(1, length)
    window = 0.5 * (1 + np.cos(np.pi * lags / length))
    return covariance[0] + 2 * (window[:, None] * covariance[1:length]).sum(0)
