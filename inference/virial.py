"""Do the draws balance the density's forces? The virial theorem, for the draws of any engine.

For a proper density and every coordinate, integration by parts gives

    E[(x_i - m_i) d log p / d x_i] = -1

whatever the constant m_i (equipartition of energy; the simplest of Stein's identities). Draws that
are too narrow or too wide, as those of a discretised diffusion, or on their way to infinity, as
where the posterior is improper, break it. Draws of one of several modes, and of an approximation
at the best of its family, do not: other checks are for these. Nor is it true of draws that were
relabelled or turned, of which only one of several equal parts of the space is left.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from inference import mixing
from inference.engine import Problem
from inference.finding import Finding
from inference.padded import Density
from inference.tails import coordinate_names
from ppl_models.base import Model

_LARGEST = 1000  # draws looked at
_OFF, _WRONG = (0.8**2, 1.2**2), (0.7**2, 1.3**2)
"""Of the balance, which of a normal is the ratio of variances: sds off by 20 %, and by 30 %."""
_ERRORS = 4.0  # standard errors that the balance must be off by


@torch.no_grad()
def unbalanced(problem: Problem, target: Density, draws: Tensor) -> list[Finding]:
    """The finding that -E[(x_i - m_i) d log p / d x_i] is not 1 for some coordinate.

    Told where it differs from 1 by more than four Monte-Carlo errors: a *warning* below 0.64 or
    above 1.44, an *error* below 0.49 or above 1.69.

    Args:
        problem: model and data.
        target: its log density.
        draws: unconstrained, (chain, draw, D).
    """
    model = problem.model
    if isinstance(model, Model) and type(model).canonical is not Model.canonical:
        return []
    chains, length, dim = draws.shape
    keep = max(1, _LARGEST // chains)
    x = draws[:, torch.linspace(0, length - 1, min(length, keep)).long()]
    if x.shape[1] < 8:
        return []
    gradient = target.log_density_and_grad(x.reshape(-1, dim))[1].reshape(x.shape)
    if not bool(torch.isfinite(gradient).all() and torch.isfinite(x).all()):
        return []
    force = (-(x - draws.mean((0, 1))) * gradient).cpu().numpy()
    balance = force.mean((0, 1))
    copies = force.std((0, 1)) / np.sqrt(mixing.distinct(x[:, :, 0].cpu().numpy().ravel()))
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.maximum(np.nan_to_num(mixing.mcse_mean(force), nan=np.inf), copies)
    surely = np.abs(balance - 1) > _ERRORS * error
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = np.where(balance > 0, np.maximum(balance, 1 / balance), np.inf)
    worst = int(np.argmax(np.where(surely, factor, 0.0)))
    if not surely[worst] or _OFF[0] <= balance[worst] <= _OFF[1]:
        return []
    name, figure = coordinate_names(problem)[worst], float(balance[worst])
    text = (
        f"the draws of {name} do not balance the density's slope (virial {figure:.2f} instead "
        f"of 1, with a Monte-Carlo error of {error[worst]:.2f}): they are "
        + ("too wide, or lie to one side" if figure > 1 else "too narrow, or drift")
    )
    remedy = "lengthen warmup, or use NUTS; is the posterior proper?"
    severe = not _WRONG[0] <= figure <= _WRONG[1]
    return [Finding("virial", "error" if severe else "warning", figure, text, remedy)]
