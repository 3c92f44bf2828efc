"""Whether draws have given moments, judged at a stated level by the spread between chains.

Chains run with one common tuning from independent streams, so the average of a quantity over each
chain is one of C independent and nearly normal numbers, whatever its autocorrelation. Their own
spread gives the Monte Carlo error of the average over all chains,

    error^2 = var(chain averages) / C = var(quantity) / ESS,

and average / error is Student t with C - 1 degrees of freedom. An ESS estimated from
autocorrelations, as ArviZ does for a few chains, has no such exact law; with many chains none is
needed. A quantity is the deviation of a scalar from its exact mean, the square of that, or the
product of two: a sampler can be right on average and wrong on second moments.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats
from torch import Tensor

from inference import Engine, Fit, InferenceWarning, fit

if TYPE_CHECKING:
    from tests.targets import Known

LEVEL = 1e-4
"""The chance that correct samplers fail any of one module's checks (Bonferroni)."""

BLUNT = 0.1
"""A Monte Carlo error, in posterior sds, at which a check would see too little."""

Scalars = dict[str, np.ndarray]


def quiet(program: Any, data: Any, engine: Engine, *, seed: int = 0) -> Fit:
    """A fit whose findings are ignored: the tests judge its draws themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InferenceWarning)
        return fit(program, data, engine, seed=seed, progress=False)


def draws(known: Known, engine: Engine, *, seed: int = 0) -> Mapping[str, Tensor]:
    """The draws of a fit, {site: (C, S, *event)}."""
    return quiet(known.program, known.data, engine, seed=seed).posterior.draws


def scalars(draws: Mapping[str, Tensor]) -> Scalars:
    """Every scalar of the draws by name, ``site`` or ``site[i]``: {name: (C, S)}."""
    named: Scalars = {}
    for site, value in draws.items():
        array = value.detach().cpu().numpy().astype(float)
        if array.ndim == 2:
            named[site] = array
            continue
        for index in np.ndindex(array.shape[2:]):
            label = ", ".join(map(str, index))
            named[f"{site}[{label}]"] = array[(slice(None), slice(None), *index)]
    return named


def error(values: np.ndarray) -> float:
    """The Monte Carlo standard error of the mean of all: values (C, S)."""
    return float(values.mean(1).std(ddof=1) / np.sqrt(len(values)))


def student(values: np.ndarray) -> float:
    """The t statistic, C - 1 degrees of freedom, of mean zero: values (C, S)."""
    average, spread = values.mean(), error(values)
    if spread > 0:
        return float(average / spread)
    return 0.0 if average == 0 else np.inf


def quantities(draws: Mapping[str, Tensor], known: Known) -> Scalars:
    """What has mean zero if the draws have the moments of ``known``, in units of its known sds."""
    values = scalars(draws)
    away = {name: (values[name] - mean) / known.unit(name) for name, mean in known.mean.items()}
    first = {f"E {name}": away[name] for name in known.mean}
    second = {f"var {name}": away[name] ** 2 - 1 for name in known.sd}
    cross = {
        f"cov {a}, {b}": away[a] * away[b] - covariance / (known.unit(a) * known.unit(b))
        for (a, b), covariance in known.covariance.items()
    }
    return first | second | cross


def critical(family: int, chains: int) -> float:
    """|t| that any of ``family`` true statements exceeds with a chance of at most ``LEVEL``."""
    return float(stats.t.isf(LEVEL / (2 * family), chains - 1))


def surprises(draws: Mapping[str, Tensor], known: Known, family: int) -> dict[str, float]:
    """The t statistics beyond the critical value, the largest first; all where chains disagree.

    An error as large as ``BLUNT`` says that chains have not mixed, and would hide anything.
    """
    found = quantities(draws, known)
    limit = critical(family, len(next(iter(draws.values()))))
    beyond = {
        name: student(values)
        for name, values in found.items()
        if not (abs(student(values)) <= limit and error(values) < BLUNT)
    }
    return dict(sorted(beyond.items(), key=lambda item: -abs(item[1])))


def check(draws: Mapping[str, Tensor], known: Known, family: int) -> None:
    """Fail where any moment is off by more than chance allows.

    Args:
        draws: {site: (C, S, *event)}, C independent chains.
        known: the exact moments.
        family: how many moments the module checks in all.
    """
    beyond = surprises(draws, known, family)
    assert not beyond, f"t statistics beyond chance: {beyond}"


def deviations(table: Any, published: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Errors of means in Monte Carlo standard errors, the reference's own included.

    Args:
        table: ``inference.arviz_bridge.statistics`` of the draws.
        published: {scalar: (mean, sd)} of 10,000 nearly independent draws.
    """
    return {
        name: float((table["mean"][name] - mean) / np.hypot(table["mcse_mean"][name], sd / 100))
        for name, (mean, sd) in published.items()
    }
