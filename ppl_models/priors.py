"""Priors of the coefficients of a logistic regression: all that depends on the prior, in one place.

A prior gives the distributions of the Pyro program's sites, and what the Polya-Gamma augmentation
needs: the maximum of, and an exact draw from, the prior times a Gaussian

    exp(c . theta - theta' A theta / 2) pi(theta),    theta = (alpha, beta_1, ..., beta_P),

where alpha is the intercept and A, c come from the augmented likelihood (a ``Quadratic``).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from ppl_models.errors import ModelError
from ppl_models.noise import Noise
from ppl_models.quadratic import Profile, Quadratic, log_wright_omega

_EULER_GAMMA = 0.5772156649015329
_PROPOSALS = 16  # per round of the rejection sampler


class CoefficientPrior(ABC):
    """A prior of the intercept and the slopes of a linear predictor alpha + x . beta."""

    flat_from: ClassVar[int | None]
    """The prior is flat in theta from this index on; None where it is proper in all of theta."""

    @abstractmethod
    def slopes(self, spread: Tensor) -> Any:
        """The distribution of one slope per column, of batch shape that of ``spread``."""

    @abstractmethod
    def intercept(self, shift: Tensor) -> Any:
        """The distribution of the intercept; ``shift`` is x . beta at the columns' centres."""

    @abstractmethod
    def maximise(self, quadratic: Quadratic, centre: Tensor, spread: Tensor) -> Tensor:
        """The theta (C, P + 1) that maximises prior times Gaussian."""

    @abstractmethod
    def draw(self, quadratic: Quadratic, centre: Tensor, spread: Tensor, noise: Noise) -> Tensor:
        """Exact draws of theta (C, P + 1) from prior times Gaussian."""


