"""nutpie on a PyMC model, compiled by numba; it runs chains on all cores by its own default."""

from __future__ import annotations

import time

import numpy as np
import nutpie

from benchmarks.measure import Job, Run, share
from benchmarks.posteriors import Posterior
from benchmarks.pymc_models import MODELS


def run(posterior: Posterior, job: Job) -> Run:
    begin = time.perf_counter()
    model = nutpie.compile_pymc_model(MODELS[job.posterior](**posterior.data()), backend="numba")
    ready = time.perf_counter()
    result = nutpie.sample(
        model, draws=job.draws, tune=job.warmup, chains=job.chains, seed=job.seed,
        progress_bar=False, save_warmup=True,
    )  # fmt: skip
    total, run_s = time.perf_counter() - begin, time.perf_counter() - ready
    before = result.warmup_sample_stats["n_steps"].values
    after = result.sample_stats["n_steps"].values
    return Run(
        {name: np.asarray(value) for name, value in result.posterior.data_vars.items()},
        total,
        run_s,
        share(run_s, before, after, lockstep=False),
        int(before.sum() + after.sum()) / run_s,
    )
