"""Variational deep embedding: a VAE whose prior is a mixture, with a component for each cluster.

    c_i ~ Categorical(pi),   z_i | c_i = c ~ N(mu_c, Sigma_c),   x_i ~ p(x | decoder(z_i))

Jiang, Zheng, Tan, Tang & Zhou (2017), "Variational deep embedding: an unsupervised and generative
approach to clustering". The paper bounds log p(x) with q(z | x) q(c | x) and then sets q(c | x) to
E p(c | z), the best there is. Here c is summed out in the program itself, p(z) = sum_c pi_c
N(z; mu_c, Sigma_c), so that p(c | z) is exact for each z and the bound is tighter. The paper's
Sigma_c are diagonal; full ones do not depend on how the axes of z lie, which nothing in the first
stage decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from ppl_models import likelihoods
from ppl_models.autoencoder import Autoencoder, Binarise, positive
from ppl_models.base import Data, HasMStep, HasPretraining, Params
from ppl_models.errors import ModelError

_DEAD = 0.1
"""A cluster is dead below this share of an equal weight."""

_PRIOR_DRAWS = 4_000

_FLOOR = 1e-6  # of shares and variances after an M step: that of a cluster without draws


class Clusters(dist.MixtureSameFamily):
    """A mixture over real vectors, and said to be so: samplers move on unconstrained values."""

    @property
    def support(self) -> Any:  # type: ignore[override]
        return dist.constraints.real_vector


class VaDE(Autoencoder, HasPretraining, HasMStep):  # pyright: ignore[reportIncompatibleMethodOverride]
    """A deep mixture: clusters of images, found without labels.

    Trained from nothing it puts all images into one cluster or a few; the published recipe trains
    an autoencoder first, then fits a mixture to its codes, and trains all together from there:
    ``Pretrained(SVI(...))``.

    Args:
        clusters: K.
        latent: units.
        hidden: as of ``VAE``.
        likelihood: as of ``VAE``.
        shape: of a row.
        encoder: as of ``VAE``.
        decoder: as of ``VAE``.
        binarise: as of ``VAE``.
        covariance: of z in a cluster, "diagonal" as in the paper, or "full".
        corruption: of the images that the autoencoder is trained to restore in the first stage,
            a function of (B, *shape) such as ``corruptions.Jitter()``; None for none.

    Raises ``ModelError`` for settings out of range.
    """

    def __init__(
        self,
        clusters: int,
        latent: int = 10,
        hidden: int | Sequence[int] = (500, 500, 2000),
        likelihood: likelihoods.Name | likelihoods.Likelihood = "bernoulli",
        *,
        shape: int | Sequence[int],
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        binarise: Binarise | None = None,
        covariance: Literal["diagonal", "full"] = "diagonal",
        corruption: Callable[[Tensor], Tensor] | None = None,
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
        self.clusters = positive("clusters", clusters)
        if covariance not in ("diagonal", "full"):
            raise ModelError(f"covariance={covariance!r}: choose 'diagonal' or 'full'")
        if corruption is not None and not callable(corruption):
            raise ModelError(f"corruption={corruption!r}: give a function of images, or None")
        self.covariance, self.corruption = covariance, corruption
        self.logits = nn.Parameter(torch.zeros(clusters))
        self.mean = nn.Parameter(torch.randn(clusters, latent))
        self.log_sd = nn.Parameter(torch.zeros(clusters, latent))  # of z given those before it
        full = covariance == "full"
        self.lower = nn.Parameter(torch.zeros(clusters, latent, latent)) if full else None

    def components(self) -> Any:
        """p(z | c): batch (K,), event (latent,)."""
        if self.lower is None:
            return dist.Normal(self.mean, self.log_sd.exp()).to_event(1)
        return dist.MultivariateNormal(self.mean, scale_tril=self.factors())

    def factors(self) -> Tensor:
        """L_c with Sigma_c = L_c L_c^T, lower triangular: (K, latent, latent)."""
        scale = self.log_sd.exp().diag_embed()
        return scale if self.lower is None else scale + scale @ self.lower.tril(-1)

    def prior(self, like: Tensor, y: Tensor | None = None) -> Any:
        """p(z), c summed out."""
        return Clusters(dist.Categorical(logits=self.logits), self.components())

    def responsibilities(self, z: Tensor) -> Tensor:
        """p(c | z): (..., latent) -> (..., K)."""
        return (self.logits + self.components().log_prob(z[..., None, :])).softmax(-1)

    # -- the mixture's M step ----------------------------------------------------------------------

    def statistics(self, data: Data, latents: Params) -> Params:
        """The shares of the clusters, and the sums of z and its products in each, as means."""
        z = latents["z"].flatten(0, 1)  # (K B, latent)
        known = self.responsibilities(z)
        weighed = known.mT[..., None] * z  # (K, K B, latent)
        products = weighed.mT @ z if self.covariance == "full" else known.mT @ z.square()
        return {
            "share": known.mean(0),
            "sum": weighed.mean(1),
            "product": products / len(z),
        }

    def maximiser(self, statistics: Params) -> Params:
        """Shares, means and covariances of the clusters: those of a mixture's EM."""
        share = statistics["share"].clamp(min=_FLOOR)
        mean = statistics["sum"] / share[:, None]
        if self.covariance == "full":
            outer = mean[:, :, None] * mean[:, None]
            spread = statistics["product"] / share[:, None, None] - outer
            spread = spread + _FLOOR * torch.eye(self.latent).to(mean)
        else:
            spread = (statistics["product"] / share[:, None] - mean.square()).clamp(min=_FLOOR)
        return {"logits": (share / share.sum()).log(), "mean": mean, **_scales(spread)}

    _of_rows = "Expected pixels, a row for each cluster from 0 on."

    @torch.no_grad()
    def generated(self, columns: int) -> Tensor:
        """Expected pixels of draws from each cluster: (K, columns, *shape)."""
        z = self.components().sample(torch.Size((columns,)))
        return self.images(z.transpose(0, 1))

    def unit_divergences(self, data: Data) -> Tensor:
        """The divergence of q(z_u | x) from each cluster's p(z_u), averaged by p(c | z)."""
        mean, sd = self.encode(data["x"])
        components = Normal(self.mean, self.factors().norm(dim=-1))  # of each unit by itself
        to_each = kl_divergence(Normal(mean[:, None], sd[:, None]), components)  # (N, K, latent)
        return (self.responsibilities(mean)[..., None] * to_each).sum(-2)

    def labels_of(self, data: Data) -> Tensor:
        return self.labels(data)

    @torch.no_grad()
    def labels(self, data: Data) -> Tensor:
        """The most probable cluster of each row at the mean of q(z | x): (N,)."""
        return self.responsibilities(self.codes(data)).argmax(-1)

    # -- the stages before -------------------------------------------------------------------------

    def pretraining_losses(self, data: Data) -> Tensor:
        """-log p(x | z) at the encoder's mean of x, corrupted: that of an autoencoder."""
        seen = data["x"] if self.corruption is None else self.corruption(data["x"])
        mean, _ = self.encode(seen)
        law = self.likelihood.law(self.decode(mean))
        return -law.to_event(len(self.shape)).log_prob(data["x"])

    def codes(self, data: Data) -> Tensor:
        """The mean of q(z | x): (N, latent)."""
        return self.encode(data["x"])[0]

    @torch.no_grad()
    def adopt(self, mixture: Params) -> None:
        """Start the clusters from a mixture of the codes.

        Raises ``ModelError`` where it has another number of components or of dimensions.
        """
        mean, spread = mixture["mean"], mixture["covariance"]
        own = self.mean if self.lower is None else self.lower
        if mean.shape != self.mean.shape or spread.shape != own.shape:
            raise ModelError(
                f"the mixture has means {tuple(mean.shape)} and covariances "
                f"{tuple(spread.shape)}; fit one of {tuple(self.mean.shape)} and "
                f"{tuple(own.shape)}: GaussianMixture({self.clusters}, {self.covariance!r})"
            )
        self.logits.copy_(mixture["weights"].log())
        self.mean.copy_(mean)
        for name, value in _scales(spread).items():
            self.get_parameter(name).copy_(value)

    # -- what went wrong ---------------------------------------------------------------------------

    @torch.no_grad()
    def effective_clusters(self) -> float:
        """How many clusters count and are told apart: exp of I(c, z) under the trained prior."""
        generator = torch.Generator().manual_seed(0)
        weights = self.logits.double().softmax(-1).cpu()
        c = torch.multinomial(weights, _PRIOR_DRAWS, replacement=True, generator=generator)
        normal = torch.randn(_PRIOR_DRAWS, self.latent, generator=generator, dtype=torch.float64)
        z = self.mean.cpu()[c] + (self.factors().double().cpu()[c] @ normal[..., None])[..., 0]
        known = self.responsibilities(z.to(self.mean))
        return math.exp(float(_entropy(known.mean(0)) - _entropy(known).mean()))

    def findings(self, data: Data, draws: Params) -> list[str]:
        """Tells of clusters that have died or cannot be told apart, and of collapsed units."""
        found = super().findings(data, draws)
        share = self.logits.detach().softmax(-1)
        dead = (share < _DEAD / self.clusters).nonzero().ravel().tolist()
        number = self.effective_clusters()
        remedy = (
            "train it by Pretrained(SVI(...)) with more steps or restarts before, a smaller "
            "learning_rate, or give fewer clusters"
        )
        if number < self.clusters / 2:
            largest = int(share.argmax())
            found.append(
                f"of {self.clusters} clusters {number:.1f} are in use: the largest, {largest}, has "
                f"a share of {float(share[largest]):.2f}, and others have died or lie over one "
                f"another; {remedy}"
            )
        elif dead:
            names = ", ".join(map(str, dead))
            found.append(
                f"{len(dead)} of {self.clusters} clusters have died, with a share below "
                f"{_DEAD / self.clusters:.2g} ({names}); {remedy}"
            )
        return found


def _scales(spread: Tensor) -> Params:
    """``log_sd``, and of covariances (K, L, L) ``lower``; of variances (K, L) that alone."""
    if spread.dim() == 2:
        return {"log_sd": spread.log() / 2}
    factors = torch.linalg.cholesky(spread)
    sd = factors.diagonal(dim1=-2, dim2=-1)
    return {"log_sd": sd.log(), "lower": (factors / sd[..., None]).tril(-1)}


def _entropy(p: Tensor) -> Tensor:
    """In nats, over the last dimension."""
    return torch.special.entr(p).sum(-1)
