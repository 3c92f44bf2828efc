"""Handwritten digits by a variational autoencoder: bounds, gaps, and engines on its latents.

Trained by the evidence bound and by the importance-weighted one; scikit-learn's digits, or MNIST.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
from matplotlib.figure import Figure

from case_studies.command import FAILED, chosen, notes, plain_errors, writable, write
from case_studies.images import DIGITS, load
from case_studies.study import Study
from inference import (
    AIS,
    HMC,
    MH,
    NUTS,
    SVI,
    Comparison,
    ImportanceWeighted,
    RowWise,
    compare,
    inference_gaps,
)
from inference.exhibit_plots import figure
from inference.row_evaluation import evaluate, log_likelihood
from ppl_models import VAE
from ppl_models.base import Data
from ppl_models.exhibits import Points

ENGINES = "svi,iwae"
_SHOWN = 500  # images in the picture of the latent space


def study(
    images: np.ndarray | None = None,
    *,
    latent: int = 8,
    hidden: int = 64,
    steps: int = 4000,
    k: int = 20,
) -> Study:
    """An autoencoder of images (N, height, width), by default the digits, and its training."""
    common: dict[str, Any] = {"batch_size": 100, "steps": steps, "plateau": False, "draws": 200}
    engines = {
        "svi": lambda: SVI(**common),
        "iwae": lambda: SVI(objective=ImportanceWeighted(k), **common),
        "dreg": lambda: SVI(objective=ImportanceWeighted(k, doubly=True), **common),
    }
    x = load().train if images is None else images
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = VAE(latent, hidden, shape=x.shape[1:], binarise="dynamic")
    return Study(model, x, engines, ENGINES)


def bounds(model: VAE, data: Data, k: int, samples: int) -> dict[str, float]:
    """Means over the images, in nats, and the number of active units."""
    found = evaluate(model, data, samples=k)
    return {
        "ELBO": float(found.elbo.mean()),
        f"bound of {k}": float(found.bound.mean()),
        f"log p(x) by {samples} draws": float(log_likelihood(model, data, samples=samples).mean()),
        "divergence": float(found.divergence.sum()) if found.divergence is not None else np.nan,
        "active units": float(found.active or 0),
    }


def latents(model: VAE, data: Data, draws: int, seed: int) -> tuple[Comparison, pd.DataFrame]:
    """Engines over the latents of some images, and how the encoder and they differ from NUTS.

    ``mean_away`` is the root mean square, over images and units, of the difference of means in
    posterior sds; ``sd_ratio`` the mean ratio of sds.
    """
    common: dict[str, Any] = {"chains": 4, "warmup": draws, "draws": draws}
    engines = {
        "nuts": RowWise(NUTS(**common)),
        "hmc": RowWise(HMC(**common)),
        "mh": RowWise(MH(**common, thin=20)),
        "ais": AIS(chains=64, temperatures=200),
    }
    comparison = compare(model, data, engines, seeds=(seed,))
    with torch.no_grad():
        moments = {"encoder": model.encode(data["x"])}  # (rows, latent) each
    for name, found in comparison.fits.items():
        z = found.posterior.draws["z"].flatten(0, 1)  # (S, rows, latent)
        moments[name] = (z.mean(0), z.std(0))
    rows = {}
    for name, (mean, sd) in moments.items() if "nuts" in moments else ():
        centre, spread = moments["nuts"]
        summary = comparison.table[comparison.table["engine"] == name]
        rows[name] = {
            "mean_away": float(((mean - centre) / spread).square().mean().sqrt()),
            "sd_ratio": float((sd / spread).mean()),
            "r_hat": summary["r_hat"].max(),
            "least_ess": summary["ess_bulk"].min(),
            "seconds": summary["seconds"].max(),
        }
    return comparison, pd.DataFrame.from_dict(rows, orient="index").rename_axis("by")


@torch.no_grad()
def pictures(name: str, model: VAE, data: Data, labels: np.ndarray) -> dict[str, Figure]:
    """Reconstructions and draws from the prior, and the encoder's means coloured by label."""
    z = model.encode(data["x"])[0]
    shown = dict(model.exhibits(data, {"z": z[None, None]}))
    shown["Latent space"] = Points("", z[:_SHOWN], torch.as_tensor(labels[:_SHOWN]))
    return {f"{title} ({name})": figure(title, exhibit) for title, exhibit in shown.items()}


