"""What variational autoencoders have in common (Kingma & Welling 2014; Rezende et al. 2014).

    z_i ~ p(z | y_i),   x_i ~ p(x | decoder(z_i, y_i)),   q(z | x_i, y_i) = N(m_i, diag(s_i^2)),

with (m_i, log s_i) the encoder's output, and y only where there is one.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from ppl_models import likelihoods
from ppl_models.base import Data, HasRows, Params
from ppl_models.errors import DataError, ModelError
from ppl_models.exhibits import Bars, Exhibit, ImageGrid, Points
from ppl_models.image_rows import binarised, images
from ppl_models.networks import MLPDecoder, MLPEncoder

Binarise = Literal["dynamic", "fixed", "threshold"]

ACTIVE = 0.01
"""The variance of a unit's posterior mean over the data above which it is active (Burda)."""

_SHOWN = 12  # images in a row of a report


class Autoencoder(HasRows):
    """A model of images with latent units; what is left to say is their prior.

    Sites: ``z`` (N, latent) and ``x`` (N, *shape), observed, in the plate ``rows``. Networks see
    rows alone, (B, ...): dimensions of particles are flattened into B around the decoder, and the
    encoder runs once for each row.

    Args: see ``VAE``; ``classes`` is the number of classes of y, which encoder and decoder see, or
    0.
    """

    def __init__(
        self,
        latent: int,
        hidden: int | Sequence[int],
        likelihood: likelihoods.Name | likelihoods.Likelihood,
        *,
        shape: int | Sequence[int],
        encoder: nn.Module | None,
        decoder: nn.Module | None,
        binarise: Binarise | None,
        classes: int = 0,
    ) -> None:
        super().__init__()
        self.latent = positive("latent", latent)
        self.shape = tuple(positive("shape", n) for n in _several(shape))
        widths = [positive("hidden", n) for n in _several(hidden)]
        self.likelihood = likelihoods.likelihood(likelihood)
        self.classes = classes
        if binarise not in (None, "dynamic", "fixed", "threshold"):
            raise ModelError(
                f"binarise={binarise!r}: choose 'dynamic', 'fixed', 'threshold' or None"
            )
        if binarise and not isinstance(self.likelihood, likelihoods.Bernoulli):
            raise ModelError(f"binarise={binarise!r}: is for likelihood='bernoulli'; leave it out")
        self.binarise = binarise
        for name, module in (("encoder", encoder), ("decoder", decoder)):
            if module is not None and not isinstance(module, nn.Module):
                raise ModelError(f"{name}={module!r}: give an nn.Module")
        self.encoder = (
            MLPEncoder(self.shape, latent, widths, classes=classes) if encoder is None else encoder
        )
        self.decoder = (
            MLPDecoder(self.shape, latent, widths[::-1], classes=classes)
            if decoder is None
            else decoder
        )

    @abstractmethod
    def prior(self, like: Tensor, y: Tensor | None = None) -> Any:
        """p(z | y), with the device and dtype of ``like``: batch () or (B,), event (latent,)."""

    # -- the program and its guide -----------------------------------------------------------------

    def forward(  # type: ignore[override]
        self, x: Tensor, intensity: Tensor | None = None, y: Tensor | None = None
    ) -> None:
        """The Pyro program for rows ``x`` (N, *shape), which serve the observed site alone.

        ``intensity`` (N, *shape), of which x is a binarisation, does not enter.
        """
        with pyro.plate("rows", len(x), dim=-1):
            z = pyro.sample("z", self.prior(x, y))
            law = self.likelihood.law(self.decode(z, y))
            pyro.sample("x", law.to_event(len(self.shape)), obs=x)

    def guide(  # type: ignore[override]
        self, x: Tensor, intensity: Tensor | None = None, y: Tensor | None = None
    ) -> None:
        """The Pyro program of q(z | x, y)."""
        mean, sd = self.encode(x, y)
        with pyro.plate("rows", len(x), dim=-1):
            pyro.sample("z", dist.Normal(mean, sd).to_event(1))

    def encode(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Means and standard deviations of q(z | x, y): (B, *shape) -> (B, latent) each."""
        out = self.encoder(x) if y is None else self.encoder(x, self.one_hot(y, x))
        if out.shape != (len(x), 2 * self.latent):
            raise ModelError(
                f"the encoder returns {tuple(out.shape)} for {len(x)} rows; give means, then log "
                f"standard deviations, of {self.latent} units: ({len(x)}, {2 * self.latent})"
            )
        mean, log_sd = out.chunk(2, -1)
        return mean, log_sd.exp()

    def decode(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """What the likelihood is given: (..., B, latent) -> (..., B, *shape)."""
        lead = z.shape[:-1]
        flat = z.reshape(-1, self.latent)
        if y is None:
            out = self.decoder(flat)
        else:
            beside = self.one_hot(y, z).expand(*lead, self.classes)
            out = self.decoder(flat, beside.reshape(-1, self.classes))
        if len(out) != len(flat) or out[:1].numel() != math.prod(self.shape):
            raise ModelError(
                f"the decoder returns {tuple(out.shape)} for {len(flat)} rows; give a number for "
                f"each pixel: ({len(flat)}, {', '.join(map(str, self.shape))})"
            )
        return out.reshape(*lead, *self.shape)

    def images(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Expected pixels: (..., B, latent) -> (..., B, *shape)."""
        return self.likelihood.mean(self.decode(z, y))

    @torch.no_grad()
    def generated(self, columns: int) -> Tensor:
        """Expected pixels of draws from the prior, in rows: (R, columns, *shape)."""
        like = next(self.parameters())
        return self.images(self.prior(like).sample(torch.Size((4, columns))))

    def unit_divergences(self, data: Data) -> Tensor:
        """The divergence of q(z_u | x) from p(z_u) of each unit, in nats: (N, latent)."""
        mean, sd = self.encode(data["x"], data.get("y"))
        return kl_divergence(Normal(mean, sd), self.prior(mean, data.get("y")).base_dist)

    def one_hot(self, y: Tensor, like: Tensor) -> Tensor:
        """Labels (B,) as (B, classes), with the device and dtype of ``like``."""
        # torch's one_hot looks at the values, which no traced graph can
        return (y[..., None] == torch.arange(self.classes, device=y.device)).to(like)

    # -- data --------------------------------------------------------------------------------------

    def prepare(self, data: Any) -> Data:
        """``x`` (N, *shape), from an array or a mapping with x; flat rows are given their shape.

        With ``binarise`` grey values in [0, 1] become 0 and 1. For "dynamic" they are kept beside
        as ``intensity``, of which each step of training draws anew; the draw that is returned, and
        that a test sees, has a fixed seed.

        Raises ``DataError`` for images of another size, values that are missing, infinite or
        outside the likelihood's support, and unknown fields.
        """
        fields = dict(data) if isinstance(data, Mapping) else {"x": data}
        known = {"x", *self._beside()}
        if "x" not in fields or fields.keys() - known:
            wrong = sorted(map(str, fields.keys() - known))
            what = f"{', '.join(wrong)}: unknown" if wrong else "x: is missing"
            raise DataError(f"{what}; give images, or a mapping of {', '.join(sorted(known))}")
        like = next(self.parameters())
        if self.binarise is None:
            return {"x": images("x", fields["x"], self.shape, like, self.likelihood)}
        grey = likelihoods.ContinuousBernoulli()
        shades = images("x", fields.get("intensity", fields["x"]), self.shape, like, grey)
        if self.binarise == "threshold":
            return {"x": (shades >= 0.5).to(shades)}
        if self.binarise == "fixed":
            return {"x": binarised(shades)}
        if "intensity" in fields:  # prepared before
            x = images("x", fields["x"], self.shape, like, self.likelihood)
        else:
            x = binarised(shades)
        return {"x": x, "intensity": shades}

    def _beside(self) -> set[str]:
        """The fields that may be given beside x."""
        return {"intensity"} if self.binarise == "dynamic" else set()

    def refreshed(self, data: Data) -> Data:
        """With ``binarise="dynamic"`` x drawn anew (Burda, Grosse & Salakhutdinov 2016)."""
        if "intensity" not in data:
            return data
        return {**data, "x": torch.bernoulli(data["intensity"])}

    def coordinates(self, data: Data) -> Mapping[str, Mapping[str, list[Any]]]:
        return {"z": {"row": list(range(len(data["x"]))), "unit": list(range(self.latent))}}

    @torch.no_grad()
    def exhibits(self, data: Data, draws: Params) -> Mapping[str, Exhibit]:
        """Reconstructions, draws from the prior, the latent space, and what its units tell."""
        y = data.get("y")
        z = draws["z"].flatten(0, 1).mean(0)  # (N, latent)
        found: dict[str, Exhibit] = {}
        if len(self.shape) in (2, 3):
            some = slice(0, _SHOWN)
            seen = data.get("intensity", data["x"])[some]
            again = self.images(z[some], None if y is None else y[some])
            note = "Above: images; below: their expected pixels at the posterior mean of z."
            found["Reconstructions"] = ImageGrid(note, torch.stack([seen, again]))
            with torch.random.fork_rng():
                torch.manual_seed(0)
                found["Draws from the prior"] = ImageGrid(self._of_rows, self.generated(_SHOWN))
        found["Latent space"] = Points("Posterior means of z.", z, self.labels_of(data))
        divergences = self.unit_divergences(data).mean(0)
        note = "A unit near zero carries nothing: its posterior is the prior."
        found["Latent units"] = Bars(note, divergences, "nats of divergence from the prior")
        return found

    _of_rows: ClassVar[str] = "Expected pixels."
    """What the rows of ``generated`` are, in words."""

    def labels_of(self, data: Data) -> Tensor | None:
        """Labels (N,) by which rows are told apart in pictures, if there are any."""
        return data.get("y")

    def findings(self, data: Data, draws: Params) -> list[str]:
        """Tells of a collapse, where more than half of the units are inactive."""
        z = draws["z"].flatten(0, 1)  # (S, N, latent)
        if len(z) < 2 or z.shape[1] < 2:
            return []
        inactive = int((activity(z) <= ACTIVE).sum())
        if 2 * inactive <= self.latent:
            return []
        return [
            f"{inactive} of {self.latent} latent units are inactive: their posterior has collapsed "
            f"onto the prior (the variance of its mean over {z.shape[1]} rows is at most "
            f"{ACTIVE:g}), so that the decoder does without them; use fewer units, a weaker "
            "decoder, more training, or a bound with the divergence warmed up"
        ]


def activity(z: Tensor) -> Tensor:
    """A_u = Var_x E[z_u | x], by draws z (S, N, latent): (latent,).

    Burda, Grosse & Salakhutdinov (2016). The covariance over rows of the means of two halves of the
    draws has no share of the noise that each mean has.
    """
    first, second = (half.mean(0) for half in z.tensor_split(2))
    return ((first - first.mean(0)) * (second - second.mean(0))).sum(0) / (len(first) - 1)


def positive(name: str, value: Any) -> int:
    """A positive whole number. Raises ``ModelError`` for any other."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ModelError(f"{name}={value!r}: give a positive whole number")
    return value


def _several(value: int | Sequence[int]) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)
