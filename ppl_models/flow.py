"""Normalising flows: an invertible map with a known Jacobian, and the density it makes of noise.

    x = T(z),  z ~ N(0, I),    log p(x) = log N(T^-1(x); 0, I) + log |det dT^-1 / dx|.

T is made of coupling layers: half of the coordinates stay as they are, and a network of them sets
a monotone function of each of the others; so both directions cost one pass. The function is affine
(RealNVP: Dinh, Sohl-Dickstein & Bengio 2017) or a rational-quadratic spline on [-B, B], the
identity outside (neural spline flows: Durkan, Bekasov, Murray & Papamakarios 2019), and then
affine, so that tails are scaled too. Networks and functions are zuko's, whose transforms have
neither state nor cache, so that they can be traced and batched by ``vmap``; the halves are slices,
where zuko's own coupling looks up a mask at every call.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints
from zuko.nn import MLP
from zuko.transforms import ComposedTransform, MonotonicAffineTransform, MonotonicRQSTransform

from ppl_models.base import Data, HasRows
from ppl_models.data import as_fields, finite
from ppl_models.errors import DataError, ModelError
from ppl_models.noise import Noise

Kind = Literal["spline", "realnvp"]


class Coupling(nn.Module):
    """An invertible map of R^D, the identity at first; ``forward`` and ``inverse`` with log-dets.

    Args:
        dim: D. In one dimension the functions have no network, only weights.
        kind: "spline" or "realnvp".
        layers: coupling layers, which leave the first and the second half as they are in turn.
        hidden: width of the two hidden layers of each network, whose activations are smooth, so
            that gradients of densities are.
        bins: of a spline.
        bound: B of a spline.

    Raises ``ModelError`` for settings out of range.
    """

    def __init__(
        self,
        dim: int,
        kind: Kind = "spline",
        *,
        layers: int = 4,
        hidden: int = 64,
        bins: int = 8,
        bound: float = 5.0,
    ) -> None:
        super().__init__()
        for name, value, least in (("dim", dim, 1), ("layers", layers, 1), ("hidden", hidden, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ModelError(f"{name}={value!r}: give a whole number of at least {least}")
        if isinstance(bins, bool) or not isinstance(bins, int) or bins < 2 or not bound > 0:
            raise ModelError(f"bins={bins!r}, bound={bound!r}: give 2 or more, and a positive one")
        if kind not in ("spline", "realnvp"):
            raise ModelError(f"kind={kind!r}: choose 'spline' or 'realnvp'")
        spline = kind == "spline"
        self.dim = dim
        self.layers = nn.ModuleList(
            _Layer(
                dim,
                univariate=partial(_bent, bins=bins, bound=bound) if spline else _affine,
                numbers=3 * bins + 1 if spline else 2,
                keeps_first=layer % 2 == 0,
                hidden=hidden,
            )
            for layer in range(layers)
        )

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """T(z) and log |det dT / dz|: (..., D) -> (..., D), (...,)."""
        log_det = z.new_zeros(z.shape[:-1])
        for layer in self.layers:
            z, change = layer(z)
            log_det = log_det + change
        return z, log_det

    def inverse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """T^-1(x) and log |det dT^-1 / dx|: (..., D) -> (..., D), (...,)."""
        log_det = x.new_zeros(x.shape[:-1])
        for layer in reversed(self.layers):
            x, change = layer(x, inverse=True)
            log_det = log_det + change
        return x, log_det


class _Layer(nn.Module):
    """Half of the coordinates set a monotone function of each of the others; the identity at first.

    Args:
        dim: D; of one dimension nothing is kept, and the function is a weight.
        univariate: the functions by their numbers, (..., D/2, numbers).
        numbers: how many set a function.
        keeps_first: which half stays as it is.
        hidden: width of the network.
    """

    def __init__(
        self,
        dim: int,
        univariate: Callable[[Tensor], Any],
        numbers: int,
        *,
        keeps_first: bool,
        hidden: int,
    ) -> None:
        super().__init__()
        self.univariate = univariate
        half = dim // 2
        self.keeps_first = keeps_first or dim == 1
        self.halves = [half, dim - half]
        kept, moved = self.halves if self.keeps_first else self.halves[::-1]
        self.network: nn.Module | None = None
        if kept:
            self.network = MLP(kept, moved * numbers, (hidden, hidden), activation=nn.SiLU)
            for parameter in self.network[-1].parameters():
                nn.init.zeros_(parameter)
        else:
            self.numbers = nn.Parameter(torch.zeros(numbers))

    def forward(self, x: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
        first, second = x.split(self.halves, -1)
        kept, moved = (first, second) if self.keeps_first else (second, first)
        if self.network is None:
            numbers = self.numbers.expand(*moved.shape, -1)
        else:
            numbers = self.network(kept).unflatten(-1, (moved.shape[-1], -1))
        function = self.univariate(numbers)
        moved, log_det = (function.inv if inverse else function).call_and_ladj(moved)
        halves = [kept, moved] if self.keeps_first else [moved, kept]
        return torch.cat(halves, -1), log_det.sum(-1)


def _affine(numbers: Tensor) -> MonotonicAffineTransform:
    shift, log_scale = numbers.unbind(-1)
    return MonotonicAffineTransform(shift, log_scale)


def _bent(numbers: Tensor, *, bins: int, bound: float) -> ComposedTransform:
    """A spline, then an affine function."""
    widths, heights, slopes, affine = numbers.split((bins, bins, bins - 1, 2), -1)
    return ComposedTransform(
        MonotonicRQSTransform(widths, heights, slopes, bound=bound), _affine(affine)
    )


class Flow(HasRows):
    """A density over rows: a flow of standard normal noise, trained by maximum likelihood.

    ``fit(Flow(2), x, SVI(batch_size=256))`` trains it; the trained model is ``fit(...).model``. The
    program observes rows and has no latent sites. A model that has not been trained takes its
    units, the mean and sd of each column, from the rows it is first given to fit.

    Args:
        dim: D, the numbers of a row.
        kind, layers, hidden, bins, bound: as for ``Coupling``; B is in sds of the columns.

    Example:
        >>> import torch
        >>> from inference import SVI, fit
        >>> x = torch.randn(500, 2).double().exp()
        >>> flow = fit(Flow(2), x, SVI(steps=50, batch_size=100, plateau=False)).model
        >>> flow.log_density(x).shape, flow.sample(3).shape
        (torch.Size([500]), torch.Size([3, 2]))
    """

    centre: Tensor
    scale: Tensor
    trained = False

    def __init__(
        self,
        dim: int,
        kind: Kind = "spline",
        *,
        layers: int = 6,
        hidden: int = 64,
        bins: int = 8,
        bound: float = 5.0,
    ) -> None:
        super().__init__()
        self.map = Coupling(dim, kind, layers=layers, hidden=hidden, bins=bins, bound=bound)
        self.register_buffer("centre", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def prepare(self, data: Any) -> Data:
        """``x`` (N, D) from an array or a mapping with x.

        Raises ``DataError`` for another shape, values that are missing or infinite, and columns
        that do not vary, which have no density.
        """
        fields = as_fields(data if isinstance(data, dict) else {"x": data})
        if fields.keys() != {"x"} or not isinstance(fields["x"], Tensor):
            raise DataError("give an array of rows, or a mapping with x alone")
        x = fields["x"]
        if x.dim() != 2 or x.shape[1] != self.map.dim or len(x) < 2:
            raise DataError(
                f"x: has shape {tuple(x.shape)}; give at least two rows of {self.map.dim}"
            )
        x = finite("x", x if x.is_floating_point() else x.double())
        if not self.trained:
            scale = x.std(0)
            if not bool((scale > 0).all()):
                column = int((scale <= 0).nonzero()[0])
                raise DataError(f"x: column {column} does not vary; leave it out")
            self.centre.copy_(x.mean(0))
            self.scale.copy_(scale)
        return {"x": x}

    def forward(self, x: Tensor) -> None:  # type: ignore[override]
        """Site x, observed."""
        with pyro.plate("rows", len(x), dim=-1):
            pyro.sample("x", FlowDensity(self, len(x)), obs=x)

    def log_density(self, x: Tensor) -> Tensor:
        """Log p(x) of rows, in nats: (..., D) -> (...,)."""
        z, log_det = self.map.inverse((x.to(self.centre) - self.centre) / self.scale)
        normal = -0.5 * (z.square().sum(-1) + self.map.dim * math.log(2 * math.pi))
        return normal + log_det - self.scale.log().sum()

    @torch.no_grad()
    def sample(self, count: int, *, seed: int = 0) -> Tensor:
        """Independent draws: (count, D)."""
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise DataError(f"count={count!r}: give a whole number of at least 1")
        like = self.centre
        noise = Noise.seeded(seed, 1, device=like.device, dtype=like.dtype)
        return self.push(noise.normal(count, self.map.dim)[0])

    def push(self, z: Tensor) -> Tensor:
        """The rows that noise becomes: (..., D) -> (..., D)."""
        return self.centre + self.scale * self.map(z)[0]


class FlowDensity(TorchDistribution):
    """The law of rows of a ``Flow``, as a distribution of Pyro."""

    def __init__(self, flow: Flow, *batch: int) -> None:
        self.flow = flow
        super().__init__(torch.Size(batch), torch.Size([flow.map.dim]), validate_args=False)

    @property
    def arg_constraints(self) -> dict[str, constraints.Constraint]:
        return {}

    @property
    def support(self) -> constraints.Constraint:
        return constraints.real_vector

    def expand(self, batch_shape: Any, _instance: Any = None) -> FlowDensity:
        return FlowDensity(self.flow, *batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.flow.log_density(value).expand(self.batch_shape)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        with torch.no_grad():
            shape = self._extended_shape(sample_shape)
            like = self.flow.centre
            return self.flow.push(torch.randn(shape, dtype=like.dtype, device=like.device))
