"""Markov chains over the latents of a trained model, all rows and all their chains in one batch.

The posterior p(z_i | x_i) of each row is sampled by chains of its own (Hoffman 2017, "Learning deep
latent Gaussian models with Markov chain Monte Carlo"), in as many dimensions as one row has: as
many transitions as one row needs, instead of as many as all rows together.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from inference.engine import Engine, Posterior, Problem
from inference.program import Program
from inference.replicated import Replicated, standardised
from inference.rows import Rows, rows_problem
from inference.sampling import Sampler
from inference.stopping import Until
from inference.trajectories import SharedLength
from ppl_models.base import HasRows, Model
from ppl_models.errors import EngineError

_FEWEST = 60  # transitions of warm-up, a third of which can tell a row's centre and spread

_MERGED: dict[str, Callable[[Tensor], Tensor]] = {
    "lp": lambda each: each.sum(-1),
    "acceptance_rate": lambda each: each.mean(-1),
    "step_size": lambda each: each.mean(-1),
    "n_steps": lambda each: each.sum(-1),
}
"""Statistics of all rows together; the others are kept by row."""


@dataclass(frozen=True)
class RowWise(Engine):
    """A sampler over the latents of a model whose weights are trained, row by row (``HasRows``).

    Every row has ``sampler.chains`` chains, which begin at draws of the guide where the model has
    one. The first third of warm-up finds the centre and the spread of each row, which standardise
    it; the rest learns a scale for all rows together, and a step size for each.

    Args:
        sampler: such as ``NUTS(chains=4)``, ``HMC()``, ``MALA()`` or ``MH()``, with its settings
            for chains, warm-up and draws.

    Draws are (chain, draw, rows, *event): R-hat and effective sample sizes are those of each row.
    Divergences, energies and tree depths are (chain, draw, rows); the log density is that of all
    rows.

    Example:
        >>> from inference import HMC, RowWise
        >>> RowWise(HMC(chains=2, steps=5)).sampler.chains
        2
    """

    sampler: Sampler

    needs: ClassVar[type[Model] | None] = HasRows
    stops_at: ClassVar[tuple[str, ...]] = ("seconds", "ess", "mcse")

    def __post_init__(self) -> None:
        check_sampler("RowWise", "sampler", self.sampler)

    def check(self, model: Any, program: Program) -> None:
        super().check(model, program)
        self.sampler.check(model, program)

    def run(self, problem: Problem) -> Posterior:
        """Find each row's frame, then sample."""
        return self.run_from(problem, None)

    @torch.no_grad()
    def run_from(self, problem: Problem, first: Tensor | None) -> Posterior:
        """The same from given points, (rows * chains, D); from draws of the guide where None."""
        begin = time.perf_counter()
        rows, chains = Rows(problem), self.sampler.chains
        target = rows.target(chains)
        if first is None:
            guide = rows.guide()
            noise = problem.noise(1).fold(7)
            first = None if guide is None else rows.drawn(guide, noise, chains)
        if first is not None:
            target = target.starting_at(first)
        engine = dataclasses.replace(self.sampler, chains=rows.number * chains)
        if engine.warmup >= _FEWEST:
            target = self._framed(rows, target, engine)
            engine = dataclasses.replace(engine, warmup=engine.warmup - engine.warmup // 3)
        framed = time.perf_counter()
        own = engine.run(rows_problem(rows, target))
        points = own.unconstrained
        assert points is not None
        if target.frame is not None:
            centre, spread = target.frame
            points = centre[:, None] + spread[:, None] * points
        x = rows.joined(rows.unchained(points).transpose(1, 2))  # (chains, S, rows * D)
        stats = {
            name: rows.unchained(value).transpose(1, 2) for name, value in own.stats.items()
        }  # (chains, S, rows)
        draws = problem.outputs.values(x, problem.noise(chains).fold(8))
        seconds = own.seconds | {
            "warmup": own.seconds["warmup"] + framed - begin,
            "total": time.perf_counter() - begin,
        }
        return dataclasses.replace(
            own,
            draws=draws,
            stats={k: _MERGED[k](v) if k in _MERGED else v for k, v in stats.items()},
            seconds=seconds,
            attributes=own.attributes | {"rows": rows.number},
            unconstrained=x,
        )

    def _framed(self, rows: Rows, target: Replicated, engine: Sampler) -> Replicated:
        """The target in the frame that a first run finds, its chains where that run left them."""
        warmup = engine.warmup // 3
        first = dataclasses.replace(engine, warmup=warmup // 2, draws=warmup - warmup // 2)
        problem = rows_problem(rows, target)
        share = warmup / (engine.warmup + engine.draws)
        quiet = dataclasses.replace(
            problem,
            until=Until(seconds=problem.until.seconds),
            report=lambda done, _: problem.report(share * done, "warm-up"),
        )
        x = first.run(quiet).unconstrained
        assert x is not None
        centre, spread = standardised(x.unflatten(0, (rows.number, -1)))
        return target.in_frame(centre, spread).starting_at((x[:, -1] - centre) / spread)


def check_sampler(engine: str, name: str, sampler: Any) -> None:
    """Refuse what cannot run on rows. Raises ``EngineError``."""
    usable = isinstance(sampler, Sampler) and getattr(sampler, "proposal", None) is None
    if not usable or sampler.warm:
        raise EngineError(
            f"{engine}({name}={sampler!r}): give a sampler such as NUTS(chains=4), without "
            "proposal, from uniform starts"
        )
    if sampler.chains == "auto":
        raise EngineError(
            f"{engine}({name}={sampler!r}): chains='auto' is only for fit(); give a number"
        )
    if isinstance(sampler, SharedLength) and sampler.superchains is not None:
        raise EngineError(
            f"{engine}({name}={sampler!r}): the chains of a row begin apart; leave superchains out"
        )
