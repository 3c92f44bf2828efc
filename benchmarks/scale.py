"""Seconds and memory of a gradient by chains and by rows: ``python -m benchmarks.scale``.

Evaluations of ``Target.log_density_and_grad``, each case in a process of its own, whose memory is
limited so that what does not fit fails there and is reported. Peak memory is that over what the
process holds with the data in place and a density of another program evaluated, so that nothing is
counted that happens once in a process; ``kept_mb`` is what evaluations leave behind, once the
first is made.
"""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import pyro
import torch
import typer

from benchmarks.posteriors import POSTERIORS, logistic, logistic_rows
from inference.fit import target

_SECONDS = 0.5  # of evaluations that are timed, at least


def memory(name: str) -> float:
    """A figure of this process in MB, as Linux tells it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(name))) / 1024


def seconds(call: Callable[[], Any]) -> float:
    """Of one call, by as many as take half a second."""
    count, begin = 0, time.perf_counter()
    while count == 0 or time.perf_counter() - begin < _SECONDS:
        call()
        count += 1
    return (time.perf_counter() - begin) / count


def measure(case: dict[str, Any]) -> dict[str, float]:
    """Build the density, evaluate it, and tell what it took."""
    torch.set_num_threads(case["threads"])
    if case["rows"]:
        data = logistic_rows(case["rows"], 10)
        program = logistic(pyro, pyro.distributions)
    else:
        posterior = POSTERIORS[case["posterior"]]
        data, program = posterior.data(), posterior.write(pyro, pyro.distributions)
    fields = {name: torch.as_tensor(value) for name, value in data.items()}
    small = POSTERIORS["eight_schools"]
    evaluate(small.write(pyro, pyro.distributions), small.data(), case["tier"], 1)
    limit = int(case["limit_gb"] * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew, at what is used now
    before = memory("VmRSS")
    begin = time.perf_counter()
    call = evaluate(program, fields, case["tier"], case["chains"])
    built, held = time.perf_counter() - begin, memory("VmRSS")
    each = seconds(call)
    return {
        "build_s": built,
        "gradient_s": each,
        "peak_mb": memory("VmHWM") - before,
        "kept_mb": memory("VmRSS") - held,
    }


def evaluate(program: Any, data: Any, tier: Any, chains: int) -> Callable[[], Any]:
    """An evaluation of the program's density, once made."""
    density = target(program, data, tier=tier)
    generator = torch.Generator().manual_seed(0)
    x = 0.1 * torch.randn(chains, density.dim, generator=generator, dtype=density.dtype)

    def call() -> None:
        with torch.no_grad():
            density.log_density_and_grad(x)

    call()
    return call


def run(case: dict[str, Any], timeout: float) -> dict[str, Any]:
    """The case in a process of its own; ``failed`` says why it has no figures."""
    command = [sys.executable, "-m", "benchmarks.scale", "--one", json.dumps(case)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=timeout,
            env=os.environ | {"OMP_NUM_THREADS": str(case["threads"])},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return case | {"failed": f"not done in {timeout:g} s"}
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"ended by signal {-done.returncode}"]
        return case | {"failed": last[0][:90]}
    return case | json.loads(done.stdout.splitlines()[-1])


def table(results: list[dict[str, Any]], by: str) -> pd.DataFrame:
    """Times per chain (or row) and growth of memory from case to case, in bytes for each more."""
    frame = pd.DataFrame(results)
    for name in ("build_s", "gradient_s", "peak_mb", "kept_mb"):
        frame[name] = frame.get(name, math.nan)
    failed = frame.pop("failed").fillna("") if "failed" in frame else ""
    frame["gradient_us"] = 1e6 * frame["gradient_s"]
    frame[f"ns_per_{by[:-1]}"] = 1e3 * frame["gradient_us"] / frame[by]
    groups = frame.groupby(["posterior", "tier"], sort=False)
    more = groups["peak_mb"].diff() * 2**20 / groups[by].diff()
    frame[f"bytes_per_{by[:-1]}"] = more.round(1)
    return frame.drop(columns=["threads", "limit_gb", "gradient_s"]).assign(failed=failed)


def main(
    posteriors: Annotated[str, typer.Option(help=", ".join(POSTERIORS))] = "oring,hierarchical",
    chains: Annotated[str, typer.Option(help="of these")] = "1,4,64,1024,16384",
    rows: Annotated[str, typer.Option(help="of a logistic regression on 10 columns")] = (
        "10_000,100_000,1_000_000,10_000_000"
    ),
    row_chains: int = 4,
    tiers: Annotated[str, typer.Option(help="of evaluation")] = "compiled",
    threads: int = 1,
    limit_gb: Annotated[float, typer.Option(help="memory of a case")] = 8.0,
    timeout: Annotated[float, typer.Option(help="seconds of a case")] = 120.0,
    out: Annotated[Path, typer.Option(help="folder for the tables")] = Path("build/benchmarks"),
    one: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure, print both tables, and save them as CSV."""
    if one is not None:
        warnings.simplefilter("ignore")
        print(json.dumps(measure(json.loads(one))))
        return
    out.mkdir(parents=True, exist_ok=True)
    shared = {"threads": threads, "limit_gb": limit_gb}
    cases = [
        {"posterior": name, "tier": tier, "chains": int(count), "rows": 0}
        for name in filter(None, posteriors.split(","))
        for tier in tiers.split(",")
        for count in filter(None, chains.split(","))
    ]
    long = [
        {"posterior": "logistic", "tier": tier, "chains": row_chains, "rows": int(count)}
        for tier in tiers.split(",")
        for count in filter(None, rows.split(","))
    ]
    for by, chosen in (("chains", cases), ("rows", long)):
        if not chosen:
            continue
        found = table([run(case | shared, timeout) for case in chosen], by)
        found = found.drop(columns="rows") if by == "chains" else found
        found.to_csv(out / f"scale_{by}.csv", index=False)
        typer.echo(
            found.to_string(index=False, float_format=lambda v: f"{v:.4g}", na_rep="") + "\n"
        )


if __name__ == "__main__":
    typer.run(main)
