"""PyTorch's elementwise operations as expressions: by name, how many tensors, and the formula."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from inference.codegen.expressions import BOOLEAN, Expressions
from inference.codegen.tape import Untraceable

Formula = Callable[..., int]


def _unary(op: str) -> tuple[int, Formula]:
    return 1, lambda make, a, **_: make.apply(op, a)


def _binary(op: str) -> tuple[int, Formula]:
    return 2, lambda make, a, b, **_: make.apply(op, a, b)


def _add(make: Expressions, a: int, b: int, *_: Any, alpha: float = 1, **__: Any) -> int:
    if make.nodes[a].op in BOOLEAN and make.nodes[b].op in BOOLEAN:
        return make.apply("or", a, b)
    return make.apply("add", a, b if alpha == 1 else _times(make, b, alpha))


def _sub(make: Expressions, a: int, b: int, *_: Any, alpha: float = 1, **__: Any) -> int:
    return make.apply("sub", a, b if alpha == 1 else _times(make, b, alpha))


def _rsub(make: Expressions, a: int, b: int, alpha: float = 1) -> int:
    return make.apply("sub", b, a if alpha == 1 else _times(make, a, alpha))


def _bitwise(op: str) -> tuple[int, Formula]:
    def formula(make: Expressions, *nodes: int) -> int:
        if not all(make.nodes[node].op in BOOLEAN for node in nodes):
            raise Untraceable("bits of numbers")
        return make.apply(op, *nodes)

    return (1 if op == "not" else 2), formula


def _times(make: Expressions, a: int, factor: float) -> int:
    return make.apply("mul", a, make.constant(factor))


def _div(make: Expressions, a: int, b: int, *, rounding_mode: Any = None) -> int:
    if rounding_mode is not None:
        raise Untraceable("a division that rounds")
    return make.apply("div", a, b)


def _pow(make: Expressions, a: int, b: int) -> int:
    return make.apply("pow", a, b)


def _clamp(make: Expressions, a: int, low: Any = None, high: Any = None) -> int:
    if low is not None:
        a = make.apply("max", a, make.constant(float(low)))
    if high is not None:
        a = make.apply("min", a, make.constant(float(high)))
    return a


def _decay(make: Expressions, a: int) -> int:
    """exp(-|a|), by which sigmoids and their logarithms are had without overflow."""
    return make.apply("exp", make.apply("neg", make.apply("abs", a)))


def sigmoid(make: Expressions, a: int) -> int:
    """1 / (1 + exp(-a))."""
    one, small = make.constant(1.0), _decay(make, a)
    top = make.apply("where", make.apply("ge", a, make.constant(0.0)), one, small)
    return make.apply("div", top, make.apply("add", one, small))


def softplus(make: Expressions, a: int, beta: float = 1, threshold: float = 20) -> int:
    """log(1 + exp(a))."""
    del threshold
    if beta != 1:
        return make.apply("div", softplus(make, _times(make, a, beta)), make.constant(beta))
    positive = make.apply("max", a, make.constant(0.0))
    return make.apply("add", positive, make.apply("log1p", _decay(make, a)))


def _softplus_backward(
    make: Expressions, slope: int, a: int, beta: float = 1, threshold: float = 20
) -> int:
    del threshold
    return make.apply("mul", slope, sigmoid(make, _times(make, a, beta)))


def _sigmoid_backward(make: Expressions, slope: int, y: int) -> int:
    rest = make.apply("sub", make.constant(1.0), y)
    return make.apply("mul", slope, make.apply("mul", y, rest))


def _tanh_backward(make: Expressions, slope: int, y: int) -> int:
    rest = make.apply("sub", make.constant(1.0), make.apply("mul", y, y))
    return make.apply("mul", slope, rest)


def _threshold_backward(make: Expressions, slope: int, a: int, threshold: float) -> int:
    passes = make.apply("gt", a, make.constant(float(threshold)))
    return make.apply("where", passes, slope, make.constant(0.0))


def _cross_entropy(
    make: Expressions, a: int, y: int, weight: Any = None, positive: Any = None, reduction: int = 0
) -> int:
    """-y log sigmoid(a) - (1 - y) log sigmoid(-a) = softplus(a) - y a."""
    if weight is not None or positive is not None or reduction != 0:
        raise Untraceable("a weighted cross entropy")
    return make.apply("sub", softplus(make, a), make.apply("mul", y, a))


def _logaddexp(make: Expressions, a: int, b: int) -> int:
    equal = make.apply("add", a, make.constant(math.log(2)))  # infinite ones have no difference
    other = make.apply("add", b, softplus(make, make.apply("sub", a, b)))
    return make.apply("where", make.apply("eq", a, b), equal, other)


def _polygamma(make: Expressions, a: int, order: int) -> int:
    if order not in (0, 1):
        raise Untraceable("a polygamma function of a higher order")
    return make.apply("trigamma" if order else "digamma", a)


def _xlogy(make: Expressions, a: int, b: int) -> int:
    zero = make.constant(0.0)
    product = make.apply("mul", a, make.apply("log", b))
    return make.apply("where", make.apply("eq", a, zero), zero, product)


def _sign(make: Expressions, a: int) -> int:
    zero = make.constant(0.0)
    below = make.apply("where", make.apply("lt", a, zero), make.constant(-1.0), zero)
    return make.apply("where", make.apply("gt", a, zero), make.constant(1.0), below)


def _where(make: Expressions, condition: int, a: int, b: int) -> int:
    return make.apply("where", condition, a, b)


def _masked_fill(make: Expressions, a: int, mask: int, fill: Any) -> int:
    return make.apply("where", mask, make.constant(float(fill)), a)


def _isnan(make: Expressions, a: int) -> int:
    return make.apply("ne", a, a)


def _isinf(make: Expressions, a: int) -> int:
    return make.apply("eq", make.apply("abs", a), make.constant(math.inf))


def _nan_to_num(
    make: Expressions, a: int, nan: Any = None, above: Any = None, below: Any = None
) -> int:
    if above is None or below is None:
        raise Untraceable("an infinite number is replaced by the largest")
    for value, other in ((math.inf, above), (-math.inf, below)):
        here = make.apply("eq", a, make.constant(value))
        a = make.apply("where", here, make.constant(float(other)), a)
    return make.apply("where", make.apply("ne", a, a), make.constant(float(nan or 0.0)), a)


def _addcmul(make: Expressions, a: int, b: int, c: int, *, value: float = 1) -> int:
    return make.apply("add", a, _times(make, make.apply("mul", b, c), value))


def _addcdiv(make: Expressions, a: int, b: int, c: int, *, value: float = 1) -> int:
    return make.apply("add", a, _times(make, make.apply("div", b, c), value))


def _like(value: float) -> tuple[int, Formula]:
    return 1, lambda make, a, **_: make.constant(value)


def _full_like(make: Expressions, a: int, value: Any, **_: Any) -> int:
    del a
    return make.constant(float(value))


ELEMENTWISE: dict[str, tuple[int, Formula]] = {
    "add": (2, _add),
    "sub": (2, _sub),
    "rsub": (2, _rsub),
    "mul": _binary("mul"),
    "div": (2, _div),
    "true_divide": (2, _div),
    "neg": _unary("neg"),
    "reciprocal": (1, lambda make, a: make.apply("div", make.constant(1.0), a)),
    "square": (1, lambda make, a: make.apply("mul", a, a)),
    "pow": (2, _pow),
    "abs": _unary("abs"),
    "sgn": (1, _sign),
    "sign": (1, _sign),
    "maximum": _binary("max"),
    "minimum": _binary("min"),
    "clamp": (1, _clamp),
    "clamp_min": (1, _clamp),
    "clamp_max": (1, lambda make, a, high: _clamp(make, a, None, high)),
    "relu": (1, lambda make, a: _clamp(make, a, 0.0)),
    "threshold_backward": (2, _threshold_backward),
    "where": (3, _where),
    "masked_fill": (2, _masked_fill),
    "lt": _binary("lt"),
    "le": _binary("le"),
    "gt": _binary("gt"),
    "ge": _binary("ge"),
    "eq": _binary("eq"),
    "ne": _binary("ne"),
    "logical_and": _binary("and"),
    "logical_or": _binary("or"),
    "logical_not": _unary("not"),
    "bitwise_and": _bitwise("and"),
    "bitwise_or": _bitwise("or"),
    "bitwise_not": _bitwise("not"),
    "isnan": (1, _isnan),
    "isinf": (1, _isinf),
    "nan_to_num": (1, _nan_to_num),
    "exp": _unary("exp"),
    "expm1": _unary("expm1"),
    "log": _unary("log"),
    "log1p": _unary("log1p"),
    "log2": (1, lambda make, a: _times(make, make.apply("log", a), 1 / math.log(2))),
    "sqrt": _unary("sqrt"),
    "rsqrt": (1, lambda make, a: make.apply("div", make.constant(1.0), make.apply("sqrt", a))),
    "sin": _unary("sin"),
    "cos": _unary("cos"),
    "tan": _unary("tan"),
    "atan": _unary("atan"),
    "tanh": _unary("tanh"),
    "tanh_backward": (2, _tanh_backward),
    "erf": _unary("erf"),
    "erfc": _unary("erfc"),
    "lgamma": _unary("lgamma"),
    "digamma": _unary("digamma"),
    "polygamma": (1, _polygamma),
    "sigmoid": (1, sigmoid),
    "sigmoid_backward": (2, _sigmoid_backward),
    "softplus": (1, softplus),
    "softplus_backward": (2, _softplus_backward),
    "binary_cross_entropy_with_logits": (2, _cross_entropy),
    "xlogy": (2, _xlogy),
    "logaddexp": (2, _logaddexp),
    "addcmul": (3, _addcmul),
    "addcdiv": (3, _addcdiv),
    "zeros_like": _like(0.0),
    "ones_like": _like(1.0),
    "full_like": (1, _full_like),
}
