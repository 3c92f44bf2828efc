"""PyTorch's operations on a tape run again, on tensors of symbols."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from inference.codegen import lookups, products, shapes, sums  # noqa: F401  # fill OPERATIONS
from inference.codegen.context import OPERATIONS, Context, Lowered
from inference.codegen.elementwise import ELEMENTWISE
from inference.codegen.expressions import Expressions, Segment
from inference.codegen.tape import Operation, Symbol, Tape, Untraceable
from inference.codegen.values import LONG, Placed, Value

_NODES = 20_000  # more would take the compiler too long


class Function(NamedTuple):
    """A log density, one number, and its gradient, by segments."""

    expressions: Expressions
    value: int
    gradient: tuple[Segment, ...]
    dim: int


def lower(tape: Tape) -> Function:
    """The expressions of a tape's value and gradient.

    Raises ``Untraceable`` where an operation, or how axes meet in it, is not known here.
    """
    context = Context()
    (size,) = tape.input.shape
    context.results[tape.input.number] = _point(context, size)
    used = {symbol.number for symbol in _symbols(tape.outputs)}
    for operation in tape.operations:
        used |= {s.number for s in _symbols((operation.arguments, operation.keywords))}
    for operation in tape.operations:
        if not any(symbol and symbol.number in used for symbol in operation.results):
            continue
        result = _run(context, operation)
        results = result if isinstance(result, list) else [result]
        for symbol, one in zip(operation.results, results, strict=False):
            if symbol is not None:
                context.results[symbol.number] = one
        if len(context.make.nodes) > _NODES:
            raise Untraceable("too much would have to be written out")
    value, gradient = tape.outputs
    node = context.make.number(int(context.value(value).items.reshape(-1)[0]))
    segments = context.segments(context.get(gradient))
    return Function(context.make, node, segments, size)


def _point(context: Context, size: int) -> Value:
    make = context.make.make
    if size > LONG:
        return Value(np.array([make("xs", 0, 1, length=size)]), 0, size)
    return Value(np.array([make("x", k) for k in range(size)], dtype=int))


def _run(context: Context, operation: Operation) -> Any:
    name = operation.target._schema.name.split("::")[1]
    if operation.target._schema.is_mutable and not name.startswith("_"):
        name = name.removesuffix("_")  # what is written to is not read again
    if name in ELEMENTWISE:
        arguments = operation.arguments
        if name == "polygamma":  # the one whose tensor comes last
            arguments = arguments[::-1]
        return _elementwise(context, name, arguments, operation.keywords)
    function = OPERATIONS.get(name)
    if function is None:
        raise Untraceable(f"{operation.target} is not known to the code generator")
    return function(context, *operation.arguments, **operation.keywords)


def _elementwise(
    context: Context, name: str, arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> Lowered:
    first = context.get(arguments[0])
    if isinstance(first, Placed):
        still = _linear(context, name, first, arguments[1:], keywords)
        if still is not None:
            return still
    number, formula = ELEMENTWISE[name]
    rest = arguments[number:]

    def at(*nodes: int) -> int:
        return formula(context.make, *nodes, *rest, **keywords)

    return context.each(at, *(context.value(argument) for argument in arguments[:number]))


def _linear(
    context: Context, name: str, first: Placed, rest: Any, keywords: dict[str, Any]
) -> Placed | None:
    """Sums and multiples of placed vectors, which need no memory."""
    make = context.make
    if name == "add" and keywords.get("alpha", 1) == 1:
        second = context.get(rest[0])
        if second.shape == first.shape:
            return Placed(first.size, first.segments + context.segments(second))
        return None
    if name == "neg":
        change: Callable[[int], int] = lambda node: make.apply("neg", node)  # noqa: E731
    elif name == "mul" and not isinstance(rest[0], Symbol | Tensor):
        factor = make.constant(float(rest[0]))
        change = lambda node: make.apply("mul", node, factor)  # noqa: E731
    else:
        return None
    return Placed(first.size, tuple(s._replace(node=change(s.node)) for s in first.segments))


def _symbols(value: Any) -> list[Symbol]:
    if isinstance(value, Symbol):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [symbol for item in value for symbol in _symbols(item)]
    return []
