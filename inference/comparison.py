"""Fits of models by engines and seeds, side by side: tables, figure, report, files."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from rich.console import Console

from inference.compare_cells import Cell
from inference.compare_table import fit_table, printable, telling
from inference.error_plot import error_plot
from inference.finding import Finding
from inference.fit import Fit, InferenceWarning
from inference.model_comparison import loo_table, standing
from inference.references import Reference
from inference.storage import whole

_MANY = 40  # rows that are easily read


@dataclass(frozen=True, repr=False)
class Comparison:
    """Fits of models by engines and seeds.

    ``table`` is a DataFrame with the columns of ``COLUMNS``, a row per fit and parameter; a fit
    that failed has one row with the reason. ``by_fit`` has one row per fit. ``fits`` holds the
    fits by name: the engine's, with the model's before it where there are several and the seed's
    after it. ``failures`` holds the reasons by the same names, ``references`` what the fits are
    measured against, by model.
    """

    table: pd.DataFrame
    fits: dict[str, Fit]
    failures: dict[str, str] = field(default_factory=dict)
    references: dict[str, Reference] = field(default_factory=dict)
    cells: tuple[Cell, ...] = ()

    @cached_property
    def by_fit(self) -> pd.DataFrame:
        """One row per model, engine and seed, with the columns of ``FIT_COLUMNS``.

        Computed when first asked for: the discrepancies cost a fraction of a second per fit.
        """
        return fit_table(self.cells, self.table, self.fits, self.failures, self.references)

    @property
    def reference(self) -> pd.DataFrame | None:
        """Means and sds that a single model is measured against."""
        single = len(self.references) == 1 == len({cell.model for cell in self.cells})
        return next(iter(self.references.values())).moments if single else None

    def __repr__(self) -> str:
        parts = [f"{name}: {result.status}" for name, result in self.fits.items()]
        return f"Comparison({'; '.join(parts + [f'{name}: failed' for name in self.failures])})"

    def __str__(self) -> str:
        return telling(self.table).to_string(index=False)

    def show(
        self, parameters: Sequence[str] | None = None, *, console: Console | None = None
    ) -> None:
        """Print the table for reading, all rows or those of some parameters.

        Where there are several models or seeds, or more than 40 rows, the table by fit comes
        first; all of more than 40 rows are printed only where parameters are named. Columns that
        say nothing are left out; what the findings say stands below.
        """
        console = console or Console()
        if not console.is_terminal:
            console.width = 200
        rows = self.table
        if parameters is not None:
            wanted = rows["parameter"].isin(list(parameters)) | rows["parameter"].isna()
            rows = rows.loc[wanted]
        many = len(rows) > _MANY
        if many or len(self.cells) > len({cell.engine for cell in self.cells}):
            console.print(printable(self._brief(telling(self.by_fit))))
        if many and parameters is None:
            console.print(f"{len(rows)} rows by parameter: name some, or see .table")
        elif len(rows):
            console.print(printable(self._brief(telling(rows))))
        for name, text in self._notes():
            console.print(f"[bold]{name}[/bold]: {text}", highlight=False)

    def save(
        self, directory: str | PathLike[str], *, figures: Mapping[str, Figure] | None = None
    ) -> Path:
        """Write the tables, a NetCDF file per fit and ``report.html``; give the folder.

        The tables are ``comparison`` and ``by_fit``, each as CSV and as Parquet. ``figures`` are
        further pictures for the report, by caption.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        for name, table in (("comparison", self.table), ("by_fit", self.by_fit)):
            with whole(directory / f"{name}.csv") as path:
                table.to_csv(path, index=False)
            with whole(directory / f"{name}.parquet") as path:
                table.to_parquet(path, index=False)
        for name, result in self.fits.items():
            result.save(directory / f"{_file(name)}.nc")
        self.report(directory / "report.html", figures=figures)
        return directory

    def report(
        self, path: str | PathLike[str], *, figures: Mapping[str, Figure] | None = None
    ) -> Path:
        """Write one self-contained HTML file, with further ``figures`` by caption."""
        from inference.report import write_report

        shown = dict(figures or {})
        if self.table["error_sd"].notna().to_numpy().any():
            shown = {self.error_text(): self.error_plot()} | shown
        return write_report(self.fits, path, comparison=self, figures=shown)

    def loo(
        self, engine: str | None = None, *, seed: int | None = None, site: str | None = None
    ) -> pd.DataFrame:
        """The models by leave-one-out predictive density, best first: ``LOO_COLUMNS``.

        One fit stands for each model: of those by ``engine`` and with ``seed``, if given, the
        chains whose smallest bulk effective sample size is largest, else the approximation with
        the smallest Pareto k-hat. High Pareto k-hats are issued as ``InferenceWarning``.

        Args:
            engine: by name.
            seed: of the fits.
            site: the observed site, where a program has several.

        Raises:
            EngineError: a model has only points, or the models observe other data.
        """
        chosen = standing(self.cells, self.fits, engine, seed)
        table, told = loo_table({model: self.fits[name] for model, name in chosen.items()}, site)
        for text in told:
            warnings.warn(text, InferenceWarning, stacklevel=2)
        table.insert(0, "fit", [chosen[str(model)] for model in table.index])
        return table

    def error_plot(self) -> Figure:
        """Error of the posterior means against seconds, on logarithmic axes, by model.

        The error is the root mean square over parameters, in reference sds. A line follows the
        running means of a fit's chains, its marker is the whole fit, one for each seed. A dashed
        line is a bias: an error on which three seeds or more agree, so that no longer run removes
        it.

        Raises:
            EngineError: there is no reference, or none of its parameters is a fit's.
        """
        return error_plot(self.cells, self.fits, self.references)[0]

    def error_text(self) -> str:
        """What ``error_plot`` shows, in words: its alternative text."""
        return error_plot(self.cells, self.fits, self.references)[1]

    def _brief(self, table: pd.DataFrame) -> pd.DataFrame:
        """The table with the findings counted, for what they say stands below."""
        said = {f"failed: {text}": "failed" for text in self.failures.values()}
        said |= {result.status: _counted(result.findings) for result in self.fits.values()}
        return table.assign(status=[said[text] for text in table["status"]])

    def _notes(self) -> list[tuple[str, str]]:
        notes = [(name, f.text) for name, result in self.fits.items() for f in result.findings]
        notes += [(name, f"failed: {text}") for name, text in self.failures.items()]
        for model, truth in self.references.items():
            known = self.table.loc[self.table["model"] == model, "parameter"].dropna()
            if len(known) and not known.isin(truth.moments.index).any():
                names = ", ".join(map(str, truth.moments.index[:4]))
                notes.append((model, f"the reference knows none of its parameters, but {names}"))
        return notes


def _counted(findings: Sequence[Finding]) -> str:
    """Errors and warnings in numbers."""
    counts = [
        (sum(finding.severity == severity for finding in findings), severity)
        for severity in ("error", "warning")
    ]
    words = [f"{count} {what}{'s' * (count > 1)}" for count, what in counts if count]
    return ", ".join(words) or "ok"


def _file(name: str) -> str:
    """A name as that of a file."""
    return re.sub(r"[^\w.+-]+", "-", name).strip("-")
