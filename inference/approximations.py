"""Verdicts on approximations: by their importance weights, or as particles.

Pareto k-hat: Vehtari, Simpson, Gelman, Yao & Gabry (2024); of variational inference: Yao, Vehtari,
Simpson & Gelman (2018). E_p f - E_q f is at most sd_q(f) sqrt(chi^2(p | q)), where the weights'
effective size is 1 / (1 + chi^2) of the draws.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from inference import arviz_bridge, mixing, psis
from inference.finding import Finding
from inference.judging import R_HAT, R_HAT_BAD, Arrays, broken, rough, severity, worst
from inference.tails import tails

EVEN = 0.5
"""The effective share of the weights above which they tell of the bulk, whatever their tail.

Below it, with k-hat above its limit, weighted moments still point the right way but not far enough:
what is else a warning is an error then."""
ESS = 100
"""The effective size below which weights tell only that the approximation is far away."""
SHIFT, SHIFT_BAD = 0.15, 0.3
SPREAD, SPREAD_BAD = 1.1, 1.2
"""In posterior sds: an approximation's mean against the weighted one, and the ratio of the sds.

Weighted moments lie between those of the draws and the posterior's, so that errors begin early."""


def approximation(draws: Arrays, stats: Arrays) -> list[Finding]:
    """Findings on independent draws of an approximation, from their log importance weights.

    The draws' moments are compared with those of the weighted draws: the posterior's, up to
    Monte-Carlo error, unless k-hat is 1 or more, where the weights have no mean, or above its limit
    with weights worth fewer than 100 draws: an *error* alone. Moments of few draws, or of a heavy
    tail, are rough like those of any sample.

    Args:
        draws: continuous sites, (1, draw, *event).
        stats: ``log_weight`` (1, draw), log p - log q; without it the draws are particles.
    """
    if "log_weight" not in stats:
        return particles(draws)
    log_weight = stats["log_weight"].ravel()
    smoothed, limit = psis.smooth(log_weight), psis.threshold(log_weight.size)
    remedy = "try a richer approximation, SVI(guide='full-rank') or 'flow', or NUTS"
    found, share = [], smoothed.ess / log_weight.size
    if smoothed.k_hat > limit:
        text = (
            f"Pareto k-hat is {smoothed.k_hat:.2f}, above {limit:.2f}, and the weights' effective "
            f"size {share:.0%} of the draws: the approximation "
        )
        if smoothed.k_hat >= 1 or smoothed.ess < ESS:
            text += "is far from the posterior; its sds are likely too small"
            return [Finding("pareto_k", "error", smoothed.k_hat, text, remedy)]
        text += "has other tails than the posterior"
        found = [Finding("pareto_k", "warning", smoothed.k_hat, text, remedy)]
    shifts, ratios = {}, {}
    for name, value in draws.items():
        mean, sd = _weighted(value, smoothed.log_weights)
        with np.errstate(invalid="ignore", divide="ignore"):
            shifts[name] = np.abs(value.mean((0, 1)) - mean) / sd
            ratios[name] = value.std((0, 1)) / sd
    doubtful = smoothed.k_hat > limit and share < EVEN
    name, shift = worst(shifts, np.nanargmax)
    if shift > SHIFT:
        text = f"the mean of {name} is {shift:.2f} posterior sds off, by its importance weights"
        severe = severity(doubtful or shift > SHIFT_BAD)
        found.append(Finding("shift", severe, shift, text, remedy))
    name, ratio = worst(ratios, _farthest)
    factor = max(ratio, 1 / ratio) if ratio > 0 else np.inf
    if factor > SPREAD:
        text = f"the sd of {name} is {ratio:.2f} of the posterior's, by its importance weights"
        severe = severity(doubtful or factor > SPREAD_BAD)
        found.append(Finding("sd_ratio", severe, ratio, text, remedy))
    return found + _sample(draws, "raise draws")


