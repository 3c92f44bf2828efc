"""Normalising flows: an invertible map with a known Jacobian, and the density it makes of noise.

    x = T(z),  z ~ N(0, I),    log p(x) = log N(T^-1(x); 0, I) + log |det dT^-1 / dx|.

T is made of coupling layers: half of the coordinates stay as they are, and a network of them sets
a monotone function of each of the others; so both directions cost one pass. The function is affine
(RealNVP: Dinh, Sohl-Dickstein & Bengio 2017) or a rational-quadratic spline on [-B, B], the
identity outside (neural spline flows: Durkan, Bekasov, Murray & Papamakarios 2019), and then
affine, so that tails are scaled too. The layers are those of zuko, whose transforms are functions
without state or cache, so that they can be traced and batched by ``vmap``.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Literal

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints
from zuko.flows.coupling import GeneralCouplingTransform
from zuko.flows.gaussianization import ElementWiseTransform
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
        layers: coupling layers, which leave odd and even coordinates as they are in turn.
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
        shapes: list[Any] = [(), ()] if kind == "realnvp" else [*_knots(bins), (), ()]
        self.dim = dim
        self.layers = nn.ModuleList(
            GeneralCouplingTransform(
                dim,
                mask=torch.arange(dim) % 2 == layer % 2,  # type: ignore[arg-type]
                univariate=MonotonicAffineTransform
                if kind == "realnvp"
                else partial(_bent, bound=bound),
                shapes=shapes,
                hidden_features=(hidden, hidden),
                activation=nn.SiLU,
            )
            for layer in range(layers)
        )
        for layer in self.layers:
            _zero(layer)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """T(z) and log |det dT / dz|: (..., D) -> (..., D), (...,)."""
        log_det = z.new_zeros(z.shape[:-1])
        for layer in self.layers:
            z, change = layer().call_and_ladj(z)
            log_det = log_det + change
        return z, log_det

    def inverse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """T^-1(x) and log |det dT^-1 / dx|: (..., D) -> (..., D), (...,)."""
        log_det = x.new_zeros(x.shape[:-1])
        for layer in reversed(self.layers):
            x, change = layer().inv.call_and_ladj(x)
            log_det = log_det + change
        return x, log_det


@torch.no_grad()
def _zero(layer: Any) -> None:
    """Make a layer the identity: what sets its functions is zero."""
    single = isinstance(layer, ElementWiseTransform)  # of one dimension
    for parameter in layer.phi if single else layer.hyper[-1].parameters():
        parameter.zero_()


def _knots(bins: int) -> list[tuple[int]]:
    """Widths, heights and slopes of a spline."""
    return [(bins,), (bins,), (bins - 1,)]


def _bent(
    widths: Tensor, heights: Tensor, slopes: Tensor, shift: Tensor, scale: Tensor, *, bound: float
) -> ComposedTransform:
    """A spline, then an affine function."""
    spline = MonotonicRQSTransform(widths, heights, slopes, bound=bound)
    return ComposedTransform(spline, MonotonicAffineTransform(shift, scale))


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
        >>> flow = fit(Flow(2), x, SVI(steps=50, batch_size=100)).model
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
