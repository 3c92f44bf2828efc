"""The memory of a long stored run: a million draws of a hundred parameters, 800 MB in all.

    python -m benchmarks.memory

Prints the peak resident memory of the process after imports and a short run, after the long run,
and after its summary, and the seconds that each took.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch

from inference import HMC, InferenceWarning, fit


def normal(dim: int) -> None:
    pyro.sample("x", dist.Normal(torch.zeros(int(dim)), 1.0).to_event(1))


def peak() -> float:
    """Peak resident memory so far, in MB, file pages in memory counted in."""
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--draws", type=int, default=1_000_000, help="of all chains together")
    parser.add_argument("--dim", type=int, default=100)
    parser.add_argument("--chains", type=int, default=10)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", InferenceWarning)
    torch.set_num_threads(1)
    settings = {"chains": arguments.chains, "warmup": 200, "steps": 3, "tier": "traced"}
    data = {"dim": arguments.dim}
    with tempfile.TemporaryDirectory() as name:
        engine = HMC(**settings, draws=200)
        fit(normal, data, engine, store=Path(name) / "short.zarr").summary()
        before = peak()
        print(f"imports and a short run: {before:.0f} MB")
        begin = time.perf_counter()
        engine = HMC(**settings, draws=arguments.draws // arguments.chains)
        fitted = fit(normal, data, engine, store=Path(name) / "long.zarr")
        after = peak()
        seconds = time.perf_counter() - begin
        print(
            f"long run: {after:.0f} MB, {after - before:.0f} MB more, {seconds:.0f} s", flush=True
        )
        begin = time.perf_counter()
        table = fitted.summary()
        seconds = time.perf_counter() - begin
        print(f"summary: {peak():.0f} MB, {peak() - before:.0f} MB more, {seconds:.0f} s")
        print(f"largest |mean|: {table['mean'].abs().max():.4f}")


if __name__ == "__main__":
    main()
