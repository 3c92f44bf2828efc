"""Diffusion on three densities of the plane, against their entropies.

Each toy's latent chain is trained through its bound, one level of noise per row, and judged by what
is known of the toy: the entropy below which no mean negative log density can be, and its modes.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import typer
from matplotlib.figure import Figure
from torch import Tensor

from case_studies.command import FAILED, AsJSON, chosen, plain_errors, writable, write
from case_studies.study import Study
from case_studies.toys import TOYS, Toy
from inference import (
    SVI,
    Fit,
    classifier_test,
    compare,
    generation,
    mmd,
    mode_coverage,
    sliced_wasserstein,
)
from inference.denoising import Denoising
from ppl_models import DataError, Noise
from ppl_models.denoisers import MLPDenoiser
from ppl_models.diffusion import Diffusion, Terms

ENGINES = "bound"
ROWS, HELD_OUT = 50_000, 10_000
JUDGED = 2_000  # held-out rows whose density is computed
GRID = 64  # points on a side of the density's picture


class Prepared(NamedTuple):
    """Rows of a toy: those to train on are divided by ``scale``, their sd."""

    train: Tensor
    held_out: Tensor
    scale: float


class Judged(NamedTuple):
    """What is known of a trained model."""

    figures: pd.Series
    terms: Terms
    picture: Figure


def prepared(toy: Toy, seed: int = 0) -> Prepared:
    """Rows to train on and rows to judge by."""
    x = toy.sample(ROWS, seed=seed + 1)
    return Prepared(x, toy.sample(HELD_OUT, seed=seed + 2), float(x.std()))


def diffusion(levels: int, seed: int = 0) -> Diffusion:
    """An untrained one of rows of two numbers."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        denoiser = MLPDenoiser(2, hidden=128, layers=3, outputs=2)
    return Diffusion(denoiser, (2,), steps=levels, parameterisation="velocity", variance="learned")


def training(weights: Any, steps: int, *, batch_size: int = 512, rate: float = 2e-3) -> SVI:
    """By minibatches, at a rate that falls like a cosine; averaged weights."""
    return SVI(
        objective=Denoising(weights),
        batch_size=batch_size,
        steps=steps,
        learning_rate=rate,
        schedule=lambda optimiser: torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps),
        clip=1.0,
        average=0.999,
        plateau=False,
        rows=8,
        draws=50,
    )


def study(
    toys: tuple[str, ...] = tuple(TOYS), *, levels: int = 500, steps: int = 16_000, seed: int = 0
) -> Study:
    """Diffusions of toys, by the bound and by the hybrid loss."""
    models = {}
    for name in toys:
        rows = prepared(TOYS[name], seed)
        models[name] = diffusion(levels, seed), (rows.train / rows.scale).float()
    engines = {name: lambda name=name: training(name, steps) for name in ("bound", "hybrid")}
    return Study(models, None, engines, ENGINES, shown=["x_1[0, 0]", "x_1[0, 1]"])


def log_density(model: Diffusion, x: Tensor, scale: float) -> Tensor:
    """Of the probability flow, in nats at the scale of the rows: (N,)."""
    value = generation.flow_log_density(model, (x / scale).float(), tolerance=1e-4)
    return value - x.shape[1] * math.log(scale)


def judged(name: str, result: Fit, seed: int = 0) -> Judged:
    """A trained model by its bound, its density and its draws, and a picture of these."""
    toy, model = TOYS[name], _model(result)
    rows = prepared(toy, seed)
    shown = {max(1, round(model.steps * share)) for share in (1, 0.6, 0.3, 0.1, 0)}
    reverse: dict[int, Tensor] = {}

    def watch(t: int, chain: Tensor) -> None:
        if t in shown:
            reverse[t] = chain

    draws = generation.ancestral(model, HELD_OUT, seed=seed, watch=watch).double() * rows.scale
    few = rows.held_out[:JUDGED]
    log_p = log_density(model, few, rows.scale)
    terms = model.bound((few / rows.scale).float(), Noise.seeded(seed + 1, 1))
    told, apart = classifier_test(draws[:JUDGED], few), mmd(draws[:JUDGED], few)
    figures = {
        "entropy": toy.entropy,
        "nll": -float(log_p.mean()),
        "above floor": float((toy.log_density(few) - log_p).mean()),  # the divergence to it
        "bound": float(terms.total.mean()) + 2 * math.log(rows.scale),
        "distance": distance(draws, rows),
        "mmd p": apart.p_value,
        "told apart": told.accuracy,
    }
    if toy.modes is not None and toy.radius is not None:
        modes = mode_coverage(draws, toy.modes, toy.radius)
        figures["modes"] = modes.covered
        off = np.abs(modes.weights - 1 / len(toy.modes)).max()
        figures["weights off"] = 100 * float(off)  # percentage points
    series = pd.Series(figures | {"seconds": result.seconds["total"]}, name=name)
    return Judged(series, terms, picture(toy, model, rows, reverse, draws, terms))


def distance(draws: Tensor, rows: Prepared) -> float:
    """The sliced Wasserstein distance of draws to held-out rows, over that of data to them.

    The latter is the root mean square over parts of the training rows, as many rows as draws each:
    of exact draws the ratio is about one.
    """
    parts = [part for part in rows.train.split(len(draws)) if len(part) == len(draws)]
    own = [sliced_wasserstein(part, rows.held_out) ** 2 for part in parts]
    return sliced_wasserstein(draws, rows.held_out) / math.sqrt(np.mean(own))


