"""Which figures a fit gets in the report, of which of its scalars."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from inference import (
    answer_plots,
    arviz_bridge,
    chain_plots,
    criticism,
    ergodic,
    exhibit_plots,
    psis,
)
from inference.finding import Finding
from inference.fit import Fit
from inference.plots import Draw, Picture, picture
from ppl_models.base import Model

SHOWN, SHOWN_OF_MANY = 8, 4
"""Scalars of a fit that are plotted; where there are more than two fits."""

MOST = 5_000
"""Scalars that a table holds."""

_PAIRS = 3
_CHECKED = 500  # replications of the data
_WEIGHED = 2_000  # draws behind leave-one-out
_OBSERVATIONS = 2_000  # left out one by one
_NUMBERS = 8_000_000  # of an array of draws by observations


class Group(NamedTuple):
    """Pictures of one kind, side by side."""

    title: str
    note: str
    pictures: list[Picture]
    unfolded: bool = False
    table: pd.DataFrame | None = None


@dataclass(frozen=True)
class Part:
    """One fit on the page: ``fit`` where it is one of this library's, ``data`` for ArviZ."""

    name: str
    data: Any
    kind: str
    findings: list[Finding]
    table: pd.DataFrame
    fit: Fit | None = None
    reference: pd.DataFrame | None = None
    most: int = SHOWN
    undrawn: list[str] = field(default_factory=list)

    @functools.cached_property
    def posterior(self) -> xr.Dataset:
        """The numeric variables of the posterior, (chain, draw, *event); empty of a point."""
        if self.kind == "point" or not arviz_bridge.has_group(self.data, "posterior"):
            return xr.Dataset()
        return numeric(arviz_bridge.group(self.data, "posterior"))

    @functools.cached_property
    def stats(self) -> dict[str, np.ndarray]:
        """Statistics of the sampler, (chain, draw)."""
        if not arviz_bridge.has_group(self.data, "sample_stats"):
            return {}
        found = arviz_bridge.arrays(numeric(arviz_bridge.group(self.data, "sample_stats")))
        return {name: value for name, value in found.items() if value.ndim == 2}

    @functools.cached_property
    def shown(self) -> list[str]:
        """The scalars that are plotted: all, or those of the worst figures."""
        table = self.table.loc[[name for name in self.table.index if name in self._places]]
        return (
            list(worst_first(table).index[: self.most])
            if len(table) > self.most
            else list(table.index)
        )

    @property
    def which(self) -> str:
        """Which scalars are plotted, in words."""
        if not self.shown or len(self.shown) >= len(self.table):
            return ""
        by = "the lowest effective sample size or the highest R-hat"
        by = by if "ess_bulk" in self.table else "the largest sd for their mean"
        return f"Plotted are the {len(self.shown)} of {len(self.table)} scalars with {by}."

    def draws(self, scalar: str) -> np.ndarray:
        """Its draws (chain, draw)."""
        variable, index = self._places[scalar]
        values = self.posterior[variable].transpose("chain", "draw", ...).values
        return values.reshape(*values.shape[:2], -1)[:, :, index]

    def truth(self, scalar: str) -> float | None:
        """Its mean in the reference."""
        if self.reference is None or scalar not in self.reference.index:
            return None
        return float(self.reference.loc[scalar, "mean"])  # pyright: ignore[reportArgumentType]

    @functools.cached_property
    def _places(self) -> dict[str, tuple[str, int]]:
        places = {}
        for variable in self.posterior.data_vars:
            one = self.posterior[[variable]].transpose("chain", "draw", ...)
            names = arviz_bridge.scalars(one.isel(chain=0, draw=0, drop=True)).index
            places |= {str(name): (str(variable), index) for index, name in enumerate(names)}
        return places

    def pictures(self, draws: Iterable[tuple[str, Draw]], **size: Any) -> list[Picture]:
        """The pictures that can be drawn; of the others it is noted which and why not."""
        made = []
        for name, draw in draws:
            try:
                made.append(picture(draw, **size))
            except Exception as error:  # a figure that fails must not lose the report
                self.undrawn.append(f"{name}: {type(error).__name__}: {error}")
        return made


def numeric(group: xr.Dataset) -> xr.Dataset:
    """The variables of a group that hold numbers, small ones first up to 5,000 scalars."""
    if not {"chain", "draw"} <= set(group.sizes):
        return xr.Dataset()
    lead = max(1, group.sizes["chain"] * group.sizes["draw"])
    sizes = {
        str(name): value.size // lead
        for name, value in group.data_vars.items()
        if value.dtype.kind in "fiub" and {"chain", "draw"} <= set(value.dims) and value.size
    }
    order = sorted(sizes, key=lambda name: sizes[name])
    totals = np.cumsum([sizes[name] for name in order])
    kept = {name for name, total in zip(order, totals, strict=True) if total <= MOST}
    chosen = group[[name for name in sizes if name in kept]]
    return chosen.map(lambda a: a.astype(float) if a.dtype.kind == "b" else a)


