"""Pathfinder: normals along the paths of L-BFGS (Zhang, Carpenter, Gelman & Vehtari 2022, JMLR 23).

Every point of a path to a mode, with the inverse Hessian that the optimiser has by then, is a
normal approximation; the best by its ELBO lies where the mass is, which need not be at the mode.
All paths step, and all normals are judged, in batches.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from inference.climb import Inverse, climb
from inference.engine import Engine, Posterior, Problem, TierChoice
from inference.importance import weighted
from inference.padded import Density, Padded
from inference.target import Target
from ppl_models.errors import ModelError
from ppl_models.noise import Noise

Starts = Literal["uniform", "pathfinder"]

_MOST = 1000  # evaluations of a climb
_HISTORY, _ELBO_DRAWS = 60, 25
_NEAR = 1.0  # nats of ELBO below the best normal that others may be to count for the scale
_CALLS = 100  # batched evaluations of a climb, roughly: a hint for the compiler
_CAUCHY = 0.2
"""The share of proposals with a Cauchy's tails: a posterior that reaches beyond the normals shows
in their weights. On a normal posterior that costs a tenth of the effective sample size."""
_REMEDY = "raise paths, try SVI(guide='flow'), or use NUTS"


class Factors(NamedTuple):
    """Inverse Hessians by a diagonal and the last J steps, the newest last; zeros before the first.

    The diagonal is updated as by Gilbert & Lemarechal (1989), the rest is the compact form of
    L-BFGS (Byrd, Nocedal & Schnabel 1994): H = diag(a) + beta gamma beta^T.
    """

    diagonal: Tensor  # (P, D)
    steps: Tensor  # (P, J, D)
    bends: Tensor  # (P, J, D), changes of minus the gradient

    @classmethod
    def unit(cls, like: Tensor, history: int) -> Factors:
        """No steps yet, of points like (P, D)."""
        none = like.new_zeros(len(like), history, like.shape[1])
        return cls(torch.ones_like(like), none, none)

    def low_rank(self) -> tuple[Tensor, Tensor]:
        """Factors beta (P, D, 2 J) and gamma (P, 2 J, 2 J)."""
        scaled = self.bends * self.diagonal[:, None]
        products = self.steps @ self.bends.mT  # (P, J, J)
        own = products.diagonal(dim1=-2, dim2=-1)
        upper = products.triu() + torch.diag_embed((own == 0).to(own))
        one = torch.eye(own.shape[-1]).to(own).expand_as(upper)
        inverse = torch.linalg.solve_triangular(upper, one, upper=True)
        middle = inverse.mT @ (torch.diag_embed(own) + self.bends @ scaled.mT) @ inverse
        above = torch.cat([torch.zeros_like(middle), -inverse], -1)
        gamma = torch.cat([above, torch.cat([-inverse.mT, middle], -1)], -2)
        return torch.cat([scaled, self.steps], 1).mT, gamma

    def times(self, v: Tensor) -> Tensor:
        beta, gamma = self.low_rank()
        column = v[..., None]
        return (self.diagonal[..., None] * column + beta @ (gamma @ (beta.mT @ column)))[..., 0]

    def updated(self, step: Tensor, bend: Tensor, good: Tensor) -> Factors:
        keep, a = good[:, None], self.diagonal
        step, bend = torch.where(keep, step, 1.0), torch.where(keep, bend, 1.0)
        bent = (a * bend.square()).sum(-1, keepdim=True)
        both = (step * bend).sum(-1, keepdim=True)
        stepped = (step.square() / a).sum(-1, keepdim=True)
        curvature = bent / (both * a) + bend.square() / both
        curvature = curvature - bent * step.square() / (both * stepped * a.square())
        return Factors(
            torch.where(keep & (curvature > 0), 1 / curvature, a),
            torch.where(keep[:, None], _pushed(self.steps, step), self.steps),
            torch.where(keep[:, None], _pushed(self.bends, bend), self.bends),
        )

    def at(self, points: Tensor) -> Factors:
        return Factors(*(part[points] for part in self))


def _pushed(history: Tensor, new: Tensor) -> Tensor:
    return torch.cat([history[:, 1:], new[:, None]], 1)


class Normals(NamedTuple):
    """N(mean, A (I + Q (L L^T - I) Q^T) A) with A = diag(root), one for each of P paths."""

    mean: Tensor  # (P, D)
    root: Tensor  # (P, D)
    basis: Tensor  # (P, D, R): Q, orthonormal
    factor: Tensor  # (P, R, R): L, lower triangular

    @classmethod
    def of(cls, x: Tensor, gradient: Tensor, inverse: Factors) -> tuple[Normals, Tensor]:
        """Those a Newton step from the points (P, D), and which of them are proper: (P,)."""
        beta, gamma = inverse.low_rank()
        root = inverse.diagonal.sqrt()
        basis, triangle = torch.linalg.qr(beta / root[..., None])
        inner = triangle @ gamma @ triangle.mT
        inner = 0.5 * (inner + inner.mT) + torch.eye(inner.shape[-1]).to(inner)
        factor, fault = torch.linalg.cholesky_ex(inner)
        mean = x + inverse.times(gradient)
        proper = (fault == 0) & torch.isfinite(mean).all(-1)
        return cls(mean, root, basis, factor), proper

    def draws(self, unit: Tensor) -> Tensor:
        """From standard normal numbers: (P, K, D) -> (P, K, D)."""
        inside = unit @ self.basis
        moved = inside @ self.factor.mT - inside
        return self.mean[:, None] + self.root[:, None] * (unit + moved @ self.basis.mT)

    def log_density(self, x: Tensor) -> Tensor:
        """(P, K, D) -> (P, K)."""
        squares, log_volume = self._distances(x)
        return -0.5 * (squares + x.shape[-1] * math.log(2 * math.pi)) - log_volume

    def log_wide(self, x: Tensor) -> Tensor:
        """The log density of the normals with a share of Cauchys: (P, K, D) -> (P, K)."""
        squares, log_volume = self._distances(x)
        half = 0.5 * (x.shape[-1] + 1)
        log_cauchy = math.lgamma(half) - half * (math.log(math.pi) + squares.log1p()) - log_volume
        normal = self.log_density(x) + math.log(1 - _CAUCHY)
        return torch.logaddexp(normal, log_cauchy + math.log(_CAUCHY))

    def _distances(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Squared distances in sds (P, K), and the log volumes of one sd (P, 1)."""
        white = (x - self.mean[:, None]) / self.root[:, None]
        inside = white @ self.basis
        solved = torch.linalg.solve_triangular(self.factor, inside.mT, upper=False).mT
        squares = (white.square().sum(-1) - inside.square().sum(-1)) + solved.square().sum(-1)
        diagonal = self.factor.diagonal(dim1=-2, dim2=-1)
        return squares, (self.root.log().sum(-1) + diagonal.log().sum(-1))[:, None]

    def covariance(self, *, dense: bool) -> Tensor:
        """Of a single path: (D, D), or its diagonal (D,)."""
        basis, wide = self.basis[0], self.basis[0] @ self.factor[0]
        if not dense:
            change = wide.square().sum(-1) - basis.square().sum(-1)
            return self.root[0].square() * (1 + change)
        inner = torch.eye(len(basis)).to(basis) + wide @ wide.T - basis @ basis.T
        return self.root[0, :, None] * inner * self.root[0]

    def at(self, paths: Tensor) -> Normals:
        """Those of some of the paths."""
        return Normals(*(part[paths] for part in self))


