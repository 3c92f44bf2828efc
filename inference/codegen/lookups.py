"""Elements at positions, and sums by position.

Along a loop's axis a look-up reads an array in memory, and its derivative adds to one; along an
axis that is written out they are choices among its elements.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inference.codegen.context import Context, Lowered, operation
from inference.codegen.tape import Untraceable
from inference.codegen.values import LONG, Value


@operation("index")
def index(context: Context, a: Any, indices: Any) -> Lowered:
    value = context.value(a)
    axes, positions = _positions(indices, value.shape)
    return _taken(context, _merged(context, value, axes), axes[0], positions)


@operation("index_select")
def index_select(context: Context, a: Any, axis: int, positions: Any) -> Lowered:
    value = context.value(a)
    axis %= len(value.shape)
    return index(context, a, [None] * axis + [positions])


@operation("embedding")
def embedding(context: Context, a: Any, positions: Any, *_: Any) -> Lowered:
    return index(context, a, [positions])


def _positions(indices: Any, shape: tuple[int, ...]) -> tuple[list[int], Tensor]:
    """The axes that constants index, and the positions along these, taken as one axis."""
    given: list[tuple[int, Tensor]] = []
    axis = 0
    for one in indices:
        if one is not None and not isinstance(one, Tensor):
            raise Untraceable("an index that depends on the point")
        parts: Sequence[Tensor | None] = [one]
        if one is not None and one.dtype == torch.bool:
            parts = one.nonzero(as_tuple=True)  # a mask has several axes
        given += [(axis + k, part) for k, part in enumerate(parts) if part is not None]
        axis += len(parts)
    axes = [axis for axis, _ in given]
    if axes != list(range(axes[0], axes[0] + len(axes))):
        raise Untraceable("an index of axes that are apart")
    aligned = torch.broadcast_tensors(*[one for _, one in given])
    linear = torch.zeros_like(aligned[0])
    for axis, one in zip(axes, aligned, strict=True):
        linear = linear * shape[axis] + torch.where(one < 0, one + shape[axis], one)
    return axes, linear


def _merged(context: Context, value: Value, axes: list[int]) -> Value:
    """A tensor whose adjacent axes are one."""
    if len(axes) == 1:
        return value
    shape, first, last = value.shape, axes[0], axes[-1]
    whole = context.values.reshaped(value, (*shape[:first], -1, *shape[last + 1 :]))
    if not isinstance(whole, Value):
        raise Untraceable("an index of a long axis and others at once")
    return whole


def _taken(context: Context, value: Value, axis: int, positions: Tensor) -> Value:
    """Elements along an axis, at positions of any shape, whose axes take its place."""
    make = context.make
    where = context.values.of_constant(positions)
    if value.axis != axis and where.axis is None:
        items = np.take(value.items, positions.numpy(), axis)
        later = value.axis is not None and value.axis > axis
        moved = value.axis + positions.dim() - 1 if later else value.axis  # type: ignore[operator]
        return Value(items, moved, value.length)
    if value.axis not in (None, axis):
        raise Untraceable("rows of a tensor are looked up along another axis than its loop's")
    columns = np.moveaxis(value.items, axis, 0)
    rest = columns.shape[1:]
    nodes = []
    for column in columns.reshape(len(columns), -1).T:
        vector = Value(column, None if value.axis is None else 0, value.length)
        array = context.in_memory(vector)
        nodes.append([make.gather(array, node) for node in where.items.reshape(-1).tolist()])
    items = np.array(nodes, dtype=int).T.reshape(*where.items.shape, *rest)
    rank = where.items.ndim
    items = np.moveaxis(items, range(rank), range(axis, axis + rank))
    return Value(items, None if where.axis is None else axis + where.axis, where.length)


@operation("index_put", "_index_put_impl", "_unsafe_index_put")
def index_put(
    context: Context, a: Any, indices: Any, source: Any, accumulate: bool = False, *_: Any
) -> Lowered:
    base = context.value(a)
    axes, positions = _positions(indices, base.shape)
    merged, axis = _merged(context, base, axes), axes[0]
    new = context.value(source)
    if accumulate:
        added = _summed(context, merged.shape, axis, positions, new)
        whole = context.apply("add", merged, added)
    else:
        whole = _replaced(context, merged, axis, positions, new)
    return context.values.reshaped(whole, base.shape)


@operation("index_add")
def index_add(context: Context, a: Any, axis: int, positions: Any, source: Any) -> Lowered:
    before: list[Any] = [None] * (axis % len(context.value(a).shape))
    return index_put(context, a, [*before, positions], source, True)


@operation("embedding_dense_backward")
def embedding_backward(context: Context, slope: Any, positions: Any, rows: int, *_: Any) -> Lowered:
    value = context.value(slope)
    linear = _positions([positions], (rows,))[1]
    return _summed(context, (rows, *value.shape[positions.dim() :]), 0, linear, value)


def _replaced(context: Context, base: Value, axis: int, positions: Tensor, source: Value) -> Value:
    """A tensor with elements along an axis put in place of others."""
    lead, rest = list(base.shape[:axis]), list(base.shape[axis + 1 :])
    source = context.values.expanded(source, (*lead, *positions.shape, *rest))
    if base.axis is not None or source.axis is not None:
        raise Untraceable("elements of a long axis are put in place of others")
    items = base.items.copy()
    rows = np.moveaxis(items, axis, 0)
    flat = source.items.reshape(*lead, -1, *rest)
    rows[positions.reshape(-1).numpy()] = np.moveaxis(flat, axis, 0)
    return Value(items)


def _summed(
    context: Context, shape: tuple[int, ...], axis: int, positions: Tensor, source: Value
) -> Value:
    """Sums of elements by their positions along an axis."""
    size, make = shape[axis], context.make
    source = context.values.expanded(source, (*shape[:axis], *positions.shape, *shape[axis + 1 :]))
    if positions.dim() != 1:
        flat = context.values.reshaped(source, (*shape[:axis], -1, *shape[axis + 1 :]))
        if not isinstance(flat, Value):
            raise Untraceable("sums by positions of several axes")
        source, positions = flat, positions.reshape(-1)
    if source.axis is None:
        rows = np.moveaxis(source.items, axis, 0)
        sums = np.full((size, *rows.shape[1:]), make.constant(0.0))
        for row, place in zip(rows, positions.tolist(), strict=True):
            sums[place] = context.pairwise("add", sums[place], row)
        return Value(np.moveaxis(sums, 0, axis))
    if source.axis != axis:
        raise Untraceable("sums by position along another axis than the loop's")
    where = int(context.values.of_constant(positions).items.reshape(-1)[0])
    columns = []
    for node in source.items.reshape(-1).tolist():
        if make.nodes[where].length == 0 and make.nodes[node].length == 0:
            raise Untraceable("equal elements are added up at one position")
        array = make.array("scatter", make.number(node), where, size=size)
        columns.append(context.from_memory(array, size))
    rest = [n for a, n in enumerate(source.items.shape) if a != axis]
    items = np.stack([c.items for c in columns], -1).reshape(-1, *rest)
    loops = columns[0].axis is not None
    return Value(np.moveaxis(items, 0, axis), axis if loops else None, columns[0].length)


@operation("gather")
def gather(context: Context, a: Any, axis: int, positions: Any, **_: Any) -> Lowered:
    value, where = context.value(a), context.value(positions)
    axis %= value.items.ndim
    if axis in (value.axis, where.axis):
        raise Untraceable("elements are looked up along a long axis")
    _same_but(value, where, axis)
    make = context.make
    size = value.items.shape[axis]

    def pick(position: int, *items: int) -> int:
        result = items[-1]
        for k in reversed(range(size - 1)):
            here = make.apply("eq", position, make.constant(k))
            result = make.apply("where", here, items[k], result)
        return result

    return context.each(pick, where, *(context.part(value, axis, k) for k in range(size)))


def _same_but(value: Value, positions: Value, axis: int) -> None:
    """Refuse positions that are fewer than the elements along another axis."""
    pairs = enumerate(zip(value.shape, positions.shape, strict=True))
    if any(a != b for k, (a, b) in pairs if k != axis):
        raise Untraceable("positions of some rows only")


@operation("scatter")
def scatter(context: Context, a: Any, axis: int, positions: Any, source: Any, **_: Any) -> Lowered:
    return _put(context, a, axis, positions, source, add=False)


@operation("scatter_add")
def scatter_add(context: Context, a: Any, axis: int, positions: Any, source: Any) -> Lowered:
    return _put(context, a, axis, positions, source, add=True)


def _put(context: Context, a: Any, axis: int, positions: Any, source: Any, *, add: bool) -> Value:
    """Elements put to, or added at, positions along an axis that is written out."""
    base, where, new = context.value(a), context.value(positions), context.value(source)
    axis %= base.items.ndim
    if axis in (base.axis, where.axis) or math.prod(base.items.shape) > LONG * LONG:
        raise Untraceable("elements are put along a long axis")
    _same_but(base, where, axis)
    make, parts = context.make, []
    for k in range(base.items.shape[axis]):
        part = context.part(base, axis, k)

        def put(old: int, position: int, value: int, k: int = k) -> int:
            value = make.apply("add", old, value) if add else value
            return make.apply("where", make.apply("eq", position, make.constant(k)), value, old)

        for j in range(where.items.shape[axis]):
            one = context.part(new, axis, j) if new.items.ndim else new
            part = context.each(put, part, context.part(where, axis, j), one)
        parts.append(part)
    return context.joined(context.values.aligned(*parts), axis)
