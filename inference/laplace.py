"""Laplace's approximation: a normal at the mode of the unconstrained density.

x ~ N(mode, H^-1) with H the Hessian of -log p at the mode (Tierney & Kadane 1986). Variational
families start from the same mode and curvature.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from inference.engine import Problem, TierChoice
from inference.guides import Frame
from inference.padded import Density
from inference.target import Target
from ppl_models.errors import ModelError
from ppl_models.noise import Noise

_STARTS = 4
_JUDGED = 64  # draws that tell which frame is better
_ITERATIONS = 300  # where a density has no mode, as many are enough to see it


class Laplace:
    """Draws of the normal at the mode, with the ratio log p - log q of each.

    Raises ``ModelError`` where the density has no finite mode or no curvature at it.
    """

    def __init__(self, problem: Problem, tier: TierChoice) -> None:
        climbed = problem.target(tier, 1000)
        self.target = climbed.uncompiled()  # of other numbers of points, each met once or twice
        self.noise = problem.noise(1).fold(1)
        self.mode = find_mode(climbed, problem.noise(_STARTS).fold(0))
        self.factor, fault = torch.linalg.cholesky_ex(-hessian(self.target, self.mode))
        if bool(fault) or not bool(torch.isfinite(self.factor).all()):
            raise ModelError(
                "Laplace's approximation found no mode with curvature in every direction: the "
                "posterior may be improper or peak at the edge of its space; use proper priors, or "
                "NUTS"
            )

    def draws(self, count: int) -> tuple[Tensor, Tensor]:
        """(1, count, D) and (count,)."""
        dim = len(self.mode)
        unit = self.noise.normal(count, dim)[0]
        x = self.mode + torch.linalg.solve_triangular(self.factor.T, unit.T, upper=True).T
        log_q = -0.5 * (unit.square().sum(-1) + dim * math.log(2 * math.pi))
        log_q = log_q + self.factor.diagonal().log().sum()
        log_p = torch.cat([self.target.log_density(part) for part in x.split(256)])
        return x[None], log_p - log_q


def frame(target: Target, noise: Noise) -> Frame:
    """Where to begin: at the mode with its curvature, or with unit scales about zero.

    Whichever is the better normal approximation by its ELBO: the mode of a posterior with a funnel
    is in its neck, far from where the mass is. Where the curvature is not usable, unit scales.
    """
    centre = find_mode(target, noise)
    curvature = -hessian(target, centre)
    identity = torch.eye(target.dim).to(centre)
    diagonal = curvature.diagonal()
    usable = torch.isfinite(diagonal) & (diagonal > 1e-2)  # flatter: the mode is no guide to scale
    scale = torch.where(usable, diagonal.clamp(min=1e-2).rsqrt(), 1.0)
    factor, fault = torch.linalg.cholesky_ex(curvature)
    if bool(fault) or not bool(usable.all()):
        return Frame(centre, scale, torch.diag(scale))
    inverse = torch.cholesky_solve(identity, factor)
    at_mode = Frame(centre, scale, torch.linalg.cholesky(inverse))
    unit = Frame(torch.zeros_like(centre), torch.ones_like(scale), identity)
    normal = noise.fold(1).normal(_JUDGED, target.dim)[0]
    return max(at_mode, unit, key=lambda at: _elbo(target, at, normal))


def _elbo(target: Density, at: Frame, normal: Tensor) -> float:
    """Of the normal in a frame, up to a constant of the dimension."""
    log_p = target.log_density(at.centre + normal @ at.full.T).mean()
    return float(torch.nan_to_num(log_p + at.full.diagonal().log().sum(), nan=-torch.inf))


def find_mode(target: Target, noise: Noise) -> Tensor:
    """The highest point that L-BFGS reaches from a starting point of each stream: (D,)."""

    def objective(point: np.ndarray) -> tuple[float, np.ndarray]:
        x = torch.as_tensor(point, dtype=target.dtype, device=target.device)[None]
        with torch.no_grad():
            log_density, gradient = target.log_density_and_grad(x)
        if not bool(torch.isfinite(log_density)):
            return math.inf, np.zeros_like(point)
        return -float(log_density), -gradient[0].double().cpu().numpy()

    starts = target.uncompiled().start(noise)
    best, lowest = starts[0], math.inf
    for start in starts:
        with np.errstate(all="ignore"):
            point = start.double().cpu().numpy()
            result = minimize(
                objective, point, jac=True, method="L-BFGS-B", options={"maxiter": _ITERATIONS}
            )
        if result.fun < lowest and np.isfinite(result.x).all():
            lowest = float(result.fun)
            best = torch.as_tensor(result.x, dtype=target.dtype, device=target.device)
    return best


def hessian(target: Density, x: Tensor) -> Tensor:
    """Second derivatives by central differences of the exact gradient: (D, D)."""
    step = (1e-5 if x.dtype == torch.float64 else 1e-2) * (1 + x.abs())
    offsets = torch.diag(step)
    with torch.no_grad():
        _, upper = target.log_density_and_grad(x + offsets)
        _, lower = target.log_density_and_grad(x - offsets)
    matrix = (upper - lower) / (2 * step[:, None])
    return 0.5 * (matrix + matrix.T)