class Paths:
    """The best normal of each path so far, by the ELBO of a few draws."""

    def __init__(self, density: Density, x: Tensor, unit: Tensor, history: int) -> None:
        self._density = density
        self._unit = unit  # (P, K, D): the same numbers for every normal of a path
        self.elbo = x.new_full((len(x),), -torch.inf, dtype=torch.float64)
        self.normals, _ = Normals.of(x, torch.zeros_like(x), Factors.unit(x, history))
        self.steps = 0

    def watch(self, points: Tensor, x: Tensor, gradient: Tensor, inverse: Inverse) -> None:
        """Judge the normals at the points of a step."""
        assert isinstance(inverse, Factors)
        self.steps += 1
        found, proper = Normals.of(x, gradient, inverse)
        draws = found.draws(self._unit[points])
        log_p = self._density.log_density(draws.flatten(0, 1)).reshape(draws.shape[:2])
        elbo = (log_p - found.log_density(draws)).double().mean(-1)
        elbo = torch.where(proper & torch.isfinite(elbo), elbo, -torch.inf)
        better = elbo > self.elbo[points]
        index = points[better]
        self.elbo[index] = elbo[better]
        for best, new in zip(self.normals, found, strict=True):
            best[index] = new[better]


@torch.no_grad()
def find(
    climbed: Density, judged: Density, x: Tensor, noise: Noise, history: int, elbo_draws: int
) -> Paths:
    """Follow a path from every row of ``x`` (P, D).

    Args:
        climbed: the log density, for steps.
        judged: the same, for draws of normals.
        x: where the paths begin.
        noise: of as many streams.
        history: steps that inverse Hessians are made of.
        elbo_draws: draws of each normal that its ELBO is estimated from.

    Raises ``ModelError`` where no normal of any path has a finite ELBO.
    """
    paths = Paths(judged, x, noise.normal(elbo_draws, x.shape[1]), history)
    climb(climbed, x, torch.ones_like(x[0]), Factors.unit(x, history), paths.watch, _MOST)
    if not bool(torch.isfinite(paths.elbo).any()):
        raise ModelError(
            "Pathfinder found no normal approximation with a finite ELBO on any path: the log "
            "density is not finite around them; check the supports of the priors, or use NUTS"
        )
    return paths


