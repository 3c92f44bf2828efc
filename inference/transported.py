"""Markov chains on the base space of a map that variational inference has fitted.

An approximation x = T(z), z ~ N(0, I), that is close to the posterior turns it into the density

    p*(z) = p(T(z)) |det dT / dz|,

close to N(0, I), where chains mix: strong correlations, bends and funnels are left to T. Draws of
any chain on p* become draws of p by T, exactly: a poor map makes the chain slow and not wrong.
Parno & Marzouk (2018), "Transport map accelerated Markov chain Monte Carlo"; Hoffman, Sountsov,
Dillon, Langmore, Tran & Vasudevan (2019), "NeuTra-lizing bad geometry in Hamiltonian Monte Carlo
using neural transport".
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from inference.engine import Engine, Posterior, Problem, TierChoice
from inference.guides import Approximation, Family, log_normal
from inference.nuts import NUTS
from inference.outputs import Outputs
from inference.program import Program
from inference.sampling import Sampler
from inference.stopping import Clock
from inference.svi import SVI, Flat
from inference.target import Target
from ppl_models.base import Params
from ppl_models.errors import EngineError
from ppl_models.noise import Noise

_MAPS = ("realnvp", "flow", "full-rank", "mean-field")  # as many numbers of noise as of x


@dataclass(frozen=True)
class Transported(Engine):
    """A sampler on the base space of a map fitted by ``SVI``: transport-map MCMC.

    Args:
        kernel: the sampler, with its settings, such as ``NUTS()``, ``HMC()`` or ``MALA()``.
        guide: the map: a family of invertible ones, "realnvp", "flow" (of splines, which cost some
            three times as much per gradient), "full-rank" or "mean-field"; or ``SVI(guide=...,
            steps=...)`` with one of them.

    The draws are those of the posterior; ``lp`` is its log density. The map's ELBO is among the
    posterior's attributes. A limit on the time gives half of it to the map at most.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> from inference import NUTS, SVI, Transported, fit
        >>> def funnel():
        ...     v = pyro.sample("v", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(0.0, (v / 2).exp()))
        >>> engine = Transported(NUTS(draws=500), SVI(guide="realnvp", steps=500))
        >>> fit(funnel, None, engine).posterior.draws["v"].shape
        torch.Size([4, 500])
    """

    kernel: Sampler = field(default_factory=NUTS)
    guide: Family | SVI = "realnvp"

    stops_at: ClassVar[tuple[str, ...]] = Sampler.stops_at

    def __post_init__(self) -> None:
        if not isinstance(self.kernel, Sampler) or getattr(self.kernel, "proposal", None):
            raise EngineError(
                f"Transported({self.kernel!r}): give a kernel with its settings, such as NUTS()"
            )
        name = self.guide.guide if isinstance(self.guide, SVI) else self.guide
        if name not in _MAPS:
            raise EngineError(
                f"Transported(guide={name!r}): the map must be invertible; choose one of "
                f"{', '.join(repr(legal) for legal in _MAPS)}, or SVI(guide=...) with one"
            )

    def check(self, model: Any, program: Program) -> None:
        self.kernel.check(model, program)

    def run(self, problem: Problem) -> Posterior:
        """Fit the map, sample on its base space, and map the draws."""
        begin = time.perf_counter()
        engine = self.guide if isinstance(self.guide, SVI) else SVI(guide=self.guide)
        limit = None if problem.clock.seconds is None else problem.clock.left / 2
        apart = problem.noise(1).fold(21).integers()[0]  # the map knows nothing of chains' numbers
        own = replace(problem, seed=apart, clock=Clock(limit))
        flat = Flat(own, engine.guide, engine)  # type: ignore[arg-type]  # one of the maps
        elbos, steps, _, _, found = engine.ascend(flat, own)
        fitted = time.perf_counter() - begin
        shared = {f.name: getattr(problem, f.name) for f in fields(Problem)}
        posterior = self.kernel.run(Pulled(**shared, transport=flat.family.requires_grad_(False)))
        z = posterior.unconstrained
        assert z is not None  # a sampler's always are
        x, log_det = push(flat.family, z)
        return replace(
            posterior,
            stats=posterior.stats | {"lp": posterior.stats["lp"] - log_det},
            findings=[*posterior.findings, *found],
            seconds=posterior.seconds | {"map": fitted, "total": time.perf_counter() - begin},
            attributes=posterior.attributes | {"map_elbo": elbos[-1], "map_steps": steps},
            unconstrained=x,
        )


def push(transport: Approximation, z: Tensor) -> tuple[Tensor, Tensor]:
    """T(z) and log |det dT / dz|: (..., D) -> (..., D), (...,)."""
    rows = z.reshape(-1, z.shape[-1])
    x, log_q = transport(rows)
    return x.reshape(z.shape), (log_normal(rows) - log_q).reshape(z.shape[:-1])


def pulled_back(
    function: Callable[[Tensor], Tensor], transport: Approximation
) -> Callable[[Tensor], Tensor]:
    """The log density of z where that of x = T(z) is ``function``: (D,) -> ()."""

    def log_density(z: Tensor) -> Tensor:
        x, log_det = push(transport, z)
        return function(x) + log_det

    return log_density


@dataclass(frozen=True)
class Pulled(Problem):
    """A problem seen from the base space of a map: what samplers need of it."""

    transport: Approximation = field(kw_only=True)

    def target(self, tier: TierChoice, calls: int, *, wide: bool = False) -> Target:
        """The density p(T(z)) |det dT / dz|."""
        plain = super().target(tier, calls, wide=wide)
        return plain.over(pulled_back(plain.function, self.transport))

    @cached_property
    def outputs(self) -> Outputs:
        return _Pushed(self.program, self.dtype, self.device, self.transport)


class _Pushed(Outputs):
    """Values of points of the base space."""

    def __init__(
        self, program: Program, dtype: torch.dtype, device: torch.device, transport: Approximation
    ) -> None:
        super().__init__(program, dtype, device)
        self.transport = transport

    def values(self, x: Tensor, noise: Noise) -> Params:
        return super().values(push(self.transport, x)[0], noise)
