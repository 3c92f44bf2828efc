"""EM for mixtures of Gaussians beside scikit-learn's: ``python -m benchmarks.em``.

Both run in one process and take turns, so that what else the machine does falls on both; medians of
the ratios of neighbouring runs. ``per iteration`` is the difference between runs of two lengths,
divided by that of the lengths, which leaves out everything that happens once.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
from sklearn.mixture import GaussianMixture as Peer
from threadpoolctl import threadpool_limits

from inference import EM, fit
from ppl_models import GaussianMixture

_NEVER = 1e-300  # a tolerance that no run of these lengths reaches


def rows(n: int, d: int, k: int) -> np.ndarray:
    """Overlapping clusters of different shapes."""
    rng = np.random.default_rng(0)
    mean = 2 * rng.normal(size=(k, d))
    root = rng.normal(size=(k, d, d)) / np.sqrt(d) + 0.5 * np.eye(d)
    z = rng.integers(k, size=n)
    return np.einsum("nij,nj->ni", root[z], rng.normal(size=(n, d))) + mean[z]


def ours(x: np.ndarray, k: int, steps: int, restarts: int, tol: float = _NEVER) -> float:
    """The log likelihood at the end of the best restart."""
    engine = EM(restarts=restarts, max_steps=steps, tol=tol, objective="likelihood")
    fitted = fit(GaussianMixture(k), x, engine, progress=False)
    return fitted.posterior.attributes["objective_value"]


def theirs(
    x: np.ndarray, k: int, steps: int, restarts: int, tol: float = 0.0, **more: Any
) -> float:
    peer = Peer(k, max_iter=steps, n_init=restarts, tol=tol, random_state=0, **more).fit(x)
    return float(peer.score(x)) * len(x)


def timed(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def per_iteration(run: Callable[[int], Any], few: int, many: int) -> float:
    return (timed(lambda: run(many)) - timed(lambda: run(few))) / (many - few)


def settings(data: Path) -> dict[str, tuple[Callable[[], float], Callable[[], float]]]:
    """By name, what measures the seconds of this suite and of scikit-learn."""
    large, middle = rows(200_000, 16, 16), rows(5_000, 4, 5)
    plain = {"init_params": "random_from_data"}
    found: dict[str, tuple[Callable[[], float], Callable[[], float]]] = {
        "200,000 x 16, K=16, per iteration": (
            lambda: per_iteration(lambda n: ours(large, 16, n, 1), 4, 12),
            lambda: per_iteration(lambda n: theirs(large, 16, n, 1, **plain), 2, 5),
        ),
        "5,000 x 4, K=5, ten restarts, per iteration": (
            lambda: per_iteration(lambda n: ours(middle, 5, n, 10), 8, 48),
            lambda: per_iteration(lambda n: theirs(middle, 5, n, 10, **plain), 5, 25),
        ),
    }
    if data.exists():
        few = pd.read_csv(data, usecols=["eruptions", "waiting"]).to_numpy(float)
        found["Old Faithful, K=2, 20 restarts, in all"] = (
            lambda: timed(lambda: ours(few, 2, 10_000, 20, 1e-7)),
            lambda: timed(lambda: theirs(few, 2, 10_000, 20, 1e-9, reg_covar=0.0)),
        )
        typer.echo(
            f"Old Faithful, log likelihood: {ours(few, 2, 10_000, 20, 1e-7):.5f}, scikit-learn "
            f"{theirs(few, 2, 10_000, 20, 1e-9, reg_covar=0.0):.5f}"
        )
    return found


def main(
    repeats: int = 5,
    threads: Annotated[str, typer.Option(help="of both")] = "1,2",
    faithful: Annotated[Path, typer.Option(help="CSV with eruptions and waiting")] = Path(
        "../shared/data/gmm/faithful.csv"
    ),
) -> None:
    """Measure in turns and print medians of seconds and of their ratios."""
    warnings.simplefilter("ignore")  # runs of a fixed length do not settle
    table = []
    for count in map(int, threads.split(",")):
        torch.set_num_threads(count)
        with threadpool_limits(count):
            for name, (own, peer) in settings(faithful).items():
                pairs = [(own(), peer()) for _ in range(repeats)]
                table.append(
                    {
                        "setting": name,
                        "threads": count,
                        "suite_s": median(a for a, _ in pairs),
                        "sklearn_s": median(b for _, b in pairs),
                        "ratio": median(b / a for a, b in pairs),
                    }
                )
    typer.echo(pd.DataFrame(table).to_string(index=False, float_format=lambda v: f"{v:.4g}"))


if __name__ == "__main__":
    typer.run(main)
