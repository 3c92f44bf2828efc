"""One run of one sampler in a process of its own: ``python -m benchmarks.measure JSON``.

Libraries are imported before the clock starts; what they import later, tracing and compiling are
counted. The answer is one line of JSON, the last of standard output.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from benchmarks.posteriors import POSTERIORS, Arrays, Posterior


@dataclass(frozen=True)
class Job:
    """What one process is asked to do."""

    posterior: str
    sampler: str  # a key of RUNNERS
    tier: str
    chains: int
    warmup: int
    draws: int
    seed: int
    threads: int


class Run(NamedTuple):
    """Draws by site, (chain, draw, *event), and what they took."""

    draws: Arrays
    total_s: float
    sampling_s: float = np.nan
    gradients: float = np.nan  # while sampling


def run_suite(posterior: Posterior, job: Job) -> Run:
    import pyro
    import torch

    from inference import NUTS, fit

    torch.set_num_threads(job.threads)
    program = posterior.write(pyro, pyro.distributions)
    data = posterior.data()
    begin = time.perf_counter()
    engine = NUTS(chains=job.chains, warmup=job.warmup, draws=job.draws, tier=job.tier)  # type: ignore[arg-type]
    result = fit(program, data, engine, seed=job.seed, device="cpu", progress=False)
    total = time.perf_counter() - begin
    draws = {name: value.numpy() for name, value in result.posterior.draws.items()}
    gradients = float(result.posterior.stats["n_steps"].sum())
    return Run(draws, total, result.seconds["sampling"], gradients)


def run_pyro(posterior: Posterior, job: Job) -> Run:
    """Chains in turn, in one process; ``tier`` "jit" lets Pyro trace the density by torch.jit."""
    import pyro
    import torch
    from pyro.infer import mcmc

    torch.set_num_threads(job.threads)
    torch.set_default_dtype(torch.float64)
    pyro.set_rng_seed(job.seed)
    program = posterior.write(pyro, pyro.distributions)
    data = {name: torch.as_tensor(value) for name, value in posterior.data().items()}
    sampling, previous = 0.0, time.perf_counter()

    def clock(kernel: Any, values: Any, stage: str, i: int) -> None:
        nonlocal sampling, previous
        now = time.perf_counter()
        sampling += now - previous if stage.startswith("Sample") else 0.0
        previous = now

    # Pyro counts CPUs to decide whether chains get processes of their own: here never
    torch.multiprocessing.cpu_count = lambda: 1
    begin = time.perf_counter()
    kernel = mcmc.NUTS(program, jit_compile=job.tier == "jit", ignore_jit_warnings=True)
    chains = mcmc.MCMC(
        kernel, num_samples=job.draws, warmup_steps=job.warmup, num_chains=job.chains,
        disable_progbar=True, hook_fn=clock,
    )  # fmt: skip
    chains.run(**data)
    values = chains.get_samples(group_by_chain=True)
    total = time.perf_counter() - begin
    return Run({name: value.numpy() for name, value in values.items()}, total, sampling)


def run_numpyro(posterior: Posterior, job: Job) -> Run:
    """Vectorized chains. Every ``run`` compiles anew, so sampling alone has no clean time."""
    import jax
    import numpyro

    jax.config.update("jax_enable_x64", True)
    program = posterior.write(numpyro, numpyro.distributions)
    data = {name: jax.numpy.asarray(value) for name, value in posterior.data().items()}
    begin = time.perf_counter()
    mcmc = numpyro.infer.MCMC(
        numpyro.infer.NUTS(program), num_warmup=job.warmup, num_samples=job.draws,
        num_chains=job.chains, chain_method="vectorized", progress_bar=False,
    )  # fmt: skip
    mcmc.run(jax.random.PRNGKey(job.seed), **data)
    draws = {k: np.asarray(v) for k, v in mcmc.get_samples(group_by_chain=True).items()}
    return Run(draws, time.perf_counter() - begin)


RUNNERS: dict[str, Callable[[Posterior, Job], Run]] = {
    "suite": run_suite,
    "pyro": run_pyro,
    "numpyro": run_numpyro,
}


def measure(job: Job) -> dict[str, Any]:
    """Run the job and judge its draws."""
    import arviz as az

    posterior = POSTERIORS[job.posterior]
    run = RUNNERS[job.sampler](posterior, job)
    draws = az.convert_to_dataset(run.draws)
    ess = min(float(v.min()) for v in az.ess(draws, method="bulk").data_vars.values())
    r_hat = np.nan
    if job.chains > 1:
        r_hat = max(float(v.max()) for v in az.rhat(draws).data_vars.values())
    error = np.nan
    if posterior.reference is not None:
        mcse = az.mcse(draws, method="mean")
        exact = posterior.reference()
        off = {k: abs(run.draws[k].mean((0, 1)) - exact[k]) / mcse[k].values for k in exact}
        error = max(float(np.max(value)) for value in off.values())
    return asdict(job) | {
        "min_ess": ess,
        "max_rhat": r_hat,
        "total_s": run.total_s,
        "sampling_s": run.sampling_s,
        "ess_per_s": ess / run.total_s,
        "ess_per_s_sampling": ess / run.sampling_s,
        "gradients_per_s": run.gradients / run.sampling_s,
        "error_mcse": error,
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(measure(Job(**json.loads(sys.argv[1])))))
