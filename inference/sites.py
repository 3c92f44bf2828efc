"""The sites of a trace: which are samples, of what kind, and the shapes of their values."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.distributions import transforms

from ppl_models.errors import ModelError


def value_of(trace: Any, name: str) -> Tensor:
    """The value of a site of a trace."""
    return trace.nodes[name]["value"]


def sample_sites(trace: Any) -> list[Any]:
    """Those of random variables, latent or observed, in the order of the program."""
    return [
        site
        for site in trace.nodes.values()
        if site["type"] == "sample"
        and not isinstance(site["fn"], _Subsample)
        and not is_deterministic(site)
    ]


def is_deterministic(site: Any) -> bool:
    """Whether it is by ``pyro.deterministic``."""
    return site["type"] == "sample" and bool(site["infer"].get("_deterministic", False))


def is_factor(site: Any) -> bool:
    """Whether it is by ``pyro.factor``."""
    return isinstance(site["fn"], dist.Unit)


def is_discrete(distribution: Any) -> bool:
    """Whether a distribution has no density."""
    return bool(distribution.has_enumerate_support or distribution.support.is_discrete)


def enumerate_support(name: str, distribution: Any) -> Tensor:
    """The values of a discrete latent site: (K, *event).

    Raises ``ModelError`` where they are not finitely many, or no sum over them is taken.
    """
    try:
        support = distribution.enumerate_support(expand=False)
    except NotImplementedError as error:
        if isinstance(distribution, torch.distributions.Independent):
            raise ModelError(
                f"{name}: the discrete latent site has dimensions marked by .to_event(), over "
                "which no sum is taken; put it in a pyro.plate instead"
            ) from error
        raise ModelError(
            f"{name}: the discrete latent site has no finite support to sum over "
            f"({type(distribution).__name__}); truncate it to a Categorical, or marginalise it"
        ) from error
    return support.reshape(support.shape[0], *distribution.event_shape)


def inverse_shape(transform: Any, shape: torch.Size) -> torch.Size:
    """The shape that a transform maps to ``shape``.

    An affine map by numbers keeps it; PyTorch finds that out by a module that imports SymPy.
    """
    if isinstance(transform, transforms.ComposeTransform):
        for part in reversed(transform.parts):
            shape = inverse_shape(part, shape)
        return shape
    if isinstance(transform, transforms.IndependentTransform):
        return inverse_shape(transform.base_transform, shape)
    if isinstance(transform, transforms.AffineTransform):
        numbers = (transform.loc, transform.scale)
        if not any(isinstance(number, Tensor) and number.dim() for number in numbers):
            return shape
    return torch.Size(transform.inverse_shape(shape))


def parameter(distribution: Any) -> Tensor:
    """A tensor of the dtype and device of the distribution's values."""
    base = distribution
    while hasattr(base, "base_dist"):
        base = base.base_dist
    for name in getattr(base, "arg_constraints", {}):
        value = getattr(base, name, None)
        if isinstance(value, Tensor) and value.is_floating_point():
            return value
    return torch.zeros(())
