"""Independent rows of a model as chains of one batch.

p(x, z) = prod_i p(x_i, z_i) of a model with its weights (``HasRows``): the posterior of each row is
a target of its own in as many dimensions D as a row has latents. All rows with all their chains
make one batch of a program of one row, traced once; the chains of a row follow one another.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inference.engine import Problem
from inference.finding import Finding
from inference.program import Program
from inference.proposal import Proposal
from inference.replicated import Density, Replicated, ReplicatedProblem, chains_of, rebound
from inference.warmup import Mass, scale_of
from ppl_models.base import Data, HasRows, Params
from ppl_models.errors import EngineError, ModelError
from ppl_models.noise import Noise

_REMEDY = "write it for any number of rows by torch operations alone, without branches on values"


class Rows:
    """The rows of a problem.

    Raises:
        ModelError: the rows are not independent, or one row cannot stand for itself.
    """

    def __init__(self, problem: Problem) -> None:
        self.whole = problem
        self.model: Any = problem.model
        self.number = self.model.rows(problem.data)
        first = torch.zeros(1, dtype=torch.int64, device=problem.device)
        one = self.model.take(problem.data, first)
        self._names = [
            name
            for name, value in problem.data.items()
            if isinstance(value, Tensor) and value.dim() and len(value) == self.number
            if len(one[name]) == 1
        ]
        self.fields = self.fields_of(problem.data)
        self.problem = dataclasses.replace(
            problem, data=one, program=_of_one_row(self.model, one, problem)
        )
        self.dim = self.problem.program.dim
        self._own = Replicated(self.problem, self.fields, groups=self.number, remedy=_REMEDY)
        self._check()

    def target(
        self, chains: int, *, weights: Params | None = None, density: Density = Program.log_density
    ) -> Replicated:
        """The density of each row as that of its chains: points are (rows * chains, D).

        Args:
            chains: of each row.
            weights: those that may change in place; see ``Replicated``.
            density: in place of the program's own.
        """
        own = self._own
        if weights or density is not Program.log_density:
            own = dataclasses.replace(own, weights=weights or {}, density=density)
        return own.with_fields(chains_of(self.fields, chains))

    def fields_of(self, data: Data) -> Data:
        """What differs between the rows of these or of other data: {name: (rows, 1, *shape)}."""
        return {name: data[name][:, None] for name in self._names}

    def split(self, x: Tensor) -> Tensor:
        """Points of the whole program as those of its rows: (..., rows * D) -> (..., rows, D)."""
        return split(self.whole.program, x, self.number)

    def joined(self, x: Tensor) -> Tensor:
        """The inverse: (..., rows, D) -> (..., rows * D)."""
        parts = [
            x[..., site.offset : site.offset + site.size].flatten(-2)
            for site in self.problem.program.sites
        ]
        return torch.cat(parts, -1)

    def guide(self) -> Proposal | None:
        """The model's guide, if it has one that samples."""
        if type(self.model).guide is HasRows.guide:
            return None
        return Proposal(self.whole, self.model.guide)

    def drawn(self, proposal: Proposal, noise: Noise, chains: int) -> Tensor:
        """Draws of a program over the latents, so many of each row: (rows * chains, D)."""
        return self.chained(drawn(self.whole, proposal, noise, chains, self.number))

    def chained(self, x: Tensor) -> Tensor:
        """(chains, rows, ...) as a batch: (rows * chains, ...)."""
        return x.transpose(0, 1).flatten(0, 1)

    def unchained(self, x: Tensor) -> Tensor:
        """The inverse: (rows * chains, ...) -> (chains, rows, ...)."""
        return x.unflatten(0, (self.number, -1)).transpose(0, 1)

    def _check(self) -> None:
        """The log densities of the rows must add up to that of the whole."""
        of_one, of_all = self.problem.program, self.whole.program
        for one, all_ in zip(of_one.sites, of_all.sites, strict=True):
            if all_.unconstrained[:1] != (self.number,) or all_.size != one.size * self.number:
                raise ModelError(
                    f"{all_.name}: has the shape {tuple(all_.shape)} for {self.number} rows; "
                    "sample it within the plate over the rows"
                )
        x = of_all.example().to(self.whole.dtype)
        with torch.no_grad():
            together = of_all.log_density(x)
            apart = self._own.uncompiled().log_density(self.split(x)).sum()
        tolerance = 1e-8 if x.dtype == torch.float64 else 1e-3
        if bool((together - apart).abs() > tolerance * (1 + together.abs())):
            raise ModelError(
                f"the log density of all rows is {float(together):.8g}, the sum over the rows one "
                f"by one {float(apart):.8g}: they are not independent given the weights; keep what "
                "they share out of the program, and set batch normalisation by model.eval()"
            )


