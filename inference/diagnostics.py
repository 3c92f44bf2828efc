"""What a user must know before trusting draws, in plain words.

``diagnose`` takes a fit, or any ArviZ object of this or another library. Thresholds: R-hat, ESS of
Vehtari, Gelman, Simpson, Carpenter & Buerkner (2021); E-BFMI of Betancourt (2016); Pareto k-hat of
Vehtari, Simpson, Gelman, Yao & Gabry (2024). An *error* says that the numbers should not be used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from inference import arviz_bridge, mixing, psis
from inference.finding import Finding, Severity

R_HAT, R_HAT_BAD = 1.01, 1.05
ESS_PER_CHAIN, ESS_BAD = 100, 50
E_BFMI = 0.3
DIVERGING_BAD = 0.005
SHIFT, SHIFT_BAD = 0.2, 0.4
SPREAD, SPREAD_BAD = 1.15, 1.3
"""In posterior sds: an approximation's mean against the weighted one, and the ratio of the sds."""

Arrays = Mapping[str, np.ndarray]


def diagnose(fit: Any) -> list[Finding]:
    """What speaks against an answer: the findings of a fit, or of an ArviZ object, the worst first.

    Of an ArviZ object (``InferenceData`` or ``DataTree``, of Stan, PyMC, NumPyro, ...) the group
    ``posterior`` is judged as Markov chains, with what ``sample_stats`` has of ``diverging``,
    ``energy``, ``lp`` and ``reached_max_treedepth``; draws that this library wrote by variational
    inference are judged by their importance weights.

    Raises ``ValueError`` where there is no posterior group.

    >>> draws = np.random.default_rng(0).normal(size=(4, 1000))
    >>> draws[0] += 3
    >>> group = arviz_bridge.dataset({"mu": draws}, {}, ("chain", "draw"), {})
    >>> [finding.name for finding in diagnose(arviz_bridge.build({"posterior": group}, {}))]
    ['r_hat', 'ess']
    """
    found = list(fit.findings) if hasattr(fit, "findings") else _of_arviz(fit)
    order = ("error", "warning", "note")
    return sorted(found, key=lambda finding: order.index(finding.severity))


def _of_arviz(data: Any) -> list[Finding]:
    attributes = arviz_bridge.attributes(data)
    if not arviz_bridge.has_group(data, "posterior"):
        groups = "a point" if arviz_bridge.has_group(data, "point") else "no posterior group"
        raise ValueError(f"nothing to diagnose: the file holds {groups}; give draws (chain, draw)")
    draws = arviz_bridge.arrays(arviz_bridge.group(data, "posterior"))
    stats: dict[str, np.ndarray] = {}
    if arviz_bridge.has_group(data, "sample_stats"):
        stats = arviz_bridge.arrays(arviz_bridge.group(data, "sample_stats"))
    if attributes.get("kind") == "approximation":
        return approximation(draws, stats)
    if "reached_max_treedepth" in stats:
        stats["reached_max_depth"] = stats["reached_max_treedepth"]
    real = {name: value for name, value in draws.items() if value.dtype.kind == "f"}
    return chains(real or draws, stats)


def chains(draws: Arrays, stats: Arrays, invariants: Arrays | None = None) -> list[Finding]:
    """Findings on Markov chains: R-hat, effective sample sizes, divergences, energy, tree depth.

    Args:
        draws: continuous sites, (chain, draw, *event).
        stats: sampler statistics, (chain, draw).
        invariants: functions of the draws that no symmetry of the model changes, where it has one:
            chains that agree on these have converged, whatever their labels.
    """
    number, length = next(iter(draws.values())).shape[:2]
    if length < 4:
        text = f"only {length} draws per chain: nothing can be judged"
        return [Finding("draws", "error", length, text, "raise draws")]
    found = _broken(draws)
    if number > 1:
        found += _mixing(draws, stats, invariants or {})
    else:
        text = "one chain: R-hat cannot tell whether it has mixed"
        found.append(Finding("chains", "warning", 1, text, "run four"))
    return found + _size(draws, number) + _diverging(stats) + _energy(stats) + _depth(stats)


