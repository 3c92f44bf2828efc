"""O-ring distress against launch temperature, by every engine, against quadrature.

The 23 flights before the loss of Challenger (Dalal, Fowlkes & Hoadley 1989), with the prior of
Robert & Casella (2004): what was the chance of distress at 31 F?
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
from matplotlib.figure import Figure

from case_studies.command import FAILED, AsJSON, chosen, plain_errors, show, writable
from case_studies.study import Study
from inference import (
    EM,
    HMC,
    MAMS,
    MH,
    NUTS,
    SVI,
    ChEES,
    Comparison,
    Gibbs,
    ImportanceSampling,
    Pathfinder,
    compare,
    target,
)
from inference.laplace import find_mode, hessian
from ppl_models import Noise, ORing

LAUNCH = 31.0  # F, on 28 January 1986
PRESSURE = 200.0  # psi, where the pressure enters
TEMPERATURES = (31.0, 50.0, 60.0, 65.0, 70.0)  # F
SHOWN = (31.0, 65.0)
ENGINES = "em,svi,mh,hmc,nuts"


def reference(model: ORing) -> pd.DataFrame:
    """Posterior means and sds by quadrature on a grid, and its log evidence in ``attrs``.

    The grid has two (with pressure three) whitened axes; it is laid around the mode, then moved to
    the mean and covariance that it finds, until its edge holds no mass.
    """
    density = target(model)
    dim = density.dim
    centre = find_mode(density, Noise.seeded(0, 4))
    factor = torch.linalg.cholesky(torch.linalg.inv(-hessian(density, centre)))
    size, half = (321, 61)[dim - 2], 9.0
    axis = torch.linspace(-half, half, size, dtype=torch.float64)
    unit = torch.cartesian_prod(*[axis] * dim)
    x, weight, evidence = unit, unit[:, 0], 0.0
    for _ in range(3):
        x = centre + unit @ factor.T
        log_p = torch.cat([density.log_density(part) for part in _chunks(x)])
        weight = (log_p - log_p.max()).exp()
        total = weight.sum()
        weight = weight / total
        centre = weight @ x
        covariance = (x - centre).T @ (weight[:, None] * (x - centre))
        step = 2 * half / (size - 1)
        volume = factor.diagonal().log().sum() + dim * np.log(step)
        evidence = float(log_p.max() + total.log() + volume)
        factor = torch.linalg.cholesky(covariance)
    names = [site.name for site in density.sites]
    values = {name: x[:, i] for i, name in enumerate(names)}
    pressure = PRESSURE * values["gamma"] if "gamma" in values else 0.0
    for t in model.predict_at or ():
        values[f"p[{t}]"] = (values["alpha"] + t * values["beta"] + pressure).sigmoid()
    rows = {}
    for name, value in values.items():
        mean = weight @ value
        rows[name] = (float(mean), float((weight @ (value - mean) ** 2).sqrt()))
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["mean", "sd"])
    table.attrs["log_evidence"] = evidence
    return table


def _chunks(x: torch.Tensor, size: int = 4096) -> list[torch.Tensor]:
    """Rows in parts of equal size, so that the density is traced once; the last overlaps."""
    return [x[i : i + size] for i in range(0, len(x), size)]


def bands(comparison: Comparison, truth: pd.DataFrame) -> Figure:
    """Probability of an incident against temperature: mean and 90 % band by engine."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    flights = ORing.flights()
    axes.plot(flights["temperature"], flights["incident"], "k|", markersize=10, label="flights")
    grid = torch.linspace(LAUNCH, 81.0, 101, dtype=torch.float64)
    for name, result in comparison.fits.items():
        draws = {site: value.double().cpu() for site, value in result.posterior.draws.items()}
        logits = draws["alpha"][..., None] + draws["beta"][..., None] * grid
        if "gamma" in draws:
            logits = logits + PRESSURE * draws["gamma"][..., None]
        p = logits.sigmoid()
        if result.posterior.kind == "point":
            axes.plot(grid, p, "--", label=f"{name} (mode)")
            continue
        p = p.flatten(0, 1)
        low, high = (p.quantile(q, 0) for q in (0.05, 0.95))
        (line,) = axes.plot(grid, p.mean(0), label=name)
        axes.fill_between(grid, low, high, alpha=0.12, color=line.get_color())
    exact = {t: truth.loc[f"p[{t}]", "mean"] for t in TEMPERATURES}
    axes.plot(list(exact), list(exact.values()), "ko", markersize=4, label="quadrature")
    axes.axvline(LAUNCH, color="tab:red", lw=1)
    axes.annotate("launch of 28 January 1986", (LAUNCH, 0.02), rotation=90, color="tab:red",
                  xytext=(4, 0), textcoords="offset points", fontsize=8)  # fmt: skip
    axes.set(xlabel="temperature (F)", ylabel="P(incident)", ylim=(-0.03, 1.03))
    axes.legend(fontsize=8, loc="upper right")
    return figure


