"""What training by minibatches minimises: a loss for each row, by its log weights.

With log w_k = log p(x, z_k) - log q(z_k | x) and z_k ~ q(z | x) for k = 1, ..., K, both objectives
are lower bounds of log p(x) in expectation; the second is the tighter one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from inference import row_weights
from ppl_models.base import Data, HasRows, HasScore, Model
from ppl_models.errors import EngineError, ModelError


@dataclass(frozen=True)
class Objective(ABC):
    """A loss for each row; settings are fields."""

    needs: ClassVar[type[Model]] = HasRows

    bounds: ClassVar[bool] = True
    """Whether minus the loss is a lower bound of log p(x), in nats."""

    @abstractmethod
    def losses(self, model: HasRows, data: Data) -> Tensor:
        """Unbiased estimates of the negative bound of each row, (B,).

        The gradient of their mean is that of a step.
        """

    def check(self, model: HasRows, data: Data) -> None:
        """Refuse what the objective cannot do, before any work. Raises ``ModelError``."""
        if isinstance(model, HasScore):
            raise ModelError(
                f"{type(model).__name__} has no normalised density; train it by score matching: "
                "SVI(objective=ScoreMatching())"
            )
        row_weights.check(model, data)

    def _whole(self, name: str) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise EngineError(
                f"{type(self).__name__}({name}={value!r}): give a positive whole number"
            )


@dataclass(frozen=True)
class ELBO(Objective):
    """The evidence lower bound, E_q[log p(x, z) - log q(z | x)], mean of K draws.

    Divergences of sites that have a closed form are used in it (Kingma & Welling 2014). Of a
    program without latent sites it is the log likelihood.

    Args:
        particles: K.
    """

    particles: int = 1

    def __post_init__(self) -> None:
        self._whole("particles")

    def losses(self, model: HasRows, data: Data) -> Tensor:
        return -row_weights.weigh(model, data, self.particles, exact=True).log_weight.mean(0)


@dataclass(frozen=True)
class ImportanceWeighted(Objective):
    """The importance-weighted bound, E log (1/K) sum_k w_k (Burda, Grosse & Salakhutdinov 2016).

    Args:
        k: K.
        doubly: whether the guide's gradient is the doubly reparameterised one (Tucker, Lawson, Gu &
            Maddison 2019), whose signal does not drown in noise as k grows:
            E sum_k s_k^2 (d log w_k / d z_k) (d z_k / d phi) with s_k = w_k / sum_j w_j. It runs
            the guide twice, and serves guides of one latent site.
    """

    k: int = 50
    doubly: bool = False

    def __post_init__(self) -> None:
        self._whole("k")

    def check(self, model: HasRows, data: Data) -> None:
        super().check(model, data)
        sites = row_weights.guided(model, data, 1)
        if self.doubly and len(sites) > 1:
            raise EngineError(
                f"ImportanceWeighted(doubly=True): the guide samples {', '.join(sites)}, and the "
                "gradient is for one site; use doubly=False"
            )

    def losses(self, model: HasRows, data: Data) -> Tensor:
        log_weight = (
            self._doubly(model, data)
            if self.doubly
            else row_weights.weigh(model, data, self.k).log_weight
        )
        return math.log(self.k) - log_weight.logsumexp(0)

    def _doubly(self, model: HasRows, data: Data) -> Tensor:
        """Log weights whose gradient reaches the guide by way of the draws alone: (K, B)."""
        latents = row_weights.guided(model, data, self.k)
        shares: list[Tensor] = []

        def once_more(gradient: Tensor) -> Tensor:
            # the loss has put one factor of the share on it
            return gradient * shares[0].reshape(*shares[0].shape, *[1] * (gradient.dim() - 2))

        for value in latents.values():
            if value.requires_grad:
                value.register_hook(once_more)
        log_q = row_weights.held(model, lambda: row_weights.log_guide(model, data, latents))
        log_weight = row_weights.log_joint(model, data, latents) - log_q
        shares.append(log_weight.detach().softmax(0))
        return log_weight
