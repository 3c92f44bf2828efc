"""How far the draws of fits are from the posterior, with as many draws of each fit.

The kernel Stein discrepancy needs no reference (``stein``); the sliced Wasserstein distance is one
to reference draws (``two_samples``).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from inference.engine import Problem
from inference.fit import Fit
from inference.program import isolated
from inference.references import Reference, scalar_draws
from inference.stein import ksd
from inference.target import Target
from inference.two_samples import evenly, sliced_wasserstein
from ppl_models.errors import EngineError

_LEAST = 100  # draws; fits with fewer are not judged
_STEIN_DRAWS = 500
_SLICED_DRAWS = 2000
_STEIN_DIM = 1000  # dimensions, above which the discrepancy is not worth its cost


def sliced_distances(fits: Mapping[str, Fit], reference: Reference) -> dict[str, float]:
    """Sliced Wasserstein distance of each fit's draws to the reference's, in reference sds.

    Of the parameters that all have. Fits with fewer than 100 draws, and points, are left out; of
    the others as many draws are taken as the least of them has, up to 2,000.
    """
    if reference.draws is None:
        return {}
    wanted = {str(name).split("[")[0] for name in reference.draws.columns}
    tables = {}
    for name, result in _drawn(fits).items():
        variables = [v for v in result.posterior.draws if v in wanted]
        if variables:
            tables[name] = scalar_draws(result.to_arviz(), variables)
    common = _common(reference, tables)
    if not tables or not common:
        return {}
    number = min(_SLICED_DRAWS, len(reference.draws), *(len(t) for t in tables.values()))
    mean, sd = (reference.moments.loc[common, column].to_numpy() for column in ("mean", "sd"))

    def standard(table: pd.DataFrame) -> np.ndarray:
        return (table[common].to_numpy()[evenly(len(table), number)] - mean) / sd

    truth = standard(reference.draws)
    return {name: sliced_wasserstein(standard(table), truth) for name, table in tables.items()}


def stein_discrepancies(fits: Mapping[str, Fit]) -> dict[str, float]:
    """Kernel Stein discrepancy of the draws of each fit of one model and data.

    Distances are in the unconstrained space, in units of the sds of the fit to be trusted most:
    the Markov chains with the largest smallest bulk effective sample size, else the first fit.
    Fits with fewer than 100 draws, and points, are left out; of the others as many draws are taken
    as the least of them has, up to 500. Models above 1,000 dimensions, and programs with trained
    weights, whose density is another after every fit, are left out.
    """
    drawn = {
        name: result
        for name, result in _drawn(fits).items()
        if 0 < result.program.dim <= _STEIN_DIM and not result.program.parameters
    }
    if not drawn:
        return {}
    unconstrained = {name: _unconstrained(result) for name, result in drawn.items()}
    number = min(_STEIN_DRAWS, *(len(x) for x in unconstrained.values()))
    scale = unconstrained[_trusted(drawn)].std(0)
    scale = torch.where(torch.isfinite(scale) & (scale > 0), scale, 1.0)
    target = _target(next(iter(drawn.values())))
    found = {}
    for name, x in unconstrained.items():
        try:
            found[name] = ksd(target, x[evenly(len(x), number)], scale=scale).value
        except EngineError:  # a draw where the density has no score
            continue
    return found


def _drawn(fits: Mapping[str, Fit]) -> dict[str, Fit]:
    return {
        name: result
        for name, result in fits.items()
        if result.posterior.kind != "point" and _draws(result) >= _LEAST
    }


def _draws(result: Fit) -> int:
    shape = next(iter(result.posterior.draws.values())).shape
    return shape[0] * shape[1]


def _common(reference: Reference, tables: Mapping[str, pd.DataFrame]) -> list[str]:
    spread = reference.moments["sd"].to_numpy() > 0
    known = [str(name) for name in reference.moments.index[spread]]
    return [name for name in known if all(name in table.columns for table in tables.values())]


def _unconstrained(result: Fit) -> Tensor:
    """Draws (S, D) in the order of chains."""
    x = result.posterior.unconstrained
    if x is None:
        problem = Problem(
            result.model, result.data, result.program, result.seed, result.dtype, result.device
        )
        x = problem.outputs.unconstrain(result.posterior.draws)
    return x.flatten(0, 1)


def _trusted(fits: Mapping[str, Fit]) -> str:
    def least(name: str) -> float:
        if fits[name].posterior.kind != "samples":
            return -1.0
        smallest = float(fits[name].summary()["ess_bulk"].to_numpy().min())
        return smallest if np.isfinite(smallest) else 0.0

    return max(fits, key=least)


def _target(result: Fit) -> Target:
    program, dtype, device = result.program, result.dtype, result.device

    def log_density(x: Tensor) -> Tensor:
        with isolated(dtype, device):
            return program.log_density(x)

    return Target(log_density, program.dim, dtype=dtype, device=device, tier="traced")
