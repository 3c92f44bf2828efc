"""The steps of stochastic variational inference: loss, gradient and optimiser, in two tiers.

``Eager`` takes any loss and any optimiser. ``Compiled`` is for Adam (Kingma & Ba 2015, algorithm 1)
on the ELBO of a family on the flat space: what one draw of noise estimates, log p(x) - log q(x), is
a C function of parameters and noise, draws are the chains of that function, and a loop that numba
compiles makes the noise and moves the parameters. Both take the same steps to rounding.
"""

from __future__ import annotations

import copy
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from inference.codegen.build import Density
from inference.native import evaluate
from ppl_models.loops import compiled
from ppl_models.noise import Noise
from ppl_models.noise_cpu import folded, normals

logger = logging.getLogger("inference")

_LOOK = 10  # steps between looks at the clock
_DECAYS, _TINY = (0.9, 0.999), 1e-8  # of Adam, as in ``torch.optim``
_STREAM = 1  # of the noise of steps


class Steps(ABC):
    """Parameters on their way, step after step."""

    @abstractmethod
    def take(self, first: int, count: int, over: Callable[[], bool]) -> np.ndarray:
        """The losses of the steps from number ``first`` on; fewer where time is ``over``."""

    @abstractmethod
    def snapshot(self) -> Any:
        """All that changes, to go back to."""

    @abstractmethod
    def restore(self, saved: Any) -> None:
        """Go back to a snapshot."""

    @abstractmethod
    def set_rate(self, rate: float) -> None:
        """Set the learning rate."""

    @abstractmethod
    def finite(self) -> bool:
        """Whether all parameters are finite."""


@final
class Eager(Steps):
    """Steps by autograd and an optimiser of ``torch.optim``."""

    def __init__(
        self,
        loss: Callable[[int], Tensor],
        parameters: list[nn.Parameter],
        optimiser: torch.optim.Optimizer,
    ) -> None:
        self._loss, self._parameters, self._optimiser = loss, parameters, optimiser

    def take(self, first: int, count: int, over: Callable[[], bool]) -> np.ndarray:
        losses = []
        for step in range(first, first + count):
            loss = self._loss(step)
            self._optimiser.zero_grad(set_to_none=True)
            loss.backward()
            self._optimiser.step()
            losses.append(loss.detach())
            if over():
                break
        return torch.stack(losses).cpu().numpy()

    def snapshot(self) -> Any:
        values = [p.detach().clone() for p in self._parameters]
        return values, copy.deepcopy(self._optimiser.state_dict())

    def restore(self, saved: Any) -> None:
        values, state = saved
        with torch.no_grad():
            for parameter, value in zip(self._parameters, values, strict=True):
                parameter.copy_(value)
        self._optimiser.load_state_dict(copy.deepcopy(state))

    def set_rate(self, rate: float) -> None:
        for group in self._optimiser.param_groups:
            group["lr"] = rate

    def finite(self) -> bool:
        return all(bool(torch.isfinite(p).all()) for p in self._parameters)


class _Adam(NamedTuple):
    """Parameters and the state of Adam: (P,) each."""

    parameters: np.ndarray
    mean: np.ndarray
    square: np.ndarray
    taken: np.ndarray  # (1,) steps so far


