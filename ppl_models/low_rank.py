"""A normal distribution of low rank and equal noise, as in probabilistic principal components."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor


class LowRankNormal(TorchDistribution):
    """N(loc, W W' + noise I): the law of W z + loc + noise, with z standard normal.

    With M = W'W + noise I = L L' (q x q) and d = x - loc,

        log |C| = log |M| + (D - q) log noise,    d' C^-1 d = (d'd - |L^-1 W' d|^2) / noise,

    which costs O(D q) for each row. Where M overflows the density is NaN; nothing is raised.

    Args:
        loc: (*batch, D).
        loadings: W, (*batch, D, q).
        noise: its variance, (*batch).

    >>> law = LowRankNormal(torch.zeros(2), torch.ones(2, 1), torch.tensor(1.0))
    >>> round(float(law.log_prob(torch.zeros(2))), 4)  # log |C| is log 3
    -2.3872
    """

    arg_constraints = {  # noqa: RUF012  # pyright: ignore
        "loc": constraints.real_vector,
        "loadings": constraints.independent(constraints.real, 2),
        "noise": constraints.positive,
    }
    support = constraints.real_vector  # pyright: ignore
    has_rsample = True

    def __init__(
        self, loc: Tensor, loadings: Tensor, noise: Tensor, validate_args: bool | None = None
    ) -> None:
        self.loc, self.loadings, self.noise = loc, loadings, noise
        batch = torch.broadcast_shapes(loc.shape[:-1], loadings.shape[:-2], noise.shape)
        super().__init__(batch, loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> LowRankNormal:
        """The same law for a larger batch; its parameters are not copied."""
        new: Any = self._get_checked_instance(LowRankNormal, _instance)
        new.loc, new.loadings, new.noise = self.loc, self.loadings, self.noise
        super(LowRankNormal, new).__init__(
            torch.Size(batch_shape), self.event_shape, validate_args=False
        )
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        return self.loc.expand(self.batch_shape + self.event_shape)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        z = torch.randn(*shape[:-1], self.loadings.shape[-1]).to(self.loc)
        noise = torch.randn(shape).to(self.loc) * self.noise[..., None].sqrt()
        return self.loc + _by_row(z, self.loadings.mT) + noise

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        size, latent = self.loadings.shape[-2:]
        eye = torch.eye(latent, dtype=value.dtype, device=value.device)
        small = self.loadings.mT @ self.loadings + self.noise[..., None, None] * eye
        factor, _ = torch.linalg.cholesky_ex(small)
        away = value - self.loc
        whiten = torch.linalg.solve_triangular(factor, self.loadings.mT, upper=False)
        explained = _by_row(away, whiten.mT).square().sum(-1)
        square = (away.square().sum(-1) - explained) / self.noise
        half = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        log_det = 2 * half + (size - latent) * self.noise.log()
        return -(size * math.log(2 * math.pi) + log_det + square) / 2


def _by_row(rows: Tensor, matrix: Tensor) -> Tensor:
    """Rows (..., N, A) times matrices (..., A, B), (..., 1, A, B) or (..., N, A, B): (..., N, B).

    A matrix common to the rows of the last batch dimension is not repeated for each of them.
    """
    if matrix.dim() > 2 and matrix.shape[-3] == 1 and rows.dim() > 1:
        return rows @ matrix[..., 0, :, :]
    if matrix.dim() > 2:
        return (rows[..., None, :] @ matrix)[..., 0, :]
    return rows @ matrix
