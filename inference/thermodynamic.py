"""Thermodynamic integration: the evidence from chains at many temperatures at once.

Gelman & Meng (1998), "Simulating normalizing constants"; Friel & Pettitt (2008), "Marginal
likelihood estimation via power posteriors"; Friel, Hurn & Wyse (2014) for the corrected trapezoid.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from inference import warmup
from inference.chains import History, Tuning
from inference.engine import Engine, Posterior, Problem, TierChoice
from inference.hmc import HMC
from inference.mh import MH
from inference.tempering import (
    Path,
    Reference,
    Tempered,
    check_reference,
    difference,
    rough_evidence,
)
from inference.warmup import Averaging, Mass
from ppl_models.errors import EngineError
from ppl_models.noise import Noise

_FEWEST = 10  # draws that an integral can be judged from
_WINDOWS = (0.15, 0.25, 0.6)  # shares of warm-up, each with the scales learnt in the one before


class Integral(NamedTuple):
    """log Z = int_0^1 E_b[u] db, with its errors."""

    value: float
    monte_carlo: float  # standard error, from the spread between chains
    quadrature: float  # of the temperatures' spacing, by leaving out every other

    @property
    def error(self) -> float:
        """Both together."""
        return (self.monte_carlo**2 + self.quadrature**2) ** 0.5


@dataclass(frozen=True)
class Thermodynamic(Engine):
    """Chains at K temperatures along q^(1 - b) p^b, those at b = 1 for the posterior.

    With u = log p - log q the free energy has dA/db = -E_b[u], so log Z = int_0^1 E_b[u] db. The
    integral is the trapezoid with its second-order term, for which d E_b[u] / db = Var_b[u] is at
    hand:

        sum_k h_k (E_k + E_{k+1}) / 2 - h_k^2 (V_{k+1} - V_k) / 12,   h_k = b_{k+1} - b_k.

    Temperatures are b_k = (k / (K - 1))^power. Every temperature learns its own scale and step
    size. The error is the spread between the chains, each of which estimates the whole integral,
    together with that of the spacing, from the integral over every other temperature.

    Args:
        temperatures: K, an odd number.
        chains: at each temperature; all are one batch. The error needs several.
        warmup, draws: transitions per chain, discarded and kept.
        power: how much denser the temperatures lie near q.
        kernel: HMC or MH; its settings for chains, warm-up and draws are not used.
        reference: q: "prior", "laplace" (the normal approximation at the mode), or a Pyro program
            over the model's latent sites; where part of the prior is improper not the prior.
        tier: how the log density is evaluated.

    ``log_evidence`` and ``log_evidence_error`` are among the posterior's attributes.
    """

    temperatures: int = 21
    chains: int = 8
    warmup: int = 300
    draws: int = 300
    power: float = 5.0
    kernel: HMC | MH = field(default_factory=lambda: HMC(steps=3))
    reference: Reference = "prior"
    tier: TierChoice = "traced"

    stops_at: ClassVar[tuple[str, ...]] = ("seconds",)

    def __post_init__(self) -> None:
        self.at_least(temperatures=3, chains=2, warmup=20, draws=_FEWEST, power=1)
        self.one_of(tier=("auto", "eager", "traced", "compiled"))
        check_reference("Thermodynamic", self.reference)
        if self.temperatures % 2 == 0:
            raise EngineError(
                f"Thermodynamic(temperatures={self.temperatures}): give an odd number, so that "
                "every other temperature spans the path too"
            )
        if not isinstance(self.kernel, HMC | MH) or getattr(self.kernel, "proposal", None):
            raise EngineError(
                f"Thermodynamic(kernel={self.kernel!r}): give HMC(steps=3) or MH() without proposal"
            )

    @torch.no_grad()
    def run(self, problem: Problem) -> Posterior:
        """Warm up, sample every temperature, integrate."""
        begin = time.perf_counter()
        problem.clock.expect(f"{_FEWEST} draws at every temperature")
        path = Path(problem, self.reference, self.tier, (self.warmup + self.draws) * 3)
        ladder = torch.linspace(0, 1, self.temperatures, dtype=path.dtype) ** self.power
        ladder = ladder.to(path.device)
        b = ladder.repeat_interleave(self.chains)  # (K * chains,)
        noise = problem.noise(len(b))
        x = path.draw(noise.fold(0), 1)[:, 0]
        x, target, tuning = self.warm_up(path, b, x, noise.fold(1), problem)
        adapted = time.perf_counter()
        history = self._block(target, x, tuning, noise.fold(2), problem)
        number = len(history.x)
        problem.clock.met()
        x = torch.stack([target.position(z) for z in history.x])  # (S, K * chains, D)
        u = torch.stack([difference(path, row) for row in x])
        u = u.reshape(number, self.temperatures, self.chains)
        if not bool(torch.isfinite(u).all()):
            raise EngineError(
                "a chain is where the posterior density is zero: the reference goes beyond its "
                "support; give a reference with the posterior's support, or use SMC"
            )
        stopped = [] if number == self.draws else [problem.clock.finding(number, self.draws)]
        result = integrate(ladder, u)
        seconds = time.perf_counter()
        last = slice(-self.chains, None)
        kept = x[:, last].transpose(0, 1)
        stats = {"lp": history.log_density, "acceptance_rate": history.acceptance_rate}
        lowest = history.acceptance_rate.reshape(number, self.temperatures, -1).mean((0, 2))
        return Posterior(
            kind="samples",
            draws=problem.outputs.values(kept, noise.fold(3)._replace(key=noise.key[last])),
            stats={name: value[:, last].T for name, value in stats.items()},
            findings=rough_evidence(result.error, "raise draws or temperatures") + stopped,
            seconds={
                "warmup": adapted - begin,
                "sampling": seconds - adapted,
                "total": time.perf_counter() - begin,
            },
            attributes={
                "log_evidence": result.value,
                "log_evidence_error": result.error,
                "log_evidence_quadrature": result.quadrature,
                "temperatures": ladder.tolist(),
                "mean_difference": u.mean((0, 2)).tolist(),
                "lowest_acceptance_rate": float(lowest.min()),
            },
            unconstrained=kept,
        )

    def warm_up(
        self, path: Path, b: Tensor, x: Tensor, noise: Noise, problem: Problem
    ) -> tuple[Tensor, Tempered, Tuning]:
        """Points, target and tuning: every temperature in the frame of its own covariance."""
        mass = self.kernel.mass_matrix(path.dim)
        chains, dim = x.shape
        centre = torch.zeros_like(x)
        ones = torch.ones_like(x)
        frame = (centre, ones if mass == "diagonal" else torch.diag_embed(ones))
        target = Tempered(path, b, frame)
        tuning = Tuning(x.new_ones(chains), x.new_ones(dim))
        z = x
        for window, share in enumerate(_WINDOWS):
            stream = noise.fold(window)
            step = self.kernel.first_step_size(target.as_target(), z, tuning, stream.fold(0))
            averaging = warmup.averaging(warmup.pooled(step.log(), self.temperatures).exp())
            length = max(2, round(share * self.warmup))
            tuning = tuning.stepping(averaging.step_size)
            history, after = self._steps(target, z, tuning, stream.fold(1), length, averaging)
            if after is not None and self.kernel.acceptance_target(dim) is not None:
                tuning = tuning.stepping(warmup.pooled(after.log_average, self.temperatures).exp())
            x = torch.stack([target.position(row) for row in history.x])
            z = history.x[-1]
            if window < len(_WINDOWS) - 1:
                target = target.at(self._frame(x[len(x) // 2 :], mass))
                z = self._within(target, x[-1])
            problem.report(0.5 * (window + 1) / len(_WINDOWS), "warm-up")
        return z, target, tuning

    def _block(
        self, target: Tempered, z: Tensor, tuning: Tuning, noise: Noise, problem: Problem
    ) -> History:
        def over(steps: int) -> bool:
            problem.report(0.5 + 0.5 * steps / self.draws, "sampling")
            if steps >= _FEWEST:
                problem.clock.met()
            return steps >= _FEWEST and problem.clock.over

        return self._steps(target, z, tuning, noise, self.draws, over=over)[0]

    def _steps(
        self,
        target: Tempered,
        z: Tensor,
        tuning: Tuning,
        noise: Noise,
        number: int,
        averaging: Averaging | None = None,
        over: Callable[[int], bool] = lambda steps: False,
    ) -> tuple[History, Averaging | None]:
        """So many steps from the points z, or until they are ``over``."""
        kernel, density = self.kernel, target.as_target()
        state = kernel.init(density, z, tuning, kernel.numbers(density, noise, 0, 1)[0])
        blocks: list[History] = []
        steps = 0
        while steps < number and not over(steps):
            block = kernel.block(density, state, tuning, noise, steps, number - steps, averaging)
            state, averaging, steps = block.state, block.averaging, steps + block.steps
            if averaging is not None:
                tuning = tuning.stepping(averaging.step_size)
            blocks.append(block.history)
        return History.joined(blocks), averaging

    def _frame(self, x: Tensor, mass: Mass) -> tuple[Tensor, Tensor]:
        """Mean and a square root of the covariance of each temperature: x (S, K * chains, D)."""
        rows = x.unflatten(1, (self.temperatures, self.chains)).transpose(0, 1).flatten(1, 2)
        scales = [warmup.scale_of(r, mass) for r in rows]
        centre, scale = rows.mean(1), torch.stack(scales)
        return centre.repeat_interleave(self.chains, 0), scale.repeat_interleave(self.chains, 0)

    @staticmethod
    def _within(target: Tempered, x: Tensor) -> Tensor:
        """The points z of x in the target's frame."""
        assert target.frame is not None
        centre, scale = target.frame
        if scale.dim() == 2:
            return (x - centre) / scale
        return torch.linalg.solve_triangular(scale, (x - centre)[..., None], upper=False)[..., 0]


def integrate(ladder: Tensor, u: Tensor) -> Integral:
    """The integral of E_b[u] over b by the corrected trapezoid: b (K,), u (S, K, chains)."""
    each = _trapezoid(ladder, u)
    coarse = _trapezoid(ladder[::2], u[:, ::2])
    error = float(each.std() / len(each) ** 0.5)
    # the rule is of fourth order: halving the spacing leaves a fifteenth of the difference
    return Integral(float(each.mean()), error, abs(float((coarse - each).mean())) / 15)


def _trapezoid(ladder: Tensor, u: Tensor) -> Tensor:
    """The integral by each chain: (chains,)."""
    mean, variance = u.mean(0), u.var(0)  # (K, chains)
    width = ladder.diff()[:, None]
    plain = width * (mean[1:] + mean[:-1]) / 2
    return (plain - width.square() * variance.diff(dim=0) / 12).sum(0)
