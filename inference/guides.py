"""Families of approximations q on the flat unconstrained space, each a map from noise to draws.

A family is a module with ``forward(noise) -> (x, log_q)``, both differentiable: the
reparametrisation of Kingma & Welling (2014), as automated by Kucukelbir et al. (2017, ADVI). It
works in coordinates w with x = centre + frame w, where the posterior is roughly standard, so that
one learning rate suits every parameter.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ppl_models.flow import Coupling, Kind

Family = Literal["mean-field", "low-rank", "full-rank", "flow", "realnvp"]


class Frame(NamedTuple):
    """Where the posterior is, roughly: x = centre + frame w."""

    centre: Tensor  # (D,)
    diagonal: Tensor  # (D,), the frame of the families that keep coordinates apart
    full: Tensor  # (D, D) lower triangular, the frame of the others


class Approximation(nn.Module, ABC):
    """A distribution over R^D to draw from; ``noise`` has ``width`` columns of standard normals."""

    width: int

    @abstractmethod
    def forward(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """(P, width) -> draws (P, D) and their log densities (P,)."""


class MeanField(Approximation):
    """Independent normals. Its sds are too small where the posterior is correlated."""

    def __init__(self, frame: Frame) -> None:
        super().__init__()
        self.frame = frame
        self.width = len(frame.centre)
        self.loc = nn.Parameter(torch.zeros_like(frame.centre))
        self.log_scale = nn.Parameter(torch.zeros_like(frame.centre))

    def forward(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        w = self.loc + self.log_scale.exp() * noise
        log_det = self.log_scale.sum() + self.frame.diagonal.log().sum()
        return self.frame.centre + self.frame.diagonal * w, log_normal(noise) - log_det


class FullRank(Approximation):
    """A normal with any covariance: w = loc + L n, L lower triangular."""

    def __init__(self, frame: Frame) -> None:
        super().__init__()
        self.frame = frame
        self.width = len(frame.centre)
        self.loc = nn.Parameter(torch.zeros_like(frame.centre))
        self.log_scale = nn.Parameter(torch.zeros_like(frame.centre))
        self.lower = nn.Parameter(frame.centre.new_zeros(self.width, self.width))

    def forward(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        factor = self.lower.tril(-1) + torch.diag(self.log_scale.exp())
        w = self.loc + noise @ factor.T
        log_det = self.log_scale.sum() + self.frame.full.diagonal().log().sum()
        return self.frame.centre + w @ self.frame.full.T, log_normal(noise) - log_det


class LowRank(Approximation):
    """A normal with covariance S (I + W W^T) S, S diagonal and W of rank about sqrt(D)."""

    def __init__(self, frame: Frame) -> None:
        super().__init__()
        self.frame = frame
        dim = len(frame.centre)
        rank = max(1, round(math.sqrt(dim)))
        self.width = dim + rank
        self.loc = nn.Parameter(torch.zeros_like(frame.centre))
        self.log_scale = nn.Parameter(torch.zeros_like(frame.centre))
        # any small matrix without symmetry: at zero its gradient would vanish
        angles = torch.arange(dim * rank).to(frame.centre).reshape(dim, rank)
        self.factor = nn.Parameter(0.01 * angles.cos())

    def forward(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        dim = len(self.loc)
        whitened = noise[:, :dim] + noise[:, dim:] @ self.factor.T
        w = self.loc + self.log_scale.exp() * whitened
        log_det = self.log_scale.sum() + self.frame.diagonal.log().sum()
        x = self.frame.centre + self.frame.diagonal * w
        return x, self._log_normal(whitened) - log_det

    def _log_normal(self, whitened: Tensor) -> Tensor:
        """Log density of normal rows with covariance I + W W^T, by Woodbury's identity."""
        one = torch.eye(self.factor.shape[1]).to(self.factor)
        root = torch.linalg.cholesky(one + self.factor.T @ self.factor)
        along = torch.linalg.solve_triangular(root, (whitened @ self.factor).T, upper=False)
        return log_normal(whitened) + 0.5 * along.square().sum(0) - root.diagonal().log().sum()


class Flow(Approximation):
    """A normal through four coupling layers, whose inverse is as cheap (``ppl_models.flow``)."""

    def __init__(self, frame: Frame, kind: Kind = "spline") -> None:
        super().__init__()
        self.frame = frame
        dim = self.width = len(frame.centre)
        self.loc = nn.Parameter(torch.zeros_like(frame.centre))
        self.log_scale = nn.Parameter(torch.zeros_like(frame.centre))
        self.map = Coupling(dim, kind, layers=4, hidden=max(16, 4 * dim)).to(frame.centre)

    def forward(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        y, stretched = self.map(noise)
        w = self.loc + self.log_scale.exp() * y
        log_det = stretched + self.log_scale.sum() + self.frame.full.diagonal().log().sum()
        return self.frame.centre + w @ self.frame.full.T, log_normal(noise) - log_det


def family(name: Family, frame: Frame) -> Approximation:
    """The family by name, begun near a standard normal in the coordinates of ``frame``."""
    families: dict[str, Callable[[Frame], Approximation]] = {
        "mean-field": MeanField,
        "low-rank": LowRank,
        "full-rank": FullRank,
        "flow": Flow,
        "realnvp": partial(Flow, kind="realnvp"),
    }
    return families[name](frame)


def log_normal(noise: Tensor) -> Tensor:
    """Log density of standard normal rows."""
    return -0.5 * (noise.square().sum(-1) + noise.shape[-1] * math.log(2 * math.pi))
