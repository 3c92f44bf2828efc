"""Tiers of evaluation for a log density and its gradient, batched over chains.

``eager`` runs the Pyro program at every call. ``traced`` runs it once and replays the plain tensor
operations it made (``make_fx``). ``compiled`` hands that graph to Inductor. All tiers give the same
answers; the traced graph is checked against the program before it is used.
"""

from __future__ import annotations

import contextlib
import logging
import math
import shutil
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, fx
from torch._decomp import get_decompositions
from torch.func import functionalize, grad_and_value, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from inference.simplify import merged, simplified

Tier = Literal["eager", "traced", "compiled"]
ValueAndGrad = Callable[[Tensor], tuple[Tensor, Tensor]]

logger = logging.getLogger("inference")

# Below this many predicted seconds in the traced tier, the compiler would not repay its start.
_COMPILE_ABOVE_S = 8.0
SECONDS_PER_OP = 3.5e-6  # dispatch of one operation from Python
SECONDS_PER_ELEMENT = 1.0e-9


def trace(function: Callable[..., Tensor], *examples: Tensor) -> fx.GraphModule:
    """The tensor operations that ``function`` makes, as a graph without Python or mutation.

    The examples must be distinct tensors: equal ones would be merged into one input.
    """
    with torch.no_grad():
        graph = make_fx(function)(*[e.clone() for e in examples])
        # only a graph can be freed of mutation: Pyro's own autograd functions refuse functionalize
        pure = make_fx(functionalize(graph), decomposition_table=_writes())
        graph = pure(*[e.clone() for e in examples])
    return merged(_without_checks(_without_copies(graph)))


def batched(
    single: Callable[[Tensor], Tensor], example: Tensor, *, decompose: bool = False
) -> fx.GraphModule:
    """The graph of ``vmap(grad_and_value(single))`` for a fixed number of chains.

    ``decompose`` breaks operations into those that Inductor lowers; for replay fewer are faster.
    """
    table = None
    if decompose:
        from torch._inductor.decomposition import select_decomp_table

        table = select_decomp_table()

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        gradient, value = vmap(grad_and_value(single))(x)
        return value, gradient

    with torch.no_grad():
        return simplified(make_fx(function, decomposition_table=table)(example.clone()))


def value_only(graph: fx.GraphModule) -> Callable[[Tensor], Tensor]:
    """The first output of a graph, without the operations that only the others need."""
    copy = fx.Graph()
    outputs: Any = copy.graph_copy(graph.graph, {})
    copy.output(outputs[0])
    copy.eliminate_dead_code()
    return fx.GraphModule(graph, copy).forward


