"""Langevin Monte Carlo, with the Metropolis correction and without.

The Langevin diffusion dX = grad log p(X) dt / 2 + dB leaves p unchanged. One Euler step of time
e^2 in coordinates whitened by the scale S is

    x' = x + e^2/2 S S^T grad log p(x) + e S n,   n ~ N(0, I),

which is one leapfrog step of length e. Roberts & Tweedie (1996), "Exponential convergence of
Langevin distributions and their discrete approximations"; Roberts & Rosenthal (1998) for the best
acceptance rate; Durmus & Moulines (2017) for the bias of the unadjusted chain.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from inference.chains import Info, Randomness, Tuning
from inference.engine import Posterior, Problem
from inference.finding import Finding
from inference.hmc import DIVERGENCE, Hamiltonian, Phase, energy, leapfrog
from inference.mh import metropolis
from inference.target import Target
from ppl_models.noise import Noise


@dataclass(frozen=True)
class Langevin(Hamiltonian):
    """What both chains share; use ``MALA`` or ``ULA``."""

    thin: int = 10
    target_acceptance: float = 0.574

    def init(self, target: Target, x: Tensor, tuning: Tuning, randomness: Randomness) -> Phase:
        return Phase(x, *target.log_density_and_grad(x))

    def step(
        self, target: Target, state: Phase, tuning: Tuning, randomness: Randomness
    ) -> tuple[Phase, Info]:
        length = tuning.step_size[:, None]
        new, momentum = leapfrog(target, state, randomness.normal, length, tuning.scale)
        change = energy(state.log_density, randomness.normal) - energy(new.log_density, momentum)
        moved, info = self.settle(state, new, change, randomness.uniform[:, 0])
        return moved, info._replace(statistics={"diverging": ~(change > -DIVERGENCE)})

    @abstractmethod
    def settle(
        self, state: Phase, new: Phase, log_ratio: Tensor, uniform: Tensor
    ) -> tuple[Phase, Info]:
        """Where the chains are after a proposal with that log acceptance ratio (C,)."""


@dataclass(frozen=True)
class MALA(Langevin):
    """The Metropolis-adjusted Langevin algorithm: exact, whatever the step size.

    Args:
        thin: transitions per draw; 10 by default, since a transition costs one gradient.
        step_size: e, fixed where given; else dual averaging aims at ``target_acceptance``.
        target_acceptance: 0.574 is best for many independent dimensions.
        mass: which covariance warm-up learns: "diagonal", "dense", or "auto": dense up to 30
            dimensions, where the draws of all chains together determine it well.

    Example:
        >>> import torch
        >>> from inference import MALA, fit
        >>> from ppl_models import LogisticRegression
        >>> data = {"x": torch.randn(50, 2), "y": torch.arange(50) % 2}
        >>> fit(LogisticRegression(), data, MALA(warmup=500, draws=500)).status
        'ok'
    """

    def settle(
        self, state: Phase, new: Phase, log_ratio: Tensor, uniform: Tensor
    ) -> tuple[Phase, Info]:
        return metropolis(state, new, log_ratio, uniform)


@dataclass(frozen=True)
class ULA(Langevin):
    """The unadjusted Langevin algorithm: every proposal is taken, so that the draws are biased.

    Of a whitened Gaussian the variance is 1 / (1 - e^2 / 4) instead of 1; in general the bias of
    moments is of order e^2, and no diagnostic of mixing sees it. ``acceptance_rate`` is what a
    Metropolis correction would have accepted: one minus it tells how coarse the step is. ``ksd``
    measures the bias.

    Args:
        thin: transitions per draw; 10 by default, since a transition costs one gradient.
        step_size: e, fixed where given; else dual averaging aims at ``target_acceptance``.
        target_acceptance: the acceptance rate of a Metropolis correction, which warm-up applies.
        mass: which covariance warm-up learns: "diagonal", "dense", or "auto": dense up to 30
            dimensions, where the draws of all chains together determine it well.
    """

    target_acceptance: float = 0.95

    float32_on_gpu: ClassVar[bool] = False  # no test refuses what rounding does

    def warm_up(self, target: Target, x: Tensor, noise: Noise, problem: Problem) -> Any:
        """That of the adjusted chain, which cannot run away while its step size is learnt."""
        return MALA(**self.settings()).warm_up(target, x, noise, problem)

    def run(self, problem: Problem) -> Posterior:
        posterior = super().run(problem)
        rate = float(posterior.stats["acceptance_rate"].nanmean())
        step = posterior.attributes["step_size"]
        text = (
            f"the chain has no Metropolis correction, which would refuse {1 - rate:.1%} of its "
            f"steps: its draws are biased by its step size {step:.3g}, the sds by about "
            f"{(1 - step**2 / 4) ** -0.5 - 1 if step < 2 else float('inf'):.1%} if the posterior "
            "is near Gaussian"
        )
        remedy = "halve step_size until nothing changes, compare by ksd, or use MALA()"
        posterior.findings.append(Finding("unadjusted", "warning", step, text, remedy))
        return posterior

    def settle(
        self, state: Phase, new: Phase, log_ratio: Tensor, uniform: Tensor
    ) -> tuple[Phase, Info]:
        rate = torch.nan_to_num(log_ratio, nan=-torch.inf).clamp(max=0).exp()
        return new, Info(torch.ones_like(rate, dtype=torch.bool), rate, {})
