"""This suite's NUTS; ``variant`` is its tier."""

from __future__ import annotations

import time

import pyro
import torch

from benchmarks.measure import Job, Run
from benchmarks.posteriors import Posterior
from inference import NUTS, fit


def run(posterior: Posterior, job: Job) -> Run:
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    program, data = posterior.write(pyro, pyro.distributions), posterior.data()
    begin = time.perf_counter()
    engine = NUTS(chains=job.chains, warmup=job.warmup, draws=job.draws, tier=job.variant)  # type: ignore[arg-type]
    result = fit(program, data, engine, seed=job.seed, device="cpu", progress=False)
    total = time.perf_counter() - begin
    sampling = result.seconds["sampling"]
    return Run(
        {name: value.numpy() for name, value in result.posterior.draws.items()},
        total,
        result.seconds["warmup"] + sampling,
        sampling,
        float(result.posterior.stats["n_steps"].sum()) / sampling,
    )
