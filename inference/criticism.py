"""Does the model fit the data? Predictions before and after the data, and leave-one-out checks.

Sources: Gelman, Meng & Stern (1996) for posterior predictive checks; Vehtari, Gelman & Gabry (2017)
for leave-one-out by Pareto-smoothed importance sampling; Gelman et al., *Bayesian Data Analysis*
(2013, section 6.3) and Saeilynoja, Buerkner & Vehtari (2022) for LOO-PIT with its band.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.special import logsumexp
from torch import Tensor

from inference import mixing, psis
from inference.calibration import Band, uniform_band, uniform_p
from inference.fit import Fit, bind
from inference.program import isolated
from ppl_models.errors import EngineError, ModelError

Statistic = Callable[[np.ndarray], np.ndarray]
"""Of replications in rows: (S, N) -> (S,)."""

STATISTICS: dict[str, Statistic] = {
    "mean": lambda y: y.mean(1),
    "sd": lambda y: y.std(1),
    "min": lambda y: y.min(1),
    "max": lambda y: y.max(1),
}
ZEROS: dict[str, Statistic] = {"share of zeros": lambda y: (y == 0).mean(1)}

_EXTREME = 0.05
_CATEGORIES = 100  # of the ECDF of PIT values


def prior_predictive(
    model: Callable[..., Any], data: Any = None, draws: int = 1000, seed: int = 0
) -> dict[str, Tensor]:
    """Parameters from the prior, and data given them, by running the program.

    Args:
        model, data: as for ``fit``; the observed values in ``data`` are not looked at.
        draws: how many.
        seed: of the simulation.

    Returns:
        {site: (draws, *shape)} of all latent and observed sites.

    Raises:
        ModelError: the prior is improper, so that nothing can be drawn from it.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from inference import prior_predictive
        >>> def coins(heads):
        ...     p = pyro.sample("p", dist.Beta(2.0, 2.0))
        ...     pyro.sample("heads", dist.Binomial(10, p), obs=heads)
        >>> drawn = prior_predictive(coins, {"heads": [7.0]}, draws=500)
        >>> sorted((site, tuple(values.shape)) for site, values in drawn.items())
        [('heads', (500, 1)), ('p', (500,))]
    """
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
        raise EngineError(f"draws={draws!r}: give a positive whole number")
    problem = bind(model, data, seed=seed)
    try:
        with isolated(problem.dtype, problem.device), torch.no_grad():
            return problem.program.simulate(draws, seed)
    except NotImplementedError as error:
        raise ModelError(
            f"the prior cannot be drawn from: {error}; give every flat site a proper prior"
        ) from error


def predictive_checks(
    fit: Fit,
    statistics: Mapping[str, Statistic] | None = None,
    *,
    draws: int = 1000,
    seed: int | None = None,
) -> pd.DataFrame:
    """Posterior predictive checks: are replicated data like the observed ones?

    The Bayesian p-value of a statistic T is the share of replications y' with T(y') > T(y), those
    with T(y') = T(y) counted by half: near 0 the model makes T too small, near 1 too large. It is
    not uniform under a right model but concentrates at 1/2, since the data are used twice.

    Args:
        fit: of any engine; replications of a point vary by the noise of the data alone.
        statistics: {name: T}, T from (S, N) to (S,), N the observed values of a site in one row;
            by default mean, sd, min, max and, of counts, the share of zeros.
        draws: how many of the posterior's to replicate from.
        seed: of the replications; by default that of the fit.

    Returns:
        One row for each observed site and statistic: ``observed``, ``replicated`` (the mean),
        ``sd``, ``p`` and its ``meaning``.

    Raises:
        EngineError: the program observes nothing.
    """
    if not fit.program.observed:
        raise EngineError("the program observes no site: there is nothing to check")
    drawn = thinned(fit, draws).predict(seed=seed)
    rows = []
    for site in fit.program.observed:
        y = fit.program.observations[site].detach().cpu().double().numpy().reshape(1, -1)
        replications = drawn[site].detach().cpu().double().numpy().reshape(-1, y.size)
        chosen = statistics or STATISTICS | (ZEROS if _counts(y) else {})
        for name, function in chosen.items():
            rows.append(
                {"site": site, "statistic": name, **_check(name, function, y, replications)}
            )
    return pd.DataFrame(rows)


def _check(name: str, function: Statistic, y: np.ndarray, drawn: np.ndarray) -> dict[str, Any]:
    replicated = np.asarray(function(drawn), dtype=float)
    if replicated.shape != (len(drawn),):
        raise EngineError(
            f"statistic '{name}' gave shape {replicated.shape} for {len(drawn)} replications; give "
            "a function from (S, N) to (S,)"
        )
    observed = float(function(y)[0])
    p = float(np.mean(replicated > observed) + 0.5 * np.mean(replicated == observed))
    if p < _EXTREME:
        meaning = f"the model makes the {name} too small: only {p:.1%} of replications reach it"
    elif p > 1 - _EXTREME:
        meaning = (
            f"the model makes the {name} too large: only {1 - p:.1%} of replications are below"
        )
    else:
        meaning = f"the {name} is as the model expects"
    return {
        "observed": observed,
        "replicated": float(replicated.mean()),
        "sd": float(replicated.std()),
        "p": p,
        "meaning": meaning,
    }


@dataclass(frozen=True)
class Loo:
    """Leave-one-out predictive densities of the observations of one site.

    ``elpd_i`` is log p(y_i | y_-i), ``mcse_i`` its Monte-Carlo error, ``k_hat`` the Pareto shape of
    its importance weights; all (N,). Above ``limit`` an ``elpd_i`` cannot be trusted.
    """

    site: str
    elpd_i: np.ndarray
    mcse_i: np.ndarray
    k_hat: np.ndarray
    limit: float
    p_loo: float
    """Effective number of parameters: the log predictive density of the same data less elpd."""

    @property
    def elpd(self) -> float:
        """The sum over observations: expected log density of as many new ones (nats)."""
        return float(self.elpd_i.sum())

    @property
    def se(self) -> float:
        """Standard error of ``elpd`` from observation to observation."""
        return float(math.sqrt(len(self.elpd_i)) * self.elpd_i.std())

    @property
    def mcse(self) -> float:
        """Monte-Carlo standard error of ``elpd``; not to be trusted where a ``k_hat`` is high."""
        return float(np.sqrt(np.square(self.mcse_i).sum()))

    @property
    def unreliable(self) -> np.ndarray:
        """The observations whose ``k_hat`` is above its limit."""
        return np.flatnonzero(self.k_hat > self.limit)


@dataclass(frozen=True)
class Pit:
    """LOO-PIT values (N,) of the observations of one site: uniform where the model is calibrated.

    ``p`` is the chance of so uneven an ECDF under a calibrated model.
    """

    site: str
    values: np.ndarray
    p: float
    band: Band
    randomised: bool
    """Whether observations equal to replications were placed by lot, as for discrete data."""


def loo(fit: Fit, site: str | None = None) -> Loo:
    """Leave-one-out predictive densities by Pareto-smoothed importance sampling.

    p(y_i | y_-i) = 1 / E[1 / p(y_i | theta)] over the posterior: draws are weighted by the inverse
    of the likelihood of y_i, the largest weights smoothed.

    Args:
        fit: with draws; those of an approximation are taken as the posterior's.
        site: which observed site, where there are several.

    Raises:
        EngineError: a point, or a site that the program does not observe.
    """
    site = _site(fit, site)
    log_likelihood = fit.log_likelihood()[site].detach().cpu().double().numpy()
    return loo_of(log_likelihood, site)


def loo_of(log_likelihood: np.ndarray, site: str = "y") -> Loo:
    """``loo`` from the log likelihood of each observation at each draw, (chain, draw, *shape)."""
    chains, draws = log_likelihood.shape[:2]
    rows = log_likelihood.reshape(chains * draws, -1)
    efficiency = np.clip(mixing.ess_mean(np.exp(rows - rows.max(0)).reshape(chains, draws, -1)), 1,
                         len(rows)) / len(rows)  # fmt: skip
    elpd, mcse, k_hat = (np.empty(rows.shape[1]) for _ in range(3))
    for i in range(rows.shape[1]):
        smoothed = psis.smooth(-rows[:, i])
        elpd[i] = logsumexp(smoothed.log_weights + rows[:, i])
        weight, ratio = np.exp(smoothed.log_weights), np.exp(rows[:, i] - elpd[i])
        mcse[i] = np.sqrt(np.sum(np.square(weight * (ratio - 1))) / efficiency[i])
        k_hat[i] = smoothed.k_hat
    full = np.asarray(logsumexp(rows, axis=0)) - math.log(len(rows))
    limit = psis.threshold(len(rows))
    return Loo(site, elpd, mcse, k_hat, limit, float((full - elpd).sum()))


def loo_pit(fit: Fit, site: str | None = None, *, seed: int | None = None) -> Pit:
    """Where each observation lies in its predictive law given all others.

    PIT_i = P(y' < y_i | y_-i) + u P(y' = y_i | y_-i), u uniform on (0, 1): randomised, so that the
    values of discrete data are uniform too under a right model; for continuous data u plays no
    part. ``y'`` are replications weighted as in ``loo``, discrete sites of single rows drawn anew.
    Too small a predictive sd gives too many values near 0 and 1, too large a one too few.

    Args:
        fit: with draws.
        site: which observed site, where there are several.
        seed: of replications and u; by default that of the fit.

    Raises:
        EngineError: a point; or observations that are vectors, which have no order.
    """
    site = _site(fit, site)
    log_likelihood = fit.log_likelihood()[site].detach().cpu().double().numpy()
    seed = fit.seed if seed is None else seed
    with isolated(fit.dtype, fit.device, parameters=fit.parameters), torch.no_grad():
        # as for new data: a discrete site that belongs to a row has seen the row's own observation
        drawn = fit.program.predictive(fit.posterior.draws, seed, fit.program.data)
    replicated = drawn[site].detach().cpu().double().numpy()
    observed = fit.program.observations[site].detach().cpu().double().numpy()
    if log_likelihood.shape[2:] != observed.shape:
        raise EngineError(
            f"the observations of '{site}' are vectors, of shape {observed.shape} with "
            f"{log_likelihood.shape[2:]} densities: the PIT needs scalars"
        )
    return loo_pit_of(log_likelihood, replicated, observed, site, seed)


def loo_pit_of(
    log_likelihood: np.ndarray, drawn: np.ndarray, observed: np.ndarray, site: str = "y",
    seed: int = 0,
) -> Pit:  # fmt: skip
    """``loo_pit`` from arrays: (chain, draw, *shape), the same for replications, (*shape)."""
    y = observed.ravel()
    rows = log_likelihood.reshape(-1, y.size)
    replicated = drawn.reshape(-1, y.size)
    below, equal = np.empty(y.size), np.empty(y.size)
    for i in range(y.size):
        weight = np.exp(psis.smooth(-rows[:, i]).log_weights)
        below[i] = weight @ (replicated[:, i] < y[i])
        equal[i] = weight @ (replicated[:, i] == y[i])
    unit = np.random.default_rng(seed).uniform(size=y.size)
    values = np.clip(below + unit * equal, 0.0, 1.0)
    categories = min(_CATEGORIES, len(rows))
    ranks = np.minimum((values * categories).astype(int), categories - 1)
    band = uniform_band(y.size, categories)
    return Pit(site, values, uniform_p(ranks, categories), band, bool((equal > 0).any()))


def thinned(fit: Fit, draws: int) -> Fit:
    """The fit with at most so many of its draws, evenly spaced, of every chain alike."""
    if fit.posterior.kind == "point":
        many = {name: value.expand(1, draws, *value.shape)
                for name, value in fit.posterior.draws.items()}  # fmt: skip
        return replace(fit, posterior=replace(fit.posterior, draws=many, unconstrained=None))
    chains, length = next(iter(fit.posterior.draws.values())).shape[:2]
    step = max(1, -(-chains * length // draws))
    if step == 1:
        return fit
    index = torch.arange(0, chains * length, step)
    chain, draw = index // length, index % length

    def few(value: Tensor) -> Tensor:
        return value[chain.to(value.device), draw.to(value.device)][None]

    kept = {name: few(value) for name, value in fit.posterior.draws.items()}
    x = fit.posterior.unconstrained
    return replace(
        fit,
        posterior=replace(
            fit.posterior, draws=kept, stats={}, unconstrained=None if x is None else few(x)
        ),
    )


def _counts(y: np.ndarray) -> bool:
    return bool((y == np.round(y)).all() and (y >= 0).all())


def _site(fit: Fit, site: str | None) -> str:
    observed = list(fit.program.observed)
    if fit.posterior.kind == "point":
        raise EngineError(
            "a point has no draws to leave observations out of; use an engine with draws"
        )
    if not observed:
        raise EngineError("the program observes no site: there is nothing to leave out")
    if site is None and len(observed) > 1:
        raise EngineError(
            f"several sites are observed: give site='{observed[0]}' or another of {observed}"
        )
    if site is not None and site not in observed:
        raise EngineError(f"site={site!r} is not observed; choose one of {observed}")
    return observed[0] if site is None else site