@torch.no_grad()
def warm_start(target: Target, x: Tensor, noise: Noise, *, dense: bool) -> tuple[Tensor, Tensor]:
    """Where chains may begin, and a scale S for them: (C, D), and (D, D) or (D,).

    A path leads from each row of ``x`` (C, D), and a chain begins at a draw of the best normal of
    its own path: chains whose paths end in different modes begin there, and their starting points
    are as spread as the posterior where the normals fit. Those without one begin where they were.
    The scale is that of the average covariance of the best normals.
    """
    density = Padded(target, x, len(x))
    paths = find(density, density, x, noise.fold(0), _HISTORY, _ELBO_DRAWS)
    begin = paths.normals.draws(noise.fold(1).normal(1, x.shape[1]))[:, 0]
    value, gradient = target.log_density_and_grad(begin)
    good = torch.isfinite(paths.elbo) & torch.isfinite(value) & torch.isfinite(gradient).all(-1)
    near = (paths.elbo > paths.elbo.max() - _NEAR).nonzero()[:, 0]
    every = (paths.normals.at(one).covariance(dense=dense) for one in near.split(1))
    mean = functools.reduce(torch.add, every) / len(near)
    scale = torch.linalg.cholesky(mean) if dense else mean.sqrt()
    return torch.where(good[:, None], begin, x).contiguous(), scale.contiguous()


@dataclass(frozen=True)
class Pathfinder(Engine):
    """Normal approximations along optimisation paths, resampled by importance.

    Each path climbs from a point of its own; of the normals along it that with the highest ELBO
    proposes draws, a fifth of them as a Cauchy with the same scales (Hesterberg 1995), since what
    normals never reach k-hat could not tell. They are weighted against the mixture of all paths'
    proposals, so that paths that meet do not count twice, smoothed (``psis``) and resampled; k-hat
    says whether they can be trusted, though not surely: what no draw has reached it cannot count.
    (Of 20 seeds on a banana, b = a^2 with an sd of 0.1 about it, 19 are told of, and one passes
    with an sd of a of 0.82 instead of 1.) The log evidence, log p(data), is estimated as by
    ``ImportanceSampling``.

    Args:
        paths: how many, from starting points as those of chains.
        proposals: draws that are weighted, from all paths together.
        draws: how many are returned, resampled by weight.
        history: steps of a path that its inverse Hessians are made of. The paper takes 6; normal
            posteriors of so many dimensions are found exactly.
        elbo_draws: draws of each normal that its ELBO is estimated from.
        tier: how the log density is evaluated.
    """

    paths: int = 8
    proposals: int = 4000
    draws: int = 1000
    history: int = _HISTORY
    elbo_draws: int = _ELBO_DRAWS
    tier: TierChoice = "auto"

    stops_at: ClassVar[tuple[str, ...]] = ("seconds",)

    def __post_init__(self) -> None:
        self.at_least(paths=1, proposals=1, draws=1, history=1, elbo_draws=1)
        self.one_of(tier=("auto", "eager", "traced", "compiled"))

    @torch.no_grad()
    def run(self, problem: Problem) -> Posterior:
        """Climb, draw, weight, smooth, resample."""
        begin = time.perf_counter()
        problem.clock.expect("the paths ended")
        noise, own = problem.noise(self.paths), problem.noise(1).fold(2)
        target = problem.target(self.tier, _CALLS)
        judged = target.uncompiled()  # of other numbers of points, each met a few times
        start = target.start(noise.fold(0))
        climbed = Padded(target, start, self.paths)
        paths = find(climbed, judged, start, noise.fold(1), self.history, self.elbo_draws)
        x, log_q = _proposed(paths.normals.at(torch.isfinite(paths.elbo)), self.proposals, own)
        log_p = torch.cat([judged.log_density(part) for part in x.split(256)])
        problem.clock.met()
        found = weighted(problem, x, log_p - log_q, self.draws, own, _REMEDY)
        seconds = time.perf_counter() - begin
        return dataclasses.replace(
            found,
            seconds={"sampling": seconds, "total": seconds},
            attributes=found.attributes
            | {
                "elbo": float(paths.elbo.max()),
                "path_elbos": paths.elbo.tolist(),
                "steps": paths.steps,
            },
        )


def _proposed(normals: Normals, count: int, noise: Noise) -> tuple[Tensor, Tensor]:
    """At least so many draws (S, D) of the normals, wide, and the log density (S,) of them all."""
    paths, dim = normals.mean.shape
    number = -(-count // paths)
    unit = noise.fold(0).normal(paths * number, dim)[0].reshape(paths, number, dim)
    cauchy = noise.fold(1).uniform(paths * number)[0].reshape(paths, number) < _CAUCHY
    divisor = noise.fold(2).normal(paths * number, 1)[0].reshape(paths, number).abs()
    x = normals.draws(unit / torch.where(cauchy, divisor, 1.0)[..., None]).flatten(0, 1)
    every = torch.arange(paths, device=x.device).split(1)  # one by one, for memory's sake
    log_q = torch.cat([normals.at(one).log_wide(x[None]) for one in every]).logsumexp(0)
    return x, log_q - math.log(paths)
