"""What the density itself tells against an answer.

Tails too heavy for means and sds, modes that no draw has seen, draws that do not balance its slope.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from inference import scratch
from inference.engine import Problem
from inference.finding import Finding
from inference.modes import unseen_modes
from inference.padded import Padded
from inference.tails import tails_of_density
from inference.target import Target
from inference.virial import unbalanced

if TYPE_CHECKING:
    from inference.fit import Fit

LARGEST, ELEMENTS = 100, 500_000
"""Dimensions, and numbers in the data, above which nothing is searched unless asked for."""

_DRAWS = 4000  # looked at, at most
_ASK = "diagnose(fit, search=True) takes its time"


def probe(fit: Fit, *, always: bool = False) -> list[Finding]:
    """Findings on a fit that need its log density.

    They are ``tails``, ``improper``, ``unseen_modes`` and ``virial``; or the note ``unsearched``,
    which says why nothing was searched. Takes a few hundred batched evaluations.

    Args:
        fit: of any engine; a point has no draws to judge.
        always: search however large the problem is.
    """
    program = fit.program
    if fit.posterior.kind == "point" or not program.dim:
        return []
    size = sum(value.numel() for value in fit.data.values() if isinstance(value, Tensor))
    if program.random or program.subsampled:
        return [_unsearched("it is random", "")]
    if program.parameters and fit.parameters is None:
        return [_unsearched("its parameters are not kept", "")]
    if not always and (program.dim > LARGEST or size > ELEMENTS):
        large = f"{program.dim} dimensions" if program.dim > LARGEST else f"{size:,} data"
        return [_unsearched(f"{large} make that slow", _ASK)]
    try:
        with fit._isolated():
            problem = fit._problem()
            target = problem.target("auto", 0, wide=problem.wide)
            if not always and not target.traces():
                return [_unsearched("it cannot be traced, which makes that slow", _ASK)]
            return searched(problem, target, _thinned(fit._unconstrained()))
    except KeyboardInterrupt:
        return [_unsearched("it was interrupted", _ASK)]
    except Exception as error:  # of any kind, at a remote point: the answer is there all the same
        return [_unsearched(f"the program failed ({error})"[:200], "")]


def searched(problem: Problem, target: Target, draws: Tensor) -> list[Finding]:
    """The findings on unconstrained draws (chain, draw, D) of a problem, by its log density."""
    if not bool(torch.isfinite(draws).all()):
        return []
    density = Padded(target, draws.flatten(0, 1))
    found = tails_of_density(problem, density, draws)
    if not any(finding.name == "improper" for finding in found):
        found += unseen_modes(problem, density, draws)
    return found + unbalanced(problem, density, draws)


def _thinned(draws: Tensor) -> Tensor:
    """Evenly spaced draws of every chain; of what is mapped from disk no more is read than that."""
    if draws.device.type == "cpu":
        draws = torch.from_numpy(scratch.thinned({"x": draws.detach().numpy()})["x"])
    chains, length = draws.shape[:2]
    keep = min(length, max(8, _DRAWS // chains))
    return draws[:, torch.linspace(0, length - 1, keep, device=draws.device).long()]


def _unsearched(reason: str, remedy: str) -> Finding:
    text = f"the log density was not searched for unseen modes and heavy tails: {reason}"
    return Finding("unsearched", "note", np.nan, text, remedy)
