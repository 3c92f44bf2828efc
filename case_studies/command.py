"""What the command lines have in common: engines by name, output, exit codes, plain errors."""

from __future__ import annotations

import contextlib
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:  # help and completion must not wait for torch
    import pandas as pd
    from matplotlib.figure import Figure

    from inference import Comparison, Engine, Finding

FAILED, MISTAKE, BAD, INTERRUPTED = 1, 2, 3, 130
"""Exit codes: an engine that failed; a mistake, found before work; a bad verdict; Ctrl-C."""

AsJSON = Annotated[bool, typer.Option("--json", help="print tables and findings as JSON")]


def chosen(names: str, known: Mapping[str, Callable[[], Engine]]) -> dict[str, Engine]:
    """The engines of a comma-separated list. Raises ``typer.BadParameter`` for an unknown one."""
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        what = f"unknown engine '{unknown[0]}'" if unknown else "no engine"
        raise typer.BadParameter(f"{what}; choose from {', '.join(known)}")
    return {name: known[name]() for name in wanted}


def writable(directory: Path | None) -> Path | None:
    """The folder, made if missing. Raises ``typer.BadParameter`` where it cannot be written."""
    if directory is None:
        return None
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise typer.BadParameter(f"cannot write to {directory}: {error.strerror}") from error
    return directory


def show(comparison: Comparison, parameters: Sequence[str] | None, as_json: bool) -> None:
    """Print a comparison: for reading the rows of some parameters, as JSON all of them."""
    if not as_json:
        comparison.show(parameters)
        return
    findings = {name: records(result.findings) for name, result in comparison.fits.items()}
    content = {
        "fits": _rows(comparison.by_fit),
        "parameters": _rows(comparison.table),
        "findings": findings,
        "failures": comparison.failures,
    }
    print(json.dumps(content, indent=2))


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A table for JSON; what is not finite is null."""
    return json.loads(table.to_json(orient="records", double_precision=15) or "[]")


def records(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """Findings for JSON; a figure that is no number is null."""
    return [
        {**finding._asdict(), "figure": finding.figure if math.isfinite(finding.figure) else None}
        for finding in findings
    ]


def notes(comparison: Comparison) -> list[tuple[str, str]]:
    """What speaks against each fit, and why some failed."""
    told = [(name, text) for name, found in comparison.fits.items() for text in found.warnings]
    return told + list(comparison.failures.items())


def write(
    folder: Path,
    comparison: Comparison,
    tables: Mapping[str, pd.DataFrame],
    figures: Mapping[str, Figure],
) -> None:
    """Tables as CSV, pictures as PNG, and the comparison's own files, its report with them."""
    from inference.storage import whole

    for name, table in tables.items():
        with whole(folder / f"{name}.csv") as path:
            table.to_csv(path)
    for title, figure in figures.items():
        name = re.sub(r"\W+", "_", title.lower()).strip("_")
        with whole(folder / f"{name}.png") as path:
            figure.savefig(path, dpi=120)
    comparison.save(folder, figures=figures)


def verdict(comparison: Comparison) -> int:
    """The exit code of a comparison.

    130 where Ctrl-C has left out fits, else 1 where one has failed, else 3 where a finding is an
    error, so that an answer should not be used; 0 where all is well.
    """
    reasons = comparison.failures.values()
    if "interrupted" in reasons:
        return INTERRUPTED
    if reasons:
        return FAILED
    findings = [finding for result in comparison.fits.values() for finding in result.findings]
    return BAD if any(finding.severity == "error" for finding in findings) else 0


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Print a user's mistake as one line and exit with code 2; exit with 130 on Ctrl-C."""
    from ppl_models import SuiteError

    try:
        yield
    except SuiteError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(MISTAKE) from None
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
