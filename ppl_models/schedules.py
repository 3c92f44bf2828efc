"""Noise schedules of diffusion models: how much of the data is left after each step.

The forward chain q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I) leaves
x_t = a_t x_0 + s_t n with a_t^2 = prod_{i <= t} (1 - beta_i) and s_t^2 = 1 - a_t^2. Ho, Jain &
Abbeel (2020), "Denoising diffusion probabilistic models".
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ppl_models.errors import ModelError

Name = Literal["linear", "cosine", "learned"]


class Steps(NamedTuple):
    """What a schedule makes of each t = 1, ..., T."""

    beta: Tensor  # (T,)
    signal: Tensor  # (T,): a_t
    noise: Tensor  # (T,): s_t
    to_data: Tensor  # (T,): the weight of x_0 in the mean of q(x_{t-1} | x_t, x_0)
    to_noisy: Tensor  # (T,): the weight of x_t
    variance: Tensor  # (T,): that of q(x_{t-1} | x_t, x_0); 0 at t = 1


class Schedule(nn.Module, ABC):
    """The variances of the forward chain."""

    @abstractmethod
    def betas(self, steps: int) -> Tensor:
        """beta_1, ..., beta_T, each in (0, 1): (T,)."""

    def table(self, steps: int, like: Tensor) -> Steps:
        """The constants of every step, with the dtype and on the device of ``like``."""
        beta = self.betas(steps).double()
        kept = torch.log1p(-beta).cumsum(0)  # log a_t^2
        before = torch.cat([kept.new_zeros(1), kept[:-1]])
        noise = -torch.expm1(kept)  # s_t^2
        noise_before = -torch.expm1(before)
        parts = Steps(
            beta,
            (0.5 * kept).exp(),
            noise.sqrt(),
            (0.5 * before).exp() * beta / noise,
            (1 - beta).sqrt() * noise_before / noise,
            noise_before / noise * beta,
        )
        return Steps(*(part.to(like) for part in parts))


class Linear(Schedule):
    """beta from 1e-4 to 0.02 for 1,000 steps (Ho, Jain & Abbeel 2020), the same noise for others.

    With fewer steps each adds more: beta_t = 1 - exp(-b(t / T) 1000 / T), so that the integral of
    the noise rate is that of 1,000 steps.
    """

    def __init__(self, low: float = 1e-4, high: float = 0.02) -> None:
        super().__init__()
        if not 0 < low <= high < 1:
            raise ModelError(f"Linear(low={low!r}, high={high!r}): give 0 < low <= high < 1")
        self.low, self.high = low, high

    def extra_repr(self) -> str:
        return f"low={self.low}, high={self.high}"

    def betas(self, steps: int) -> Tensor:
        middle = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
        rate = self.low + (self.high - self.low) * middle
        return -torch.expm1(torch.log1p(-rate) * 1000 / steps)


class Cosine(Schedule):
    """a_t^2 = f(t) / f(0), f(t) = cos^2((t / T + 0.008) / 1.008 * pi / 2); beta at most 0.999.

    Nichol & Dhariwal (2021), "Improved denoising diffusion probabilistic models".
    """

    def betas(self, steps: int) -> Tensor:
        time = torch.arange(steps + 1, dtype=torch.float64) / steps
        left = ((time + 0.008) / 1.008 * math.pi / 2).cos().square()
        return (1 - left[1:] / left[:-1]).clamp(max=0.999)


class Learned(Schedule):
    """A log signal-to-noise ratio that falls from ``high`` to ``low`` by trained increments.

    The endpoints are trained, too. Kingma, Salimans, Poole & Ho (2021), "Variational diffusion
    models": the bound's limit of many steps depends on the endpoints alone, its variance and its
    value for few steps on the path.
    """

    def __init__(self, steps: int, low: float = -8.0, high: float = 8.0) -> None:
        super().__init__()
        self.ends = nn.Parameter(torch.tensor([high, math.log(math.expm1(high - low))]))
        self.path = nn.Parameter(torch.zeros(steps - 1))

    def betas(self, steps: int) -> Tensor:
        if steps != len(self.path) + 1:
            raise ModelError(f"this schedule was made for {len(self.path) + 1} steps, not {steps}")
        fall = functional.softplus(self.ends[1]) * self.path.softmax(0)
        snr = torch.cat([self.ends[:1], self.ends[:1] - fall.cumsum(0)])  # its logarithm
        left = functional.logsigmoid(snr)  # log a_t^2
        before = torch.cat([left.new_zeros(1), left[:-1]])
        return -torch.expm1(left - before)


def schedule(name: Name | Schedule, steps: int) -> Schedule:
    """A schedule by name. Raises ``ModelError`` for an unknown one."""
    if isinstance(name, Schedule):
        return name
    named = {"linear": Linear, "cosine": Cosine, "learned": lambda: Learned(steps)}
    if name not in named:
        legal = ", ".join(repr(choice) for choice in named)
        raise ModelError(f"schedule={name!r}: choose one of {legal}, or give a Schedule")
    return named[name]()
