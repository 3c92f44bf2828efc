"""Monte Carlo EM: weights by draws of the latents, without an encoder.

Wei & Tanner (1990), "A Monte Carlo implementation of the EM algorithm and the poor man's data
augmentation algorithms"; Levine & Casella (2001) for chains that go on from the last E step. With
draws z_k of p(z | x) at the present weights, the M step raises

    Q(weights) = 1 / (K B) sum_k sum_i log p(x_i, z_ki; weights),

whose gradient there is that of log p(x). The sums of a closed form are averaged over the
minibatches of about an epoch (Delyon, Lavielle & Moulines 1999).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from inference import row_weights
from inference.ais import AIS, Annealing, log_mean
from inference.e_step import Chains, EStep, ExactGuide
from inference.engine import Engine, Posterior, Problem, TierChoice
from inference.finding import Finding
from inference.hmc import HMC
from inference.objectives import Objective
from inference.program import Program
from inference.row_svi import guide_draws
from inference.row_wise import RowWise, check_sampler
from inference.sampling import Sampler
from inference.training_step import Step, idle_weights, step_function
from inference.weights import Optimiser, Schedule, Weights
from ppl_models.base import Data, HasMStep, HasRows, Model, Params
from ppl_models.errors import EngineError

_LATENT = "latent "  # before the names of sites among the fields of a minibatch
_LOOKS = 10
_GUIDED = 200  # draws of an exact guide that are returned


@dataclass(frozen=True)
class CompleteData(Objective):
    """-log p(x, z) of each row, at draws of z that are given among the data."""

    bounds: ClassVar[bool] = False

    def losses(self, model: HasRows, data: Data) -> Tensor:
        latents = {k.removeprefix(_LATENT): v for k, v in data.items() if k.startswith(_LATENT)}
        rest = {k: v for k, v in data.items() if not k.startswith(_LATENT)}
        return -row_weights.log_joint(model, rest, latents).mean(0)


@dataclass(frozen=True)
class MCEM(Engine):
    """Monte Carlo EM of the weights of a model with independent rows (``HasRows``).

    Args:
        e_step: a sampler of the latents, whose ``chains`` chains of each row persist, and whose
            settings for warm-up and draws serve the draws after training; or "guide" for a model
            whose guide has no weights: where it is the posterior, the E step is exact; where it is
            fixed, as the noising chain of a ``Diffusion`` is, EM raises the same bound as SVI (Neal
            & Hinton 1998), and its E step is to draw it.
        rounds: E and M steps.
        transitions: of each chain in an E step; with "guide" the draws of each row.
        m_steps: steps of the optimiser in an M step. Weights with a closed form (``HasMStep``) have
            no need of them.
        batch_size: rows of a round; None takes all.
        learning_rate: of the optimiser.
        optimiser: a class from ``torch.optim``, called as ``optimiser(parameters, lr=...)``.
        schedule: of the learning rate: a function from an optimiser to a
            ``torch.optim.lr_scheduler``, stepped at every step of the optimiser.
        clip: the largest norm of the gradient.
        average: decay of an exponential average of the weights, which is returned; 0 for none.
        rows: the first rows, whose latents are drawn after training.
        annealing: how log p(x) of these rows is estimated on the way, from below: its mean over
            rows is ``log_likelihood_trace`` among the posterior's attributes. With "guide" it is
            the ELBO.
        tier: of the M step.

    The trained model is ``fit.model``; its guide is as it was.

    Example:
        >>> from inference import HMC, MCEM
        >>> MCEM(HMC(chains=2, steps=5), rounds=100, batch_size=128).m_steps
        5
    """

    e_step: Sampler | Literal["guide"] = field(
        default_factory=lambda: HMC(chains=2, steps=5, warmup=200, draws=200)
    )
    rounds: int = 1000
    transitions: int = 3
    m_steps: int = 5
    batch_size: int | None = None
    learning_rate: float = 1e-2
    optimiser: Optimiser = torch.optim.Adam
    schedule: Schedule | None = None
    clip: float | None = None
    average: float = 0.0
    rows: int = 64
    annealing: AIS = field(
        default_factory=lambda: AIS(chains=16, temperatures=100, kernel=HMC(steps=3))
    )
    tier: TierChoice = "auto"

    needs: ClassVar[type[Model] | None] = HasRows
    stops_at: ClassVar[tuple[str, ...]] = ("seconds",)

    def __post_init__(self) -> None:
        self.at_least(rounds=1, transitions=1, m_steps=1, rows=1, average=0)
        self.positive("batch_size", "learning_rate", "clip")
        self.one_of(tier=("auto", "eager", "traced", "compiled"))
        if self.average >= 1:
            raise EngineError(f"MCEM(average={self.average!r}): give a share in [0, 1)")
        if self.e_step != "guide":
            check_sampler("MCEM", "e_step", self.e_step)
        if not isinstance(self.annealing, AIS):
            raise EngineError(f"MCEM(annealing={self.annealing!r}): give AIS(...)")

    def trains(self, model: Any) -> bool:
        return True

    def bound(self, model: Any, data: Data) -> Data:
        if not isinstance(model, HasRows):
            return data
        return model.take(data, torch.arange(min(self.rows, model.rows(data))))

    def check(self, model: Any, program: Program) -> None:
        super().check(model, program)
        if program.discrete:
            raise EngineError(
                f"MCEM: the M step needs every latent site, and '{program.discrete[0].name}' is "
                "discrete; sum it out in the program's distribution"
            )

    @torch.no_grad()
    def run(self, problem: Problem) -> Posterior:
        """Alternate E and M steps, then draw the latents of the first rows."""
        begin = time.perf_counter()
        problem.clock.expect("the first M step")
        training = _Training(self, problem)
        trace = training.run()
        model: Any = problem.model
        model.trained = True
        trained = time.perf_counter()
        attributes = {
            "rounds": training.round,
            "log_likelihood_trace": [value for _, value in trace],
            "trace_rounds": [number for number, _ in trace],
            "log_likelihood": trace[-1][1],
            "acceptance_rate": training.e_step.acceptance_rate,
        }
        rest = dataclasses.replace(problem, report=lambda share, words: None)
        e_step = training.e_step
        if isinstance(self.e_step, Sampler) and isinstance(e_step, Chains):
            number = model.rows(problem.data)
            drawn = RowWise(self.e_step).run_from(rest, e_step.x[:number].flatten(0, 1))
        else:
            draws, x, _ = guide_draws(rest, _GUIDED)
            drawn = Posterior(kind="approximation", draws=draws, unconstrained=x)
        seconds = drawn.seconds | {
            "training": trained - begin,
            "total": time.perf_counter() - begin,
        }
        return dataclasses.replace(
            drawn,
            findings=[*drawn.findings, *training.findings()],
            seconds=seconds,
            attributes=drawn.attributes | attributes,
        )


class _Training:
    """One run: weights move in the model itself."""

    def __init__(self, engine: MCEM, problem: Problem) -> None:
        self.engine, self.problem = engine, problem
        self.model: Any = problem.model
        self.data, self.number = problem.whole, self.model.rows(problem.whole)
        self.batch = min(engine.batch_size or self.number, self.number)
        self.noise, self.round = problem.noise(1), 0
        every = torch.arange(self.number, device=problem.device)
        self.epoch, self.order = -1, every
        first = self.model.take(self.data, every[: self.batch])
        named = {n: p.detach() for n, p in self.model.named_parameters() if p.requires_grad}
        self.present = named  # the model's own, changed in place
        self.statistics: Params = {}
        self.e_step, latents = self._first(first, every[: self.batch])
        self.closed = self._closed_form(first, latents)
        objective = CompleteData()
        like = {**first, **{_LATENT + name: value for name, value in latents.items()}}
        idle = idle_weights(self.model, objective, like)
        self.idle = [name for name in idle if name not in self.closed]
        moving = {n: v for n, v in named.items() if n not in idle and n not in self.closed}
        if not moving and not self.closed:
            raise EngineError("MCEM: the program has no weights; declare them as nn.Parameter")
        self.weights: Weights | None = None
        self.step: Step | None = None
        if moving:
            self.weights = Weights(
                moving,
                optimiser=engine.optimiser,
                rate=engine.learning_rate,
                schedule=engine.schedule,
                clip=engine.clip,
                average=engine.average,
            )
            steps = engine.rounds * engine.m_steps
            self.step = step_function(
                self.model, objective, like, tier=engine.tier, steps=steps, refresh=False
            )
        self.likelihood = self._likelihood()

    def run(self) -> list[tuple[int, float]]:
        """Train; the round and the mean log likelihood of the first rows at each look."""
        engine, clock = self.engine, self.problem.clock
        looks = {round(engine.rounds * (k + 1) / _LOOKS) for k in range(_LOOKS)}
        trace = [(0, self.likelihood())]
        while self.round < engine.rounds:
            rows = self._rows()
            data = self.model.refreshed(self.model.take(self.data, rows))
            latents = self.e_step.draw(data, rows, self.round)
            self._m_step(data, latents)
            self.round += 1
            clock.met()
            over = clock.over
            if self.round in looks or over:
                trace.append((self.round, self.likelihood()))
                words = f"log p(x) {trace[-1][1]:.5g}"
                self.problem.report(self.round / engine.rounds, words)
            if over:
                break
        if self.weights is not None and self.weights.average:
            self._put(self.weights.final)
            trace[-1] = (self.round, self.likelihood())
        return trace

    def findings(self) -> list[Finding]:
        found = []
        if self.round < self.engine.rounds:
            text = f"seconds: stopped after {self.round} of {self.engine.rounds} rounds"
            found.append(Finding("seconds", "warning", self.round, text, "give more seconds"))
        if self.idle:
            text = (
                f"{len(self.idle)} weights ({', '.join(self.idle[:3])}) were not trained, as the "
                "program does not depend on them: such as an encoder, whose draws mean nothing yet"
            )
            found.append(Finding("idle_weights", "note", len(self.idle), text))
        return found

    # -- a round -----------------------------------------------------------------------------------

    def _rows(self) -> Tensor:
        """Those of the round: a slice of the epoch's order."""
        if self.batch == self.number:
            return self.order
        epoch, place = divmod(self.round, self.number // self.batch)
        if epoch != self.epoch:
            unit = self.noise.fold(4, epoch).uniform(self.number)[0]
            self.epoch, self.order = epoch, unit.argsort()
        return self.order[place * self.batch : (place + 1) * self.batch]

    def _m_step(self, data: Data, latents: Params) -> None:
        if self.closed:
            self._average(self.model.statistics(data, latents))
            self._put(self.model.maximiser(self.statistics))
        if self.weights is None or self.step is None:
            return
        batch = {**data, **{_LATENT + name: value for name, value in latents.items()}}
        for _ in range(self.engine.m_steps):
            _, gradients = self.step.call(self.present, batch)
            named = dict(zip(self.present, gradients, strict=True))
            self.weights.move([named[name] for name in self.weights.values])
            self._put({name: value.detach() for name, value in self.weights.values.items()})

    def _average(self, statistics: Params) -> None:
        """Over the rounds so far, and no more than about an epoch of them."""
        share = max(1 / (1 + self.round), self.batch / self.number)
        for name, value in statistics.items():
            old = self.statistics.get(name, value)
            self.statistics[name] = old + share * (value - old)

    def _put(self, weights: Params) -> None:
        for name, value in weights.items():
            self.present[name].copy_(value)

    # -- before the first --------------------------------------------------------------------------

    def _first(self, data: Data, rows: Tensor) -> tuple[EStep, Params]:
        """The E step, and what it gives, as an example."""
        engine = self.engine
        if isinstance(engine.e_step, Sampler):
            made: EStep = Chains(
                engine.e_step, engine.transitions, self.problem, data, self.present
            )
        else:
            made = ExactGuide(self.problem, data, engine.transitions)
        return made, made.draw(self.model.refreshed(data), rows, -1)

    def _closed_form(self, data: Data, latents: Params) -> list[str]:
        """The weights that have one. Raises ``EngineError`` for names that are no weights."""
        if not isinstance(self.model, HasMStep):
            return []
        found = list(self.model.maximiser(self.model.statistics(data, latents)))
        unknown = [name for name in found if name not in self.present]
        if unknown:
            raise EngineError(
                f"MCEM: maximiser returns {unknown[0]}, which is no weight of the model; its "
                f"weights are {', '.join(self.present)}"
            )
        return found

    def _likelihood(self) -> Callable[[], float]:
        """An honest estimate for the first rows, at the weights that the model has.

        It has the same random numbers at every look.
        """
        problem, noise = self.problem, self.problem.noise(1).fold(5)
        if not isinstance(self.engine.e_step, Sampler):

            def elbo() -> float:
                noise.seed_torch()
                weighed = row_weights.weigh(self.model, problem.data, self.engine.transitions)
                return float(weighed.log_weight.mean())

            return elbo
        quiet = dataclasses.replace(problem, report=lambda share, words: None)
        annealing = Annealing(self.engine.annealing, quiet, noise, self.present)
        chains = problem.noise(annealing.points).fold(6)

        def annealed() -> float:
            annealing.adapt(noise)
            log_weight = annealing.forward(chains).log_weight
            return float(log_mean(annealing.rows.unchained(log_weight)).mean())

        return annealed
