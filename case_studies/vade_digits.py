"""Handwritten digits clustered without labels: VaDE by its recipe, beside k-means and a mixture.

The recipe's first stage restores images that were turned, shifted and zoomed a little, so that
codes say less of these moves; its mixture of codes has full covariances.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import typer
from matplotlib.figure import Figure
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

from case_studies.command import FAILED, chosen, notes, plain_errors, writable, write
from case_studies.images import DIGITS, load
from case_studies.study import Study
from inference import EM, SVI, Fit, Pretrained, compare
from inference.exhibit_plots import figure
from inference.row_evaluation import clustering
from ppl_models import VaDE
from ppl_models.corruptions import Jitter
from ppl_models.exhibits import Points
from ppl_models.likelihoods import Gaussian

ENGINES = "pretrained,svi"
BATCH = 128
_SHOWN = 2000  # images in the picture of the latent space
_COMPONENTS = 20  # principal ones, of the mixture that VaDE is compared with


class Recipe(NamedTuple):
    """Settings, chosen on seeds that no figure is told of."""

    latent: int = 20
    hidden: int = 512
    sd: float = 0.15  # of pixels in [0, 1]
    jitter: Jitter = Jitter(turn=0.2, shift=0.2, zoom=0.1)
    epochs: tuple[int, int] = (200, 100)  # of the autoencoder; of all together
    restarts: int = 30  # of EM


def model(recipe: Recipe, clusters: int, shape: tuple[int, ...], seed: int) -> VaDE:
    """A deep mixture with the weights of a seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return VaDE(
            clusters,
            recipe.latent,
            recipe.hidden,
            Gaussian(recipe.sd),
            shape=shape,
            covariance="full",
            corruption=recipe.jitter,
        )


def engine(recipe: Recipe, rows: int) -> Pretrained:
    """The three stages for so many images."""
    before, together = (each * max(1, rows // BATCH) for each in recipe.epochs)
    em = EM(restarts=recipe.restarts, tol=1e-4, objective="likelihood")
    return Pretrained(last(together), steps=before, em=em)


def last(steps: int) -> SVI:
    """The last stage, or training from nothing."""
    return SVI(batch_size=BATCH, steps=steps, plateau=False, rows=64, draws=100)


def study(
    images: np.ndarray | None = None,
    *,
    recipe: Recipe | None = None,
    clusters: int = 10,
    seed: int = 0,
) -> Study:
    """A deep mixture of images (N, height, width), by default the digits; with its training."""
    x = load().whole[0] if images is None else images
    used = recipe or Recipe()
    engines = {
        "pretrained": lambda: engine(used, len(x)),
        "svi": lambda: last(sum(used.epochs) * max(1, len(x) // BATCH)),
    }
    return Study(model(used, clusters, x.shape[1:], seed), x, engines, ENGINES)


def labels(found: Fit, x: np.ndarray) -> np.ndarray:
    """The cluster of each image."""
    trained: Any = found.model
    return trained.labels(trained.prepare(x)).numpy()


def peers(x: np.ndarray, clusters: int, seed: int) -> dict[str, np.ndarray]:
    """Clusters by k-means on pixels, and by a full mixture on principal components."""
    rows = x.reshape(len(x), -1)
    codes = PCA(min(_COMPONENTS, rows.shape[1]), random_state=seed).fit_transform(rows)
    starts: Any = 10  # sklearn's annotations know "auto" alone
    by_means = KMeans(clusters, n_init=starts, random_state=seed)
    mixture = GaussianMixture(clusters, n_init=starts, random_state=seed)
    return {
        "k-means": by_means.fit_predict(rows),
        f"mixture on {codes.shape[1]} components": mixture.fit_predict(codes),
    }


def judged(found: dict[str, np.ndarray], truth: np.ndarray) -> pd.DataFrame:
    """Agreement with the labels, and how many clusters have rows."""
    rows = {
        name: clustering(c, truth) | {"clusters": len(np.unique(c))} for name, c in found.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("by")


@torch.no_grad()
def pictures(name: str, found: Fit, x: np.ndarray, truth: np.ndarray) -> dict[str, Figure]:
    """Draws from each cluster, and the latent space coloured by label."""
    trained: Any = found.model
    data = trained.prepare(x[:_SHOWN])
    z = trained.codes(data)
    shown = dict(trained.exhibits(data, {"z": z[None, None]}))
    shown["Latent space, by label"] = Points("", z, torch.as_tensor(truth[:_SHOWN]))
    return {f"{title} ({name})": figure(title, exhibit) for title, exhibit in shown.items()}


def main(
    engines: Annotated[str, typer.Option(help="pretrained, svi (from nothing)")] = ENGINES,
    data: Annotated[str, typer.Option(help="digits, mnist or fashion-mnist")] = DIGITS,
    data_dir: Annotated[
        Path | None, typer.Option(help="folder of IDX or npz files; else from OpenML")
    ] = None,
    clusters: Annotated[int, typer.Option(min=1)] = 10,
    latent: Annotated[int, typer.Option(min=1, help="units")] = Recipe().latent,
    hidden: Annotated[int, typer.Option(min=1, help="width of the hidden layer")] = Recipe().hidden,
    before: Annotated[int, typer.Option(min=1, help="epochs of the autoencoder")] = Recipe().epochs[
        0
    ],
    together: Annotated[
        int, typer.Option(min=1, help="epochs of all weights together")
    ] = Recipe().epochs[1],
    restarts: Annotated[int, typer.Option(min=1, help="of EM on the codes")] = Recipe().restarts,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    out: Annotated[Path | None, typer.Option(help="folder for tables, pictures, report")] = None,
) -> None:
    """Cluster digits by VaDE and tell how well clusters agree with labels, which it never sees."""
    with plain_errors():
        x, truth = load(data, data_dir).whole
        recipe = Recipe(latent, hidden, epochs=(before, together), restarts=restarts)
        given = study(x, recipe=recipe, clusters=clusters, seed=seed)
        selected, folder = chosen(engines, given.engines), writable(out)
        comparison = compare(given.models, x, selected, seeds=(seed,))
        found = {name: labels(result, x) for name, result in comparison.fits.items()}
        table = judged(found | peers(x, clusters, seed), truth)
        print(f"{len(x)} images, {clusters} clusters, seed {seed}")
        print(table.to_string(float_format=lambda value: f"{value:.3f}"))
        for name, result in comparison.fits.items():
            trained: Any = result.model
            number, seconds = trained.effective_clusters(), result.seconds["total"]
            print(f"{name}: {number:.1f} clusters told apart, {seconds:.0f} s")
        for name, text in notes(comparison):
            print(f"{name}: {text}")
        if folder is not None:
            tables, shown = {"clustering": table}, {}
            for name, result in comparison.fits.items():
                columns = (pd.Series(found[name], name="cluster"), pd.Series(truth, name="label"))
                tables[f"clusters_{name}"] = pd.crosstab(*columns)
                shown |= pictures(name, result, x, truth)
            write(folder, comparison, tables, shown)
            print(f"written to {folder}: *.csv, *.png, *.nc, report.html")
        if comparison.failures:
            raise typer.Exit(FAILED)


if __name__ == "__main__":
    typer.run(main)
