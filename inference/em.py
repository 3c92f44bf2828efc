"""Expectation-maximisation (Dempster, Laird & Rubin 1977), restarts in one batch."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from inference.engine import Engine, Posterior, Problem
from inference.finding import Finding, fell, worse_restarts
from inference.program import Program
from inference.stopping import unfinished
from ppl_models.base import HasEM, Model, Objective, Params
from ppl_models.errors import ModelError

_LOOK = 64  # steps between looks at the objective; more often at the start


@dataclass(frozen=True)
class EM(Engine):
    """EM by the model's closed forms: a mode of the joint, or the maximum-likelihood estimate.

    Each step raises the objective log p(data, theta), a density of the constrained values without
    a Jacobian, or log p(data | theta); latent variables are summed out by the E step. Convergence
    is linear, so the distance still to go is judged from the rate: steps of length d that shrink by
    r have d r / (1 - r) ahead of them. Steps that are nothing but rounding are the end.

    Args:
        restarts: starting points, run as one batch; the best end is returned.
        max_steps: at most so many steps.
        tol: stop where the distance ahead is below this share of each parameter's size (counted as
            a thousandth of the largest in its site where it is smaller).
        objective: "joint" for the posterior's mode, "likelihood" to ignore the priors.
    """

    restarts: int = 4
    max_steps: int = 20_000
    tol: float = 1e-7
    objective: Objective = "joint"

    needs: ClassVar[type[Model] | None] = HasEM
    stops_at: ClassVar[tuple[str, ...]] = ("seconds",)

    def __post_init__(self) -> None:
        self.at_least(restarts=1, max_steps=1)
        self.one_of(objective=("joint", "likelihood"))
        self.positive("tol")

    def check(self, model: Any, program: Program) -> None:
        super().check(model, program)
        self._refuse(model, program, self.objective)

    @torch.no_grad()
    def run(self, problem: Problem) -> Posterior:
        """Iterate to convergence; the trace of the objective is in ``attributes``."""
        begin = time.perf_counter()
        model: Any = problem.model
        params = model.start(problem.data, self.restarts, problem.noise(self.restarts))
        outputs = problem.outputs
        own = model.log_objective(problem.data, params, self.objective)
        density: Callable[[Params], Tensor] = (
            outputs.density(self.objective)
            if own is None
            else lambda params: model.log_objective(problem.data, params, self.objective)
        )
        lengths: list[Tensor] = []
        values = [density(params) if own is None else own]  # (R,) each
        ahead = torch.full_like(values[0], torch.inf)
        precision = torch.finfo(problem.dtype).eps
        tol = max(self.tol, 8 * precision)
        step = 0
        over = False
        while step < self.max_steps and bool((ahead > tol).any()) and not over:
            step += 1
            over = problem.clock.over
            before = params
            params = model.m_step(problem.data, model.e_step(problem.data, params), self.objective)
            lengths = [*lengths[-1:], _relative(params, before)]
            if step % _LOOK == 0 or step.bit_count() == 1:  # 1, 2, 4, 8, ...
                values.append(density(params))
                problem.report(step / self.max_steps, f"{float(values[-1].max()):.6g}")
            if len(lengths) == 2:
                rate = (lengths[1] / lengths[0]).clamp(0, 1 - precision)
                ahead = lengths[1] * rate / (1 - rate)
                ahead = torch.where(lengths[1] < max(1e-5 * tol, 4 * precision), lengths[1], ahead)
        values.append(density(params))
        path = torch.stack(values)
        best = int(torch.nan_to_num(path[-1], nan=-torch.inf).argmax())
        if not bool(torch.isfinite(path[-1, best])):
            raise ModelError(
                f"EM: log {self.objective} is not finite at the end of any restart; check the "
                "data's scale and that e_step and m_step keep the parameters within their supports"
            )
        point = {name: value[best] for name, value in params.items()}
        if own is not None:
            self._compare(problem.program, point, float(path[-1, best]), precision)
        draws = {site.name: point[site.name] for site in problem.program.sites}
        if not problem.program.discrete:
            draws |= outputs.deterministics(point)
        seconds = time.perf_counter() - begin
        return Posterior(
            kind="point",
            draws=draws,
            findings=self._findings(path, bool(ahead[best] > tol), step, over),
            seconds={"sampling": seconds, "total": seconds},
            attributes={
                "objective_name": f"log {self.objective}",
                "objective_value": float(path[-1, best]),
                "steps": step,
                "restart_objectives": path[-1].tolist(),
            },
            unconstrained=outputs.unconstrain(draws),
        )

    def _compare(self, program: Program, point: Params, value: float, precision: float) -> None:
        """Raise ``ModelError`` where the model's closed form is not the program's objective."""
        own = program.log_joint if self.objective == "joint" else program.log_likelihood
        expected = float(own(point))
        if abs(value - expected) > max(1e-8, 100 * precision) * (1 + abs(expected)):
            raise ModelError(
                f"EM: the model's log_objective is {value:.8g} where its program has "
                f"{expected:.8g}; mend log_objective, or leave it out"
            )

    def _findings(self, path: Tensor, moving: bool, steps: int, over: bool) -> list[Finding]:
        found = []
        if moving:
            remedy = "raise max_steps or tol"
            found.append(unfinished(over, "max_steps", steps, "the parameters", remedy))
        return found + falls(path, "objective", "e_step and m_step") + ends(path[-1], "objective")


def falls(path: Tensor, what: str, steps: str) -> list[Finding]:
    """That a path (steps, R) of what exact steps raise has fallen, by more than rounding."""
    drop = (path[1:] - path[:-1]) / (1 + path[:-1].abs())
    if not bool((drop < -max(1e-8, 100 * torch.finfo(path.dtype).eps)).any()):
        return []
    return [fell(what, float(-drop.min()), steps)]


def ends(last: Tensor, what: str) -> list[Finding]:
    """That restarts ended at different heights (R,), by more than a tenth of a nat or rounding."""
    top = last[torch.isfinite(last)].max()
    rounding = 1000 * torch.finfo(last.dtype).eps * float(top.abs())
    lower = ~(top - last < max(0.1, rounding))
    if not bool(lower.any()):
        return []
    nats = float((top - last).nan_to_num(torch.inf).max())
    return [worse_restarts(int(lower.sum()), len(last), nats, what)]


def _relative(new: Params, old: Params) -> Tensor:
    """The largest change of any parameter relative to its size, by restart: (R,)."""
    changes = []
    for name, value in new.items():
        change = (value - old[name]).abs().reshape(len(value), -1)
        size = value.abs().reshape(len(value), -1)
        size = torch.maximum(size, 1e-3 * size.amax(-1, keepdim=True)) + 1e-8
        changes.append((change / size).amax(-1))
    return torch.stack(changes).amax(0)
