"""When a run ends before its limit of draws or steps: its time is over, or it is precise enough."""

from __future__ import annotations

import math
import numbers
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from inference import mixing
from inference.finding import Finding, unsettled
from ppl_models.errors import EngineError

FIRST = 100
"""Draws per chain before the first look at an effective sample size."""

LOOK = 0.1
"""Seconds from one look at chains to the next, if they take 64 steps in it."""

GROWTH = 1.25
"""Draws at a look over draws at the look before: all looks together cost as much as five."""

_FEWEST, _MOST = 64, 1 << 20  # steps between looks


@dataclass(frozen=True)
class Until:
    """A stop rule for ``fit``: the run ends where the first of these is reached.

    The engine's own limit (``draws``, ``steps``, ``max_steps``) stays. What stopped the run is
    among its findings.

    Args:
        seconds: of wall time, from the call of ``fit`` on. Every engine looks often, and none is
            broken off in the midst of a step; an engine that has nothing to return by then raises
            ``EngineError``.
        ess: the smallest bulk effective sample size of any scalar, for Markov chains.
        mcse: the largest Monte-Carlo standard error of any mean, in posterior sds, for Markov
            chains: sqrt(1 / effective sample size for the mean).

    Precision is judged from 100 draws per chain on, whenever the draws have grown by a quarter;
    where a run stops depends on its draws alone, not on the machine. Discrete sites and
    deterministic ones are not judged. Stopping where an estimate looks good biases that estimate
    by little if the goal asks for hundreds of effective draws (Glynn & Whitt 1992, "The asymptotic
    validity of sequential stopping rules for stochastic simulations").

    Raises:
        EngineError: a figure that is not a positive number.

    >>> Until(seconds=60, ess=400).asked
    ('seconds', 'ess')
    """

    seconds: float | None = None
    ess: float | None = None
    mcse: float | None = None

    def __post_init__(self) -> None:
        for name in self.asked:
            value: Any = getattr(self, name)
            kind: Any = numbers.Real
            if isinstance(value, bool) or not isinstance(value, kind) or not 0 < value < math.inf:
                raise EngineError(f"Until({name}={value!r}): give a positive number")

    @property
    def asked(self) -> tuple[str, ...]:
        """The names of the figures given."""
        return tuple(f.name for f in fields(self) if getattr(self, f.name) is not None)

    @property
    def precise(self) -> bool:
        """Whether a precision is asked for."""
        return self.ess is not None or self.mcse is not None

    def reached(self, draws: Mapping[str, np.ndarray]) -> Finding | None:
        """The finding that draws, (chain, draw, *event), are as precise as asked, if they are."""
        number = next(iter(draws.values())).shape[1]
        if self.ess is not None:
            smallest = float(_all(mixing.ess_bulk, draws).min())
            if smallest >= self.ess:
                return _reached("ess", number, "smallest bulk effective sample size", smallest)
        if self.mcse is not None:
            largest = float(_all(mixing.ess_mean, draws).min() ** -0.5)
            if largest <= self.mcse:
                return _reached("mcse", number, "largest MCSE of a mean in sds", largest)
        return None


def after(look: int) -> int:
    """The number of draws per chain at the look after that at ``look``; the first after 0."""
    return FIRST if look < FIRST else math.ceil(GROWTH * look)


def following(draws: int) -> int:
    """The number of draws per chain at the first look after so many draws."""
    look = after(0)
    while look <= draws:
        look = after(look)
    return look


class Clock:
    """The wall time of a run against its limit, if it has one."""

    def __init__(self, seconds: float | None = None) -> None:
        self.begun = time.perf_counter()
        self.seconds = seconds
        self._expected: str | None = None

    @property
    def left(self) -> float:
        """Seconds left."""
        if self.seconds is None:
            return math.inf
        return self.seconds - (time.perf_counter() - self.begun)

    @property
    def over(self) -> bool:
        """Whether the time is over."""
        return self.left <= 0

    def steps(self, done: int, since: float) -> int:
        """How many further steps fit into the time left at the pace so far: at least one."""
        if self.seconds is None:
            return sys.maxsize
        if done == 0:
            return 1
        pace = max((time.perf_counter() - since) / done, 1e-9)
        return max(1, int(self.left / pace))

    def expect(self, what: str) -> None:
        """Say what must come before there is anything to return, until ``met``.

        In between, an evaluation of the density after the time is over raises ``EngineError``.
        """
        self._expected = what

    def met(self) -> None:
        """Say that it came."""
        self._expected = None

    def look(self) -> None:
        """Raise ``EngineError`` where the time is over and there is nothing to return."""
        if self._expected is not None and self.over:
            raise EngineError(
                f"seconds: {self.seconds:g} s were over before {self._expected}, so that there is "
                "nothing to return; give more seconds"
            )

    def finding(self, draws: int, asked: int) -> Finding:
        """That the time was over, and the draws there are."""
        return Finding(
            "seconds",
            "warning",
            draws,
            f"seconds: stopped after {self.seconds:g} s with {draws} of {asked} draws per chain",
            "give more seconds for more draws",
        )


class Pace:
    """How many steps chains make before the next look at them: as many as take a moment."""

    def __init__(self) -> None:
        self.steps = _FEWEST

    def took(self, steps: int, seconds: float) -> None:
        """Learn how long some steps took."""
        fitting = LOOK * steps / max(seconds, 1e-9)
        self.steps = int(min(max(fitting, _FEWEST), _MOST))


def _reached(name: str, draws: int, what: str, figure: float) -> Finding:
    text = f"{name}: stopped at {draws} draws per chain, where the {what} is {figure:.4g}"
    return Finding(name, "note", figure, text)


def _all(size: Callable[[np.ndarray], np.ndarray], draws: Mapping[str, np.ndarray]) -> np.ndarray:
    """The figure of every scalar; that of draws that are not finite is NaN and reaches no goal."""
    return np.concatenate([size(x).ravel() for x in draws.values()])


def unfinished(over: bool, limit: str, steps: int, what: str, remedy: str) -> Finding:
    """That an iteration ended before it had settled: its time was over, or it met its limit."""
    if over:
        return unsettled("seconds", steps, what, "give more seconds")
    return unsettled(limit, steps, what, remedy)