def study(
    model: ORing | None = None, *, chains: int = 4, draws: int = 1000, warmup: int = 1000
) -> Study:
    """A model of the O-ring data, by default Robert & Casella's, with its engines."""
    used = model or ORing(predict_at=TEMPERATURES)
    common: dict[str, Any] = {"chains": chains, "warmup": warmup, "draws": draws}
    engines = {
        "em": EM,
        "svi": lambda: SVI(draws=draws),
        "mh": lambda: MH(**common),
        "hmc": lambda: HMC(**common),
        "nuts": lambda: NUTS(**common),
        "chees": lambda: ChEES(**common),
        "mams": lambda: MAMS(**common),
        "gibbs": lambda: Gibbs(**common),
        "independence": lambda: MH(**common, proposal=used.independence_proposal()),
        "importance": lambda: ImportanceSampling(
            draws=draws, proposal=used.independence_proposal()
        ),
        "laplace": lambda: SVI(guide="laplace", draws=draws),
        "pathfinder": lambda: Pathfinder(draws=draws),
    }
    sites = ["alpha", "beta", *(["gamma"] if used.pressure else [])]
    shown = [*sites, *(f"p[{t}]" for t in SHOWN)]
    return Study(used, None, engines, ENGINES, lambda: reference(used), shown)


def main(
    engines: Annotated[
        str,
        typer.Option(
            help="em, svi, mh, hmc, nuts, chees, mams, gibbs, independence, importance, "
            "laplace, pathfinder"
        ),
    ] = ENGINES,
    prior: Annotated[str, typer.Option(help="robert-casella, normal or flat")] = "robert-casella",
    outcome: Annotated[str, typer.Option(help="incident or damaged")] = "incident",
    pressure: Annotated[bool, typer.Option(help="let the leak-check pressure enter")] = False,
    chains: Annotated[int, typer.Option(min=1)] = 4,
    draws: Annotated[int, typer.Option(min=1)] = 1000,
    warmup: Annotated[int, typer.Option(min=0)] = 1000,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32 or float64")] = "float64",
    out: Annotated[
        Path | None, typer.Option(help="folder for tables, NetCDF, report and figure")
    ] = None,
    as_json: AsJSON = False,
) -> None:
    """Fit the O-ring data by several engines and compare them with quadrature."""
    with plain_errors():
        model = ORing(outcome, pressure, prior, predict_at=TEMPERATURES)  # type: ignore[arg-type]
        given = study(model, chains=chains, draws=draws, warmup=warmup)
        selected = chosen(engines, given.engines)
        folder = writable(out)
        truth = reference(model)
        comparison = compare(
            model, None, selected, reference=truth, seeds=(seed,), device=device, dtype=dtype
        )
        show(comparison, given.shown, as_json)
        if folder is not None:
            figure = bands(comparison, truth)
            figure.savefig(folder / "probability.png", dpi=120)
            caption = "Probability of an incident by temperature, with 90 % bands"
            comparison.save(folder, figures={caption: figure})
            if not as_json:
                print(f"written to {folder}: comparison.*, report.html, probability.png, *.nc")
        if comparison.failures:
            raise typer.Exit(FAILED)


if __name__ == "__main__":
    typer.run(main)
