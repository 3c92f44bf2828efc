"""Metropolis-adjusted microcanonical sampling: trajectories of constant speed.

Robnik, Cohn-Gordon & Seljak (2025), "Metropolis adjusted microcanonical Hamiltonian Monte Carlo",
arXiv:2503.01707. A particle moves at unit speed, u on the sphere |u| = 1, and the gradient g of the
log density turns it. In whitened coordinates, with D dimensions,

    dx/dt = u,   du/dt = (I - u u^T) g / (D - 1).

At fixed g a kick of length e has a closed form. With a = e |g| / (D - 1) and c the cosine between u
and g, it takes u to (u + (sinh a + c (cosh a - 1)) g / |g|) / w with w = cosh a + c sinh a, and
shrinks volume on the sphere by w^(D - 1) (Steeg & Galstyan 2021). A leapfrog of kicks and drifts is
reversible, so that a trajectory is accepted with probability

    min(1, p(x') / p(x) exp(-K)),   K = (D - 1) sum over kicks of log w,

which keeps p exactly. K plays the part of a kinetic energy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inference import mams_cpu
from inference.chains import Tuning
from inference.hmc import Phase
from inference.program import Program
from inference.sampling import Adapting
from inference.target import Target
from inference.trajectories import LEARNING, Journey, Path, SharedLength
from inference.warmup import Moments, Window, stretch, whiten
from ppl_models.errors import EngineError

_DRAWS_APART = 0.5
"""A trajectory's mean length over the distance after which a draw is as good as independent."""
_GROWTH = 2.0  # at most, from one window of warm-up to the next


@dataclass(frozen=True)
class MAMS(SharedLength):
    """Metropolis-adjusted microcanonical sampling, for many chains.

    Fewer gradients than HMC where D is large and the posterior near Gaussian, and trajectories of
    constant speed diverge seldom. Velocities are drawn anew at every transition. In warm-up the
    mean trajectory is 1.3 sqrt(D) long, then half the distance travelled per independent draw: the
    autocorrelation over a window, from how far the means of chains lie apart. Two chains run, but
    tell little of that: give 16 or more. A posterior of one dimension has no direction to turn.

    Args:
        target_acceptance: mean Metropolis acceptance probability aimed at, over chains and
            trajectories.
        step_size: fixed where given; else adapted.
        mass: which covariance warm-up learns: "diagonal", "dense", or "auto": dense up to 30
            dimensions, where the draws of all chains together determine it well.
        max_steps: at most so many leapfrogs a transition.
        superchains: so many groups of chains, each begun at one point: convergence is then judged
            by nested R-hat, which needs no long chains.

    Example:
        >>> import torch
        >>> from inference import MAMS, fit
        >>> from ppl_models import LogisticRegression
        >>> data = {"x": torch.randn(50, 2), "y": torch.arange(50) % 2}
        >>> fit(LogisticRegression(), data, MAMS(superchains=4, warmup=300, draws=100)).status
        'ok'
    """

    target_acceptance: float = 0.9

    def check(self, model: Any, program: Program) -> None:
        super().check(model, program)
        _refuse_a_line(program.dim)

    def first_length(self, dim: int) -> float:
        _refuse_a_line(dim)
        return 2 * 1.3 * dim**0.5

    def next_path(self, at: Adapting, window: Window | None) -> Path:
        path, drawn = super().next_path(at, window), at.moments
        if at.state.path.stage != LEARNING or not bool(drawn.number.min() > 1):
            return path
        growth = min(_DRAWS_APART / independent(drawn), _GROWTH)
        return path._replace(log_length=path.log_length + math.log(growth))

    def travel(
        self, target: Target, phase: Phase, tuning: Tuning, normal: Tensor, number: int
    ) -> Journey:
        velocity = normal / normal.norm(dim=-1, keepdim=True)
        before, step = -phase.log_density, tuning.step_size[:, None]
        phase, velocity, kinetic = trajectory(target, phase, velocity, step, tuning.scale, number)
        return Journey(phase, velocity, before, kinetic - phase.log_density)


def trajectory(
    target: Target, phase: Phase, velocity: Tensor, step: Tensor, scale: Tensor, steps: int
) -> tuple[Phase, Tensor, Tensor]:
    """So many leapfrogs of length ``step`` (C, 1): where they end, and the kinetic energy (C,).

    Without Python in between where the target is a C function.
    """
    native = target.native(phase.x)
    if native is not None:
        x, log_density, gradient, velocity, kinetic = mams_cpu.trajectory(
            native, phase.x, phase.gradient, velocity, step[:, 0], scale, steps
        )
        return Phase(x, log_density, gradient), velocity, kinetic
    velocity, kinetic = kick(velocity, whiten(scale, phase.gradient), 0.5 * step)
    for k in range(1, steps + 1):
        x = phase.x + step * stretch(scale, velocity)
        phase = Phase(x, *target.log_density_and_grad(x))
        # two half kicks at the same place are a whole one
        share = 0.5 if k == steps else 1.0
        velocity, change = kick(velocity, whiten(scale, phase.gradient), share * step)
        kinetic = kinetic + change
    return phase, velocity, kinetic


def kick(velocity: Tensor, gradient: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """Turn unit velocities (C, D) by whitened gradients (C, D) over steps (C, 1).

    Returns them and (D - 1) log w, (C,), by which the log of the volume has shrunk.
    """
    freedom = velocity.shape[1] - 1
    size = gradient.norm(dim=-1, keepdim=True)
    towards = gradient / size.clamp(min=torch.finfo(size.dtype).tiny)
    cosine = (velocity * towards).sum(-1, keepdim=True)
    angle = step * size / freedom
    # by exp(-2 a), which cannot overflow: all are divided by exp(a) / 2
    small = (-2 * angle).exp()
    along = 1 - small + cosine * (1 - (-angle).exp()).square()
    width = (1 + cosine) + (1 - cosine) * small
    turned = 2 * (-angle).exp() * velocity + along * towards
    turned = turned / turned.norm(dim=-1, keepdim=True)
    log_width = angle + (width / 2).log()
    return turned, freedom * log_width[:, 0]


def independent(moments: Moments) -> float:
    """Effective draws per transition, the mean over coordinates.

    The variance of a chain's mean, seen between chains, against that of independent draws.
    """
    dense = moments.scatter.dim() == 3
    scatter = moments.scatter.diagonal(dim1=-2, dim2=-1) if dense else moments.scatter
    within = scatter.sum(0) / (moments.number - 1).sum()
    between = moments.number.mean() * moments.mean.var(0)
    return float((within / between.clamp(min=torch.finfo(between.dtype).tiny)).clamp(max=2).mean())


def _refuse_a_line(dim: int) -> None:
    if dim < 2:
        raise EngineError(
            "MAMS needs a posterior of two dimensions or more, where a velocity can turn; use "
            "ChEES or NUTS"
        )