def term_table(terms: dict[str, Terms], numbers: int) -> pd.DataFrame:
    """L_T, the sum of L_1, ..., L_{T-1}, L_0 and their sum, in nats and in bits per number.

    They are of rows of so many numbers as they were trained on: divided by their sd, or in levels.
    """
    table = {}
    for name, found in terms.items():
        parts = {"L_T": found.last, "L_1..T-1": found.steps.sum(-1), "L_0": found.data}
        nats = {key: float(value.mean()) for key, value in parts.items()}
        nats["bound"] = sum(nats.values())
        bits = {f"{key} bits/dim": value / (numbers * math.log(2)) for key, value in nats.items()}
        table[name] = nats | bits
    return pd.DataFrame.from_dict(table, orient="index")


def picture(
    toy: Toy,
    model: Diffusion,
    rows: Prepared,
    reverse: dict[int, Tensor],
    draws: Tensor,
    terms: Terms,
) -> Figure:
    """The chain from data to noise, its way back, and draws and density beside the data's."""
    figure = Figure(figsize=(11, 6.6), layout="constrained")
    axes = figure.subplots(3, 5)
    table = model.table(torch.zeros(1))
    start = rows.train[:4000] / rows.scale
    for column, (t, chain) in enumerate(reverse.items()):
        normal = Noise.seeded(t, 1).normal(*start.shape)[0]
        noised = table.signal[t - 1] * start + table.noise[t - 1] * normal
        _points(axes[0, len(reverse) - 1 - column], noised, f"data, t = {t}")
        _points(axes[1, column], chain, f"model, t = {t}")
    half = 1.15 * float(rows.train.abs().max())
    line = torch.linspace(-half, half, GRID, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line)
    for place, log_p, title in (
        (0, toy.log_density(grid), "density"),
        (1, log_density(model, grid, rows.scale), "density of the model"),
    ):
        density = log_p.exp().reshape(GRID, GRID).T.numpy()
        axes[2, place].imshow(density, origin="lower", extent=(-half, half, -half, half))
        axes[2, place].set_title(title, fontsize=9)
        axes[2, place].set_axis_off()
    _points(axes[2, 2], rows.train, "data", half)
    _points(axes[2, 3], draws, "draws of the model", half)
    axes[2, 4].plot(range(2, model.steps + 1), terms.steps.mean(0).numpy(), linewidth=1)
    axes[2, 4].set(xscale="log", yscale="log", xlabel="t")
    axes[2, 4].set_title("terms L$_{t-1}$, nats", fontsize=9)
    axes[2, 4].tick_params(labelsize=7)
    return figure


def _points(axes: Any, x: Tensor, title: str, half: float = 3.2) -> None:
    axes.scatter(*x[:4000].T.numpy(), s=0.4, alpha=0.5, linewidths=0)
    axes.set(xlim=(-half, half), ylim=(-half, half), aspect="equal", xticks=[], yticks=[])
    axes.set_title(title, fontsize=9)


def _model(result: Fit) -> Diffusion:
    found: Any = result.model
    return found


def main(
    toys: Annotated[str, typer.Option(help=", ".join(TOYS))] = ",".join(TOYS),
    engines: Annotated[str, typer.Option(help="losses: bound, hybrid")] = ENGINES,
    levels: Annotated[int, typer.Option(min=5, help="T, the steps of the chain")] = 500,
    steps: Annotated[int, typer.Option(min=1, help="of training, for each toy")] = 16_000,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    out: Annotated[Path | None, typer.Option(help="folder for tables, pictures, report")] = None,
    as_json: AsJSON = False,
) -> None:
    """Train a diffusion on each toy, and judge its density and its draws."""
    with plain_errors():
        names = tuple(name.strip() for name in toys.split(","))
        unknown = [name for name in names if name not in TOYS]
        if unknown:
            raise DataError(f"unknown toy '{unknown[0]}'; choose from {', '.join(TOYS)}")
        given = study(names, levels=levels, steps=steps, seed=seed)
        selected, folder = chosen(engines, given.engines), writable(out)
        comparison = compare(given.models, given.data, selected, seeds=(seed,))
        found = {
            cell.model if len(selected) == 1 else f"{cell.model}, {cell.engine}": judged(
                cell.model, comparison.fits[cell.name], seed
            )
            for cell in comparison.cells
            if cell.name in comparison.fits
        }
        table = pd.DataFrame({name: each.figures for name, each in found.items()}).T
        terms = term_table({name: each.terms for name, each in found.items()}, 2)
        if as_json:
            both = {"figures": table, "terms": terms}
            texts = {k: str(v.to_json(orient="index")) for k, v in both.items()}
            print(json.dumps({k: json.loads(v) for k, v in texts.items()}, indent=2))
        else:
            for part in (table, terms):
                print(part.to_string(float_format=lambda value: f"{value:.4g}"))
            for name, text in comparison.failures.items():
                print(f"{name}: {text}")
        if folder is not None:
            pictures = {name: each.picture for name, each in found.items()}
            write(folder, comparison, {"toys": table, "terms": terms}, pictures)
            if not as_json:
                print(f"written to {folder}: *.csv, report.html, a picture of each toy, *.nc")
        if comparison.failures:
            raise typer.Exit(FAILED)


if __name__ == "__main__":
    typer.run(main)
