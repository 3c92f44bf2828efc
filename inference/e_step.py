"""E steps of Monte Carlo EM: draws of the latents of a minibatch at the present weights."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import torch
from torch import Tensor

from inference import row_weights
from inference.chains import Tuning
from inference.engine import Problem
from inference.moves import transition
from inference.program import Program
from inference.proposal import Proposal
from inference.replicated import chains_of
from inference.rows import Rows, drawn, pooled_scale
from inference.sampling import Sampler
from inference.warmup import Mass
from ppl_models.base import Data, Params
from ppl_models.errors import EngineError
from ppl_models.noise import Noise

_AT_ONCE = 4096  # rows whose chains are started together
_FIRST = 5  # times the transitions at a first visit, on the way from the prior
_GAIN = 0.5  # of the log step size by the difference of acceptance rates; falls with the visits


class EStep(Protocol):
    """Draws given the weights that the model has."""

    acceptance_rate: float

    def draw(self, data: Data, rows: Tensor, number: int) -> Params:
        """Values at a minibatch, the E step of that number: {site: (K, B, *event)}."""
        ...


class Chains:
    """Chains that persist: those of a row go on where its last E step left them.

    Step sizes are those of each row, which follow its acceptance rates; the scale is that of the
    chains of the minibatch before about the means of their rows.

    Args:
        sampler: whose transitions move ``sampler.chains`` chains of each row.
        transitions: of each chain in an E step.
        problem: with the data of all rows in ``whole``.
        like: a minibatch, with as many rows as all.
        weights: those of the model, whose values change in place.
    """

    def __init__(
        self, sampler: Sampler, transitions: int, problem: Problem, like: Data, weights: Params
    ) -> None:
        self.sampler, self.transitions, self.problem = sampler, transitions, problem
        self.rows = Rows(_bound(problem, like))
        self.target = self.rows.target(sampler.chains, weights=weights)
        self.noise = problem.noise(self.rows.number * sampler.chains).fold(3)
        self.mass: Mass = sampler.mass_matrix(self.rows.dim) or "diagonal"
        self.x = self._from_prior(problem.noise(1).fold(2))  # (N, chains, D)
        self.visits = torch.zeros(len(self.x), dtype=self.x.dtype, device=self.x.device)
        self.acceptance_rate = 0.0
        first = self.x[: self.rows.number].flatten(0, 1)
        self.scale = pooled_scale(first, self.rows.number, self.mass)
        tuning = Tuning(first.new_ones(len(first)), self.scale)
        step = sampler.first_step_size(self.target.as_target(), first, tuning, self.noise.fold(-1))
        self.log_step = step.log().quantile(0.5).expand(len(self.x)).clone()  # (N,)

    def draw(self, data: Data, rows: Tensor, number: int) -> Params:
        chains, count = self.sampler.chains, len(rows)
        fields = chains_of(self.rows.fields_of(data), chains)
        target = self.target.with_fields(fields)
        x, log_step = self.x[rows].flatten(0, 1), self.log_step[rows]
        goal = self.sampler.acceptance_target(self.rows.dim)
        visits = self.visits[rows]
        first = not bool(visits.all())
        for move in range(self.transitions * (_FIRST if first else 1)):
            step = log_step.exp().repeat_interleave(chains)
            moved = transition(
                self.sampler,
                target.as_target(),
                x,
                Tuning(step, self.scale),
                self.noise.fold(number, move),
            )
            x, rate = moved.x, moved.acceptance_rate.unflatten(0, (count, chains)).mean(1)
            if goal is not None:
                log_step = log_step + _GAIN * (1 + visits).rsqrt() * (rate - goal)
            self.acceptance_rate = float(rate.mean())
        self.x[rows], self.log_step[rows] = x.unflatten(0, (count, chains)), log_step
        self.visits[rows] += 1
        self.scale = pooled_scale(x, count, self.mass)
        values = target.constrain(x)
        return {n: self.rows.unchained(v.squeeze(1)) for n, v in values.items()}

    def _from_prior(self, noise: Noise) -> Tensor:
        model: Any = self.problem.model
        every = torch.arange(model.rows(self.problem.whole), device=self.problem.device)
        parts = []
        for part, rows in enumerate(every.split(_AT_ONCE)):
            problem = _bound(self.problem, model.take(self.problem.whole, rows))
            prior = Proposal(problem, problem.program.prior())
            parts.append(drawn(problem, prior, noise.fold(part), self.sampler.chains, len(rows)))
        return torch.cat(parts, 1).transpose(0, 1).contiguous()


class ExactGuide:
    """Draws of a guide that has no weights: nothing of the E step is left to learn.

    Args:
        problem: of the model.
        like: a minibatch.
        draws: of each row.

    Raises ``EngineError`` where the guide has weights.
    """

    acceptance_rate = 1.0

    def __init__(self, problem: Problem, like: Data, draws: int) -> None:
        self.model: Any = problem.model
        self.draws, self.noise = draws, problem.noise(1).fold(3)
        named = dict(self.model.named_parameters())
        with torch.enable_grad():
            drawn = row_weights.guided(self.model, like, 1)
            values = {name: value.detach() for name, value in drawn.items()}
            total = row_weights.log_guide(self.model, like, values).sum()
            total = total + sum(value.sum() for value in drawn.values())
            slopes: Any = [None] * len(named)
            if total.requires_grad:
                slopes = torch.autograd.grad(total, list(named.values()), allow_unused=True)
        trained = [n for n, slope in zip(named, slopes, strict=True) if slope is not None]
        if trained:
            raise EngineError(
                f"MCEM(e_step='guide'): the guide has weights ({trained[0]}, ...), so that it is "
                "not known to be the posterior; use SVI, or a sampler such as e_step=HMC()"
            )

    def draw(self, data: Data, rows: Tensor, number: int) -> Params:
        self.noise.fold(number).seed_torch()
        return row_weights.guided(self.model, data, self.draws)


def _bound(problem: Problem, data: Data) -> Problem:
    return dataclasses.replace(problem, data=data, program=Program(problem.model, data))
