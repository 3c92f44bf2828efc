"""BlackJAX: window adaptation and NUTS, vmapped over chains, all in one compiled function.

The log density is that of the NumPyro program, as BlackJAX's own documentation gets it.
"""

from __future__ import annotations

import time
from typing import Any

import blackjax
import jax
import numpy as np
import numpyro
from numpyro.infer.util import initialize_model

from benchmarks.measure import Job, Run, share
from benchmarks.posteriors import Posterior


def run(posterior: Posterior, job: Job) -> Run:
    jax.config.update("jax_enable_x64", job.precision == "float64")
    program = posterior.write(numpyro, numpyro.distributions)
    data = {name: jax.numpy.asarray(value) for name, value in posterior.data().items()}
    begin = time.perf_counter()
    key = jax.random.key(job.seed)
    model = initialize_model(key, program, model_kwargs=data, dynamic_args=True)

    def chain(key: Any, data: dict[str, Any]) -> Any:
        at_start, adapting, sampling = jax.random.split(key, 3)
        potential = model.potential_fn(**data)
        leaves, tree = jax.tree.flatten(model.param_info.z)
        keys = jax.random.split(at_start, len(leaves))
        start = [  # uniform on (-2, 2), as NumPyro's own
            jax.random.uniform(k, z.shape, z.dtype, -2.0, 2.0)
            for k, z in zip(keys, leaves, strict=True)
        ]
        warmup = blackjax.window_adaptation(blackjax.nuts, lambda z: -potential(z))
        (state, found), information = warmup.run(adapting, tree.unflatten(start), job.warmup)
        kernel = blackjax.nuts(lambda z: -potential(z), **found).step

        def step(state: Any, key: Any) -> Any:
            state, info = kernel(key, state)
            return state, (state.position, info.num_integration_steps)

        _, (x, steps) = jax.lax.scan(step, state, jax.random.split(sampling, job.draws))
        return (
            jax.vmap(model.postprocess_fn(**data))(x),
            information.info.num_integration_steps,
            steps,
        )

    whole = jax.jit(jax.vmap(chain, in_axes=(0, None)))
    keys = jax.random.split(key, job.chains)
    compiled = whole.lower(keys, data).compile()
    ready = time.perf_counter()
    draws, *steps = jax.block_until_ready(compiled(keys, data))
    total, run_s = time.perf_counter() - begin, time.perf_counter() - ready
    before, after = (np.asarray(n) for n in steps)
    return Run(
        {name: np.asarray(value) for name, value in draws.items()},
        total,
        run_s,
        share(run_s, before, after, lockstep=True),
        int(before.sum() + after.sum()) / run_s,
    )