@final
class Compiled(Steps):
    """Steps of Adam around a C function.

    Args:
        family: a module from noise (particles, width) to draws and their log densities.
        log_density: of one draw.
        noise: whose stream 1 the steps take their noise from.
        particles: draws per step.
        rate: the learning rate.
        threads: of the C function.
        calls: steps ahead; None compiles in any case.
        seconds: that the compiler may take, as predicted.

    Raises:
        Untraceable, CompilerError: as ``Density`` does.
    """

    def __init__(
        self,
        family: Any,
        log_density: Callable[[Tensor], Tensor],
        noise: Noise,
        particles: int,
        rate: float,
        *,
        threads: int,
        calls: int | None,
        seconds: float | None = None,
    ) -> None:
        named = dict(family.named_parameters())
        self._targets = list(named.values())
        sizes = [parameter.numel() for parameter in self._targets]
        total, width = sum(sizes), family.width

        def estimate(z: Tensor) -> Tensor:
            parts = z[:total].split(sizes)
            values = {k: part.reshape(named[k].shape) for k, part in zip(named, parts, strict=True)}
            x, log_q = functional_call(family, values, (z[None, total:],))
            return log_density(x[0]) - log_q[0]

        dtype = self._targets[0].dtype
        self._density = Density(
            estimate, total + width, dtype, threads, calls=calls, seconds=seconds
        )
        flat = torch.cat([p.detach().reshape(-1) for p in self._targets])
        zero = torch.zeros_like(flat).numpy()
        self._adam = _Adam(flat.numpy().copy(), zero.copy(), zero.copy(), np.zeros(1, np.int64))
        self._z = flat.new_zeros(particles, total + width).numpy()
        self._value, self._gradient = np.zeros(particles, self._z.dtype), np.zeros_like(self._z)
        self._noise = np.zeros(particles * width)
        self._key = noise.fold(_STREAM).key[0].numpy().copy()
        self._bits = 32 if dtype == torch.float64 else 23
        self._rate = rate

    def agrees(self, loss: Tensor) -> bool:
        """Whether the loss of step 0, ``loss``, and its gradients are had; takes no step."""
        slopes = torch.autograd.grad(loss, self._targets)
        expected = torch.cat([slope.reshape(-1) for slope in slopes]).numpy()
        saved, before = self.snapshot(), self._rate
        self._rate = 0.0
        found = float(self.take(0, 1, lambda: False)[0])
        gradient = self._adam.mean / (1 - _DECAYS[0])
        self._rate = before
        self.restore(saved)
        tolerance = 1e-8 if self._z.dtype == np.float64 else 1e-3
        scale = tolerance * (1 + np.abs(expected).max())
        exact = float(loss.detach())
        near = abs(found - exact) <= tolerance * (1 + abs(exact))
        apart = np.abs(gradient - expected)
        alone = 100 * tolerance * (1 + np.abs(expected))  # a large slope hides no other
        return bool(near and (apart <= np.minimum(scale, alone)).all())

    def take(self, first: int, count: int, over: Callable[[], bool]) -> np.ndarray:
        losses = np.empty(count)
        native = self._density.native
        for begin in range(0, count, _LOOK):
            end = min(begin + _LOOK, count)
            _ascend(
                native.address, native.context, self._adam, self._rate, self._z, self._value,
                self._gradient, self._key, self._noise, self._bits, first + begin,
                losses[begin:end],
            )  # fmt: skip
            if over():
                losses = losses[:end]
                break
        with torch.no_grad():  # where the family is drawn from
            parts = torch.from_numpy(self._adam.parameters).split(
                [target.numel() for target in self._targets]
            )
            for target, part in zip(self._targets, parts, strict=True):
                target.copy_(part.reshape(target.shape))
        return losses

    def snapshot(self) -> Any:
        return [part.copy() for part in self._adam]

    def restore(self, saved: Any) -> None:
        for part, value in zip(self._adam, saved, strict=True):
            part[:] = value

    def set_rate(self, rate: float) -> None:
        self._rate = rate

    def finite(self) -> bool:
        return bool(np.isfinite(self._adam.parameters).all())


@compiled
def _ascend(
    address: int, context: int, adam: Any, rate: float, z: Any, value: Any, gradient: Any,
    key: Any, noise: Any, bits: int, first: int, losses: Any,
) -> None:  # fmt: skip
    """As many steps as there are ``losses``."""
    particles, total = z.shape[0], len(adam.parameters)
    width = z.shape[1] - total
    for s in range(len(losses)):
        k0, k1 = folded(np.uint64(key[0]), np.uint64(key[1]), first + s)
        normals(k0, k1, 0, len(noise), bits, noise)
        for p in range(particles):
            for i in range(total):
                z[p, i] = adam.parameters[i]
            for i in range(width):
                z[p, total + i] = noise[p * width + i]
        evaluate(
            address, particles, z.ctypes.data, value.ctypes.data, gradient.ctypes.data, context
        )
        loss = 0.0
        for p in range(particles):
            loss -= value[p]
        losses[s] = loss / particles
        adam.taken[0] += 1
        first_bias = 1 - _DECAYS[0] ** adam.taken[0]
        second_bias = np.sqrt(1 - _DECAYS[1] ** adam.taken[0])
        for i in range(total):
            slope = 0.0
            for p in range(particles):
                slope -= gradient[p, i]
            slope /= particles
            adam.mean[i] += (1 - _DECAYS[0]) * (slope - adam.mean[i])
            adam.square[i] = _DECAYS[1] * adam.square[i] + (1 - _DECAYS[1]) * slope * slope
            root = np.sqrt(adam.square[i]) / second_bias + _TINY
            adam.parameters[i] -= rate / first_bias * adam.mean[i] / root
