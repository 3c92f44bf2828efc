"""Ergodic averages and their bands on chains whose asymptotic variance is known exactly.

    python -m benchmarks.averages [--draws 100000] [--replications 1000]

For every chain and method: the mean and the relative root mean square error of sigma^2 estimated
from one run, the share of runs within 10 %, and how often the 95 % band holds the mean. Then L-lag
bounds beside exact total variation distances.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import get_args

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
from scipy import stats

from inference import MH, couple_finite, coupling, ergodic, finite
from inference.couplings import Bound
from tests import chains

BATCH = 20  # runs at a time
TWO = np.array([[0.8, 0.2], [0.1, 0.9]])


def gibbs(rho: float, runs: int, draws: int, seed: int) -> np.ndarray:
    """x of systematic Gibbs sweeps of a bivariate normal with correlation rho: (runs, draws)."""
    rng = np.random.default_rng(seed)
    out, sd = np.empty((runs, draws)), np.sqrt(1 - rho**2)
    x = rng.normal(size=runs)
    for t in range(draws):
        y = rho * x + sd * rng.normal(size=runs)
        x = rho * y + sd * rng.normal(size=runs)
        out[:, t] = x
    return out


Chain = tuple[Callable[[int, int, int], np.ndarray], float, float]


def exact() -> dict[str, Chain]:
    """How to run each chain (runs, draws, seed), its mean and its sigma^2."""
    found: dict[str, Chain] = {}
    for name, p in {
        "two states": TWO,
        "random walk": chains.metropolis(True),
        "independence": chains.metropolis(False),
    }.items():
        values = np.arange(len(p), dtype=float)
        mean = float(finite.stationary(p) @ values)
        found[name] = (partial(chains.finite, p), mean, finite.asymptotic_variance(p, values))
    for rho in (0.5, 0.9, 0.95, -0.5):
        run = partial(chains.autoregressive, rho)
        found[f"AR(1) {rho}"] = (run, 0.0, (1 + rho) / (1 - rho))
    for rho in (0.5, 0.9, 0.99):
        found[f"Gibbs {rho}"] = (partial(gibbs, rho), 0.0, (1 + rho**2) / (1 - rho**2))
    return found


def variances(draws: int, replications: int) -> pd.DataFrame:
    """A row per chain and method."""
    rows = []
    for name, (simulate, mean, sigma2) in exact().items():
        ratios: dict[str, list[float]] = {m: [] for m in get_args(ergodic.Method)}
        hits: dict[str, list[bool]] = {m: [] for m in ratios}
        for seed in range(-(-replications // BATCH)):
            x = simulate(BATCH, draws, seed).T[None]  # (1, draws, BATCH): a scalar per run
            for method in get_args(ergodic.Method):
                estimate = ergodic.asymptotic_variance(x, method)
                half = stats.norm.ppf(0.975) * np.sqrt(estimate / draws)
                ratios[method] += list(estimate / sigma2)
                hits[method] += list(np.abs(x.mean((0, 1)) - mean) < half)
        for method, values in ratios.items():
            ratio = np.array(values)
            rows.append(
                {
                    "chain": name,
                    "method": method,
                    "sigma2": sigma2,
                    "mean_ratio": ratio.mean(),
                    "rms_error": np.sqrt(np.square(ratio - 1).mean()),
                    "within_10%": (np.abs(ratio - 1) <= 0.1).mean(),
                    "coverage": np.mean(hits[method]),
                }
            )
    return pd.DataFrame(rows)


def normal() -> None:
    pyro.sample("x", dist.Normal(0.0, 1.0))


def bounds() -> pd.DataFrame:
    """L-lag bounds over exact distances, where these are above 0.01."""
    rows = []
    for name, p, start, lag in (
        ("two states", TWO, 0, 30),
        ("random walk on 10 states", chains.metropolis(True), 9, 150),
    ):
        t = np.arange(3 * lag)
        bound = couple_finite(p, start, lag=lag, pairs=20_000).bound(t)
        rows.append(ratios(name, bound, finite.total_variation(p, start, 3 * lag - 1)))
    pairs = coupling(
        normal,
        None,
        MH(warmup=0, tier="traced"),
        lag=60,
        pairs=20_000,
        start=lambda noise: 4 + 0.5 * noise.normal(1),
    )
    walk = chains.exact_walk(2.38, 4.0, 0.5, 60)
    rows.append(ratios("random walk on N(0, 1)", pairs.bound(np.arange(60)), walk))
    return pd.DataFrame(rows)


def ratios(name: str, bound: Bound, exact: np.ndarray) -> dict[str, object]:
    seen = exact > 0.01
    return {
        "chain": name,
        "iterations": int(seen.sum()),
        "least_ratio": (bound.value[seen] / exact[seen]).min(),
        "greatest_ratio": (bound.value[seen] / exact[seen]).max(),
        "upper_limit_below": int((bound.upper < exact).sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=100_000)
    parser.add_argument("--replications", type=int, default=1000)
    chosen = parser.parse_args()
    with pd.option_context("display.width", 200, "display.max_rows", None):
        print(bounds().to_string(index=False, float_format="%.3f"))
        table = variances(chosen.draws, chosen.replications)
        print(table.to_string(index=False, float_format="%.3f"))


if __name__ == "__main__":
    main()
