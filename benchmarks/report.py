"""How long a report of many chains takes, and how large it is.

    python -m benchmarks.report [--chains 64] [--draws 2000] [--parameters 100]

Prints seconds and MB for a fit of this library (whose findings are known since it was fitted) and
for an ArviZ object of the same draws (which is judged first).
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch

from inference import HMC, fit
from inference.report import write_report


def vector(y):
    size = y.shape[-1]
    with pyro.plate("columns", size, dim=-1):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(y), dim=-2):
            pyro.sample("y", dist.Normal(m, 1.0), obs=y)


def autoregression(chains: int, draws: int, parameters: int) -> np.ndarray:
    """Chains that remember half of where they were: (chain, draw, parameter)."""
    x = np.random.default_rng(0).normal(size=(chains, draws, parameters))
    for draw in range(1, draws):
        x[:, draw] = 0.5 * x[:, draw - 1] + 0.75**0.5 * x[:, draw]
    return x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chains", type=int, default=64)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--parameters", type=int, default=100)
    sizes = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    x = torch.as_tensor(autoregression(sizes.chains, sizes.draws, sizes.parameters))
    y = np.random.default_rng(1).normal(size=(5, sizes.parameters))
    few = fit(vector, {"y": y}, HMC(chains=1, warmup=5, draws=5, steps=2, tier="traced"))
    shape = x.shape[:2]
    stats = {"energy": x[..., 0], "diverging": torch.zeros(shape, dtype=torch.bool),
             "tree_depth": torch.full(shape, 3)}  # fmt: skip
    posterior = replace(few.posterior, draws={"m": x}, unconstrained=x, stats=stats, findings=[])
    result = replace(few, posterior=posterior)
    print(f"{sizes.chains} chains x {sizes.draws} draws x {sizes.parameters} parameters")
    with tempfile.TemporaryDirectory() as folder:
        for name, given in (("a fit", result), ("an ArviZ object", result.to_arviz())):
            begun, worked = time.perf_counter(), time.process_time()
            path = write_report({name: given}, Path(folder) / "report.html")
            seconds, worked = time.perf_counter() - begun, time.process_time() - worked
            size = path.stat().st_size / 1e6
            print(f"{name:16s} {seconds:6.1f} s ({worked:.1f} s of work) {size:6.2f} MB")


if __name__ == "__main__":
    main()
