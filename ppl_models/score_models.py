"""Models of rows that are known by a score or an energy, and not by a normalised density.

An energy E gives the density exp(-E(x)) / Z, whose constant Z nobody knows; a score network gives
the gradient of a log density, of data with noise of sd d added for each d of a ladder (Song & Ermon
2019, "Generative modeling by estimating gradients of the data distribution"). Both are trained by
score matching (``ppl_models.score``), as the objective of ``SVI``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pyro
import torch
from pyro.distributions import ImproperUniform, constraints
from torch import Tensor, nn

from ppl_models import score as losses
from ppl_models.base import Data, HasScore
from ppl_models.data import as_fields, finite
from ppl_models.errors import DataError, ModelError


class _Rows(HasScore):
    """What both models share: rows (N, D)."""

    trained = False

    def __init__(self, network: nn.Module, dim: int) -> None:
        super().__init__()
        if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
            raise ModelError(f"dim={dim!r}: give a whole number of at least 1")
        if not isinstance(network, nn.Module):
            raise ModelError(f"network={network!r}: give an nn.Module")
        self.network, self.dim = network, dim

    def prepare(self, data: Any) -> Data:
        """``x`` (N, D) from an array or a mapping with x, or nothing.

        Raises ``DataError`` for another shape, and values that are missing or infinite.
        """
        if data is None:
            return {}
        fields = as_fields(data if isinstance(data, dict) else {"x": data})
        x = fields.get("x")
        if fields.keys() != {"x"} or not isinstance(x, Tensor):
            raise DataError("give an array of rows, or a mapping with x alone")
        if x.dim() != 2 or x.shape[1] != self.dim or not len(x):
            raise DataError(f"x: has shape {tuple(x.shape)}; give rows of {self.dim}")
        return {"x": finite("x", x if x.is_floating_point() else x.double())}

    def rows(self, data: Data) -> int:
        """How many rows there are. Raises ``DataError`` where there are none."""
        if not data:
            raise DataError("training needs rows; give an array of them")
        return super().rows(data)


class EnergyModel(_Rows):
    """The density exp(-E(x)) up to its constant, E being a network.

    ``fit(EnergyModel(network, 2), x, SVI(objective=ScoreMatching()))`` trains it. Without data the
    program is the density itself, that of site x: ``fit(trained, None, NUTS())`` samples from it.

    Args:
        network: E, (B, D) -> (B,) or (B, 1); its activations must be smooth.
        dim: D.
    """

    def forward(self, x: Tensor | None = None) -> None:  # type: ignore[override]
        """Site x, latent; with data nothing, since the density has no constant to compare by."""
        if x is None:
            flat = ImproperUniform(constraints.real_vector, (), (self.dim,))
            point: Any = pyro.sample("x", flat)
            pyro.factor("energy", -self.energy(point[None])[0])

    def energy(self, x: Tensor) -> Tensor:
        """E of rows: (B, D) -> (B,)."""
        return self.network(x).reshape(len(x))

    def score(self, x: Tensor, sd: float | Tensor | None = None) -> Tensor:
        """-grad E, whatever the noise."""
        return losses.of_energy(self.energy)(x)


class ScoreModel(_Rows):
    """A network of the gradient of a log density, at a ladder of noise levels.

    With noise levels the network sees rows and how noisy they are, as those of
    ``ppl_models.denoisers``, and predicts the noise: s(x, d) = -n / d. ``annealed_draws`` samples
    from the trained model. A model that has not been trained takes its units, the mean of each
    column and one sd, from the rows it is first given to fit.

    Args:
        network: called with x (B, D) and a time in (0, 1], (B,), for the place of log d between its
            smallest and its largest; without levels with x alone. Returns (B, D).
        dim: D.
        sds: d, decreasing: the first as large as distances between rows, the last as small as
            details. Empty for a score of the rows themselves, by implicit or sliced matching.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, network: nn.Module, dim: int, sds: Sequence[float] = ()) -> None:
        super().__init__(network, dim)
        self.sds = tuple(float(sd) for sd in sds)
        falling = all(a > b for a, b in itertools.pairwise(self.sds))
        if not falling or any(not 0 < sd < math.inf for sd in self.sds):
            raise ModelError(f"sds={sds!r}: give positive numbers that decrease")
        self.register_buffer("centre", torch.zeros(dim))
        self.register_buffer("spread", torch.ones(()))

    def prepare(self, data: Any) -> Data:
        """As for rows of any such model. Raises ``DataError``, also where no column varies."""
        fields = super().prepare(data)
        if fields and not self.trained:
            x = fields["x"]
            spread = x.var(0, correction=0).mean().sqrt()
            if not spread > 0:
                raise DataError("x: no column varies; give rows that differ")
            self.centre.copy_(x.mean(0))
            self.spread.copy_(spread)
        return fields

    def forward(self, x: Tensor | None = None) -> None:  # type: ignore[override]
        """Nothing: a score has no density to evaluate."""

    def score(self, x: Tensor, sd: float | Tensor | None = None) -> Tensor:
        """The gradient of the log density of rows (B, D) with noise of sd added, (B, 1) or one."""
        z = (x.to(self.centre) - self.centre) / self.spread
        if not self.sds:
            return self.network(z) / self.spread
        noise = torch.as_tensor(self.sds[-1] if sd is None else sd).to(z).reshape(-1, 1)
        seen = z / (1 + (noise / self.spread).square()).sqrt()
        return -self.network(seen, self._time(noise).expand(len(x))) / noise

    def _time(self, sd: Tensor) -> Tensor:
        """From the smallest sd, 1 / L, to the largest, 1, evenly in log d: (B, 1) -> (B,)."""
        least = 1 / len(self.sds)
        if len(self.sds) == 1:
            return torch.ones_like(sd[:, 0])
        low, high = math.log(self.sds[-1]), math.log(self.sds[0])
        return least + (1 - least) * (sd[:, 0].log() - low) / (high - low)
