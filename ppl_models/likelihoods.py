"""Likelihoods of images given what a decoder returns: any subclass of ``Likelihood`` may be used.

A decoder's output has a number for each pixel: the logit of a probability, or a mean.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, Literal

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_models.errors import ModelError

Name = Literal["bernoulli", "continuous_bernoulli", "gaussian"]


class Likelihood(nn.Module, ABC):
    """p(x | decoder's output), pixel by pixel; weights of its own are trained with the others."""

    support: str
    """The values that a pixel can take, in words, with what to do about others."""

    @abstractmethod
    def law(self, output: Tensor) -> Any:
        """The distribution of each pixel, as a Pyro distribution of the output's shape."""

    @abstractmethod
    def within(self, x: Tensor) -> Tensor:
        """Whether each pixel is within the support."""

    def mean(self, output: Tensor) -> Tensor:
        """The expected pixel, to be looked at."""
        return self.law(output).mean

    def forward(self, output: Tensor) -> Tensor:
        return self.mean(output)


class Bernoulli(Likelihood):
    """Binary pixels, by their logits."""

    support = "0 and 1; for grey values in [0, 1] use binarise='dynamic', 'fixed' or 'threshold'"

    def law(self, output: Tensor) -> Any:
        return dist.Bernoulli(logits=output)

    def within(self, x: Tensor) -> Tensor:
        return (x == 0) | (x == 1)


class ContinuousBernoulli(Likelihood):
    """Grey values in [0, 1], with the normalising constant that a Bernoulli would lack.

    Loaiza-Ganem & Cunningham (2019), "The continuous Bernoulli".
    """

    support = "the numbers from 0 to 1; divide 8-bit pixels by 255"

    def law(self, output: Tensor) -> Any:
        return dist.ContinuousBernoulli(logits=output)

    def within(self, x: Tensor) -> Tensor:
        return (x >= 0) & (x <= 1)


class Gaussian(Likelihood):
    """Any real pixels: the decoder gives means; one standard deviation serves all pixels.

    Args:
        sd: of every pixel; trained from 1 on by default.

    Raises ``ModelError`` for one that is not positive.
    """

    support = "all finite numbers"

    def __init__(self, sd: float | None = None) -> None:
        super().__init__()
        if sd is not None and not 0 < sd < math.inf:
            raise ModelError(f"sd={sd!r}: give a positive number, or None to train it")
        log_sd = torch.tensor(math.log(sd or 1.0))
        if sd is None:
            self.log_sd = nn.Parameter(log_sd)
        else:
            self.register_buffer("log_sd", log_sd)

    def law(self, output: Tensor) -> Any:
        return dist.Normal(output, self.log_sd.exp())

    def within(self, x: Tensor) -> Tensor:
        return torch.isfinite(x)


_NAMED = {
    "bernoulli": Bernoulli,
    "continuous_bernoulli": ContinuousBernoulli,
    "gaussian": Gaussian,
}


def likelihood(given: Name | Likelihood) -> Likelihood:
    """A likelihood by its name, or the given one. Raises ``ModelError`` for an unknown name."""
    if isinstance(given, Likelihood):
        return given
    if given not in _NAMED:
        legal = ", ".join(repr(name) for name in _NAMED)
        raise ModelError(f"likelihood={given!r}: choose one of {legal}, or give a Likelihood")
    return _NAMED[given]()
