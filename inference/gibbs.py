"""Gibbs sampling (Geman & Geman 1984; Gelfand & Smith 1990) from exact full conditionals."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, cast

import torch

from inference.engine import Engine, Posterior, Problem
from inference.finding import Finding, interrupted
from inference.recording import Chunk, Columns, Recorder, chunk_size
from inference.stopping import after, following
from ppl_models.base import HasConditionals, Model, Params
from ppl_models.noise import Noise


class Sweeping(NamedTuple):
    """Where the chains are."""

    sweeps: int  # in units of ``thin``, those of warm-up counted in
    state: Params  # {name: (C, *shape)}
    warmup_seconds: float
    sampling_seconds: float

    def after(self, state: Params, seconds: float, *, warm: bool) -> Sweeping:
        """After a sweep that took so long."""
        spent = (self.warmup_seconds, self.sampling_seconds)
        spent = (spent[0], spent[1] + seconds) if warm else (spent[0] + seconds, spent[1])
        return Sweeping(self.sweeps + 1, state, *spent)


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
    stores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.at_least(chains=1, warmup=0, draws=1, thin=1)

    @torch.no_grad()
    def run(self, problem: Problem) -> Posterior:
        """Sweep from starting points of finite density."""
        begin = time.perf_counter()
        problem.clock.expect("the first draw")
        noise, records, clock = problem.noise(self.chains), problem.records, problem.clock
        outputs, model = problem.outputs, cast(Any, problem.model)
        blocks = list(model.conditionals(problem.data).values())
        sites = [site.name for site in problem.program.sites]
        every = torch.ones(1, self.chains, dtype=torch.bool, device=problem.device)

        def finish(rows: Columns, number: int) -> Chunk:
            x = outputs.unconstrain(rows)
            stats = {name: rows[name] for name in rows if name not in sites}
            draws = outputs.completed(rows, x, noise.fold(2, number))
            return Chunk(draws, {"lp": outputs.log_density(x), **stats}, x)

        recorder = Recorder(finish, records, thin=1, size=chunk_size(problem.program.dim))
        at, saved = self._start(problem, noise), records.saved()
        if saved is not None:
            at = saved.part("at", at, problem.device)
            recorder.go_on(saved, self.draws, problem.device)
        begun, total = time.perf_counter(), self.warmup + self.draws
        look = following(recorder.draws)
        stopped: Finding | None = None
        number = recorder.draws
        try:
            while at.sweeps < total and stopped is None:
                then, state = time.perf_counter(), at.state
                for sweep in range(self.thin):
                    for position, block in enumerate(blocks):
                        state = block(state, noise.fold(1, at.sweeps, sweep, position))
                if at.sweeps >= self.warmup:
                    row = self._recorded(problem, sites, state, noise.fold(4, at.sweeps))
                    recorder.add({name: value[None] for name, value in row.items()}, every)
                at = at.after(state, time.perf_counter() - then, warm=at.sweeps >= self.warmup)
                number = recorder.draws
                if at.sweeps % 16 == 0:
                    problem.report(at.sweeps / total, "sampling" if number else "warm-up")
                if number:
                    clock.met()
                clock.look()
                if problem.until.precise and number == look:
                    stopped, look = problem.precise(recorder.first(look)), after(look)
                if stopped is None and clock.over and 0 < number < self.draws:
                    stopped = clock.finding(number, self.draws)
                recorder.flush()
                if records.due():
                    records.save({"at": at, "asked": self.draws, **recorder.parts()})
                    recorder.show(number)
            records.save({"at": at, "asked": self.draws, **recorder.parts()})
        except KeyboardInterrupt:
            if not number:
                raise
            stopped = interrupted(number)
        recorder.show(number)
        if stopped is not None and records.remedy:
            stopped = stopped._replace(remedy=records.remedy)
        chunk = records.read(number)
        return Posterior(
            kind="samples",
            draws=chunk.draws,
            stats=chunk.stats,
            findings=[stopped] if stopped else [],
            seconds={
                "start": begun - begin,
                "warmup": at.warmup_seconds,
                "sampling": at.sampling_seconds,
                "total": time.perf_counter() - begin,
            },
            unconstrained=chunk.unconstrained,
        )

    def _start(self, problem: Problem, noise: Noise) -> Sweeping:
        """Before the first sweep, at points of finite density."""
        model: Any = problem.model
        state: Params | None = model.initial(problem.data, self.chains, noise.fold(3))
        if state is None:
            points = problem.target("traced", 1).start(noise.fold(0))
            state = problem.outputs.constrain(points)
        return Sweeping(0, state, 0.0, 0.0)

    @staticmethod
    def _recorded(problem: Problem, sites: list[str], state: Params, noise: Noise) -> Params:
        """The program's sites of a state, and what else it has one number per chain of."""
        model: Any = problem.model
        values = model.complete(problem.data, state, noise)
        return {k: v for k, v in values.items() if k in sites or v.dim() == 1}
