"""What a user must know before trusting draws, in plain words."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from inference import mixing

R_HAT, ESS_PER_CHAIN, E_BFMI = 1.01, 100, 0.3
"""Thresholds of Vehtari et al. (2021) for R-hat and ESS, of Betancourt (2016) for E-BFMI."""


class Finding(NamedTuple):
    """Something wrong with a fit: the figure, what it means and what to do."""

    name: str
    figure: float
    text: str


def chains(
    draws: dict[str, np.ndarray],
    stats: dict[str, np.ndarray],
    invariants: dict[str, np.ndarray] | None = None,
) -> list[Finding]:
    """Findings on Markov chains: R-hat, effective sample sizes, energy, tree depth.

    Args:
        draws: continuous sites, (chain, draw, *event).
        stats: sampler statistics, (chain, draw).
        invariants: functions of the draws that no symmetry of the model changes, where it has one:
            chains that agree on these have converged, whatever their labels.
    """
    number, length = next(iter(draws.values())).shape[:2]
    if length < 4:
        return [Finding("draws", length, f"only {length} draws per chain: nothing can be judged")]
    if number > 1:
        found = _mixing(draws, stats, invariants or {})
    else:
        found = [
            Finding("chains", 1, "one chain: R-hat cannot tell whether it has mixed; run four")
        ]
    sizes = {k: np.minimum(mixing.ess_bulk(v), mixing.ess_tail(v)) for k, v in draws.items()}
    name, value = _worst(sizes, np.nanargmin)
    if value < ESS_PER_CHAIN * number:
        found.append(
            Finding(
                "ess",
                value,
                f"effective sample size of {name} is {value:.0f}, below {ESS_PER_CHAIN} per chain: "
                "means and intervals are rough; raise draws (or thin for MH), or use NUTS",
            )
        )
    return found + _energy(stats) + _depth(stats)


def _mixing(
    draws: dict[str, np.ndarray], stats: dict[str, np.ndarray], invariants: dict[str, np.ndarray]
) -> list[Finding]:
    """Whether chains agree; with a symmetry, whether they differ by more than their labels."""
    name, value = _worst({k: mixing.r_hat(v) for k, v in draws.items()}, np.nanargmax)
    free = dict(invariants)
    if free and "lp" in stats:
        free["lp"] = stats["lp"]
    which, beyond = _worst({k: mixing.r_hat(v) for k, v in free.items()}, np.nanargmax)
    if free and beyond > R_HAT:
        levels = ", ".join(f"{mean:.4g}" for mean in stats["lp"].mean(1)) if "lp" in stats else ""
        return [
            Finding(
                "modes",
                beyond,
                f"R-hat of {which} is {beyond:.3f}, above {R_HAT}, though labels do not change it: "
                "the chains sit in different modes or have not mixed, and their average describes "
                f"none of them; run longer, or more chains, and look at each chain by itself"
                + (f" (mean log density by chain: {levels})" if levels else ""),
            )
        ]
    if not value > R_HAT:
        return []
    if free:
        return [
            Finding(
                "labels",
                value,
                f"R-hat of {name} is {value:.3f}, above {R_HAT}, while that of every quantity that "
                f"labels do not change is at most {beyond:.3f}: components overlap or switch "
                f"labels within chains; trust {', '.join(invariants)}, not averages by component",
            )
        ]
    return [
        Finding(
            "r_hat",
            value,
            f"R-hat of {name} is {value:.3f}, above {R_HAT}: the chains have not mixed and "
            "their average is no posterior mean; run longer, look at the trace for chains "
            "in different modes, or reparametrise",
        )
    ]


def _energy(stats: dict[str, np.ndarray]) -> list[Finding]:
    energy = stats.get("energy")
    if energy is None or energy.shape[1] < 4:
        return []
    jumps = np.square(np.diff(energy, axis=1)).mean(axis=1)
    ratio = float((jumps / np.maximum(energy.var(axis=1), 1e-300)).min())
    if ratio >= E_BFMI:
        return []
    return [
        Finding(
            "e_bfmi",
            ratio,
            f"E-BFMI is {ratio:.2f}, below {E_BFMI}: momentum refreshes reach too few energies, as "
            "in heavy tails or funnels; reparametrise, or run longer",
        )
    ]


def _depth(stats: dict[str, np.ndarray]) -> list[Finding]:
    reached = stats.get("reached_max_depth")
    if reached is None or not reached.any():
        return []
    share = float(reached.mean())
    return [
        Finding(
            "max_depth",
            share,
            f"{share:.1%} of transitions reached max_depth: not wrong but slow; raise max_depth, "
            "use mass='dense', or rescale the parameters",
        )
    ]


def _worst(
    figures: dict[str, np.ndarray], choose: Callable[[np.ndarray], np.intp]
) -> tuple[str, float]:
    """The scalar that ``choose`` picks over all sites, by name, and its figure; NaN where none."""
    worst: dict[str, float] = {}
    for name, values in figures.items():
        if np.isnan(values).all():
            continue
        index = np.unravel_index(choose(values), values.shape)
        text = ", ".join(str(i) for i in index)
        worst[f"{name}[{text}]" if text else name] = float(values[index])
    if not worst:
        return "", np.nan
    names = list(worst)
    name = names[int(choose(np.array([worst[n] for n in names])))]
    return name, worst[name]
