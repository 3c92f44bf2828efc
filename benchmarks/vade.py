"""Digits clustered without labels: VaDE seed by seed, beside k-means and a Gaussian mixture.

    python -m benchmarks.vade [--seeds 0 1 2 3 4 5 6 7 8 9]

scikit-learn's 1,797 digits of 8 x 8. Of each seed: accuracy under the best assignment of clusters
to labels, normalised mutual information and adjusted Rand index of VaDE, of the mixture of codes
that it starts from, of k-means on pixels, and of a full-covariance mixture on 20 principal
components (scikit-learn's, ten starts each). Labels serve for nothing but the last comparison;
settings were chosen on seeds from 100 on.
"""

from __future__ import annotations

import argparse
import time
import warnings
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

from case_studies.images import load
from inference import EM, SVI, InferenceWarning, Pretrained, fit
from inference.row_evaluation import clustering
from ppl_models import VaDE
from ppl_models.corruptions import Jitter
from ppl_models.likelihoods import Gaussian

EPOCH = 14  # steps, in minibatches of 128


def model(seed: int, jitter: Jitter, latent: int) -> VaDE:
    """Fresh weights."""
    torch.manual_seed(seed)
    return VaDE(
        10,
        latent,
        512,
        Gaussian(0.15),
        shape=(8, 8),
        covariance="full",
        corruption=jitter,
    )


def vade(
    x: np.ndarray, seed: int, jitter: Jitter, latent: int, epochs: tuple[int, int], restarts: int
) -> np.ndarray:
    """The cluster of each image."""
    last = SVI(batch_size=128, steps=EPOCH * epochs[1], plateau=False, rows=2, draws=4)
    engine = Pretrained(
        last, steps=EPOCH * epochs[0], em=EM(restarts=restarts, tol=1e-4, objective="likelihood")
    )
    found = fit(model(seed, jitter, latent), x, engine, seed=seed)
    trained: Any = found.model
    return trained.labels(trained.prepare(x)).numpy()


def peers(x: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """scikit-learn's clusters."""
    rows = x.reshape(len(x), -1)
    codes = PCA(20, random_state=seed).fit_transform(rows)
    return {
        "k-means": KMeans(10, n_init=10, random_state=seed).fit_predict(rows),
        "mixture on 20 components": GaussianMixture(10, n_init=10, random_state=seed).fit_predict(
            codes
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--turn", type=float, default=0.2)
    parser.add_argument("--latent", type=int, default=20)
    parser.add_argument("--epochs", type=int, nargs=2, default=(200, 100))
    parser.add_argument("--restarts", type=int, default=30)
    parser.add_argument("--alone", action="store_true", help="without the peers")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", InferenceWarning)
    x, y = load().whole
    jitter = Jitter(chosen.turn, chosen.turn, chosen.turn / 2)
    lines = []
    for seed in chosen.seeds:
        begin = time.perf_counter()
        found = {
            "VaDE": vade(x, seed, jitter, chosen.latent, tuple(chosen.epochs), chosen.restarts)
        }
        seconds = time.perf_counter() - begin
        if not chosen.alone:
            found |= peers(x, seed)
        lines += [{"seed": seed, "by": name} | clustering(c, y) for name, c in found.items()]
        told = "  ".join(f"{line['by']} {line['accuracy']:.3f}" for line in lines[-len(found) :])
        print(f"seed {seed}: {told}  ({seconds:.0f} s)", flush=True)
    table = pd.DataFrame(lines).drop(columns="seed").groupby("by", sort=False)
    print(table.agg(["mean", "std", "min"]).round(3).to_string())


if __name__ == "__main__":
    main()
