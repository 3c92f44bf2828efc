"""What a user must know before trusting draws, in plain words.

``diagnose`` takes a fit, or any ArviZ object of this or another library. An *error* says that the
numbers should not be used: a mean may be half a posterior sd off, or an sd by 30 %. A *warning*
says that they are rougher than they should be. Thresholds for warnings: R-hat, ESS of Vehtari,
Gelman, Simpson, Carpenter & Buerkner (2021); E-BFMI of Betancourt (2016); Pareto k-hat of Vehtari,
Simpson, Gelman, Yao & Gabry (2024). Those for errors were studied on ``benchmarks/battery.py``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from inference import arviz_bridge, mixing
from inference.approximations import approximation
from inference.finding import Finding
from inference.judging import R_HAT, R_HAT_BAD, Arrays, broken, rough, severity, worst
from inference.tails import tails

DRIFT, DRIFT_BAD = 1.05, 1.1
"""R-hat of the halves of one chain; so few of them differ by more than 1.01 by chance."""
ESS_PER_CHAIN = 100
E_BFMI = 0.3
DIVERGING_BAD = 0.02


def diagnose(fit: Any, *, search: bool = False) -> list[Finding]:
    """What speaks against an answer: the findings of a fit, or of an ArviZ object, the worst first.

    A fit was judged when it was made, by its draws, its statistics and its log density, and these
    findings are its warnings. What is too large for the search of the log density (above 100
    dimensions, or much data) has a note ``unsearched``; ``search=True`` searches it all the same.

    Of an ArviZ object (``InferenceData`` or ``DataTree``, of Stan, PyMC, NumPyro, ...) the group
    ``posterior`` is judged as Markov chains, with what ``sample_stats`` has of ``diverging``,
    ``energy``, ``lp`` and ``reached_max_treedepth``; draws that this library wrote by variational
    inference are judged by their importance weights.

    Raises ``ValueError`` where there is no posterior group.

    >>> draws = np.random.default_rng(0).normal(size=(4, 1000))
    >>> draws[0] += 3
    >>> group = arviz_bridge.dataset({"mu": draws}, {}, ("chain", "draw"), {})
    >>> [finding.name for finding in diagnose(arviz_bridge.build({"posterior": group}, {}))]
    ['r_hat', 'mcse']
    """
    if not hasattr(fit, "findings"):
        return joined(_of_arviz(fit), [])
    if not search or all(finding.name != "unsearched" for finding in fit.findings):
        return list(fit.findings)
    from inference.probe import probe

    known = [finding for finding in fit.findings if finding.name != "unsearched"]
    return joined(known, probe(fit, always=True))


def joined(told: list[Finding], of_density: list[Finding]) -> list[Finding]:
    """All findings, the worst first; where the density tells of tails, the draws need not."""
    if any(finding.name in ("tails", "improper") for finding in of_density):
        told = [finding for finding in told if finding.name != "tails"]
    order = ("error", "warning", "note")
    return sorted([*told, *of_density], key=lambda finding: order.index(finding.severity))


def _of_arviz(data: Any) -> list[Finding]:
    attributes = arviz_bridge.attributes(data)
    if not arviz_bridge.has_group(data, "posterior"):
        groups = "a point" if arviz_bridge.has_group(data, "point") else "no posterior group"
        raise ValueError(f"nothing to diagnose: the file holds {groups}; give draws (chain, draw)")
    draws = arviz_bridge.arrays(arviz_bridge.group(data, "posterior"))
    stats: dict[str, np.ndarray] = {}
    if arviz_bridge.has_group(data, "sample_stats"):
        stats = arviz_bridge.arrays(arviz_bridge.group(data, "sample_stats"))
    draws = {k: v.astype(int) if v.dtype.kind == "b" else v for k, v in draws.items()}
    draws = {name: value for name, value in draws.items() if value.dtype.kind in "iuf"}
    if not any(value.size for value in draws.values()):
        raise ValueError("nothing to diagnose: the posterior group holds no draws of numbers")
    if attributes.get("kind") == "approximation":
        return approximation(_continuous(draws), stats)
    if "reached_max_treedepth" in stats:
        stats["reached_max_depth"] = stats["reached_max_treedepth"]
    whole = attributes.get("setting_chains") == str(len(next(iter(draws.values()))))
    return chains(draws, stats, superchains=attributes.get("superchains") if whole else None)


def chains(
    draws: Arrays,
    stats: Arrays,
    invariants: Arrays | None = None,
    superchains: int | None = None,
) -> list[Finding]:
    """Findings on Markov chains: R-hat, effective sample sizes, divergences, energy, tree depth.

    Args:
        draws: numbers, (chain, draw, *event); those of discrete sites have no tails.
        stats: sampler statistics, (chain, draw).
        invariants: functions of the draws that no symmetry of the model changes, where it has one:
            chains that agree on these have converged, whatever their labels.
        superchains: how many groups of chains, in order, began each at one point: R-hat is then the
            nested one, which takes many short chains for what they are.
    """
    number, length = next(iter(draws.values())).shape[:2]
    if length < 4:
        text = f"only {length} draws per chain: nothing can be judged"
        return [Finding("draws", "error", length, text, "raise draws")]
    found = broken(draws, chains=True)
    if number > 1:
        found += _mixing(draws, stats, invariants or {}, superchains)
    else:
        text = "one chain: R-hat cannot tell whether it has seen every mode"
        found.append(Finding("chains", "warning", 1, text, "run four"))
        found += _drift(draws)
    found += _size(draws, number, superchains, "diverging" in stats)
    found += tails(_continuous(draws))
    return found + _diverging(stats) + _energy(stats) + _depth(stats)


def _continuous(draws: Arrays) -> dict[str, np.ndarray]:
    return {name: value for name, value in draws.items() if value.dtype.kind == "f"}


def _mixing(
    draws: Arrays, stats: Arrays, invariants: Arrays, superchains: int | None
) -> list[Finding]:
    """Whether chains agree; with a symmetry, whether they differ by more than their labels."""
    unit, figure = ("superchain", "nested R-hat") if superchains else ("chain", "R-hat")

    def r_hat(x: np.ndarray) -> np.ndarray:
        return mixing.nested_r_hat(x, superchains) if superchains else mixing.r_hat(x)

    name, value = worst({k: r_hat(v) for k, v in draws.items()}, np.nanargmax)
    free = dict(invariants)
    if free and "lp" in stats:
        free["lp"] = stats["lp"]
    which, beyond = worst({k: r_hat(v) for k, v in free.items()}, np.nanargmax)
    if free and beyond > R_HAT:
        text = (
            f"{figure} of {which} is {beyond:.3f}, above {R_HAT}, though labels do not change it: "
            f"the {unit}s sit in different modes or have not mixed, and their average describes "
            "none"
        )
        remedy = f"run longer, or more chains, and look at each {unit} by itself"
        if "lp" in stats:
            means = stats["lp"].reshape(superchains or len(stats["lp"]), -1).mean(1)
            levels = ", ".join(f"{mean:.4g}" for mean in means)
            remedy += f" (mean log density by {unit}: {levels})"
        return [Finding("modes", severity(beyond > R_HAT_BAD), beyond, text, remedy)]
    if not value > R_HAT:
        return []
    if free:
        text = (
            f"{figure} of {name} is {value:.3f}, above {R_HAT}, while that of every quantity that "
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
    if superchains:
        text = (
            f"nested R-hat of {name} is {value:.3f}, above {R_HAT}: chains that began at one point "
            "lie nearer to each other than to those that began elsewhere, so that they remember "
            "their start, or a superchain has too few draws to tell"
        )
        remedy = "lengthen warmup, give more chains to a superchain, or reparametrise"
    return [Finding("r_hat", severity(value > R_HAT_BAD), value, text, remedy)]


def _drift(draws: Arrays) -> list[Finding]:
    """Whether the halves of a single chain agree."""
    half = next(iter(draws.values())).shape[1] // 2
    if half < 4:
        return []
    halves = {k: np.concatenate([v[:, :half], v[:, -half:]]) for k, v in draws.items()}
    name, value = worst({k: mixing.r_hat(v) for k, v in halves.items()}, np.nanargmax)
    if not value > DRIFT:
        return []
    text = (
        f"R-hat of the two halves of the chain is {value:.3f} for {name}: it drifts or mixes slowly"
    )
    remedy = "run longer, and several chains; if it drifts for ever, is the posterior proper?"
    return [Finding("drift", severity(value > DRIFT_BAD), value, text, remedy)]


def _size(draws: Arrays, number: int, superchains: int | None, hamiltonian: bool) -> list[Finding]:
    """Whether effective sample sizes are small, and Monte-Carlo errors large."""
    other = "reparametrise" if hamiltonian else "use NUTS"
    with np.errstate(invalid="ignore", divide="ignore"):
        of_mean = {k: mixing.ess_mean(v) ** -0.5 for k, v in draws.items()}
        of_sd = {k: mixing.relative_mcse_sd(v) for k, v in draws.items()}
    found = rough(of_mean, of_sd, f"raise draws, or {other}")
    if found:
        return found
    sizes = {k: np.minimum(mixing.ess_bulk(v), mixing.ess_tail(v)) for k, v in draws.items()}
    name, value = worst(sizes, np.nanargmin)
    if not value < ESS_PER_CHAIN * (superchains or number):
        return []
    unit = "superchain" if superchains else "chain"
    text = (
        f"effective sample size of {name} is {value:.0f}, below {ESS_PER_CHAIN} per {unit}: means "
        "and intervals are rough"
    )
    remedy = f"raise draws (or thin), or {other}"
    return [Finding("ess", "warning", value, text, remedy)]


def _diverging(stats: Arrays) -> list[Finding]:
    diverging = stats.get("diverging")
    if diverging is None or not diverging.any():
        return []
    share = float(np.mean(diverging))
    return [
        Finding(
            "diverging",
            severity(share > DIVERGING_BAD),
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
