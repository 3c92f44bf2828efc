"""Samplers of many chains beside NUTS and HMC: effective draws per gradient and per second.

    python -m benchmarks.many_chains --posteriors oring,eight_schools,mixture --chains 64,1024

Effective draws are the smaller of those for the mean and for the square about it, of the worst
coordinate of the unconstrained space. Distances of means and of sds from ``benchmarks.references``
are in Monte-Carlo standard errors of both, the largest of all scalars. A first, short fit, which
compiles, is not counted.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
import pyro
import pyro.distributions as dist
import typer

from benchmarks.judge import agreement
from benchmarks.posteriors import POSTERIORS
from benchmarks.references import reference
from inference import HMC, MAMS, NUTS, ChEES, InferenceWarning, Sampler, fit, mixing

ENGINES: dict[str, type[Any]] = {"NUTS": NUTS, "HMC": HMC, "ChEES": ChEES, "MAMS": MAMS}


def effective(x: np.ndarray) -> float:
    """The fewest effective draws of the coordinates (chain, draw, D) and of their squares."""
    centred = x - x.mean((0, 1))
    return float(min(mixing.ess_mean(part).min() for part in (centred, centred**2)))


def measure(name: str, engine: Sampler) -> str:
    """A row of the table."""
    posterior = POSTERIORS[name]
    program, data = posterior.write(pyro, dist), posterior.data()
    fit(program, data, replace(engine, warmup=20, draws=4), progress=False)
    found = fit(program, data, engine, progress=False)
    assert found.posterior.unconstrained is not None
    draws = {site: value.numpy() for site, value in found.posterior.draws.items()}
    off = agreement(draws, reference(name))
    size, stats = effective(found.posterior.unconstrained.numpy()), found.posterior.stats
    gradients = float(stats["n_steps"].double().sum())
    columns = [
        f"{name:14s} {type(engine).__name__:6s} {engine.chains:6d}",
        f"{gradients / stats['n_steps'].numel():9.1f}",
        f"{size / gradients:12.4f}",
        f"{found.seconds['warmup']:9.2f} {found.seconds['sampling']:9.2f}",
        f"{size / found.seconds['sampling']:11.0f}",
        f"{size / (found.seconds['sampling'] + found.seconds['warmup']):11.0f}",
        f"{float(stats['acceptance_rate'].mean()):6.2f}",
        f"{float(stats['diverging'].double().mean()):8.4f}",
        f"{off['mean_mcse']:9.1f} {off['sd_mcse']:7.1f}",
    ]
    return " ".join(columns)


def main(
    posteriors: Annotated[
        str, typer.Option(help="of benchmarks.posteriors")
    ] = "oring,eight_schools",
    engines: Annotated[str, typer.Option()] = ",".join(ENGINES),
    chains: Annotated[str, typer.Option()] = "64,1024",
    warmup: Annotated[int, typer.Option(min=100)] = 400,
    draws: Annotated[int, typer.Option(help="of all chains", min=4096)] = 64_000,
    tier: Annotated[str, typer.Option()] = "auto",
) -> None:
    """Measure engines on posteriors."""
    warnings.simplefilter("ignore", InferenceWarning)
    print(
        "posterior      engine chains leapfrogs ess/gradient   warm-up  sampling ess/second  "
        "with warm-up accept  diverge mean_mcse sd_mcse"
    )
    for name in posteriors.split(","):
        for number in map(int, chains.split(",")):
            for engine in engines.split(","):
                settings = {"chains": number, "warmup": warmup, "draws": draws // number}
                print(measure(name, ENGINES[engine](**settings, tier=tier)), flush=True)


if __name__ == "__main__":
    typer.run(main)
