"""Operations along axes: sums, extremes, and what is made of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from inference.codegen.context import Context, Lowered, operation
from inference.codegen.elementwise import sigmoid, softplus
from inference.codegen.tape import Untraceable
from inference.codegen.values import Value, scalar


@operation("sum")
def total(context: Context, a: Any, axes: Any = None, keep: bool = False, **_: Any) -> Lowered:
    return context.reduced(context.value(a), axes, keep, "add", "total")


@operation("mean")
def mean(context: Context, a: Any, axes: Any = None, keep: bool = False, **_: Any) -> Lowered:
    value = context.value(a)
    result = context.reduced(value, axes, keep, "add", "total")
    count = math.prod(value.shape) / max(math.prod(result.shape), 1)
    return context.apply("mul", result, scalar(context.make.constant(1 / count)))


@operation("var")
def variance(
    context: Context, a: Any, axes: Any = None, *, correction: Any = 1, keepdim: bool = False
) -> Lowered:
    value = context.value(a)
    summed = context.reduced(value, axes, True, "add", "total")
    count = math.prod(value.shape) // max(math.prod(summed.shape), 1)
    left = count - (1 if correction is None else correction)
    if left <= 0:
        raise Untraceable("the variance of too few numbers")
    share, rest = (scalar(context.make.constant(1 / number)) for number in (count, left))
    apart = context.apply("sub", value, context.apply("mul", summed, share))
    squares = context.apply("mul", apart, apart)
    return context.apply("mul", context.reduced(squares, axes, keepdim, "add", "total"), rest)


@operation("amax")
def amax(context: Context, a: Any, axes: Any = None, keep: bool = False) -> Lowered:
    return context.reduced(context.value(a), axes, keep, "max", "largest")


@operation("amin")
def amin(context: Context, a: Any, axes: Any = None, keep: bool = False) -> Lowered:
    return context.reduced(context.value(a), axes, keep, "min", "smallest")


@operation("max")
def largest(context: Context, a: Any, axis: Any = None, keep: bool = False) -> Any:
    return _extreme(context, a, axis, keep, "max", "largest")


@operation("min")
def smallest(context: Context, a: Any, axis: Any = None, keep: bool = False) -> Any:
    return _extreme(context, a, axis, keep, "min", "smallest")


def _extreme(context: Context, a: Any, axis: Any, keep: bool, short: str, long: str) -> Any:
    """The extreme and, along an axis that is written out, its first position."""
    value, make = context.value(a), context.make
    if axis is None:
        return context.reduced(value, None, False, short, long)
    axis %= value.items.ndim
    most = context.reduced(value, [axis], True, short, long)
    position = None
    if axis != value.axis:
        last = make.constant(value.items.shape[axis] - 1)
        position = most._replace(items=np.full(most.items.shape, last))
        for k in reversed(range(value.items.shape[axis] - 1)):
            here = context.apply("eq", context.part(value, axis, k), most)
            position = context.apply("where", here, scalar(make.constant(k)), position)
    results = [most, position]
    return results if keep else [r if r is None else context.without(r, [axis]) for r in results]


@operation("logsumexp")
def logsumexp(context: Context, a: Any, axes: Any, keep: bool = False) -> Lowered:
    axes = [axes] if isinstance(axes, int) else list(axes)
    result = _logsumexp(context, context.value(a), axes)
    return result if keep else context.without(result, axes)


def _logsumexp(context: Context, value: Value, axes: list[int]) -> Value:
    make = context.make
    most = context.reduced(value, axes, True, "max", "largest")

    def finite(node: int) -> int:  # as PyTorch: an infinite maximum is not taken off
        infinite = make.apply("eq", make.apply("abs", node), make.constant(math.inf))
        return make.apply("where", infinite, make.constant(0.0), node)

    most = context.each(finite, most)
    terms = context.apply("exp", context.apply("sub", value, most))
    summed = context.reduced(terms, axes, True, "add", "total")
    return context.apply("add", context.apply("log", summed), most)


@operation("_log_softmax")
def log_softmax(context: Context, a: Any, axis: int, *_: Any) -> Lowered:
    value = context.value(a)
    return context.apply("sub", value, _logsumexp(context, value, [axis]))


@operation("_softmax")
def softmax(context: Context, a: Any, axis: int, *_: Any) -> Lowered:
    value = context.value(a)
    most = context.reduced(value, [axis], True, "max", "largest")
    terms = context.apply("exp", context.apply("sub", value, most))
    return context.apply("div", terms, context.reduced(terms, [axis], True, "add", "total"))


@operation("_log_softmax_backward_data")
def log_softmax_backward(context: Context, slope: Any, y: Any, axis: int, *_: Any) -> Lowered:
    slopes = context.value(slope)
    summed = context.reduced(slopes, [axis], True, "add", "total")
    shares = context.apply("exp", context.value(y))
    return context.apply("sub", slopes, context.apply("mul", shares, summed))


@operation("_softmax_backward_data")
def softmax_backward(context: Context, slope: Any, y: Any, axis: int, *_: Any) -> Lowered:
    shares = context.value(y)
    both = context.apply("mul", context.value(slope), shares)
    summed = context.reduced(both, [axis], True, "add", "total")
    return context.apply("sub", both, context.apply("mul", shares, summed))


@operation("log_sigmoid_forward")
def log_sigmoid(context: Context, a: Any) -> list[Lowered]:
    make = context.make

    def at(node: int) -> int:
        return make.apply("neg", softplus(make, make.apply("neg", node)))

    return [context.each(at, context.value(a)), None]


@operation("log_sigmoid_backward")
def log_sigmoid_backward(context: Context, slope: Any, a: Any, *_: Any) -> Lowered:
    make = context.make

    def at(slope: int, node: int) -> int:
        return make.apply("mul", slope, sigmoid(make, make.apply("neg", node)))

    return context.each(at, context.value(slope), context.value(a))


@operation("cumsum")
def cumsum(context: Context, a: Any, axis: int, **_: Any) -> Lowered:
    return _running(context, context.value(a), axis, "add")


@operation("cumprod")
def cumprod(context: Context, a: Any, axis: int, **_: Any) -> Lowered:
    return _running(context, context.value(a), axis, "mul")


def _running(context: Context, value: Value, axis: int, op: str) -> Value:
    if value.items.ndim == 0:
        return value
    axis %= value.items.ndim
    if axis == value.axis:
        raise Untraceable("a running sum along a long axis")
    parts = list(np.moveaxis(value.items, axis, 0))
    for k in range(1, len(parts)):
        parts[k] = context.pairwise(op, parts[k - 1], parts[k])
    return Value(np.stack(parts, axis), value.axis, value.length)
