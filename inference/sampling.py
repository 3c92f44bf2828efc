"""Markov chains in a batch: what a sampler is, and the one loop that runs them all.

A kernel is stateless: ``init`` makes a state at given points, ``step`` moves every chain. A step
need not finish a transition for every chain: it says which chains are ``done``, and a chain that is
done goes on at once, waiting for no other. The loop records finished transitions, adapts during
warm-up, and stops when every chain has its draws.
"""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from inference import warmup
from inference.engine import Engine, Posterior, Problem, TierChoice
from inference.finding import Finding, interrupted
from inference.program import Program
from inference.stopping import after
from inference.target import Target
from inference.warmup import Averaging, Mass
from ppl_models.noise import Noise

_BLOCK = 64  # steps between looks at how far the chains are


class Tuning(NamedTuple):
    """What warm-up learns: S S^T approximates the posterior covariance."""

    step_size: Tensor  # (C,)
    scale: Tensor  # (D,) or (D, D): S


class Randomness(NamedTuple):
    """The random numbers of one step."""

    normal: Tensor  # (C, D)
    uniform: Tensor  # (C, U)


class State(Protocol):
    """Any NamedTuple whose ``x`` and ``log_density`` are those of the last finished transition."""

    @property
    def x(self) -> Tensor: ...  # (C, D)

    @property
    def log_density(self) -> Tensor: ...  # (C,)


class Info(NamedTuple):
    """What a step reports; the statistics mean something where ``done``."""

    done: Tensor  # (C,) bool: which chains finished a transition
    acceptance_rate: Tensor  # (C,)
    statistics: dict[str, Tensor]  # {name: (C,)}


class History(NamedTuple):
    """A block of K steps."""

    x: Tensor  # (K, C, D)
    log_density: Tensor  # (K, C)
    done: Tensor  # (K, C)
    acceptance_rate: Tensor  # (K, C)
    statistics: dict[str, Tensor]  # {name: (K, C)}


