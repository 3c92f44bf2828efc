"""Irises without their labels: a Gaussian mixture by every engine, and how many components.

The 150 flowers of Fisher (1936), three species of 50: four lengths in cm.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
from sklearn.datasets import load_iris

from case_studies.command import FAILED, chosen, plain_errors, writable
from case_studies.study import Study
from inference import CAVI, EM, MH, NUTS, SVI, Gibbs, arviz_bridge, compare
from inference.storage import whole
from ppl_models import GaussianMixture

ENGINES = "em,cavi,svi,mh,nuts,gibbs"
RESTARTS = 20  # of EM and CAVI: mixtures have many modes


def flowers() -> pd.DataFrame:
    """Lengths and widths of sepals and petals in cm, (150, 4)."""
    names = ["sepal length", "sepal width", "petal length", "petal width"]
    data: Any = load_iris()
    return pd.DataFrame(data.data, columns=names)


def choice(largest: int, covariance: Any, gibbs: Gibbs, seed: int) -> pd.DataFrame:
    """By number of components: what EM, mean field and Gibbs have to say for it.

    ``elbo`` bounds the log evidence from below, with log K! for the other labellings, which the
    approximation of one leaves out; ``loo`` is the leave-one-out log predictive density, with its
    standard error and the number of flowers for which it cannot be trusted (``bad_k``). Where EM
    tells of a component that has collapsed, its likelihood and with it ``bic`` mean nothing.
    """
    x = flowers()
    rows = {}
    for k in range(1, largest + 1):
        model = GaussianMixture(k, covariance)
        engines = {
            "em": EM(restarts=RESTARTS, objective="likelihood"),
            "cavi": CAVI(restarts=RESTARTS, draws=100),
            "gibbs": gibbs,
        }
        fits = compare(model, x, engines, seeds=(seed,)).fits
        best = fits["em"].posterior.attributes["objective_value"]
        sites = ("weights", "mean", "covariance")
        free = {name: fits["em"].posterior.draws[name].numel() for name in sites} | {"sum": -1}
        if covariance in ("full", "tied"):  # a symmetric matrix counts its lower triangle
            d = x.shape[1]
            free["covariance"] = free["covariance"] // d**2 * d * (d + 1) // 2
        elpd, error, bad = arviz_bridge.loo(fits["gibbs"].to_arviz(log_likelihood=True), "x")
        rows[k] = {
            "log_likelihood": best,
            "bic": sum(free.values()) * math.log(len(x)) - 2 * best,
            "elbo": fits["cavi"].posterior.attributes["elbo"] + math.lgamma(k + 1),
            "loo": elpd,
            "loo_se": error,
            "bad_k": bad,
            "em_status": fits["em"].status,
            "gibbs_status": fits["gibbs"].status,
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("components")


def study(
    components: int = 2,
    covariance: Any = "full",
    *,
    chains: int = 4,
    draws: int = 200,
    warmup: int = 200,
) -> Study:
    """A mixture of so many components for the irises, with its engines."""
    common: dict[str, Any] = {"chains": chains, "warmup": warmup, "draws": draws}
    engines = {
        "em": lambda: EM(restarts=RESTARTS, objective="likelihood"),
        "cavi": lambda: CAVI(restarts=RESTARTS, draws=draws),
        "svi": lambda: SVI(draws=draws, tier="traced"),
        "mh": lambda: MH(**common, thin=20, tier="traced"),
        "nuts": lambda: NUTS(**common, tier="traced"),
        "gibbs": lambda: Gibbs(**common),
    }
    weights = [f"weights[{k}]" for k in range(components)]
    lengths = [f"mean[{k}, petal length]" for k in range(components)]
    model = GaussianMixture(components, covariance)
    return Study(model, flowers(), engines, ENGINES, shown=[*weights, *lengths])


def main(
    engines: Annotated[str, typer.Option(help="em, cavi, svi, mh, nuts, gibbs")] = ENGINES,
    components: Annotated[int, typer.Option(min=1, help="K of the comparison")] = 2,
    largest: Annotated[int, typer.Option(min=0, help="K up to which to choose; 0: none")] = 5,
    covariance: Annotated[str, typer.Option(help="full, diagonal, spherical or tied")] = "full",
    chains: Annotated[int, typer.Option(min=1)] = 4,
    draws: Annotated[int, typer.Option(min=4)] = 200,
    warmup: Annotated[int, typer.Option(min=0)] = 200,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    out: Annotated[Path | None, typer.Option(help="folder for tables, NetCDF and report")] = None,
) -> None:
    """Fit the irises by several engines, then compare numbers of components."""
    common: dict[str, Any] = {"chains": chains, "warmup": warmup, "draws": draws}
    with plain_errors():
        given = study(components, covariance, chains=chains, draws=draws, warmup=warmup)
        selected, folder = chosen(engines, given.engines), writable(out)
        comparison = compare(given.models, given.data, selected, seeds=(seed,))
        comparison.show(given.shown)
        if folder is not None:
            comparison.save(folder)
        if largest:
            table = choice(largest, covariance, Gibbs(**common), seed)
            print(table.to_string(float_format=lambda value: f"{value:.4f}", max_colwidth=40))
            if folder is not None:
                with whole(folder / "components.csv") as path:
                    table.to_csv(path)
        if folder is not None:
            print(f"written to {folder}: comparison.*, components.csv, report.html, *.nc")
        if comparison.failures:
            raise typer.Exit(FAILED)


if __name__ == "__main__":
    typer.run(main)
