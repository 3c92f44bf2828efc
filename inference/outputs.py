"""From unconstrained draws to what a user reads: values, deterministic sites, discrete draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from inference import graph
from inference.program import HELD, Program, Values
from ppl_models.base import Objective, Params
from ppl_models.noise import Noise

_FEW = 32  # runs of a program that cost less than to trace it
_CHUNK = 1 << 22  # elements of the largest intermediate that one chunk may hold, roughly
_MOST = 1 << 16  # rows of a chunk


class _Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that operations make."""

    elements = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to wrap the mode for Dynamo would import all of it

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        made = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.elements = max(self.elements, *made, 0)
        return result


class Outputs:
    """Batched maps from draws, with any leading dimensions, to values by site name."""

    def __init__(self, program: Program, dtype: torch.dtype, device: torch.device) -> None:
        self.program = program
        self.dtype = dtype
        self.device = device
        self._traced: Callable[..., Tensor] | None = None
        self._graphs: dict[Callable[..., Any], Callable[[Any], Any]] = {}

    def values(self, x: Tensor, noise: Noise) -> Params:
        """All that the posterior records at ``x`` (C, S, D): sites, discrete draws, deterministics.

        Discrete sites are drawn exactly from their conditional given ``x``.
        """
        values = self.constrain(x)
        if self.program.discrete:
            values |= self.discrete(x, noise)
        return values | self.deterministics(values)

    def completed(self, values: Params, x: Tensor, noise: Noise) -> Params:
        """What the posterior records, from the continuous sites as drawn, which ``x`` stands for.

        They are kept as they are: shares near zero do not survive the way there and back.
        """
        kept = {site.name: values[site.name] for site in self.program.sites}
        if self.program.discrete:
            kept |= self.discrete(x, noise)
        return kept | self.deterministics(kept)

    def log_density(self, x: Tensor) -> Tensor:
        """Log density of unconstrained points, without gradients: (..., D) -> (...,)."""
        if not self.program.discrete:
            return self._map(self.program.log_density, x)
        single, tilts = self._tilted(), self._tilts()  # vmap takes no enumeration but its graph
        return self._map(lambda point: single(point, *tilts), x)

    def constrain(self, x: Tensor) -> Params:
        """Constrained values of the continuous sites: (..., D) -> {site: (..., *shape)}."""
        return self._map(self.program.constrain, x)

    def unconstrain(self, values: Params) -> Tensor:
        """The inverse: {site: (..., *shape)} -> (..., D)."""
        named = {site.name: values[site.name].to(self.dtype) for site in self.program.sites}
        return self._map(self.program.unconstrain, named)

    def log_jacobian(self, x: Tensor) -> Tensor:
        """Log determinant of the Jacobian of ``constrain``: (..., D) -> (...,)."""
        return self._map(self.program.log_jacobian, x)

    def log_joint(self, values: Params) -> Tensor:
        """Log joint density of constrained values, no Jacobian: {site: (..., *shape)} -> (...,)."""
        named = {site.name: values[site.name].to(self.dtype) for site in self.program.sites}
        return self._map(self.program.log_joint, named)

    def density(self, objective: Objective) -> Callable[[Params], Tensor]:
        """The traced log joint, or log likelihood, of a batch of constrained values: -> (R,)."""
        single = self.program.log_joint if objective == "joint" else self.program.log_likelihood
        names = [site.name for site in self.program.sites]
        example = torch.linspace(-0.7, 0.9, self.program.dim, dtype=self.dtype, device=self.device)
        values = self.program.constrain(example)

        def function(*parts: Tensor) -> Tensor:
            return single(dict(zip(names, parts, strict=True)))

        try:
            traced = vmap(graph.trace(function, *(values[name] for name in names)))
        except Exception:  # of any kind: the program itself serves
            return lambda params: self._map(single, {name: params[name] for name in names})
        return lambda params: traced(*(params[name] for name in names))

    def deterministics(self, values: Params) -> Params:
        """The ``pyro.deterministic`` sites of constrained values."""
        if not self.program.deterministic:
            return {}
        names = [site.name for site in (*self.program.sites, *self.program.discrete)]
        return self._map(self.program.deterministics, {name: values[name] for name in names})

    def pointwise(self, x: Tensor) -> Params:
        """Log likelihood of each observation at ``x``."""
        return self._map(self.program.pointwise, x)

    def responsibilities(self, x: Tensor) -> Params:
        """p(site = value | x, data) for each discrete site: {site: (..., *batch, K)}."""
        tilts = self._tilts()
        batch = x.shape[:-1]
        rows = x.reshape(-1, x.shape[-1])
        tilted = self._tilted()
        each = [t.expand(len(rows), *t.shape).split(self._rows()) for t in tilts]
        chunks = [
            _gradients(tilted, tuple(range(1, 1 + len(tilts))), chunk)
            for chunk in zip(rows.split(self._rows()), *each, strict=True)
        ]
        joined = [torch.cat(parts).clamp(0, 1) for parts in zip(*chunks, strict=True)]
        return {
            site.name: value.reshape(*batch, *value.shape[1:])
            for site, value in zip(self.program.discrete, joined, strict=True)
        }

    def discrete(self, x: Tensor, noise: Noise) -> Params:
        """Exact draws of the discrete sites given ``x`` (C, S, D), jointly, site after site.

        Given the continuous sites and the discrete sites already drawn, the elements of a site are
        independent over its plates, and the gradient of the log density with respect to a tilt of
        its factor is its exact conditional. A drawn value is held by a tilt that rules out others.
        """
        chains, draws, dim = x.shape
        sites = self.program.discrete
        tilted = self._tilted()
        rows = x.reshape(-1, dim)
        held = [t.expand(len(rows), *t.shape) for t in self._tilts()]
        result: Params = {}
        for position, site in enumerate(sites):
            parts = [
                _gradients(tilted, (1 + position,), chunk)[0]
                for chunk in zip(*(t.split(self._rows()) for t in (rows, *held)), strict=True)
            ]
            probability = torch.cat(parts).clamp(0, 1)  # (C * S, *batch, K)
            unit = noise.fold(position).uniform(draws, *site.batch).reshape(len(rows), *site.batch)
            cumulative = probability.cumsum(-1)
            total = cumulative[..., -1:]
            index = (unit[..., None] * total >= cumulative).sum(-1).clamp(max=len(site.support) - 1)
            chosen = torch.nn.functional.one_hot(index, len(site.support)).to(self.dtype)
            held[position] = (1 - chosen) * HELD
            values = site.support.to(self.device)[index]
            result[site.name] = values.reshape(chains, draws, *values.shape[1:])
        return result

    # -- machinery -------------------------------------------------------------------------------

    def _map(self, function: Callable[[Any], Any], batch: Any) -> Any:
        """``function`` over the leading dimensions of a tensor or of a dictionary of tensors."""
        if isinstance(batch, Tensor):
            lead, flat = batch.shape[:-1], batch.reshape(batch.shape[:-1].numel(), batch.shape[-1])
            count, cut = len(flat), lambda lo, hi: flat[lo:hi]
        else:
            shapes = {site.name: site.shape for site in self.program.sites}
            shapes |= {s.name: s.batch + s.support.shape[1:] for s in self.program.discrete}
            name, first = next(iter(batch.items()))
            lead = first.shape[: first.dim() - len(shapes[name])]
            rows = {k: v.reshape(-1, *shapes[k]) for k, v in batch.items()}
            count, cut = len(rows[name]), lambda lo, hi: {k: v[lo:hi] for k, v in rows.items()}
        step = self._rows()
        if count > step:
            step = self._fitting(function, cut(0, 1), step)
        parts = [self._rowwise(function, cut(i, i + step)) for i in range(0, count, step)]
        if isinstance(parts[0], Tensor):
            return torch.cat(parts).reshape(*lead, *parts[0].shape[1:])
        joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return {name: value.reshape(*lead, *value.shape[1:]) for name, value in joined.items()}

    def _rowwise(self, function: Callable[[Any], Any], rows: Any) -> Any:
        count = len(rows) if isinstance(rows, Tensor) else len(next(iter(rows.values())))
        if count > 1:
            try:
                return vmap(function)(rows)
            except (RuntimeError, ValueError):  # Pyro's enumeration or the program's own branches
                pass
        many = rows.unbind() if isinstance(rows, Tensor) else _rows_of(rows)
        if count > _FEW:
            try:
                if function not in self._graphs:
                    self._graphs[function] = _graph_of(function, rows, many[0])
                return self._graphs[function](rows)
            except Exception:  # of any kind: the program itself serves
                pass
        results = [function(row) for row in many]
        if isinstance(results[0], Tensor):
            return torch.stack(results)
        return {name: torch.stack([r[name] for r in results]) for name in results[0]}

    def _fitting(self, function: Callable[[Any], Any], row: Any, least: int) -> int:
        """How many rows a chunk may have, by the largest tensor that a run of one row makes."""
        one = row[0] if isinstance(row, Tensor) else {name: value[0] for name, value in row.items()}
        largest = _Largest()
        try:
            with largest:
                function(one)
        except Exception:  # of any kind, which the function may meet again where it is told
            return least
        return max(least, min(_MOST, _CHUNK // max(1, largest.elements)))

    def _rows(self) -> int:
        elements = sum(v.numel() for v in self.program.data.values() if isinstance(v, Tensor))
        return max(1, min(_MOST, _CHUNK // max(1, elements)))

    def _tilts(self) -> list[Tensor]:
        return [
            torch.zeros(*site.batch, len(site.support), dtype=self.dtype, device=self.device)
            for site in self.program.discrete
        ]

    def _tilted(self) -> Callable[..., Tensor]:
        if self._traced is None:
            like = {"dtype": self.dtype, "device": self.device}
            example = torch.linspace(-0.7, 0.9, self.program.dim, **like)
            try:
                self._traced = graph.trace(self.program.log_density, example, *self._tilts())
            except Exception:  # of any kind: the program itself serves
                self._traced = self.program.log_density
        return self._traced


def _gradients(
    function: Callable[..., Tensor], arguments: tuple[int, ...], rows: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """The gradients with respect to some arguments, row by row of all arguments."""
    gradient = grad(function, argnums=arguments)
    try:
        return vmap(gradient)(*rows)
    except RuntimeError:  # the program's own branches, or Pyro's own autograd functions
        results = []
        for row in zip(*rows, strict=True):
            inputs = [value.detach().clone().requires_grad_(True) for value in row]
            with torch.enable_grad():
                value = function(*inputs)
            results.append(torch.autograd.grad(value, [inputs[i] for i in arguments]))
        return tuple(torch.stack(parts) for parts in zip(*results, strict=True))


def _graph_of(function: Callable[[Any], Any], rows: Any, example: Any) -> Callable[[Any], Any]:
    """``function`` traced once, at ``example``, to be replayed for many rows together.

    A graph has no handlers, which ``vmap`` cannot batch where Pyro enumerates.
    """
    named = None if isinstance(rows, Tensor) else list(rows)
    keys: list[str] = []

    def flat(*parts: Tensor) -> Any:
        result = function(parts[0] if named is None else dict(zip(named, parts, strict=True)))
        if isinstance(result, Tensor):
            return result
        keys[:] = result
        return tuple(result.values())

    single: Any = graph.trace(flat, *([example] if named is None else example.values()))

    def replay(batch: Any) -> Any:
        result: Any = vmap(single)(*([batch] if named is None else (batch[k] for k in named)))
        return dict(zip(keys, result, strict=True)) if keys else result

    return replay


def _rows_of(rows: Values) -> list[Values]:
    count = len(next(iter(rows.values())))
    return [{name: value[i] for name, value in rows.items()} for i in range(count)]