@dataclass(frozen=True)
class Sampler(Engine):
    """A Markov chain Monte Carlo kernel.

    Args:
        chains: how many chains run, as one batch.
        warmup: transitions per chain spent on adaptation, discarded.
        draws: draws kept per chain.
        thin: transitions per draw; warm-up counts in draws too.
        tier: how the log density is evaluated: "auto", "eager", "traced" or "compiled".
    """

    chains: int = 4
    warmup: int = 1000
    draws: int = 1000
    thin: int = 1
    tier: TierChoice = "auto"

    uniforms: ClassVar[int] = 1
    """How many uniform numbers a step takes per chain."""

    stops_at: ClassVar[tuple[str, ...]] = ("seconds", "ess", "mcse")

    target_acceptance_rate: ClassVar[float | None] = None
    """What dual averaging aims at; None for a kernel without a step size."""

    def __post_init__(self) -> None:
        self.at_least(chains=1, warmup=0, draws=1, thin=1)
        self.one_of(tier=("auto", "eager", "traced", "compiled"))

    def check(self, model: Any, program: Program) -> None:
        super().check(model, program)
        self._refuse(model, program, "chains")

    @abstractmethod
    def init(self, target: Target, x: Tensor, tuning: Tuning, randomness: Randomness) -> Any:
        """A state at the points ``x`` (C, D)."""

    @abstractmethod
    def step(
        self, target: Target, state: Any, tuning: Tuning, randomness: Randomness
    ) -> tuple[Any, Info]:
        """Move every chain once."""

    def evaluations(self) -> int:
        """How many batched evaluations a run takes, roughly: a hint for the compiler."""
        return (self.warmup + self.draws) * self.thin

    def start(self, target: Target, noise: Noise) -> Tensor:
        """Where the chains begin: (C, D)."""
        return target.start(noise)

    def mass_matrix(self, dim: int) -> Mass | None:
        """Which covariance warm-up learns; None for a kernel without a scale."""
        return "diagonal"

    def first_step_size(self, target: Target, x: Tensor, tuning: Tuning, noise: Noise) -> Tensor:
        """A step size to start adaptation from: (C,)."""
        return tuning.step_size

    def acceptance_target(self, dim: int) -> float | None:
        """The acceptance rate that dual averaging aims at."""
        return self.target_acceptance_rate

    def randomness(self, target: Target, noise: Noise, length: int) -> list[Any]:
        """The random numbers of ``length`` steps."""
        normal = noise.fold(0).normal(length, target.dim).unbind(1)
        uniform = noise.fold(1).uniform(length, self.uniforms).unbind(1)
        return [Randomness(*pair) for pair in zip(normal, uniform, strict=True)]

    def block(
        self,
        target: Target,
        state: Any,
        tuning: Tuning,
        randomness: list[Any],
        averaging: Averaging | None,
    ) -> tuple[Any, Averaging | None, History]:
        """A step for each of ``randomness``, adapting the step size if ``averaging`` is given."""
        goal = self.acceptance_target(target.dim)
        states, infos = [], []
        for numbers in randomness:
            state, info = self.step(target, state, tuning, numbers)
            if averaging is not None and goal is not None:
                averaging = warmup.update(averaging, info.acceptance_rate, info.done, goal)
                tuning = tuning._replace(step_size=averaging.step_size)
            states.append((state.x, state.log_density))
            infos.append(info)
        names = infos[0].statistics
        history = History(
            torch.stack([x for x, _ in states]),
            torch.stack([value for _, value in states]),
            torch.stack([info.done for info in infos]),
            torch.stack([info.acceptance_rate for info in infos]),
            {name: torch.stack([info.statistics[name] for info in infos]) for name in names},
        )
        return state, averaging, history

    def run(self, problem: Problem) -> Posterior:
        """Adapt, sample, and map the draws back to the program's sites."""
        begin = time.perf_counter()
        problem.clock.expect("the first draw")
        noise = problem.noise(self.chains)
        target = problem.target(self.tier, self.evaluations())
        with torch.no_grad():
            x = self.start(target, noise.fold(0))
            start = time.perf_counter()
            x, tuning, steps = self.warm_up(target, x, noise.fold(1), problem)
            adapted = time.perf_counter()
            history, stopped = self._sample(target, x, tuning, noise.fold(2), problem)
            sampled = time.perf_counter()
            draws = problem.outputs.values(history.x, noise.fold(3))
        stats = {"lp": history.log_density, "acceptance_rate": history.acceptance_rate}
        stats |= history.statistics
        if self.target_acceptance_rate is not None:
            stats["step_size"] = tuning.step_size[:, None].expand_as(history.log_density)
        return Posterior(
            kind="samples",
            draws=draws,
            stats=stats,
            findings=[stopped] if stopped else [],
            seconds={
                "start": start - begin,
                "warmup": adapted - start,
                "sampling": sampled - adapted,
                "total": time.perf_counter() - begin,
            },
            attributes={"warmup_steps": steps, "step_size": float(tuning.step_size.mean())},
            unconstrained=history.x,
        )

    # -- the loop --------------------------------------------------------------------------------

    def warm_up(
        self, target: Target, x: Tensor, noise: Noise, problem: Problem
    ) -> tuple[Tensor, Tuning, int]:
        """Where the chains are after warm-up from ``x`` (C, D), what it learnt, and its steps."""
        mass = self.mass_matrix(target.dim)
        scale = torch.ones(target.dim, dtype=x.dtype, device=x.device)
        if mass == "dense":
            scale = torch.diag(scale)
        tuning = Tuning(torch.ones(len(x), dtype=x.dtype, device=x.device), scale)
        tuning = tuning._replace(
            step_size=self.first_step_size(target, x, tuning, noise.fold(0)).contiguous()
        )
        steps, spent, adapts = 0, 0, self.acceptance_target(target.dim) is not None
        for window in warmup.windows(self.warmup):
            averaging = warmup.averaging(tuning.step_size) if adapts else None
            moments = warmup.moments(mass or "diagonal", x)
            state = self.init(
                target, x, tuning, self.randomness(target, noise.fold(1, steps), 1)[0]
            )
            goal, done, begun = window.length * self.thin * len(x), 0, steps
            while done < goal:
                # as many steps as what is left will take, at the pace so far; then look again
                pace = (steps - begun) / done if done else 1 / len(x)
                length = math.ceil((goal - done) * pace)
                numbers = self._numbers(target, noise.fold(2), steps, length)
                state, averaging, history = self.block(target, state, tuning, numbers, averaging)
                if averaging is not None:
                    tuning = tuning._replace(step_size=averaging.step_size)
                steps += len(numbers)
                done += int(history.done.sum())
                if window.learns_scale and mass is not None:
                    moments = warmup.add(moments, history.x, history.done)
                share = (spent + window.length * min(done / goal, 1.0)) / (self.warmup + self.draws)
                problem.report(share, "warm-up")
            spent += window.length
            x = state.x
            if averaging is not None:
                tuning = tuning._replace(step_size=warmup.pooled_step(averaging))
            if window.learns_scale and mass is not None:
                learnt = warmup.scale(moments, settled=window.settled)
                tuning = tuning._replace(scale=learnt.contiguous())
        return x, tuning, steps

    def _sample(
        self, target: Target, x: Tensor, tuning: Tuning, noise: Noise, problem: Problem
    ) -> tuple[History, Finding | None]:
        state = self.init(target, x, tuning, self.randomness(target, noise.fold(0), 1)[0])
        blocks: list[History] = []
        count = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        steps, least, goal, look = 0, 0, self.draws * self.thin, after(0)
        stopped: Finding | None = None
        clock, begun = problem.clock, time.perf_counter()
        try:
            while least < goal and stopped is None:
                most = min(goal - least, clock.steps(steps, begun))
                numbers = self._numbers(target, noise.fold(1), steps, most)
                state, _, history = self.block(target, state, tuning, numbers, None)
                blocks.append(_compact(history))
                count += history.done.sum(0)
                steps += len(numbers)
                least = int(count.min())
                share = (self.warmup + min(least, goal) / self.thin) / (self.warmup + self.draws)
                problem.report(share, "sampling")
                if least >= self.thin:
                    clock.met()
                while problem.until.precise and look * self.thin <= least < goal:
                    enough = problem.precise(_finished(blocks, look * self.thin, self.thin).x)
                    if enough is not None:
                        return _finished(blocks, look * self.thin, self.thin), enough
                    look = after(look)
                if clock.over and self.thin <= least < goal:
                    stopped = clock.finding(least // self.thin, self.draws)
        except KeyboardInterrupt:
            if least < self.thin:
                raise
            stopped = interrupted(least // self.thin)
        return _finished(blocks, min(least, goal), self.thin), stopped

    def _numbers(self, target: Target, noise: Noise, step: int, most: int) -> list[Any]:
        """The random numbers of the steps from ``step`` to the end of its block, at most so many.

        They are those of the step's number alone, wherever the blocks of a run are cut.
        """
        block, offset = divmod(step, _BLOCK)
        return self.randomness(target, noise.fold(block), _BLOCK)[offset : offset + most]


def joined(blocks: list[History]) -> History:
    """Blocks of steps as one."""
    return History(
        torch.cat([block.x for block in blocks]),
        torch.cat([block.log_density for block in blocks]),
        torch.cat([block.done for block in blocks]),
        torch.cat([block.acceptance_rate for block in blocks]),
        {k: torch.cat([block.statistics[k] for block in blocks]) for k in blocks[0].statistics},
    )


def _compact(block: History) -> History:
    """The block without the steps in which no chain needs a row: finished transitions first."""
    number = int(block.done.sum(0).max())
    order = torch.sort((~block.done).to(torch.uint8), dim=0, stable=True).indices[:number]

    def pick(values: Tensor) -> Tensor:
        index = order.reshape(*order.shape, *[1] * (values.dim() - 2))
        return values.gather(0, index.expand(-1, -1, *values.shape[2:]))

    return History(
        pick(block.x),
        pick(block.log_density),
        pick(block.done),
        pick(block.acceptance_rate),
        {name: pick(values) for name, values in block.statistics.items()},
    )


def _finished(blocks: list[History], transitions: int, thin: int) -> History:
    """Every ``thin``-th of the first finished transitions of every chain, chains first."""
    done = torch.cat([b.done for b in blocks]).T  # (C, K)
    order = torch.sort((~done).to(torch.uint8), dim=1, stable=True).indices[:, :transitions]
    order = order[:, : order.shape[1] // thin * thin]
    last = order[:, thin - 1 :: thin]

    def pick(parts: list[Tensor]) -> Tensor:
        joined = torch.cat(parts).transpose(0, 1)  # (C, K, ...)
        if joined.dtype == torch.bool:  # a flag of any of the transitions that a draw stands for
            return joined.gather(1, order).reshape(*last.shape, thin).any(-1)
        index = last.reshape(*last.shape, *[1] * (joined.dim() - 2))
        return joined.gather(1, index.expand(-1, -1, *joined.shape[2:]))

    return History(
        pick([b.x for b in blocks]),
        pick([b.log_density for b in blocks]),
        torch.ones_like(last, dtype=torch.bool),
        pick([b.acceptance_rate for b in blocks]),
        {k: pick([b.statistics[k] for b in blocks]) for k in blocks[0].statistics},
    )
