"""Annealed importance sampling over the latents of a trained model: log p(x) of each row.

Neal (2001), "Annealed importance sampling"; for decoders Wu, Burda, Salakhutdinov & Grosse (2017).
Along pi_k = q^(1 - b_k) p^b_k, 0 = b_0 < ... < b_K = 1, with u = log p(x, z) - log q(z) and
transitions T_k that keep pi_k,

    z_0 ~ q,  z_k ~ T_k(z_{k-1}),  log w = sum_k (b_k - b_{k-1}) u(z_{k-1}),  E w = p(x):

the log mean weight of several chains is a lower bound of log p(x) in expectation. From an exact
draw of the posterior the same way back has E 1 / w = 1 / p(x), which bounds it from above:
bidirectional Monte Carlo on simulated data (``bidirectional.py``).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from inference import warmup
from inference.chains import Tuning
from inference.engine import Engine, Posterior, Problem
from inference.finding import Finding
from inference.hmc import HMC
from inference.moves import transition
from inference.proposal import Proposal
from inference.row_wise import check_sampler
from inference.rows import Rows, against, pooled_scale
from inference.sampling import Sampler
from inference.smc import systematic
from inference.tempering import Tempered, difference
from ppl_models.base import HasRows, Model, Params
from ppl_models.errors import EngineError
from ppl_models.noise import Noise

_STEEPNESS = 4.0  # of the sigmoid schedule, as in Grosse, Ghahramani & Adams (2015)
_COARSER = 4  # temperatures for each one of the pilot run
_SETTLING = 20  # transitions at the pilot's first temperature
_GAIN = 0.5  # of the log step size, by the difference of acceptance rates
_FEW = 0.25  # share of effective chains below which a row's estimate is rough


class Weighted(NamedTuple):
    """Log weights, and where the chains are at the end."""

    log_weight: Tensor  # (rows * chains,)
    x: Tensor  # (rows * chains, D)
    acceptance_rate: float


@dataclass(frozen=True)
class AIS(Engine):
    """Annealed importance sampling of every row of a model with its weights (``HasRows``).

    A pilot run on a coarser ladder learns step sizes, one for each row and temperature, and a scale
    for each temperature; the run itself has these fixed, so that its weights are unbiased.

    Args:
        chains: of each row, all rows in one batch.
        temperatures: K.
        kernel: a sampler whose transitions move the chains, one at each temperature; its settings
            for chains, warm-up and draws are not used.
        reference: q, the "prior" or the model's "guide".
        schedule: "sigmoid" has the temperatures dense at both ends, "linear" evenly.

    Among the posterior's attributes are, by row, ``log_likelihood`` (the log mean weight), its
    standard error ``log_likelihood_error`` by the delta method, and ``weight_ess``, the effective
    number of chains; ``log_evidence`` is the sum over rows. The draws, resampled by weight, are
    (1, chains, rows, *event).

    Example:
        >>> from inference import AIS
        >>> AIS(chains=8, temperatures=200, reference="guide").kernel.steps
        5
    """

    chains: int = 16
    temperatures: int = 500
    kernel: Sampler = field(default_factory=lambda: HMC(steps=5))
    reference: Literal["prior", "guide"] = "prior"
    schedule: Literal["sigmoid", "linear"] = "sigmoid"

    needs: ClassVar[type[Model] | None] = HasRows

    def __post_init__(self) -> None:
        self.at_least(chains=2, temperatures=2)
        self.one_of(reference=("prior", "guide"), schedule=("sigmoid", "linear"))
        check_sampler("AIS", "kernel", self.kernel)

    @torch.no_grad()
    def run(self, problem: Problem) -> Posterior:
        """Learn step sizes, anneal, resample."""
        begin = time.perf_counter()
        annealing = Annealing(self, problem, problem.noise(1).fold(0))
        adapted = time.perf_counter()
        found = annealing.forward(problem.noise(annealing.points).fold(1))
        rows = annealing.rows
        log_weight = rows.unchained(found.log_weight)  # (chains, rows)
        chosen = systematic(log_weight.T, problem.noise(rows.number).fold(2).uniform(1))
        x = found.x.unflatten(0, (rows.number, -1))  # (rows, chains, D)
        x = x.gather(1, chosen[..., None].expand_as(x)).transpose(0, 1)[None]
        x = rows.joined(x)  # (1, chains, rows * D)
        value, error, ess = log_mean(log_weight), error_of(log_weight), effective(log_weight)
        seconds = time.perf_counter()
        return Posterior(
            kind="approximation",
            draws=problem.outputs.values(x, problem.noise(1).fold(3)),
            findings=_rough(ess, self.chains),
            seconds={
                "warmup": adapted - begin,
                "sampling": seconds - adapted,
                "total": time.perf_counter() - begin,
            },
            attributes={
                "log_likelihood": value.tolist(),
                "log_likelihood_error": error.tolist(),
                "weight_ess": ess.tolist(),
                "log_evidence": float(value.sum()),
                "log_evidence_error": float(error.square().sum().sqrt()),
                "acceptance_rate": found.acceptance_rate,
            },
            unconstrained=x,
        )


class Annealing:
    """Both ends of the path for every row and chain, and what the pilot run learnt.

    Args:
        engine: the settings.
        problem: of a model with its weights.
        noise: one stream.
        weights: of the model, where their values may change in place; then ``adapt`` anew.
    """

    def __init__(
        self, engine: AIS, problem: Problem, noise: Noise, weights: Params | None = None
    ) -> None:
        self.engine, self.problem = engine, problem
        self.rows = Rows(problem)
        self.points = self.rows.number * engine.chains
        program, self._proposal = self._reference()
        density = against(program, self.rows)
        self.posterior = self.rows.target(engine.chains, weights=weights)
        self.reference = self.rows.target(engine.chains, weights=weights, density=density)
        self.dim, self.dtype, self.device = self.rows.dim, problem.dtype, problem.device
        self.adapt(noise)

    def adapt(self, noise: Noise) -> None:
        """Learn the step sizes and scales by a pilot run."""
        self.tunings = self._pilot(noise)

    def forward(self, noise: Noise) -> Weighted:
        """From the reference to the posterior: E exp(log_weight) = p(x)."""
        stages = range(1, self.engine.temperatures + 1)
        x = self.rows.drawn(self._proposal, _first(noise), self.engine.chains)
        ladder, log_weight, rates = self._ladder(self.engine.temperatures), x.new_zeros(len(x)), []
        for k in stages:
            log_weight = log_weight + (ladder[k] - ladder[k - 1]) * difference(self, x)
            x, rate = self._move(x, k, ladder, noise)
            rates.append(rate)
            self.problem.report(k / len(stages), "annealing")
        return Weighted(log_weight, x, min(rates))

    def backward(self, x: Tensor, noise: Noise) -> Weighted:
        """From exact draws of the posterior back: E exp(-log_weight) = 1 / p(x)."""
        stages = range(self.engine.temperatures, 0, -1)
        ladder, log_weight, rates = self._ladder(self.engine.temperatures), x.new_zeros(len(x)), []
        for k in stages:
            x, rate = self._move(x, k, ladder, noise)
            log_weight = log_weight + (ladder[k] - ladder[k - 1]) * difference(self, x)
            rates.append(rate)
        return Weighted(log_weight, x, min(rates))

    # -- internals -------------------------------------------------------------------------------

    def _reference(self) -> tuple[Any, Proposal]:
        if self.engine.reference == "prior":
            program = self.problem.program.prior()
            return self.rows.problem.program.prior(), Proposal(self.problem, program)
        guide = self.rows.guide()
        if guide is None:
            raise EngineError("AIS(reference='guide'): the model has no guide; use 'prior'")
        return self.rows.model.guide, guide

    def _move(self, x: Tensor, k: int, ladder: Tensor, noise: Noise) -> tuple[Tensor, float]:
        at = round((len(self.tunings) - 1) * k / (len(ladder) - 1))
        target = Tempered(self, ladder[k].expand(len(x))).as_target()
        moved = transition(self.engine.kernel, target, x, self.tunings[at], noise.fold(k))
        return moved.x, float(moved.acceptance_rate.mean())

    def _ladder(self, steps: int) -> Tensor:
        """b_0 = 0, ..., b_K = 1: (K + 1,)."""
        even = torch.linspace(0, 1, steps + 1, dtype=self.dtype, device=self.device)
        if self.engine.schedule == "linear":
            return even
        curve = (_STEEPNESS * (2 * even - 1)).sigmoid()
        return (curve - curve[0]) / (curve[-1] - curve[0])

    def _pilot(self, noise: Noise) -> list[Tuning]:
        """The tuning at each temperature of a coarser ladder, (J + 1) from b = 0 on."""
        kernel, stream = self.engine.kernel, self.problem.noise(self.points).fold(4)
        x = self.rows.drawn(self._proposal, noise, self.engine.chains)
        ladder = self._ladder(max(10, self.engine.temperatures // _COARSER))
        goal = kernel.acceptance_target(self.dim)
        mass = kernel.mass_matrix(self.dim) or "diagonal"
        tuning = Tuning(x.new_ones(len(x)), pooled_scale(x, self.rows.number, mass))
        target = Tempered(self, ladder[0].expand(len(x))).as_target()
        step = kernel.first_step_size(target, x, tuning, stream)
        log_step = warmup.pooled(step.log(), self.rows.number)
        tunings = []
        for j, b in enumerate(ladder):
            target = Tempered(self, b.expand(len(x))).as_target()
            tuning = Tuning(log_step.exp(), pooled_scale(x, self.rows.number, mass))
            for move in range(2 if j else _SETTLING):
                tuning = tuning._replace(step_size=log_step.exp().contiguous())
                moved = transition(kernel, target, x, tuning, stream.fold(j, move))
                x = moved.x
                if goal is not None:
                    rate = moved.acceptance_rate.unflatten(0, (self.rows.number, -1)).mean(1)
                    change = _GAIN * (rate - goal)
                    log_step = log_step + change.repeat_interleave(self.engine.chains)
            tunings.append(tuning._replace(step_size=log_step.exp().contiguous()))
        return tunings


def log_mean(log_weight: Tensor) -> Tensor:
    """Log mean weight over the chains: (chains, rows) -> (rows,)."""
    return log_weight.logsumexp(0) - math.log(len(log_weight))


def error_of(log_weight: Tensor) -> Tensor:
    """The standard error of the log mean weight, by the delta method: (chains, rows) -> (rows,)."""
    ratio = (log_weight - log_mean(log_weight)).exp()
    return ratio.std(0) / len(log_weight) ** 0.5


def effective(log_weight: Tensor) -> Tensor:
    """The effective number of chains, (sum w)^2 / sum w^2: (chains, rows) -> (rows,)."""
    return (2 * log_weight.logsumexp(0) - (2 * log_weight).logsumexp(0)).exp()


def _first(noise: Noise) -> Noise:
    return noise._replace(key=noise.key[:1])


def _rough(ess: Tensor, chains: int) -> list[Finding]:
    rough = int((ess < _FEW * chains).sum())
    if not rough:
        return []
    text = (
        f"the weights of {rough} of {len(ess)} rows are worth less than {_FEW:.0%} of their "
        f"{chains} chains (the least {float(ess.min()):.1f}): their log_likelihood is rough, and "
        "too low on average"
    )
    remedy = "raise temperatures, or chains, or use the guide as reference"
    return [Finding("weight_ess", "warning", float(ess.min()), text, remedy)]
