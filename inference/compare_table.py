"""The tables of a comparison: a row for each parameter of each fit, and a row for each fit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import rich.box
from rich.table import Table

from inference.compare_cells import Cell
from inference.distances import sliced_distances, stein_discrepancies
from inference.fit import Fit
from inference.references import Reference

COLUMNS = {
    "model": "name of the model",
    "engine": "name of the engine",
    "seed": "seed of the fit",
    "parameter": "scalar of the posterior",
    "kind": "samples of a Markov chain, draws of an approximation, or a point",
    "mean": "posterior mean (a point: its value)",
    "sd": "posterior standard deviation",
    "error_mcse": "(mean - reference) / Monte-Carlo standard error",
    "error_sd": "(mean - reference) / reference sd",
    "sd_ratio": "sd / reference sd",
    "r_hat": "rank-normalised split R-hat; Markov chains only",
    "ess_bulk": "bulk effective sample size; Markov chains only",
    "ess_tail": "tail effective sample size (5 % and 95 %); Markov chains only",
    "ess_per_second": "bulk ESS over the fit's seconds",
    "error_root_seconds": "|error_sd| times the root of the seconds: less is more efficient",
    "divergences": "divergent transitions",
    "seconds": "wall time of the fit, everything counted",
    "status": "ok, or what was found",
}
"""The columns of ``Comparison.table`` and what they mean."""

FIT_COLUMNS = {
    "model": "name of the model",
    "engine": "name of the engine",
    "seed": "seed of the fit",
    "kind": "samples of a Markov chain, draws of an approximation, or a point",
    "worst_error_sd": "largest |mean - reference| / reference sd of any parameter",
    "rms_error_sd": "root of the mean over parameters of that, squared",
    "error_root_seconds": "rms_error_sd times the root of the seconds: less is more efficient",
    "worst_r_hat": "largest R-hat of any parameter; Markov chains only",
    "least_ess_bulk": "smallest bulk effective sample size; Markov chains only",
    "ess_per_second": "that over the fit's seconds",
    "divergences": "divergent transitions",
    "log_evidence": "log of the data's marginal density (nats)",
    "log_evidence_error": "its standard error",
    "elbo": "evidence lower bound of an approximation (nats)",
    "k_hat": "Pareto shape of the importance weights of an approximation",
    "ksd": "kernel Stein discrepancy, in posterior sds, of as many draws of each fit",
    "sliced_wasserstein": "distance to reference draws, in reference sds, of as many draws each",
    "seconds": "wall time of the fit, everything counted",
    "status": "ok, or what was found",
}
"""The columns of ``Comparison.by_fit`` and what they mean."""

_COUNTS = ("ess_bulk", "ess_tail", "ess_per_second", "least_ess_bulk", "divergences")
_TWO_DIGITS = (
    "error_mcse", "error_sd", "sd_ratio", "seconds", "log_evidence", "elbo", "k_hat",
)  # fmt: skip
_SMALL = (
    "worst_error_sd", "rms_error_sd", "error_root_seconds", "log_evidence_error", "ksd",
    "sliced_wasserstein",
)  # fmt: skip
_TEXTS = ("model", "engine", "parameter", "kind", "status")


def parameter_rows(cell: Cell, result: Fit, truth: Reference | None) -> list[dict[str, Any]]:
    """A row of ``COLUMNS`` for each scalar of a fit."""
    kind = result.posterior.kind
    seconds = result.seconds["total"]
    diverging = result.posterior.stats.get("diverging")
    draws = next(iter(result.posterior.draws.values()))
    independent = float(draws.shape[0] * draws.shape[1]) if kind == "approximation" else 0.0
    weighted = result.posterior.attributes.get("importance_ess", independent)
    independent = min(independent, weighted)  # resampled draws repeat one another
    rows = []
    for parameter, values in result.summary().iterrows():
        line = {str(name): float(value) for name, value in values.items()}
        mcse = line.get("mcse_mean", math.nan)
        if kind == "approximation":
            mcse = line["sd"] / math.sqrt(independent)
        row = {
            **cell.columns,
            "parameter": parameter,
            "kind": kind,
            "mean": line["mean"],
            "sd": line.get("sd", math.nan),
            "r_hat": line.get("r_hat", math.nan),
            "ess_bulk": line.get("ess_bulk", math.nan),
            "ess_tail": line.get("ess_tail", math.nan),
            "ess_per_second": line.get("ess_bulk", math.nan) / seconds,
            "divergences": int(diverging.sum()) if diverging is not None else math.nan,
            "seconds": seconds,
            "status": result.status,
        }
        if truth is not None and parameter in truth.moments.index:
            mean, sd = (float(truth.moments.loc[parameter, c]) for c in ("mean", "sd"))  # pyright: ignore[reportArgumentType]
            row["error_mcse"] = (line["mean"] - mean) / mcse if mcse > 0 else math.nan
            row["error_sd"] = (line["mean"] - mean) / sd if sd > 0 else math.nan
            row["sd_ratio"] = row["sd"] / sd if sd > 0 else math.nan
            row["error_root_seconds"] = abs(row["error_sd"]) * math.sqrt(seconds)
        rows.append(row)
    return rows


def fit_table(
    cells: Sequence[Cell],
    table: pd.DataFrame,
    fits: Mapping[str, Fit],
    failures: Mapping[str, str],
    references: Mapping[str, Reference],
) -> pd.DataFrame:
    """The table of ``FIT_COLUMNS``, from that of ``COLUMNS``."""
    ksd: dict[str, float] = {}
    sliced: dict[str, float] = {}
    for model in dict.fromkeys(cell.model for cell in cells):
        own = {c.name: fits[c.name] for c in cells if c.model == model and c.name in fits}
        ksd |= stein_discrepancies(own)
        if model in references:
            sliced |= sliced_distances(own, references[model])
    parts = dict(tuple(table.groupby(["model", "engine", "seed"])))
    rows = []
    for cell in cells:
        row: dict[str, Any] = dict(cell.columns)
        if cell.name in fits:
            row |= _fit_row(parts[cell.model, cell.engine, cell.seed], fits[cell.name])
            row["ksd"] = ksd.get(cell.name, math.nan)
            row["sliced_wasserstein"] = sliced.get(cell.name, math.nan)
        else:
            row["status"] = f"failed: {failures[cell.name]}"
        rows.append(row)
    return pd.DataFrame(rows, columns=list(FIT_COLUMNS))


def _fit_row(part: pd.DataFrame, result: Fit) -> dict[str, Any]:
    attributes = result.posterior.attributes
    errors = part["error_sd"].dropna().to_numpy(float)
    rms = float(np.sqrt(np.square(errors).mean())) if len(errors) else math.nan
    first = part.iloc[0]
    return {
        "kind": first["kind"],
        "worst_error_sd": float(np.abs(errors).max()) if len(errors) else math.nan,
        "rms_error_sd": rms,
        "error_root_seconds": rms * math.sqrt(first["seconds"]),
        "worst_r_hat": part["r_hat"].max(),
        "least_ess_bulk": part["ess_bulk"].min(),
        "ess_per_second": part["ess_per_second"].min(),
        "divergences": first["divergences"],
        "log_evidence": attributes.get("log_evidence", math.nan),
        "log_evidence_error": attributes.get("log_evidence_error", math.nan),
        "elbo": attributes.get("elbo", math.nan),
        "k_hat": attributes.get("pareto_k", math.nan),
        "seconds": first["seconds"],
        "status": first["status"],
    }


def telling(table: pd.DataFrame) -> pd.DataFrame:
    """The table without what says nothing: empty columns, and one model or one seed for all."""
    known = table.notna().to_numpy()
    said = [str(name) for i, name in enumerate(table.columns) if known[:, i].any()]
    alone = [name for name in ("model", "seed") if len(set(table[name])) == 1]
    return table.loc[:, [name for name in said if name not in alone]]


def printable(table: pd.DataFrame) -> Table:
    """A table for the terminal; what holds for a whole fit is said once."""
    shown = Table(show_edge=False, pad_edge=False, box=rich.box.SIMPLE)
    for column in table.columns:
        justify = "left" if column in _TEXTS else "right"
        shown.add_column(column.replace("_", " "), justify=justify)
    said = ("model", "engine", "seed", "kind", "divergences", "seconds", "status")
    known = [column for column in ("model", "engine", "seed") if column in table.columns]
    last = None
    for row in table.to_dict("records"):
        cells = {str(column): cell(str(column), row[column]) for column in table.columns}
        fit = [row[column] for column in known]
        if "parameter" in cells:
            if fit == last:
                cells |= dict.fromkeys((column for column in said if column in cells), "")
            elif last is not None:
                shown.add_section()
        last = fit
        shown.add_row(*cells.values())
    return shown


def cell(column: str, value: Any) -> str:
    """A value of a table as text, with the digits that its column deserves."""
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, float | np.floating) and not np.isfinite(value)):
        return "-"
    if column in _COUNTS:
        return f"{value:,.0f}"
    if column in _TWO_DIGITS:
        return f"{value:.2f}"
    if column in _SMALL:
        return f"{value:.3g}"
    return f"{value:.3f}" if column in ("r_hat", "worst_r_hat") else f"{value:.6g}"
