"""Stochastic variational inference: maximise the ELBO by stochastic gradients.

ELBO(q) = E_q[log p(data, x) - log q(x)] (Jordan et al. 1999; Hoffman et al. 2013; Ranganath et al.
2014), over a family on the unconstrained space, or over a guide that is itself a Pyro program. The
weights of models with independent rows (``HasRows``) are trained by minibatches of them.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor, nn

from inference import guides, psis
from inference.engine import Engine, Posterior, Problem, TierChoice
from inference.finding import Finding
from inference.laplace import Laplace, frame
from inference.objectives import ELBO, Objective
from inference.program import Program
from inference.pyro_guide import PyroGuide
from inference.row_svi import train_rows
from inference.stopping import unfinished
from inference.svi_steps import Compiled, Eager, Steps
from inference.training import Settings
from inference.training_step import Precision
from inference.weights import Schedule
from ppl_models.base import Data, HasGuide, HasRows
from ppl_models.errors import EngineError, ModelError

logger = logging.getLogger("inference")

Guide = guides.Family | Literal["laplace"]
NAMED = (*get_args(guides.Family), "laplace")

_WINDOW = 100  # steps between looks at the ELBO
_DECAYS = 2  # how often a plateau lowers the learning rate before it ends the run
_PATIENCE = 3  # windows without progress that make a plateau
_ROLLBACKS = 10
_PARTICLES, _RATE = 16, 0.02
_FLOWS = ("flow", "realnvp")
_PARTICLES_OF_FLOWS, _RATE_OF_FLOWS = 128, 0.01  # draws cost little beside the networks' calls
_TRAINING = ("objective", "schedule", "clip", "average", "holdout", "patience", "precision", "rows")


class Ascent(Protocol):
    """What is maximised: its parameters, one stochastic step, and draws at the end."""

    def parameters(self) -> list[nn.Parameter]: ...

    def loss(self, step: int) -> Tensor:
        """A differentiable unbiased estimate of the negative ELBO."""
        ...

    def draws(self, count: int) -> tuple[Tensor, Tensor]:
        """Unconstrained draws (1, count, D) and log p - log q of each (count,)."""
        ...


@dataclass(frozen=True)
class SVI(Engine):
    """Stochastic variational inference.

    Args:
        guide: a family, "mean-field", "low-rank", "full-rank", "flow" (of splines), "realnvp" or
            "laplace"; or a Pyro guide: a program with the model's arguments, or a class of
            ``pyro.infer.autoguide``. A model with its own guide (``HasGuide``) uses it unless
            another is given. The trained guide is in the posterior.
        steps: at most so many; the run ends earlier on a plateau of the ELBO.
        draws: independent draws of the fitted approximation that are returned.
        particles: draws of q per step, by default 16, for flows 128, for models trained by rows 1.
        learning_rate: of the first steps, by default 0.02, for flows 0.01, for models trained by
            rows 0.001; lowered tenfold on each plateau.
        optimiser: a class from ``torch.optim``, called as ``optimiser(parameters, lr=...)``.
        batch_size: rows of data per step; their log likelihood is scaled up. None takes all rows.
        plateau: whether to stop before ``steps`` once the ELBO has settled.
        tier: how the log density is evaluated.

    The other settings are for models whose rows are independent (``HasRows``), trained by rows with
    their own guide:

    Args:
        objective: what is minimised for each row, such as ``ImportanceWeighted(k=50)``; by default
            ``ELBO()``.
        schedule: of the learning rate: a function from an optimiser to a
            ``torch.optim.lr_scheduler``, stepped at every step. Then a plateau lowers no rate.
        clip: the largest norm of the gradient.
        average: decay of an exponential average of the weights, such as 0.999, which is returned
            instead of the last ones. 0 for none.
        holdout: the share of rows that are not trained on. Their bound decides on the plateau, and
            the weights of its highest value are returned.
        patience: looks (an epoch, or 100 steps if that is longer) without progress that make a
            plateau.
        precision: "bfloat16" runs the networks in it, by autocast; None in that of the weights.
        rows: the first rows, whose latent variables are drawn after training: as many draws as
            ``draws`` says, or as 2^24 numbers hold.

    Weights and bounds survive in ``fit(..., store=...)``. The trained model is ``fit.model``.
    """

    guide: Guide | Callable[..., Any] | None = None
    steps: int = 10_000
    draws: int = 1000
    particles: int | None = None
    learning_rate: float | None = None
    optimiser: Callable[..., torch.optim.Optimizer] = torch.optim.Adam
    batch_size: int | None = None
    plateau: bool = True
    tier: TierChoice = "auto"
    objective: Objective | None = None
    schedule: Schedule | None = None
    clip: float | None = None
    average: float = 0.0
    holdout: float = 0.0
    patience: int = 5
    precision: Precision | None = None
    rows: int = 64

    stops_at: ClassVar[tuple[str, ...]] = ("seconds",)
    extends: ClassVar[tuple[str, ...]] = ("draws", "steps", "rows")

    def __post_init__(self) -> None:
        self.at_least(steps=1, draws=1, patience=1, rows=1)
        self.positive("learning_rate", "batch_size", "particles", "clip")
        self._check_training()
        self.one_of(tier=("auto", "eager", "traced", "compiled"))
        if self.guide is not None and not callable(self.guide):
            self.one_of(guide=NAMED)
        if isinstance(self.optimiser, type) and issubclass(self.optimiser, torch.optim.LBFGS):
            raise EngineError(
                "SVI(optimiser=LBFGS): it asks for a closure and exact gradients; give a "
                "stochastic one such as torch.optim.Adam"
            )
        if not callable(self.optimiser):
            raise EngineError(
                f"SVI(optimiser={self.optimiser!r}): give a class such as torch.optim.Adam"
            )

    def _check_training(self) -> None:
        self.one_of(precision=(None, "float32", "bfloat16"))
        for name in ("average", "holdout"):
            value: Any = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
                raise EngineError(f"SVI({name}={value!r}): give a share in [0, 1)")
        if self.objective is not None and not isinstance(self.objective, Objective):
            raise EngineError(
                f"SVI(objective={self.objective!r}): give one such as ImportanceWeighted(k=50)"
            )
        if self.objective is not None and self.particles is not None:
            raise EngineError("SVI(particles=...): the objective has its own, as ELBO(particles=4)")
        if self.schedule is not None and not callable(self.schedule):
            raise EngineError(
                f"SVI(schedule={self.schedule!r}): give a function from an optimiser to a "
                "torch.optim.lr_scheduler"
            )

    def trains(self, model: Any) -> bool:
        return callable(self._guide(model))

    def by_rows(self, model: Any) -> bool:
        return isinstance(model, HasRows) and self.guide is None

    def bound(self, model: Any, data: Data) -> Data:
        if not self.by_rows(model):
            return data
        return model.take(data, torch.arange(min(self.rows, model.rows(data))))

    def check(self, model: Any, program: Program) -> None:
        if not self.by_rows(model):
            for setting in _BY_ROWS:
                if getattr(self, setting.name) != setting.default:
                    raise EngineError(
                        f"SVI({setting.name}=...) is for models trained by rows with their own "
                        "guide (HasRows); leave it out"
                    )
        elif self.objective is not None and not isinstance(model, self.objective.needs):
            needed = self.objective.needs.__name__
            raise EngineError(
                f"{type(self.objective).__name__} needs {needed}; {type(model).__name__} is none"
            )
        super().check(model, program)

    def check_store(self, model: Any) -> None:
        if not self.by_rows(model):
            super().check_store(model)

    def run(self, problem: Problem) -> Posterior:
        """Ascend the ELBO; its trace is in ``attributes``."""
        if self.by_rows(problem.model):
            return train_rows(problem, self.training(), self.draws)
        begin = time.perf_counter()
        name = self._guide(problem.model)
        elbos, steps, settled, over, found = [], 0, True, False, []
        if name == "laplace":
            problem.clock.expect("the mode was found")
            fitted: Laplace | Ascent = Laplace(problem, self.tier)
            problem.clock.met()
        else:
            problem.clock.expect("the first step")
            fitted = objective = self._objective(problem, name)
            problem.clock.met()
            elbos, steps, settled, over, found = self.ascend(objective, problem)
            if isinstance(problem.model, nn.Module):
                setattr(problem.model, "trained", True)  # noqa: B010  # a module of any class
        with torch.no_grad():
            x, ratios = fitted.draws(self.draws)
            draws = problem.outputs.values(x, problem.noise(1).fold(9))
        noisy = problem.program.subsampled or problem.program.random
        smoothed = None if noisy else psis.smooth(ratios.cpu().numpy())
        if not settled:
            remedy = "raise steps or learning_rate"
            found.append(unfinished(over, "steps", steps, "the ELBO", remedy))
        seconds = time.perf_counter() - begin
        return Posterior(
            kind="approximation",
            draws=draws,
            stats={} if noisy else {"log_weight": ratios[None]},
            findings=found,
            seconds={"sampling": seconds, "total": seconds},
            attributes={
                "elbo": float(ratios.mean()),
                "steps": steps,
                **({"pareto_k": smoothed.k_hat} if smoothed else {}),
                **({"elbo_trace": elbos} if elbos else {}),
            },
            unconstrained=x,
            guide=fitted.guide if isinstance(fitted, PyroGuide) else None,
        )

    def training(self) -> Settings:
        """How weights are trained by rows."""
        return Settings(
            objective=self.objective or ELBO(self.particles or 1),
            steps=self.steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate or 1e-3,
            optimiser=self.optimiser,
            schedule=self.schedule,
            clip=self.clip,
            average=self.average,
            holdout=self.holdout,
            plateau=self.plateau,
            patience=self.patience,
            precision=self.precision,
            tier=self.tier,
        )

    def ascend(
        self, objective: Ascent, problem: Problem
    ) -> tuple[list[float], int, bool, bool, list[Finding]]:
        """The ELBO by window, steps, whether it settled, whether time was over, findings."""
        rate = self.learning_rate or (_RATE_OF_FLOWS if self.guide in _FLOWS else _RATE)
        decays, stale, rollbacks, step = 0, 0, 0, 0
        steps = self._steps(objective, problem, rate)
        saved = steps.snapshot()
        elbos: list[float] = []
        best = -np.inf
        while step < self.steps:
            count = min(_WINDOW, self.steps - step)
            values = -steps.take(step, count, lambda: problem.clock.over)
            step += len(values)
            over = len(values) < count or problem.clock.over
            if not (np.isfinite(values).all() and steps.finite()):
                rollbacks += 1
                if rollbacks > _ROLLBACKS:
                    raise ModelError(
                        "the ELBO is not finite however small the steps; look for a site whose "
                        "log density is NaN near its prior's bulk, or lower learning_rate"
                    )
                steps.restore(saved)
                rate /= 2
                steps.set_rate(rate)
                if over:
                    return elbos, step, False, True, _rolled(rollbacks)
                continue
            saved = steps.snapshot()
            elbos.append(float(values.mean()))
            problem.report(step / self.steps, f"ELBO {elbos[-1]:.6g}")
            error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
            stale = 0 if elbos[-1] > best + error else stale + 1
            best = max(best, elbos[-1])
            if self.plateau and stale >= _PATIENCE:
                if decays == _DECAYS:
                    return elbos, step, True, False, _rolled(rollbacks)
                decays, stale, rate, best = decays + 1, 0, rate / 10, -np.inf
                steps.set_rate(rate)
            if over and step < self.steps:
                return elbos, step, False, True, _rolled(rollbacks)
        return elbos, self.steps, not self.plateau, False, _rolled(rollbacks)

    # -- internals -------------------------------------------------------------------------------

    def _guide(self, model: Any) -> Any:
        if self.guide is None:
            return model.guide if isinstance(model, HasGuide) else "mean-field"
        return self.guide

    def _objective(self, problem: Problem, name: Any) -> Ascent:
        if callable(name):
            return PyroGuide(problem, name, self.particles or _PARTICLES, self.batch_size)
        return Flat(problem, name, self)

    def _steps(self, objective: Ascent, problem: Problem, rate: float) -> Steps:
        """The steps in the fastest tier that there is."""
        parameters = objective.parameters()
        if self.optimiser is torch.optim.Adam and isinstance(objective, Flat):
            steps = objective.compiled(problem, self, rate)
            if steps is not None:
                return steps
        optimiser = self.optimiser(parameters, lr=rate)
        return Eager(objective.loss, parameters, optimiser)


_BY_ROWS = [f for f in dataclasses.fields(SVI) if f.name in _TRAINING]


class Flat:
    """The ELBO of a family on the target's flat space, entropy by Monte Carlo or in closed form."""

    def __init__(self, problem: Problem, name: guides.Family, engine: SVI) -> None:
        self.noise = problem.noise(1)
        usual = _PARTICLES_OF_FLOWS if name in _FLOWS else _PARTICLES
        self.particles = engine.particles or usual
        self.batch = engine.batch_size
        if self.batch is None:
            stepped = problem.target(engine.tier, engine.steps)
            self.target = stepped.uncompiled()  # of other numbers of points, each met once or twice
            self.evaluate = stepped.log_density_and_grad
            self.compiles = stepped.writes_c()
        else:
            self.target = problem.target("traced", 0)
            self.compiles = False
            self.minibatch = problem.program.minibatch(self.batch)
            self.subsampled = problem.subsampled(self.minibatch, self.particles)
        start = frame(self.target, problem.noise(4).fold(0))
        with torch.random.fork_rng():
            torch.manual_seed(problem.seed % 2**63)
            self.family = guides.family(name, start)

    def parameters(self) -> list[nn.Parameter]:
        return list(self.family.parameters())

    def loss(self, step: int) -> Tensor:
        noise = self.noise.fold(1, step)
        x, log_q = self.family(noise.normal(self.particles, self.family.width)[0])
        value, gradient = self._density(x.detach(), step)
        # a surrogate: its value is log p at x, its gradient that of log p through x
        log_p = value + (gradient * (x - x.detach())).sum(-1)
        return (log_q - log_p).mean()

    def compiled(self, problem: Problem, engine: SVI, rate: float) -> Compiled | None:
        """The steps of Adam as compiled loops, where they can be."""
        if not self.compiles:
            return None
        try:
            steps = Compiled(
                self.family,
                problem.program.log_density,
                self.noise,
                self.particles,
                rate,
                threads=torch.get_num_threads(),
                calls=None if engine.tier == "compiled" else engine.steps,
                seconds=problem.compiling(engine.tier),
            )
        except Exception as error:  # of any kind: steps by autograd serve
            logger.debug("The steps are not compiled (%s).", error)
            return None
        return steps if steps.agrees(self.loss(0)) else None

    def draws(self, count: int) -> tuple[Tensor, Tensor]:
        x, log_q = self.family(self.noise.fold(2).normal(count, self.family.width)[0])
        log_p = torch.cat([self.target.log_density(part) for part in x.split(256)])
        return x[None], log_p - log_q

    def _density(self, x: Tensor, step: int) -> tuple[Tensor, Tensor]:
        if self.batch is None:
            with torch.no_grad():
                return self.evaluate(x)
        unit = self.noise.fold(3, step).uniform(self.minibatch.size)[0]
        rows = unit.argsort()[: self.batch]
        with torch.no_grad():
            return self.subsampled(x, rows)


def _rolled(count: int) -> list[Finding]:
    if not count:
        return []
    text = f"the ELBO was not finite {count} times: steps were undone and the rate halved"
    return [Finding("rollbacks", "note", count, text)]
