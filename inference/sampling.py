"""Markov chains in a batch: what a sampler is, and the one loop that runs them all.

A kernel is stateless: ``init`` makes a state at given points, ``step`` moves every chain. A step
need not finish a transition for every chain: it says which chains are ``done``, and a chain that is
done goes on at once, waiting for no other. The loop records finished transitions, adapts during
warm-up, and stops when every chain has its draws.
"""

from __future__ import annotations

import logging
import time
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from inference import warmup
from inference.chains import Block, History, Info, Randomness, Tuning
from inference.cuda_graphs import Moving, StepGraph, capture_for
from inference.engine import Engine, Posterior, Problem, TierChoice
from inference.finding import Finding, interrupted
from inference.pathfinder import warm_start
from inference.program import Program
from inference.recording import Chunk, Columns, Recorder, chunk_size, earlier_seconds
from inference.stopping import Pace, after, following
from inference.target import Target
from inference.warmup import Averaging, Mass, Moments, Window
from ppl_models.noise import Noise
from ppl_models.noise_cpu import LONGEST, block_of

logger = logging.getLogger("inference")


class Adapting(NamedTuple):
    """A warm-up on its way."""

    window: int  # its number
    steps: int  # so far
    done: int  # transitions of all chains in this window
    state: Any
    tuning: Tuning
    averaging: Averaging | None
    moments: Moments
    draws: int  # of a chain in the windows before, on average


class Warmed(NamedTuple):
    """What warm-up leaves."""

    tuning: Tuning
    x: Tensor  # (C, D)
    steps: int
    draws: int
    calls: int  # the hint for the compiler that the run began with
    seconds: float


