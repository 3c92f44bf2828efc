"""SVI of models with independent rows: weights by minibatches, latents by the trained guide."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inference import psis, row_weights
from inference.engine import Posterior, Problem
from inference.finding import Finding
from inference.training import Settings, Trainer
from inference.weights import put
from ppl_models.base import Params

_NUMBERS = 1 << 24  # that the draws of all rows may hold
_WEIGHED = 1 << 22  # numbers of latent variables at a time
_ENOUGH = 100  # draws per row whose weights have a tail to look at


def train_rows(problem: Problem, settings: Settings, draws: int) -> Posterior:
    """Train, and draw the latent variables of the rows that the program is bound to.

    The model of the problem gets the trained weights.
    """
    begin = time.perf_counter()
    problem.clock.expect("the first look at the bound")
    model: Any = problem.model
    trainer = Trainer(problem, settings)
    trained = trainer.run()
    put(model, trained.weights)
    model.trained = True
    sampling = time.perf_counter()
    trace = trained.progress.trace
    number = model.rows(problem.whole)
    attributes: dict[str, Any] = {
        "steps": trained.progress.step,
        "rows": number,
        "tier": trained.tier,
        "bound_trace": trace[:, 1].tolist(),
        "bound_steps": trace[:, 0].tolist(),
        "bound_seconds": trace[:, 3].tolist(),  # of training, before a resume too
    }
    if len(trainer.held_out):
        attributes["held_out_trace"] = trace[:, 2].tolist()
    if settings.objective.bounds and len(trace):
        totals = (trace[:, 1] * number).tolist()
        attributes |= {"elbo": totals[-1], "elbo_trace": totals}
    findings = list(trained.findings)
    latents, unconstrained = {}, None
    if problem.program.dim:
        latents, unconstrained, log_weight = guide_draws(problem, draws)
        attributes["rows_drawn"] = log_weight.shape[1]
        findings += _weights_of_rows(log_weight, attributes)
    end = time.perf_counter()
    return Posterior(
        kind="approximation" if problem.program.dim else "point",
        draws=latents,
        findings=findings,
        seconds={"training": sampling - begin, "sampling": end - sampling, "total": end - begin},
        attributes=attributes,
        unconstrained=unconstrained,
        guide=model.guide if problem.program.dim else None,
    )


@torch.no_grad()
def guide_draws(problem: Problem, draws: int) -> tuple[Params, Tensor, Tensor]:
    """Draws of the guide, unconstrained ones (1, S, D), and log weights by row (S, rows)."""
    model: Any = problem.model
    dim = problem.program.dim
    draws = min(draws, max(1, _NUMBERS // dim))
    problem.noise(1).fold(5).seed_torch()
    data = model.refreshed(problem.data)
    size = max(2, _WEIGHED // dim)
    parts = [
        row_weights.weigh(model, data, min(size, draws - first)) for first in range(0, draws, size)
    ]
    values = {name: torch.cat([part.latents[name] for part in parts]) for name in parts[0].latents}
    outputs = problem.outputs
    x = outputs.unconstrain(values)[None]
    named = {name: value[None] for name, value in values.items()}
    return (
        outputs.completed(named, x, problem.noise(1).fold(9)),
        x,
        torch.cat([part.log_weight for part in parts]),
    )


def _weights_of_rows(log_weight: Tensor, attributes: dict[str, Any]) -> list[Finding]:
    """What the importance weights of each row's draws say of the guide."""
    number, rows = log_weight.shape
    if number < _ENOUGH:
        return []
    k_hats = np.array([psis.smooth(row).k_hat for row in log_weight.T.double().cpu().numpy()])
    limit = psis.threshold(number)
    far = float((k_hats > limit).mean())
    attributes["pareto_k_of_rows"] = float(np.median(k_hats))
    if far < 0.5:
        return []
    text = (
        f"the guide is far from the posterior of the latent variables at {far:.0%} of {rows} rows "
        f"(Pareto k-hat above {limit:.2g}): their means and sds are those of the guide"
    )
    remedy = "give the guide a richer network or family, or sample latent variables by MCMC"
    return [Finding("pareto_k_of_rows", "warning", far, text, remedy)]
