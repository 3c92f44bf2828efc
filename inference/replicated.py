"""Targets whose chains each have data of their own: data sets of a calibration, rows of a model."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from inference import graph
from inference.engine import Problem, TierChoice
from inference.outputs import Outputs
from inference.program import Program
from inference.row_weights import with_weights
from inference.simplify import simplified
from inference.target import Target
from ppl_models.base import Data, Params
from ppl_models.errors import ModelError
from ppl_models.noise import Noise

Density = Callable[[Program, Tensor], Tensor]
"""A density of an unconstrained point (D,) by a program bound to data: -> ()."""


def rebound(program: Program, data: Data) -> Program:
    """The program bound to other data of the same shapes, which are not checked again."""
    other = copy.copy(program)
    other.data = dict(data)
    return other


@dataclass
class Replicated:
    """A target whose chains have different data: all that a ``Sampler`` asks of a ``Target``.

    Args:
        problem: the model, and the data that all chains share.
        fields: the data that differ, {name: (C, *shape)}, or (1, *shape) for any number of chains;
            may be replaced between steps.
        frame: the points are (x - centre) / spread of the model's x, (C, D) each: chains with
            different posteriors can then share a step size and a scale.
        weights: parameters of the model by name whose values may change in place, which all chains
            share; the others are constants.
        density: of an unconstrained point (D,) given the program bound to its chain's data -> ();
            by default the program's own.
        groups: chains come in so many equal groups, one after another; step sizes are pooled within
            each.
        first: where the chains begin, (C, D), where the density is finite there.
        remedy: what to do where the program cannot be batched.

    Raises ``ModelError`` where the program cannot be batched over its data.
    """

    problem: Problem
    fields: Data
    frame: tuple[Tensor, Tensor] | None = None
    weights: Params = field(default_factory=dict)
    density: Density = Program.log_density
    groups: int = 1
    first: Tensor | None = None
    remedy: str = "give together=False"

    def __post_init__(self) -> None:
        self.dim = self.problem.program.dim
        self.dtype, self.device = self.problem.dtype, self.problem.device
        self.calls = 0
        self._single: list[Any] = []  # one, when traced; shared by copies
        self._constraint: list[Any] = []  # likewise
        self._graphs: dict[int, Any] = {}
        self._densities: dict[int, Any] = {}
        self._seldom_graphs: dict[int, Any] = {}
        self._seldom = False

    def with_fields(self, fields: Data) -> Replicated:
        """The same density for other data of the same shapes, traced once for all."""
        other = copy.copy(self)
        other.fields = fields
        return other

    def in_frame(self, centre: Tensor, spread: Tensor) -> Replicated:
        """The same density at (x - centre) / spread, traced once for all."""
        other = copy.copy(self)
        other.frame = (centre, spread)
        return other

    def starting_at(self, first: Tensor) -> Replicated:
        """The same density, whose chains begin at ``first`` (C, D), in the frame."""
        other = copy.copy(self)
        other.first = first
        return other

    def uncompiled(self) -> Replicated:
        """For numbers of points met too seldom to trace, as ``Target.uncompiled``."""
        other = copy.copy(self)
        other._seldom, other._graphs, other._densities = True, self._seldom_graphs, {}
        return other

    def as_target(self) -> Target:
        """This, for samplers."""
        return cast(Target, self)

    def log_density(self, x: Tensor) -> Tensor:
        """(C, D) -> (C,), each point with its chain's data."""
        evaluate = self.evaluator(x)
        alone = self._densities.get(len(x))
        if alone is None:
            return evaluate(x)[0]
        self.problem.clock.look()
        return alone(self._position(x), *self._values(len(x)), *self.weights.values())

    def log_density_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(C, D) -> (C,), (C, D)."""
        return self.evaluator(x)(x)

    def evaluator(self, x: Tensor) -> graph.ValueAndGrad:
        """The function behind ``log_density_and_grad``."""
        if len(x) not in self._graphs:
            self._graphs[len(x)] = self._trace(x)
        evaluate = self._graphs[len(x)]

        def framed(points: Tensor) -> tuple[Tensor, Tensor]:
            self.problem.clock.look()
            inputs = (*self._values(len(points)), *self.weights.values())
            value, gradient = evaluate(self._position(points), *inputs)
            return value, gradient if self.frame is None else self.frame[1] * gradient

        return framed

    def native(self, x: Tensor) -> None:
        """There is no C function: the chains' data are among the arguments of the graph."""

    def constrain(self, x: Tensor) -> Params:
        """Values of the sites: (C, D) -> {site: (C, *shape)}."""
        sites = [site.name for site in self.problem.program.sites]
        own = self._values(len(x))
        if not self._constraint:

            def single(point: Tensor, *values: Tensor) -> Any:
                constrained = self._bound(values).constrain(point)
                return tuple(constrained[name] for name in sites)

            traced: Any = graph.trace(single, x[0], *(v[0] for v in own))
            self._constraint.append(traced)
        return dict(zip(sites, vmap(self._constraint[0])(self._position(x), *own), strict=True))

    def start(self, noise: Noise) -> Tensor:
        """``first`` where it is given and finite; else as ``Target.start`` draws: (C, D)."""
        if self.first is None:
            return Target.start(self.as_target(), noise)
        value, gradient = self.log_density_and_grad(self.first)
        good = torch.isfinite(value) & torch.isfinite(gradient).all(-1)
        if bool(good.all()):
            return self.first
        return torch.where(good[:, None], self.first, Target.start(self.as_target(), noise))

    def _describe(self, x: Tensor) -> str:
        return self.problem.program.describe(x)

    def _position(self, x: Tensor) -> Tensor:
        return x if self.frame is None else self.frame[0] + self.frame[1] * x

    def _log_density(self, x: Tensor, *inputs: Tensor) -> Tensor:
        own, shared = inputs[: len(self.fields)], inputs[len(self.fields) :]
        program = self._bound(own)
        if not self.weights:
            return self.density(program, x)
        named = dict(zip(self.weights, shared, strict=True))
        model: Any = self.problem.model
        return with_weights(model, named, lambda: self.density(program, x))

    def _bound(self, own: tuple[Tensor, ...]) -> Program:
        """The program of one chain's data."""
        data = {**self.problem.data, **dict(zip(self.fields, own, strict=True))}
        return rebound(self.problem.program, data)

    def _values(self, points: int) -> list[Tensor]:
        return [v.expand(points, *v.shape[1:]) for v in self.fields.values()]

    def _trace(self, x: Tensor) -> Any:
        own, shared = self._values(len(x)), list(self.weights.values())
        inputs = [*own, *shared]
        try:
            if not self._single:
                first = torch.linspace(-0.7, 0.9, self.dim).to(x)
                single = graph.trace(self._log_density, first, *(v[0] for v in own), *shared)
                self._single.append(single)
            axes = (*[0] * (1 + len(own)), *[None] * len(shared))
            both = vmap(grad_and_value(self._single[0]), in_dims=axes)

            def function(*arguments: Tensor) -> tuple[Tensor, Tensor]:
                gradient, value = both(*arguments)
                return value, gradient

            traced: Any = function
            if not self._seldom:
                with torch.no_grad():
                    made = simplified(make_fx(function)(x.clone(), *(v.clone() for v in inputs)))
                traced = made.forward
                self._densities[len(x)] = graph.value_only(made)
            value, gradient = traced(x, *inputs)
        except Exception as error:
            raise ModelError(
                "the program cannot be batched over data sets: it looks at the values of its data "
                f"({str(error).strip().splitlines()[0][:120]}); {self.remedy}"
            ) from error
        last = len(x) - 1
        those = [*(v[last] for v in own), *shared]
        expected, slope = graph.loop(lambda p: self._log_density(p, *those), x[last:])
        if not (_close(value[last:], expected) and _close(gradient[last:], slope)):
            raise ModelError(
                "the program batched over data sets disagrees with the program: its density "
                f"depends on the data in a way that cannot be traced; {self.remedy}"
            )
        return traced


