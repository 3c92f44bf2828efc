"""Metropolis-Hastings (Metropolis et al. 1953; Hastings 1970): random walk and independence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from inference.chains import Info, Randomness, Tuning
from inference.engine import Posterior, Problem
from inference.proposal import Proposal
from inference.sampling import Sampler
from inference.target import Target
from inference.warmup import Mass, MassChoice, resolve, stretch
from ppl_models.noise import Noise


class Point(NamedTuple):
    """A point of the chain and its density."""

    x: Tensor  # (C, D)
    log_density: Tensor  # (C,)


@dataclass(frozen=True)
class MH(Sampler):
    """Metropolis-Hastings with a random walk, or with independence proposals.

    The random walk proposes x + s S n with n standard normal; warm-up learns the covariance S S^T
    (Haario, Saksman & Tamminen 2001) and scales s to the acceptance rate that is best for a
    Gaussian: 0.44 in one dimension falling to 0.234 (Roberts, Gelman & Gilks 1997). No gradient is
    used, but the log density must be in unconstrained space, which ``fit`` sees to.

    Args:
        mass: which covariance warm-up learns: "diagonal", "dense", or "auto": dense up to 30
            dimensions, where the draws of all chains together determine it well.
        thin: transitions per draw; 10 by default, since a random walk moves slowly.
        proposal: a Pyro program over the model's latent sites with the model's arguments. Each
            transition proposes an independent draw of it; nothing is adapted.
    """

    thin: int = 10
    mass: MassChoice = "auto"
    proposal: Callable[..., Any] | None = None

    uniforms: ClassVar[int] = 1
    target_acceptance_rate: ClassVar[float | None] = 0.234

    def __post_init__(self) -> None:
        super().__post_init__()
        self.one_of(mass=("auto", "diagonal", "dense"))
        self.program_or_none("proposal")

    def run(self, problem: Problem) -> Posterior:
        if self.proposal is not None:
            return Independence(
                chains=self.chains,
                warmup=self.warmup,
                draws=self.draws,
                thin=self.thin,
                tier=self.tier,
                proposal=Proposal(problem, self.proposal),
            ).run(problem)
        return super().run(problem)

    def mass_matrix(self, dim: int) -> Mass:
        return resolve(self.mass, dim)

    def acceptance_target(self, dim: int) -> float:
        return 0.234 + (0.44 - 0.234) / dim

    def first_step_size(self, target: Target, x: Tensor, tuning: Tuning, noise: Noise) -> Tensor:
        return torch.full_like(tuning.step_size, 2.38 / target.dim**0.5)

    def init(self, target: Target, x: Tensor, tuning: Tuning, randomness: Randomness) -> Point:
        return Point(x, target.log_density(x))

    def step(
        self, target: Target, state: Point, tuning: Tuning, randomness: Randomness
    ) -> tuple[Point, Info]:
        x = state.x + tuning.step_size[:, None] * stretch(tuning.scale, randomness.normal)
        new = Point(x, target.log_density(x))
        change = new.log_density - state.log_density
        return metropolis(state, new, change, randomness.uniform[:, 0])


class Proposed(NamedTuple):
    """A point with its densities under the target and under the proposal."""

    x: Tensor  # (C, D)
    log_density: Tensor  # (C,)
    log_proposal: Tensor  # (C,)


class Offer(NamedTuple):
    """The random numbers of one independence step."""

    x: Tensor  # (C, D)
    log_proposal: Tensor  # (C,)
    uniform: Tensor  # (C,)


@dataclass(frozen=True, kw_only=True)
class Independence(Sampler):
    """Metropolis-Hastings with proposals that do not depend on the state; see ``MH(proposal=...)``.

    The chain is uniformly ergodic where the proposal's tails cover the posterior's, and sticks
    where they do not (Tierney 1994; Robert & Casella 2004, section 7.4).
    """

    proposal: Proposal

    def start(self, target: Target, noise: Noise) -> Tensor:
        return self.proposal.start(target, noise)

    def randomness(self, target: Target, noise: Noise, length: int) -> list[Offer]:
        x, log_proposal = self.proposal.draw(noise.fold(0), length)
        uniform = noise.fold(1).uniform(length)
        parts = zip(x.unbind(1), log_proposal.unbind(1), uniform.unbind(1), strict=True)
        return [Offer(*part) for part in parts]

    def init(self, target: Target, x: Tensor, tuning: Tuning, randomness: Any) -> Proposed:
        return Proposed(x, target.log_density(x), self.proposal.log_density(x))

    def step(
        self, target: Target, state: Proposed, tuning: Tuning, randomness: Any
    ) -> tuple[Proposed, Info]:
        offer: Offer = randomness
        new = Proposed(offer.x, target.log_density(offer.x), offer.log_proposal)
        correction = state.log_proposal - new.log_proposal
        change = new.log_density - state.log_density + correction
        return metropolis(state, new, change, offer.uniform)


S = TypeVar("S", bound=tuple[Tensor, ...])


def metropolis(state: S, proposed: S, log_ratio: Tensor, uniform: Tensor) -> tuple[S, Info]:
    """Each chain moves to its proposal with probability min(1, exp(log_ratio)).

    None moves to where the density is NaN or infinite, as where numbers have left their range.
    """
    density: Tensor = cast(Any, proposed).log_density
    log_ratio = torch.nan_to_num(log_ratio, nan=-torch.inf)
    log_ratio = torch.where(density == torch.inf, -torch.inf, log_ratio)
    accepted = uniform.log() < log_ratio
    parts = (
        torch.where(accepted.reshape(-1, *[1] * (a.dim() - 1)), a, b)
        for a, b in zip(proposed, state, strict=True)
    )
    make: Any = type(state)
    return make(*parts), Info(torch.ones_like(accepted), log_ratio.clamp(max=0).exp(), {})
