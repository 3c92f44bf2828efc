"""Pyro's NUTS, chains in turn in one process; the variant "jit" traces the density by torch.jit."""

from __future__ import annotations

import time
from typing import Any

import pyro
import torch
from pyro.infer import mcmc
from pyro.ops import integrator

from benchmarks.measure import Job, Run
from benchmarks.posteriors import Posterior


def run(posterior: Posterior, job: Job) -> Run:
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    torch.set_default_dtype(getattr(torch, job.precision))
    pyro.set_rng_seed(job.seed)
    program = posterior.write(pyro, pyro.distributions)
    data = {name: torch.as_tensor(value) for name, value in posterior.data().items()}
    sampling, gradients, previous = 0.0, 0, time.perf_counter()
    original = integrator.potential_grad

    def counted(*arguments: Any) -> Any:
        nonlocal gradients
        gradients += 1
        return original(*arguments)

    def clock(kernel: Any, values: Any, stage: str, i: int) -> None:
        nonlocal sampling, previous
        now = time.perf_counter()
        sampling += now - previous if stage.startswith("Sample") else 0.0
        previous = now

    integrator.potential_grad = counted
    # Pyro counts CPUs to decide whether chains get processes of their own: here never
    torch.multiprocessing.cpu_count = lambda: 1
    begin = previous = time.perf_counter()
    kernel = mcmc.NUTS(program, jit_compile=job.variant == "jit", ignore_jit_warnings=True)
    chains = mcmc.MCMC(
        kernel, num_samples=job.draws, warmup_steps=job.warmup, num_chains=job.chains,
        disable_progbar=True, hook_fn=clock,
    )  # fmt: skip
    chains.run(**data)
    values = chains.get_samples(group_by_chain=True)
    total = time.perf_counter() - begin
    draws = {name: value.numpy() for name, value in values.items()}
    return Run(draws, total, total, sampling, gradients / total)