def _close(a: Tensor, b: Tensor) -> bool:
    tolerance = 1e-6 if b.dtype == torch.float64 else 1e-3
    scale = float(1 + b.nan_to_num().abs().max())
    return torch.allclose(a, b, rtol=0, atol=tolerance * scale, equal_nan=True)


@dataclass(frozen=True)
class ReplicatedProblem(Problem):
    """A problem of which every chain has data of its own; see ``Replicated``."""

    replicated: Replicated | None = None

    def target(self, tier: TierChoice, calls: int, *, wide: bool = False) -> Target:
        """The log density, each chain with its own data; its values are as exact as its points."""
        assert self.replicated is not None
        return self.replicated.as_target()

    @cached_property
    def outputs(self) -> Outputs:
        """Values of the continuous sites alone, which is all that calibration ranks."""
        assert self.replicated is not None
        return _Continuous(self.program, self.dtype, self.device, self.replicated)


class _Continuous(Outputs):
    """Outputs that trace nothing anew for each data set."""

    def __init__(
        self, program: Program, dtype: torch.dtype, device: torch.device, replicated: Replicated
    ) -> None:
        super().__init__(program, dtype, device)
        self._replicated = replicated

    def values(self, x: Tensor, noise: Noise) -> Params:
        return self.constrain(x)

    def completed(self, values: Params, x: Tensor, noise: Noise) -> Params:
        return {site.name: values[site.name] for site in self.program.sites}

    def log_density(self, x: Tensor) -> Tensor:
        return self._replicated.log_density(x.reshape(-1, x.shape[-1])).reshape(x.shape[:-1])


def with_target(problem: Problem, replicated: Replicated) -> ReplicatedProblem:
    """The problem with that target in place of its own."""
    inherited = {f.name: getattr(problem, f.name) for f in dataclasses.fields(Problem)}
    return ReplicatedProblem(**inherited, replicated=replicated)


def chains_of(fields: Data, chains: int) -> Data:
    """Each data set for as many chains, one after another: {name: (R * chains, *shape)}."""
    return {name: value.repeat_interleave(chains, 0) for name, value in fields.items()}


def standardised(x: Tensor) -> tuple[Tensor, Tensor]:
    """Centre and spread of each data set, for its chains: (R, chains, S, D) -> (R * chains, D).

    What they are the frame of has means near 0 and sds near 1.
    """
    spread, centre = torch.std_mean(x, (1, 2))  # (R, D)
    least = 0.1 * spread.quantile(0.5, 0)  # a chain that hardly moved says little of its spread
    chains = x.shape[1]
    return (
        centre.repeat_interleave(chains, 0),
        spread.clamp(min=least).repeat_interleave(chains, 0),
    )
