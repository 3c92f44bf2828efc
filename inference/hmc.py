"""Hamiltonian Monte Carlo (Duane et al. 1987; Neal 2011), all chains in one batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from inference import leapfrog_cpu
from inference.chains import Info, Randomness, Tuning
from inference.pathfinder import Starts
from inference.sampling import Sampler
from inference.target import Target
from inference.warmup import Adapt, Mass, MassChoice, resolve, stretch, whiten
from ppl_models.errors import EngineError
from ppl_models.noise import Noise

DIVERGENCE = 1000.0
"""An energy error beyond which a trajectory has left the level set, as in Stan."""


class Phase(NamedTuple):
    """A point of the chain and its density."""

    x: Tensor  # (C, D)
    log_density: Tensor  # (C,)
    gradient: Tensor  # (C, D)


def leapfrog(
    target: Target, phase: Phase, momentum: Tensor, step: Tensor, scale: Tensor
) -> tuple[Phase, Tensor]:
    """One leapfrog step of length ``step`` (C, 1); the momentum (C, D) lives in whitened space.

    With x = S w and unit mass for w, the inverse mass of x is S S^T. The map is reversible and
    keeps volume.
    """
    momentum = momentum + 0.5 * step * whiten(scale, phase.gradient)
    x = phase.x + step * stretch(scale, momentum)
    log_density, gradient = target.log_density_and_grad(x)
    return Phase(x, log_density, gradient), momentum + 0.5 * step * whiten(scale, gradient)


def trajectory(
    target: Target, phase: Phase, momentum: Tensor, step: Tensor, scale: Tensor, steps: int
) -> tuple[Phase, Tensor]:
    """So many leapfrogs, without Python in between where the target is a C function.

    Arguments are those of ``leapfrog``; there ``scale`` is lower triangular if it is a matrix.
    """
    native = target.native(phase.x)
    if native is None:
        for _ in range(steps):
            phase, momentum = leapfrog(target, phase, momentum, step, scale)
        return phase, momentum
    x, log_density, gradient, momentum = leapfrog_cpu.trajectory(
        native, phase.x, phase.gradient, momentum, step[:, 0], scale, steps
    )
    return Phase(x, log_density, gradient), momentum


def energy(log_density: Tensor, momentum: Tensor) -> Tensor:
    """The Hamiltonian -log p(x) + |momentum|^2 / 2: (C,)."""
    return 0.5 * momentum.square().sum(-1, dtype=log_density.dtype) - log_density


def reasonable_step_size(
    target: Target, x: Tensor, tuning: Tuning, noise: Noise, start: float = 0.1
) -> Tensor:
    """Halve or double each chain's step until one leapfrog crosses acceptance 0.8: (C,).

    Hoffman & Gelman (2014), algorithm 4, for all chains at once.
    """
    log_density, gradient = target.log_density_and_grad(x)
    momentum = noise.normal(target.dim)
    before = energy(log_density, momentum)
    step = torch.full_like(x[:, 0], start)
    direction = torch.zeros_like(step)
    for _ in range(50):
        phase, moved = leapfrog(
            target, Phase(x, log_density, gradient), momentum, step[:, None], tuning.scale
        )
        change = before - energy(phase.log_density, moved)
        up = torch.where(torch.isfinite(change) & (change > -0.2231), 1.0, -1.0).to(step)
        direction = torch.where(direction == 0, up, direction)
        going = up == direction
        if not bool(going.any()):
            break
        step = torch.where(going, step * 2.0**direction, step)
    return step


@dataclass(frozen=True)
class Hamiltonian(Sampler):
    """What samplers that move by leapfrogs share; use ``HMC``, ``NUTS``, ``ChEES`` or ``MALA``."""

    step_size: float | None = None
    target_acceptance: float = 0.8
    mass: MassChoice = "auto"

    target_acceptance_rate: ClassVar[float | None] = 0.8
    float32_on_gpu: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.one_of(mass=("auto", "diagonal", "dense"))
        self.positive("step_size")
        self.positive("target_acceptance", below=1)

    def mass_matrix(self, dim: int) -> Mass:
        return resolve(self.mass, dim)

    def acceptance_target(self, dim: int) -> float | None:
        return None if self.step_size is not None else self.target_acceptance

    def first_step_size(self, target: Target, x: Tensor, tuning: Tuning, noise: Noise) -> Tensor:
        if self.step_size is not None:
            return torch.full_like(tuning.step_size, self.step_size)
        return reasonable_step_size(target, x, tuning, noise)


@dataclass(frozen=True)
class Prepared(Hamiltonian):
    """What ``HMC`` and ``NUTS`` share besides: how warm-up begins and ends."""

    starts: Starts = "uniform"
    adapt: Adapt = "throughout"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.one_of(starts=("uniform", "pathfinder"), adapt=("until converged", "throughout"))

    @property
    def warm(self) -> bool:
        return self.starts == "pathfinder"

    @property
    def ends_early(self) -> bool:
        return self.adapt == "until converged"


@dataclass(frozen=True)
class HMC(Prepared):
    """Hamiltonian Monte Carlo with a fixed number of leapfrog steps.

    The step size of each transition is multiplied by a uniform factor in 1 +- ``jitter``, so that
    no trajectory length is resonant with the posterior. Works on any program with continuous sites.

    Args:
        steps: leapfrog steps per transition.
        step_size: fixed where given; else dual averaging aims at ``target_acceptance``.
        target_acceptance: mean Metropolis acceptance probability aimed at.
        mass: which covariance warm-up learns: "diagonal", "dense", or "auto": dense up to 30
            dimensions, where the draws of all chains together determine it well.
        jitter: relative half-width of the step size's uniform factor.
        starts: where chains begin: "uniform" on (-2, 2), or "pathfinder": each at a draw of the
            normal along an optimisation path of its own, with the scale of the best of these
            normals. It spares most of the gradients of warm-up's early windows.
        adapt: "throughout" the whole warm-up, or "until converged": once chains agree and the scale
            no longer changes, the windows left but the last are skipped. ``warmup_draws`` in the
            posterior's attributes says how long it was.
    """

    steps: int = 16
    jitter: float = 0.2

    uniforms: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(steps=1, jitter=0)
        if self.jitter >= 1:
            raise EngineError(f"HMC(jitter={self.jitter!r}): give a number below 1")

    def evaluations(self) -> int:
        return (self.warmup + self.draws) * self.steps

    def init(self, target: Target, x: Tensor, tuning: Tuning, randomness: Randomness) -> Phase:
        return Phase(x, *target.log_density_and_grad(x))

    def step(
        self, target: Target, state: Phase, tuning: Tuning, randomness: Randomness
    ) -> tuple[Phase, Info]:
        momentum = randomness.normal
        factor = 1 + self.jitter * (2 * randomness.uniform[:, 1] - 1)
        length = (tuning.step_size * factor)[:, None]
        before = energy(state.log_density, momentum)
        phase, momentum = trajectory(target, state, momentum, length, tuning.scale, self.steps)
        after = energy(phase.log_density, momentum)
        change = torch.nan_to_num(before - after, nan=-torch.inf, posinf=-torch.inf)
        accepted = randomness.uniform[:, 0].log() < change
        new = Phase(
            *(torch.where(_like(accepted, a), a, b) for a, b in zip(phase, state, strict=True))
        )
        statistics = {
            "energy": torch.where(accepted, after, before),
            "diverging": change < -DIVERGENCE,
            "n_steps": torch.full_like(accepted, self.steps, dtype=torch.int64),
        }
        return new, Info(torch.ones_like(accepted), change.clamp(max=0).exp(), statistics)


def _like(mask: Tensor, value: Tensor) -> Tensor:
    return mask if value.dim() == 1 else mask[:, None]