def corrected(fit: Any) -> pd.DataFrame:
    """Means and sds of an approximation beside those of its draws weighted by Pareto-smoothing.

    The weighted ones are the posterior's, up to Monte-Carlo error, where k-hat allows: below
    min(1 - 1 / log10(draws), 0.7). With a higher k-hat they lie between the two.

    Args:
        fit: a ``Fit`` by variational inference, or an ArviZ object whose ``sample_stats`` hold
            ``log_weight``, log p - log q of each draw up to a constant.

    Returns:
        One row per scalar: ``mean``, ``sd``, ``corrected_mean``, ``corrected_sd``, ``shift`` (mean
        less the corrected one, in corrected sds) and ``sd_ratio``; k-hat and the weights' effective
        size are in ``attrs``.

    Raises ``ValueError`` where there are no weights.

    >>> draws = {"x": np.random.default_rng(0).normal(size=(1, 4000))}
    >>> weights = {"log_weight": 0.5 * draws["x"]}  # of a normal around 0.5
    >>> sample = ("chain", "draw")
    >>> groups = {"posterior": arviz_bridge.dataset(draws, {}, sample, {})}
    >>> groups["sample_stats"] = arviz_bridge.dataset(weights, {}, sample, {})
    >>> table = corrected(arviz_bridge.build(groups, {}))
    >>> table.round(1)[["sd", "corrected_mean", "corrected_sd"]]
        sd  corrected_mean  corrected_sd
    x  1.0             0.5           1.0
    """
    data = fit.to_arviz() if hasattr(fit, "to_arviz") else fit
    has_stats = arviz_bridge.has_group(data, "sample_stats")
    stats = arviz_bridge.group(data, "sample_stats") if has_stats else {}
    if "log_weight" not in stats:
        raise ValueError(
            "these draws have no log_weight in sample_stats; fit by SVI with a log density that "
            "is not random"
        )
    draws = arviz_bridge.group(data, "posterior").transpose("chain", "draw", ...)
    smoothed = psis.smooth(np.asarray(stats["log_weight"]).ravel())
    table = arviz_bridge.moments(draws)
    for column, index in (("corrected_mean", 0), ("corrected_sd", 1)):
        values = draws.map(
            lambda a, i=index: a[0, 0].copy(data=_weighted(a.values, smoothed.log_weights)[i]),
            keep_attrs=False,
        )
        table[column] = arviz_bridge.scalars(values)
    table["shift"] = (table["mean"] - table["corrected_mean"]) / table["corrected_sd"]
    table["sd_ratio"] = table["sd"] / table["corrected_sd"]
    table.attrs.update(k_hat=smoothed.k_hat, ess=smoothed.ess)
    return table


def _weighted(x: np.ndarray, log_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sd over (chain, draw) under normalised weights (S,)."""
    weights = np.exp(log_weights)
    flat = x.reshape(len(weights), -1)
    mean = weights @ flat
    sd = np.sqrt(weights @ np.square(flat - mean))
    return mean.reshape(x.shape[2:]), sd.reshape(x.shape[2:])


def particles(draws: Arrays) -> list[Finding]:
    """Findings on independent draws, some of them copies: particles (run, draw, *event)."""
    if not draws:
        return []
    found = broken(draws, chains=False)
    if len(next(iter(draws.values()))) > 1:
        name, value = worst({k: mixing.r_hat(v) for k, v in draws.items()}, np.nanargmax)
        if value > R_HAT:
            text = (
                f"R-hat of {name} is {value:.3f}, above {R_HAT}: independent runs disagree, so "
                "that each has a larger error than its draws show"
            )
            found.append(
                Finding("r_hat", severity(value > R_HAT_BAD), value, text, "raise particles")
            )
    return found + _sample(draws, "raise draws, particles or proposals")


def _sample(draws: Arrays, remedy: str) -> list[Finding]:
    """What independent draws, some of them copies, tell of their own moments."""
    first = next(iter(draws.values()))
    size = mixing.distinct(first.reshape(first.shape[0] * first.shape[1], -1)[:, 0])
    of_mean = {k: np.full(v.shape[2:], size**-0.5) for k, v in draws.items()}
    # kurtosis is at least 1, and of two draws 1 but for rounding
    excess = {k: np.maximum(mixing.kurtosis(v) - 1, 0.0) for k, v in draws.items()}
    of_sd = {k: np.sqrt(v / (4 * size)) for k, v in excess.items()}
    return rough(of_mean, of_sd, remedy) + tails(draws)


def _farthest(ratios: np.ndarray) -> np.intp:
    """Which ratio is farthest from one."""
    with np.errstate(divide="ignore"):
        return np.nanargmax(np.abs(np.log(ratios)))
