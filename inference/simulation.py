"""Data simulated from a program, and targets whose chains each have data of their own.

What calibration rests on: values of the latent sites drawn from the prior, data drawn given them,
and the posterior of each data set as one chain of a batch.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from inference import graph
from inference.engine import Problem, TierChoice
from inference.outputs import Outputs
from inference.program import Program
from inference.target import Target
from ppl_models.base import Data, Params
from ppl_models.errors import ModelError
from ppl_models.noise import Noise

Assemble = Callable[[Data, Params], Mapping[str, Any]]
"""New data from the template and one draw of the observed sites."""


class Simulator:
    """A program as a simulator of its own data.

    A draw of the observed sites replaces the data fields that these were given as; ``assemble``
    does it where a site's values are not those of one field.

    Raises:
        ModelError: the prior is improper, the program has a ``pyro.factor``, or an observed site's
            values are no field of the data.
    """

    def __init__(self, problem: Problem, assemble: Assemble | None = None) -> None:
        self.problem = problem
        self.program = problem.program
        self.assemble = assemble
        self._traced: dict[str, Any] = {}
        factors = set(self.program.observations) - set(self.program.observed)
        if factors:
            raise ModelError(
                f"the program cannot simulate its data: '{min(factors)}' is a pyro.factor, a term "
                "of the density without a distribution; write it as a sample statement"
            )
        self.fields = {} if assemble else {name: self._field(name) for name in self.observed}
        if self.observed:
            drawn = self.joint(1, 0)[1]
            self._check(self.datasets(drawn)[0], {k: v[0] for k, v in drawn.items()})

    @property
    def observed(self) -> list[str]:
        """The observed sites."""
        return self.program.observed

    def joint(self, draws: int, seed: int) -> tuple[Params, Params]:
        """Draws of the latent sites from the prior, and of the observed sites given them."""
        latent = [site.name for site in (*self.program.sites, *self.program.discrete)]
        try:
            drawn = self.program.simulate(draws, seed)
        except NotImplementedError as error:
            raise ModelError(
                "the prior is improper (flat): no parameters can be drawn from it, so there is "
                "nothing to calibrate against; give every site a proper prior"
            ) from error
        return (
            {name: drawn[name] for name in latent},
            {name: drawn[name] for name in self.observed},
        )

    def datasets(self, drawn: Params) -> list[Data]:
        """The data of each draw of the observed sites, {site: (R, *shape)}."""
        template = self.problem.data
        count = len(next(iter(drawn.values())))
        if self.assemble is None:
            fields = self.batch(drawn)
            return [{**template, **{k: v[r] for k, v in fields.items()}} for r in range(count)]
        rows = ({k: v[r] for k, v in drawn.items()} for r in range(count))
        return [{**template, **self.assemble(template, row)} for row in rows]

    def batch(self, drawn: Params) -> Data:
        """The data fields that differ between draws, stacked: {field: (R, *shape)}."""
        if self.assemble is not None:
            sets = self.datasets(drawn)
            names = [k for k, v in sets[0].items() if v is not self.problem.data.get(k)]
            return {name: torch.stack([data[name] for data in sets]) for name in names}
        template = self.problem.data
        return {f: drawn[site].to(template[f].dtype) for site, f in self.fields.items()}

    def problem_of(self, data: Data, seed: int) -> Problem:
        """The problem with other data of the same shapes."""
        return dataclasses.replace(
            self.problem, data=data, program=rebound(self.program, data), seed=seed
        )

    def constrain(self, x: Tensor, fields: Data) -> Params:
        """Constrained values of each data set's points: (R, S, D) -> {site: (R, S, *shape)}."""
        names = [site.name for site in self.program.sites]

        def single(x: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
            constrained = self._bound(fields, values).constrain(x)
            return tuple(constrained[name] for name in names)

        return dict(zip(names, self._mapped("constrain", single, (x,), fields), strict=True))

    def unconstrain(self, values: Params, fields: Data) -> Tensor:
        """The inverse: {site: (R, S, *shape)} -> (R, S, D)."""
        names = [site.name for site in self.program.sites]

        def single(*arguments: Tensor) -> tuple[Tensor, ...]:
            point = dict(zip(names, arguments, strict=False))
            return (self._bound(fields, arguments[len(names) :]).unconstrain(point),)

        points = tuple(values[name].to(self.problem.dtype) for name in names)
        return self._mapped("unconstrain", single, points, fields)[0]

    def log_likelihood(self, values: Params, fields: Data) -> Tensor:
        """Log likelihood of each data set at its values, {site: (R, S, *shape)} -> (R, S)."""
        names = [site.name for site in self.program.sites]

        def single(*arguments: Tensor) -> tuple[Tensor, ...]:
            point = dict(zip(names, arguments, strict=False))
            return (self._bound(fields, arguments[len(names) :]).log_likelihood(point),)

        points = tuple(values[name] for name in names)
        return self._mapped("log_likelihood", single, points, fields)[0]

    def _mapped(
        self, name: str, single: Any, points: tuple[Tensor, ...], fields: Data
    ) -> tuple[Tensor, ...]:
        """``single`` at every point (R, S, ...) with its data set's fields (R, ...)."""
        data = tuple(fields.values())
        axes = (*[0] * len(points), *[None] * len(data))
        with warnings.catch_warnings():
            # where vmap loops inside; whoever calibrates has not asked for vmap
            warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
            with contextlib.suppress(Exception):  # of any kind, as from Pyro's enumeration
                return tuple(vmap(vmap(single, in_dims=axes))(*points, *data))
            with contextlib.suppress(Exception):
                if name not in self._traced:
                    example = [p[0, 0].clone() for p in points] + [v[0].clone() for v in data]
                    self._traced[name] = graph.trace(single, *example)
                return tuple(vmap(vmap(self._traced[name], in_dims=axes))(*points, *data))
        return _one_by_one(single, points, data)

    def _bound(self, fields: Data, values: tuple[Tensor, ...]) -> Program:
        data = {**self.problem.data, **dict(zip(fields, values, strict=True))}
        return rebound(self.program, data)

    def _field(self, site: str) -> str:
        value = self.program.observations[site]
        for name, field in self.problem.data.items():
            same = isinstance(field, Tensor) and field.shape == value.shape
            if same and torch.equal(field.to(value), value):
                return name
        raise ModelError(
            f"the observed site '{site}' is no field of the data as it stands; give "
            "assemble=lambda data, drawn: {...}, the data fields made of the drawn sites"
        )

    def _check(self, data: Data, drawn: Params) -> None:
        program = Program(self.problem.model, data)
        for name, value in drawn.items():
            if not torch.allclose(program.observations[name].to(value), value, equal_nan=True):
                raise ModelError(
                    f"the observed site '{name}' does not take the values that were simulated for "
                    "it; give assemble=lambda data, drawn: {...}, the data fields made of them"
                )


def rebound(program: Program, data: Data) -> Program:
    """The program bound to other data of the same shapes, which are not checked again."""
    other = copy.copy(program)
    other.data = dict(data)
    return other


def _one_by_one(
    single: Callable[..., tuple[Tensor, ...]], points: tuple[Tensor, ...], data: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    rows = []
    for r in range(len(points[0])):
        own = [v[r] for v in data]
        each = [single(*point, *own) for point in zip(*(p[r] for p in points), strict=True)]
        rows.append([torch.stack(parts) for parts in zip(*each, strict=True)])
    return tuple(torch.stack(parts) for parts in zip(*rows, strict=True))


@dataclass
class Replicated:
    """A target whose chains have different data: all that a ``Sampler`` asks of a ``Target``.

    Args:
        problem: the model, and the data that all chains share.
        fields: the data that differ, {name: (C, *shape)}, or (1, *shape) for any number of chains;
            may be replaced between steps.
        frame: the points are (x - centre) / spread of the model's x, (C, D) each: chains with
            different posteriors can then share a step size and a scale.

    Raises ``ModelError`` where the program cannot be batched over its data.
    """

    problem: Problem
    fields: Data
    frame: tuple[Tensor, Tensor] | None = None

    def __post_init__(self) -> None:
        self.dim = self.problem.program.dim
        self.dtype, self.device = self.problem.dtype, self.problem.device
        self._single: Any = None
        self._graphs: dict[int, Any] = {}
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

    def uncompiled(self) -> Replicated:
        """For numbers of points met too seldom to trace, as ``Target.uncompiled``."""
        other = copy.copy(self)
        other._seldom, other._graphs = True, self._seldom_graphs
        return other

    def as_target(self) -> Target:
        """This, for samplers."""
        return cast(Target, self)

    def log_density(self, x: Tensor) -> Tensor:
        """(C, D) -> (C,), each point with its chain's data."""
        return self.evaluator(x)(x)[0]

    def log_density_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(C, D) -> (C,), (C, D)."""
        return self.evaluator(x)(x)

    def evaluator(self, x: Tensor) -> graph.ValueAndGrad:
        """The function behind ``log_density_and_grad``."""
        if len(x) not in self._graphs:
            self._graphs[len(x)] = self._trace(x)
        evaluate = self._graphs[len(x)]

        def framed(points: Tensor) -> tuple[Tensor, Tensor]:
            values = self._values(len(points))
            if self.frame is None:
                return evaluate(points, *values)
            centre, spread = self.frame
            value, gradient = evaluate(centre + spread * points, *values)
            return value, spread * gradient

        return framed

    def start(self, noise: Noise) -> Tensor:
        """Starting points as ``Target.start`` draws them: (C, D)."""
        return Target.start(self.as_target(), noise)

    def _describe(self, x: Tensor) -> str:
        return self.problem.program.describe(x)

    def _log_density(self, x: Tensor, *values: Tensor) -> Tensor:
        data = {**self.problem.data, **dict(zip(self.fields, values, strict=True))}
        return rebound(self.problem.program, data).log_density(x)

    def _values(self, points: int) -> list[Tensor]:
        return [v.expand(points, *v.shape[1:]) for v in self.fields.values()]

    def _trace(self, x: Tensor) -> Any:
        values = self._values(len(x))
        try:
            if self._single is None:
                first = torch.linspace(-0.7, 0.9, self.dim).to(x)
                self._single = graph.trace(self._log_density, first, *(v[0] for v in values))
            both = vmap(grad_and_value(self._single))

            def function(*arguments: Tensor) -> tuple[Tensor, Tensor]:
                gradient, value = both(*arguments)
                return value, gradient

            traced: Any = function
            if not self._seldom:
                with torch.no_grad():
                    traced = make_fx(function)(x.clone(), *(v.clone() for v in values))
            value, gradient = traced(x, *values)
        except Exception as error:
            raise ModelError(
                "the program cannot be batched over data sets: it looks at the values of its data "
                f"({str(error).strip().splitlines()[0][:120]}); give together=False"
            ) from error
        last = len(x) - 1
        own = [v[last] for v in values]
        expected, slope = graph.loop(lambda p: self._log_density(p, *own), x[last:])
        close = partial(torch.allclose, rtol=1e-6, atol=1e-6, equal_nan=True)
        if not (close(value[last:], expected) and close(gradient[last:], slope)):
            raise ModelError(
                "the program batched over data sets disagrees with the program: its density "
                "depends on the data in a way that cannot be traced; give together=False"
            )
        return traced


@dataclass(frozen=True)
class ReplicatedProblem(Problem):
    """A problem of which every chain has data of its own; see ``Replicated``."""

    replicated: Replicated | None = None

    def target(self, tier: TierChoice, calls: int) -> Target:
        """The log density, each chain with its own data."""
        assert self.replicated is not None
        return self.replicated.as_target()

    @property
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
