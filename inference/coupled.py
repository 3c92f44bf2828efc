"""Kernels that move one chain, or two at once so that they meet: what ``couplings`` runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inference.chains import Randomness, Tuning
from inference.engine import Problem
from inference.gibbs import Gibbs
from inference.mh import MH, Point, metropolis
from inference.moves import tuned
from inference.sampling import Sampler
from inference.target import Target
from inference.warmup import stretch
from ppl_models.errors import EngineError
from ppl_models.noise import Noise

_BLOCK = 64
_CLOSE = 0.1  # the closing walk's step in units of the scale, over sqrt(D)


class Coupled(ABC):
    """A kernel for P chains X, or X and Y stacked, 2 P; a state is its points by default."""

    def init(self, x: Tensor) -> Any:
        """A state at the points."""
        return x

    def position(self, state: Any) -> Tensor:
        """The points of a state."""
        return state

    def join(self, x: Any, y: Any) -> Any:
        """The states of X and Y as one."""
        return torch.cat([x, y])

    @abstractmethod
    def alone(self, state: Any, t: int) -> Any:
        """Iteration t of X."""

    @abstractmethod
    def together(self, state: Any, met: Tensor, t: int) -> Any:
        """Iteration t of X and Y; pairs that have ``met`` (P,) stay together."""


class Transitions(Coupled):
    """A sampler's own steps, of X alone or of X and Y stacked: (P,) or (2 P,) chains."""

    def __init__(self, problem: Problem, engine: Sampler, target: Target, noise: Noise) -> None:
        self.engine, self.target, self.noise = engine, target, noise.fold(0)
        own = problem.noise(engine.chains)
        begin = engine.start(target, own.fold(10))
        self.tuning = engine.warm_up(target, begin, own.fold(11), problem)[1]
        self.closing = None if isinstance(engine, MH) else _Closing(target, self.tuning, noise)
        self._numbers: tuple[int, list[Randomness]] = (-1, [])

    def init(self, x: Tensor) -> Any:
        tuning = self._tuning(len(x))
        return self.engine.init(self.target, x, tuning, self._randomness(0))

    def position(self, state: Any) -> Tensor:
        return state.x

    def join(self, x: Any, y: Any) -> Any:
        return type(x)(*(torch.cat(parts) for parts in zip(x, y, strict=True)))

    def alone(self, state: Any, t: int) -> Any:
        numbers = self._randomness(t)
        state, _ = self.engine.step(self.target, state, self._tuning(len(state.x)), numbers)
        if self.closing is None:
            return state
        return self.init(self.closing.alone(state.x, t))

    def together(self, state: Any, met: Tensor, t: int) -> Any:
        numbers = self._randomness(t)
        pairs = len(numbers.normal)
        normal = numbers.normal
        if self.closing is None:
            normal = reflected(state.x, self._tuning(2 * pairs), normal, self.noise.fold(2, t))
        both = Randomness(
            torch.cat([numbers.normal, normal]), torch.cat([numbers.uniform, numbers.uniform])
        )
        state, _ = self.engine.step(self.target, state, self._tuning(2 * pairs), both)
        state = _united(state, state.x, met, pairs)
        if self.closing is None:
            return state
        x = self.closing.together(state.x, t)
        state = self.engine.init(self.target, x, self._tuning(2 * pairs), both)
        return _united(state, x, met, pairs)

    def _tuning(self, chains: int) -> Tuning:
        return tuned(self.tuning.scale, self.tuning.step_size[0], chains)

    def _randomness(self, t: int) -> Randomness:
        block, offset = divmod(t, _BLOCK)
        if self._numbers[0] != block:
            numbers = self.engine.randomness(self.target, self.noise.fold(1, block), _BLOCK)
            self._numbers = (block, numbers)
        return self._numbers[1][offset]