def batched_over_rows(
    single: Callable[[Tensor, Tensor], Tensor], example: Tensor, rows: Tensor
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The graph of a value and gradient batched over points, with rows of the data in common."""

    def function(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        gradient, value = vmap(grad_and_value(single), in_dims=(0, None))(x, rows)
        return value, gradient

    with torch.no_grad():
        graph = make_fx(function)(example.clone(), rows.clone())
        return simplified(graph).forward  # type: ignore[return-value]


def compiled(graph: fx.GraphModule, example: Tensor) -> ValueAndGrad:
    """``graph`` compiled by Inductor for inputs like ``example``."""
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx

    # a graph of our own, of one or two kernels: start no worker pool, compile no header twice
    settings = {"compile_threads": 1, "cpp_cache_precompile_headers": False}
    with config.patch(settings), _one_thread_if_small(graph):
        function: Any = compile_fx(graph, [example])
        with torch.no_grad():
            function(example)  # compile now, not at the first step
    return lambda x: tuple(function(x))  # type: ignore[return-value]


def eager(single: Callable[[Tensor], Tensor]) -> ValueAndGrad:
    """The program run at every call: one ``vmap``, or a loop over chains where vmap cannot."""
    mapped = vmap(grad_and_value(single))
    loops = False

    def evaluate(x: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal loops
        if not loops:
            try:
                gradient, value = mapped(x)
                return value.detach(), gradient.detach()
            except RuntimeError:
                loops = True
        return loop(single, x)

    return evaluate


def loop(single: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Values and gradients chain by chain, by plain autograd: slow, and the reference."""
    values, gradients = [], []
    for row in x:
        point = row.detach().clone().requires_grad_(True)
        with torch.enable_grad():
            value = single(point)
            (gradient,) = torch.autograd.grad(value, point, allow_unused=True)
        values.append(value.detach())
        gradients.append(torch.zeros_like(row) if gradient is None else gradient)
    return torch.stack(values), torch.stack(gradients)


def agrees(candidate: ValueAndGrad, single: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Whether a tier reproduces the program's own values and gradients near the points ``x``.

    Two points and one nearer to zero are compared, number by number: a large gradient in one
    direction hides no other.
    """
    exact = x.dtype == torch.float64
    value, gradient = candidate(x)
    some = torch.cat([x[:2], 0.3 * x[:1]])
    expected, slope = value.new_full((len(some),), torch.nan), torch.zeros_like(some)
    for k in range(len(some)):
        with contextlib.suppress(RuntimeError):  # such as of a matrix that cannot be factored
            expected[k : k + 1], slope[k : k + 1] = loop(single, some[k : k + 1])
    near = x.clone()  # a tier may be made for one number of points
    near[0] = 0.3 * x[0]
    others, slopes = candidate(near)
    value = torch.cat([value[:2], others[:1]])
    gradient = torch.cat([gradient[:2], slopes[:1]])
    finite = torch.isfinite(expected) & torch.isfinite(slope).all(-1)

    def close(a: Tensor, b: Tensor) -> bool:
        if not len(b):
            return True  # nothing to compare with here; the engines reject such points
        scale = 1 + b.abs().amax()
        loose, tight = (1e-6, 1e-8) if exact else (1e-2, 1e-3)
        near = (a - b).abs() <= loose * (1 + b.abs())
        return bool((near & ((a - b).abs() <= tight * scale)).all())

    return close(value[finite], expected[finite]) and close(gradient[finite], slope[finite])


def seconds_per_call(graph: fx.GraphModule) -> float:
    """A prediction of one call in the traced tier, from the graph alone: it is repeatable."""
    operations, elements = work(graph)
    return operations * SECONDS_PER_OP + elements * SECONDS_PER_ELEMENT


def work(graph: fx.GraphModule) -> tuple[int, int]:
    """How many operations a graph calls, and how many numbers they make."""
    operations, elements = 0, 0
    for node in graph.graph.nodes:
        if node.op == "call_function":
            operations += 1
            value = node.meta.get("val")
            elements += value.numel() if isinstance(value, Tensor) else 0
    return operations, elements


def worth_compiling(graph: fx.GraphModule, calls: int) -> bool:
    """Whether ``calls`` evaluations repay the compiler, judged without a clock."""
    return seconds_per_call(graph) * calls > _COMPILE_ABOVE_S and has_compiler()


def has_compiler() -> bool:
    """Whether a C++ compiler is on the path."""
    return any(shutil.which(name) for name in ("g++", "c++", "clang++", "cl"))


def _writes() -> Any:
    """Decompositions of the writes that mutation becomes, which vmap cannot batch."""
    aten = torch.ops.aten
    slices = [aten.slice_scatter, aten.select_scatter, aten.diagonal_scatter]
    return get_decompositions([*slices, aten.fill.Scalar])


def _without_copies(graph: fx.GraphModule) -> fx.GraphModule:
    """Replace ``copy(into, value)``, which has no derivative, by ``value`` in that shape."""
    aten = torch.ops.aten
    for node in list(graph.graph.nodes):
        if node.op == "call_function" and node.target is aten.copy.default:
            result, value = node.meta["val"], node.args[1]
            with graph.graph.inserting_before(node):
                if value.meta["val"].dtype != result.dtype:
                    value = graph.graph.call_function(aten.to.dtype, (value, result.dtype))
                new = graph.graph.call_function(aten.expand.default, (value, list(result.shape)))
            new.meta = dict(node.meta)
            node.replace_all_uses_with(new)
            graph.graph.erase_node(node)
    return graph


def _without_checks(graph: fx.GraphModule) -> fx.GraphModule:
    """Where a matrix cannot be factored, a log density of NaN instead of an error.

    The error would be that of a whole batch of points; a sampler rejects the one.
    """
    aten = torch.ops.aten
    output = next(node for node in graph.graph.nodes if node.op == "output")
    call = graph.graph.call_function
    for node in list(graph.graph.nodes):
        if node.target is not aten._linalg_check_errors.default:
            continue
        result = output.args[0]
        if isinstance(result, fx.Node):
            with graph.graph.inserting_before(output):
                fault = call(aten.any.default, (node.args[0],))
                output.args = (call(aten.masked_fill.Scalar, (result, fault, math.nan)),)
        graph.graph.erase_node(node)
    return graph


@contextlib.contextmanager
def _one_thread_if_small(graph: fx.GraphModule) -> Iterator[None]:
    from torch._inductor import config

    largest = max(
        (node.meta["val"].numel() for node in graph.graph.nodes if _has_tensor(node)), default=0
    )
    threads = 1 if largest < 1 << 16 else -1  # small kernels stall on a second thread
    with config.patch({"cpp.threads": threads}):
        yield


def _has_tensor(node: Any) -> bool:
    return isinstance(node.meta.get("val"), Tensor)