def split(program: Program, x: Tensor, rows: int) -> Tensor:
    """Points of a program as those of its rows: (..., rows * D) -> (..., rows, D)."""
    parts = [
        x[..., site.offset : site.offset + site.size].unflatten(-1, (rows, -1))
        for site in program.sites
    ]
    return torch.cat(parts, -1)


def drawn(problem: Problem, proposal: Proposal, noise: Noise, chains: int, rows: int) -> Tensor:
    """Draws of a program over the latents of all rows: (chains, rows, D)."""
    try:
        return split(problem.program, proposal.draw(noise, chains)[0][0], rows)
    except NotImplementedError as error:
        raise EngineError(
            "the prior of the latents is improper (flat), so that nothing can be drawn from it; "
            "give it a scale"
        ) from error


def pooled_scale(x: Tensor, rows: int, mass: Mass) -> Tensor:
    """The scale of all chains about the means of their rows: (rows * chains, D).

    Of one chain for each row there is none: ones.
    """
    grouped = x.unflatten(0, (rows, -1))
    chains = grouped.shape[1]
    if chains == 1:
        ones = x.new_ones(x.shape[1])
        return ones if mass == "diagonal" else torch.diag(ones)
    away = (grouped - grouped.mean(1, keepdim=True)) * (chains / (chains - 1)) ** 0.5
    return scale_of(away.flatten(0, 1), mass).contiguous()


@dataclass(frozen=True)
class RowsProblem(ReplicatedProblem):
    """What a sampler is given in place of the whole: every chain has a row of its own."""

    rows: Rows | None = None

    @cached_property
    def outputs(self) -> Any:
        """The points as they are: values are made of them when all are there."""
        return _Points()

    def precise(self, draws: Any) -> Finding | None:
        """As of the whole problem, of points in place of values: ranks are the same."""
        assert self.rows is not None
        x = self.rows.unchained(draws["x"]).transpose(1, 2)  # (chains, n, rows, D)
        return self.until.reached({"x": np.asarray(x.cpu())})


class _Points:
    def values(self, x: Tensor, noise: Noise) -> Params:
        return {"x": x}


def rows_problem(rows: Rows, target: Replicated) -> RowsProblem:
    """The problem of all chains with that target."""
    inherited = {f.name: getattr(rows.problem, f.name) for f in dataclasses.fields(Problem)}
    return RowsProblem(**inherited, replicated=target, rows=rows)


def _of_one_row(model: Any, data: Data, problem: Problem) -> Program:
    try:
        return Program(model, data)
    except ModelError as error:
        raise ModelError(f"the program of one row alone: {error}") from error


def against(reference: Any, rows: Rows) -> Density:
    """The log density of another program over the same latents, in the model's unconstrained space.

    Args:
        reference: such as the guide, or the prior.
        rows: of the model.
    """
    other = Program(reference, rows.problem.data, plate_nesting=rows.problem.program.plate_nesting)

    def density(program: Program, x: Tensor) -> Tensor:
        own = rebound(other, program.data)
        return own.log_joint(program.constrain(x)) + program.log_jacobian(x)

    return density
