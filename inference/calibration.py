"""Simulation-based calibration: does an engine's posterior hold the truth as often as it says?

Draw parameters theta from the prior and data y given them. Then theta and L independent draws from
the posterior given y are exchangeable, so the rank of theta among the draws is uniform on 0, ..., L
(Cook, Gelman & Rubin 2006; Talts, Betancourt, Simpson, Vehtari & Gelman 2018). That holds for any
statistic of parameters and data; the log likelihood catches what parameters alone do not, such as
a posterior that ignores the data (Modrak et al. 2023).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy import stats
from torch import Tensor

from inference import mixing
from inference.engine import Engine, Problem
from inference.fit import bind
from inference.program import isolated
from inference.replicated import Replicated, chains_of, standardised, with_target
from inference.sampling import Sampler
from inference.simulation import Assemble, Simulator
from ppl_models.base import Data, Model, Params
from ppl_models.errors import EngineError, ModelError
from ppl_models.noise import Noise

Statistics = Callable[[Params], Params]

_MOST_RANKS, _FEWEST, _MOST_BINS = 100, 8, 20
_SIMULATED = 20_000  # uniform rank sets behind the ECDF's p-value


class Band(NamedTuple):
    """A simultaneous band of the ECDF of N uniform ranks."""

    at: np.ndarray  # (K - 1,) the levels 1/K, ..., (K - 1)/K
    lower: np.ndarray  # (K - 1,)
    upper: np.ndarray  # (K - 1,)


@dataclass(frozen=True, repr=False)
class Calibration:
    """What simulation-based calibration found.

    Args:
        ranks: {scalar: (R,)}, each of 0, ..., K - 1: how many draws lie below the truth.
        categories: K, one more than the number of draws that are ranked against.
        level: the chance that a correct engine fails, over all scalars and both tests.
        ess: effective draws of a fit, the median over replications for the slowest scalar.
    """

    ranks: dict[str, np.ndarray]
    categories: int
    level: float
    ess: float
    seed: int = 0

    @property
    def replications(self) -> int:
        """How many data sets were fitted."""
        return len(next(iter(self.ranks.values())))

    @property
    def table(self) -> pd.DataFrame:
        """One row per scalar.

        ``bias`` and ``width`` are z statistics of the mean and the variance of the ranks: bias > 0
        where draws lie too low, width > 0 where they are too narrow. ``chi2_p`` is that of ranks in
        bins, ``ecdf_p`` that of the ranks' ECDF leaving its simultaneous band.
        """
        return pd.DataFrame({n: self._row(r) for n, r in self.ranks.items()}).T

    @property
    def passed(self) -> bool:
        """Whether no p-value is below ``level``, by Bonferroni over scalars and tests.

        Never where the draws of a fit are worth fewer than eight independent ones.
        """
        p = self.table[["chi2_p", "ecdf_p"]].to_numpy()
        return self.ess >= _FEWEST and bool((p > self.level / p.size).all())

    @property
    def findings(self) -> list[str]:
        """What is wrong, in words; empty where calibration passed."""
        found = []
        if self.ess < _FEWEST:
            found.append(
                f"the draws of a fit are worth {self.ess:.1f} independent ones, of which {_FEWEST} "
                "are needed to rank the truth: raise warmup and draws, unless it never mixes"
            )
        limit = self.level / (2 * len(self.ranks))
        for name, ranks in self.ranks.items():
            row = self._row(ranks)
            p = min(row["chi2_p"], row["ecdf_p"])
            if p > limit:
                continue
            words = []
            if abs(row["bias"]) > 3:
                words.append(f"draws lie too {'low' if row['bias'] > 0 else 'high'}")
            if abs(row["width"]) > 3:
                words.append(f"draws spread too {'little' if row['width'] > 0 else 'widely'}")
            found.append(
                f"{name}: ranks of the truth are not uniform (p = {p:.1g}): "
                f"{' and '.join(words) or 'the shape of the posterior is wrong'}"
            )
        return found

    def band(self, level: float = 0.05) -> Band:
        """The band that the ECDF of uniform ranks leaves anywhere with probability ``level``.

        Pointwise binomial intervals at the level that makes them simultaneous, found by simulation
        (Saeilynoja, Buerkner & Vehtari 2022).
        """
        return uniform_band(self.replications, self.categories, level, self.seed)

    def plot(self, scalars: int = 12) -> Figure:
        """The ECDF of the ranks less that of uniform ranks, in its 95 % simultaneous band.

        The scalars whose ECDF is the least likely come first, at most so many.
        """
        p = {name: self._row(ranks)["ecdf_p"] for name, ranks in self.ranks.items()}
        names = sorted(p, key=lambda name: p[name])[:scalars]
        columns = min(4, len(names))
        rows = -(-len(names) // columns)
        figure = Figure(figsize=(3 * columns, 2.2 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        band = self.band()
        for axes, name in zip(grid.flat, names, strict=False):
            ecdf = self._below(self.ranks[name]) / self.replications
            axes.fill_between(
                band.at, band.lower - band.at, band.upper - band.at, alpha=0.25, step="mid"
            )
            axes.step(band.at, ecdf - band.at, where="mid")
            axes.axhline(0.0, linewidth=0.5, color="grey")
            axes.set_title(name, fontsize=9)
            axes.set_xlabel("rank / draws", fontsize=8)
        for axes in grid.flat[len(names) :]:
            axes.set_axis_off()
        return figure

    def __repr__(self) -> str:
        verdict = "passed" if self.passed else f"failed: {'; '.join(self.findings)}"
        return (
            f"Calibration({self.replications} replications, {self.categories - 1} draws each, "
            f"{len(self.ranks)} scalars: {verdict})"
        )

    def _row(self, ranks: np.ndarray) -> dict[str, float]:
        n, k = self.replications, self.categories
        bins = _bins(n, k)
        counts = np.bincount(ranks * bins // k, minlength=bins)
        unit = (ranks + 0.5) / k - 0.5
        variance = (1 - 1 / k**2) / 12
        fourth = np.mean(((np.arange(k) + 0.5) / k - 0.5) ** 4)
        spread = math.sqrt((fourth - variance**2) / n)
        return {
            "mean_rank": float(unit.mean() + 0.5),
            "bias": float(unit.mean() / math.sqrt(variance / n)),
            "width": float((np.mean(unit**2) - variance) / spread),
            "chi2_p": float(stats.chisquare(counts).pvalue),
            "ecdf_p": uniform_p(ranks, k, self.seed),
        }

    def _below(self, ranks: np.ndarray) -> np.ndarray:
        """How many ranks are below each of 1, ..., K - 1."""
        return np.bincount(ranks, minlength=self.categories).cumsum()[:-1]


def sbc(
    model: Callable[..., Any],
    data: Any,
    engine: Engine,
    *,
    replications: int = 200,
    seed: int = 0,
    statistics: Statistics | None = None,
    assemble: Assemble | None = None,
    together: bool | None = None,
    level: float = 0.01,
) -> Calibration:
    """Simulation-based calibration of an engine on a model.

    Each replication draws parameters from the program's prior and data given them, fits, and ranks
    the truth among draws thinned until they are nearly independent: as many as the effective sample
    size of the median fit, at most 99. Discrete sites are not ranked: the suite draws them exactly
    given the others.

    Under the model's symmetries the truth has no label of its own: truth and draws go through
    ``Model.canonical`` together, and where the model has ``invariants`` these are ranked instead of
    the sites. ``statistics`` does the same for a plain function.

    Args:
        model: a ``Model`` or any Pyro function; its prior must be proper.
        data: a template: sizes, covariates, and observed values, which simulated ones replace.
        engine: any engine that gives draws. Few draws of one chain are enough.
        replications: how many data sets.
        seed: of the simulation and the fits.
        statistics: functions of the draws, {site: (1, n, *event)} -> {name: (1, n, *shape)}, ranked
            instead of the sites.
        assemble: makes the data fields of the drawn observed sites, where these are not fields as
            they stand: ``(template, {site: value}) -> {field: value}``.
        together: fit all data sets as one batch of chains; adaptation is then shared by them.
            By default where the engine is a ``Sampler`` without a ``proposal``.
        level: the chance that a correct engine fails.

    Raises:
        ModelError: the prior is improper, or data cannot be simulated.
        EngineError: the engine gives no draws, or no scalar is left to rank.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from inference import MH, sbc
        >>> def program(y):
        ...     m = pyro.sample("m", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(m, 1.0).expand([3]).to_event(1), obs=y)
        >>> engine = MH(chains=1, warmup=100, draws=50, tier="traced")
        >>> sbc(program, {"y": torch.zeros(3)}, engine, replications=100).passed
        True
    """
    if isinstance(replications, bool) or not isinstance(replications, int) or replications < 20:
        raise EngineError(f"replications={replications!r}: give a whole number of at least 20")
    if not 0 < level < 1:
        raise EngineError(f"level={level!r}: give a probability, such as 0.01")
    problem = bind(model, data, seed=seed)
    engine.check(model, problem.program)
    with isolated(problem.dtype, problem.device), torch.no_grad():
        simulator = Simulator(problem, assemble)
        truth, drawn = simulator.joint(replications, seed)
        datasets = simulator.datasets(drawn) if drawn else [problem.data] * replications
        seeds = Noise.seeded(seed, replications).fold(1).integers()
        problems = [simulator.problem_of(d, s) for d, s in zip(datasets, seeds, strict=True)]
        fields = simulator.batch(drawn)
        if _together(engine, together):
            points = _fit_together(problem, engine, fields, replications)
        else:
            points = _fit_in_turn(problems, engine, fields)
        values = simulator.constrain(points.flatten(1, 2), fields)
        both = {name: torch.cat([truth[name][:, None], values[name]], 1) for name in values}
        log_likelihood = simulator.log_likelihood(both, fields) if drawn else None
        columns: dict[str, list[np.ndarray]] = {}
        for r, each in enumerate(problems):
            own = {name: value[r : r + 1] for name, value in both.items()}
            own = _ranked(each, own, statistics)
            if log_likelihood is not None:
                own["log_likelihood"] = log_likelihood[r : r + 1]
            for name, column in _scalars(own).items():
                columns.setdefault(name, []).append(column)
    if not columns:
        raise EngineError("there is nothing to rank: statistics gave no scalar")
    stacked = {name: np.stack(rows) for name, rows in columns.items()}  # (R, 1 + chains * S)
    chains, length = points.shape[1:3]
    ess = _effective([x[:, 1:].reshape(-1, chains, length) for x in stacked.values()])
    draws = chains * length
    categories = _categories(ess, draws, replications)
    index = 1 + np.linspace(0, draws - 1, categories - 1).round().astype(int)
    rng = np.random.default_rng(seed)
    ranks = {name: _ranks(x[:, 0], x[:, index], rng) for name, x in stacked.items()}
    return Calibration(ranks, categories, level, ess, seed)


# -- fits ------------------------------------------------------------------------------------------


def _together(engine: Engine, wanted: bool | None) -> bool:
    able = isinstance(engine, Sampler) and getattr(engine, "proposal", None) is None
    if wanted and not able:
        raise EngineError(
            f"together=True: {type(engine).__name__} does not run chains on different data; give "
            "together=False"
        )
    return able if wanted is None else wanted


def _fit_together(problem: Problem, engine: Engine, fields: Data, count: int) -> Tensor:
    """Unconstrained draws of every replication, all in one batch: (R, chains, S, D).

    Adaptation is shared by chains, which here have different posteriors: a first run finds the
    centre and the spread of each, and the second sees all of them standardised.
    """
    assert isinstance(engine, Sampler)
    chains = engine.chains
    many = dataclasses.replace(engine, chains=count * chains)
    together = Replicated(problem, chains_of(fields, chains))

    def run(target: Replicated) -> Tensor:
        x = many.run(with_target(problem, target)).unconstrained
        assert x is not None
        return x.unflatten(0, (count, chains))

    pilot = run(together)
    centre, spread = standardised(pilot)
    x = run(together.in_frame(centre, spread))
    centre, spread = (v.unflatten(0, (count, chains))[:, :, None] for v in (centre, spread))
    return centre + spread * x


def _fit_in_turn(problems: list[Problem], engine: Engine, fields: Data) -> Tensor:
    """Unconstrained draws of every replication: (R, chains, S, D)."""
    if getattr(engine, "tier", None) in ("auto", "compiled"):
        engine = dataclasses.replace(engine, tier="traced")  # type: ignore[call-arg]
    points = []
    shared = Replicated(problems[0], {name: value[:1] for name, value in fields.items()})
    with contextlib.suppress(ModelError):  # else every fit traces its own
        shared.evaluator(torch.zeros(1, shared.dim, dtype=shared.dtype, device=shared.device))
        problems = [
            with_target(p, shared.with_fields({n: v[r : r + 1] for n, v in fields.items()}))
            for r, p in enumerate(problems)
        ]
    for problem in problems:
        posterior = engine.run(problem)
        if posterior.kind == "point":
            raise EngineError(
                f"{type(engine).__name__} gives a point, among which nothing can be ranked; use an "
                "engine that gives draws"
            )
        x = posterior.unconstrained
        points.append(problem.outputs.unconstrain(posterior.draws) if x is None else x)
    return torch.stack(points)


def _effective(scalars: list[np.ndarray]) -> float:
    """The effective draws of the slowest scalar in the median fit: each (R, chains, S)."""
    x = np.stack(scalars, -1).transpose(1, 2, 0, 3)  # (chains, S, R, scalars)
    return float(np.nanmedian(mixing.ess_mean(x), axis=0).min())


def _categories(ess: float, draws: int, replications: int) -> int:
    """One more than the draws ranked against: a multiple of the number of bins."""
    most = min(max(int(min(ess, draws)) + 1, _FEWEST), _MOST_RANKS, draws + 1)
    bins = min(_MOST_BINS, max(2, replications // 10), most)
    return most // bins * bins


def _bins(replications: int, categories: int) -> int:
    most = min(_MOST_BINS, max(2, replications // 10), categories)
    return max(b for b in range(1, most + 1) if categories % b == 0)


# -- ranks -----------------------------------------------------------------------------------------


def _ranked(problem: Problem, both: Params, statistics: Statistics | None) -> Params:
    """What is ranked of the truth and the draws of one data set, {name: (1, 1 + S, *shape)}."""
    model = problem.model
    if isinstance(model, Model):
        both = {**both, **model.canonical(dict(both))}
        both = dict(model.invariants(problem.data, dict(both))) or both
    return dict(both) if statistics is None else dict(statistics(both))


def _scalars(values: Params) -> dict[str, np.ndarray]:
    """Every scalar by name: {name: (1 + S,)}."""
    scalars = {}
    for site, value in values.items():
        array = value.double().cpu().numpy()
        for index in np.ndindex(array.shape[2:]):
            text = ", ".join(map(str, index))
            scalars[f"{site}[{text}]" if text else site] = array[(0, slice(None), *index)]
    return scalars


def _ranks(truth: np.ndarray, draws: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """How many draws lie below the truth, equal ones by lot: (R,), (R, L) -> (R,)."""
    below = (draws < truth[:, None]).sum(1)
    return below + rng.integers(0, (draws == truth[:, None]).sum(1) + 1)


# -- the ECDF of uniform ranks ---------------------------------------------------------------------


def uniform_band(number: int, categories: int, level: float = 0.05, seed: int = 0) -> Band:
    """The band that the ECDF of so many uniform ranks leaves anywhere with probability ``level``.

    Ranks are of 0, ..., ``categories`` - 1; see ``Calibration.band``.
    """
    at = np.arange(1, categories) / categories
    gamma = np.quantile(_uniform_minima(number, categories, seed), level)
    lower = stats.binom.ppf(gamma / 2, number, at) / number
    upper = stats.binom.ppf(1 - gamma / 2, number, at) / number
    return Band(at, lower, upper)


def uniform_p(ranks: np.ndarray, categories: int, seed: int = 0) -> float:
    """The chance that the ECDF of as many uniform ranks is as far off as that of these ranks."""
    below = np.bincount(ranks, minlength=categories).cumsum()[:-1]
    minima = _uniform_minima(len(ranks), categories, seed)
    own = _minimum(below[None], len(ranks), categories)[0]
    return float((1 + (minima <= own).sum()) / (1 + len(minima)))


@functools.lru_cache(maxsize=8)
def _uniform_minima(replications: int, categories: int, seed: int) -> np.ndarray:
    """The smallest pointwise p-value of the ECDF of uniform ranks, many times."""
    shares = np.full(categories, 1 / categories)
    counts = np.random.default_rng(seed).multinomial(replications, shares, size=_SIMULATED)
    return _minimum(counts.cumsum(1)[:, :-1], replications, categories)


def _minimum(below: np.ndarray, replications: int, categories: int) -> np.ndarray:
    """Over all levels, the smallest two-sided binomial p-value: below (M, K - 1) -> (M,)."""
    at = np.arange(1, categories) / categories
    count = np.arange(replications + 1)[:, None]
    lower = stats.binom.cdf(count, replications, at)
    upper = stats.binom.sf(count - 1, replications, at)
    p = np.minimum(1.0, 2 * np.minimum(lower, upper))  # (R + 1, K - 1)
    return p[below, np.arange(categories - 1)].min(1)
