"""All that a sampler sees of a model: an unnormalised log density on R^D, batched over chains."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any, Literal, final

import torch
from torch import Tensor

from inference import graph
from inference.codegen.build import Attempt, Density
from inference.codegen.compiler import CompilerError
from inference.codegen.tape import Unrepaid
from inference.graph import Tier, ValueAndGrad, logger
from inference.native import Native
from inference.program import Site
from ppl_models.errors import ModelError
from ppl_models.noise import Noise

_STARTS = 100
_INDUCTOR = 6.0  # seconds that Inductor takes, at the least
_REPAID = 200  # evaluations that repay a C compiler: less than a second


@final
class Target:
    """An unnormalised log density on R^D.

    Args:
        function: the log density of one point, (D,) -> (), made of torch operations.
        dim: D.
        dtype, device: of the points.
        tier: how to evaluate; ``"auto"`` compiles where ``calls`` evaluations would repay it.
        calls: the number of batched evaluations ahead, a hint for ``tier="auto"``.
        describe: names the cause where no starting point has a finite density.
        sites: the sites whose values a point holds, in order; empty for a plain density.
        watch: called before every evaluation; it may raise.
        shared: what is known of the density as C, for other targets of the same function.
        compiling: seconds that a compiler may take, as predicted; None for any.
    """

    groups = 1
    """Step sizes are pooled over all chains; see ``Replicated`` for several groups."""

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        dim: int,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
        tier: Tier | Literal["auto"] = "auto",
        calls: int = 0,
        describe: Callable[[Tensor], str] | None = None,
        sites: tuple[Site, ...] = (),
        watch: Callable[[], None] | None = None,
        shared: Attempt | None = None,
        compiling: float | None = None,
    ) -> None:
        self.function = function
        self.dim = dim
        self.dtype = dtype
        self.device = torch.device(device)
        self.tier: Tier | Literal["auto"] = tier
        self.calls = calls
        self.sites = sites
        self._describe = describe
        self._watch = watch
        self.graphs: dict[Any, Any] = {}
        """Steps of samplers on this density, captured for a GPU."""
        self._evaluators: dict[int, ValueAndGrad] = {}
        self._densities: dict[int, Callable[[Tensor], Tensor]] = {}
        self._graph: Any = None
        self._seldom = False
        self._compiling = compiling
        self._c = Attempt() if shared is None else shared

    def log_density(self, x: Tensor) -> Tensor:
        """(C, D) -> (C,)."""
        evaluate = self.evaluator(x)
        alone = self._densities.get(len(x))
        if alone is not None and self._watch is not None:
            self._watch()
        return evaluate(x)[0] if alone is None else alone(x)

    def log_density_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(C, D) -> (C,), (C, D)."""
        return self.evaluator(x)(x)

    def evaluator(self, x: Tensor) -> ValueAndGrad:
        """The function behind ``log_density_and_grad`` for as many chains as ``x`` has."""
        chains = len(x)
        if chains not in self._evaluators:
            self._evaluators[chains] = self._watched(self._build(x))
        return self._evaluators[chains]

    def native(self, x: Tensor) -> Native | None:
        """The same as a C function for as many chains as ``x`` has; None where there is none.

        Who calls that function asks for it anew every tenth of a second or so, since ``watch`` is
        called here.
        """
        if self._watch is not None:
            self._watch()
        self.evaluator(x)
        density = self._as_c(x)
        return None if density is None else density.native

    def writes_c(self) -> bool:
        """Whether the work ahead repays a C compiler, on this device."""
        wanted = self.tier == "compiled" or (self.tier == "auto" and self.calls >= _REPAID)
        return wanted and self.device.type == "cpu" and self._c.compiles

    def uncompiled(self) -> Target:
        """The same density, for numbers of points met too seldom to trace or compile for each.

        The graph of one point is replayed by ``vmap`` at every call.
        """
        other = copy.copy(self)
        other._seldom = True
        other._evaluators, other._densities = {}, {}
        return other

    def over(self, function: Callable[[Tensor], Tensor]) -> Target:
        """Another density with the settings of this one, such as that in other coordinates."""
        return Target(
            function,
            self.dim,
            dtype=self.dtype,
            device=self.device,
            tier=self.tier,
            calls=self.calls,
            watch=self._watch,
            compiling=self._compiling,
        )

    def start(self, noise: Noise) -> Tensor:
        """Starting points uniform on (-2, 2)^D with a finite density and gradient: (C, D).

        Raises ``ModelError`` after 100 attempts, naming what is not finite.
        """
        x = 4 * noise.fold(0).uniform(self.dim) - 2
        bad = x[0]
        for attempt in range(1, _STARTS + 1):
            value, gradient = self.log_density_and_grad(x)
            good = torch.isfinite(value) & torch.isfinite(gradient).all(-1)
            if bool(good.all()):
                return x
            bad = x[~good][0]
            x = torch.where(good[:, None], x, 4 * noise.fold(attempt).uniform(self.dim) - 2)
        cause = self._describe(bad) if self._describe else "the log density is not finite"
        raise ModelError(
            f"no starting point in {_STARTS} attempts: {cause}; check the data's scale and the "
            "priors' supports at this site"
        )

    def traces(self) -> bool:
        """Whether the program is run once and replayed, rather than run at every call."""
        if self.tier == "eager":
            return False
        return self._c.density is not None or self._single(quiet=True) is not self.function

    def _watched(self, evaluate: ValueAndGrad) -> ValueAndGrad:
        watch = self._watch
        if watch is None:
            return evaluate

        def watched(x: Tensor) -> tuple[Tensor, Tensor]:
            watch()
            return evaluate(x)

        return watched

    # -- tiers -----------------------------------------------------------------------------------

    def _as_c(self, x: Tensor) -> Density | None:
        """The density as a C function, where that is wanted and can be; it serves any chains."""
        if self.tier not in ("auto", "compiled") or self.device.type != "cpu":
            return None
        if not self._c.tried and self.writes_c():
            density = self._written_as_c(x)
            self._c.density, self._c.tried = density, True
        return self._c.density

    def _written_as_c(self, x: Tensor) -> Density | None:
        try:
            threads = torch.get_num_threads()
            calls = None if self.tier == "compiled" else self.calls
            density = Density(
                self.function, self.dim, self.dtype, threads, calls=calls, seconds=self._compiling
            )
        except CompilerError as error:
            logger.warning("%s; the traced program is used, which is slower.", error)
            self._c.compiles = False
            return None
        except Unrepaid as error:
            logger.debug("%s", error)
            self._c = Attempt()  # of its own: another target may have more work ahead
            return None
        except Exception as error:  # a program may fail in its own way where it is recorded
            logger.debug("The program is not written as C (%s).", _line(error))
            return None
        if not graph.agrees(density, self.function, x):
            logger.warning("The program as C disagrees with the program; it is not used.")
            return None
        return density

    def _single(self, *, quiet: bool = False) -> Callable[[Tensor], Tensor]:
        """The traced function of one point; the function itself where it cannot be traced."""
        if self._graph is None:
            example = torch.linspace(-0.7, 0.9, self.dim, dtype=self.dtype, device=self.device)
            try:
                self._graph = graph.trace(self.function, example)
            except Exception as error:
                reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
                logger.log(
                    logging.DEBUG if quiet else logging.WARNING,
                    "The program cannot be traced (%s); it runs eagerly, which is slower.",
                    reason,
                )
                self._graph = self.function
        return self._graph

    def _build(self, x: Tensor) -> ValueAndGrad:
        if self.tier == "eager" or self.dim == 0:
            return graph.eager(self.function)
        density = self._as_c(x)
        if density is not None:
            return density
        single = self._single()
        if single is self.function:
            return graph.eager(self.function)
        if self._seldom:
            mapped = graph.eager(single)
            if graph.agrees(mapped, self.function, x):
                return mapped
        try:
            traced = graph.batched(single, x)
        except RuntimeError as error:
            logger.warning("Chains cannot be batched (%s); they run in turn.", _line(error))
            return lambda points: graph.loop(single, points)
        replay: ValueAndGrad = traced.forward  # type: ignore[assignment]
        if not graph.agrees(replay, self.function, x):
            logger.warning("The traced program disagrees with the program; it runs eagerly.")
            return graph.eager(self.function)
        if not self._compiled_by_inductor(traced):
            self._densities[len(x)] = graph.value_only(traced)
            return replay
        if not graph.has_compiler():
            logger.warning(
                "No C++ compiler was found; the traced program is used, which is slower."
            )
            return replay
        try:
            fast = graph.compiled(graph.batched(single, x, decompose=True), x)
        except Exception as error:
            logger.warning("The compiler failed (%s); the traced program is used.", _line(error))
            return replay
        if not graph.agrees(fast, self.function, x):
            logger.warning("The compiled program disagrees with the program; it is not used.")
            return replay
        return fast

    def _compiled_by_inductor(self, traced: Any) -> bool:
        """Whether Inductor compiles a graph, which takes it seconds."""
        if self.tier == "traced" or not self._c.compiles:
            return False
        if self._compiling is not None and self._compiling < _INDUCTOR:
            return False
        return self.tier == "compiled" or graph.worth_compiling(traced, self.calls)


def _line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
