"""Diffusion of scikit-learn's digits, and halves of digits restored by its latent chain.

The chain is trained through its bound, with a likelihood of 17 grey levels; rows are split at
random. What is hidden of a digit is then drawn given the rest: by the conditional sampler, exact in
the limit of many particles, and by Hamiltonian Monte Carlo over the noise of the chain's steps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import typer
from matplotlib.figure import Figure
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from case_studies import images
from case_studies.command import FAILED, chosen, plain_errors, writable, write
from case_studies.diffusion_toys import term_table, training
from case_studies.study import Study
from inference import (
    HMC,
    NUTS,
    Fit,
    TwistedSMC,
    classifier_test,
    compare,
    fit,
    generation,
    mmd,
    sliced_wasserstein,
)
from ppl_models import ModelError, Noise
from ppl_models.denoisers import MLPDenoiser, UNetDenoiser
from ppl_models.diffusion import Diffusion

ENGINES = "twisted,hmc"
HELD_OUT = 600  # of the 1,797 digits
SIDE = 8


class Digits(NamedTuple):
    """Rows of pixels from -1 to 1, split at random."""

    train: Tensor  # (N, 64)
    labels: np.ndarray  # (N,)
    held_out: Tensor  # (M, 64)


def digits() -> Digits:
    """scikit-learn's, whose last ones are of other writers, mixed."""
    pixels, labels = images.load().whole
    order = np.random.default_rng(0).permutation(len(pixels))
    x = torch.as_tensor(pixels[order]).flatten(1) * 2 - 1
    return Digits(x[:-HELD_OUT], labels[order][:-HELD_OUT], x[-HELD_OUT:])


def trained(
    x: Tensor, *, network: str = "mlp", levels: int = 20, steps: int = 6000, seed: int = 0
) -> Fit:
    """A diffusion of rows (N, 64), by so many steps of training."""
    if network not in ("mlp", "unet"):
        raise ModelError(f"unknown network '{network}'; choose from mlp, unet")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        denoiser = MLPDenoiser(64, hidden=256, outputs=2) if network == "mlp" else ImageNetwork()
    model = Diffusion(
        denoiser, (64,), steps=levels, parameterisation="velocity", variance="learned", values=17
    )
    engine = training("bound", steps, batch_size=128, rate=1e-3)
    return fit(model, x, engine, seed=seed)


class ImageNetwork(UNetDenoiser):
    """A small U-Net that takes images as rows of pixels."""

    def __init__(self) -> None:
        super().__init__(1, width=16, levels=2, outputs=2)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return super().forward(x.reshape(-1, 1, SIDE, SIDE), time).flatten(1)


def inpainting(model: Diffusion, digit: Tensor, *, draws: int = 100) -> Study:
    """The lower half of a digit (64,) given the upper one, with its engines."""
    seen = torch.arange(64) < 32
    data = {"x": digit[None], "seen": seen}
    common: dict[str, Any] = {"chains": 4, "warmup": draws, "draws": draws, "tier": "traced"}
    engines = {
        "twisted": lambda: TwistedSMC(particles=500),
        "hmc": lambda: HMC(**common, steps=30),
        "nuts": lambda: NUTS(**common, max_depth=6),
    }
    shown = [f"x_1[0, {pixel}]" for pixel in (36, 43, 52)]
    return Study(model.whitened(), data, engines, ENGINES, shown=shown)


def study() -> Study:
    """The first held-out digit's half, by a model that is trained first (about a minute)."""
    given = digits()
    model: Any = trained(given.train).model
    return inpainting(model, given.held_out[0])


