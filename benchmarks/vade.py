"""Digits clustered without labels: VaDE seed by seed, beside k-means and a Gaussian mixture.

    python -m benchmarks.vade [--seeds 0 1 2 3 4 5 6 7 8 9]

scikit-learn's 1,797 digits of 8 x 8, by the recipe of ``case_studies.vade_digits``. Of each seed:
accuracy under the best assignment of clusters to labels, normalised mutual information and adjusted
Rand index of VaDE, of k-means on pixels, and of a full-covariance mixture on 20 principal
components (scikit-learn's, ten starts each). Labels serve for nothing but the last comparison;
settings were chosen on seeds from 100 on.
"""

from __future__ import annotations

import argparse
import time
import warnings

import pandas as pd
import torch

from case_studies.images import load
from case_studies.vade_digits import Recipe, engine, judged, labels, model, peers
from inference import InferenceWarning, fit


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--alone", action="store_true", help="without the peers")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", InferenceWarning)
    x, y = load().whole
    recipe, tables = Recipe(), []
    for seed in chosen.seeds:
        begin = time.perf_counter()
        result = fit(model(recipe, 10, x.shape[1:], seed), x, engine(recipe, len(x)), seed=seed)
        found, seconds = {"VaDE": labels(result, x)}, time.perf_counter() - begin
        if not chosen.alone:
            found |= peers(x, 10, seed)
        tables.append(judged(found, y))
        told = "  ".join(f"{by} {value:.3f}" for by, value in tables[-1]["accuracy"].items())
        print(f"seed {seed}: {told}  ({seconds:.0f} s)", flush=True)
    by = pd.concat(tables).drop(columns="clusters").groupby(level=0, sort=False)
    print(by.agg(["mean", "std", "min"]).round(3).to_string())


if __name__ == "__main__":
    main()
