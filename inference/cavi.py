"""Coordinate-ascent variational inference, and its stochastic form by natural gradients.

Blei, Kucukelbir & McAuliffe (2017, "Variational inference: a review for statisticians"); Hoffman,
Blei, Wang & Paisley (2013, "Stochastic variational inference").
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from inference import psis
from inference.em import ends, falls
from inference.engine import Engine, Posterior, Problem
from inference.finding import Finding
from inference.program import Program
from inference.stopping import unfinished
from ppl_models.base import HasMeanField, Model, Params
from ppl_models.errors import EngineError, ModelError
from ppl_models.noise import Noise


@dataclass(frozen=True)
class CAVI(Engine):
    """Mean field in closed form: every factor in turn is set to its optimum given the others.

    Each round raises ELBO(q) = E_q[log p(data, x) - log q(x)], a lower bound of the log evidence.
    With ``batch_size``, the natural parameters of the global factors move towards what a random
    sample of rows asks for, lambda <- (1 - rho) lambda + rho lambda_hat, by the step sizes
    rho_t = (t + delay)^-forgetting: natural-gradient ascent of the ELBO.

    Args:
        restarts: starting points, run as one batch; that of the highest ELBO is returned.
        max_steps: at most so many rounds; with ``batch_size``, the number of steps.
        tol: stop where a round raises the ELBO by less than this share of its size.
        draws: independent draws of the fitted approximation that are returned.
        batch_size: rows per step; None takes all, and converges.
        forgetting: kappa in (0.5, 1], with ``batch_size``.
        delay: tau >= 0, which tames the first steps.
    """

    restarts: int = 4
    max_steps: int = 2000
    tol: float = 1e-8
    draws: int = 1000
    batch_size: int | None = None
    forgetting: float = 0.7
    delay: float = 1.0

    needs: ClassVar[type[Model] | None] = HasMeanField
    stops_at: ClassVar[tuple[str, ...]] = ("seconds",)

    def __post_init__(self) -> None:
        self.at_least(restarts=1, max_steps=1, draws=1, delay=0)
        self.positive("tol", "batch_size")
        if not 0.5 < self.forgetting <= 1:
            raise EngineError(f"CAVI(forgetting={self.forgetting!r}): give a number in (0.5, 1]")

    def check(self, model: Any, program: Program) -> None:
        super().check(model, program)
        if self.batch_size is not None and self.batch_size > model.rows(program.data):
            size = model.rows(program.data)
            raise EngineError(
                f"CAVI(batch_size={self.batch_size}): the data have {size} rows; give at most so "
                "many, or None for all"
            )

    @torch.no_grad()
    def run(self, problem: Problem) -> Posterior:
        """Ascend; the trace of the ELBO is in ``attributes``."""
        begin = time.perf_counter()
        model: Any = problem.model
        noise = problem.noise(self.restarts)
        factors = model.initial_factors(problem.data, self.restarts, noise.fold(0))
        if self.batch_size is None:
            factors, path, settled, over = self._rounds(problem, factors)
        else:
            factors, path, settled, over = self._steps(problem, factors, noise.fold(1))
        _, last = model.coordinate_step(problem.data, factors, None)
        if not bool(torch.isfinite(last).any()):
            raise ModelError(
                "CAVI: the ELBO is not finite at the end of any restart; check the data's scale"
            )
        best = int(torch.nan_to_num(last, nan=-torch.inf).argmax())
        chosen = {name: value[best : best + 1] for name, value in factors.items()}
        posterior = self._posterior(problem, chosen)
        seconds = time.perf_counter() - begin
        posterior.seconds.update(sampling=seconds, total=seconds)
        posterior.findings.extend(self._findings(model, path, last, settled, over))
        posterior.attributes.update(
            elbo=float(last[best]),
            elbo_trace=[float(step[best]) for step in path],
            restart_elbos=last.tolist(),
            steps=len(path),
        )
        return posterior

    # -- internals -------------------------------------------------------------------------------

    def _rounds(self, problem: Problem, factors: Params) -> tuple[Params, list[Tensor], bool, bool]:
        """The factors, the path of the ELBO, whether it settled, and whether time was over."""
        model: Any = problem.model
        path: list[Tensor] = []
        for step in range(self.max_steps):
            factors, elbo = model.coordinate_step(problem.data, factors, None)
            path.append(elbo)
            problem.report(step / self.max_steps, f"ELBO {float(elbo.max()):.6g}")
            if step and bool(((path[-1] - path[-2]).abs() <= self.tol * path[-1].abs()).all()):
                return factors, path, True, False
            if problem.clock.over:
                return factors, path, False, True
        return factors, path, False, False

    def _steps(
        self, problem: Problem, factors: Params, noise: Noise
    ) -> tuple[Params, list[Tensor], bool, bool]:
        model: Any = problem.model
        size = model.rows(problem.data)
        assert self.batch_size is not None
        path: list[Tensor] = []
        order = torch.empty(0, dtype=torch.int64, device=problem.device)
        for step in range(self.max_steps):
            if len(order) < self.batch_size:  # another pass, in another order
                again = Noise(noise.key[:1], noise.dtype).fold(step).uniform(size)[0].argsort()
                order = torch.cat([order, again])
            rows, order = order[: self.batch_size], order[self.batch_size :]
            target, elbo = model.coordinate_step(problem.data, factors, rows)
            rate = (step + 1 + self.delay) ** -self.forgetting
            factors = {k: v.lerp(target[k], rate) for k, v in factors.items()}
            path.append(elbo)
            if step % 16 == 0:
                problem.report(step / self.max_steps, f"ELBO {float(elbo.max()):.6g}")
            if problem.clock.over and step + 1 < self.max_steps:
                return factors, path, False, True
        return factors, path, True, False

    def _posterior(self, problem: Problem, factors: Params) -> Posterior:
        model: Any = problem.model
        noise = problem.noise(1)
        values = model.factor_draws(problem.data, factors, noise.fold(2), self.draws)
        log_q = model.factor_log_density(problem.data, factors, values)
        outputs = problem.outputs
        ratios = outputs.log_joint(values) - log_q  # (1, S)
        smoothed = psis.smooth(ratios[0].cpu().numpy())
        x = outputs.unconstrain(values)
        return Posterior(
            kind="approximation",
            draws=outputs.completed(values, x, noise.fold(3)),
            stats={"log_weight": ratios},
            attributes={"pareto_k": smoothed.k_hat},
            unconstrained=x,
        )

    def _findings(
        self, model: Any, path: list[Tensor], last: Tensor, settled: bool, over: bool
    ) -> list[Finding]:
        found = []
        if not settled:
            remedy = "raise max_steps or tol"
            found.append(unfinished(over, "max_steps", len(path), "the ELBO", remedy))
        if self.batch_size is None and model.ascends:
            found += falls(torch.stack(path), "ELBO", "coordinate_step")
        return found + ends(last, "ELBO")
