"""Posterior means and standard deviations to compare with.

Two are exact, by quadrature. The others are those of one long run of NumPyro each, kept with their
Monte-Carlo errors and the command that made them in ``references.json``:

    python -m benchmarks.references --peers-python DIR/bin/python
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer

from benchmarks.judge import errors, reliability
from benchmarks.measure import Job
from benchmarks.posteriors import POSTERIORS
from benchmarks.processes import Contender, run_fresh

_FILE = Path(__file__).with_name("references.json")


class Moments(NamedTuple):
    """Of one site, with Monte-Carlo errors, which are 0 where the moments are exact."""

    mean: np.ndarray
    sd: np.ndarray
    mean_error: np.ndarray | float = 0.0
    sd_error: np.ndarray | float = 0.0


def reference(posterior: str) -> dict[str, Moments]:
    """The moments of a posterior by site."""
    if posterior in _EXACT:
        return _EXACT[posterior]()
    sites = json.loads(_FILE.read_text())[posterior]["sites"]
    return {
        name: Moments(**{k: np.array(v) for k, v in moments.items()})
        for name, moments in sites.items()
    }


def _weighted(weight: np.ndarray, mean: np.ndarray, square: np.ndarray) -> Moments:
    """By first and second moments at the points of a quadrature, the last axes' weights given."""
    weight = weight / weight.sum()
    first = np.tensordot(weight, mean, weight.ndim)
    second = np.tensordot(weight, square, weight.ndim)
    return Moments(first, np.sqrt(second - first**2))


def _oring() -> dict[str, Moments]:
    """By quadrature on a grid that holds all but 1e-10 of the mass."""
    x, y = POSTERIORS["oring"].data().values()
    alpha, beta = np.meshgrid(np.linspace(-9, 5, 401), np.linspace(-10, 5, 401), indexing="ij")
    logits = alpha[..., None] + beta[..., None] * x
    density = (y * logits - np.logaddexp(0, logits)).sum(-1) - (alpha**2 + beta**2) / 200
    weight = np.exp(density - density.max())
    return {
        "alpha": _weighted(weight, alpha, alpha**2),
        "beta": _weighted(weight, beta, beta**2),
    }


def _eight_schools() -> dict[str, Moments]:
    """Exact given tau, where all else is Gaussian; then quadrature over log tau."""
    y, error = POSTERIORS["eight_schools"].data().values()
    tau = np.exp(np.linspace(-15, 9, 20_001))  # (T,)
    variance = error**2 + tau[:, None] ** 2  # (T, 8)
    precision = 1 / 25 + (1 / variance).sum(-1)
    mu = (y / variance).sum(-1) / precision
    density = -0.5 * (np.log(variance).sum(-1) + np.log(precision))
    density += -0.5 * ((y**2 / variance).sum(-1) - precision * mu**2)
    density += np.log(tau) - np.log1p(tau**2 / 25)  # Jacobian, and the prior
    weight = np.exp(density - density.max())
    slope = tau[:, None] / variance
    theta = slope * (y - mu[:, None])
    spread = error**2 / variance + slope**2 / precision[:, None]
    return {
        "mu": _weighted(weight, mu, mu**2 + 1 / precision),
        "tau": _weighted(weight, tau, tau**2),
        "theta": _weighted(weight, theta, theta**2 + spread),
    }


_EXACT = {"oring": _oring, "eight_schools": _eight_schools}


def main(
    peers_python: Annotated[str, typer.Option(help="of the environment with NumPyro")] = (
        sys.executable
    ),
    posteriors: Annotated[str, typer.Option(help="without a closed form")] = (
        "mixture,hierarchical,logistic"
    ),
    chains: int = 8,
    warmup: int = 2_000,
    draws: int = 20_000,
) -> None:
    """Run NumPyro long, and write what it finds into the file."""
    row = Contender("numpyro-jit", "numpyro", "jit")
    for name in posteriors.split(","):
        job = Job(name, row.module, row.variant, row.precision, chains, warmup, draws, seed=1)
        measured, values = run_fresh(row, job, peers_python, None)
        told = reliability(values)
        typer.echo(f"{name}: {measured['total_s']:.0f} s, {told}")
        kept = json.loads(_FILE.read_text()) if _FILE.exists() else {}
        kept[name] = {
            "command": "python -m benchmarks.references --peers-python DIR/bin/python "
            f"--posteriors {name} --chains {chains} --warmup {warmup} --draws {draws}",
            **told,
            "sites": {site: _moments(value) for site, value in values.items()},
        }
        _FILE.write_text(json.dumps(kept, indent=1) + "\n")


def _moments(value: np.ndarray) -> dict[str, Any]:
    """Of one site's draws (chain, draw, *event), for the file."""
    mean_error, sd_error = errors({"": value})[""]
    found = Moments(
        value.mean((0, 1)),
        value.reshape(-1, *value.shape[2:]).std(0, ddof=1),
        mean_error,
        sd_error,
    )
    return {name: np.asarray(part).tolist() for name, part in found._asdict().items()}


if __name__ == "__main__":
    typer.run(main)
