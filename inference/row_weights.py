"""Log weights row by row: what every bound on log p(x) is made of.

    log w_ki = log p(x_i, z_ki) - log q(z_ki | x_i),   z_ki ~ q(z_i | x_i),

of a model whose rows are independent (``HasRows``), by running its program and its guide under
Pyro's handlers with a plate of particles around them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor, nn
from torch.distributions import kl_divergence
from torch.func import functional_call

from ppl_models.base import Data, HasRows, Params
from ppl_models.errors import ModelError


class Weighed(NamedTuple):
    """Draws of the guide and their log weights."""

    log_weight: Tensor  # (K, B)
    latents: Params  # {site: (K, B, *event)}


class Called(nn.Module):
    """A model whose weights can be swapped, whatever is called of it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, call: Callable[[], Any]) -> Any:
        return call()


def with_weights(model: nn.Module, weights: Params, call: Callable[[], Any]) -> Any:
    """What ``call`` returns while the model has these weights."""
    named = {f"model.{name}": value for name, value in weights.items()}
    return functional_call(Called(model), named, (call,))


def weigh(model: HasRows, data: Data, particles: int = 1, *, exact: bool = False) -> Weighed:
    """Draw from the guide, and weigh.

    Args:
        model: with the weights to use.
        data: rows, as a step of training or a test sees them.
        particles: K, draws for each row.
        exact: use the Kullback-Leibler divergence of a site in closed form where there is one,
            instead of log q - log p at the draw: the same expectation, with less noise, but no
            weight for importance sampling.
    """
    guide, model_trace = _traces(model, data, particles)
    rows = model.rows(data)
    latents = {name: site["value"] for name, site in _sampled(guide).items()}
    total: Any = 0.0
    for name, site in _sites(model_trace).items():
        if name in latents:
            total = total + _against(name, _sampled(guide)[name], site, rows, exact=exact)
        else:
            total = total + _log_prob(name, site, rows)
    return Weighed(total.expand(particles, rows), _spread(latents, particles, rows))


def log_joint(model: HasRows, data: Data, latents: Params) -> Tensor:
    """Log p(x_i, z_ki) of given values {site: (K, B, *event)}: (K, B)."""
    particles, rows = _leading(model, data, latents)
    with _particles(particles):
        replayed: Any = poutine.trace(poutine.condition(model, data=_inner(latents))).get_trace(
            **data
        )
    sites = _sites(replayed)
    total: Any = sum(_log_prob(name, site, rows) for name, site in sites.items())
    return total.expand(particles, rows)


def log_guide(model: HasRows, data: Data, latents: Params) -> Tensor:
    """Log q(z_ki | x_i) of given values: (K, B)."""
    particles, rows = _leading(model, data, latents)
    with _particles(particles):
        conditioned = poutine.condition(model.guide, data=_inner(latents))
        trace: Any = poutine.trace(conditioned).get_trace(**data)
    sites = _sites(trace)
    total: Any = sum(_log_prob(name, site, rows) for name, site in sites.items())
    return total.expand(particles, rows)


def guided(model: HasRows, data: Data, particles: int) -> Params:
    """Draws of the guide: {site: (K, B, *event)}."""
    with _particles(particles):
        trace: Any = poutine.trace(model.guide).get_trace(**data)
    latents = {name: site["value"] for name, site in _sampled(trace).items()}
    return _spread(latents, particles, model.rows(data))


def held(model: HasRows, call: Callable[[], Tensor]) -> Tensor:
    """What ``call`` returns with the model's weights held, so that no gradient reaches them."""
    weights = {name: value.detach() for name, value in model.named_parameters()}
    return with_weights(model, weights, call)