def judged(given: Digits, draws: Tensor) -> pd.Series:
    """Draws (S, 64) beside digits that the model has not seen.

    ``distance`` is the sliced Wasserstein distance to them over that of two parts of the training
    rows of the same size; ``classes`` are the digits of which there are at least a tenth of an
    equal share, as the nearest neighbours tell, and ``rarest`` the smallest share.
    """
    size = min(len(draws), len(given.held_out), len(given.train) // 2)
    held_out, draws = given.held_out[:size], draws[:size]
    halves = sliced_wasserstein(given.train[:size], given.train[-size:])
    nearest = KNeighborsClassifier(5).fit(given.train.numpy(), given.labels)
    shares = np.bincount(np.asarray(nearest.predict(draws.numpy())), minlength=10) / size
    return pd.Series(
        {
            "distance": sliced_wasserstein(draws, held_out) / halves,
            "mmd p": mmd(draws, held_out).p_value,
            "told apart": classifier_test(draws, held_out).accuracy,
            "classes": int((shares >= 0.01).sum()),
            "rarest": shares.min(),
        }
    )


def restored(truth: Tensor, drawn: Tensor, mean: Tensor) -> pd.Series:
    """How well hidden halves are drawn: truth (N, 64), drawn (S, N, 64), mean (64,) of all digits.

    Errors are root mean squares over hidden pixels; ``covered`` is the share of them within the
    central 90 % of their draws.
    """
    hidden, pixels = truth[:, 32:], drawn[..., 32:]
    low, high = (pixels.float().quantile(q, 0) for q in (0.05, 0.95))
    inside = (hidden >= low) & (hidden <= high)
    return pd.Series(
        {
            "error": float((pixels.mean(0) - hidden).square().mean().sqrt()),
            "error of the mean digit": float((mean[32:] - hidden).square().mean().sqrt()),
            "covered": float(inside.float().mean()),
        }
    )


def grid(pictures: Tensor, titles: list[str], labels: list[str]) -> Figure:
    """Digits (R, C, 64) in rows with labels and columns with titles."""
    rows, columns = pictures.shape[:2]
    figure = Figure(figsize=(0.75 * columns + 1, 0.8 * rows + 0.3), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for row in range(rows):
        for column in range(columns):
            at = axes[row, column]
            image = pictures[row, column].reshape(SIDE, SIDE).numpy()
            at.imshow(image, cmap="gray", vmin=-1, vmax=1)
            at.set(xticks=[], yticks=[])
            if row == 0 and titles:
                at.set_title(titles[column], fontsize=8)
        if labels:
            axes[row, 0].set_ylabel(labels[row], fontsize=8)
    return figure


def chains(model: Diffusion, x: Tensor, seed: int) -> tuple[Figure, Tensor]:
    """A picture of the chain, and draws of as many digits as held out.

    The chain runs to the right from data, and to the left from the model's noise.
    """
    times = sorted({max(1, round(model.steps * k / 7)) for k in range(8)})
    found: dict[int, Tensor] = {}

    def watch(t: int, chain: Tensor) -> None:
        found[t] = chain

    draws = generation.ancestral(model, HELD_OUT, seed=seed, watch=watch)
    table = model.table(x)
    noised = [
        table.signal[t - 1] * x + table.noise[t - 1] * Noise.seeded(t, 1).normal(*x.shape)[0].to(x)
        for t in times
    ]
    forward = torch.stack([x, *noised], 1)  # (N, columns, 64)
    back = torch.stack([draws, *(found[t] for t in times)], 1)[: len(x)]
    titles = [f"t = {t}" for t in (0, *times)]
    labels = ["data"] * len(x) + ["model"] * len(x)
    return grid(torch.cat([forward, back]), titles, labels), draws


def main(
    network: Annotated[str, typer.Option(help="mlp, or unet (slower)")] = "mlp",
    engines: Annotated[str, typer.Option(help="of inpainting: twisted, hmc, nuts")] = ENGINES,
    levels: Annotated[int, typer.Option(min=5, help="T, the steps of the chain")] = 20,
    steps: Annotated[int, typer.Option(min=1, help="of training")] = 6000,
    draws: Annotated[int, typer.Option(min=10, help="of each Markov chain, and its warm-up")] = 100,
    restore: Annotated[int, typer.Option(min=1, max=64, help="digits restored by TwistedSMC")] = 8,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    out: Annotated[Path | None, typer.Option(help="folder for tables, pictures, report")] = None,
) -> None:
    """Train a diffusion on digits, draw digits, and restore halves of them."""
    with plain_errors():
        given, folder = digits(), writable(out)
        chosen(engines, inpainting(Diffusion(MLPDenoiser(64), (64,)), given.train[0]).engines)
        result = trained(given.train, network=network, levels=levels, steps=steps, seed=seed)
        model: Any = result.model
        print(f"trained in {result.seconds['total']:.0f} s; {result.status}")
        sets = {"train": given.train[:HELD_OUT], "held out": given.held_out}
        terms = term_table({k: model.bound(x, Noise.seeded(seed, 1)) for k, x in sets.items()}, 64)
        picture, drawn = chains(model, given.held_out[:3], seed)
        figures = {
            "Chain to noise and back": picture,
            "Digits drawn and below them real ones": grid(
                torch.cat([drawn[:36], given.held_out[:36]]).reshape(6, 12, 64), [], []
            ),
        }
        half = given.held_out[:restore]
        data = {"x": half, "seen": torch.arange(64) < 32}
        several = fit(model, data, TwistedSMC(particles=500), seed=seed)
        filled = several.predict()["x"].flatten(0, 1)  # (S, N, 64)
        figures["Lower halves drawn"] = _restored(half, filled)
        setting = inpainting(model, half[0], draws=draws)
        selected = chosen(engines, setting.engines)
        comparison = compare(setting.models, setting.data, selected, seeds=(seed,))
        by_engine = {
            name: found.predict()["x"].flatten(0, 1) for name, found in comparison.fits.items()
        }
        if by_engine:
            figures["One half by each engine"] = _restored(
                half[:1].expand(len(by_engine), -1),
                torch.cat(
                    [x[torch.linspace(0, len(x) - 1, 100).long()] for x in by_engine.values()], 1
                ),
                list(by_engine),
            )
        tables = {
            "terms": terms,
            "draws": judged(given, drawn).to_frame("figure").T,
            "restored": pd.DataFrame(
                {
                    f"twisted, {restore} digits": restored(half, filled, given.train.mean(0)),
                    **{
                        f"{name}, the first": restored(half[:1], x, given.train.mean(0))
                        for name, x in by_engine.items()
                    },
                }
            ).T,
        }
        for table in tables.values():
            print(table.to_string(float_format=lambda value: f"{value:.4g}"))
        comparison.show(setting.shown)
        if folder is not None:
            write(folder, comparison, tables, figures)
            print(f"written to {folder}: *.csv, report.html, *.png, and *.nc by engine")
        if comparison.failures:
            raise typer.Exit(FAILED)


def _restored(truth: Tensor, drawn: Tensor, labels: list[str] | None = None) -> Figure:
    """Truth, what is seen of it, six draws and the mean of all: a row for each digit."""
    mask = torch.arange(64) < 32
    seen = torch.where(mask, truth, 0.0)
    drawn = torch.where(mask, truth, drawn.to(truth))
    few = drawn[torch.linspace(0, len(drawn) - 1, 6).long()].transpose(0, 1)  # (N, 6, 64)
    columns = [truth[:, None], seen[:, None], few, drawn.mean(0)[:, None]]
    titles = ["digit", "seen", *["draw"] * 6, "mean"]
    return grid(torch.cat(columns, 1), titles, labels or [])


if __name__ == "__main__":
    typer.run(main)
