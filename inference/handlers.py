"""Effect handlers: what a program's sites are given, and how far it runs."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor, nn
from torch.distributions import biject_to, dirichlet
from torch.func import vmap
from torch.overrides import TorchFunctionMode

from inference.sites import inverse_shape, is_deterministic, is_discrete, is_factor, parameter
from ppl_models.errors import ModelError

Values = dict[str, Tensor]


class Substitute(Messenger):
    """Give latent sites their values; count the log Jacobian where these are unconstrained."""

    def __init__(
        self, values: Values, *, constrained: bool, total: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.values = values
        self.constrained = constrained
        self.log_det: Tensor | float = 0.0
        self._total = total  # in which Jacobians are added up; by default their own

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["name"] not in self.values:
            return
        value = self.values[msg["name"]]
        if not self.constrained:
            transform = biject_to(msg["fn"].support)
            unconstrained, value = value, transform(value)
            log_det = transform.log_abs_det_jacobian(unconstrained, value)
            self.log_det = self.log_det + log_det.sum(dtype=self._total)
        msg["value"] = value


class AllMet(BaseException):  # no error, and no program's to catch
    """Ends a run of which no more is wanted."""


class UpToTheLast(Substitute):
    """``Substitute``, until all latent sites of some names have been met: no likelihood follows."""

    def __init__(self, values: Values, names: set[str], *, constrained: bool) -> None:
        super().__init__(values, constrained=constrained)
        self.met: dict[str, Any] = {}
        self._names = names

    def _pyro_sample(self, msg: Any) -> None:
        super()._pyro_sample(msg)
        if msg["name"] in self._names and not msg["is_observed"]:
            self.met[msg["name"]] = msg
            if len(self.met) == len(self._names):
                raise AllMet


class RealObservations(Messenger):
    """Observed integers and booleans as real numbers: Bernoulli and others refuse them.

    Outside plates, a distribution that is observed many times becomes as many distributions, so
    that predictions and pointwise log likelihoods have the shape of the data.
    """

    def _pyro_sample(self, msg: Any) -> None:
        value = msg["value"]
        plain = msg["is_observed"] and not is_deterministic(msg) and not is_factor(msg)
        if plain and isinstance(value, Tensor) and not msg["cond_indep_stack"]:
            fn = msg["fn"]
            batch = torch.broadcast_shapes(
                fn.batch_shape, value.shape[: value.dim() - fn.event_dim]
            )
            if batch != fn.batch_shape:
                msg["fn"] = fn.expand(batch)
        if msg["is_observed"] and isinstance(value, Tensor) and not value.is_floating_point():
            msg["value"] = value.to(torch.get_default_dtype())


def with_real_observations(model: Callable[..., Any]) -> Callable[..., Any]:
    """The program within ``RealObservations``."""
    call = model.forward if isinstance(model, nn.Module) else model

    @functools.wraps(call)  # keeps the signature, by which data are checked
    def run(**data: Any) -> Any:
        with RealObservations():
            return model(**data)

    return run


class Matching(Substitute):
    """Give latent sites their values where these have the shapes that the program asks for."""

    def _pyro_sample(self, msg: Any) -> None:
        super()._pyro_sample(msg)
        value = self.values.get(msg["name"])
        if value is not None and msg["fn"].shape() != value.shape:
            raise ModelError(
                f"{msg['name']}: the posterior has values of shape {tuple(value.shape)}, the "
                f"program with the new data asks for {tuple(msg['fn'].shape())}; predict for the "
                "same groups, or draw the site's new values by a program of your own"
            )


class Initialise(Messenger):
    """Draw each continuous latent site uniformly on (-2, 2) of its unconstrained space."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator
        self.last: str | None = None

    def _pyro_sample(self, msg: Any) -> None:
        if isinstance(msg["fn"], _Subsample):
            return
        self.last = msg["name"]
        if msg["is_observed"] or msg["value"] is not None or is_discrete(msg["fn"]):
            return
        distribution = msg["fn"]
        transform = biject_to(distribution.support)
        shape = inverse_shape(transform, distribution.shape())
        unit = torch.rand(shape, generator=self.generator, dtype=torch.float64, device="cpu")
        value = (4 * unit - 2).to(parameter(distribution))
        msg["value"] = transform(value)


class Unobserve(Messenger):
    """Sample the observed sites anew."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] and not is_deterministic(msg) and not is_factor(msg):
            msg["is_observed"] = False
            msg["value"] = None


class Functional(Messenger):
    """Sample by operations that ``vmap`` can make different, instead of ones in place."""

    def _pyro_sample(self, msg: Any) -> None:
        if (
            msg["value"] is None
            and not msg["is_observed"]
            and not isinstance(msg["fn"], _Subsample)
        ):
            with _OutOfPlace(), _plain_dirichlet():
                msg["value"] = msg["fn"](*msg["args"], **msg["kwargs"])


@contextlib.contextmanager
def _plain_dirichlet() -> Iterator[None]:
    """Dirichlet and beta variables without their autograd function, which ``vmap`` refuses."""
    before = dirichlet._Dirichlet
    dirichlet._Dirichlet = _Plain
    try:
        yield
    finally:
        dirichlet._Dirichlet = before


class _Plain:
    apply = staticmethod(torch._sample_dirichlet)  # pyright: ignore[reportPrivateImportUsage]


class _OutOfPlace(TorchFunctionMode):
    """Return new random numbers where a distribution would fill an empty tensor with them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        draw = _IN_PLACE.get(getattr(func, "__name__", ""))
        if draw is None:
            return func(*args, **(kwargs or {}))
        empty, *rest = args
        unit = torch.randn if draw is _normal else torch.rand
        return draw(
            unit(empty.shape, dtype=empty.dtype, device=empty.device), *rest, **kwargs or {}
        )


def _normal(unit: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    return mean + std * unit


def _uniform(unit: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    return low + (high - low) * unit


def _exponential(unit: Tensor, rate: float = 1.0) -> Tensor:
    return -(1 - unit).log().clamp(max=-torch.finfo(unit.dtype).tiny) / rate


def _cauchy(unit: Tensor, median: float = 0.0, sigma: float = 1.0) -> Tensor:
    return median + sigma * (torch.pi * (unit - 0.5)).tan()


_IN_PLACE = {
    "normal_": _normal,
    "uniform_": _uniform,
    "exponential_": _exponential,
    "cauchy_": _cauchy,
}


def simulate(once: Callable[[Tensor], Any], draws: int, seed: int) -> Any:
    """``draws`` independent runs of a random function, by vmap where it allows, else a loop."""
    index = torch.arange(draws)
    with torch.random.fork_rng(), warnings.catch_warnings():
        # vmap says where it loops inside, as for Gamma; whoever draws has not asked for vmap
        for text in ("There is a performance drop", "An output with one or more elements was resi"):
            warnings.filterwarnings("ignore", text, UserWarning)
        torch.manual_seed(seed % 2**63)
        try:
            with Functional():
                return vmap(once, randomness="different")(index)
        except (RuntimeError, NotImplementedError, ValueError):
            torch.manual_seed(seed % 2**63)
            runs = [once(i) for i in index]
            return {name: torch.stack([run[name] for run in runs]) for name in runs[0]}
