"""Steps of stochastic variational inference beside Pyro's own: ``python -m benchmarks.svi``.

Mean field by Adam, the same number of particles, float64, on posteriors of ``benchmarks.samplers``.
Every measurement is a process of its own with an empty compiler's cache, and contenders take turns.
``us_per_step`` leaves out what happens once: for Pyro it is that of the steps after the first, for
this suite the difference between two long runs of ``fit``, over that of their steps.
``first_s`` is what ``--steps`` took in all, compiling and checks of the answer counted.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import pyro
import torch
import typer
from pyro import infer
from pyro.infer.autoguide import AutoNormal

from benchmarks.posteriors import POSTERIORS
from inference import SVI, fit

_SECONDS = 2.0  # of steps of this suite's shorter long run, at least
_GOALS = {("pyro", "oring"): 50.0, ("pyro-jit", "mixture"): 30.0}


@dataclass(frozen=True)
class Case:
    """What one process is asked to do."""

    contender: str
    posterior: str
    steps: int
    particles: int
    rate: float
    threads: int
    seed: int


def suite(case: Case, tier: Any) -> dict[str, float]:
    posterior = POSTERIORS[case.posterior]
    program, data = posterior.write(pyro, pyro.distributions), posterior.data()

    def run(steps: int) -> tuple[float, float]:
        engine = SVI(
            guide="mean-field", steps=steps, particles=case.particles, learning_rate=case.rate,
            optimiser=torch.optim.Adam, plateau=False, draws=1_000, tier=tier,
        )  # fmt: skip
        begin = time.perf_counter()
        result = fit(program, data, engine, seed=case.seed, device="cpu", progress=False)
        return time.perf_counter() - begin, float(result.posterior.attributes["elbo"])

    first, elbo = run(case.steps)
    steps, seconds = [case.steps], [run(case.steps)[0]]
    while seconds[-1] - seconds[0] < _SECONDS:
        steps.append(4 * steps[-1])
        seconds.append(run(steps[-1])[0])
    steps.append(2 * steps[-1])  # both long: "auto" may compile for these and not for the few
    seconds.append(run(steps[-1])[0])
    each = (seconds[-1] - seconds[-2]) / (steps[-1] - steps[-2])
    return {"us_per_step": 1e6 * each, "first_s": first, "elbo": elbo}


def pyros(case: Case, loss: type[Any]) -> dict[str, float]:
    """Pyro's own loop over ``SVI.step``, its guide ``AutoNormal``."""
    torch.set_default_dtype(torch.float64)
    pyro.set_rng_seed(case.seed)
    posterior = POSTERIORS[case.posterior]
    program = posterior.write(pyro, pyro.distributions)
    data = {name: torch.as_tensor(value) for name, value in posterior.data().items()}
    begin = time.perf_counter()
    guide = AutoNormal(program)
    jit = {"ignore_jit_warnings": True} if loss is infer.JitTrace_ELBO else {}
    adam = pyro.optim.Adam({"lr": case.rate})
    svi = infer.SVI(program, guide, adam, loss=loss(num_particles=case.particles, **jit))
    svi.step(**data)
    second = time.perf_counter()
    for _ in range(case.steps - 1):
        svi.step(**data)
    end = time.perf_counter()
    with torch.no_grad():
        elbo = -infer.Trace_ELBO(num_particles=1_000).loss(program, guide, **data)
    each = (end - second) / (case.steps - 1)
    return {"us_per_step": 1e6 * each, "first_s": end - begin, "elbo": elbo}


_CONTENDERS: dict[str, Callable[[Case], dict[str, float]]] = {
    "suite": lambda case: suite(case, "auto"),
    "suite, traced": lambda case: suite(case, "traced"),
    "suite, compiled": lambda case: suite(case, "compiled"),
    "pyro": lambda case: pyros(case, infer.Trace_ELBO),
    "pyro-jit": lambda case: pyros(case, infer.JitTrace_ELBO),
}


def run(case: Case) -> dict[str, Any]:
    """The case in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.svi", "--one", json.dumps(asdict(case))]
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": folder, "PPL_SUITE_CACHE": folder}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        typer.echo(f"{case}: failed\n{done.stderr[-2000:]}", err=True)
        return asdict(case)
    found = json.loads(done.stdout.splitlines()[-1])
    typer.echo(f"{case.contender}, {case.posterior}, seed {case.seed}: {found}")
    return asdict(case) | found


def verdicts(runs: pd.DataFrame) -> pd.DataFrame:
    """Medians over repeats of Pyro's seconds over the suite's, steps alone and all counted."""
    rows = []
    by = runs.set_index(["contender", "posterior", "seed"])[["us_per_step", "first_s"]]
    by = by.sort_index()
    for peer in ("pyro", "pyro-jit"):
        for posterior in runs["posterior"].unique():
            try:
                ratio = (by.loc[peer, posterior] / by.loc["suite", posterior]).median()
            except KeyError:
                continue  # one of them is not among the contenders
            goal = _GOALS.get((peer, posterior), math.nan)
            counted = float(ratio["first_s"])
            rows.append(
                {
                    "peer": peer,
                    "posterior": posterior,
                    "steps_alone": ratio["us_per_step"],
                    "goal": goal,
                    "verdict": _verdict(float(ratio["us_per_step"]), goal),
                    "everything": counted,
                    "goal_everything": 1.0 if peer == "pyro" else math.nan,
                    "verdict_everything": _verdict(counted, 1.0) if peer == "pyro" else "",
                }
            )
    return pd.DataFrame(rows)


def _verdict(ratio: float, goal: float) -> str:
    if math.isnan(goal):
        return ""
    return "met" if ratio >= goal else f"missed by {goal / ratio:.3g} x"


def main(
    posteriors: Annotated[str, typer.Option(help=", ".join(POSTERIORS))] = "oring,mixture",
    contenders: Annotated[str, typer.Option(help="separated by ;")] = "suite;pyro;pyro-jit",
    steps: Annotated[int, typer.Option(min=2)] = 2_000,
    particles: int = 1,
    rate: float = 0.02,
    repeats: int = 5,
    threads: Annotated[int, typer.Option(help="of torch, for all")] = 1,
    out: Annotated[Path, typer.Option(help="folder for the tables")] = Path("build/benchmarks"),
    one: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure, print medians and ratios to Pyro's, and save these and every run as CSV."""
    if one is not None:
        warnings.simplefilter("ignore")
        case = Case(**json.loads(one))
        torch.set_num_threads(case.threads)
        print(json.dumps(_CONTENDERS[case.contender](case)))
        return
    names = contenders.split(";")
    for name in names:
        if name not in _CONTENDERS:
            raise typer.BadParameter(f"{name}: choose from {'; '.join(_CONTENDERS)}")
    runs = pd.DataFrame(
        [
            run(Case(name, posterior, steps, particles, rate, threads, seed))
            for posterior in posteriors.split(",")
            for seed in range(repeats)
            for name in names
        ]
    )
    groups = runs.groupby(["posterior", "contender"], sort=False)[
        ["us_per_step", "first_s", "elbo"]
    ]
    table = groups.median()
    spread = groups.max() - groups.min()
    table = table.join(spread.add_prefix("spread_")).reset_index()
    out.mkdir(parents=True, exist_ok=True)
    runs.to_csv(out / "svi_runs.csv", index=False)
    table.to_csv(out / "svi.csv", index=False)
    for frame in (table, verdicts(runs)):
        typer.echo(frame.to_string(index=False, float_format=lambda v: f"{v:.5g}") + "\n")


if __name__ == "__main__":
    typer.run(main)
