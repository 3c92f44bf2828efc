"""Sequential Monte Carlo with tempering (Del Moral, Doucet & Jasra 2006)."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from inference import warmup
from inference.engine import Engine, Posterior, Problem, TierChoice
from inference.finding import Finding
from inference.hmc import HMC
from inference.moves import transition, tuned
from inference.sampling import Sampler
from inference.tempering import (
    Path,
    Reference,
    Tempered,
    check_reference,
    difference,
    rough_evidence,
)
from ppl_models.errors import EngineError
from ppl_models.noise import Noise

_BISECTIONS = 60


@dataclass(frozen=True)
class SMC(Engine):
    """Particles carried from a reference q to the posterior along q^(1 - b) p^b, and the evidence.

    Each stage weights the particles by exp((b' - b) u), u = log p - log q, resamples them
    (systematic), and moves them by a kernel that leaves the density at b' as it is. b' is chosen so
    that the weights' effective size is ``threshold`` of the particles (Zhou, Johansen & Aston
    2016); scale and step size of the kernel are learnt from the particles. log p(data) is estimated
    by the sum over stages of the log mean weight; its error is the spread between independent runs,
    which share adaptation and nothing else. With b fixed the evidence is unbiased; adaptation
    leaves a bias of the order of 1 / particles (Beskos, Jasra, Kantas & Thiery 2016).

    Args:
        particles: of each run.
        runs: independent runs, all particles of which are one batch.
        threshold: the share of effective particles after each weighting.
        moves: transitions of the kernel at each stage.
        kernel: a sampler whose transitions move the particles; its settings for chains, warm-up
            and draws are not used.
        reference: q: "prior", "laplace" (the normal approximation at the mode), or a Pyro program
            over the model's latent sites; where part of the prior is improper not the prior.
        tier: how the log density is evaluated.

    The draws are (runs, particles), equally weighted. ``log_evidence`` and ``log_evidence_error``
    are among the posterior's attributes.
    """

    particles: int = 1000
    runs: int = 4
    threshold: float = 0.7
    moves: int = 3
    kernel: Sampler = field(default_factory=lambda: HMC(steps=3))
    reference: Reference = "prior"
    tier: TierChoice = "traced"

    stops_at: ClassVar[tuple[str, ...]] = ("seconds",)

    def __post_init__(self) -> None:
        self.at_least(particles=10, runs=1, moves=1)
        self.positive("threshold", below=1)
        self.one_of(tier=("auto", "eager", "traced", "compiled"))
        check_reference("SMC", self.reference)
        if not isinstance(self.kernel, Sampler) or getattr(self.kernel, "proposal", None):
            raise EngineError(f"SMC(kernel={self.kernel!r}): give a kernel such as HMC(steps=3)")

    @torch.no_grad()
    def run(self, problem: Problem) -> Posterior:
        """Temper from the reference to the posterior."""
        begin = time.perf_counter()
        problem.clock.expect("tempering reached the posterior")
        noise = problem.noise(self.runs)
        path = Path(problem, self.reference, self.tier, 100 * self.moves)
        x = path.draw(noise.fold(0), self.particles)  # (R, N, D)
        flat = problem.noise(self.runs * self.particles).fold(1)
        step: Tensor | None = None
        log_evidence = x.new_zeros(self.runs)
        b, ladder, rates = 0.0, [0.0], [1.0]
        while b < 1:
            u = difference(path, x.flatten(0, 1)).reshape(x.shape[:2])
            if not bool(torch.isfinite(u).any(1).all()):
                raise EngineError(
                    "no particle has a finite posterior density: the reference misses the "
                    "posterior's support; give another reference or more particles"
                )
            next_b = _next(u, b, self.threshold)
            log_weight = (next_b - b) * u
            log_evidence = log_evidence + log_weight.logsumexp(1) - math.log(self.particles)
            unit = noise.fold(2, len(ladder)).uniform(1)
            chosen = systematic(log_weight, unit)
            x = x.gather(1, chosen[:, :, None].expand(-1, -1, path.dim))
            b = next_b
            x, step, rate = self._move(path, x, b, step, flat.fold(len(ladder)))
            ladder.append(b)
            rates.append(rate)
            problem.report(b, "tempering")
        problem.clock.met()
        seconds = time.perf_counter() - begin
        total = log_evidence.logsumexp(0) - math.log(self.runs)
        attributes = {
            "log_evidence": float(total),
            "stages": len(ladder) - 1,
            "acceptance_rate": min(rates),
        }
        findings: list[Finding] = []
        if self.runs > 1:
            ratio = (log_evidence - total).exp()
            error = float(ratio.std() / self.runs**0.5)
            attributes["log_evidence_error"] = error
            findings = rough_evidence(error, "raise particles or moves")
        if min(rates) < 0.1:
            text = (
                f"the kernel accepts {min(rates):.0%} at a stage: particles stay where they are "
                "resampled, so draws and evidence cannot be trusted; raise moves, or use HMC"
            )
            findings.append(Finding("acceptance_rate", "warning", min(rates), text))
        log_density = path.posterior.log_density(x.flatten(0, 1)).reshape(x.shape[:2])
        return Posterior(
            kind="approximation",
            draws=problem.outputs.values(x, noise.fold(3)),
            stats={"lp": log_density},
            findings=findings,
            seconds={"sampling": seconds, "total": time.perf_counter() - begin},
            attributes=attributes,
            unconstrained=x,
        )

    def _move(
        self, path: Path, x: Tensor, b: float, step: Tensor | None, noise: Noise
    ) -> tuple[Tensor, Tensor, float]:
        """The particles after the stage's moves, the step size so far, and the acceptance rate."""
        runs, particles, dim = x.shape
        flat = x.flatten(0, 1)
        mass = self.kernel.mass_matrix(dim) or "diagonal"
        scale = warmup.scale_of(flat, mass).contiguous()
        target = Tempered(path, flat.new_full((len(flat),), b)).as_target()
        tuning = tuned(scale, 1.0, len(flat))
        if step is None:
            found = self.kernel.first_step_size(target, flat, tuning, noise.fold(0))
            step = found.quantile(0.5)
        goal = self.kernel.acceptance_target(dim)
        rate = torch.zeros(())
        for move in range(self.moves):
            moved = transition(
                self.kernel, target, flat, tuned(scale, step, len(flat)), noise.fold(1, move)
            )
            flat, rate = moved.x, moved.acceptance_rate.mean()
            if goal is not None:  # thousands of particles: the rate is as good as known
                step = step * (rate - goal).exp()
        return flat.reshape(runs, particles, dim), step, float(rate)


def _next(u: Tensor, b: float, threshold: float) -> float:
    """The b' whose weights exp((b' - b) u) have the wanted effective share: u (R, N)."""

    def share(width: float) -> float:
        weight = width * u
        log_ess = 2 * weight.logsumexp(1) - (2 * weight).logsumexp(1)
        return float(log_ess.exp().mean()) / u.shape[1]

    if share(1 - b) >= threshold:
        return 1.0
    low, high = 0.0, 1 - b
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if share(middle) >= threshold else (low, middle)
    if b + low <= b:
        raise EngineError(
            "tempering cannot begin: the densities of reference and posterior differ without "
            "bound; give a reference nearer the posterior"
        )
    return b + low


def systematic(log_weight: Tensor, unit: Tensor) -> Tensor:
    """Systematic resampling of each run: (R, N), one uniform (R, 1) -> indices (R, N)."""
    number = log_weight.shape[1]
    cumulative = torch.softmax(log_weight, 1).cumsum(1)
    at = (torch.arange(number).to(unit) + unit) / number
    return torch.searchsorted(cumulative / cumulative[:, -1:], at).clamp(max=number - 1)
