"""This suite's NUTS beside that of other libraries: ``python -m benchmarks.samplers``.

Every measurement runs in a fresh process, and the contenders take turns, so that what else the
machine does falls on all of them.
"""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer

from benchmarks.goals import GOALS, SMALL, verdicts
from benchmarks.judge import agreement, reliability
from benchmarks.measure import Job
from benchmarks.posteriors import POSTERIORS
from benchmarks.processes import Contender, run_fresh
from benchmarks.references import reference

KEYS = ["posterior", "chains", "contender", "precision", "cache"]
_MEASURES = ["min_ess", "max_rhat", "mean_mcse", "sd_mcse", "import_s", "total_s", "run_s",
             "sampling_s", "ess_per_s", "ess_per_s_run", "ess_per_s_sampling",
             "gradients_per_s"]  # fmt: skip
_PEERS = {
    "pyro": Contender("pyro", "pyro", "eager"),
    "pyro-jit": Contender("pyro-jit", "pyro", "jit"),
    "numpyro": Contender("numpyro", "numpyro", "called", cache="cold"),
    "numpyro-jit": Contender("numpyro-jit", "numpyro", "jit", cache="cold"),
    "blackjax": Contender("blackjax", "blackjax", "jit", cache="cold"),
    "nutpie": Contender("nutpie", "nutpie", "numba", cache="cold"),
}
_SINGLE = ("numpyro", "blackjax")  # modules whose users get float32 unless they ask for more


def contenders(peers: str, tiers: str, python: str, *, single: bool) -> list[Contender]:
    """The rows asked for whose libraries are installed; says which are not."""
    rows = []
    for tier in filter(None, tiers.split(",")):
        name = "suite" if tier == "auto" else f"suite, {tier}"
        caches = ("cold", "warm") if tier in ("auto", "compiled") else ("-",)
        rows += [Contender(name, "suite", tier, cache=cache) for cache in caches]
    for name in filter(None, peers.split(",")):
        if name not in _PEERS:
            raise typer.BadParameter(f"{name}: choose from {', '.join(_PEERS)}")
        row = _PEERS[name]
        test = [python, "-c", f"import {row.module}"]
        if subprocess.run(test, capture_output=True, check=False).returncode:
            typer.echo(f"{name}: {python} cannot import it; see benchmarks/README.md", err=True)
            continue
        rows.append(row)
        if row.cache == "cold" and name in GOALS[-1].times:  # else no goal asks for it
            rows.append(replace(row, cache="warm"))
        if single and row.module in _SINGLE:
            rows.append(replace(row, precision="float32"))
    return rows


def run(row: Contender, job: Job, python: str, folder: Path) -> dict[str, Any]:
    """One measurement, judged; without figures where it failed."""
    cache = folder / f"{row.name}-{row.precision}"
    one = replace(job, contender=row.module, variant=row.variant, precision=row.precision)
    # what further calls alone can tell is the same with either cache; of draws alone once will do
    one = replace(one, again=0 if row.cache == "warm" else 1 + (job.seed == 0))
    found = asdict(one) | asdict(row) | {"contender": row.name} | dict.fromkeys(_MEASURES, np.nan)
    taken, draws = run_fresh(row, one, python, cache)
    if not taken:
        return found
    told = reliability(draws)
    ess = {
        f"ess_per_s{part}": told["min_ess"] / taken[name]
        for part, name in (("", "total_s"), ("_run", "run_s"), ("_sampling", "sampling_s"))
    }
    typer.echo(
        f"{row.name}, {row.precision}, {row.cache}, {job.posterior}, {one.chains} chains, seed "
        f"{job.seed}: {taken['total_s']:.2f} s, without compiling {taken['run_s']:.3f} s"
    )
    return found | taken | told | agreement(draws, reference(job.posterior)) | ess


def installed(threads: int | None, folder: Path) -> float:
    """Compile the suite's own numba functions, and tell the seconds that this takes."""
    row = Contender("suite", "suite", "traced")
    job = Job("oring", "suite", "traced", "float64", 4, 20, 20, 0, threads)
    run_fresh(row, job, sys.executable, folder)
    kept = run_fresh(row, job, sys.executable, folder)[0]
    anew = run_fresh(row, job, sys.executable, folder, NUMBA_CACHE_DIR=str(folder / "numba"))[0]
    return anew["total_s"] - kept["total_s"]


