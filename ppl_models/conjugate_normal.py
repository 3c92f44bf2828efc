"""The conjugate prior of normal components, with four structures of their covariances.

With scale Psi, degrees of freedom nu and shrinkage kappa, all means measured from one location,

    covariance_k ~ inverse-Wishart(nu, Psi),
    mean_k | covariance_k ~ Normal(0, covariance_k / kappa).

Diagonal and spherical covariances have inverse-Wishart variances in one dimension, that is scaled
inverse chi-squared ones; spherical and tied ones are shared by the columns and by the components.
Each of the posteriors is of the same form: Gelman et al. (2013), "Bayesian data analysis", 3.6.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppl_models.inverse_wishart import (
    InverseWishart,
    ScaledInverseChiSquared,
    cholesky,
    from_bartlett,
    log_diagonal,
    multigammaln,
)
from ppl_models.noise import Noise
from ppl_models.quadratic_rows import LOG_2PI, Moments


class Prior(NamedTuple):
    """kappa, nu and Psi: (D, D) for matrices, (D,) for diagonal, () for spherical covariances."""

    shrinkage: float
    degrees: float
    scale: Tensor


class Natural(NamedTuple):
    """The conjugate law by parameters that are linear in the moments of the data.

    Batch B and components K in front: ``degrees`` is (B, K), (B,) where tied; ``second``, Psi plus
    kappa mean mean', has the shape of the covariances.
    """

    shrinkage: Tensor  # (B, K)
    first: Tensor  # (B, K, D), kappa mean
    degrees: Tensor
    second: Tensor


class Standard(NamedTuple):
    """The conjugate law by its usual parameters; ``scale`` Psi has the shape of the covariances."""

    shrinkage: Tensor  # (B, K)
    mean: Tensor  # (B, K, D)
    degrees: Tensor
    scale: Tensor


@dataclass(frozen=True)
class Structure:
    """What is common to covariances of one structure.

    Args:
        matrix: whether a covariance is a matrix, or the variances of the columns.
        shared: matrices by the components, variances by the columns.
    """

    matrix: bool
    shared: bool

    @property
    def tied(self) -> bool:
        return self.matrix and self.shared

    def pool(self, second: Tensor) -> Tensor:
        """Sums by component, (..., K, D, D) or (..., K, D), in the shape of the covariances."""
        return second.sum(-3 if self.matrix else -1) if self.shared else second

    def by_component(self, covariance: Tensor, components: int, dim: int) -> Tensor:
        """Covariances as (..., K, D, D), or (..., K, D) where they are diagonal."""
        if not self.shared:
            return covariance
        if not self.matrix:
            return covariance[..., None].expand(*covariance.shape, dim)
        return covariance[..., None, :, :].expand(*covariance.shape[:-2], components, dim, dim)

    def law(self, degrees: Any, scale: Tensor) -> Any:
        """The law of covariances as they are stored, one of each batch and component."""
        if self.matrix:
            return InverseWishart(degrees, cholesky(scale), validate_args=False)
        if isinstance(degrees, Tensor):
            degrees = _beside(degrees, scale)
        return ScaledInverseChiSquared(degrees, scale, validate_args=False)

    # -- posteriors ------------------------------------------------------------------------------

    def natural(self, prior: Prior, moments: Moments) -> Natural:
        """The posterior given weighted sums over rows."""
        return Natural(
            prior.shrinkage + moments.number,
            moments.first,
            prior.degrees + self._observations(moments.number, moments.first.shape[-1]),
            prior.scale + self.pool(moments.second),
        )

    def standard(self, law: Natural) -> Standard:
        mean = law.first / law.shrinkage[..., None]
        between = law.first[..., None] * mean[..., None, :] if self.matrix else law.first * mean
        return Standard(law.shrinkage, mean, law.degrees, law.second - self.pool(between))

    def mode(self, law: Standard) -> Tensor:
        """The covariances at the joint mode of means and covariances."""
        components, dim = law.mean.shape[-2:]
        if self.tied:
            beyond = dim + 1 + components
        elif self.matrix:
            beyond = dim + 2
        else:
            beyond = 2 + (dim if self.shared else 1)
        return law.scale / _beside(law.degrees + beyond, law.scale)

    def likeliest(self, moments: Moments, floor: Tensor) -> tuple[Tensor, Tensor]:
        """Means and covariances that maximise the expected likelihood: (B, K, D), covariances.

        Covariances are kept above ``floor``, one matrix or the variances, in every direction; the
        maximiser under this constraint clips eigenvalues in units of the floor.
        """
        count = moments.number.clamp(min=torch.finfo(moments.number.dtype).tiny)
        empty = Natural(count, moments.first, count, self.pool(moments.second))
        law = self.standard(empty)
        number = self._observations(count, law.mean.shape[-1])
        covariance = law.scale / _beside(number, law.scale)
        if not self.matrix:
            return law.mean, torch.maximum(covariance, floor.expand_as(covariance))
        margin = covariance - (1 + 1e-10) * floor
        if bool((torch.linalg.cholesky_ex(margin).info == 0).all()):
            return law.mean, covariance
        root = cholesky(floor)
        half = torch.linalg.solve_triangular(root, covariance, upper=False)
        white = torch.linalg.solve_triangular(root, half.mT, upper=False)
        values, vectors = torch.linalg.eigh(white.nan_to_num(0.0))
        factor = root @ vectors * values.clamp(min=1).sqrt()[..., None, :]
        return law.mean, factor @ factor.mT

    # -- expectations under the law --------------------------------------------------------------

    def precision(self, law: Standard) -> tuple[Tensor, Tensor]:
        """E[Sigma^-1], (B, K, D, D) or (B, K, D), and E[log |Sigma^-1|], (B, K)."""
        components, dim = law.mean.shape[-2:]
        nu = _beside(law.degrees, law.scale)
        if self.matrix:
            tril = cholesky(law.scale)
            expected = nu * torch.cholesky_inverse(tril)
            logs = _digamma(law.degrees, dim) - 2 * log_diagonal(tril)
            logs = logs[..., None].expand(*logs.shape, components) if self.shared else logs
        else:
            expected = nu / law.scale
            logs = _digamma(nu.expand_as(law.scale), 1) - law.scale.log()
            logs = dim * logs if self.shared else logs.sum(-1)
        return self.by_component(expected, components, dim), logs

    def divergence(self, law: Standard, prior: Prior) -> Tensor:
        """The Kullback-Leibler divergence of the law from the prior: (B,)."""
        dim = law.mean.shape[-1]
        precision, logs = self.precision(law)
        kappa, kappa0 = law.shrinkage, prior.shrinkage
        if self.matrix:
            square = (law.mean * (precision @ law.mean[..., None])[..., 0]).sum(-1)
        else:
            square = (law.mean.square() * precision).sum(-1)
        means = dim * (kappa0 / kappa - 1 + (kappa / kappa0).log()) + kappa0 * square
        nu, nu0, size = law.degrees, prior.degrees, dim if self.matrix else 1
        if self.matrix:
            tril, tril0 = cholesky(law.scale), cholesky(prior.scale)
            scales, scales0 = 2 * log_diagonal(tril), 2 * log_diagonal(tril0)
            solved = torch.linalg.solve_triangular(tril, tril0.expand_as(tril), upper=False)
            trace = solved.square().sum((-2, -1))
            logs = logs[..., 0] if self.shared else logs
        else:
            nu = _beside(nu, law.scale)
            scales, scales0 = law.scale.log(), prior.scale.log()
            trace = prior.scale / law.scale
            logs = _digamma(nu.expand_as(law.scale), 1) - scales
        covariances = (
            nu * scales
            - nu0 * scales0
            + (nu - nu0) * (logs - size * math.log(2))
            - 2 * (multigammaln(nu / 2, size) - multigammaln(torch.as_tensor(nu0 / 2).to(nu), size))
            - nu * (size - trace)
        )
        return (means.sum(-1) + covariances.reshape(len(means), -1).sum(-1)) / 2

    def draws(self, law: Standard, noise: Noise, number: int) -> tuple[Tensor, Tensor]:
        """``number`` draws of the means, (B, S, K, D), and of the covariances, (B, S, ...)."""
        components, dim = law.mean.shape[-2:]
        scale = law.scale[:, None].expand(-1, number, *law.scale.shape[1:])
        nu = _beside(law.degrees, law.scale)[:, None]
        nu = nu.expand(-1, number, *nu.shape[2:])
        if self.matrix:
            steps = torch.arange(dim, dtype=nu.dtype, device=nu.device)
            concentration = (nu[..., 0] - steps) / 2
            diagonal = (2 * noise.fold(0).gamma(concentration)).sqrt()
            normal = noise.fold(1).normal(*scale.shape[1:])
            covariance = from_bartlett(cholesky(scale), diagonal, normal)
        else:
            covariance = scale / (2 * noise.fold(0).gamma(nu.expand_as(scale) / 2))
        white = noise.fold(2).normal(number, components, dim)
        spread = self.spread(self.by_component(covariance, components, dim), white)
        return law.mean[:, None] + spread / law.shrinkage[:, None, :, None].sqrt(), covariance

    def log_density(self, law: Standard, mean: Tensor, covariance: Tensor) -> Tensor:
        """At means (B, S, K, D), from the location, and covariances (B, S, ...): (B, S)."""
        components, dim = mean.shape[-2:]
        ahead = Standard(*(part[:, None] for part in law))
        logs = self.law(ahead.degrees, ahead.scale).log_prob(covariance)
        own = self.by_component(covariance, components, dim)
        white, half = self.whiten(own, mean - ahead.mean)
        kappa = ahead.shrinkage
        normal = dim / 2 * (kappa.log() - LOG_2PI) - half - kappa * white.square().sum(-1) / 2
        return normal.sum(-1) + logs.reshape(*logs.shape[:2], -1).sum(-1)

    def spread(self, covariance: Tensor, white: Tensor) -> Tensor:
        """Normal vectors of the covariances (..., K, D, D) or (..., K, D) from standard ones."""
        if self.matrix:
            return (cholesky(covariance) @ white[..., None])[..., 0]
        return covariance.sqrt() * white

    def whiten(self, covariance: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse of ``spread``, and half the log determinant of each covariance."""
        if self.matrix:
            tril = cholesky(covariance)
            white = torch.linalg.solve_triangular(tril, value[..., None], upper=False)[..., 0]
            return white, log_diagonal(tril)
        return value / covariance.sqrt(), covariance.log().sum(-1) / 2

    def _observations(self, count: Tensor, dim: int) -> Tensor:
        """How many squares each covariance is estimated from."""
        if not self.shared:
            return count
        return count.sum(-1) if self.matrix else dim * count


STRUCTURES = {
    "full": Structure(matrix=True, shared=False),
    "tied": Structure(matrix=True, shared=True),
    "diagonal": Structure(matrix=False, shared=False),
    "spherical": Structure(matrix=False, shared=True),
}


def _beside(value: Tensor, scale: Tensor) -> Tensor:
    """``value`` with further dimensions, to broadcast against ``scale``."""
    return value.reshape(*value.shape, *[1] * (scale.dim() - value.dim()))


def _digamma(degrees: Tensor, dim: int) -> Tensor:
    """E[log |W|] of a Wishart matrix of scale one."""
    steps = torch.arange(dim, dtype=degrees.dtype, device=degrees.device)
    return torch.digamma((degrees[..., None] - steps) / 2).sum(-1) + dim * math.log(2)
