"""``ppl-suite``, or ``python -m case_studies``: run studies; judge and report any draws."""

from __future__ import annotations

import importlib
import json
import math
import pkgutil
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

import case_studies
from case_studies.command import BAD, plain_errors
from inference import arviz_bridge, diagnose
from inference.report import write_report
from ppl_models import DataError

app = typer.Typer(help="Bayesian models by interchangeable engines.", no_args_is_help=True)

File = Annotated[Path, typer.Argument(help="NetCDF file of ArviZ, Stan, PyMC, NumPyro, ...")]


def studies() -> dict[str, str]:
    """The studies by module name, with the first line of their docstrings."""
    found = {}
    for module in pkgutil.iter_modules(case_studies.__path__):
        if not module.name.startswith("_") and module.name != "command":
            text = importlib.import_module(f"case_studies.{module.name}").__doc__ or ""
            found[module.name] = text.strip().splitlines()[0]
    return found


@app.command("list")
def list_studies() -> None:
    """List the case studies."""
    for name, text in studies().items():
        print(f"{name:12} {text}")


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog="Example: ppl-suite run oring --engines em,nuts --out out",
    add_help_option=False,
)
def run(context: typer.Context, study: Annotated[str, typer.Argument()]) -> None:
    """Run a case study with its own options: ppl-suite run STUDY --help shows them."""
    if study not in studies():
        raise typer.BadParameter(f"unknown study '{study}'; choose from {', '.join(studies())}")
    command = typer.Typer()
    command.command()(importlib.import_module(f"case_studies.{study}").main)
    typer.main.get_command(command)(context.args, prog_name=f"ppl-suite run {study}")


@app.command("diagnose", epilog="Example: ppl-suite diagnose posterior.nc --json")
def diagnose_file(
    file: File,
    as_json: Annotated[bool, typer.Option("--json", help="print the findings as JSON")] = False,
) -> None:
    """Say what speaks against the draws in a file; exit with 3 where they should not be used."""
    with plain_errors():
        data = _load(file)
        found = _findings(data)
        if as_json:
            rows = [
                {**f._asdict(), "figure": f.figure if math.isfinite(f.figure) else None}
                for f in found
            ]
            print(json.dumps(rows, indent=2))
        else:
            console = Console()
            for finding in found:
                console.print(f"[bold]{finding.severity}[/bold] {finding.text}", highlight=False)
            if not found:
                console.print("Nothing was found that speaks against these draws.")
        if any(finding.severity == "error" for finding in found):
            raise typer.Exit(BAD)


@app.command("report", epilog="Example: ppl-suite report posterior.nc --out report.html")
def report_file(
    file: File,
    out: Annotated[Path | None, typer.Option(help="by default beside the file, as .html")] = None,
) -> None:
    """Write a self-contained HTML report of the draws in a file."""
    with plain_errors():
        data = _load(file)
        if arviz_bridge.kind(data) != "point":
            _findings(data)
        path = out or file.with_suffix(".html")
        try:
            write_report({file.stem: data}, path)
        except OSError as error:
            raise DataError(f"cannot write {path}: {error.strerror or error}") from error
        print(f"written: {path}")


def _findings(data: Any) -> list[Any]:
    try:
        return diagnose(data)
    except ValueError as error:
        raise DataError(str(error)) from error


def _load(file: Path) -> Any:
    try:
        return arviz_bridge.load(file)
    except FileNotFoundError as error:
        raise DataError(str(error)) from error
    except Exception as error:  # of whatever reader
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{file}: not a NetCDF file of ArviZ ({first})") from error


if __name__ == "__main__":
    app(prog_name="ppl-suite")
