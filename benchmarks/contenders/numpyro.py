"""NumPyro's NUTS, vectorized chains.

The variant "called" is ``MCMC(...).run``, which traces and compiles anew at every call; its time
without compiling is that of a second call without JAX's persistent cache, since users get no
other. In the variant "jit" the whole run is one compiled function, compiled ahead of time.
"""

from __future__ import annotations

import time
from typing import Any

import jax
import numpy as np
import numpyro
from jax.experimental.compilation_cache import compilation_cache
from numpyro.infer import MCMC, NUTS

from benchmarks.measure import Job, Run, share
from benchmarks.posteriors import Posterior


def run(posterior: Posterior, job: Job) -> Run:
    jax.config.update("jax_enable_x64", job.precision == "float64")
    program = posterior.write(numpyro, numpyro.distributions)
    data = {name: jax.numpy.asarray(value) for name, value in posterior.data().items()}
    return (_jitted if job.variant == "jit" else _called)(program, data, job)


def _mcmc(program: Any, job: Job) -> MCMC:
    return MCMC(
        NUTS(program), num_warmup=job.warmup, num_samples=job.draws, num_chains=job.chains,
        chain_method="vectorized", progress_bar=False,
    )  # fmt: skip


def _called(program: Any, data: dict[str, Any], job: Job) -> Run:
    def draw(key: int) -> dict[str, np.ndarray]:
        mcmc.run(jax.random.PRNGKey(key), **data, extra_fields=("num_steps",))
        return {k: np.asarray(v) for k, v in mcmc.get_samples(group_by_chain=True).items()}

    def timed(key: int) -> float:
        begin = time.perf_counter()
        draw(key)
        return time.perf_counter() - begin

    begin = time.perf_counter()
    mcmc = _mcmc(program, job)
    draws = draw(job.seed)
    total = time.perf_counter() - begin
    if not job.again:
        return Run(draws, total, np.nan)
    jax.config.update("jax_enable_compilation_cache", False)  # off by default
    compilation_cache.reset_cache()
    run_s = timed(job.seed + 1_000)
    if job.again == 1:
        return Run(draws, total, run_s)
    mcmc.post_warmup_state = mcmc.last_state  # from here on no warm-up
    sampling = timed(job.seed + 2_000)
    steps = np.asarray(mcmc.get_extra_fields()["num_steps"])
    return Run(draws, total, run_s, sampling, int(steps.sum()) / sampling)


def _jitted(program: Any, data: dict[str, Any], job: Job) -> Run:
    def whole(key: Any, data: dict[str, Any]) -> Any:
        mcmc = _mcmc(program, job)
        mcmc.warmup(key, **data, collect_warmup=True, extra_fields=("num_steps",))
        before = mcmc.get_extra_fields(group_by_chain=True)["num_steps"]
        mcmc.run(mcmc.post_warmup_state.rng_key, **data, extra_fields=("num_steps",))
        after = mcmc.get_extra_fields(group_by_chain=True)["num_steps"]
        return mcmc.get_samples(group_by_chain=True), before, after

    begin = time.perf_counter()
    key = jax.random.PRNGKey(job.seed)
    compiled = jax.jit(whole).lower(key, data).compile()
    ready = time.perf_counter()
    draws, *steps = jax.block_until_ready(compiled(key, data))
    total, run_s = time.perf_counter() - begin, time.perf_counter() - ready
    before, after = (np.asarray(n) for n in steps)
    return Run(
        {name: np.asarray(value) for name, value in draws.items()},
        total,
        run_s,
        share(run_s, before, after, lockstep=True),
        int(before.sum() + after.sum()) / run_s,
    )
