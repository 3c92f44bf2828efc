"""Weights trained by minibatches of rows: stochastic gradients of an objective (Bottou 2010).

Rows come in a new order in every epoch, all but a last incomplete minibatch; each step has random
numbers of its own, named by its number, so that a run goes on from a checkpoint as if it had never
stopped. A look after every epoch, or every 100 steps if that is longer, checks that all is finite,
measures the bound on held-out rows, and lowers the learning rate on a plateau.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from inference.engine import Problem, TierChoice
from inference.finding import Finding, unsettled
from inference.objectives import Objective
from inference.row_weights import faulty, with_weights
from inference.training_step import Precision, idle_weights, step_function
from inference.weights import Moved, Optimiser, Schedule, Weights
from ppl_models.base import Data, Params
from ppl_models.errors import EngineError, ModelError
from ppl_models.noise import seed_torch

_LOOK = (100, 1000)  # steps between looks, at least and at most
_DECAYS = 2  # how often a plateau lowers the learning rate before it ends the run
_ROLLBACKS = 10
_TESTED = 1024  # held-out rows at a time


@dataclass(frozen=True)
class Settings:
    """How to train: see ``SVI`` for what each means."""

    objective: Objective
    steps: int
    batch_size: int | None
    learning_rate: float
    optimiser: Optimiser
    schedule: Schedule | None
    clip: float | None
    average: float
    holdout: float
    plateau: bool
    patience: int
    precision: Precision | None
    tier: TierChoice


class Progress(NamedTuple):
    """How far a training is, between two looks."""

    step: int
    factor: float  # of the scheduled learning rate
    decays: int
    stale: int  # looks without progress
    rollbacks: int
    best: float  # the highest bound at a look
    best_weights: Params  # empty without held-out rows
    trace: Tensor  # (looks, 4): step, bound, bound of held-out rows or NaN, seconds


class Training(NamedTuple):
    """Everything that the next step depends on."""

    moved: Moved
    safe: Moved  # at the last look, to go back to
    progress: Progress
    losses: Tensor  # (K,) since the last look
    seconds: float


class Trained(NamedTuple):
    """What training leaves."""

    weights: Params
    progress: Progress
    tier: str
    findings: list[Finding]


class Trainer:
    """One run of training on the rows ``problem.whole``.

    Raises ``EngineError`` or ``ModelError`` for what cannot be trained, before the first step.
    """

    def __init__(self, problem: Problem, settings: Settings) -> None:
        model: Any = problem.model
        self.problem, self.settings, self.model = problem, settings, model
        self.data, self.noise = problem.whole, problem.noise(1)
        self.steps = self.noise.fold(1)
        self.kept, self.held_out = self._split(model.rows(self.data))
        self.batch = min(settings.batch_size or len(self.kept), len(self.kept))
        self.epoch = len(self.kept) // self.batch  # steps
        self.look = min(max(self.epoch, _LOOK[0]), _LOOK[1])
        self.first = model.take(self.data, self.kept[: self.batch])
        self.order = (-1, self.kept)
        self.seeds: tuple[int, list[int]] = (0, [])  # of torch, from a step on
        objective = settings.objective
        objective.check(model, model.refreshed(self.first))
        start = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
        self.idle = idle_weights(model, objective, self.first)
        if len(self.idle) == len(start):
            raise ModelError("the model has no weights to train; declare them as nn.Parameter")
        self.weights = Weights(
            start,
            optimiser=settings.optimiser,
            rate=settings.learning_rate,
            schedule=settings.schedule,
            clip=settings.clip,
            average=settings.average,
        )
        self.step = step_function(
            model,
            objective,
            self.first,
            tier=settings.tier,
            steps=settings.steps,
            precision=settings.precision,
        )

    def run(self) -> Trained:
        """Train until the steps, the time or the progress are over."""
        records, clock, steps = self.problem.records, self.problem.clock, self.settings.steps
        trace = torch.empty(0, 4, dtype=torch.float64)
        at = Progress(0, 1.0, 0, 0, 0, -math.inf, {}, trace)
        losses: list[Tensor] = []
        begun, saved = time.perf_counter(), records.saved()
        if saved is not None:
            begin = self.weights.saved()
            like = Training(begin, begin, at, torch.empty(0), 0.0)
            old = saved.part("training", like, self.problem.device)
            at, losses = old.progress, list(old.losses.unbind())
            self.weights.restore(old.moved, at.step)
            begun -= old.seconds
            safe, looked = old.safe, at._replace(step=at.step - len(losses))
        else:
            safe, looked = self.weights.saved(), at
        found, settled, stopped = [], False, False
        self.model.train()
        try:
            while at.step < steps and not (settled or stopped):
                losses.append(self._move(at))
                at = at._replace(step=at.step + 1)
                stopped = clock.over
                if at.step % self.look == 0 or at.step == steps or stopped:
                    seconds = time.perf_counter() - begun
                    at, settled = self._looked(at, safe, losses, seconds)
                    (safe, looked), losses = (self.weights.saved(), at), []
                    clock.met()
                    self.problem.report(at.step / steps, self._words(at, seconds))
                if records.due():
                    self._save(at, safe, losses, begun)
        except KeyboardInterrupt:
            # perhaps in the midst of a step: back to the last look
            at, losses = looked, []
            if not at.step:
                raise
            self.weights.restore(safe, at.step)
            text = f"interrupted: kept the weights after {at.step} steps"
            found.append(Finding("interrupted", "warning", at.step, text, records.remedy))
        finally:
            self.model.eval()
        self._save(at, safe, losses, begun)
        if not (settled or found) and (stopped or self.settings.plateau):
            name, remedy = ("seconds", "give more seconds") if stopped else ("steps", "raise steps")
            found.append(unsettled(name, at.step, "the bound", records.remedy or remedy))
        weights = at.best_weights or self.weights.final
        return Trained(weights, at, self.step.tier, [*found, *self._findings(at)])

    # -- a step ------------------------------------------------------------------------------------

    def _move(self, at: Progress) -> Tensor:
        """One step: the loss before it."""
        batch = self.first if self.epoch == 1 and self.batch == len(self.kept) else self._batch(at)
        seed_torch(self._seed(at.step), self.problem.device)
        with torch.no_grad():
            loss, gradients = self.step.call(self.weights.values, batch)
        self.weights.move(gradients, at.factor)
        return loss

    def _seed(self, step: int) -> int:
        """The seed of a step's random numbers: that of ``self.steps.fold(step)``."""
        first, seeds = self.seeds
        if not 0 <= step - first < len(seeds):
            self.seeds = first, seeds = step, self.steps.seeds(step, self.look)
        return seeds[step - first]

    def _batch(self, at: Progress) -> Data:
        """The rows of a step: a slice of the epoch's order."""
        epoch, place = divmod(at.step, self.epoch)
        if self.order[0] != epoch:
            unit = self.noise.fold(2, epoch).uniform(len(self.kept))[0]
            self.order = (epoch, self.kept[unit.argsort()])
        rows = self.order[1][place * self.batch : (place + 1) * self.batch]
        return self.model.take(self.data, rows)

    # -- a look ------------------------------------------------------------------------------------

    def _looked(
        self, at: Progress, safe: Moved, losses: list[Tensor], seconds: float
    ) -> tuple[Progress, bool]:
        """The progress after a look, and whether the bound has settled.

        Where something is not finite, the weights are those of the look before, at half the rate.
        """
        values = -torch.stack(losses).double().cpu()
        if not (self.weights.finite and bool(torch.isfinite(values).all())):
            self.weights.restore(safe, at.step)
            return self._slower(at), False
        bound, tested = float(values.mean()), self._tested()
        judged, slack = (tested, 0.0)  # with the same random numbers at every look
        if math.isnan(tested):
            judged = bound
            slack = float(values.std(correction=0)) / math.sqrt(len(values))
        better = judged > at.best + slack
        row = torch.tensor([[at.step, bound, tested, seconds]], dtype=torch.float64)
        at = at._replace(
            trace=torch.cat([at.trace, row]),
            stale=0 if better else at.stale + 1,
            best=max(at.best, judged),
        )
        if better and not math.isnan(tested):
            final = {name: value.clone() for name, value in self.weights.final.items()}
            at = at._replace(best_weights=final)
        if not self.settings.plateau or at.stale < self.settings.patience:
            return at, False
        if at.decays == _DECAYS or self.settings.schedule is not None:
            return at, True
        return at._replace(decays=at.decays + 1, stale=0, factor=at.factor / 10), False

    def _slower(self, at: Progress) -> Progress:
        if at.rollbacks < _ROLLBACKS:
            return at._replace(factor=at.factor / 2, rollbacks=at.rollbacks + 1)
        with torch.no_grad():
            weights, first = self.weights.values, self.model.refreshed(self.first)
            where = with_weights(self.model, weights, lambda: faulty(self.model, first))
        raise ModelError(
            f"the loss is not finite however small the steps ({where}); look there for a log, a "
            "division or an exp without limits, or lower learning_rate"
        )

    @torch.no_grad()
    def _tested(self) -> float:
        """The mean bound of the held-out rows; NaN where there are none."""
        if not len(self.held_out):
            return math.nan
        model, objective = self.model, self.settings.objective
        self.noise.fold(3).seed_torch()

        def total() -> Tensor:
            parts = (model.take(self.data, rows) for rows in self.held_out.split(_TESTED))
            losses = [objective.losses(model, model.refreshed(part)).sum() for part in parts]
            return torch.stack(losses).sum()

        model.eval()
        value = with_weights(model, self.weights.final, total)
        model.train()
        return -float(value) / len(self.held_out)

    # -- the rest ----------------------------------------------------------------------------------

    def _save(self, at: Progress, safe: Moved, losses: list[Tensor], begun: float) -> None:
        kept = torch.stack(losses) if losses else torch.empty(0)
        seconds = time.perf_counter() - begun
        training = Training(self.weights.saved(), safe, at, kept, seconds)
        self.problem.records.save({"training": training})

    def _split(self, number: int) -> tuple[Tensor, Tensor]:
        """The rows that are trained on, and those held out."""
        share = self.settings.holdout
        held = round(share * number)
        if share and not 0 < held < number:
            raise EngineError(
                f"SVI(holdout={share:g}): holds out {held} of {number} rows; give another share"
            )
        order = self.noise.fold(4).uniform(number)[0].argsort()
        return order[held:].sort().values, order[:held].sort().values

    def _words(self, at: Progress, seconds: float) -> str:
        words = [f"rate {self.weights.rate * at.factor:.2g}"]
        words.append(f"{at.step * self.batch / max(seconds, 1e-9):.0f} rows/s")
        if len(at.trace):
            _, bound, tested, _ = at.trace[-1].tolist()
            held = "" if math.isnan(tested) else f", held out {tested:.5g}"
            words.insert(0, f"bound {bound:.5g}{held}")
        return ", ".join(words)

    def _findings(self, at: Progress) -> list[Finding]:
        found = []
        if at.rollbacks:
            text = (
                f"the loss was not finite {at.rollbacks} times: steps were undone, the rate halved"
            )
            found.append(Finding("rollbacks", "note", at.rollbacks, text))
        if self.idle:
            text = f"{len(self.idle)} weights ({', '.join(self.idle[:3])}) were not trained"
            remedy = "no loss depends on them: use them in program or guide, or remove them"
            found.append(Finding("idle_weights", "warning", len(self.idle), text, remedy))
        return found
