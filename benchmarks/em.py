"""EM for mixtures of Gaussians beside other libraries: ``python -m benchmarks.em``.

This suite, scikit-learn in the same process and pomegranate in one of the peers' interpreter take
turns, so that what else the machine does falls on all; medians of the ratios of neighbouring runs.
``per iteration`` is the difference between runs of two lengths, divided by that of the lengths,
which leaves out everything that happens once. pomegranate has float64 as the others, and its own
default, float32.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
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


Setting = dict[str, Callable[[], float]]


@dataclass(frozen=True)
class Pomegranate:
    """In a process of its own for each measurement, which is given the rows by a file."""

    python: str
    folder: Path
    threads: int

    def per_iteration(
        self, x: np.ndarray, kind: str, k: int, few: int, many: int, restarts: int
    ) -> float:
        path = self.folder / "rows.npy"
        np.save(path, x)
        numbers = [str(n) for n in (k, few, many, restarts, self.threads)]
        command = [self.python, "-m", "benchmarks.em_pomegranate", str(path), kind, *numbers]
        return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)

    @classmethod
    def found(cls, python: str, folder: Path, threads: int) -> Pomegranate | None:
        """None, with a line that says so, where it is not installed."""
        test = [python, "-c", "import pomegranate"]
        if subprocess.run(test, capture_output=True, check=False).returncode:
            typer.echo(f"pomegranate: {python} cannot import it; see benchmarks/README.md")
            return None
        return cls(python, folder, threads)


def settings(data: Path, pomegranate: Pomegranate | None) -> dict[str, Setting]:
    """By name, what measures the seconds of each contender; this suite first."""
    large, middle = rows(200_000, 16, 16), rows(5_000, 4, 5)
    plain = {"init_params": "random_from_data"}
    found: dict[str, Setting] = {
        "200,000 x 16, K=16, per iteration": {
            "suite": lambda: per_iteration(lambda n: ours(large, 16, n, 1), 4, 12),
            "sklearn": lambda: per_iteration(lambda n: theirs(large, 16, n, 1, **plain), 2, 5),
        },
        "5,000 x 4, K=5, ten restarts, per iteration": {
            "suite": lambda: per_iteration(lambda n: ours(middle, 5, n, 10), 8, 48),
            "sklearn": lambda: per_iteration(lambda n: theirs(middle, 5, n, 10, **plain), 5, 25),
        },
    }
    if pomegranate is not None:
        for name, x, k, few, many, restarts in (
            ("200,000 x 16, K=16, per iteration", large, 16, 2, 5, 1),
            ("5,000 x 4, K=5, ten restarts, per iteration", middle, 5, 5, 25, 10),
        ):
            for kind in ("float64", "float32"):
                found[name][f"pomegranate_{kind}"] = partial(
                    pomegranate.per_iteration, x, kind, k, few, many, restarts
                )
    if data.exists():
        few = pd.read_csv(data, usecols=["eruptions", "waiting"]).to_numpy(float)
        found["Old Faithful, K=2, 20 restarts, in all"] = {
            "suite": lambda: timed(lambda: ours(few, 2, 10_000, 20, 1e-7)),
            "sklearn": lambda: timed(lambda: theirs(few, 2, 10_000, 20, 1e-9, reg_covar=0.0)),
        }
        typer.echo(
            f"Old Faithful, log likelihood: {ours(few, 2, 10_000, 20, 1e-7):.5f}, scikit-learn "
            f"{theirs(few, 2, 10_000, 20, 1e-9, reg_covar=0.0):.5f}"
        )
    return found


def main(
    repeats: int = 5,
    threads: Annotated[str, typer.Option(help="of all")] = "1,2",
    peers_python: Annotated[str, typer.Option(help="of the peers' environment")] = sys.executable,
    faithful: Annotated[Path, typer.Option(help="CSV with eruptions and waiting")] = Path(
        "../shared/data/gmm/faithful.csv"
    ),
    out: Annotated[Path, typer.Option(help="folder for the table")] = Path("build/benchmarks"),
) -> None:
    """Measure in turns, print medians of seconds and of their ratios, and save them as CSV."""
    warnings.simplefilter("ignore")  # runs of a fixed length do not settle
    table = []
    with tempfile.TemporaryDirectory() as folder:
        for count in map(int, threads.split(",")):
            torch.set_num_threads(count)
            peer = Pomegranate.found(peers_python, Path(folder), count)
            with threadpool_limits(count):
                for name, setting in settings(faithful, peer).items():
                    rounds = pd.DataFrame(
                        [{who: call() for who, call in setting.items()} for _ in range(repeats)]
                    )
                    ratios = rounds.div(rounds["suite"], axis=0).drop(columns="suite")
                    row = {"setting": name, "threads": count}
                    row |= rounds.median().add_suffix("_s").to_dict()
                    table.append(row | ratios.median().add_prefix("x_").to_dict())
    found = pd.DataFrame(table)
    out.mkdir(parents=True, exist_ok=True)
    found.to_csv(out / "em.csv", index=False)
    typer.echo(found.to_string(index=False, float_format=lambda v: f"{v:.4g}", na_rep=""))


if __name__ == "__main__":
    typer.run(main)
