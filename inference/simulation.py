"""Data simulated from a program: latent sites from the prior, data given them."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from inference import graph
from inference.engine import Problem
from inference.program import Program
from inference.replicated import rebound
from ppl_models.base import Data, Params
from ppl_models.errors import ModelError

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


def _one_by_one(
    single: Callable[..., tuple[Tensor, ...]], points: tuple[Tensor, ...], data: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    rows = []
    for r in range(len(points[0])):
        own = [v[r] for v in data]
        each = [single(*point, *own) for point in zip(*(p[r] for p in points), strict=True)]
        rows.append([torch.stack(parts) for parts in zip(*each, strict=True)])
    return tuple(torch.stack(parts) for parts in zip(*rows, strict=True))
