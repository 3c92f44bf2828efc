"""``ppl-suite``, or ``python -m case_studies``: run and compare studies; judge any draws."""

from __future__ import annotations

import ast
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer

from case_studies.command import (
    BAD,
    AsJSON,
    chosen,
    plain_errors,
    records,
    show,
    verdict,
    writable,
)

app = typer.Typer(help="Bayesian models by interchangeable engines.", no_args_is_help=True)

_NO_STUDIES = ("command", "images", "study", "toys")


def studies() -> dict[str, str]:
    """The studies by module name, with the first line of their docstrings; none is imported."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        if path.stem not in _NO_STUDIES:
            text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            found[path.stem] = text.strip().split("\n")[0]
    return found


def _completed(incomplete: str) -> list[tuple[str, str]]:
    return [item for item in studies().items() if item[0].startswith(incomplete)]


File = Annotated[
    Path, typer.Argument(help="NetCDF file or Zarr folder of ArviZ, Stan, PyMC, NumPyro, ...")
]
Name = Annotated[str, typer.Argument(help="see ppl-suite list", autocompletion=_completed)]


@app.command("list", epilog="Example: ppl-suite list")
def list_studies() -> None:
    """List the case studies."""
    for name, text in studies().items():
        print(f"{name:16} {text}")


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog="Example: ppl-suite run oring --engines em,nuts --out out",
    add_help_option=False,
)
def run(context: typer.Context, study: Name) -> None:
    """Run a case study with its own options: ppl-suite run STUDY --help shows them."""
    command = typer.Typer()
    command.command(epilog=f"Example: ppl-suite run {study} --out out")(_module(study).main)
    typer.main.get_command(command)(context.args, prog_name=f"ppl-suite run {study}")


@app.command(
    "compare",
    epilog="Example: ppl-suite compare oring --engines mh,nuts --seeds 5 --budget 30 --out out",
)
def compare_study(
    study: Name,
    engines: Annotated[
        str | None, typer.Option(help="of the study, such as mh,nuts; by default its usual ones")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="how many: 0, 1, ...")] = 1,
    budget: Annotated[float | None, typer.Option(help="seconds of wall time for each fit")] = None,
    out: Annotated[Path | None, typer.Option(help="folder for tables, NetCDF and report")] = None,
    as_json: AsJSON = False,
) -> None:
    """Fit a case study by several engines and seeds, and compare them.

    Exit code 3: a finding is an error, so that an answer should not be used. 1: a fit failed.
    2: a mistake in the call. 130: interrupted; what was done is shown and written.
    """
    module = _module(study)
    if not hasattr(module, "study"):
        raise typer.BadParameter(f"'{study}' cannot be compared: its module has no study()")
    with plain_errors():
        from inference import compare

        given = module.study()
        selected = chosen(engines or given.usual, given.engines)
        folder = writable(out)
        reference = given.reference() if given.reference else None
        comparison = compare(
            given.models,
            given.data,
            selected,
            reference=reference,
            seeds=range(seeds),
            budget=budget,
        )
        show(comparison, given.shown, as_json)
        if folder is not None:
            comparison.save(folder)
            if not as_json:
                print(f"written to {folder}: comparison.*, by_fit.*, report.html, *.nc")
        raise typer.Exit(verdict(comparison))


@app.command("diagnose", epilog="Example: ppl-suite diagnose posterior.nc --json")
def diagnose_file(
    file: File,
    as_json: Annotated[bool, typer.Option("--json", help="print the findings as JSON")] = False,
) -> None:
    """Say what speaks against the draws in a file; exit with 3 where they should not be used."""
    from rich.console import Console

    with plain_errors():
        found = _findings(_load(file))
        if as_json:
            print(json.dumps(records(found), indent=2))
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
    """Write a self-contained HTML report of the draws in a file; exit as diagnose does."""
    with plain_errors():
        from inference import arviz_bridge
        from inference.report import write_report
        from ppl_models import DataError

        data = _load(file)
        found = [] if arviz_bridge.kind(data) == "point" else _findings(data)
        path = out or file.with_suffix(".html")
        try:
            write_report({file.stem: data}, path)
        except OSError as error:
            raise DataError(f"cannot write {path}: {error.strerror or error}") from error
        print(f"written: {path}")
        bad = [finding for finding in found if finding.severity == "error"]
        if bad:
            print(f"do not use these draws: {bad[0].meaning}", file=sys.stderr)
            raise typer.Exit(BAD)


def _module(study: str) -> ModuleType:
    known = studies()
    if study not in known:
        raise typer.BadParameter(f"unknown study '{study}'; choose from {', '.join(known)}")
    return importlib.import_module(f"case_studies.{study}")


def _findings(data: Any) -> list[Any]:
    from inference import diagnose
    from ppl_models import DataError

    try:
        return diagnose(data)
    except ValueError as error:
        raise DataError(str(error)) from error


def _load(file: Path) -> Any:
    from inference import arviz_bridge
    from ppl_models import DataError

    if not file.exists():
        raise DataError(f"{file}: no such file")
    try:
        return arviz_bridge.load(file)
    except Exception as error:  # of whatever reader
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{file}: neither NetCDF nor Zarr of ArviZ ({first})") from error


if __name__ == "__main__":
    app(prog_name="ppl-suite")