def check(model: HasRows, data: Data) -> None:
    """Refuse programs whose rows cannot be trained one by one. Raises ``ModelError``.

    Every site must be in the plate over the rows, the guide must sample the latent sites of the
    program, and its draws must be differentiable.
    """
    guide, model_trace = _traces(model, data, 2)
    sites, sampled, rows = _sites(model_trace), _sampled(guide), model.rows(data)
    latent = {name for name, site in sites.items() if not site["is_observed"]}
    if latent != sampled.keys():
        texts = [
            f"does not sample {', '.join(sorted(latent - sampled.keys()))}",
            f"samples {', '.join(sorted(sampled.keys() - latent))}",
        ]
        wrong = [text for text in texts if not text.endswith(" ")]
        raise ModelError(
            f"the guide {' and '.join(wrong)}; it must sample the program's latent sites, "
            f"{', '.join(sorted(latent)) or 'of which there are none'}"
        )
    for name, site in {**sites, **sampled}.items():
        _log_prob(name, site, rows)
    for name, site in sampled.items():
        if not site["fn"].has_rsample:
            raise ModelError(
                f"{name}: draws of a {type(site['fn']).__name__} have no gradient; sum the site "
                "out in the program, or use a relaxed distribution in the guide"
            )
    for trace in (model_trace, guide):
        for name, node in trace.nodes.items():
            if node["type"] == "param" and name not in dict(model.named_parameters()):
                raise ModelError(f"{name}: declare it as an nn.Parameter instead of by pyro.param")


def faulty(model: HasRows, data: Data) -> str:
    """The first site whose log density is not finite, in words."""
    guide, model_trace = _traces(model, data, 1)
    rows = model.rows(data)
    for where, sites in (("guide", _sampled(guide)), ("program", _sites(model_trace))):
        for name, site in sites.items():
            bad = ~torch.isfinite(_log_prob(name, site, rows)).reshape(-1, rows).all(0)
            if bool(bad.any()):
                return f"site '{name}' of the {where} at row {int(bad.nonzero()[0])} of a minibatch"
    return "no site of the program at the weights before the step; its gradient"


def _traces(model: HasRows, data: Data, particles: int) -> tuple[Any, Any]:
    with _particles(particles):
        guide: Any = poutine.trace(model.guide).get_trace(**data)
        replayed: Any = poutine.trace(poutine.replay(model, trace=guide)).get_trace(**data)
    return guide, replayed


def _particles(number: int) -> Any:
    """A plate around the rows; for one particle none, so that modules see rows alone."""
    if number == 1:
        return contextlib.nullcontext()
    return pyro.plate("particles", number, dim=-2)


def _inner(latents: Params) -> Params:
    return {k: v[0] if len(v) == 1 else v for k, v in latents.items()}


def _leading(model: HasRows, data: Data, latents: Params) -> tuple[int, int]:
    particles = max((len(value) for value in latents.values()), default=1)
    return particles, model.rows(data)


def _spread(latents: Params, particles: int, rows: int) -> Params:
    """Values with both leading dimensions, whether or not a plate repeated them."""
    return {
        name: value.reshape(particles, rows, *value.shape[1:])
        if particles == 1
        else value.expand(particles, rows, *value.shape[2:])
        for name, value in latents.items()
    }


def _sites(trace: Any) -> dict[str, Any]:
    """The sample sites of a program, observed ones too."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not isinstance(site["fn"], _Subsample)
    }


def _sampled(trace: Any) -> dict[str, Any]:
    return {name: site for name, site in _sites(trace).items() if not site["is_observed"]}


def _log_prob(name: str, site: Any, rows: int) -> Tensor:
    """The log density of a site's rows: (B,) or (K, B)."""
    value = site["fn"].log_prob(site["value"])
    value = scale_and_mask(value, site["scale"], site["mask"])
    return _by_row(name, value, rows)


def _against(name: str, q: Any, p: Any, rows: int, *, exact: bool) -> Tensor:
    """Log p - log q of a latent site, or minus its divergence: (B,) or (K, B)."""
    if exact:
        try:
            divergence = kl_divergence(q["fn"], p["fn"])
        except NotImplementedError:
            pass
        else:
            return _by_row(name, -scale_and_mask(divergence, q["scale"], q["mask"]), rows)
    return _log_prob(name, p, rows) - _log_prob(name, q, rows)


def _by_row(name: str, value: Tensor, rows: int) -> Tensor:
    if value.dim() == 0 or value.shape[-1] != rows or value.dim() > 2:
        raise ModelError(
            f"{name}: has a log density of shape {tuple(value.shape)} for {rows} rows; sample it "
            "within a plate over the rows at dim=-1, with all else as event dimensions (to_event)"
        )
    return value
