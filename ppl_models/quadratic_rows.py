"""Passes over the rows of data by their quadratic features, for mixtures of normals.

The log density of a row under a normal component is a linear function of the row's products, its
entries and one: all components at once are a matrix product, and so are the expected sufficient
statistics. Blocks of rows keep the features in the cache, and memory independent of their number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

_ELEMENTS = 1 << 19  # of the features and log densities of one block


class Moments(NamedTuple):
    """Weighted sums over rows y = x - location, by batch and component.

    ``second`` is the sum of y y' (B, K, D, D), or of the squares alone (B, K, D).
    """

    number: Tensor  # (B, K)
    first: Tensor  # (B, K, D)
    second: Tensor


class Rows(NamedTuple):
    """Rows x (N, D), taken about ``location`` (D,), with all products or the squares alone."""

    x: Tensor
    location: Tensor
    products: bool

    @property
    def features(self) -> int:
        """F = D (D + 1) / 2 + D + 1, or 2 D + 1."""
        d = self.x.shape[1]
        return (d * (d + 1) // 2 if self.products else d) + d + 1

    def blocks(self, width: int) -> Iterator[tuple[slice, Tensor]]:
        """Slices of rows and their features (F, B); the buffer of one is that of the next.

        ``width`` is how many numbers per row the caller keeps beside them.
        """
        n, d = self.x.shape
        size = min(n, max(256, min(8192, _ELEMENTS // (self.features + width))))
        buffer = self.x.new_ones(self.features, size)
        for begin in range(0, n, size):
            rows = slice(begin, min(begin + size, n))
            f = buffer[:, : rows.stop - begin]
            y = f[-1 - d : -1]
            torch.sub(self.x[rows].mT, self.location[:, None], out=y)
            if self.products:
                place = 0
                for i in range(d):
                    torch.mul(y[i], y[i:], out=f[place : place + d - i])
                    place += d - i
            else:
                torch.mul(y, y, out=f[:d])
            yield rows, f

    def coefficients(self, precision: Tensor, mean: Tensor, constant: Tensor) -> Tensor:
        """Of constant - (y - mean)' P (y - mean) / 2 in the features: (B, K, F).

        ``precision`` P is (B, K, D, D) or, diagonal, (B, K, D); ``mean`` (B, K, D) of y;
        ``constant`` (B, K).
        """
        d = mean.shape[-1]
        if self.products:
            linear = (precision @ mean[..., None])[..., 0]
            i, j = torch.triu_indices(d, d, device=mean.device)
            square = precision[..., i, j] * torch.where(i == j, -0.5, -1.0).to(mean)
        else:
            linear = precision * mean
            square = -0.5 * precision
        beside = constant - (linear * mean).sum(-1) / 2
        return torch.cat([square, linear, beside[..., None]], -1)

    def moments(self, sums: Tensor) -> Moments:
        """Sums of the features (B, K, F), unpacked."""
        d = self.x.shape[1]
        number, first, second = sums[..., -1], sums[..., -1 - d : -1], sums[..., : -1 - d]
        if self.products:
            i = torch.arange(d, device=sums.device)
            low, high = torch.minimum(i[:, None], i), torch.maximum(i[:, None], i)
            second = second[..., low * d - low * (low - 1) // 2 + high - low]
        return Moments(number, first, second)

    def expected(self, coefficients: Tensor) -> tuple[Moments, Tensor]:
        """Moments weighted by responsibilities, and the sum of log evidences of rows, (B,).

        The responsibility of component k for a row is exp(f . c_k) / sum_j exp(f . c_j), with
        ``coefficients`` c (B, K, F); the row's evidence is the denominator.
        """
        batch, k, _ = coefficients.shape
        flat = coefficients.reshape(batch * k, -1)
        sums = torch.zeros_like(flat)
        evidence = flat.new_zeros(batch)
        for _, f in self.blocks(batch * k):
            scores = (flat @ f).view(batch, k, -1)
            top = scores.amax(1, keepdim=True)
            total = scores.sub_(top).exp_().sum(1, keepdim=True)
            scores.div_(total)
            evidence += total.log_().add_(top).sum((1, 2))
            sums.addmm_(scores.view(batch * k, -1), f.mT)
        return self.moments(sums.view_as(coefficients)), evidence

    def assigned(self, coefficients: Tensor, uniform: Tensor) -> tuple[Tensor, Moments]:
        """A component drawn for each row by its responsibilities, (B, N), and their moments.

        ``uniform`` (B, N) holds the random numbers.
        """
        batch, k, _ = coefficients.shape
        flat = coefficients.reshape(batch * k, -1)
        sums = torch.zeros_like(flat)
        labels = torch.empty(uniform.shape, dtype=torch.int64, device=flat.device)
        for rows, f in self.blocks(2 * batch * k):
            scores = (flat @ f).view(batch, k, -1)
            cumulative = scores.sub_(scores.amax(1, keepdim=True)).exp_().cumsum_(1)
            below = uniform[:, None, rows] * cumulative[:, -1:] >= cumulative
            chosen = below.sum(1).clamp_(max=k - 1)
            labels[:, rows] = chosen
            sums.addmm_(_one_hot(chosen, k, f).view(batch * k, -1), f.mT)
        return labels, self.moments(sums.view_as(coefficients))

    def tallied(self, labels: Tensor, components: int) -> Moments:
        """The moments of the rows of each component: ``labels`` (B, N)."""
        width = len(labels) * components
        sums = self.x.new_zeros(width, self.features)
        for rows, f in self.blocks(width):
            sums.addmm_(_one_hot(labels[:, rows], components, f).view(width, -1), f.mT)
        return self.moments(sums.view(len(labels), components, -1))


def _one_hot(labels: Tensor, components: int, like: Tensor) -> Tensor:
    """(B, N) to (B, K, N)."""
    index = torch.arange(components, device=labels.device)
    return (labels[:, None] == index[:, None]).to(like.dtype)


LOG_2PI = math.log(2 * math.pi)