def approximation(draws: Arrays, stats: Arrays) -> list[Finding]:
    """Findings on independent draws of an approximation, from their log importance weights.

    Where k-hat allows, the draws' moments are compared with those of the weighted draws: the
    posterior's, up to Monte-Carlo error.

    Args:
        draws: continuous sites, (1, draw, *event).
        stats: ``log_weight`` (1, draw), log p - log q; without it nothing is found.
    """
    if "log_weight" not in stats:
        return []
    log_weight = stats["log_weight"].ravel()
    smoothed, limit = psis.smooth(log_weight), psis.threshold(log_weight.size)
    remedy = "try a richer approximation, SVI(guide='full-rank') or 'flow', or NUTS"
    if smoothed.k_hat > limit:
        text = (
            f"Pareto k-hat is {smoothed.k_hat:.2f}, above {limit:.2f}: the approximation is far "
            "from the posterior; its sds are likely too small"
        )
        return [Finding("pareto_k", "error", smoothed.k_hat, text, remedy)]
    weights = np.exp(smoothed.log_weights)
    shifts, ratios = {}, {}
    for name, value in draws.items():
        flat = value.reshape(log_weight.size, -1)
        mean = weights @ flat
        sd = np.sqrt(weights @ np.square(flat - mean))
        with np.errstate(invalid="ignore", divide="ignore"):
            shifts[name] = (np.abs(flat.mean(0) - mean) / sd).reshape(value.shape[2:])
            ratios[name] = (flat.std(0) / sd).reshape(value.shape[2:])
    found = []
    name, shift = _worst(shifts, np.nanargmax)
    if shift > SHIFT:
        text = f"the mean of {name} is {shift:.2f} posterior sds off, by its importance weights"
        found.append(Finding("shift", _bad(shift > SHIFT_BAD), shift, text, remedy))
    name, ratio = _worst(ratios, _farthest)
    factor = max(ratio, 1 / ratio) if ratio > 0 else np.inf
    if factor > SPREAD:
        text = f"the sd of {name} is {ratio:.2f} of the posterior's, by its importance weights"
        found.append(Finding("sd_ratio", _bad(factor > SPREAD_BAD), ratio, text, remedy))
    return found


def _broken(draws: Arrays) -> list[Finding]:
    found = []
    infinite = [name for name, value in draws.items() if not np.isfinite(value).all()]
    if infinite:
        share = float(np.mean(~np.isfinite(draws[infinite[0]])))
        text = f"{share:.1%} of the draws of {infinite[0]} are not finite"
        remedy = "look for overflow in the program, or for a posterior that is improper"
        found.append(Finding("not_finite", "error", share, text, remedy))
    still = [(v[:, 1:] == v[:, :-1]).reshape(len(v), -1).all(1) for v in draws.values()]
    stuck = np.logical_and.reduce(still)
    if stuck.any():
        which = ", ".join(str(c) for c in np.flatnonzero(stuck))
        found.append(
            Finding(
                "stuck",
                "error",
                float(stuck.sum()),
                f"chain {which} never moved: no proposal was accepted",
                "the step size or the proposal does not fit this posterior: lengthen warmup or "
                "check the starting point",
            )
        )
    return found


