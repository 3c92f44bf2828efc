"""The ELBO of a guide that is itself a Pyro program, trained together with the model's weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor, nn

from inference.engine import Problem
from ppl_models.errors import ModelError


class PyroGuide:
    """Pyro's ELBO estimators over a guide program or an automatic guide.

    What is trained is every leaf of the first loss that takes a gradient, and all of
    ``model.parameters()`` and ``guide.parameters()``: so that a plain ``nn.Module`` called from a
    guide is trained too. A guide that is a module, or a method of one, is copied first; the trained
    copy is ``guide``.

    Raises:
        ModelError: the guide has nothing to train, or its sites are not those of the model.
    """

    def __init__(
        self, problem: Problem, guide: Callable[..., Any], particles: int, batch: int | None
    ) -> None:
        if batch is not None:
            raise ModelError(
                "batch_size works with the named guides; in a guide program, subsample with "
                "pyro.plate(..., subsample_size=...) in model and guide"
            )
        self.problem = problem
        self.model = problem.program.model
        torch.manual_seed(problem.seed % 2**63)  # within fit's own scope of random state
        if isinstance(guide, type) and issubclass(guide, AutoGuide):
            hidden = [site.name for site in problem.program.discrete]
            guide = guide(poutine.block(self.model, hide=hidden))
        self.guide = _own(guide, problem)
        settings: dict[str, Any] = {"num_particles": particles}
        if problem.program.discrete:
            nesting = problem.program.plate_nesting
            elbo: Any = TraceEnum_ELBO(max_plate_nesting=nesting, **settings)
            self.model = problem.program.enumerated()
        else:
            elbo = Trace_ELBO(**settings)
        self.elbo = elbo
        self._check_sites()
        first = elbo.differentiable_loss(self.model, self.guide, **problem.data)
        if not bool(torch.isfinite(first)):
            raise ModelError("the ELBO is not finite at the guide's start; check its supports")
        weights = {id(leaf): leaf for leaf in _leaves(first)}
        for module in (problem.model, self.guide):
            if isinstance(module, nn.Module):
                weights |= {id(p): p for p in module.parameters() if p.requires_grad}
        if not weights:
            raise ModelError(
                "the guide has nothing to train; declare its weights with pyro.param or "
                "nn.Parameter"
            )
        self.weights = list(weights.values())

    def _check_sites(self) -> None:
        """The guide must sample the continuous sites of the model, no more and no fewer."""
        trace: Any = poutine.trace(self.guide).get_trace(**self.problem.data)
        given = {
            name
            for name, site in trace.nodes.items()
            if site["type"] == "sample"
            and not isinstance(site["fn"], _Subsample)
            and not site["is_observed"]
            and not site["infer"].get("is_auxiliary")
        }
        wanted = {site.name for site in self.problem.program.sites}
        if given == wanted:
            return
        lacks, extra = sorted(wanted - given), sorted(given - wanted)
        summed = {site.name for site in self.problem.program.discrete}.intersection(extra)
        texts = [
            f"does not sample {', '.join(lacks)}" if lacks else "",
            f"samples {', '.join(extra)}" if extra else "",
        ]
        raise ModelError(
            f"the guide {' and '.join(filter(None, texts))}; it must sample the model's continuous "
            f"latent sites, {', '.join(sorted(wanted))}, by their names"
            + (": discrete sites are summed out" if summed else "")
        )

    def parameters(self) -> list[Any]:
        return self.weights

    def loss(self, step: int) -> Tensor:
        return self.elbo.differentiable_loss(self.model, self.guide, **self.problem.data)

    def draws(self, count: int) -> tuple[Tensor, Tensor]:
        values: list[dict[str, Tensor]] = []
        ratios = []
        names = [site.name for site in self.problem.program.sites]
        outputs = self.problem.outputs
        for _ in range(count):
            trace: Any = poutine.trace(self.guide).get_trace(**self.problem.data)
            values.append({name: trace.nodes[name]["value"] for name in names})
            ratios.append(-trace.log_prob_sum())
        stacked = {name: torch.stack([v[name] for v in values]) for name in names}
        x = outputs.unconstrain(stacked)
        return x[None], torch.stack(ratios) + outputs.log_joint(stacked)


def _own(guide: Callable[..., Any], problem: Problem) -> Callable[..., Any]:
    """The guide to train: a copy of a module, so that the user's stays as it was."""
    module = getattr(guide, "__self__", guide)
    if not isinstance(module, nn.Module) or module is problem.model:
        return guide
    if module is not guide and type(module) is type(problem.model):
        # a method of the model: that of the fit's own copy, whose weights are trained
        return getattr(problem.model, guide.__name__)
    # an automatic guide loses its model when it is copied, and so does the original
    parts = {n: m for n, m in module.named_modules() if isinstance(m, AutoGuide)}
    models = {name: part._model for name, part in parts.items()}
    copied = copy.deepcopy(module).to(device=problem.device, dtype=problem.dtype)
    for name, kept in models.items():
        parts[name]._model = kept
        copied.get_submodule(name)._model = kept  # type: ignore[union-attr]
    return copied if module is guide else getattr(copied, guide.__name__)


def _leaves(loss: Tensor) -> list[Tensor]:
    """The leaves of the graph of ``loss`` that take gradients."""
    found: list[Tensor] = []
    seen: set[Any] = set()
    stack: list[Any] = [loss.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)  # of the nodes that accumulate gradients
        if leaf is not None:
            found.append(leaf)
        stack.extend(parent for parent, _ in node.next_functions)
    return found
