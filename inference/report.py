"""One self-contained HTML file: verdict, tables, ArviZ plots, settings."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2
import matplotlib as mpl
import numpy as np
import pandas as pd
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from inference import arviz_bridge, ergodic
from inference.diagnostics import diagnose
from inference.finding import Finding
from inference.fit import Fit
from inference.storage import whole

if TYPE_CHECKING:
    from inference.compare import Comparison

_PLOTTED = 8  # scalars per plot
_ROWS = 60  # rows of a table that are shown unfolded


class Picture(NamedTuple):
    """A figure ready for the page."""

    png: str
    alt: str
    caption: str


class Part(NamedTuple):
    """One fit on the page."""

    name: str
    data: Any  # the ArviZ object
    kind: str
    findings: list[Finding]
    table: pd.DataFrame


def write_report(
    fits: Mapping[str, Any],
    path: str | PathLike[str],
    *,
    comparison: Comparison | None = None,
    figures: Mapping[str, Figure] | None = None,
    title: str | None = None,
) -> Path:
    """Write the report of some fits, or of any ArviZ objects; with a comparison its table too.

    Everything is inside the file: no script, no request. The file appears whole.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("inference"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    parts = [_part(name, fit) for name, fit in fits.items()]
    with mpl.rc_context({"figure.dpi": 90, "savefig.dpi": 90}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # plotting libraries' own; findings are in the fits
        page = _page(parts, comparison, figures)
        page["title"] = title or f"{_model(fits)}{', '.join(fits)}"
        html = environment.get_template("report.html").render(page)
    with whole(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return Path(path)


def _part(name: str, fit: Any) -> Part:
    if isinstance(fit, Fit):
        return Part(name, fit.to_arviz(), fit.posterior.kind, diagnose(fit), fit.summary())
    kind = arviz_bridge.kind(fit)
    found = [] if kind == "point" else diagnose(fit)
    return Part(name, fit, kind, found, arviz_bridge.summary(fit))


def _model(fits: Mapping[str, Any]) -> str:
    models = [fit.model for fit in fits.values() if isinstance(fit, Fit)]
    return f"{getattr(models[0], '__name__', type(models[0]).__name__)}: " if models else ""


def _page(
    parts: list[Part], comparison: Comparison | None, figures: Mapping[str, Figure] | None
) -> dict[str, Any]:
    from inference.compare import COLUMNS

    findings = [(part.name, f.severity, f.text) for part in parts for f in part.findings]
    pictures = [_picture(figure, caption) for caption, figure in (figures or {}).items()]
    table = None
    if comparison is not None:
        failures = comparison.failures.items()
        findings += [(name, "error", f"failed: {text}") for name, text in failures]
        table = _folded(comparison.table)
        drawn = [part for part in parts if part.kind != "point"]
        variables = _variables(drawn[0]) if drawn else []
        if variables:
            figure = arviz_bridge.plot_forest({part.name: part.data for part in drawn}, variables)
            pictures.append(_picture(figure, "Means and 94 % intervals by engine"))
    return {
        "findings": findings,
        "table": table,
        "columns": COLUMNS,
        "figures": pictures,
        "fits": [_section(part) for part in parts],
    }


def _section(part: Part) -> dict[str, Any]:
    attributes = arviz_bridge.attributes(part.data)
    return {
        "name": part.name,
        "findings": [(finding.severity, finding.text) for finding in part.findings],
        "table": _folded(part.table.reset_index(names="parameter")),
        "figures": _plots(part),
        "attributes": {k: v for k, v in attributes.items() if k != "elbo_trace"},
    }


def _plots(part: Part) -> list[Picture]:
    name, data, variables, pictures = part.name, part.data, _variables(part), []
    if part.kind == "samples" and variables:
        for caption, plot in (
            ("Marginal densities and traces by chain", arviz_bridge.plot_trace),
            ("Rank plots: level bars mean that the chains agree", arviz_bridge.plot_rank),
            ("Autocorrelation by lag", arviz_bridge.plot_autocorr),
        ):
            pictures.append(_picture(plot(data, variables), f"{name}: {caption}"))
        caption = "Running means over all chains, with their 95 % bands"
        pictures.append(_picture(_averages(data, variables), f"{name}: {caption}"))
        if _has_energy(data):
            caption = "Energy: marginal and transition distributions should overlap"
            pictures.append(_picture(arviz_bridge.plot_energy(data), f"{name}: {caption}"))
    elif part.kind == "approximation" and variables:
        figure = arviz_bridge.plot_posterior(data, variables)
        pictures.append(_picture(figure, f"{name}: marginal densities of the approximation"))
        trace = arviz_bridge.attributes(data).get("elbo_trace")
        if trace is not None and len(trace) > 1:
            pictures.append(_picture(_elbo(trace), f"{name}: the ELBO as it rose"))
    return pictures


def _has_energy(data: Any) -> bool:
    if not arviz_bridge.has_group(data, "sample_stats"):
        return False
    return "energy" in arviz_bridge.group(data, "sample_stats")


def _variables(part: Part) -> list[str]:
    """Real-valued variables, while they are few enough to plot."""
    if part.kind == "point":
        return []
    chosen, count = [], 0
    for name, draws in arviz_bridge.group(part.data, "posterior").data_vars.items():
        size = draws.size // max(1, draws.sizes["chain"] * draws.sizes["draw"])
        if draws.dtype.kind == "f" and size and count + size <= _PLOTTED:
            chosen.append(str(name))
            count += size
    return chosen


def _averages(data: Any, variables: list[str]) -> Figure:
    """Ergodic averages of every scalar, with central-limit bands."""
    posterior = arviz_bridge.group(data, "posterior")
    labels = arviz_bridge.scalars(posterior[variables].isel(chain=0, draw=0, drop=True)).index
    arrays = [posterior[v].transpose("chain", "draw", ...).values for v in variables]
    draws = np.concatenate([a.reshape(*a.shape[:2], -1) for a in arrays], axis=2)
    columns = min(4, len(labels))
    rows = -(-len(labels) // columns)
    figure = Figure(figsize=(3 * columns, 2.2 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    if draws.shape[1] < ergodic.LEAST:
        return figure
    average = ergodic.running_mean(draws)
    for index, axes in enumerate(grid.flat):
        if index >= len(labels):
            axes.set_axis_off()
            continue
        axes.plot(average.draws, average.mean[:, index])
        axes.fill_between(
            average.draws, average.lower[:, index], average.upper[:, index], alpha=0.25
        )
        # the first averages are of a few draws: leave the scale to the rest
        tail = slice(len(average.draws) // 10, None)
        axes.set_ylim(average.lower[tail, index].min(), average.upper[tail, index].max())
        axes.set_title(labels[index], fontsize=9)
        axes.set_xlabel("draws per chain", fontsize=8)
    return figure


def _elbo(trace: Sequence[float]) -> Figure:
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot(np.arange(1, len(trace) + 1), trace)
    axes.set_xlabel("look at the ELBO")
    axes.set_ylabel("ELBO (nats)")
    return figure


def _picture(figure: Figure, caption: str) -> Picture:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    figure.clear()
    return Picture(base64.b64encode(buffer.getvalue()).decode("ascii"), caption, caption)


def _folded(table: pd.DataFrame) -> str:
    """The table; where it is long its first rows, and the whole behind a fold."""
    if len(table) <= _ROWS:
        return Markup(_html(table))
    more = f"<details><summary>All {len(table)} rows</summary>{_html(table)}</details>"
    return Markup(_html(table.head(_ROWS)) + more)


def _html(table: pd.DataFrame) -> str:
    from inference.compare import cell

    def row(values: Any, tag: str) -> str:
        texts = ("engine", "parameter", "kind")
        cells = []
        for column, value in zip(table.columns, values, strict=True):
            kind = "status" if column == "status" else "text" if column in texts else ""
            text = str(value) if tag == "th" else cell(str(column), value)
            cells.append(f'<{tag} class="{kind}">{escape(text)}</{tag}>')
        return f"<tr>{''.join(cells)}</tr>"

    body = "\n".join(row(values, "td") for values in table.itertuples(index=False, name=None))
    return f"<table><thead>{row(table.columns, 'th')}</thead>\n<tbody>{body}</tbody></table>"