@dataclass(frozen=True)
class NormalPrior(CoefficientPrior):
    """Weakly informative normals, on standardised covariates unless told otherwise.

    With m_j and s_j the mean and standard deviation (ddof 0) of column j of the data,

        beta_j ~ N(0, (scale / s_j)^2),    alpha | beta ~ N(-m . beta, intercept_scale^2):

    ``scale`` is per standard deviation of a covariate, and ``intercept_scale`` is that of the logit
    at average covariates, so that the prior does not hang on the units or the origin of x. The
    sites alpha and beta themselves stay in the units of x. A constant column has s_j = 1. With
    ``standardised=False``, m_j = 0 and s_j = 1: both scales hold as given, in the units of x.

    Raises ``ModelError`` where a scale is not positive and finite.
    Source: Gelman, Jakulin, Pittau & Su (2008), Annals of Applied Statistics 2:1360-1383, who give
    these scales, for Cauchy distributions.
    """

    intercept_scale: float = 10.0
    scale: float = 2.5
    standardised: bool = True

    flat_from: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        for name in ("intercept_scale", "scale"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ModelError(f"NormalPrior: {name} is {value}; give a positive number")

    def slopes(self, spread: Tensor) -> Any:
        width = self.scale / (spread if self.standardised else torch.ones_like(spread))
        return dist.Normal(torch.zeros_like(width), width)

    def intercept(self, shift: Tensor) -> Any:
        loc = -shift if self.standardised else torch.zeros_like(shift)
        return dist.Normal(loc, self.intercept_scale)

    def maximise(self, quadratic: Quadratic, centre: Tensor, spread: Tensor) -> Tensor:
        return quadratic.plus(self._precision(centre, spread)).mode()

    def draw(self, quadratic: Quadratic, centre: Tensor, spread: Tensor, noise: Noise) -> Tensor:
        return quadratic.plus(self._precision(centre, spread)).draw(noise)

    def _precision(self, centre: Tensor, spread: Tensor) -> Tensor:
        """The prior's own precision of theta: that of alpha + m . beta, and the slopes'."""
        if not self.standardised:
            centre, spread = torch.zeros_like(centre), torch.ones_like(spread)
        one = centre.new_ones(1)
        average = torch.cat([one, centre]) / self.intercept_scale
        ridge = torch.cat([0 * one, spread / self.scale]).square().diag()
        return torch.outer(average, average) + ridge


@dataclass(frozen=True)
class FlatPrior(CoefficientPrior):
    """Flat on every coefficient: the joint is the likelihood, and its mode the ML estimate.

    Improper: the program has nothing to draw alpha and beta from, and the posterior is proper
    exactly when no linear combination of the covariates separates the outcomes.
    """

    flat_from: ClassVar[int | None] = 0

    def slopes(self, spread: Tensor) -> Any:
        return dist.ImproperUniform(constraints.real, spread.shape, ())

    def intercept(self, shift: Tensor) -> Any:
        return dist.ImproperUniform(constraints.real, (), ())

    def maximise(self, quadratic: Quadratic, centre: Tensor, spread: Tensor) -> Tensor:
        return quadratic.mode()

    def draw(self, quadratic: Quadratic, centre: Tensor, spread: Tensor, noise: Noise) -> Tensor:
        return quadratic.draw(noise)


@dataclass(frozen=True)
class RobertCasella(CoefficientPrior):
    """An exponential prior on e^alpha, and flat slopes.

    With gamma = 0.5772 (Euler's constant) and logits as the unit of alpha and alpha_hat,

        pi(alpha | b) = (1/b) e^alpha exp(-e^alpha / b),    b = exp(alpha_hat + gamma),

    so that -alpha is Gumbel(-log b, 1) and E alpha = ``alpha_hat``, for which the authors take the
    maximum likelihood estimate. The sd of alpha is pi / sqrt(6) = 1.28. The slopes have no draws.

    Raises ``ModelError`` where ``alpha_hat`` is not finite.
    Source: Robert & Casella (2004), Monte Carlo Statistical Methods, 2nd ed., chapter 7.
    """

    alpha_hat: float

    flat_from: ClassVar[int | None] = 1

    def __post_init__(self) -> None:
        if not math.isfinite(self.alpha_hat):
            raise ModelError(f"RobertCasella: alpha_hat is {self.alpha_hat}; give a finite number")

    @property
    def log_b(self) -> float:
        return self.alpha_hat + _EULER_GAMMA

    def slopes(self, spread: Tensor) -> Any:
        return dist.ImproperUniform(constraints.real, spread.shape, ())

    def intercept(self, shift: Tensor) -> Any:
        gumbel = dist.Gumbel(shift.new_tensor(-self.log_b), 1.0)
        return dist.TransformedDistribution(gumbel, dist.transforms.AffineTransform(0.0, -1.0))

    def maximise(self, quadratic: Quadratic, centre: Tensor, spread: Tensor) -> Tensor:
        profile = Profile.of(quadratic)
        return profile.complete(self._mode(profile), torch.zeros_like(profile.level))

    def draw(self, quadratic: Quadratic, centre: Tensor, spread: Tensor, noise: Noise) -> Tensor:
        profile = Profile.of(quadratic)
        white = noise.fold(0).normal(len(spread)).to(spread)
        return profile.complete(self._draw(profile, noise.fold(1)), white)

    def _mode(self, profile: Profile) -> Tensor:
        """The maximiser of c alpha - a alpha^2/2 + alpha - e^alpha/b: (C,).

        By Wright's omega function, omega(z) + log omega(z) = z, it is log(a b omega(z)) at
        z = (c + 1)/a - log(a b).
        """
        log_ab = profile.a.log() + self.log_b
        return log_ab + log_wright_omega((profile.c + 1) / profile.a - log_ab)

    def _draw(self, profile: Profile, noise: Noise) -> Tensor:
        """Exact draws of alpha from exp(c alpha - a alpha^2/2 + alpha - e^alpha/b): (C,).

        By rejection. The tangent of the convex e^alpha at the mode m lies below it, which makes the
        envelope N(m, 1/a): a proposal m + d is kept with probability exp(-(e^m/b)(e^d - 1 - d)).
        """
        mode = self._mode(profile)
        weight = (mode - self.log_b).exp()[:, None]
        alpha, done = mode, mode.isnan()
        rounds = 0
        while not bool(done.all()):
            step = noise.fold(rounds, 0).normal(_PROPOSALS).to(mode) / profile.a.sqrt()[:, None]
            kept = noise.fold(rounds, 1).exponential(_PROPOSALS) > weight * (step.expm1() - step)
            first = step.gather(1, kept.int().argmax(1, keepdim=True))[:, 0]
            alpha = torch.where(kept.any(1) & ~done, mode + first, alpha)
            done = done | kept.any(1)
            rounds += 1
        return alpha
