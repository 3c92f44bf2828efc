"""One self-contained HTML file: verdict, tables, figures, model, settings."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import warnings
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2
import numpy as np
import pandas as pd
import torch
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from inference import arviz_bridge, plots
from inference.diagnostics import diagnose
from inference.finding import Finding
from inference.fit import Fit
from inference.graphical import Graph, graph_of
from inference.report_figures import (
    MOST,
    SHOWN,
    SHOWN_OF_MANY,
    Group,
    Part,
    forest,
    groups,
    numeric,
    worst_first,
)
from inference.storage import whole

if TYPE_CHECKING:
    from inference.compare import Comparison

_ROWS, _FIRST = 30, 12  # rows of a table that are shown unfolded; of a longer one, the first
_SEARCHED = 12  # rows of a table above which it can be searched
_TEXTS = ("model", "engine", "parameter", "kind", "site", "statistic", "meaning")
_LIBRARIES = ("torch", "pyro-ppl", "arviz", "numpy", "scipy", "numba")
_SEVERITIES = ("error", "warning", "note")


class Told(NamedTuple):
    """A finding with the fit that it is about."""

    fit: str
    severity: str
    figure: str
    meaning: str
    remedy: str


def write_report(
    fits: Mapping[str, Any],
    path: str | PathLike[str],
    *,
    comparison: Comparison | None = None,
    figures: Mapping[str, Figure] | None = None,
    title: str | None = None,
) -> Path:
    """Write the report of some fits, or of any ArviZ objects; with a comparison its tables too.

    The verdict comes first, then tables, then for each fit figures of its worst scalars,
    predictive checks and leave-one-out, its settings and where it ran. Everything is inside the
    file, which makes no request, is whole without its script (that filters tables), and appears
    whole.

    Args:
        fits: by name; a ``Fit``, or an ArviZ object of any library.
        path: of the file.
        comparison: what the fits belong to.
        figures: further ones, by caption.
        title: by default the model's name and those of the fits.

    Example:
        >>> import tempfile, numpy as np
        >>> from inference import arviz_bridge
        >>> draws = {"mu": np.random.default_rng(0).normal(size=(4, 50))}
        >>> group = arviz_bridge.dataset(draws, {}, ("chain", "draw"), {})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     data = arviz_bridge.build({"posterior": group}, {})
        ...     "Rank plots" in write_report({"normal": data}, f"{folder}/r.html").read_text()
        True
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("inference"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # plotting libraries' own; findings are in the fits
        most = SHOWN if len(fits) <= 2 else SHOWN_OF_MANY
        parts = [_part(name, fit, comparison, most) for name, fit in fits.items()]
        page = _page(parts, comparison, figures or {})
        page["title"] = title or _title(fits, comparison)
        html = environment.get_template("report.html").render(page)
    with whole(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return Path(path)


def _part(name: str, fit: Any, comparison: Comparison | None, most: int) -> Part:
    if isinstance(fit, Fit):
        truth = None
        for cell in comparison.cells if comparison is not None else ():
            if cell.name == name and comparison is not None and cell.model in comparison.references:
                truth = comparison.references[cell.model].moments
        data, kind = fit.to_arviz(), fit.posterior.kind
        return Part(name, data, kind, diagnose(fit), fit.summary(), fit, truth, most)
    kind = arviz_bridge.kind(fit)
    try:
        found = [] if kind == "point" else diagnose(fit)
    except Exception as error:  # of a file that anybody may have written
        text = f"it could not be judged: {error}"
        found = [Finding("unjudged", "warning", np.nan, text, "give a posterior group of numbers")]
    return Part(name, fit, kind, found, _table(fit, kind), most=most)


def _table(data: Any, kind: str) -> pd.DataFrame:
    """The summary of any ArviZ object; without rows where it holds no numbers."""
    if kind == "point":
        return arviz_bridge.summary(data)
    if not arviz_bridge.has_group(data, "posterior"):
        return pd.DataFrame(columns=["mean"])
    draws = numeric(arviz_bridge.group(data, "posterior"))
    if not draws.data_vars:
        return pd.DataFrame(columns=["mean"])
    if kind == "approximation" or draws.sizes["draw"] < 4:
        return arviz_bridge.moments(draws)
    return arviz_bridge.statistics(draws)


def _title(fits: Mapping[str, Any], comparison: Comparison | None) -> str:
    """The models and engines of a comparison; else the first fit's model, and the fits."""
    if comparison is not None and comparison.cells:
        models = dict.fromkeys(cell.model for cell in comparison.cells)
        engines = dict.fromkeys(cell.engine for cell in comparison.cells)
        return f"{', '.join(filter(None, models))}: {', '.join(engines)}"
    models = [fit.model for fit in fits.values() if isinstance(fit, Fit)]
    model = f"{getattr(models[0], '__name__', type(models[0]).__name__)}: " if models else ""
    return f"{model}{', '.join(fits)}"


# -- the page --------------------------------------------------------------------------------------


def _page(
    parts: list[Part], comparison: Comparison | None, figures: Mapping[str, Figure]
) -> dict[str, Any]:
    told = [_told(part.name, finding) for part in parts for finding in part.findings]
    shared: list[Group] = []
    if comparison is not None:
        told += [Told(name, "error", "", f"failed: {text}", "")
                 for name, text in comparison.failures.items()]  # fmt: skip
        side_by_side = forest(parts)
        shared += [] if side_by_side is None else [side_by_side]
    for caption, figure in figures.items():
        shared.append(Group(caption, "", [plots.foreign(figure, caption)], unfolded=True))
    told.sort(key=lambda one: _SEVERITIES.index(one.severity))
    return {
        "verdict": _verdict(told),
        "findings": told,
        "tables": [] if comparison is None else _tables(comparison),
        "groups": [_shown(group) for group in shared],
        "models": _graphs(parts),
        "fits": [_section(index, part, alone=len(parts) == 1) for index, part in enumerate(parts)],
        "machine": _machine(),
    }


def _told(fit: str, finding: Finding) -> Told:
    figure = f"{finding.figure:.4g}" if np.isfinite(finding.figure) else ""
    return Told(fit, finding.severity, figure, finding.meaning, finding.remedy)


def _verdict(told: Sequence[Told]) -> tuple[str, str]:
    """The severity and the sentence that the page begins with."""
    worst = next(
        (s for s in ("error", "warning") if any(one.severity == s for one in told)), "good"
    )
    named = ", ".join(dict.fromkeys(one.fit for one in told if one.severity == worst))
    if worst == "error":
        return worst, f"Do not use these answers as they are: {_counted(told)} ({named})."
    if worst == "warning":
        return worst, f"Use these answers with care: {_counted(told)} ({named})."
    return worst, "Nothing was found that speaks against these answers."


def _counted(found: Sequence[Told] | Sequence[Finding]) -> str:
    """Errors and warnings in numbers."""
    words = []
    for severity in ("error", "warning"):
        count = sum(one.severity == severity for one in found)
        words += [f"{count} {severity}{'s' if count > 1 else ''}"] if count else []
    return ", ".join(words) or "ok"


def _tables(comparison: Comparison) -> list[tuple[str, str, dict[str, str]]]:
    """Title, table and the meaning of its columns."""
    from inference.compare_table import COLUMNS, FIT_COLUMNS, telling

    made = []
    said = {result.status: _counted(result.findings) for result in comparison.fits.values()}
    by_fit, rows = (
        telling(table.assign(status=[said.get(text, "failed") for text in table["status"]]))
        for table in (comparison.by_fit, comparison.table)
    )
    for title, table, known in (
        ("By fit", by_fit, FIT_COLUMNS), ("By parameter", rows, COLUMNS)
    ):  # fmt: skip
        meanings = {name: known[name] for name in table.columns if name in known}
        made.append((title, _folded(table, title.replace(" ", "-")), meanings))
    return made


def _graphs(parts: list[Part]) -> list[tuple[str, Graph]]:
    made: dict[str, Graph] = {}
    for part in parts:
        if part.fit is None:
            continue
        model = part.fit.model
        name = getattr(model, "__name__", type(model).__name__)
        graph = None if name in made else graph_of(part.fit.program)
        if graph is not None:
            made[name] = graph
    return list(made.items())


def _section(index: int, part: Part, *, alone: bool) -> dict[str, Any]:
    figures = [_shown(group) for group in groups(part)]
    table = part.table
    first = None
    if len(table) > _ROWS:
        first = _rows(worst_first(table).head(_FIRST).reset_index(names="parameter"))
    attributes = arviz_bridge.attributes(part.data)
    settings, seconds, others = {}, {}, {}
    for key, value in attributes.items():
        if key in ("elbo_trace", "warnings"):
            continue
        name = str(key)
        if name.startswith("setting_"):
            settings[name.removeprefix("setting_")] = value
        elif name.startswith("seconds_"):
            seconds[name.removeprefix("seconds_")] = f"{value:.3g} s"
        else:
            others[name] = value
    return {
        "id": f"fit-{index}",
        "name": part.name,
        "findings": [] if alone else [_told(part.name, finding) for finding in part.findings],
        "first": first,
        "table": _folded(table.reset_index(names="parameter"), f"parameters-{index}"),
        "capped": len(table) if len(table) >= MOST else 0,
        "which": part.which,
        "groups": figures,
        "undrawn": part.undrawn,
        "attributes": [("Settings", settings), ("Times", seconds), ("The run", others)],
    }


def _shown(group: Group) -> dict[str, Any]:
    table = None if group.table is None else _rows(group.table)
    return {**group._asdict(), "table": table}


def _machine() -> dict[str, Any]:
    """Where and with what the report was written."""
    versions = {}
    for library in _LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "processor": f"{_processor()}, {os.cpu_count()} logical cores",
        "GPU": gpu,
        "Python": platform.python_version(),
        **versions,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


# -- tables ----------------------------------------------------------------------------------------


def _folded(table: pd.DataFrame, name: str) -> Markup:
    """The table, searchable where it is long, behind a fold where it is longer."""
    html = _rows(table, name)
    if len(table) > _SEARCHED:
        html = Markup(
            '<p class="search" data-for="{0}" hidden><label>Filter rows <input type="search" '
            'autocomplete="off" spellcheck="false"></label> <output aria-live="polite"></output>'
            "</p>{1}"
        ).format(name, html)
    if len(table) > _ROWS:
        html = Markup("<details><summary>All {} rows</summary>{}</details>").format(
            len(table), html
        )
    return html


def _rows(table: pd.DataFrame, name: str = "") -> Markup:
    from inference.compare import cell

    def row(values: Any, tag: str) -> str:
        cells = []
        for column, value in zip(table.columns, values, strict=True):
            kind = "status" if column in ("status", "meaning") else ""
            kind = kind or ("text" if column in _TEXTS else "")
            text = str(value).replace("_", " ") if tag == "th" else cell(str(column), value)
            scope = ' scope="col"' if tag == "th" else ""
            cells.append(f'<{tag}{scope} class="{kind}">{escape(text)}</{tag}>')
        return f"<tr>{''.join(cells)}</tr>"

    body = "\n".join(row(values, "td") for values in table.itertuples(index=False, name=None))
    ident = f' id="{escape(name)}"' if name else ""
    label = escape(name.replace("-", " ") or "table")
    return Markup(
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table{ident}>'
        f"<thead>{row(table.columns, 'th')}</thead>\n<tbody>{body}</tbody></table></div>"
    )