def summarise(runs: pd.DataFrame) -> pd.DataFrame:
    """Medians over repeats, and how far these lie apart."""
    groups = runs.groupby(KEYS, sort=False)
    table = groups[_MEASURES].median()
    table["rounds"] = groups["total_s"].count()
    table["spread_s"] = groups["total_s"].max() - groups["total_s"].min()
    speed = groups["ess_per_s_run"]
    table["spread_ess_per_s_run"] = speed.max() - speed.min()
    return table.reset_index()


def main(
    posteriors: Annotated[str, typer.Option(help=", ".join(POSTERIORS))] = ",".join(POSTERIORS),
    peers: Annotated[str, typer.Option(help=", ".join(_PEERS))] = "pyro,numpyro,numpyro-jit,"
    "blackjax,nutpie",
    peers_python: Annotated[str, typer.Option(help="of the peers' environment")] = sys.executable,
    tiers: Annotated[str, typer.Option(help="of the suite; empty for none of it")] = "auto",
    chains: Annotated[str, typer.Option(help="numbers of chains")] = "4",
    warmup: int = 500,
    draws: int = 500,
    repeats: int = 5,
    threads: Annotated[
        int | None, typer.Option(help="of torch in the suite; all as for the peers by default")
    ] = None,
    pyro_chains: Annotated[int, typer.Option(help="Pyro's, with the first of --chains")] = 1,
    pyro_draws: Annotated[
        int, typer.Option(help="Pyro's, and its warm-up, on the larger posteriors")
    ] = 250,
    pyro_repeats: Annotated[int, typer.Option(help="the rounds that Pyro takes part in")] = 5,
    single: Annotated[bool, typer.Option(help="also JAX's own precision, float32")] = False,
    minutes: Annotated[
        float, typer.Option(min=0, help="after which nothing new is begun")
    ] = math.inf,
    out: Annotated[Path, typer.Option(help="folder for the tables")] = Path("build/benchmarks"),
) -> None:
    """Measure, print medians and verdicts, and save these and every run as CSV."""
    rows = contenders(peers, tiers, peers_python, single=single)
    results: list[dict[str, Any]] = []
    if any(row.ours for row in rows):
        with tempfile.TemporaryDirectory() as folder:
            once = installed(threads, Path(folder))
        typer.echo(f"the suite's numba functions, once per installation: {once:.1f} s")
    begin = time.perf_counter()
    names, counts = posteriors.split(","), [int(word) for word in chains.split(",")]
    out.mkdir(parents=True, exist_ok=True)
    for seed, name, count in itertools.product(range(repeats), names, counts):
        if time.perf_counter() - begin > 60 * minutes:
            typer.echo(f"{minutes:g} minutes are over in round {seed + 1} of {repeats}, at {name}")
            break
        # Pyro draws its chains in turn: with more of them its ESS/s would be the same
        pyro = count == counts[0] and seed < pyro_repeats
        with tempfile.TemporaryDirectory() as folder:
            for row in (row for row in rows if pyro or row.module != "pyro"):
                job = Job(
                    name, row.module, row.variant, row.precision, count, warmup, draws, seed,
                    threads if row.ours else None,
                )  # fmt: skip
                if row.module == "pyro":
                    job = replace(job, chains=pyro_chains)
                    if name not in SMALL:
                        job = replace(job, warmup=pyro_draws, draws=pyro_draws)
                result = run(row, job, peers_python, Path(folder))
                results.append(result | {"chains": count, "chains_run": job.chains})
        pd.DataFrame(results).to_csv(out / "runs.csv", index=False)  # should the rest not finish
    runs = pd.DataFrame(results)
    table, judged = summarise(runs), verdicts(runs)
    table.to_csv(out / "samplers.csv", index=False)
    judged.to_csv(out / "verdicts.csv", index=False)
    with pd.option_context("display.width", 250):
        for key, part in table.groupby(KEYS[:2], sort=False):
            typer.echo("\n{}, {} chains".format(*key))
            short = part.drop(columns=KEYS[:2]).to_string(
                index=False, float_format=lambda x: f"{x:.4g}"
            )
            typer.echo(short)
        if len(judged):
            typer.echo("\n" + judged.to_string(index=False, float_format=lambda x: f"{x:.3g}"))


if __name__ == "__main__":
    typer.run(main)
