"""Models by engines by seeds, in one table."""

from __future__ import annotations

import re
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from rich.console import Console

from inference.compare_cells import (
    Cell,
    cells_of,
    cost,
    engines_of,
    models_of,
    references_of,
    seeds_of,
)
from inference.compare_table import (
    COLUMNS,
    FIT_COLUMNS,
    cell,
    fit_table,
    parameter_rows,
    printable,
    telling,
)
from inference.engine import Engine
from inference.error_plot import error_plot
from inference.finding import Finding
from inference.fit import Fit, InferenceWarning, fit
from inference.model_comparison import loo_table, standing
from inference.references import Reference
from inference.stopping import Until
from inference.storage import whole
from ppl_models.errors import EngineError, SuiteError

__all__ = ["COLUMNS", "FIT_COLUMNS", "Comparison", "cell", "compare"]

INTERRUPTED = "interrupted"
"""The failure of a fit that Ctrl-C has left out."""

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
        else:
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


def compare(
    models: Callable[..., Any] | Mapping[str, Any],
    data: Any = None,
    engines: Mapping[str, Engine] | Sequence[Engine] = (),
    *,
    reference: Any = None,
    seeds: Sequence[int] = (0,),
    budget: float | None = None,
    device: str | torch.device = "auto",
    dtype: torch.dtype | str | None = None,
    progress: bool | None = None,
) -> Comparison:
    """Fit each model by each engine with each seed.

    Cheap fits run first: engines without chains, then chains by the evaluations of the density
    that they declare (``cost``). A fit that fails is a row that says why. Ctrl-C keeps what is
    done, the draws of the chains that it stops among it, and leaves out the rest.

    Args:
        models: a model as for ``fit``, or several by name. Where one has data of its own, give
            the pair (model, data).
        data, device, dtype, progress: as for ``fit``.
        engines: by name, or in a list, named by their classes in small letters.
        reference: what errors are measured against: means and sds by parameter, as a DataFrame
            with these columns or a mapping to pairs; or draws, as a ``Fit``, an ArviZ object or a
            mapping from sites to arrays (chain, draw, *event). With several models a mapping
            from their names to such; a model may be missing.
        seeds: such as ``range(5)``.
        budget: seconds of wall time for each fit, ``Until(seconds=budget)``; what was stopped by
            it says so in its row.

    Returns:
        A ``Comparison``, its rows in the order in which models, engines and seeds were given.

    Raises:
        EngineError: before any work, for settings that cannot be; and where every fit has failed
            for the same reason, which lies in the data or the program.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from inference import MH, SVI, compare
        >>> def coin(): pyro.sample("p", dist.Beta(3.0, 2.0))
        >>> engines = [MH(draws=200), SVI(guide="laplace", draws=200)]
        >>> both = compare(coin, None, engines, reference={"p": (0.6, 0.2)}, seeds=range(2))
        >>> list(both.fits)
        ['mh, seed 0', 'mh, seed 1', 'svi, seed 0', 'svi, seed 1']
    """
    programs = models_of(models, data)
    named = engines_of(engines)
    truths = references_of(reference, models, programs)
    cells = cells_of(list(programs), list(named), seeds_of(seeds))
    until = None if budget is None else Until(seconds=budget)
    fits: dict[str, Fit] = {}
    failures: dict[str, str] = {}
    for current in sorted(cells, key=lambda c: cost(named[c.engine])):
        model, fields = programs[current.model]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", InferenceWarning)  # they are in the table
                result = fit(
                    model, fields, named[current.engine],
                    seed=current.seed, device=device, dtype=dtype, progress=progress, until=until,
                )  # fmt: skip
        except SuiteError as error:
            failures[current.name] = str(error)
        except KeyboardInterrupt:
            if not fits:
                raise
            break
        except Exception as error:  # a broken engine must not lose the others' fits
            last = traceback.extract_tb(error.__traceback__)[-1]
            failures[current.name] = f"{type(error).__name__} in {last.name}: {error}"
        else:
            fits[current.name] = result
            if any(finding.name == "interrupted" for finding in result.findings):
                break
    left = [c.name for c in cells if c.name not in fits and c.name not in failures]
    failures |= dict.fromkeys(left, INTERRUPTED)
    if not fits and failures:
        reasons = set(failures.values())
        if len(reasons) == 1:  # the data or the program are at fault, not the engines
            raise EngineError(reasons.pop())
    return _comparison(cells, fits, failures, truths)


def _comparison(
    cells: tuple[Cell, ...],
    fits: dict[str, Fit],
    failures: dict[str, str],
    references: dict[str, Reference],
) -> Comparison:
    rows = []
    for current in cells:
        if current.name in fits:
            truth = references.get(current.model)
            rows += parameter_rows(current, fits[current.name], truth)
        else:
            status = f"failed: {failures[current.name]}"
            rows.append({**current.columns, "status": status})
    ordered = {c.name: fits[c.name] for c in cells if c.name in fits}
    failed = {c.name: failures[c.name] for c in cells if c.name in failures}
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return Comparison(table, ordered, failed, references, cells)


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
