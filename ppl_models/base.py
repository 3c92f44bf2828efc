"""What a model is: a Pyro program, plus the capabilities it may offer beyond its program.

A model is an ordinary Pyro program in ``forward``, with data as keyword arguments. Engines ask for
a capability by its class (``HasEM``, ``HasConditionals``, ``HasGuide``), never by ``hasattr``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from ppl_models.data import as_fields

if TYPE_CHECKING:
    from ppl_models.noise import Noise

Data = dict[str, Any]
"""The program's keyword arguments: tensors on one device, other Python values as they are."""

Params = dict[str, Tensor]
"""Constrained values by site name; the leading dimensions are batch: chains, restarts or draws."""

Objective = Literal["joint", "likelihood"]


class Model(nn.Module, ABC):
    """A Pyro program p(x, z, theta) over data given as keyword arguments.

    Sites sampled in ``forward`` are inferred; ``nn.Parameter``s are optimised. Anything beyond the
    program is optional: a plain Pyro function serves as a model with no extra capability.
    """

    @abstractmethod
    def forward(self, **data: Any) -> None:
        """The Pyro program."""

    def prepare(self, data: Any) -> Data:
        """Check raw data and turn it into the keyword arguments of ``forward``.

        Raises ``DataError`` naming the field and the remedy, before any work is done.
        """
        return as_fields(data)

    def canonical(self, draws: Params) -> Params:
        """One representative of label or sign symmetry; draws are (chain, draw, *event)."""
        return draws

    def coordinates(self, data: Data) -> Mapping[str, Mapping[str, list[Any]]]:
        """Names for the event dimensions: ``{site: {dimension: labels}}``, in order."""
        return {}


class HasEM(Model):
    """Closed-form E and M steps; restarts are a batch dimension in front."""

    @abstractmethod
    def start(self, data: Data, restarts: int, noise: Noise) -> Params:
        """Starting values, each of shape (restarts, *event)."""

    @abstractmethod
    def e_step(self, data: Data, params: Params) -> Any:
        """Expected sufficient statistics of the latent variables given ``params``."""

    @abstractmethod
    def m_step(self, data: Data, expectations: Any, objective: Objective) -> Params:
        """The maximiser of the expected joint (or likelihood) given the expectations."""


class HasConditionals(Model):
    """Exact full conditionals, for Gibbs sampling; chains are a batch dimension in front."""

    @abstractmethod
    def conditionals(self, data: Data) -> Mapping[str, Callable[[Params, Noise], Params]]:
        """The blocks of one sweep, in order: each takes all values and returns the updated ones."""


class HasGuide(Model):
    """An amortised guide q(z | x): a Pyro program with the arguments of ``forward``."""

    @abstractmethod
    def guide(self, **data: Any) -> None:
        """The guide program; its sample sites are the latent sites of ``forward``."""
