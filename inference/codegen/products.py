"""Products with matrices, and factors of small ones.

A constant matrix times a vector stays a product, computed in blocks of rows; what is small is
written out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from inference.codegen.context import Context, Lowered, operation
from inference.codegen.tape import Untraceable
from inference.codegen.values import LONG, Value

_WRITTEN_OUT = 16  # columns
_MOST = 128  # products of one matrix
_LARGEST = 10  # rows of a matrix to be factored: n^3 / 3 operations are written out


@operation("dot", "vdot")
def dot(context: Context, a: Any, b: Any) -> Lowered:
    return _inner(context, context.value(a), context.value(b), None)


@operation("mv")
def mv(context: Context, a: Any, b: Any) -> Lowered:
    if isinstance(a, Tensor):
        return _constant_times(context, a, context.value(b))
    return _inner(context, context.value(a), context.value(b), [1])


@operation("mm")
def mm(context: Context, a: Any, b: Any) -> Lowered:
    if isinstance(a, Tensor):
        second = context.value(b)
        if second.axis != 1 and second.shape[1] <= _MOST:
            columns = [context.values.selected(second, 1, k) for k in range(second.shape[1])]
            return context.stacked([_constant_times(context, a, c) for c in columns], 1)
    elif isinstance(b, Tensor):
        first = context.value(a)
        if first.axis != 0 and first.shape[0] <= _MOST:
            rows = [context.values.selected(first, 0, k) for k in range(first.shape[0])]
            return context.stacked([_constant_times(context, b.t(), r) for r in rows], 0)
    left, right = context.value(a), context.value(b)
    return _inner(context, context.with_axis(left, 2), context.with_axis(right, 0), [1])


@operation("bmm")
def bmm(context: Context, a: Any, b: Any) -> Lowered:
    left, right = context.value(a), context.value(b)
    return _inner(context, context.with_axis(left, 3), context.with_axis(right, 1), [2])


@operation("addmm", "addmv", "baddbmm")
def plus_product(
    context: Context, c: Any, a: Any, b: Any, *, beta: float = 1, alpha: float = 1
) -> Lowered:
    if (beta, alpha) != (1, 1):
        raise Untraceable("a weighted sum with a product of matrices")
    rank = len(a.shape)
    kind = bmm if rank == 3 else mv if len(b.shape) == 1 else mm
    product: Any = kind(context, a, b)
    return context.apply("add", context.value(c), product)


def _inner(context: Context, a: Value, b: Value, axes: Any) -> Value:
    """The sum of products along axes."""
    return context.reduced(context.apply("mul", a, b), axes, False, "add", "total")


def _constant_times(context: Context, matrix: Tensor, vector: Value) -> Value:
    """A constant matrix (a, b) times a vector (b,): (a,)."""
    rows, columns = matrix.shape
    make, values = context.make, context.values
    if vector.axis is None and (rows <= LONG or columns <= _WRITTEN_OUT):
        return _inner(context, values.of_constant(matrix), vector, [1])
    if vector.axis is not None and rows <= _WRITTEN_OUT:
        parts = [_inner(context, values.of_constant(row), vector, None) for row in matrix]
        return context.stacked(parts, 0)
    if vector.axis is None or rows > columns:
        array = context.in_memory(vector)
        node = make.make("matvec", values.buffer(matrix.t()), array, length=rows)
        return Value(np.array([node]), 0, rows)
    node = make.number(int(vector.items.reshape(-1)[0]))
    if make.nodes[node].length == 0:  # equal elements: they multiply the sums of the rows
        return context.apply("mul", values.of_constant(matrix.sum(1)), Value(np.array(node)))
    array = make.array("dots", values.buffer(matrix), node, size=rows)
    return context.from_memory(array, rows)


@operation("linalg_cholesky_ex")
def cholesky(context: Context, a: Any, **_: Any) -> list[Lowered]:
    """The lower factor, by rows (Cholesky and Banachiewicz); not a number where there is none."""
    value, make = context.value(a), context.make
    n = value.items.shape[-1]
    if n > _LARGEST or value.axis in (value.items.ndim - 1, value.items.ndim - 2):
        raise Untraceable(f"the factor of a matrix of {n} rows")
    result = np.full(value.items.shape, make.constant(0.0))
    for batch in np.ndindex(value.items.shape[:-2]):
        matrix, factor = value.items[batch], result[batch]
        for i in range(n):
            for j in range(i + 1):
                rest = int(matrix[i, j])
                for k in range(j):
                    product = make.apply("mul", int(factor[i, k]), int(factor[j, k]))
                    rest = make.apply("sub", rest, product)
                if i == j:
                    factor[i, i] = make.apply("sqrt", rest)
                else:
                    factor[i, j] = make.apply("div", rest, int(factor[j, j]))
    return [Value(result, value.axis, value.length), None]


@operation("_linalg_check_errors")
def checked(context: Context, *_: Any, **__: Any) -> None:
    """The factor is not a number where it does not exist, and neither is the density."""


@operation("linalg_solve_triangular")
def solve_triangular(
    context: Context, a: Any, b: Any, *, upper: bool, left: bool = True, unitriangular: bool = False
) -> Lowered:
    """The solution by substitution."""
    matrix, right = context.value(a), context.value(b)
    n, axis = matrix.items.shape[-1], right.items.ndim - 2
    if unitriangular or n > _LARGEST or right.axis == axis:
        raise Untraceable("a triangular system that is large, or of an unusual kind")
    if not left:  # x a = b is a' x' = b'
        swapped = solve_triangular_of(
            context, _swapped(context, matrix), _swapped(context, right), upper=not upper
        )
        return _swapped(context, swapped)
    return solve_triangular_of(context, matrix, right, upper=upper)


def _swapped(context: Context, value: Value) -> Value:
    rank = value.items.ndim
    return context.values.permuted(value, [*range(rank - 2), rank - 1, rank - 2])


def solve_triangular_of(context: Context, matrix: Value, right: Value, *, upper: bool) -> Value:
    """The solution of a system whose matrix is written out."""
    n, rank = matrix.items.shape[-1], right.items.ndim
    solved: dict[int, Value] = {}
    for i in reversed(range(n)) if upper else range(n):
        rest = context.part(right, rank - 2, i)
        for j, known in solved.items():
            rest = context.apply("sub", rest, context.apply("mul", _entry(matrix, i, j), known))
        solved[i] = context.apply("div", rest, _entry(matrix, i, i))
    rows = context.values.aligned(*[solved[i] for i in range(n)])
    return context.joined(rows, rank - 2)


def _entry(matrix: Value, i: int, j: int) -> Value:
    items = matrix.items[..., i : i + 1, j : j + 1]
    return Value(items, matrix.axis, matrix.length)
