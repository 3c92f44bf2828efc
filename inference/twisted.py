"""Draws of a diffusion's chain given what is seen of its end, by twisted sequential Monte Carlo.

The posterior of the latent chain given y, the numbers of x_0 that are seen,

    p(x_1, ..., x_T | y) ~ p(x_T) p(x_{T-1} | x_T) ... p(x_1 | x_2) p(y | x_1),

is reached from x_T on by particles with the weights of guesses psi_t(x_t) of p(y | x_t):
N(y; the denoiser's x_0 at x_t, r_t^2), and p(y | x_1) itself at t = 1. Wu, Trippe, Naesseth, Blei &
Cunningham (2023), "Practical and asymptotically exact conditional sampling in diffusion models".
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from inference.engine import Engine, Posterior, Problem
from inference.finding import Finding
from inference.program import Program
from inference.smc import systematic
from inference.tempering import rough_evidence
from ppl_models.base import Params
from ppl_models.diffusion import Diffusion
from ppl_models.errors import EngineError
from ppl_models.noise import Noise
from ppl_models.schedules import Steps

_FEW = 5.0  # effective particles, below which the draws are told to be too few


class Look(NamedTuple):
    """What is known of particles x_t (R, P, N, *shape)."""

    x: Tensor
    mean: Tensor  # of p(x_{t-1} | x_t)
    variance: Tensor
    log_psi: Tensor  # (R, P, N)
    slope: Tensor  # of log_psi, by x


@dataclass(frozen=True)
class TwistedSMC(Engine):
    """Particles for the latent chain of a trained ``Diffusion`` given the part of x that is seen.

    Particles move from x_t by p(x_{t-1} | x_t) with its mean shifted by its variance times the
    gradient of log psi_t, and are weighted by p psi_{t-1} / (q psi_t), q being that proposal; they
    are resampled where their effective size falls below ``threshold`` of them. Unlike replacement
    and guidance, whose laws are not the model's, this is exact in the limit of many particles,
    whatever psi_t is: the bias is of the order of 1 / particles, and the evidence p(y) is unbiased.
    Rows are independent, and have particles of their own.

    Of the draws, those of x_1 are of many ancestors; those of x_T have few, as resampling leaves.
    ``fit.predict()["x"]`` fills in the rest of the rows, exactly, given x_1.

    Args:
        particles: of each run and row.
        runs: independent runs, whose spread is the error of the evidence.
        threshold: the share of effective particles below which they are resampled.
        scale: the sd of the data, by which r_t^2 is that of x_0 given x_t of normal data. It
            changes the weights alone, not their limit.

    Example:
        >>> import torch
        >>> from inference import TwistedSMC, fit
        >>> from ppl_models.denoisers import MLPDenoiser
        >>> from ppl_models.diffusion import Diffusion
        >>> model = Diffusion(MLPDenoiser(2), (2,), steps=10, parameterisation="velocity")
        >>> model.trained = True
        >>> data = {"x": torch.tensor([[0.5, 0.0]]), "seen": torch.tensor([True, False])}
        >>> found = fit(model, data, TwistedSMC(particles=2000), seed=1)
        >>> found.predict()["x"].shape  # runs, particles, rows, numbers
        torch.Size([4, 2000, 1, 2])
    """

    particles: int = 256
    runs: int = 4
    threshold: float = 0.5
    scale: float = 1.0

    def __post_init__(self) -> None:
        self.at_least(particles=2, runs=1)
        self.positive("threshold", below=1)
        self.positive("scale")

    def check(self, model: Any, program: Program) -> None:
        if not isinstance(model, Diffusion):
            raise EngineError(
                f"TwistedSMC draws the chain of a Diffusion; {type(model).__name__} is none: use "
                "NUTS() or SMC()"
            )
        super().check(model, program)

    @torch.no_grad()
    def run(self, problem: Problem) -> Posterior:
        """Draw the chain from x_T down to x_1; the log evidence of y is in ``attributes``."""
        begin = time.perf_counter()
        model: Any = problem.model
        steps = Steps(*(part.detach() for part in model.table(problem.data["x"])))
        noise, shape = problem.noise(self.runs), (self.particles, *problem.data["x"].shape)
        x = noise.fold(0).normal(*shape)
        log_weight = x.new_zeros(x.shape[:3])
        total = x.new_zeros(self.runs, shape[1])
        paths: list[tuple[Tensor, Tensor]] = []  # x_t, and the parent in it of each that follows
        least = (float(self.particles), model.steps)
        for t in range(model.steps, 0, -1):
            look = self._look(problem, x, t, steps)
            log_weight = log_weight + look.log_psi
            if not bool(torch.isfinite(log_weight).any(1).all()):
                raise EngineError(
                    f"no particle has a finite weight at t = {t}: look for a denoiser whose output "
                    "is not finite, or give more particles"
                )
            size = (2 * log_weight.logsumexp(1) - (2 * log_weight).logsumexp(1)).exp()  # (R, N)
            least = min(least, (float(size.min()), t))
            again = size < (self.threshold if t > 1 else 2.0) * self.particles
            look, log_weight, total, parent = self._resample(
                look, log_weight, total, again, noise.fold(1, t)
            )
            paths.append((look.x, parent))
            if t > 1:
                normal = noise.fold(2, t).normal(*shape)
                shift = look.variance.sqrt() * look.slope
                x = look.mean + look.variance.sqrt() * (shift + normal)
                ratio = -(shift * normal + 0.5 * shift.square())  # log p - log q
                log_weight = log_weight + ratio.flatten(3).sum(-1) - look.log_psi
            problem.report(1 - (t - 1) / model.steps, f"t = {t}")
        seconds = time.perf_counter() - begin
        chains = self._chains(paths, model.steps)
        attributes, findings = self._evidence(total, least)
        return Posterior(
            kind="approximation",
            draws={**model.noise_of(chains), **chains} if model.white else chains,
            findings=findings,
            seconds={"sampling": seconds, "total": seconds},
            attributes=attributes,
        )

    # -- internals -------------------------------------------------------------------------------

    def _look(self, problem: Problem, x: Tensor, t: int, steps: Steps) -> Look:
        """The next mean, and log psi_t with its gradient."""
        model: Any = problem.model
        data, seen = problem.data["x"], problem.data.get("seen")
        if t == 1:
            log_psi = model.likelihood(x, steps, seen).log_prob(data)
            return Look(x, x, x, log_psi, x)
        at = torch.full(data.shape[:1], t, device=x.device)
        signal2, noise2 = steps.signal[t - 1].square(), steps.noise[t - 1].square()
        left = noise2 * self.scale**2 / (signal2 * self.scale**2 + noise2) + steps.variance[1]
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            guess, variance = model.denoised(x, at, steps)
            each = -0.5 * ((data - guess).square() / left + (2 * math.pi * left).log())
            log_psi = (each if seen is None else torch.where(seen, each, 0.0)).flatten(3).sum(-1)
            (slope,) = torch.autograd.grad(log_psi.sum(), x)
        x, guess = x.detach(), guess.detach()
        mean = steps.to_data[t - 1] * guess + steps.to_noisy[t - 1] * x
        return Look(x, mean, variance.detach(), log_psi.detach(), slope)

    def _resample(
        self, look: Look, log_weight: Tensor, total: Tensor, again: Tensor, noise: Noise
    ) -> tuple[Look, Tensor, Tensor, Tensor]:
        """Equal weights for the rows ``again`` (R, N); the log evidence so far; and the parents."""
        own = torch.arange(self.particles, device=log_weight.device)
        kept = own[None, :, None].expand_as(log_weight)
        if not bool(again.any()):
            return look, log_weight, total, kept
        rows = log_weight.shape[2]
        flat = log_weight.transpose(1, 2).flatten(0, 1)  # (R N, P)
        drawn = systematic(flat, noise.uniform(rows).reshape(-1, 1))
        drawn = drawn.reshape(-1, rows, self.particles).transpose(1, 2)
        parent = torch.where(again[:, None], drawn, kept)
        mean = log_weight.logsumexp(1) - math.log(self.particles)
        total = torch.where(again, total + mean, total)
        log_weight = torch.where(again[:, None], 0.0, log_weight)
        return Look(*(_taken(part, parent) for part in look)), log_weight, total, parent

    def _chains(self, paths: list[tuple[Tensor, Tensor]], steps: int) -> Params:
        """The ancestors of the last particles: {x_t: (R, P, N, *shape)}."""
        draws: Params = {}
        place: Tensor | None = None
        for t, (x, parent) in zip(range(1, steps + 1), reversed(paths), strict=True):
            draws[f"x_{t}"] = x if place is None else _taken(x, place)
            # ``x`` is as resampled at t, and ``parent`` leads from there to the particles of t + 1
            place = parent if place is None else _taken(parent, place)
        return {name: draws[name] for name in reversed(draws)}

    def _evidence(
        self, total: Tensor, least: tuple[float, int]
    ) -> tuple[dict[str, Any], list[Finding]]:
        """Of all rows, whose runs are independent: total is (R, N)."""
        mean = total.logsumexp(0) - math.log(self.runs)  # (N,)
        attributes: dict[str, Any] = {"log_evidence": float(mean.sum()), "ess": least[0]}
        findings: list[Finding] = []
        if self.runs > 1:
            variance = (total - mean).exp().var(0) / self.runs
            error = float(variance.sum().sqrt())
            attributes["log_evidence_error"] = error
            findings = rough_evidence(error, "raise particles")
        if least[0] < _FEW:
            text = (
                f"at t = {least[1]} the weights of a row leave {least[0]:.1f} effective particles "
                f"of {self.particles}: its draws are few and biased"
            )
            remedy = "raise particles, or give scale= the sd of the data"
            findings.append(Finding("particles", "warning", least[0], text, remedy))
        return attributes, findings


def _taken(value: Tensor, parent: Tensor) -> Tensor:
    """The particles of each run and row at ``parent`` (R, P, N): value is (R, P, N, ...)."""
    index = parent.reshape(*parent.shape, *[1] * (value.dim() - 3)).expand_as(value)
    return value.gather(1, index)
