"""Operations that move elements: views, parts, and their derivatives."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from inference.codegen.context import Context, Lowered, operation
from inference.codegen.expressions import BOOLEAN, Segment
from inference.codegen.tape import Untraceable
from inference.codegen.values import LONG, Placed, Value

_WHOLE = 128  # elements of an axis of which a part is put among zeros


@operation("detach", "alias", "clone", "contiguous", "lift_fresh_copy", "_to_copy", "to")
def same(context: Context, a: Any, *_: Any, dtype: Any = None, **__: Any) -> Lowered:
    lowered = context.get(a)
    if dtype in (None, torch.float32, torch.float64):
        return lowered
    make = context.make
    if not isinstance(lowered, Value) or not all(
        make.nodes[node].op in BOOLEAN for node in lowered.items.reshape(-1).tolist()
    ):
        raise Untraceable(f"numbers become {dtype}")
    return lowered


@operation("copy")
def copy(context: Context, a: Any, source: Any, *_: Any) -> Lowered:
    return context.values.expanded(context.value(source), context.value(a).shape)


@operation("view", "reshape", "_unsafe_view", "_reshape_alias", "_reshape_copy")
def view(context: Context, a: Any, shape: Any, *_: Any) -> Lowered:
    return context.values.reshaped(context.get(a), tuple(shape))


@operation("expand")
def expand(context: Context, a: Any, shape: Any, **_: Any) -> Lowered:
    return context.values.expanded(context.value(a), tuple(shape))


@operation("new_zeros")
def new_zeros(context: Context, a: Any, shape: Any, **_: Any) -> Lowered:
    return context.values.filled(tuple(shape), 0.0)


@operation("new_ones")
def new_ones(context: Context, a: Any, shape: Any, **_: Any) -> Lowered:
    return context.values.filled(tuple(shape), 1.0)


@operation("new_full")
def new_full(context: Context, a: Any, shape: Any, fill: Any, **_: Any) -> Lowered:
    return context.values.filled(tuple(shape), float(fill))


@operation("repeat")
def repeat(context: Context, a: Any, times: Any) -> Lowered:
    value = context.value(a)
    more = len(times) - value.items.ndim
    axis = None if value.axis is None else value.axis + more
    if axis is not None and times[axis] != 1:
        raise Untraceable("a long axis is repeated")
    return Value(np.tile(value.items, times), axis, value.length)


@operation("unsqueeze")
def unsqueeze(context: Context, a: Any, axis: int) -> Lowered:
    return context.with_axis(context.value(a), axis)


@operation("squeeze")
def squeeze(context: Context, a: Any, axes: Any = None) -> Lowered:
    value = context.value(a)
    rank, shape = value.items.ndim, value.shape
    over = range(rank) if axes is None else [axes] if isinstance(axes, int) else axes
    return context.without(value, [axis for axis in over if shape[axis] == 1])


@operation("permute")
def permute(context: Context, a: Any, order: Any) -> Lowered:
    return context.values.permuted(context.value(a), list(order))


@operation("transpose")
def transpose(context: Context, a: Any, first: int, second: int) -> Lowered:
    value = context.value(a)
    order = list(range(value.items.ndim))
    order[first], order[second] = order[second], order[first]
    return context.values.permuted(value, order)


@operation("t")
def matrix_transpose(context: Context, a: Any) -> Lowered:
    value = context.value(a)
    return context.values.permuted(value, list(range(value.items.ndim))[::-1])


@operation("flip")
def flip(context: Context, a: Any, axes: Any) -> Lowered:
    return context.values.flipped(context.value(a), list(axes))


@operation("slice")
def part(
    context: Context, a: Any, axis: int = 0, start: Any = None, stop: Any = None, step: int = 1
) -> Lowered:
    value = context.value(a)
    start, stop, step = slice(start, stop, step).indices(value.shape[axis])
    return context.values.sliced(value, axis, start, stop, step)


@operation("select")
def select(context: Context, a: Any, axis: int, index: int) -> Lowered:
    return context.values.selected(context.value(a), axis, index)


@operation("split", "split_with_sizes")
def split(context: Context, a: Any, sizes: Any, axis: int = 0) -> list[Lowered]:
    value = context.value(a)
    size = value.shape[axis]
    if isinstance(sizes, int):
        sizes = [min(sizes, size - k) for k in range(0, size, sizes)]
    ends = np.cumsum(sizes).tolist()
    pairs = zip([0, *ends[:-1]], ends, strict=True)
    return [context.values.sliced(value, axis, start, end, 1) for start, end in pairs]


@operation("unbind")
def unbind(context: Context, a: Any, axis: int = 0) -> list[Lowered]:
    value = context.value(a)
    return [context.values.selected(value, axis, k) for k in range(value.shape[axis])]


@operation("slice_backward")
def part_backward(
    context: Context, a: Any, shape: Any, axis: int, start: int, stop: int, step: int
) -> Lowered:
    lowered, size = context.get(a), shape[axis]
    start, stop, step = slice(start, stop, step).indices(size)
    if len(shape) == 1 and size > LONG:
        moved = [
            s._replace(start=start + step * s.start, step=step * s.step)
            for s in context.segments(lowered)
        ]
        return Placed(size, tuple(moved))
    return _among_zeros(context, context.value(a), axis, size, list(range(start, stop, step)))


@operation("select_backward")
def select_backward(context: Context, a: Any, shape: Any, axis: int, index: int) -> Lowered:
    value, size = context.value(a), shape[axis]
    index %= size
    if len(shape) == 1 and size > LONG:
        return Placed(size, (Segment(index, 1, 0, int(value.items)),))
    axis %= len(shape)
    return _among_zeros(context, context.with_axis(value, axis), axis, size, [index])


def _among_zeros(
    context: Context, value: Value, axis: int, size: int, positions: list[int]
) -> Value:
    axis %= value.items.ndim
    if axis == value.axis or size > _WHOLE:
        raise Untraceable("a part of a long axis is put among zeros")
    items = np.moveaxis(value.items, axis, 0)
    whole = np.full((size, *items.shape[1:]), context.make.constant(0.0))
    whole[positions] = items
    return Value(np.moveaxis(whole, 0, axis), value.axis, value.length)


@operation("constant_pad_nd")
def pad(context: Context, a: Any, widths: Any, fill: float = 0.0) -> Lowered:
    value, node = context.value(a), context.make.constant(float(fill))
    for i in range(len(widths) // 2):
        axis = value.items.ndim - 1 - i
        before, after = widths[2 * i : 2 * i + 2]
        if min(before, after) < 0:
            stop = value.shape[axis] + min(after, 0)
            value = context.values.sliced(value, axis, max(-before, 0), stop, 1)
        more = [(0, 0)] * value.items.ndim
        more[axis] = (max(before, 0), max(after, 0))
        if axis == value.axis and any(more[axis]):
            raise Untraceable("a long axis is padded")
        value = value._replace(items=np.pad(value.items, more, constant_values=node))
    return value


@operation("cat")
def cat(context: Context, parts: Any, axis: int = 0) -> Lowered:
    values = [context.value(part) for part in parts]
    values = [v for v in values if 0 not in v.shape or len(v.shape) > 1]
    axis %= values[0].items.ndim
    if values[0].items.ndim > 1 or all(v.axis is None for v in values):
        return context.joined(values, axis)
    start, segments = 0, []
    for value in values:
        segments += [s._replace(start=start + s.start) for s in context.segments(value)]
        start += math.prod(value.shape)
    return Placed(start, tuple(segments))


@operation("stack")
def stack(context: Context, parts: Any, axis: int = 0) -> Lowered:
    values = context.values.aligned(*[context.value(part) for part in parts])
    return context.stacked(values, axis % (values[0].items.ndim + 1))


@operation("tril")
def lower_triangle(context: Context, a: Any, diagonal: int = 0) -> Lowered:
    value = context.value(a)
    return _triangle(context, value, np.tril(np.ones(value.items.shape[-2:]), diagonal))


@operation("triu")
def upper_triangle(context: Context, a: Any, diagonal: int = 0) -> Lowered:
    value = context.value(a)
    return _triangle(context, value, np.triu(np.ones(value.items.shape[-2:]), diagonal))


def _triangle(context: Context, value: Value, kept: np.ndarray) -> Value:
    _short_matrix(value)
    items = np.where(kept > 0, value.items, context.make.constant(0.0))
    return Value(items, value.axis, value.length)


def _short_matrix(value: Value) -> None:
    if value.axis is not None and value.axis >= value.items.ndim - 2:
        raise Untraceable("the triangle or diagonal of a matrix with a long axis")


@operation("diagonal")
def diagonal(context: Context, a: Any, offset: int = 0, first: int = 0, second: int = 1) -> Lowered:
    value = context.value(a)
    rank = value.items.ndim
    axes = {first % rank, second % rank}
    if value.axis in axes:
        raise Untraceable("the triangle or diagonal of a matrix with a long axis")
    items = np.diagonal(value.items, offset, first, second)
    axis = None if value.axis is None else value.axis - sum(a < value.axis for a in axes)
    return Value(items, axis, value.length)


@operation("diagonal_backward")
def diagonal_backward(
    context: Context, a: Any, shape: Any, offset: int = 0, first: int = 0, second: int = 1
) -> Lowered:
    value = context.value(a)
    if value.axis is not None:
        raise Untraceable("the triangle or diagonal of a matrix with a long axis")
    whole = np.full(tuple(shape), context.make.constant(0.0))
    matrices = np.moveaxis(whole, (first, second), (-2, -1))
    for k in range(value.items.shape[-1]):
        matrices[..., k + max(-offset, 0), k + max(offset, 0)] = value.items[..., k]
    return Value(whole)


@operation("diag_embed")
def diag_embed(
    context: Context, a: Any, offset: int = 0, first: int = -2, second: int = -1
) -> Lowered:
    *batch, size = context.value(a).shape
    whole = (*batch, size + abs(offset), size + abs(offset))
    return diagonal_backward(context, a, whole, offset, first, second)
