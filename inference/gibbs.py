"""Gibbs sampling (Geman & Geman 1984; Gelfand & Smith 1990) from exact full conditionals."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from inference.engine import Engine, Posterior, Problem
from inference.finding import Finding, interrupted
from inference.stopping import after
from ppl_models.base import HasConditionals, Model, Params
from ppl_models.noise import Noise


@dataclass(frozen=True)
class Gibbs(Engine):
    """Systematic-scan Gibbs: every sweep draws each of the model's blocks given the others.

    Args:
        chains: how many chains run, as one batch.
        warmup: sweeps per chain that are discarded; nothing is adapted.
        draws: draws kept per chain.
        thin: sweeps per draw; warm-up counts in draws too.
    """

    chains: int = 4
    warmup: int = 1000
    draws: int = 1000
    thin: int = 1

    needs: ClassVar[type[Model] | None] = HasConditionals
    stops_at: ClassVar[tuple[str, ...]] = ("seconds", "ess", "mcse")

    def __post_init__(self) -> None:
        self.at_least(chains=1, warmup=0, draws=1, thin=1)

    @torch.no_grad()
    def run(self, problem: Problem) -> Posterior:
        """Sweep from starting points of finite density."""
        begin = time.perf_counter()
        problem.clock.expect("the first draw")
        noise = problem.noise(self.chains)
        outputs = problem.outputs
        model: Any = problem.model
        blocks = list(model.conditionals(problem.data).values())
        initial: Params | None = model.initial(problem.data, self.chains, noise.fold(3))
        if initial is None:
            initial = outputs.constrain(problem.target("traced", 1).start(noise.fold(0)))
        state = initial
        sites = [site.name for site in problem.program.sites]
        kept: list[Params] = []
        stopped: Finding | None = None
        start = adapted = time.perf_counter()
        total, look = self.warmup + self.draws, after(0)
        try:
            for draw in range(total):
                if draw == self.warmup:
                    adapted = time.perf_counter()
                for sweep in range(self.thin):
                    for position, block in enumerate(blocks):
                        state = block(state, noise.fold(1, draw, sweep, position))
                if draw >= self.warmup:
                    kept.append(self._recorded(problem, sites, state, noise.fold(4, draw)))
                if draw % 16 == 0:
                    problem.report(draw / total, "sampling" if kept else "warm-up")
                if problem.until.precise and len(kept) == look:
                    look = after(look)
                    stopped = problem.precise(_stacked(kept, sites))
                if not kept:
                    problem.clock.look()
                elif problem.clock.over and len(kept) < self.draws:
                    stopped = stopped or problem.clock.finding(len(kept), self.draws)
                if stopped is not None:
                    break
        except KeyboardInterrupt:
            if not kept:
                raise
            stopped = interrupted(len(kept))
        sampled = time.perf_counter()
        values = _stacked(kept, list(kept[0]))
        statistics = {name: values[name] for name in values if name not in sites}
        x = outputs.unconstrain(values)
        draws = outputs.completed(values, x, noise.fold(2))
        return Posterior(
            kind="samples",
            draws=draws,
            stats={"lp": outputs.log_density(x), **statistics},
            findings=[stopped] if stopped else [],
            seconds={
                "start": start - begin,
                "warmup": adapted - start,
                "sampling": sampled - adapted,
                "total": time.perf_counter() - begin,
            },
            unconstrained=x,
        )

    @staticmethod
    def _recorded(problem: Problem, sites: list[str], state: Params, noise: Noise) -> Params:
        """The program's sites of a state, and what else it has one number per chain of."""
        model: Any = problem.model
        values = model.complete(problem.data, state, noise)
        return {k: v for k, v in values.items() if k in sites or v.dim() == 1}


def _stacked(kept: list[Params], names: list[str]) -> Params:
    """The values of some names, (chain, draw, *event)."""
    return {name: torch.stack([values[name] for values in kept], 1) for name in names}
