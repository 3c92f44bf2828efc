"""Priors of covariance matrices and variances, on an unconstrained space in units of their scale.

Samplers begin at, and optimisers step by, numbers of the order of one in unconstrained space. The
bijections here start from the scale of the prior, so that the units of the data do not matter.
"""

# torch declares as properties what its distributions are to define
# pyright: reportAssignmentType=false, reportIncompatibleMethodOverride=false
# pyright: reportIncompatibleVariableOverride=false, reportPrivateImportUsage=false

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import biject_to, constraints, transform_to
from torch.distributions.transforms import AffineTransform, Transform


def cholesky(matrix: Tensor) -> Tensor:
    """The lower factor; of a matrix that is not positive definite something with NaN in its log."""
    return torch.linalg.cholesky_ex(matrix)[0]


def log_diagonal(tril: Tensor) -> Tensor:
    """The sum of the logs of the diagonal: half the log determinant of tril tril'."""
    return tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def multigammaln(a: Tensor, dim: int) -> Tensor:
    """Log of the multivariate gamma function of ``a`` > (dim - 1) / 2, elementwise."""
    steps = torch.arange(dim, dtype=a.dtype, device=a.device) / 2
    return torch.lgamma(a[..., None] - steps).sum(-1) + dim * (dim - 1) / 4 * math.log(math.pi)


class Covariances(constraints.Constraint):
    """Positive definite matrices, measured against ``scale_tril`` (..., D, D)."""

    event_dim = 2

    def __init__(self, scale_tril: Tensor) -> None:
        self.scale_tril = scale_tril

    def check(self, value: Tensor) -> Tensor:
        symmetric = torch.isclose(value, value.mT, rtol=1e-5).all(-1).all(-1)
        return symmetric & (torch.linalg.cholesky_ex(value).info == 0)


class Variances(constraints.Constraint):
    """Positive numbers, measured against ``scale``."""

    def __init__(self, scale: Tensor) -> None:
        self.scale = scale

    def check(self, value: Tensor) -> Tensor:
        return value > 0


class Places(constraints.Constraint):
    """Points of R^D, measured from ``location`` (D,) in units of ``unit`` (D,)."""

    event_dim = 1

    def __init__(self, location: Tensor, unit: Tensor) -> None:
        self.location, self.unit = location, unit

    def check(self, value: Tensor) -> Tensor:
        return torch.isfinite(value).all(-1)


