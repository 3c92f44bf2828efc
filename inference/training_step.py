"""One step of training as a plain function: the loss of a minibatch and its gradient, in tiers.

Pyro's handlers cost milliseconds at every call; their tensor operations, traced once for a
minibatch of fixed size, are replayed (``traced``) or compiled by Inductor (``compiled``). Random
numbers are drawn by torch's global generator in all tiers, which the caller seeds at every step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from inference import graph
from inference.engine import TierChoice
from inference.graph import logger
from inference.objectives import Objective
from inference.row_weights import with_weights
from inference.simplify import simplified
from ppl_models.base import Data, HasRows, Params
from ppl_models.errors import ModelError

Precision = Literal["float32", "bfloat16"]

_REPAID_S = 60.0  # of predicted replay, above which compiling repays its start


class Step(NamedTuple):
    """A step in the tier that was chosen."""

    tier: str
    call: Callable[[Params, Data], tuple[Tensor, list[Tensor]]]
    """Weights, a minibatch -> the mean loss () and its gradients, in the order of the weights."""


def step_function(
    model: HasRows,
    objective: Objective,
    like: Data,
    *,
    tier: TierChoice,
    steps: int,
    precision: Precision | None = None,
    refresh: bool = True,
) -> Step:
    """The step for minibatches like ``like``.

    Args:
        model: its present weights are those that are trained.
        objective: the loss of each row.
        like: a minibatch as ``model.take`` gives it.
        tier: of evaluation; "auto" decides by the graph and the number of steps.
        steps: how many are ahead.
        precision: "bfloat16" runs the networks in it (autocast) and keeps weights as they are.
        refresh: whether every step sees its rows ``model.refreshed``.

    Raises ``ModelError`` where no weight takes a gradient.
    """
    plain = _plain(model, objective, like, precision, refresh=refresh)
    weights = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    names, fields = list(weights), [k for k, v in like.items() if isinstance(v, Tensor)]
    examples = [*weights.values(), *(like[name] for name in fields)]
    if not names:
        raise ModelError("the model has no weights to train; declare them as nn.Parameter")

    def step(flat: Callable[..., Any]) -> Callable[[Params, Data], tuple[Tensor, list[Tensor]]]:
        def call(values: Params, data: Data) -> tuple[Tensor, list[Tensor]]:
            loss, *gradients = flat(*values.values(), *(data[name] for name in fields))
            return loss, gradients

        return call

    def flattened(function: Callable[[Params, Data], Any]) -> Callable[..., tuple[Tensor, ...]]:
        def flat(*inputs: Tensor) -> tuple[Tensor, ...]:
            batch = dict(zip(fields, inputs[len(names) :], strict=True))
            return function(dict(zip(names, inputs[: len(names)], strict=True)), batch)

        return flat

    flat = flattened(plain)
    before = [buffer.clone() for buffer in model.buffers()]
    expected = _seeded(flat, examples)
    if tier == "eager":
        return Step("eager", step(flat))
    changed = zip(before, model.buffers(), strict=True)
    if not all(torch.equal(old, new) for old, new in changed):
        return Step("eager", step(flat))  # such as running means: a graph would hold them
    exact = expected
    if precision == "bfloat16":
        full = _plain(model, objective, like, None, refresh=refresh)
        exact = _seeded(flattened(full), examples)
    try:
        traced = simplified(graph.trace(flat, *examples))  # type: ignore[arg-type]
    except Exception as error:  # of any kind: the program itself serves
        logger.warning("A step cannot be traced (%s); it runs eagerly.", _line(error))
        return Step("eager", step(flat))
    if not _agree(_seeded(traced.forward, examples), expected, exact):
        logger.warning("The traced step disagrees with the program; it runs eagerly.")
        return Step("eager", step(flat))
    ahead = graph.seconds_per_call(traced) * steps
    if tier == "traced" or (tier == "auto" and ahead < _REPAID_S) or not graph.has_compiler():
        return Step("traced", step(traced.forward))
    try:
        fast = _compiled(traced, examples)
    except Exception as error:
        logger.warning("The compiler failed (%s); the traced step is used.", _line(error))
        return Step("traced", step(traced.forward))
    if not _agree(_seeded(fast, examples), expected, exact):
        logger.warning("The compiled step disagrees with the program; it is not used.")
        return Step("traced", step(traced.forward))
    return Step("compiled", step(fast))


def _plain(
    model: HasRows,
    objective: Objective,
    like: Data,
    precision: Precision | None,
    *,
    refresh: bool,
) -> Callable[[Params, Data], tuple[Tensor, ...]]:
    """Loss and gradients by autograd: what all tiers must reproduce."""
    fixed = {name: value for name, value in like.items() if not isinstance(value, Tensor)}
    first = next(value for value in like.values() if isinstance(value, Tensor))
    low = precision == "bfloat16"

    def losses(batch: Data) -> Tensor:
        with torch.autocast(first.device.type, torch.bfloat16, enabled=low):
            data = {**fixed, **batch}
            return objective.losses(model, model.refreshed(data) if refresh else data)

    @torch.enable_grad()
    def function(weights: Params, batch: Data) -> tuple[Tensor, ...]:
        leaves = {name: value.detach().requires_grad_() for name, value in weights.items()}
        loss = with_weights(model, leaves, lambda: losses(batch)).mean()
        found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        pairs = zip(found, leaves.values(), strict=True)
        return loss.detach(), *(torch.zeros_like(w) if g is None else g for g, w in pairs)

    return function


def idle_weights(model: HasRows, objective: Objective, data: Data) -> list[str]:
    """The weights that no loss depends on."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.enable_grad():
        loss = objective.losses(model, model.refreshed(data)).mean()
        if not loss.requires_grad:
            return list(named)
        found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return [name for name, gradient in zip(named, found, strict=True) if gradient is None]


def _compiled(traced: fx.GraphModule, examples: list[Tensor]) -> Callable[..., Any]:
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx
    from torch._inductor.decomposition import select_decomp_table

    # random numbers as the traced graph draws them, so that tiers can be compared
    settings = {
        "compile_threads": 1,
        "cpp_cache_precompile_headers": False,
        "fallback_random": True,
    }
    with config.patch(settings), torch.no_grad():
        copies = [example.clone() for example in examples]
        lowered = make_fx(traced, decomposition_table=select_decomp_table())(*copies)
        function: Any = compile_fx(lowered, copies)
        function(*copies)  # compile now, not at the first step
    return function


@torch.no_grad()
def _seeded(function: Callable[..., Any], examples: list[Tensor]) -> list[Tensor]:
    """Loss and gradients with the same random numbers for every tier."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return [value.clone() for value in function(*examples)]


def _agree(values: list[Tensor], expected: list[Tensor], exact: list[Tensor]) -> bool:
    """Whether values are those expected, or of rounding as theirs to what is exact."""
    if not all(bool(torch.isfinite(value).all()) for value in expected):
        return True  # nothing to compare with here; the trainer tells of it

    def close(a: Tensor, b: Tensor, c: Tensor) -> bool:
        tolerance = 1e-7 if a.dtype == torch.float64 else 1e-2
        allowed = tolerance * (c.norm() + 1e-3)
        return bool((a - c).norm() <= torch.maximum(allowed, 2 * (b - c).norm()))

    return all(close(a, b, c) for a, b, c in zip(values, expected, exact, strict=True))


def _line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
