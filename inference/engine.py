"""What an engine is: it turns a problem (model, data, target) into a posterior."""

from __future__ import annotations

import dataclasses
import math
import numbers
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from inference.finding import Finding
from inference.graph import Tier, batched_over_rows, trace
from inference.outputs import Outputs
from inference.program import Minibatch, Program
from inference.progress import Report, silent
from inference.recording import InMemory, Records
from inference.stopping import Clock, Until
from inference.target import Target
from ppl_models.base import Data, Model, Params, Use
from ppl_models.errors import EngineError
from ppl_models.noise import Noise

Kind = Literal["samples", "approximation", "point"]
TierChoice = Tier | Literal["auto"]


@dataclass(frozen=True)
class Problem:
    """What an engine is given: model, data on the device, when to stop, where draws are kept.

    ``data`` are what the program is bound to; ``whole`` the data of the call, of which that may be
    some rows.
    """

    model: Callable[..., Any]
    data: Data
    program: Program
    seed: int
    dtype: torch.dtype
    device: torch.device
    report: Report = silent
    until: Until = field(default_factory=Until)
    clock: Clock = field(default_factory=Clock)
    records: Records = field(default_factory=InMemory)
    whole: Data = field(default_factory=dict)

    def noise(self, chains: int) -> Noise:
        """The chains' streams of random numbers."""
        if isinstance(chains, str):
            raise EngineError(
                f"chains={chains!r}: the number is chosen only for an engine that fit() is given; "
                "give a number here"
            )
        return Noise.seeded(self.seed, chains, device=self.device, dtype=self.dtype)

    def target(self, tier: TierChoice, calls: int, *, wide: bool = False) -> Target:
        """The log density of the continuous sites in unconstrained space.

        With ``wide`` values at points in float32 are in float64, but for those of a C function; see
        ``Program.log_density``.
        """
        density = self.program.log_density
        return Target(
            partial(density, wide=True) if wide else density,
            self.program.dim,
            dtype=self.dtype,
            device=self.device,
            tier=tier,
            calls=calls,
            describe=self.program.describe,
            watch=None if self.clock.seconds is None else self.clock.look,
            shared=self.program.compiled,
            compiling=self.compiling(tier),
        )

    def compiling(self, tier: TierChoice) -> float | None:
        """Seconds that a compiler may take: a tenth of those of the fit; None for any.

        Where compiling is asked for it may take any.
        """
        seconds = None if tier == "compiled" else self.until.seconds
        return None if seconds is None else seconds / 10

    def precise(self, draws: Params | Tensor) -> Finding | None:
        """The finding that draws are as precise as ``until`` asks, if they are.

        ``draws`` are (chain, draw, *event) by site, or unconstrained (chain, draw, D).
        """
        values = self.outputs.constrain(draws) if isinstance(draws, Tensor) else draws
        if isinstance(self.model, Model):
            values = values | self.model.canonical(dict(values))
        names = [site.name for site in self.program.sites]
        return self.until.reached({name: values[name].cpu().numpy() for name in names})

    def subsampled(
        self, minibatch: Minibatch, points: int
    ) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Log density and gradient from the given rows: (P, D), (B,) -> (P,), (P, D)."""
        x = torch.linspace(-0.7, 0.9, self.program.dim, dtype=self.dtype, device=self.device)
        rows = torch.arange(minibatch.batch, device=self.device)
        single = partial(self.program.log_density_of, minibatch)
        return batched_over_rows(trace(single, x, rows), x.expand(points, -1).clone(), rows)

    @property
    def wide(self) -> bool:
        """Whether differences of log densities need more digits than points have."""
        return self.dtype == torch.float32 and self.device.type != "cpu"

    @cached_property
    def outputs(self) -> Outputs:
        """From unconstrained draws to everything a user reads."""
        return Outputs(self.program, self.dtype, self.device)


@dataclass(frozen=True)
class Posterior:
    """What every engine returns.

    ``kind`` says what the draws are: ``samples`` of a Markov chain, draws of an ``approximation``
    (independent, or resampled by weight), or a ``point``. Draws are (chain, draw, *event), those of
    a point (*event). ``stats`` are (chain, draw). ``findings`` are what the engine knows against
    its answer; ``fit`` adds what the draws, the statistics and the model tell.
    """

    kind: Kind
    draws: Params
    stats: dict[str, Tensor] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    unconstrained: Tensor | None = None  # (chain, draw, D)
    guide: Callable[..., Any] | None = None  # the trained guide program, of SVI
    invariants: tuple[str, ...] = ()  # which of the draws no symmetry of the model changes


@dataclass(frozen=True)
class Engine(ABC):
    """An inference method with its settings; ``run`` has no side effect on model or settings."""

    needs: ClassVar[type[Model] | None] = None
    """The capability that a model must offer, if any."""

    needs_continuous: ClassVar[bool] = True
    """Whether the engine moves in the space of the program's continuous sites."""

    stops_at: ClassVar[tuple[str, ...]] = ()
    """Which figures of ``Until`` the engine heeds."""

    stores: ClassVar[bool] = False
    """Whether the engine hands its draws and its state to the problem's records."""

    extends: ClassVar[tuple[str, ...]] = ("draws",)
    """The settings that may differ where a stored run goes on."""

    float32_on_gpu: ClassVar[bool] = False
    """Whether float32 is its default on a GPU."""

    @abstractmethod
    def run(self, problem: Problem) -> Posterior:
        """Fit the problem."""

    def settled(self, problem: Problem) -> Engine:
        """This engine with the settings that the problem decides; the fit records those."""
        return self

    def bound(self, model: Any, data: Data) -> Data:
        """The data that the program is bound to: all, unless weights are trained by minibatches."""
        return data

    def check(self, model: Any, program: Program) -> None:
        """Refuse what this engine cannot do, before any work. Raises ``EngineError``."""
        name = type(self).__name__
        if self.needs is not None and not isinstance(model, self.needs):
            lacks = ", ".join(sorted(self.needs.__abstractmethods__ - Model.__abstractmethods__))
            raise EngineError(
                f"{name} needs {self.needs.__name__}; {_name(model)} lacks {lacks}. "
                "Add these methods, or use an engine that needs only the program: SVI, MH, HMC, "
                "NUTS"
            )
        if self.needs_continuous and program.dim == 0 and not self.by_rows(model):
            raise EngineError(
                f"{name} has nothing to infer: {_name(model)} has no continuous latent site; "
                "sample one with pyro.sample, or check that not every site is observed"
            )
        if self.trains(model):
            return
        if program.parameters and not getattr(model, "trained", False):
            raise EngineError(
                f"{name} does not train the program's weights ({program.parameters[0]}, ...); "
                "train them in a module by SVI with a guide program, fit(module, data, "
                "SVI(guide=...)), then use fit.model; or set module.trained = True if they are"
            )
        if program.subsampled:
            raise EngineError(
                f"the plate '{program.subsampled[0]}' subsamples its data, so the log density "
                f"would be random, which {name} cannot use; remove subsample_size, or use SVI "
                "with batch_size=... or with a guide program"
            )
        if program.random:
            raise EngineError(
                f"the log density of site '{program.random}' is random: it differs between two "
                f"runs at the same values, which {name} cannot use; draw every random number by "
                "pyro.sample"
            )

    def check_until(self, until: Until) -> None:
        """Refuse a stop rule that means nothing here. Raises ``EngineError``."""
        for name in until.asked:
            if name not in self.stops_at:
                legal = f"; give {', '.join(self.stops_at)}" if self.stops_at else ""
                why = "has no Markov chain whose precision could be judged"
                raise EngineError(
                    f"Until({name}={getattr(until, name):g}): {type(self).__name__} "
                    + (why if name != "seconds" else "cannot be stopped")
                    + legal
                )

    def check_store(self, model: Any) -> None:
        """Refuse to store a run that could not go on. Raises ``EngineError``."""
        if not self.stores:
            raise EngineError(
                f"store=: a run of {type(self).__name__} cannot be stored on its way; leave store= "
                "out and keep the result by fit(...).save('run.nc'), or use MH, HMC, NUTS or Gibbs"
            )

    def _refuse(self, model: Any, program: Program, use: Use) -> None:
        """Raise ``EngineError`` where the model says that a use of it leads nowhere."""
        reason = model.obstacle(program.data, use) if isinstance(model, Model) else None
        if reason is not None:
            raise EngineError(f"{type(self).__name__} cannot serve {_name(model)}: {reason}")

    def trains(self, model: Any) -> bool:
        """Whether weights are trained, by gradients that may be those of a random log density."""
        return False

    def by_rows(self, model: Any) -> bool:
        """Whether weights are trained by minibatches of rows."""
        return False

    def at_least(self, **bounds: float) -> None:
        """Check numeric settings against their lower bounds. Raises ``EngineError``.

        A setting declared as an integer must be one.
        """
        declared = {field.name: field.type for field in dataclasses.fields(self)}
        for name, bound in bounds.items():
            value: Any = getattr(self, name)
            whole = declared[name] is int or str(declared[name]).startswith("int")
            kind: Any = numbers.Integral if whole else numbers.Real
            if isinstance(value, bool) or not isinstance(value, kind) or not value >= bound:
                what = "a whole number" if whole else "a number"
                raise EngineError(
                    f"{type(self).__name__}({name}={value!r}): give {what} of at least {bound:g}"
                )

    def positive(self, *names: str, below: float = math.inf) -> None:
        """Check that settings are positive numbers below a bound, or None where that is legal.

        Raises ``EngineError``.
        """
        declared = {field.name: str(field.type) for field in dataclasses.fields(self)}
        for name in names:
            if getattr(self, name) is None and "None" in declared[name]:
                continue
            value: Any = getattr(self, name)
            whole = declared[name].startswith("int")
            kind: Any = numbers.Integral if whole else numbers.Real
            if isinstance(value, bool) or not isinstance(value, kind) or not 0 < value < below:
                what = "a positive whole number" if whole else "a positive number"
                what += f" below {below:g}" if below < math.inf else ""
                raise EngineError(f"{type(self).__name__}({name}={value!r}): give {what}")

    def program_or_none(self, name: str) -> None:
        """Check that a setting is a Pyro program, if given. Raises ``EngineError``."""
        value = getattr(self, name)
        if value is not None and (isinstance(value, type) or not callable(value)):
            raise EngineError(
                f"{type(self).__name__}({name}={value!r}): give a Pyro program, or nothing"
            )

    def one_of(self, **choices: tuple[Any, ...]) -> None:
        """Check settings against their legal values. Raises ``EngineError``."""
        for name, legal in choices.items():
            if getattr(self, name) not in legal:
                text = ", ".join(repr(choice) for choice in legal)
                raise EngineError(
                    f"{type(self).__name__}({name}={getattr(self, name)!r}): choose one of {text}"
                )

    def settings(self) -> dict[str, Any]:
        """The settings by name, for the record."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}


def _name(model: Any) -> str:
    return getattr(model, "__name__", type(model).__name__)
