"""What all verdicts share: when an answer is wrong, and the worst scalar of many."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from inference.finding import Finding, Severity

R_HAT, R_HAT_BAD = 1.01, 1.2
BIAS, RATIO = 0.5, 0.3
"""What makes an answer wrong: its mean off by so many posterior sds, its sd by such a share."""
SURE = 2.0
"""Monte-Carlo errors that must lie between an answer and a wrong one: its 95 % interval."""

Arrays = Mapping[str, np.ndarray]


def broken(draws: Arrays, *, chains: bool) -> list[Finding]:
    """Draws that are not finite, and chains that never moved, or runs of one particle."""
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
        text = f"all draws of run {which} are copies of one particle"
        remedy = "raise particles, or give a reference or a path nearer to the posterior"
        if chains:
            text = f"chain {which} never moved: no proposal was accepted"
            remedy = "the step size or the proposal does not fit this posterior: lengthen warmup "
            remedy += "or check the starting point"
        found.append(Finding("stuck", "error", float(stuck.sum()), text, remedy))
    return found


def rough(of_mean: Arrays, of_sd: Arrays, remedy: str) -> list[Finding]:
    """Whether the Monte-Carlo error of a mean or an sd alone may make it wrong.

    Args:
        of_mean: errors of means in posterior sds.
        of_sd: errors of sds as shares of them.
        remedy: what to do.
    """
    kinds = (("mean", of_mean, BIAS, "posterior sds"), ("sd", of_sd, RATIO, "of it"))
    for what, errors, limit, unit in kinds:
        name, error = worst(errors, np.nanargmax)
        if error > limit / SURE:
            text = (
                f"the Monte-Carlo error of the {what} of {name} is {error:.2f} {unit}: too few "
                "independent draws for any use"
            )
            return [Finding("mcse", "error", error, text, remedy)]
    return []


def severity(yes: bool) -> Severity:
    """An error where the figure is beyond the further of its limits."""
    return "error" if yes else "warning"


def worst(figures: Arrays, choose: Callable[[np.ndarray], np.intp]) -> tuple[str, float]:
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
