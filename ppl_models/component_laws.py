"""The laws of a mixture's means and rows as Pyro distributions."""

# torch declares as properties what its distributions are to define
# pyright: reportAssignmentType=false, reportIncompatibleMethodOverride=false
# pyright: reportIncompatibleVariableOverride=false, reportPrivateImportUsage=false

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from ppl_models.conjugate_normal import Structure
from ppl_models.inverse_wishart import cholesky, log_diagonal
from ppl_models.quadratic_rows import LOG_2PI


class MeanGiven(TorchDistribution):
    """Normal(location, covariance / shrinkage) for each component."""

    arg_constraints = {}  # noqa: RUF012
    support = constraints.real_vector

    def __init__(
        self, structure: Structure, location: Tensor, covariance: Tensor, shrinkage: float
    ) -> None:
        self.structure, self.location = structure, location
        self.covariance, self.shrinkage = covariance, shrinkage
        dims = 2 if structure.matrix else 1
        batch = covariance.shape[: covariance.dim() - dims]
        super().__init__(batch, location.shape[-1:], validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        white, half = self.structure.whiten(self.covariance, value - self.location)
        dim = value.shape[-1]
        constant = dim / 2 * (math.log(self.shrinkage) - LOG_2PI)
        return constant - half - self.shrinkage * white.square().sum(-1) / 2

    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        white = torch.randn(shape, dtype=self.location.dtype, device=self.location.device)
        return self.location + self.structure.spread(self.covariance, white) / self.shrinkage**0.5


class RowGiven(TorchDistribution):
    """Row n is Normal(mean_k, covariance_k), k = z_n.

    ``z`` is (N,), or (K, 1) where the components are enumerated: then all rows are compared with
    all components at once, which is a matrix product, and nothing is gathered by z.
    """

    arg_constraints = {}  # noqa: RUF012
    support = constraints.real_vector

    def __init__(
        self,
        structure: Structure,
        z: Tensor,
        mean: Tensor,
        covariance: Tensor,
        batch: torch.Size | None = None,
    ) -> None:
        self.structure, self.z = structure, z
        self.means, self.covariances = mean, covariance
        shape = z.shape if batch is None else batch
        super().__init__(shape, mean.shape[-1:], validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        dim = value.shape[-1]
        all_logs = -half_distances(self.structure, value, self.means, self.covariances)
        all_logs = all_logs - dim / 2 * LOG_2PI
        if self.z.dim() > 1:
            return all_logs
        return all_logs.gather(0, self.z[None].expand(1, len(value)))[0]

    def sample(self, sample_shape: Any = ()) -> Tensor:
        white = torch.randn(
            (*sample_shape, *self.batch_shape, *self.event_shape),
            dtype=self.means.dtype,
            device=self.means.device,
        )
        return self.means[self.z] + self.structure.spread(self.covariances[self.z], white)

    def expand(self, batch_shape: Any, _instance: Any = None) -> RowGiven:
        shape = torch.Size(batch_shape)
        return RowGiven(self.structure, self.z, self.means, self.covariances, shape)


def half_distances(structure: Structure, x: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """(x_n - mean_k)' Sigma_k^-1 (x_n - mean_k) / 2 + log |Sigma_k| / 2: (K, N)."""
    if structure.matrix:
        tril = cholesky(covariance)
        away = (x - mean[:, None]).mT  # (K, D, N)
        white = torch.linalg.solve_triangular(tril, away, upper=False)
        return white.square().sum(-2) / 2 + log_diagonal(tril)[:, None]
    white = (x - mean[:, None]) / covariance.sqrt()[:, None]
    return white.square().sum(-1) / 2 + covariance.log().sum(-1)[:, None] / 2