def _mixing(draws: Arrays, stats: Arrays, invariants: Arrays) -> list[Finding]:
    """Whether chains agree; with a symmetry, whether they differ by more than their labels."""
    name, value = _worst({k: mixing.r_hat(v) for k, v in draws.items()}, np.nanargmax)
    free = dict(invariants)
    if free and "lp" in stats:
        free["lp"] = stats["lp"]
    which, beyond = _worst({k: mixing.r_hat(v) for k, v in free.items()}, np.nanargmax)
    if free and beyond > R_HAT:
        levels = ", ".join(f"{mean:.4g}" for mean in stats["lp"].mean(1)) if "lp" in stats else ""
        text = (
            f"R-hat of {which} is {beyond:.3f}, above {R_HAT}, though labels do not change it: the "
            "chains sit in different modes or have not mixed, and their average describes none"
        )
        remedy = "run longer, or more chains, and look at each chain by itself"
        remedy += f" (mean log density by chain: {levels})" if levels else ""
        return [Finding("modes", _bad(beyond > R_HAT_BAD), beyond, text, remedy)]
    if not value > R_HAT:
        return []
    if free:
        text = (
            f"R-hat of {name} is {value:.3f}, above {R_HAT}, while that of every quantity that "
            f"labels do not change is at most {beyond:.3f}: components overlap or switch labels "
            "within chains"
        )
        remedy = f"trust {', '.join(invariants)}, not averages by component"
        return [Finding("labels", "warning", value, text, remedy)]
    text = (
        f"R-hat of {name} is {value:.3f}, above {R_HAT}: the chains have not mixed and their "
        "average is no posterior mean"
    )
    remedy = "run longer, look at the trace for chains in different modes, or reparametrise"
    return [Finding("r_hat", _bad(value > R_HAT_BAD), value, text, remedy)]


def _size(draws: Arrays, number: int) -> list[Finding]:
    sizes = {k: np.minimum(mixing.ess_bulk(v), mixing.ess_tail(v)) for k, v in draws.items()}
    name, value = _worst(sizes, np.nanargmin)
    if not value < ESS_PER_CHAIN * number:
        return []
    text = (
        f"effective sample size of {name} is {value:.0f}, below {ESS_PER_CHAIN} per chain: means "
        "and intervals are rough"
    )
    remedy = "raise draws (or thin for MH), or use NUTS"
    return [Finding("ess", _bad(value < ESS_BAD), value, text, remedy)]


def _diverging(stats: Arrays) -> list[Finding]:
    diverging = stats.get("diverging")
    if diverging is None or not diverging.any():
        return []
    share = float(np.mean(diverging))
    return [
        Finding(
            "diverging",
            _bad(share > DIVERGING_BAD),
            share,
            f"{int(diverging.sum())} of {diverging.size} transitions diverged: the sampler missed "
            "a region of high curvature, so the draws are biased",
            "raise target_acceptance to 0.95 or 0.99, or reparametrise (a non-centred form for "
            "hierarchical scales)",
        )
    ]


def _energy(stats: Arrays) -> list[Finding]:
    energy = stats.get("energy")
    if energy is None or energy.shape[1] < 4:
        return []
    jumps = np.square(np.diff(energy, axis=1)).mean(axis=1)
    ratio = float((jumps / np.maximum(energy.var(axis=1), 1e-300)).min())
    if not ratio < E_BFMI:
        return []
    return [
        Finding(
            "e_bfmi",
            "warning",
            ratio,
            f"E-BFMI is {ratio:.2f}, below {E_BFMI}: momentum refreshes reach too few energies, as "
            "in heavy tails or funnels",
            "reparametrise, or run longer",
        )
    ]


def _depth(stats: Arrays) -> list[Finding]:
    reached = stats.get("reached_max_depth")
    if reached is None or not reached.any():
        return []
    share = float(np.mean(reached))
    return [
        Finding(
            "max_depth",
            "warning",
            share,
            f"{share:.1%} of transitions reached max_depth: not wrong but slow",
            "raise max_depth, use mass='dense', or rescale the parameters",
        )
    ]


def _farthest(ratios: np.ndarray) -> np.intp:
    """Which ratio is farthest from one."""
    with np.errstate(divide="ignore"):
        return np.nanargmax(np.abs(np.log(ratios)))


def _bad(yes: bool) -> Severity:
    return "error" if yes else "warning"


def _worst(figures: Arrays, choose: Callable[[np.ndarray], np.intp]) -> tuple[str, float]:
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
