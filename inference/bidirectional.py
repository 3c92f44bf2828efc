"""Bidirectional Monte Carlo: log p(x) of simulated rows from below and above.

Grosse, Ghahramani & Adams (2015), "Sandwiching the marginal likelihood using bidirectional Monte
Carlo". The z that a row x was simulated with is an exact draw of p(z | x). Annealing forward from
the reference bounds log p(x) from below, annealing back from z from above, both in expectation;
what lies between is the error of annealed importance sampling, on data like those of the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inference.ais import AIS, Annealing, effective, log_mean
from inference.fit import bind
from inference.program import isolated
from inference.simulation import Assemble, Simulator
from ppl_models.base import Data


@dataclass(frozen=True)
class Bounds:
    """Bounds of log p(x) in nats, of each simulated row.

    ``lower`` and ``upper`` hold in expectation: of a single row they may cross.
    """

    lower: Tensor  # (rows,)
    upper: Tensor  # (rows,)
    weight_ess: Tensor  # (rows,) effective number of chains, forward
    data: Data  # the simulated rows

    @property
    def gap(self) -> float:
        """The mean of upper - lower: the most by which either is wrong on average."""
        return float((self.upper - self.lower).mean())

    @property
    def gap_error(self) -> float:
        """The standard error of the gap over rows."""
        return float((self.upper - self.lower).std() / len(self.lower) ** 0.5)

    def __repr__(self) -> str:
        return (
            f"Bounds(mean log p(x) of {len(self.lower)} simulated rows between "
            f"{float(self.lower.mean()):.4f} and {float(self.upper.mean()):.4f}; "
            f"gap {self.gap:.4f} +- {self.gap_error:.4f} nats)"
        )


@torch.no_grad()
def bidirectional(
    model: Any,
    data: Any,
    engine: AIS | None = None,
    *,
    seed: int = 0,
    assemble: Assemble | None = None,
) -> Bounds:
    """Bounds of log p(x) from both sides, of rows simulated from a model with its weights.

    Args:
        model: a ``HasRows`` whose weights are trained.
        data: as for ``fit``; the rows are replaced by simulated ones, as many.
        engine: the settings of both directions.
        seed: of the simulation and the chains.
        assemble: new data from the template and one draw of the observed sites, where an observed
            site is no field of the data.

    Raises:
        ModelError: the model cannot simulate its data, or its rows are not independent.
    """
    engine = AIS() if engine is None else engine
    problem = bind(model, data, seed=seed)
    with isolated(problem.dtype, problem.device):
        engine.check(model, problem.program)
        simulator = Simulator(problem, assemble)
        latents, drawn = simulator.joint(1, seed)
        problem = simulator.problem_of(simulator.datasets(drawn)[0], seed)
        annealing = Annealing(engine, problem, problem.noise(1).fold(0))
        rows = annealing.rows
        exact = rows.split(problem.outputs.unconstrain(latents)[0])  # (rows, D)
        noise = problem.noise(annealing.points)
        forward = annealing.forward(noise.fold(1))
        backward = annealing.backward(exact.repeat_interleave(engine.chains, 0), noise.fold(2))
        log_weight = rows.unchained(forward.log_weight)
        return Bounds(
            lower=log_mean(log_weight),
            upper=-log_mean(-rows.unchained(backward.log_weight)),
            weight_ess=effective(log_weight),
            data=problem.data,
        )