_LIKE = Warmed(Tuning(torch.empty(0), torch.empty(0)), torch.empty(0), 0, 0, 0, 0.0)


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

    chooses_chains: ClassVar[bool] = False
    """Whether ``chains`` may be "auto"."""

    uniforms: ClassVar[int] = 1
    """How many uniform numbers a step takes per chain."""

    stops_at: ClassVar[tuple[str, ...]] = ("seconds", "ess", "mcse")
    stores: ClassVar[bool] = True

    target_acceptance_rate: ClassVar[float | None] = None
    """What dual averaging aims at; None for a kernel without a step size."""

    def __post_init__(self) -> None:
        if not (self.chooses_chains and self.chains == "auto"):
            self.at_least(chains=1)
        self.at_least(warmup=0, draws=1, thin=1)
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

    @property
    def warm(self) -> bool:
        """Whether paths to the posterior's mass come before warm-up (``pathfinder.warm_start``)."""
        return False

    @property
    def ends_early(self) -> bool:
        """Whether warm-up leaves out slow windows once its scale has converged."""
        return False

    def mass_matrix(self, dim: int) -> Mass | None:
        """Which covariance warm-up learns; None for a kernel without a scale."""
        return "diagonal"

    def first_step_size(self, target: Target, x: Tensor, tuning: Tuning, noise: Noise) -> Tensor:
        """A step size to start adaptation from: (C,)."""
        return tuning.step_size

    def acceptance_target(self, dim: int) -> float | None:
        """The acceptance rate that dual averaging aims at."""
        return self.target_acceptance_rate

    def path(self, dim: int) -> Any:
        """What else the kernel learns, before anything is known; None where it is nothing."""
        return None

    def next_path(self, at: Adapting, window: Window | None) -> Any:
        """The same at the end of a window, for the one that follows, or for the draws."""
        return at.tuning.path

    def adapts_to(self, state: Any, rate: Tensor) -> Tensor:
        """What dual averaging sees of the chains' acceptance rates: (C,) -> (C,)."""
        return rate

    def randomness(self, target: Target, noise: Noise, length: int) -> list[Any]:
        """The random numbers of ``length`` steps."""
        normal = noise.fold(0).normal(length, target.dim).unbind(1)
        uniform = noise.fold(1).uniform(length, self.uniforms).unbind(1)
        return [Randomness(*pair) for pair in zip(normal, uniform, strict=True)]

    def numbers(self, target: Target, noise: Noise, step: int, most: int) -> list[Any]:
        """The random numbers of the steps from ``step`` to the end of its block, at most so many.

        They are those of the step's number alone, wherever a run is cut.
        """
        number, start, length = block_of(step)
        every = self.randomness(target, noise.fold(number), length)
        return every[step - start : step - start + most]

    def block(
        self,
        target: Target,
        state: Any,
        tuning: Tuning,
        noise: Noise,
        first: int,
        most: int,
        averaging: Averaging | None = None,
        enough: int | None = None,
    ) -> Block:
        """Steps from number ``first`` on, at most so many, with the numbers of ``noise``.

        The step size is adapted if ``averaging`` is given. With ``enough``, no step follows that
        with which all chains together have finished so many transitions. A block may be shorter;
        where it is cut changes nothing.
        """
        goal = self.acceptance_target(target.dim)
        if enough is not None:  # each step finishes one per chain at most
            most = min(most, -(-enough // len(state.x)))
        numbers = self.numbers(target, noise, first, most)
        moving = Moving(state, tuning, averaging)
        captured = self._captured(target, moving, numbers[0], goal)
        if captured is None:
            records = []
            for now in numbers:
                moving, record = self._advanced(target, moving, now, goal)
                records.append(record)
            history: History = tree_map(lambda *parts: torch.stack(parts), *records)
        else:
            moving, history = captured.run(moving, numbers)
        return Block(moving.state, moving.averaging, history, len(numbers))

    def _advanced(
        self, target: Target, moving: Moving, numbers: Any, goal: float | None
    ) -> tuple[Moving, History]:
        """One step and what it adapts, and what is recorded of it, without the leading axis."""
        state, tuning, averaging = moving
        state, info = self.step(target, state, tuning, numbers)
        if averaging is not None and goal is not None:
            rate = self.adapts_to(state, info.acceptance_rate)
            averaging = warmup.update(averaging, rate, info.done, goal)
            tuning = tuning.stepping(averaging.step_size)
        record = History(state.x, state.log_density, *info)
        return Moving(state, tuning, averaging), record

    def _captured(
        self, target: Target, moving: Moving, numbers: Any, goal: float | None
    ) -> StepGraph | None:
        """The step as a graph to replay, on a device where that is faster and if it can be one."""
        capture = capture_for(target.device)
        if capture is None:
            return None
        key = (id(self), len(moving.state.x), moving.averaging is None)
        known = target.graphs.get(key, moving)
        if known is moving or (known is not None and not known.serves(moving)):

            def step(moving: Moving, numbers: Any) -> tuple[Moving, History]:
                return self._advanced(target, moving, numbers, goal)

            try:
                known = StepGraph(step, moving, numbers, LONGEST, capture)
            except RuntimeError as error:
                logger.debug("Steps are not captured (%s).", error)
                known = None
            target.graphs[key] = known
        return known

    def run(self, problem: Problem) -> Posterior:
        """Adapt, sample, and map the draws back to the program's sites."""
        begin = time.perf_counter()
        problem.clock.expect("the first draw")
        noise = problem.noise(self.chains)
        saved = problem.records.saved()
        calls = self.evaluations() if saved is None else saved.part("calls", None, problem.device)
        target = problem.target(self.tier, calls, wide=problem.wide)
        with torch.no_grad():
            x = self.start(target, noise.fold(0))
            start = time.perf_counter()
            if saved is not None and "warmed" in saved:
                like = _LIKE._replace(tuning=_LIKE.tuning._replace(path=self.path(target.dim)))
                warmed = saved.part("warmed", like, problem.device)
            else:
                x, tuning, steps, made = self.warm_up(target, x, noise.fold(1), problem)
                spent = time.perf_counter() - start + earlier_seconds(saved)
                warmed = Warmed(tuning, x, steps, made, calls, spent)
            adapted = time.perf_counter()
            chunk, stopped, earlier = self._sample(target, warmed, noise, problem)
        return Posterior(
            kind="samples",
            draws=chunk.draws,
            stats=chunk.stats,
            findings=[stopped] if stopped else [],
            seconds={
                "start": start - begin,
                "warmup": warmed.seconds,
                "sampling": time.perf_counter() - adapted + earlier,
                "total": time.perf_counter() - begin,
            },
            attributes={
                "warmup_draws": warmed.draws,
                "warmup_steps": warmed.steps,
                "step_size": float(warmed.tuning.step_size.mean()),
            },
            unconstrained=chunk.unconstrained,
        )

    # -- the loop --------------------------------------------------------------------------------

    def warm_up(
        self, target: Target, x: Tensor, noise: Noise, problem: Problem
    ) -> tuple[Tensor, Tuning, int, int]:
        """Where chains are after warm-up from ``x`` (C, D), what it learnt, its steps and draws."""
        windows = warmup.windows(self.warmup, warm=self.warm)
        before = earlier_seconds(problem.records.saved())
        begin, pace = time.perf_counter(), Pace()
        at = self._adapting(target, x, noise, problem)
        while at.window < len(windows):
            window = windows[at.window]
            goal = window.length * self.thin * len(x)
            while at.done < goal:
                begun, steps = time.perf_counter(), at.steps
                at = self._adapt(target, at, noise, goal - at.done, window, pace.steps)
                pace.took(at.steps - steps, time.perf_counter() - begun)
                past = sum(w.length for w in windows[: at.window])
                share = past + window.length * min(at.done / goal, 1.0)
                problem.report(share / (self.warmup + self.draws), "warm-up")
                if problem.records.due():
                    seconds = time.perf_counter() - begin + before
                    parts = {"calls": target.calls, "adapting": at, "seconds": seconds}
                    problem.records.save(parts)
            number, last = at.window + 1, len(windows) - 1
            if self.ends_early and window.settled and number < last:
                number = last if warmup.converged(at.tuning.scale, at.moments) else number
            following = windows[number] if number <= last else None
            at = self._next_window(target, at, noise, window, following, number)
        tuning = at.tuning._replace(path=self.next_path(at, None))
        return at.state.x, tuning, at.steps, at.draws

    def _adapting(self, target: Target, x: Tensor, noise: Noise, problem: Problem) -> Adapting:
        """Where warm-up begins, or goes on."""
        mass = self.mass_matrix(target.dim)
        scale = torch.ones(target.dim, dtype=x.dtype, device=x.device)
        if mass == "dense":
            scale = torch.diag(scale)
        saved = problem.records.saved()
        if self.warm and saved is None:
            x, scale = warm_start(target, x, noise.fold(3), dense=mass == "dense")
        ones = torch.ones(len(x), dtype=x.dtype, device=x.device)
        tuning = Tuning(ones, scale, self.path(target.dim))
        if saved is None:
            first = self.first_step_size(target, x, tuning, noise.fold(0))
            tuning = tuning._replace(step_size=first.contiguous())
        fresh = self._window(target, x, tuning, 0, 0, 0, noise)
        return fresh if saved is None else saved.part("adapting", fresh, problem.device)

    def _window(
        self,
        target: Target,
        x: Tensor,
        tuning: Tuning,
        number: int,
        steps: int,
        draws: int,
        noise: Noise,
    ) -> Adapting:
        """The beginning of a window of warm-up, after so many steps and draws."""
        adapts = self.acceptance_target(target.dim) is not None
        averaging = warmup.averaging(tuning.step_size) if adapts else None
        moments = warmup.moments(self.mass_matrix(target.dim) or "diagonal", x)
        first = self.randomness(target, noise.fold(1, steps), 1)[0]
        state = self.init(target, x, tuning, first)
        return Adapting(number, steps, 0, state, tuning, averaging, moments, draws)

    def _adapt(
        self, target: Target, at: Adapting, noise: Noise, enough: int, window: Window, most: int
    ) -> Adapting:
        """A block of steps, to the end of the window at most."""
        block = self.block(
            target, at.state, at.tuning, noise.fold(2), at.steps, most, at.averaging, enough
        )
        tuning, moments = at.tuning, at.moments
        if block.averaging is not None:
            tuning = tuning.stepping(block.averaging.step_size)
        if window.learns_scale and self.mass_matrix(target.dim) is not None:
            moments = warmup.add(moments, block.history.x, block.history.done)
        return Adapting(
            at.window,
            at.steps + block.steps,
            at.done + int(block.history.done.sum()),
            block.state,
            tuning,
            block.averaging,
            moments,
            at.draws,
        )

    def _next_window(
        self,
        target: Target,
        at: Adapting,
        noise: Noise,
        window: Window,
        following: Window | None,
        number: int,
    ) -> Adapting:
        """The window that follows, by its number, with what this one learnt."""
        tuning = at.tuning._replace(path=self.next_path(at, following))
        if at.averaging is not None:
            tuning = tuning.stepping(warmup.pooled_step(at.averaging, target.groups))
        if window.learns_scale and self.mass_matrix(target.dim) is not None:
            before = tuning.scale if window.settled or self.warm else None
            learnt = warmup.scale(at.moments, settled=window.settled, before=before)
            tuning = tuning._replace(scale=learnt.contiguous())
        draws = at.draws + window.length
        return self._window(target, at.state.x, tuning, number, at.steps, draws, noise)

    def _sample(
        self, target: Target, warmed: Warmed, noise: Noise, problem: Problem
    ) -> tuple[Chunk, Finding | None, float]:
        """The draws, what stopped them early, and the seconds of earlier calls."""
        outputs, records, clock = problem.outputs, problem.records, problem.clock
        tuning, rates = warmed.tuning, self.target_acceptance_rate is not None

        def finish(rows: Columns, number: int) -> Chunk:
            x, stats = rows["x"], {name: rows[name] for name in rows if name != "x"}
            if rates:
                stats["step_size"] = tuning.step_size[:, None].expand_as(stats["lp"]).clone()
            return Chunk(outputs.values(x, noise.fold(3, number)), stats, x)

        recorder = Recorder(finish, records, thin=self.thin, size=chunk_size(target.dim))
        numbers = self.randomness(target, noise.fold(2, 0), 1)
        state = self.init(target, warmed.x, tuning, numbers[0])
        steps, earlier, begin, pace = 0, 0.0, time.perf_counter(), Pace()
        saved = records.saved()
        if saved is not None and "pending" in saved:
            recorder.go_on(saved, self.draws, problem.device)
            state = saved.part("state", state, problem.device)
            steps = saved.part("steps", None, problem.device)
            earlier = earlier_seconds(saved)
        goal, first, look = self.draws * self.thin, steps, following(recorder.draws)
        stream = noise.fold(2, 1)
        stopped: Finding | None = None

        def save() -> None:
            seconds = time.perf_counter() - begin + earlier
            parts = {"calls": warmed.calls, "warmed": warmed, "seconds": seconds}
            parts |= {"state": state, "steps": steps, "asked": self.draws}
            parts |= recorder.parts()
            records.save(parts)

        number = min(recorder.draws, self.draws)
        try:
            while recorder.transitions < goal and stopped is None:
                begun, left = time.perf_counter(), goal - recorder.transitions
                if problem.until.precise:
                    left = min(left, look * self.thin - recorder.transitions)
                most = min(pace.steps, clock.steps(steps - first, begin))
                block = self.block(
                    target, state, tuning, stream, steps, most, enough=left * len(warmed.x)
                )
                state = block.state
                recorder.add(block.history.columns(), block.history.done)
                steps += block.steps
                pace.took(block.steps, time.perf_counter() - begun)
                number = min(recorder.draws, self.draws)
                problem.report((self.warmup + number) / (self.warmup + self.draws), "sampling")
                if number:
                    clock.met()
                while problem.until.precise and look <= number < self.draws and stopped is None:
                    stopped = problem.precise(recorder.first(look))
                    number, look = (look if stopped else number), after(look)
                if stopped is None and clock.over and 0 < number < self.draws:
                    stopped = clock.finding(number, self.draws)
                recorder.flush()
                if records.due():
                    save()
                    recorder.show(number)
            save()
        except KeyboardInterrupt:
            number = min(recorder.draws, self.draws)
            if number < 1:
                raise
            stopped = interrupted(number)
        recorder.show(number)
        if stopped is not None and records.remedy:
            stopped = stopped._replace(remedy=records.remedy)
        return records.read(number), stopped, earlier
