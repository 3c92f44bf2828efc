"""This suite's NUTS; ``variant`` is its tier.

Its own clock tells warm-up and draws apart from tracing and compiling. A process's first warm-up
also loads compiled code, so where asked for they are those of a second fit, with the same draws.
"""

from __future__ import annotations

import time

import pyro
import torch

from benchmarks.measure import Job, Run
from benchmarks.posteriors import Posterior
from inference import NUTS, fit
from inference.fit import Fit


def run(posterior: Posterior, job: Job) -> Run:
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    program, data = posterior.write(pyro, pyro.distributions), posterior.data()
    engine = NUTS(chains=job.chains, warmup=job.warmup, draws=job.draws, tier=job.variant)  # type: ignore[arg-type]

    def fitted() -> Fit:
        return fit(program, data, engine, seed=job.seed, device="cpu", progress=False)

    begin = time.perf_counter()
    result = fitted()
    total = time.perf_counter() - begin
    seconds = (fitted() if job.again else result).seconds
    return Run(
        {name: value.numpy() for name, value in result.posterior.draws.items()},
        total,
        seconds["warmup"] + seconds["sampling"],
        seconds["sampling"],
        float(result.posterior.stats["n_steps"].sum()) / seconds["sampling"],
    )
