"""Hamiltonian Monte Carlo whose trajectory length all chains learn together.

Hoffman, Radul & Sountsov (2021), "An adaptive-MCMC scheme for setting trajectory lengths in
Hamiltonian Monte Carlo", AISTATS. A trajectory is as long as makes the change in the squared
distance from the posterior's mean largest,

    ChEES = E[(|x' - E x'|^2 - |x - E x|^2)^2] / 4,

with x at the start and x' at the end of a trajectory, here in whitened coordinates. Its derivative
in the length is estimated from all chains at every transition of warm-up, and followed by Adam.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from inference.chains import Tuning
from inference.hmc import Phase, energy, trajectory
from inference.sampling import Adapting
from inference.target import Target
from inference.trajectories import Journey, Path, SharedLength
from inference.warmup import Window, unstretch

_RATE, _MEMORY = 0.025, 0.95  # Adam's; no momentum, as in the paper
_DECAY = 0.75  # of the weight of an iterate in the average


class Ascent(NamedTuple):
    """Where Adam stands."""

    log_average: float  # over the iterates
    square: float  # running mean of squared derivatives
    number: int  # iterates so far


@dataclass(frozen=True)
class ChEES(SharedLength):
    """HMC for many chains, which together learn how long their trajectories should be.

    All chains take the same number of leapfrogs, so that none waits for another; on a GPU, or where
    operations are called one by one, hundreds cost little more than four. Warm-up needs to be long
    enough that chains arrive: the length is learnt after the first 70 transitions. Two chains run;
    the derivative is an average over chains, so give 16 or more.

    Args:
        target_acceptance: mean Metropolis acceptance probability aimed at, over chains and
            trajectories. The paper's 0.651 is a fifth faster where it does not diverge.
        step_size: fixed where given; else adapted.
        mass: which covariance warm-up learns: "diagonal", "dense", or "auto": dense up to 30
            dimensions, where the draws of all chains together determine it well.
        max_steps: at most so many leapfrogs a transition.
        superchains: so many groups of chains, each begun at one point: convergence is then judged
            by nested R-hat, which needs no long chains.

    Example:
        >>> import torch
        >>> from inference import ChEES, fit
        >>> from ppl_models import LogisticRegression
        >>> data = {"x": torch.randn(50, 2), "y": torch.arange(50) % 2}
        >>> fit(LogisticRegression(), data, ChEES(superchains=4, warmup=300, draws=100)).status
        'ok'
    """

    def first_length(self, dim: int) -> float:
        return math.pi / 2

    def path(self, dim: int) -> Path:
        path = super().path(dim)
        return path._replace(learning=Ascent(path.log_length, 0.0, 0))

    def next_path(self, at: Adapting, window: Window | None) -> Path:
        path = super().next_path(at, window)
        learnt: Ascent = path.learning
        if window is None and learnt.number:
            return path._replace(log_length=learnt.log_average)
        return path

    def travel(
        self, target: Target, phase: Phase, tuning: Tuning, normal: Tensor, number: int
    ) -> Journey:
        before, step = energy(phase.log_density, normal), tuning.step_size[:, None]
        phase, momentum = trajectory(target, phase, normal, step, tuning.scale, number)
        return Journey(phase, momentum, before, energy(phase.log_density, momentum))

    def learn(
        self, path: Path, start: Phase, end: Journey, tuning: Tuning, rate: Tensor, share: float
    ) -> Path:
        here, there = unstretch(tuning.scale, start.x), unstretch(tuning.scale, end.phase.x)
        slope = share * math.exp(path.log_length) * derivative(here, there, end.velocity, rate)
        return ascend(path, slope, math.log(float(tuning.step_size[0])), math.log(self.max_steps))


def derivative(here: Tensor, there: Tensor, velocity: Tensor, rate: Tensor) -> float:
    """That of the criterion in the time travelled: points and velocities (C, D), rates (C,).

    Chains count by their acceptance rates; those that left the numbers do not.
    """
    finite = torch.isfinite(there).all(-1) & torch.isfinite(velocity).all(-1)
    weight = torch.where(finite, rate, 0.0)
    weight = weight / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)
    there = torch.where(finite[:, None], there, here)
    velocity = torch.where(finite[:, None], velocity, 0.0)
    away = here - here.mean(0)
    arrived = there - (weight[:, None] * there).sum(0)
    change = arrived.square().sum(-1) - away.square().sum(-1)
    return float((weight * change * (arrived * velocity).sum(-1)).sum())


def ascend(path: Path, slope: float, log_step: float, log_most: float) -> Path:
    """A step of Adam on the log of the length, towards lengths of one leapfrog to so many."""
    at: Ascent = path.learning
    leapfrogs = path.log_length - log_step
    slope = max(slope, 0.0) if leapfrogs < 0 else min(slope, 0.0) if leapfrogs > log_most else slope
    number = at.number + 1
    square = _MEMORY * at.square + (1 - _MEMORY) * slope**2
    size = math.sqrt(square / (1 - _MEMORY**number))
    log_length = path.log_length + (_RATE * slope / size if size > 0 else 0.0)
    weight = number**-_DECAY
    log_average = weight * log_length + (1 - weight) * at.log_average
    return path._replace(log_length=log_length, learning=Ascent(log_average, square, number))