class Sweeps(Coupled):
    """Gibbs sweeps by common random numbers, each ended by the closing walk."""

    def __init__(self, problem: Problem, engine: Gibbs, target: Target, noise: Noise) -> None:
        model: Any = problem.model
        self.outputs, self.noise = problem.outputs, noise.fold(0)
        self.blocks = list(model.conditionals(problem.data).values())
        own = problem.noise(engine.chains)
        x = target.start(own.fold(10))
        kept = []
        for sweep in range(max(engine.warmup, 20)):
            x = self._sweep(x, own.fold(11, sweep))
            kept.append(x)
        scale = torch.cat(kept[len(kept) // 2 :]).std(0)
        self.closing = _Closing(target, tuned(scale, 1.0, 1), noise)

    def alone(self, state: Tensor, t: int) -> Tensor:
        return self.closing.alone(self._sweep(state, self.noise.fold(t)), t)

    def together(self, state: Tensor, met: Tensor, t: int) -> Tensor:
        pairs = len(met)
        noise = self.noise.fold(t)
        both = noise._replace(key=torch.cat([noise.key, noise.key]))
        x = _same(self._sweep(state, both), met, pairs)
        return _same(self.closing.together(x, t), met, pairs)

    def _sweep(self, x: Tensor, noise: Noise) -> Tensor:
        state = self.outputs.constrain(x)
        sites = set(state)
        for position, block in enumerate(self.blocks):
            state = block(state, noise.fold(position))
        if set(state) != sites:
            extra = ", ".join(sorted(set(state) - sites))
            raise EngineError(
                f"the blocks of the model hold values that its program sums out ({extra}), whose "
                "chains are not coupled; couple MH() or HMC()"
            )
        return self.outputs.unconstrain(state)


class _Closing:
    """A random-walk step so small that it hardly moves a chain but lets near chains meet."""

    def __init__(self, target: Target, tuning: Tuning, noise: Noise) -> None:
        self.target, self.noise = target, noise.fold(3)
        self.scale = tuning.scale * (_CLOSE / target.dim**0.5)

    def alone(self, x: Tensor, t: int) -> Tensor:
        noise = self.noise.fold(t)
        return self._step(x, noise.fold(0).normal(self.target.dim), noise.fold(1).uniform())

    def together(self, x: Tensor, t: int) -> Tensor:
        noise = self.noise.fold(t)
        normal, uniform = noise.fold(0).normal(self.target.dim), noise.fold(1).uniform()
        other = reflected(x, tuned(self.scale, 1.0, 1), normal, noise.fold(2))
        return self._step(x, torch.cat([normal, other]), torch.cat([uniform, uniform]))

    def _step(self, x: Tensor, normal: Tensor, uniform: Tensor) -> Tensor:
        state = Point(x, self.target.log_density(x))
        moved = x + stretch(self.scale, normal)
        new = Point(moved, self.target.log_density(moved))
        return metropolis(state, new, new.log_density - state.log_density, uniform)[0].x


class FiniteRows(Coupled):
    """Rows of a transition matrix, coupled maximally."""

    def __init__(self, p: np.ndarray, rng: np.random.Generator) -> None:
        self.p, self.rng = p, rng

    def alone(self, state: Tensor, t: int) -> Tensor:
        return torch.as_tensor(drawn(self.p[state.numpy()], self.rng.uniform(size=len(state))))

    def together(self, state: Tensor, met: Tensor, t: int) -> Tensor:
        one, two = (self.p[part.numpy()] for part in state.chunk(2))
        common = np.minimum(one, two)
        unit = self.rng.uniform(size=(3, len(one)))
        joined = unit[0] * one.sum(1) < common.sum(1)
        both = drawn(common, unit[1])
        rest = [drawn(row - common, u) for row, u in ((one, unit[1]), (two, unit[2]))]
        moved = [np.where(joined, both, own) for own in rest]
        return torch.as_tensor(np.concatenate(moved))


def reflected(x: Tensor, tuning: Tuning, normal: Tensor, noise: Noise) -> Tensor:
    """The normals of Y by which proposals x + s S n and y + s S n' are equal as often as can be.

    With z = S^-1 (x - y) / s and n standard normal, n' = n + z with probability min(1, phi(n + z) /
    phi(n)), so that the proposals meet; else n' is n reflected at the plane across z. Either way n'
    is standard normal (Jacob, O'Leary & Atchade 2020; Bou-Rabee, Eberle & Zimmer 2020).

    Args:
        x: X and then Y, (2 P, D).
        tuning: s and S.
        normal: n, (P, D).
        noise: P streams.

    Returns:
        n', (P, D).
    """
    one, two = x.chunk(2)
    scale = tuning.scale
    away = (one - two) / tuning.step_size[0]
    if scale.dim() == 1:
        z = away / scale
    else:
        z = torch.linalg.solve_triangular(scale, away.T, upper=False).T
    log_ratio = -0.5 * ((normal + z).square() - normal.square()).sum(-1)
    meets = noise.uniform().log() < log_ratio
    unit = z / z.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(z.dtype).tiny)
    mirror = normal - 2 * (unit * normal).sum(-1, keepdim=True) * unit
    return torch.where(meets[:, None], normal + z, mirror)


def _united(state: Any, x: Tensor, met: Tensor, pairs: int) -> Any:
    """The state with Y's rows equal to X's where they have met, or are as near as rounding."""
    near = met.to(x.device) | _touching(x, pairs)
    parts = []
    for value in state:
        rows = near.reshape(-1, *[1] * (value.dim() - 1))
        parts.append(torch.cat([value[:pairs], torch.where(rows, value[:pairs], value[pairs:])]))
    return type(state)(*parts)


def _same(x: Tensor, met: Tensor, pairs: int) -> Tensor:
    near = met.to(x.device) | _touching(x, pairs)
    return torch.cat([x[:pairs], torch.where(near[:, None], x[:pairs], x[pairs:])])


def _touching(x: Tensor, pairs: int) -> Tensor:
    """Whether X and Y are equal up to the rounding of x + n and y + (n + z)."""
    one, two = x[:pairs], x[pairs:]
    size = torch.maximum(one.abs(), two.abs()) + 1
    return ((one - two).abs() <= 1e-12 * size).all(-1)


def drawn(weights: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """A state for each row of unnormalised weights (P, S)."""
    cumulative = weights.cumsum(1)
    at = unit[:, None] * cumulative[:, -1:]
    return (at >= cumulative).sum(1).clip(max=weights.shape[1] - 1)
