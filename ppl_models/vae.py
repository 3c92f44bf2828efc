"""Variational autoencoders, unconditional and conditional.

    z_i ~ N(0, I),   x_i ~ p(x | decoder(z_i)),   q(z | x_i) = N(m_i, diag(s_i^2))

Kingma & Welling (2014), "Auto-encoding variational Bayes"; Rezende, Mohamed & Wierstra (2014),
"Stochastic backpropagation and approximate inference in deep generative models". With a linear
decoder and ``likelihood="gaussian"`` it is probabilistic PCA, whose posterior a linear encoder
matches. The conditional one: Sohn, Lee & Yan (2015), "Learning structured output representation
using deep conditional generative models".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_models import likelihoods
from ppl_models.autoencoder import Autoencoder, Binarise, positive
from ppl_models.base import Data
from ppl_models.errors import ModelError
from ppl_models.image_rows import labels


class VAE(Autoencoder):
    """A variational autoencoder of images, or of rows of any shape.

    Args:
        latent: units.
        hidden: width, or widths from the pixels on, of the hidden layers of the encoder; the
            decoder has them in reverse. Not used where both networks are given.
        likelihood: "bernoulli", "continuous_bernoulli", "gaussian" (with one trained standard
            deviation), or a ``likelihoods.Likelihood``.
        shape: of a row: (28, 28), (3, 32, 32), 784.
        encoder: a module from (B, *shape) to (B, 2 latent), means then log standard deviations;
            see ``networks``. A perceptron by default.
        decoder: a module from (B, latent) to (B, *shape). A perceptron by default.
        binarise: how grey values in [0, 1] become 0 and 1 for a Bernoulli: "dynamic", drawn anew
            at each step of training; "fixed", drawn once; "threshold", at 1/2. None: they are.

    Raises ``ModelError`` for settings out of range.

    Example:
        >>> model = VAE(latent=2, hidden=32, shape=(8, 8), binarise="dynamic")
        >>> model.images(torch.zeros(5, 2)).shape
        torch.Size([5, 8, 8])
    """

    def __init__(
        self,
        latent: int,
        hidden: int | Sequence[int] = 400,
        likelihood: likelihoods.Name | likelihoods.Likelihood = "bernoulli",
        *,
        shape: int | Sequence[int],
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        binarise: Binarise | None = None,
    ) -> None:
        super().__init__(
            latent,
            hidden,
            likelihood,
            shape=shape,
            encoder=encoder,
            decoder=decoder,
            binarise=binarise,
        )

    def prior(self, like: Tensor, y: Tensor | None = None) -> Any:
        return dist.Normal(like.new_zeros(self.latent), 1.0).to_event(1)


class ConditionalVAE(Autoencoder):
    """A variational autoencoder of images given their labels y.

    Encoder and decoder are given y beside their input, one-hot, (B, classes).

    Args:
        latent: units.
        hidden: as of ``VAE``.
        likelihood: as of ``VAE``.
        classes: of y, which has the labels 0, ..., classes - 1.
        shape: of a row.
        encoder: a module called with x (B, *shape) and y (B, classes).
        decoder: a module called with z (B, latent) and y (B, classes).
        binarise: as of ``VAE``.
        prior: "standard", z ~ N(0, I) whatever y is; or "by class", with means and standard
            deviations that are trained.

    Raises ``ModelError`` for settings out of range.
    """

    def __init__(
        self,
        latent: int,
        hidden: int | Sequence[int] = 400,
        likelihood: likelihoods.Name | likelihoods.Likelihood = "bernoulli",
        *,
        classes: int,
        shape: int | Sequence[int],
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        binarise: Binarise | None = None,
        prior: Literal["standard", "by class"] = "standard",
    ) -> None:
        super().__init__(
            latent,
            hidden,
            likelihood,
            shape=shape,
            encoder=encoder,
            decoder=decoder,
            binarise=binarise,
            classes=positive("classes", classes),
        )
        if prior not in ("standard", "by class"):
            raise ModelError(f"prior={prior!r}: choose 'standard' or 'by class'")
        moments = torch.zeros(classes, 2 * latent)
        self.by_class = nn.Parameter(moments) if prior == "by class" else None

    def prior(self, like: Tensor, y: Tensor | None = None) -> Any:
        if self.by_class is None or y is None:
            return dist.Normal(like.new_zeros(self.latent), 1.0).to_event(1)
        mean, log_sd = self.by_class[y.long()].chunk(2, -1)
        return dist.Normal(mean, log_sd.exp()).to_event(1)

    def prepare(self, data: Any) -> Data:
        """``x`` (N, *shape) and the labels ``y`` (N,), from a mapping of both.

        Raises ``DataError`` as ``VAE`` does; where y is missing, has another length, or holds
        anything but 0, ..., classes - 1; and until the model is trained where a class has no row.
        """
        fields = dict(data) if isinstance(data, Mapping) else {"x": data}
        y = fields.pop("y", None)
        found = super().prepare(fields)
        every = not getattr(self, "trained", False)
        return {**found, "y": labels("y", y, self.classes, found["x"], every=every)}

    _of_rows = "Expected pixels, a row for each label from 0 on."

    @torch.no_grad()
    def generated(self, columns: int) -> Tensor:
        """Expected pixels of draws from the prior, a row for each label."""
        y = torch.arange(self.classes, device=next(self.parameters()).device)
        y = y.repeat_interleave(columns)
        law = self.prior(next(self.parameters()), y).expand(torch.Size((len(y),)))
        return self.images(law.sample(), y).reshape(self.classes, columns, *self.shape)
