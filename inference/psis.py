"""Pareto-smoothed importance sampling (Vehtari, Simpson, Gelman, Yao & Gabry 2024).

Written out, since ArviZ 1.x no longer offers it on plain weights.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp

_EQUAL = 1e-8
"""Weights that differ by less than this share of the largest differ by rounding."""


class Smoothed(NamedTuple):
    """Normalised log weights (S,), the tail's shape k-hat, and the effective sample size."""

    log_weights: np.ndarray
    k_hat: float
    ess: float


def smooth(log_ratios: np.ndarray) -> Smoothed:
    """Replace the largest importance ratios by the quantiles of a generalised Pareto fit.

    k-hat below min(1 - 1/log10(S), 0.7) says that estimates from the weighted draws can be trusted.
    """
    log_ratios = np.asarray(log_ratios, dtype=float)
    size = len(log_ratios)
    logs = np.where(np.isfinite(log_ratios), log_ratios, -np.inf)
    logs = logs - logs.max()
    tail = int(np.ceil(min(0.2 * size, 3 * np.sqrt(size))))
    k_hat = np.inf
    if tail >= 5:
        order = np.argsort(logs, kind="stable")
        cut = logs[order[-tail - 1]]
        largest = order[-tail:]
        excess = np.exp(logs[largest]) - np.exp(cut)
        if np.isfinite(cut) and excess[-1] > _EQUAL:
            k_hat, sigma = fit_pareto(excess)
            quantiles = _pareto_quantiles((np.arange(tail) + 0.5) / tail, k_hat, sigma)
            logs[largest] = np.minimum(np.log(quantiles + np.exp(cut)), 0.0)
        elif excess[-1] <= _EQUAL:
            k_hat = -np.inf  # equal weights have no tail
    logs = logs - logsumexp(logs)
    size = float(np.reciprocal(np.square(np.exp(logs)).sum()))
    return Smoothed(logs, float(k_hat), size)


def threshold(draws: int) -> float:
    """The k-hat above which estimates from so many draws are unreliable."""
    return min(1 - 1 / np.log10(max(draws, 11)), 0.7)


def fit_pareto(x: np.ndarray) -> tuple[float, float]:
    """Shape and scale of a generalised Pareto by Zhang & Stephens (2009), x ascending.

    The shape is shrunk towards 0.5 with the weight of ten observations, as PSIS prescribes.
    """
    size = len(x)
    grid = 30 + int(np.sqrt(size))
    quartile = x[int(size / 4 + 0.5) - 1]
    b = 1 / x[-1] + (1 - np.sqrt(grid / (np.arange(1, grid + 1) - 0.5))) / (
        3 * max(quartile, 1e-300)
    )
    shapes = np.log1p(-b[:, None] * x).mean(1)
    likelihood = size * (np.log(-b / shapes) - shapes - 1)
    weights = np.exp(likelihood - logsumexp(likelihood))
    scale = np.sum(b * weights)
    shape = np.log1p(-scale * x).mean()
    sigma = -shape / scale
    return float((shape * size + 5) / (size + 10)), float(sigma)


def _pareto_quantiles(p: np.ndarray, shape: float, sigma: float) -> np.ndarray:
    if abs(shape) < 1e-12:
        return -sigma * np.log1p(-p)
    with np.errstate(over="ignore"):  # of a hopeless tail; the caller bounds it
        return sigma * np.expm1(-shape * np.log1p(-p)) / shape
