"""This suite's NUTS beside that of other libraries: ``python -m benchmarks.samplers``.

Every measurement runs in a fresh process, and the contenders take turns, so that what else the
machine does falls on all of them.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer

from benchmarks.measure import Job
from benchmarks.posteriors import POSTERIORS

_KEYS = ["posterior", "sampler", "tier", "cache", "chains"]
_MEASURES = ["min_ess", "max_rhat", "total_s", "sampling_s", "ess_per_s", "ess_per_s_sampling",
             "gradients_per_s", "error_mcse"]  # fmt: skip
_GOALS = {"ess_per_s": 4.0, "ess_per_s_sampling": 30.0}  # times Pyro, at four chains
_GOAL_MANY = 1000.0  # ESS/s counting everything, at 64 chains


@dataclass(frozen=True)
class Contender:
    """A row of the table; ``cache`` says whether compiled code of an earlier run is at hand."""

    sampler: str
    tier: str
    cache: str = "-"


_SUITE = [
    Contender("suite", "auto", "cold"),
    Contender("suite", "auto", "warm"),
    Contender("suite", "traced"),
    Contender("suite", "compiled", "cold"),
    Contender("suite", "compiled", "warm"),
]
_PEERS = {
    "pyro": Contender("pyro", "eager"),
    "pyro-jit": Contender("pyro", "jit"),
    "numpyro": Contender("numpyro", "jit"),
}


def run_fresh(job: Job, cache: Path) -> dict[str, Any]:
    """The job in a process of its own, with Inductor's cache in the folder ``cache``."""
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(cache)}
    command = [sys.executable, "-m", "benchmarks.measure", json.dumps(asdict(job))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        typer.echo(f"{job}: failed\n{done.stderr[-2000:]}", err=True)
        return asdict(job)
    return json.loads(done.stdout.splitlines()[-1])


def contenders(peers: str) -> list[Contender]:
    """The suite's rows and those of the peers that are installed; says which are not."""
    rows = list(_SUITE)
    for name in peers.split(","):
        if name not in _PEERS:
            typer.echo(f"{name}: not available in this benchmark yet")
        elif importlib.util.find_spec(_PEERS[name].sampler) is None:
            typer.echo(f"{name}: not installed; pip install '.[peers]'")
        else:
            rows.append(_PEERS[name])
    return rows


def compare(rows: list[Contender], job: Job, pyro_chains: int, repeats: int) -> list[Any]:
    """All contenders on one posterior in turn, ``repeats`` times, each time with another seed."""
    results = []
    for seed in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            for row in rows:
                chains = pyro_chains if row.sampler == "pyro" else job.chains
                one = replace(job, sampler=row.sampler, tier=row.tier, chains=chains, seed=seed)
                # the cold run of a tier finds its folder empty, the warm one what that left there
                result = run_fresh(one, Path(folder) / row.tier) | {"cache": row.cache}
                results.append(result)
                typer.echo(f"{one}, cache {row.cache}: {result.get('total_s', np.nan):.2f} s")
    return results


def summarise(runs: pd.DataFrame) -> pd.DataFrame:
    """Medians over repeats, and ratios to Pyro's ESS/s on the same posterior."""
    groups = runs.groupby(_KEYS, sort=False)
    table = groups[_MEASURES].median()
    table["spread_s"] = groups["total_s"].max() - groups["total_s"].min()
    table = table.reset_index()
    pyro = table[(table["sampler"] == "pyro") & (table["tier"] == "eager")]
    for column in _GOALS:
        table[f"{column}_x_pyro"] = table[column] / table["posterior"].map(
            dict(zip(pyro["posterior"], pyro[column], strict=True))
        )
    return table


def verdicts(table: pd.DataFrame) -> list[str]:
    """How the suite's default, from a cold start, stands to its goals."""
    lines = []
    for row in table.query("sampler == 'suite' and tier == 'auto' and cache == 'cold'").to_dict(
        "records"
    ):
        many = row["chains"] >= 64
        goals = {"ess_per_s": _GOAL_MANY} if many else {f"{k}_x_pyro": v for k, v in _GOALS.items()}
        for column, goal in goals.items():
            if np.isnan(row[column]):
                continue  # Pyro did not run
            met = "met" if row[column] >= goal else "missed"
            where = f"{row['posterior']}, {row['chains']} chains, {column}"
            lines.append(f"{where}: {row[column]:.3g}, goal {goal:g}: {met}")
    return lines


def main(
    posteriors: Annotated[str, typer.Option(help=", ".join(POSTERIORS))] = "oring,eight_schools",
    peers: Annotated[str, typer.Option(help=", ".join(_PEERS))] = "pyro",
    chains: Annotated[
        str, typer.Option(help="numbers of chains; Pyro runs with the first")
    ] = "4,64",
    warmup: int = 500,
    draws: int = 500,
    repeats: int = 3,
    threads: Annotated[int, typer.Option(help="of torch, for every contender")] = 1,
    pyro_chains: Annotated[int, typer.Option(help="for the slow posteriors; else 4")] = 4,
    out: Annotated[Path, typer.Option(help="folder for the tables")] = Path("build/benchmarks"),
) -> None:
    """Measure, print the table of medians, and save it and every run as CSV."""
    rows = contenders(peers)
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:  # numba compiles once per installation
        run_fresh(Job("oring", "suite", "traced", 4, 20, 20, 0, threads), Path(folder))
    for name in posteriors.split(","):
        few = pyro_chains if POSTERIORS[name].slow else 4
        for i, count in enumerate(int(word) for word in chains.split(",")):
            # Pyro draws its chains in turn: with more of them its ESS/s would be the same
            entered = [row for row in rows if i == 0 or row.sampler != "pyro"]
            job = Job(name, "", "", count, warmup, draws, 0, threads)
            results += compare(entered, job, few, repeats)
    runs = pd.DataFrame(results)
    table = summarise(runs)
    out.mkdir(parents=True, exist_ok=True)
    runs.to_csv(out / "runs.csv", index=False)
    table.to_csv(out / "samplers.csv", index=False)
    typer.echo(table.to_string(index=False, float_format=lambda x: f"{x:.4g}"))
    typer.echo("\n".join(verdicts(table)))


if __name__ == "__main__":
    typer.run(main)
