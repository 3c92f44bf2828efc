"""Gaussians in information form, one per chain: maximised, drawn from, and profiled.

exp(c . theta - theta' A theta / 2) has mean and mode A^-1 c and covariance A^-1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ppl_models.noise import Noise


class Quadratic(NamedTuple):
    """c . theta - theta' A theta / 2, for chains or restarts C and theta of length D."""

    precision: Tensor  # A: (C, D, D), positive definite
    linear: Tensor  # c: (C, D)

    def plus(self, precision: Tensor) -> Quadratic:
        """With a further precision (D, D), of a Gaussian centred at zero."""
        return self._replace(precision=self.precision + precision)

    def mode(self) -> Tensor:
        """A^-1 c: (C, D). Raises ``torch.linalg.LinAlgError`` where A is singular."""
        factor = torch.linalg.cholesky(self.precision)
        return torch.cholesky_solve(self.linear[..., None], factor)[..., 0]

    def draw(self, noise: Noise) -> Tensor:
        """A draw of N(A^-1 c, A^-1) per chain: (C, D)."""
        factor = torch.linalg.cholesky(self.precision)
        white = noise.normal(self.linear.shape[-1]).to(self.linear)
        return _back(factor, _forward(factor, self.linear[..., None])[..., 0] + white)


class Profile(NamedTuple):
    """A quadratic in (alpha, beta) taken apart: one in alpha alone, and beta given alpha.

    With A = [[Aaa, Aab], [Aba, Abb]] and L L' = Abb, the maximum over beta, and up to a constant
    the logarithm of the integral, is c alpha - a alpha^2 / 2 with Schur's complement

        a = Aaa - Aab Abb^-1 Aba,    c = ca - Aab Abb^-1 cb.
    """

    a: Tensor  # (C,)
    c: Tensor  # (C,)
    factor: Tensor  # L: (C, D - 1, D - 1)
    slope: Tensor  # L^-1 Aba: (C, D - 1)
    level: Tensor  # L^-1 cb: (C, D - 1)

    @classmethod
    def of(cls, quadratic: Quadratic) -> Profile:
        """Of the first element of theta, beta being all the others."""
        precision, linear = quadratic
        factor = torch.linalg.cholesky(precision[..., 1:, 1:])
        right = torch.stack([precision[..., 1:, 0], linear[..., 1:]], -1)
        slope, level = _forward(factor, right).unbind(-1)
        a = precision[..., 0, 0] - slope.square().sum(-1)
        c = linear[..., 0] - (slope * level).sum(-1)
        return cls(a, c, factor, slope, level)

    def complete(self, alpha: Tensor, white: Tensor) -> Tensor:
        """(alpha, beta): (C, D), with beta drawn by the standard normals ``white`` (C, D - 1).

        White zeros give the maximiser of beta given alpha.
        """
        beta = _back(self.factor, self.level - self.slope * alpha[..., None] + white)
        return torch.cat([alpha[..., None], beta], -1)


def log_wright_omega(z: Tensor) -> Tensor:
    """The logarithm of Wright's omega function, which solves omega(z) + log omega(z) = z.

    Newton's method on v + e^v = z, convex and rising in v, from a point right of the root: it comes
    down to the root without overshooting, to machine precision within eight steps.
    Source: Corless & Jeffrey (2002), "The Wright omega function", LNCS 2385:76-89.
    """
    v = torch.where(z > 1, z.clamp_min(1.0).log(), z)
    for _ in range(8):
        v = v - (v.exp() + v - z) / (v.exp() + 1)
    return v


def _forward(factor: Tensor, right: Tensor) -> Tensor:
    """L^-1 right, for right (C, D, K)."""
    return torch.linalg.solve_triangular(factor, right, upper=False)


def _back(factor: Tensor, right: Tensor) -> Tensor:
    """L'^-1 right, for right (C, D)."""
    return torch.linalg.solve_triangular(factor.mT, right[..., None], upper=True)[..., 0]
