"""Trajectories whose length all chains share: what ``ChEES`` and ``MAMS`` have in common.

A transition follows every chain for the same time, a share of the longest trajectory that a Halton
sequence gives, so that no length is resonant with the posterior: in so many leapfrogs, of at most
the step size. It ends in a Metropolis test. How far to go is learnt in warm-up from all chains
together, and fixed after it.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from inference.chains import Info, Randomness, Tuning
from inference.engine import Posterior, Problem
from inference.hmc import DIVERGENCE, Hamiltonian, Phase
from inference.mh import metropolis
from inference.sampling import Adapting
from inference.target import Target
from inference.warmup import Window
from ppl_models.errors import EngineError
from ppl_models.noise import Noise

_FIRST = 16  # leapfrogs of the longest trajectory while chains are on their way

ARRIVING, LEARNING, FIXED = range(3)
"""What trajectories are for: to find the posterior, to learn how long they should be, to draw."""


class Path(NamedTuple):
    """How far trajectories go; numbers of the host."""

    log_length: float  # of the longest, in the time of the whitened space
    transitions: int  # so far: the place in the sequence
    stage: int  # one of the three above
    learning: Any = None  # where the learning of the length stands


class Place(NamedTuple):
    """The end of a transition."""

    x: Tensor  # (C, D)
    log_density: Tensor  # (C,)
    gradient: Tensor  # (C, D)
    energy: Tensor  # (C,)


class Travellers(NamedTuple):
    """All chains, and how far they go."""

    place: Place
    path: Path

    @property
    def x(self) -> Tensor:  # (C, D)
        return self.place.x

    @property
    def log_density(self) -> Tensor:  # (C,)
        return self.place.log_density


class Journey(NamedTuple):
    """A trajectory's end, and the energies at both ends: their difference is the acceptance's."""

    phase: Phase
    velocity: Tensor  # (C, D), whitened
    before: Tensor  # (C,)
    after: Tensor  # (C,)


@dataclass(frozen=True)
class SharedLength(Hamiltonian):
    """A sampler whose chains share the length of their trajectories; use ``ChEES`` or ``MAMS``."""

    chains: int = 64
    max_steps: int = 1000
    superchains: int | None = None

    uniforms: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(chains=2, max_steps=1)
        if self.superchains is not None:
            self.at_least(superchains=2)
            if self.chains % self.superchains or self.chains == self.superchains:
                raise EngineError(
                    f"{type(self).__name__}(chains={self.chains}, superchains={self.superchains}): "
                    "give a number of chains that is a multiple of it, so that several chains "
                    "begin at each point"
                )

    # -- what differs ----------------------------------------------------------------------------

    @abstractmethod
    def first_length(self, dim: int) -> float:
        """The longest trajectory before any is learnt, on a whitened posterior."""

    @abstractmethod
    def travel(
        self, target: Target, phase: Phase, tuning: Tuning, normal: Tensor, number: int
    ) -> Journey:
        """So many leapfrogs of every chain, from a velocity made of standard normals (C, D)."""

    def learn(
        self, path: Path, start: Phase, end: Journey, tuning: Tuning, rate: Tensor, share: float
    ) -> Path:
        """What a transition of warm-up tells of the length, given its acceptance rates (C,)."""
        return path

    # -- what is common --------------------------------------------------------------------------

    def run(self, problem: Problem) -> Posterior:
        posterior = super().run(problem)
        if self.superchains is not None:
            posterior.attributes["superchains"] = self.superchains
        return posterior

    def start(self, target: Target, noise: Noise) -> Tensor:
        """With superchains, those of one begin at one point."""
        x = super().start(target, noise)
        if self.superchains is None:
            return x
        together = self.chains // self.superchains
        return x[::together].repeat_interleave(together, 0)

    def evaluations(self) -> int:
        return (self.warmup + self.draws) * self.thin * _FIRST

    def path(self, dim: int) -> Path:
        return Path(math.log(self.first_length(dim)), 0, ARRIVING)

    def next_path(self, at: Adapting, window: Window | None) -> Path:
        """Chains learn the length from the first window on in which they have arrived."""
        path: Path = at.state.path
        if window is None:
            return path._replace(stage=FIXED)
        learns = window.settled or path.stage == LEARNING
        return path._replace(stage=LEARNING if learns else ARRIVING)

    def adapts_to(self, state: Travellers, rate: Tensor) -> Tensor:
        """Once chains have arrived, to the mean over all: they share a step size."""
        if state.path.stage == ARRIVING:
            return rate
        return rate.mean().expand_as(rate)

    def init(self, target: Target, x: Tensor, tuning: Tuning, randomness: Randomness) -> Travellers:
        value, gradient = target.log_density_and_grad(x)
        path = self.path(target.dim)._replace(stage=FIXED) if tuning.path is None else tuning.path
        return Travellers(Place(x, value, gradient, -value), path)

    def step(
        self, target: Target, state: Travellers, tuning: Tuning, randomness: Randomness
    ) -> tuple[Travellers, Info]:
        path, start = state.path, Phase(*state.place[:3])
        share = halton(path.transitions)
        number, part = self._leapfrogs(path, share, tuning)
        shorter = tuning._replace(step_size=tuning.step_size * part)
        end = self.travel(target, start, shorter, randomness.normal, number)
        change = end.before - end.after
        there, here = Place(*end.phase, end.after), Place(*start, end.before)
        place, info = metropolis(here, there, change, randomness.uniform[:, 0])
        if path.stage == LEARNING:
            path = self.learn(path, start, end, tuning, info.acceptance_rate, share)
        statistics = {
            "energy": place.energy,
            "diverging": ~(change > -DIVERGENCE),
            "n_steps": torch.full_like(change, number, dtype=torch.int64),
        }
        path = path._replace(transitions=path.transitions + 1)
        return Travellers(place, path), info._replace(statistics=statistics)

    def _leapfrogs(self, path: Path, share: float, tuning: Tuning) -> tuple[int, float]:
        """How many the next transition makes, and by which part of the step size.

        Together they are the share of the longest trajectory: some transitions make short steps,
        by which a chain moves where all others would be refused.
        """
        step = float(tuning.step_size.mean())
        most = _FIRST if path.stage == ARRIVING else self.max_steps
        steps = share * min(math.exp(path.log_length) / step, most)
        number = math.ceil(steps)
        return number, steps / number


def halton(n: int) -> float:
    """The Halton sequence of base 2: the digits of n + 1 mirrored at the point, in (0, 1).

    >>> [halton(n) for n in range(5)]
    [0.5, 0.25, 0.75, 0.125, 0.625]
    """
    n, value, digit = n + 1, 0.0, 0.5
    while n:
        value += digit * (n & 1)
        n, digit = n >> 1, digit / 2
    return value