class LogCholesky(Transform):
    """R^(D(D+1)/2) to covariance matrices, one to one: Sigma = C L L' C', C the scale's factor.

    The first D numbers x are the logs of the squared diagonal of the lower triangular L; the others
    are its entries below the diagonal, row by row, times sqrt(D), which keeps L L' well conditioned
    where all are of the order of one. With i = 1..D,

        log |d Sigma / d x| = (D + 1) log |C| + sum_i (D + 2 - i) x_i / 2 - D (D - 1) / 4 log D.
    """

    bijective = True
    domain = constraints.real_vector

    def __init__(self, scale_tril: Tensor) -> None:
        super().__init__()
        self.scale_tril = scale_tril
        self.dim = scale_tril.shape[-1]

    @property
    def codomain(self) -> constraints.Constraint:
        return Covariances(self.scale_tril)

    def _call(self, x: Tensor) -> Tensor:
        d = self.dim
        lower = x[..., d:] * d**-0.5
        # places above the diagonal, and on it, take the zero at the end
        i = torch.arange(d, device=x.device)
        place = torch.where(
            i[:, None] > i, i[:, None] * (i[:, None] - 1) // 2 + i, d * (d - 1) // 2
        )
        padded = torch.cat([lower, torch.zeros_like(x[..., :1])], -1)
        tril = padded[..., place] + torch.diag_embed((x[..., :d] / 2).exp())
        factor = self.scale_tril @ tril
        return factor @ factor.mT

    def _inverse(self, y: Tensor) -> Tensor:
        d = self.dim
        tril = torch.linalg.solve_triangular(self.scale_tril, cholesky(y), upper=False)
        rows, columns = torch.tril_indices(d, d, -1, device=y.device)
        diagonal = 2 * tril.diagonal(dim1=-2, dim2=-1).log()
        return torch.cat([diagonal, d**0.5 * tril[..., rows, columns]], -1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        d = self.dim
        power = torch.arange(d + 1, 1, -1, dtype=x.dtype, device=x.device) / 2
        constant = (d + 1) * log_diagonal(self.scale_tril) - d * (d - 1) / 4 * math.log(d)
        return constant + (x[..., :d] * power).sum(-1)

    def forward_shape(self, shape: Any) -> torch.Size:
        return torch.Size((*shape[:-1], self.dim, self.dim))

    def inverse_shape(self, shape: Any) -> torch.Size:
        return torch.Size((*shape[:-2], self.dim * (self.dim + 1) // 2))


class LogVariance(Transform):
    """The reals to variances: scale exp(x)."""

    bijective = True
    sign = 1
    domain = constraints.real

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.scale = scale

    @property
    def codomain(self) -> constraints.Constraint:
        return Variances(self.scale)

    def _call(self, x: Tensor) -> Tensor:
        return self.scale * x.exp()

    def _inverse(self, y: Tensor) -> Tensor:
        return (y / self.scale).log()

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return x + self.scale.log()


for _registry in (biject_to, transform_to):
    _registry.register(Covariances, lambda constraint: LogCholesky(constraint.scale_tril))
    _registry.register(Variances, lambda constraint: LogVariance(constraint.scale))
    _registry.register(
        Places, lambda constraint: AffineTransform(constraint.location, constraint.unit, 1)
    )


class InverseWishart(TorchDistribution):
    """The inverse-Wishart law of a covariance matrix Sigma (D, D).

    The density is proportional to |Sigma|^(-(nu + D + 1) / 2) exp(-tr(Psi Sigma^-1) / 2).

    Args:
        degrees: nu > D - 1, the degrees of freedom: a number or (*batch).
        scale_tril: the lower Cholesky factor of the scale matrix Psi, (*batch, D, D).

    The mean is Psi / (nu - D - 1), the mode Psi / (nu + D + 1) (Gelman et al. 2013, "Bayesian data
    analysis", appendix A).

    >>> law = InverseWishart(5.0, torch.eye(2))
    >>> round(float(law.log_prob(torch.eye(2))), 4)
    -5.3228
    """

    arg_constraints = {"scale_tril": constraints.lower_cholesky}  # noqa: RUF012
    has_rsample = False

    def __init__(
        self,
        degrees: Tensor | float,
        scale_tril: Tensor,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.scale_tril = scale_tril
        batch = scale_tril.shape[:-2]
        self.degrees = torch.as_tensor(degrees).to(scale_tril).expand(batch)
        super().__init__(batch, scale_tril.shape[-2:], validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=2)
    def support(self) -> constraints.Constraint:
        return Covariances(self.scale_tril)

    def log_prob(self, value: Tensor) -> Tensor:
        d, nu = self.event_shape[-1], self.degrees
        tril = cholesky(value)
        solved = torch.linalg.solve_triangular(tril, self.scale_tril, upper=False)
        constant = nu * (log_diagonal(self.scale_tril) - d / 2 * math.log(2)) - multigammaln(
            nu / 2, d
        )
        return constant - (nu + d + 1) * log_diagonal(tril) - solved.square().sum((-2, -1)) / 2

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """By Bartlett's decomposition of the Wishart law of the inverse."""
        shape = self._extended_shape(sample_shape)
        d = shape[-1]
        steps = torch.arange(d, dtype=self.degrees.dtype, device=self.degrees.device)
        concentration = ((self.degrees[..., None] - steps) / 2).expand(shape[:-1])
        diagonal = (2 * torch._standard_gamma(concentration)).sqrt()
        normal = torch.randn(shape, dtype=diagonal.dtype, device=diagonal.device)
        return from_bartlett(self.scale_tril, diagonal, normal)

    def expand(self, batch_shape: Any, _instance: Any = None) -> InverseWishart:
        tril = self.scale_tril.expand(*batch_shape, *self.event_shape)
        return InverseWishart(self.degrees.expand(batch_shape), tril, validate_args=False)


def from_bartlett(scale_tril: Tensor, diagonal: Tensor, normal: Tensor) -> Tensor:
    """An inverse-Wishart matrix (..., D, D) from independent variables.

    Args:
        scale_tril: the factor of Psi.
        diagonal: (..., D); the square of entry i = 0, 1, ... is chi-squared of nu - i degrees.
        normal: standard normal (..., D, D), of which the part below the diagonal is used.
    """
    bartlett = normal.tril(-1) + torch.diag_embed(diagonal)
    # Sigma^-1 = C^-T A A' C^-1, so that Sigma = B B' with B' = A^-1 C'
    root = torch.linalg.solve_triangular(bartlett, scale_tril.mT.expand_as(bartlett), upper=False)
    return root.mT @ root


class ScaledInverseChiSquared(TorchDistribution):
    """The law of a variance v with nu degrees of freedom: v = scale / chi^2(nu), elementwise.

    That is the inverse-Wishart law in one dimension, or inverse-gamma(nu / 2, scale / 2).

    >>> law = ScaledInverseChiSquared(3.0, torch.tensor(2.0))
    >>> gamma = torch.distributions.InverseGamma(torch.tensor(1.5), torch.tensor(1.0))
    >>> bool(torch.isclose(law.log_prob(torch.tensor(0.7)), gamma.log_prob(torch.tensor(0.7))))
    True
    """

    arg_constraints = {"scale": constraints.positive}  # noqa: RUF012
    has_rsample = False

    def __init__(
        self, degrees: Tensor | float, scale: Tensor, *, validate_args: bool | None = None
    ) -> None:
        self.scale = scale
        self.degrees = torch.as_tensor(degrees).to(scale).expand(scale.shape)
        super().__init__(scale.shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:
        return Variances(self.scale)

    def log_prob(self, value: Tensor) -> Tensor:
        half = self.degrees / 2
        constant = half * (self.scale / 2).log() - torch.lgamma(half)
        return constant - (half + 1) * value.log() - self.scale / (2 * value)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        half = (self.degrees / 2).expand(self._extended_shape(sample_shape))
        return self.scale / (2 * torch._standard_gamma(half))

    def expand(self, batch_shape: Any, _instance: Any = None) -> ScaledInverseChiSquared:
        scale = self.scale.expand(batch_shape)
        return ScaledInverseChiSquared(self.degrees.expand(batch_shape), scale, validate_args=False)


class Placed(TorchDistribution):
    """A distribution of points of R^D whose unconstrained space has an origin and units.

    Args:
        base_dist: the distribution, of event shape (D,).
        location: (D,), the origin.
        unit: (D,), positive.
    """

    arg_constraints = {}  # noqa: RUF012

    def __init__(self, base_dist: Any, location: Tensor, unit: Tensor) -> None:
        self.base_dist, self.location, self.unit = base_dist, location, unit
        super().__init__(base_dist.batch_shape, base_dist.event_shape, validate_args=False)

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> constraints.Constraint:
        return Places(self.location, self.unit)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.base_dist.log_prob(value)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.base_dist.sample(sample_shape)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Placed:
        return Placed(self.base_dist.expand(batch_shape), self.location, self.unit)