def worst_first(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a summary, those that deserve a look first; of equal ones the first."""
    table = table.drop_duplicates()
    if "ess_bulk" in table:
        size = table[["ess_bulk", "ess_tail"]].min(axis=1).rank(na_option="top")
        disagreement = (-table["r_hat"]).rank(na_option="bottom")
        return table.iloc[np.argsort(np.minimum(size, disagreement), kind="stable")]
    if "sd" in table:
        share = table["sd"] / table["mean"].abs().clip(lower=1e-12)
        return table.iloc[np.argsort(-share, kind="stable")]
    return table


def groups(part: Part) -> list[Group]:
    """All groups of figures of a fit."""
    made: list[Group] = []
    if part.kind == "samples":
        made += _of_chains(part)
    elif part.kind == "approximation":
        made += _of_approximation(part)
    made += _of_optimisation(part)
    if part.fit is not None:
        made += _of_model(part, part.fit)
        made += _of_predictions(part, part.fit)
    else:
        made += _of_stored_predictions(part)
    return [group for group in made if group.pictures or group.table is not None]


# -- chains ----------------------------------------------------------------------------------------


class _Kind(NamedTuple):
    title: str
    note: str
    draw: Callable[..., str]
    least: int  # draws per chain that it needs
    steady: bool = True  # whether it needs draws that vary
    unfolded: bool = False


_KINDS = (
    _Kind("Traces", "Draws in their order: chains that have mixed lie over one another and do not "
          "drift.", chain_plots.trace, 1, steady=False, unfolded=True),
    _Kind("Marginal densities", "Coloured: by chain; dark: all chains, 94 % of the draws shaded.",
          chain_plots.marginal, 1, unfolded=True),
    _Kind("Rank plots", "Level bars, at the dotted line, mean that the chains agree.",
          chain_plots.ranks, 4, unfolded=True),
    _Kind("Running means", "Ergodic averages over all chains with their 95 % band: they should "
          "have settled inside it.", chain_plots.average, ergodic.LEAST, unfolded=True),
    _Kind("Autocorrelation", "By lag, with the range of a chain without memory shaded.",
          chain_plots.autocorrelation, 8),
    _Kind("Effective sample size by draws", "It grows in proportion to the draws where chains mix.",
          chain_plots.growth, 16),
    _Kind("Effective sample size by place", "Bars: of tenths of the draws in their order of size; "
          "points: of quantiles. A low one says that this part is visited too seldom.",
          chain_plots.local_sizes, 16),
)  # fmt: skip


def _of_chains(part: Part) -> list[Group]:
    made = []
    values = {name: part.draws(name) for name in part.shown}
    for kind in _KINDS:
        panels, left = [], []
        for name, x in values.items():
            fine = x.shape[1] >= kind.least and bool(np.isfinite(x).all())
            if not fine or (kind.steady and np.ptp(x) == 0):
                left.append(name)
                continue
            extra = (part.truth(name),) if kind.draw is chain_plots.average else ()
            panels.append((f"{kind.title} of {name}", _bound(kind.draw, name, x, *extra)))
        note = kind.note
        if left:
            note += f" Left out, as constant, not finite or too short: {', '.join(left)}."
        made.append(Group(kind.title, note, part.pictures(panels), kind.unfolded))
    return made + _of_hamiltonian(part, values)


def _of_hamiltonian(part: Part, values: dict[str, np.ndarray]) -> list[Group]:
    made, stats = [], part.stats
    energy = stats.get("energy")
    if energy is not None and energy.shape[1] >= 4 and np.isfinite(energy).all():
        note = "Where the changes are much narrower, momentum refreshes reach too few energies."
        panels = [("energy", _bound(chain_plots.energy, energy))]
        made.append(Group("Energy", note, part.pictures(panels, wide=True)))
    diverging = stats.get("diverging")
    bad = None if diverging is None else diverging.astype(bool)
    depth = stats.get("tree_depth")
    if depth is not None and depth.size and np.isfinite(depth).all():
        height = float(np.clip(0.09 * len(depth) + 1.2, 1.9, 4))
        panels = [("tree depth", _bound(chain_plots.depths, depth, bad))]
        note = "Deep trees are long trajectories: 2^depth - 1 gradients."
        made.append(Group("Tree depth", note, part.pictures(panels, wide=True, height=height)))
    if bad is not None and bad.any():
        pairs = _telling_pairs(values, bad)
        note = "Where divergent draws (red) crowd, the curvature is too high for the step size."
        made.append(Group("Divergences", note, part.pictures(pairs), unfolded=True))
    return made


def _telling_pairs(values: dict[str, np.ndarray], bad: np.ndarray) -> list[tuple[str, Draw]]:
    """Pairs of the scalars in which divergent draws lie farthest from the others."""
    shift = {}
    for name, x in values.items():
        if np.isfinite(x).all() and np.ptp(x) > 0 and x.shape == bad.shape:
            shift[name] = abs(np.median(x[bad]) - np.median(x)) / x.std()
    first = sorted(shift, key=lambda name: -shift[name])[: _PAIRS + 1]
    return [
        (f"{b} against {a}", _bound(chain_plots.pair, (a, b), values[a].ravel(), values[b].ravel(),
                                    bad.ravel()))
        for a, b in [(first[0], other) for other in first[1:]]
    ]  # fmt: skip


# -- approximations and optima ---------------------------------------------------------------------


def _of_approximation(part: Part) -> list[Group]:
    drawn = {name: part.draws(name) for name in part.shown}
    fine = {n: x for n, x in drawn.items() if np.isfinite(x).all() and np.ptp(x) > 0}
    panels = [(f"density of {n}", _bound(chain_plots.marginal, n, x)) for n, x in fine.items()]
    note = "Of the approximation, 94 % of its draws shaded."
    made = [Group("Marginal densities", note, part.pictures(panels), unfolded=True)]
    weight = part.stats.get("log_weight")
    if weight is not None and np.isfinite(weight).all() and np.ptp(weight) > 0:
        flat = weight.ravel()
        k_hat, limit = psis.smooth(flat).k_hat, psis.threshold(flat.size)
        panels = [("weights", _bound(answer_plots.weights, flat, k_hat, limit))]
        note = "log p - log q of the draws: a long tail to the right is what q leaves out."
        made.append(Group("Importance weights", note, part.pictures(panels, wide=True)))
    return made


def _of_optimisation(part: Part) -> list[Group]:
    found = arviz_bridge.attributes(part.data).get("elbo_trace")
    path = np.atleast_1d(np.asarray(found if found is not None else (), dtype=float))
    if len(path) < 2 or not np.isfinite(path).all():
        return []
    panels = [("ELBO", _bound(answer_plots.ascent, path))]
    note = "Shaded: the plateau, where it stays within its noise, or 0.01 nats, of its last fifth."
    return [Group("ELBO", note, part.pictures(panels, wide=True), unfolded=True)]


# -- what the model has to show --------------------------------------------------------------------


def _of_model(part: Part, fit: Fit) -> list[Group]:
    """The exhibits of a model that has some."""
    if not isinstance(fit.model, Model):
        return []
    draws = fit.posterior.draws
    if fit.posterior.kind == "point":
        draws = {name: value[None, None] for name, value in draws.items()}
    made = []
    for title, exhibit in fit.model.exhibits(fit.data, draws).items():
        draw, size = exhibit_plots.drawing(title, exhibit)
        made.append(Group(title, exhibit.note, part.pictures([(title, draw)], **size), True))
    return made


# -- predictions -----------------------------------------------------------------------------------


def _of_predictions(part: Part, fit: Fit) -> list[Group]:
    sizes = {site: fit.program.observations[site].numel() for site in fit.program.observed}
    if not sizes or max(sizes.values()) > _NUMBERS // 100:
        return []
    draws = int(np.clip(_NUMBERS // max(sizes.values()), 100, _CHECKED))
    try:
        few = criticism.thinned(fit, draws)
        drawn = {site: _array(value) for site, value in few.predict().items()}
        checks = criticism.predictive_checks(fit, draws=draws)
    except Exception as error:  # not every program can predict
        part.undrawn.append(f"posterior predictive checks: {type(error).__name__}: {error}")
        return []
    panels = []
    for site in sizes:
        observed = _array(fit.program.observations[site]).ravel()
        rows = drawn[site].reshape(-1, observed.size)
        panels.append(
            (f"replications of {site}", _bound(answer_plots.predictive, site, observed, rows))
        )
    note = (
        f"{draws} replications of the data. p is the share whose statistic is larger: near 0 the "
        "model makes it too small, near 1 too large."
    )
    made = [Group("Posterior predictive checks", note, part.pictures(panels), True, checks)]
    return made if fit.posterior.kind == "point" else made + _left_out(part, fit, sizes)


def _left_out(part: Part, fit: Fit, sizes: dict[str, int]) -> list[Group]:
    made = []
    for site, size in sizes.items():
        if size * _WEIGHED > 4 * _NUMBERS or size < 2:
            continue
        try:
            few = criticism.thinned(fit, _WEIGHED)
            result = criticism.loo(few, site)
            pit = criticism.loo_pit(few, site) if size <= _OBSERVATIONS else None
        except Exception as error:  # vectors have no PIT, factors no density of rows
            part.undrawn.append(f"leave-one-out of {site}: {type(error).__name__}: {error}")
            continue
        panels: list[tuple[str, Draw]] = []
        if np.isfinite(result.k_hat).any():
            k_hat = np.where(np.isfinite(result.k_hat), result.k_hat, np.nan)
            panels.append(("Pareto k-hat", _bound(answer_plots.pareto, site, k_hat, result.limit)))
        if pit is not None:
            panels.append(("PIT", _bound(answer_plots.uniform_ecdf, site, pit.values, pit.band,
                                                  pit.p >= 0.05)))  # fmt: skip
        note = (
            f"Expected log predictive density {result.elpd:.2f} nats (standard error "
            f"{result.se:.2f}), {result.p_loo:.1f} effective parameters; "
            f"{len(result.unreliable)} of {size} observations above the Pareto limit"
            f"{', whose part cannot be trusted' if len(result.unreliable) else ''}."
        )
        if part.kind == "approximation":
            note += " The draws of the approximation are taken for the posterior's."
        if pit is not None:
            lot = ", randomised for discrete data," if pit.randomised else ""
            even = "as even as" if pit.p >= 0.05 else "less even than"
            note += (
                f" LOO-PIT values{lot} are {even} those of a calibrated model (p = {pit.p:.2g}); a "
                "wave through zero is a wrong spread."
            )
        made.append(Group(f"Leave-one-out of {site}", note, part.pictures(panels), True))
    return made


def _of_stored_predictions(part: Part) -> list[Group]:
    """From the groups that an ArviZ object brings."""
    if not all(
        arviz_bridge.has_group(part.data, g) for g in ("posterior_predictive", "observed_data")
    ):
        return []
    drawn = numeric(arviz_bridge.group(part.data, "posterior_predictive"))
    observed = arviz_bridge.group(part.data, "observed_data")
    panels = []
    for site in drawn.data_vars:
        if site not in observed or observed[site].dtype.kind not in "fiub":
            continue
        y = np.asarray(observed[site].values, dtype=float).ravel()
        rows = drawn[site].transpose("chain", "draw", ...).values.reshape(-1, max(1, y.size))
        rows = rows[:: max(1, len(rows) // _CHECKED)]
        if y.size and np.isfinite(y).all() and np.isfinite(rows).all():
            panels.append(
                (f"replications of {site}", _bound(answer_plots.predictive, str(site), y, rows))
            )
    note = "The replications that the file holds, against the observed data."
    return [Group("Posterior predictive checks", note, part.pictures(panels), True)]


# -- several fits ----------------------------------------------------------------------------------


def forest(parts: Sequence[Part]) -> Group | None:
    """Means and intervals side by side, of the scalars that at least two fits have."""
    known: dict[str, int] = {}
    for part in parts:
        for name in part.table.index:
            known[str(name)] = known.get(str(name), 0) + 1
    shared = [name for name, count in known.items() if count > 1]
    chosen = [name for name in dict.fromkeys(n for p in parts for n in p.shown) if name in shared]
    chosen = chosen[:SHOWN] or shared[:SHOWN]
    panels = []
    for name in chosen:
        rows = [_interval(part, name) for part in parts if name in part.table.index]
        rows = [row for row in rows if np.isfinite(row[1:]).all()][:16]
        truth = next((t for part in parts if (t := part.truth(name)) is not None), None)
        if rows:
            panels.append((f"forest of {name}", _bound(answer_plots.forest, name, rows, truth)))
    if not panels or not parts:
        return None
    rows = max(len(parts), 4)
    made = parts[0].pictures(panels, height=float(np.clip(0.55 + 0.24 * rows, 1.5, 4.5)))
    note = "Points without a line are optima."
    if len(shared) > len(chosen):
        note = f"{len(chosen)} of {len(shared)} scalars. {note}"
    return Group("Means and 94 % intervals by engine", note, made, unfolded=True)


def _interval(part: Part, name: str) -> tuple[str, float, float, float]:
    mean = float(part.table.loc[name, "mean"])  # pyright: ignore[reportArgumentType]
    if part.kind == "point" or name not in part._places:
        return part.name, mean, mean, mean
    low, high = np.quantile(part.draws(name), (0.03, 0.97))
    return part.name, mean, float(low), float(high)


def _bound(draw: Callable[..., str], *arguments: Any) -> Draw:
    return lambda axes: draw(axes, *arguments)


def _array(value: Any) -> np.ndarray:
    return value.detach().cpu().double().numpy()
