"""What an encoder loses: the approximation gap and the amortisation gap of each row, in nats.

Cremer, Li & Duvenaud (2018), "Inference suboptimality in variational autoencoders". With L[q] the
ELBO of a row under q, and q* the best normal for that row,

    log p(x) - L[q(z | x)] = (log p(x) - L[q*]) + (L[q*] - L[q(z | x)])
                           =  approximation gap +  amortisation gap,

what the family cannot say, and what the encoder does not say though the family could.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from inference import row_weights
from inference.ais import AIS, effective, error_of, log_mean
from inference.engine import Problem
from inference.fit import bind
from inference.program import isolated
from inference.replicated import Replicated
from inference.rows import Rows
from ppl_models.base import HasRows
from ppl_models.errors import EngineError

Family = Literal["diagonal", "full"]

_PARTICLES = 16  # draws of q* per step
_RATE = 0.05  # of steps in units of the encoder's sds
_DRAWN = 200  # draws of the guide that q* starts from
_NUMBERS = 1 << 24  # that the draws of one evaluation and their rows may hold


class Estimate(NamedTuple):
    """A figure of each row with its Monte Carlo error."""

    value: Tensor  # (rows,)
    error: Tensor  # (rows,)


@dataclass(frozen=True)
class Gaps:
    """The gaps of each row, and what they are made of, in nats.

    Args:
        log_likelihood: by annealed importance sampling.
        best: the ELBO of the best normal.
        elbo: that of the encoder.
        importance: log p(x) by importance sampling from the encoder.
        importance_ess: the effective number of its draws, (rows,).
    """

    log_likelihood: Estimate
    best: Estimate
    elbo: Estimate
    importance: Estimate
    importance_ess: Tensor

    @property
    def approximation(self) -> Tensor:
        """Log p(x) - L[q*]: (rows,)."""
        return self.log_likelihood.value - self.best.value

    @property
    def amortisation(self) -> Tensor:
        """L[q*] - L[q(z | x)]: (rows,)."""
        return self.best.value - self.elbo.value

    @property
    def table(self) -> pd.DataFrame:
        """Means over rows; their standard errors over rows, and by Monte Carlo for these rows."""
        parts = {
            "log_likelihood": (self.log_likelihood,),
            "importance": (self.importance,),
            "best_elbo": (self.best,),
            "elbo": (self.elbo,),
            "approximation_gap": (self.log_likelihood, self.best),
            "amortisation_gap": (self.best, self.elbo),
            "gap": (self.log_likelihood, self.elbo),
        }
        return pd.DataFrame({name: _row(*terms) for name, terms in parts.items()}).T

    def __repr__(self) -> str:
        return f"Gaps of {len(self.best.value)} rows, in nats:\n{self.table.round(3)}"


def inference_gaps(
    model: Any,
    data: Any,
    annealing: AIS | None = None,
    *,
    family: Family = "diagonal",
    steps: int = 500,
    samples: int = 2000,
    seed: int = 0,
) -> Gaps:
    """The gaps between log p(x) and the ELBO of a trained model's guide, row by row.

    Args:
        model: a ``HasRows`` with a guide, whose weights are trained.
        data: as for ``fit``.
        annealing: how log p(x) is estimated; ``AIS()`` by default.
        family: of q*, a normal of the unconstrained latents with a "diagonal" covariance, as that
            of most encoders, or a "full" one.
        steps: of Adam on q*, all rows in one batch.
        samples: of each row that an ELBO is estimated from.
        seed: of all of it.

    Raises:
        EngineError: the weights are not trained, or there is no guide.
        ModelError: the rows are not independent.
    """
    if family not in ("diagonal", "full"):
        raise EngineError(f"inference_gaps(family={family!r}): choose 'diagonal' or 'full'")
    annealing = AIS() if annealing is None else annealing
    problem = bind(model, data, seed=seed)
    annealing.check(model, problem.program)
    if type(model).guide is HasRows.guide:
        raise EngineError("inference_gaps: the model has no guide whose gap could be told")
    with isolated(problem.dtype, problem.device):
        with torch.no_grad():
            found = annealing.run(problem).attributes
            weights = guide_weights(problem, samples)
        best = best_normal(Rows(problem), family, steps, samples)
    exact = (weights.new_tensor(found[n]) for n in ("log_likelihood", "log_likelihood_error"))
    return Gaps(
        Estimate(*exact),
        best,
        _mean(weights),
        Estimate(log_mean(weights), error_of(weights)),
        effective(weights),
    )


def guide_weights(problem: Problem, samples: int) -> Tensor:
    """Log weights of draws of the guide: (samples, rows)."""
    model: Any = problem.model
    numbers = sum(value.numel() for value in problem.data.values() if isinstance(value, Tensor))
    size = max(2, _NUMBERS // max(1, numbers))
    problem.noise(1).fold(5).seed_torch()
    parts = [
        row_weights.weigh(model, problem.data, min(size, samples - first)).log_weight
        for first in range(0, samples, size)
    ]
    return torch.cat(parts)


def best_normal(rows: Rows, family: Family, steps: int, samples: int) -> Estimate:
    """The ELBO of the normal of each row that has the highest."""
    target = rows.target(_PARTICLES)
    centre, spread = _start(rows)
    shift = torch.zeros_like(centre, requires_grad=True)  # (rows, D)
    log_sd = torch.zeros_like(centre, requires_grad=True)
    lower = centre.new_zeros(*centre.shape, rows.dim, requires_grad=True)
    weights = [shift, log_sd, *([lower] if family == "full" else [])]
    noise = rows.whole.noise(rows.number).fold(6)

    def drawn(number: int, *key: int) -> tuple[Tensor, Tensor]:
        """Draws (rows, number, D) in pairs about the mean, and their log densities."""
        half = noise.fold(*key).normal(number // 2, rows.dim)
        unit = torch.cat([half, -half], 1)
        wide = log_sd.exp()[:, None] * unit
        if family == "full":
            wide = wide + unit @ lower.tril(-1).mT
        x = (centre + spread * shift)[:, None] + spread[:, None] * wide
        log_det = (log_sd + spread.log()).sum(-1, keepdim=True)
        constant = 0.5 * rows.dim * math.log(2 * math.pi)
        return x, -0.5 * unit.square().sum(-1) - log_det - constant

    optimiser = torch.optim.Adam(weights, lr=_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(steps):
        x, log_q = drawn(_PARTICLES, 0, step)
        loss = (log_q - _through(target, x)).mean(1).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        parts = []
        for batch in range(-(-samples // _PARTICLES)):
            x, log_q = drawn(_PARTICLES, 1, batch)
            log_p = target.log_density(x.flatten(0, 1)).reshape(log_q.shape)
            pairs = (
                (log_p - log_q).unflatten(1, (2, -1)).mean(1)
            )  # independent, unlike their halves
            parts.append(pairs)
        return _mean(torch.cat(parts, 1).T)


def _through(target: Replicated, x: Tensor) -> Tensor:
    """Log p at x (rows, n, D), with its gradient: (rows, n)."""
    with torch.no_grad():
        value, slope = target.log_density_and_grad(x.detach().flatten(0, 1))
    slope = slope.reshape(x.shape)
    return value.reshape(x.shape[:2]) + (slope * (x - x.detach())).sum(-1)


def _start(rows: Rows) -> tuple[Tensor, Tensor]:
    """Means and sds of each row's guide: (rows, D)."""
    guide = rows.guide()
    assert guide is not None
    with torch.no_grad():
        x = rows.drawn(guide, rows.whole.noise(1).fold(6), _DRAWN)
        spread, centre = torch.std_mean(x.unflatten(0, (rows.number, -1)), 1)
    return centre, spread.clamp(min=1e-3)


def _mean(values: Tensor) -> Estimate:
    """Of independent values (n, rows)."""
    return Estimate(values.mean(0), values.std(0) / len(values) ** 0.5)


def _row(first: Estimate, less: Estimate | None = None) -> dict[str, float]:
    value, noise = first.value, first.error.square()
    if less is not None:
        value, noise = value - less.value, noise + less.error.square()
    return {
        "mean": float(value.mean()),
        "error": float(value.std() / len(value) ** 0.5),
        "monte_carlo": float(noise.sum().sqrt() / len(value)),
    }