def main(
    engines: Annotated[str, typer.Option(help="svi, iwae, dreg (doubly reparameterised)")] = (
        ENGINES
    ),
    data: Annotated[str, typer.Option(help="digits, mnist or fashion-mnist")] = DIGITS,
    data_dir: Annotated[
        Path | None, typer.Option(help="folder of IDX or npz files; else from OpenML")
    ] = None,
    latent: Annotated[int, typer.Option(min=1, help="units")] = 8,
    hidden: Annotated[int, typer.Option(min=1, help="width of the hidden layers")] = 64,
    steps: Annotated[int, typer.Option(min=1, help="of training, 100 images each")] = 4000,
    k: Annotated[int, typer.Option(min=1, help="draws of the importance-weighted bound")] = 20,
    samples: Annotated[int, typer.Option(min=1, help="importance samples of log p(x)")] = 5000,
    tested: Annotated[int, typer.Option(min=2, help="test images whose bounds are told")] = 1000,
    images: Annotated[int, typer.Option(min=2, help="of these, whose gaps are told")] = 50,
    temperatures: Annotated[int, typer.Option(min=2, help="of annealing")] = 500,
    sampled: Annotated[int, typer.Option(min=1, help="test images whose latents are sampled")] = 10,
    draws: Annotated[int, typer.Option(min=60, help="of each chain over latents")] = 300,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    out: Annotated[Path | None, typer.Option(help="folder for tables, pictures, report")] = None,
) -> None:
    """Train an autoencoder of digits; tell its bounds and gaps; sample its latents by engines."""
    with plain_errors():
        found = load(data, data_dir)
        given = study(found.train, latent=latent, hidden=hidden, steps=steps, k=k)
        selected, folder = chosen(engines, given.engines), writable(out)
        comparison = compare(given.models, given.data, selected, seeds=(seed,))
        x, labels = found.test[:tested], found.test_labels[:tested]
        images, sampled = min(images, len(x)), min(sampled, len(x))
        levels, gaps, shown = {}, {}, {}
        for name, result in comparison.fits.items():
            model: Any = result.model
            test = model.prepare(x)
            levels[name] = bounds(model, test, k, samples)
            levels[name]["training seconds"] = result.seconds["training"]
            some = model.take(test, torch.arange(images))
            annealing = AIS(chains=16, temperatures=temperatures)
            gaps[name] = inference_gaps(model, some, annealing, seed=seed).table["mean"]
            shown |= pictures(name, model, test, labels)
        table = pd.DataFrame(levels).T.rename_axis("trained by")
        print(f"{len(x)} test images, means in nats")
        print(table.to_string(float_format=lambda value: f"{value:.3f}"))
        differences = pd.DataFrame(gaps).T.rename_axis("trained by")
        print(
            f"\nthe first {images}: log p(x) by annealing and by importance, and the gaps below it"
        )
        print(differences.to_string(float_format=lambda value: f"{value:.3f}"))
        for name, text in notes(comparison):
            print(f"{name}: {text}")
        first: Any = next(iter(comparison.fits.values())).model
        few = first.take(first.prepare(x), torch.arange(sampled))
        chains, engines_table = latents(first, few, draws, seed)
        print(f"\nlatents of {sampled} images given the weights of {next(iter(comparison.fits))}")
        print(engines_table.to_string(float_format=lambda value: f"{value:.3f}"))
        for name, text in notes(chains):
            print(f"{name}: {text}")
        if folder is not None:
            tables = {"bounds": table, "gaps": differences, "latents": engines_table}
            write(folder, comparison, tables, shown)
            chains.save(folder / "latents")
            print(f"written to {folder}: *.csv, *.png, *.nc, report.html, latents/report.html")
        if comparison.failures or chains.failures:
            raise typer.Exit(FAILED)


if __name__ == "__main__":
    typer.run(main)
