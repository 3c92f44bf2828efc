"""Several engines on one model and data, in one table."""

from __future__ import annotations

import math
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import rich.box
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from inference.engine import Engine
from inference.fit import Fit, InferenceWarning, fit
from inference.storage import whole
from ppl_models.errors import EngineError, SuiteError

COLUMNS = {
    "engine": "name of the fit",
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
    "divergences": "divergent transitions",
    "seconds": "wall time of the fit, everything counted",
    "status": "ok, or what was found",
}
"""The columns of ``Comparison.table`` and what they mean."""


@dataclass(frozen=True, repr=False)
class Comparison:
    """Fits of one model by several engines.

    ``table`` is a DataFrame with the columns of ``COLUMNS``, a row per engine and parameter; an
    engine that failed has one row with the reason. ``fits`` holds the fits by name.
    """

    table: pd.DataFrame
    fits: dict[str, Fit]
    failures: dict[str, str] = field(default_factory=dict)
    reference: pd.DataFrame | None = None

    def __repr__(self) -> str:
        parts = [f"{name}: {result.status}" for name, result in self.fits.items()]
        return f"Comparison({'; '.join(parts + [f'{name}: failed' for name in self.failures])})"

    def __str__(self) -> str:
        return self.table.to_string(index=False)

    def show(
        self, parameters: Sequence[str] | None = None, *, console: Console | None = None
    ) -> None:
        """Print the table for reading, all rows or those of some parameters."""
        console = console or Console()
        if not console.is_terminal:
            console.width = 200
        console.print(_rich(self.table, parameters))
        for name, text in self._notes():
            console.print(f"[bold]{name}[/bold]: {text}", highlight=False)

    def save(
        self, directory: str | PathLike[str], *, figures: Mapping[str, Figure] | None = None
    ) -> Path:
        """Write ``comparison.csv``, a NetCDF file per engine and ``report.html``; give the folder.

        ``figures`` are further pictures for the report, by caption.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        with whole(directory / "comparison.csv") as path:
            self.table.to_csv(path, index=False)
        for name, result in self.fits.items():
            result.save(directory / f"{name}.nc")
        self.report(directory / "report.html", figures=figures)
        return directory

    def report(
        self, path: str | PathLike[str], *, figures: Mapping[str, Figure] | None = None
    ) -> Path:
        """Write one self-contained HTML file, with further ``figures`` by caption."""
        from inference.report import write_report

        return write_report(self.fits, path, comparison=self, figures=figures)

    def _notes(self) -> list[tuple[str, str]]:
        notes = [(name, f.text) for name, result in self.fits.items() for f in result.findings]
        return notes + [(name, f"failed: {text}") for name, text in self.failures.items()]


def compare(
    model: Callable[..., Any],
    data: Any = None,
    engines: Mapping[str, Engine] | Sequence[Engine] = (),
    *,
    reference: pd.DataFrame | Mapping[str, tuple[float, float]] | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    dtype: torch.dtype | str | None = None,
    progress: bool | None = None,
) -> Comparison:
    """Fit the same model and data by each engine.

    Args:
        model, data, seed, device, dtype, progress: as for ``fit``.
        engines: by name, or in a list, named by their classes in small letters.
        reference: mean and sd by parameter, as a DataFrame with these columns or a mapping to
            pairs; errors are measured against it.

    Returns:
        A ``Comparison``. An engine that cannot fit this model is a row that says why.
    """
    named = _named(engines)
    truth = _reference(reference)
    fits: dict[str, Fit] = {}
    failures: dict[str, str] = {}
    for name, engine in named.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", InferenceWarning)  # they are in the table
                fits[name] = fit(
                    model, data, engine, seed=seed, device=device, dtype=dtype, progress=progress
                )
        except SuiteError as error:
            failures[name] = str(error)
        except KeyboardInterrupt:
            if not fits:
                raise
            failures |= dict.fromkeys(list(named)[len(fits) + len(failures) :], "interrupted")
            break
        except Exception as error:  # a broken engine must not lose the others' fits
            last = traceback.extract_tb(error.__traceback__)[-1]
            failures[name] = f"{type(error).__name__} in {last.name}: {error}"
    if not fits and failures:
        reasons = set(failures.values())
        if len(reasons) == 1:  # the data or the program are at fault, not the engines
            raise EngineError(reasons.pop())
    rows = [row for name, result in fits.items() for row in _rows(name, result, truth)]
    rows += [{"engine": name, "status": f"failed: {text}"} for name, text in failures.items()]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return Comparison(table, fits, failures, truth)


def _rows(name: str, result: Fit, truth: pd.DataFrame | None) -> list[dict[str, Any]]:
    summary = result.summary()
    kind = result.posterior.kind
    seconds = result.seconds["total"]
    diverging = result.posterior.stats.get("diverging")
    draws = next(iter(result.posterior.draws.values()))
    independent = float(draws.shape[0] * draws.shape[1]) if kind == "approximation" else 0.0
    weighted = result.posterior.attributes.get("importance_ess", independent)
    independent = min(independent, weighted)  # resampled draws repeat one another
    rows = []
    for parameter, values in summary.iterrows():
        line = {str(name): float(value) for name, value in values.items()}
        mcse = line.get("mcse_mean", math.nan)
        if kind == "approximation":
            mcse = line["sd"] / math.sqrt(independent)
        row = {
            "engine": name,
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
        if truth is not None and parameter in truth.index:
            mean, sd = truth.loc[parameter, "mean"], truth.loc[parameter, "sd"]
            row["error_mcse"] = (line["mean"] - mean) / mcse if mcse > 0 else math.nan
            row["error_sd"] = (line["mean"] - mean) / sd
            row["sd_ratio"] = row["sd"] / sd
        rows.append(row)
    return rows


def _named(engines: Mapping[str, Engine] | Sequence[Engine]) -> dict[str, Engine]:
    if isinstance(engines, Mapping):
        return dict(engines)
    named: dict[str, Engine] = {}
    for engine in engines:
        base = type(engine).__name__.lower()
        name, again = base, 2
        while name in named:
            name, again = f"{base}_{again}", again + 1
        named[name] = engine
    if not named:
        raise EngineError("engines is empty; give engines such as [NUTS(), MH()]")
    return named


def _reference(reference: Any) -> pd.DataFrame | None:
    if reference is None:
        return None
    if not isinstance(reference, pd.DataFrame):
        reference = pd.DataFrame.from_dict(
            dict(reference), orient="index", columns=["mean", "sd"], dtype=float
        )
    if not {"mean", "sd"} <= set(reference.columns):
        raise EngineError("reference needs the columns mean and sd, with parameters as its index")
    return reference


def _rich(table: pd.DataFrame, parameters: Sequence[str] | None) -> Table:
    shown = Table(show_edge=False, pad_edge=False, box=rich.box.SIMPLE)
    left = ("engine", "parameter", "kind", "status")
    for column in table.columns:
        shown.add_column(column.replace("_", " "), justify="left" if column in left else "right")
    last = None
    for row in table.to_dict("records"):
        failed = not isinstance(row["parameter"], str)
        if parameters is not None and not failed and row["parameter"] not in parameters:
            continue
        cells = {column: cell(column, row[column]) for column in table.columns}
        if row["engine"] == last:  # what holds for the whole engine is said once
            cells |= dict.fromkeys(("engine", "kind", "divergences", "seconds", "status"), "")
        elif last is not None:
            shown.add_section()
        last = row["engine"]
        shown.add_row(*cells.values())
    return shown


def cell(column: str, value: Any) -> str:
    """A value of a table as text, with the digits that its column deserves."""
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, float | np.floating) and not np.isfinite(value)):
        return "-"
    if column in ("ess_bulk", "ess_tail", "ess_per_second", "divergences"):
        return f"{value:,.0f}"
    if column in ("error_mcse", "error_sd", "sd_ratio", "seconds"):
        return f"{value:.2f}"
    return f"{value:.3f}" if column == "r_hat" else f"{value:.6g}"
