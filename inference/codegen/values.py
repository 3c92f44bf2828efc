"""Tensors of symbols: arrays of nodes, of which one axis may be the loop's.

Reshapes, permutations and broadcasts act on the arrays alone, and leave no operation behind.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from inference.codegen.expressions import Expressions, Segment
from inference.codegen.tape import Untraceable

_LINE = 16  # numbers, of four bytes; of eight, two lines
LONG = 32
"""An axis of more elements becomes a loop."""

_WRITTEN_OUT = 160  # at most so many elements of a tensor besides the loop's axis


class Value(NamedTuple):
    """A tensor: nodes of its elements, where ``axis``, if there is one, is a loop's."""

    items: np.ndarray  # int, the tensor's shape with 1 for the loop's axis
    axis: int | None = None
    length: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        sizes = list(self.items.shape)
        if self.axis is not None:
            sizes[self.axis] = self.length
        return tuple(sizes)


class Placed(NamedTuple):
    """A vector of zeros but for segments, which add up where they overlap."""

    size: int
    segments: tuple[Segment, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.size,)


def scalar(node: int) -> Value:
    """A number as a tensor without axes."""
    return Value(np.array(node))


def long_axis(shape: tuple[int, ...]) -> int | None:
    """The axis that becomes a loop: the longest, if it is long.

    Raises ``Untraceable`` where too much would have to be written out besides.
    """
    axis = max(range(len(shape)), key=lambda i: shape[i], default=None)
    if axis is None or shape[axis] <= LONG:
        return None
    if math.prod(shape) // shape[axis] > _WRITTEN_OUT:
        raise Untraceable(f"a tensor of shape {shape} has more than one long axis")
    return axis


def stride(length: int) -> int:
    """How far apart rows of so many numbers lie, of vectors of 64 bytes."""
    return -(-length // _LINE) * _LINE


def _padded(tensor: Tensor) -> Tensor:
    """With the last axis, where there is another, as long as rows are apart."""
    length = tensor.shape[-1] if tensor.dim() else 1
    if tensor.numel() == length or stride(length) == length:
        return tensor.contiguous()
    padded = tensor.new_zeros(*tensor.shape[:-1], stride(length))
    padded[..., :length] = tensor
    return padded


class Values:
    """Makes tensors of symbols of constants, and changes their axes."""

    def __init__(self, expressions: Expressions) -> None:
        self.expressions = expressions
        self._buffers: dict[Any, tuple[int, Tensor]] = {}

    def of_constant(self, tensor: Tensor) -> Value:
        """A tensor that does not depend on the point."""
        make = self.expressions
        tensor = tensor.detach()
        if tensor.numel() and bool((tensor == tensor.flatten()[0]).all()):
            return self.filled(tuple(tensor.shape), float(tensor.flatten()[0]))
        axis = long_axis(tuple(tensor.shape))
        if axis is None:
            flat = [make.constant(float(value)) for value in tensor.flatten().tolist()]
            return Value(np.array(flat, dtype=int).reshape(tensor.shape))
        length = tensor.shape[axis]
        moved = tensor.movedim(axis, -1)
        buffer = self.buffer(moved)
        rows = math.prod(moved.shape[:-1])
        starts = range(0, rows * stride(length), stride(length))
        nodes = [make.make("data", buffer, start, 1, length=length) for start in starts]
        if tensor.dtype == torch.bool:
            nodes = [make.condition(node) for node in nodes]
        items = np.array(nodes, dtype=int).reshape(*moved.shape[:-1], 1)
        return Value(np.moveaxis(items, -1, axis), axis, length)

    def filled(self, shape: tuple[int, ...], value: float) -> Value:
        """A tensor of equal constants."""
        node, axis = self.expressions.constant(value), long_axis(shape)
        if axis is None:
            return Value(np.full(shape, node))
        short = _short(shape, axis)
        return Value(np.full(short, node), axis, shape[axis])

    def buffer(self, tensor: Tensor) -> int:
        """The number of the buffer that holds a constant, its last axis fastest.

        Rows along that axis begin ``stride(length)`` apart, with zeros between.
        """
        place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if place not in self._buffers:
            self._buffers[place] = (len(self.expressions.buffers), tensor)
            self.expressions.buffers.append(_padded(tensor).cpu().numpy().reshape(-1))
        return self._buffers[place][0]

    def written_out(self, value: Value) -> Value:
        """The tensor without a loop's axis."""
        if value.axis is None:
            return value
        if value.length * value.items.size > _WRITTEN_OUT:
            raise Untraceable(f"two long axes meet, one of {value.length} elements")
        flat = [int(node) for node in value.items.reshape(-1)]
        try:
            columns = [self.expressions.reindexed(flat, k, 1, 0) for k in range(value.length)]
        except ValueError as error:
            raise Untraceable(str(error)) from error
        items = np.array(columns, dtype=int).reshape(value.length, *value.items.shape)
        return Value(np.concatenate(list(items), axis=value.axis))

    def aligned(self, *values: Value) -> list[Value]:
        """Tensors broadcast against each other, with one loop's axis in common or none."""
        rank = max(value.items.ndim for value in values)
        values = tuple(self._raised(value, rank) for value in values)
        for _ in values:
            axes = {value.axis for value in values if value.axis is not None}
            clash = len(axes) > 1
            for axis in axes:  # an axis written out in one and a loop in another
                clash = clash or any(v.axis != axis and v.items.shape[axis] > 1 for v in values)
                clash = clash or len({v.length for v in values if v.axis == axis}) > 1
            if not clash:
                break
            looping = [v for v in values if v.axis is not None]
            shortest = min(looping, key=lambda v: v.length)
            values = tuple(self.written_out(v) if v is shortest else v for v in values)
        shape = np.broadcast_shapes(*(value.items.shape for value in values))
        axis = next((value.axis for value in values if value.axis is not None), None)
        length = max(value.length for value in values)
        return [Value(np.broadcast_to(value.items, shape), axis, length) for value in values]

    def expanded(self, value: Value, shape: tuple[int, ...]) -> Value:
        """The tensor broadcast to a shape; -1 keeps a size."""
        value = self._raised(value, len(shape))
        sizes = tuple(
            old if new == -1 else new for old, new in zip(value.shape, shape, strict=True)
        )
        if value.axis is None:
            axis = long_axis(sizes)
            if axis is not None and value.items.shape[axis] == 1:
                short = _short(sizes, axis)
                return Value(np.broadcast_to(value.items, short), axis, sizes[axis])
            return Value(np.broadcast_to(value.items, sizes))
        short = _short(sizes, value.axis)
        if math.prod(short) > _WRITTEN_OUT:
            raise Untraceable(f"a tensor of shape {sizes} has more than one long axis")
        return Value(np.broadcast_to(value.items, short), value.axis, value.length)

    def reshaped(self, value: Value | Placed, shape: tuple[int, ...]) -> Value | Placed:
        """The elements in another shape, in row-major order."""
        shape = _filled(shape, math.prod(value.shape))
        if isinstance(value, Placed):
            return value if shape == value.shape else self._picked(value, shape)
        if value.axis is None:
            return Value(value.items.reshape(shape))
        before = math.prod(value.shape[: value.axis])
        for axis, size in enumerate(shape):
            if size == value.length and math.prod(shape[:axis]) == before:
                return Value(
                    value.items.reshape(_short(shape, axis)),
                    axis,
                    value.length,
                )
        if value.items.size == 1 and long_axis(shape) is not None:
            return self._split(value, shape)
        if value.length * value.items.size <= _WRITTEN_OUT:
            return Value(self.written_out(value).items.reshape(shape))
        if max(shape) == math.prod(shape):
            flat = self._flattened(value)
            return flat if len(shape) == 1 else self.reshaped(flat, shape)
        return self._picked(self._flattened(value), shape)

    def sliced(self, value: Value, axis: int, start: int, stop: int, step: int) -> Value:
        """Elements start, start + step, ... below stop along an axis."""
        axis %= len(value.shape)
        if axis != value.axis:
            index = [slice(None)] * value.items.ndim
            index[axis] = slice(start, stop, step)
            return Value(value.items[tuple(index)], value.axis, value.length)
        length = len(range(start, stop, step))
        if length <= LONG:
            return self._elements(value, [start + step * k for k in range(length)])
        if (start, step, length) == (0, 1, value.length):
            return value
        return self._at(value, start, step, length)

    def selected(self, value: Value, axis: int, index: int) -> Value:
        """One element along an axis, without that axis."""
        axis %= len(value.shape)
        index %= value.shape[axis]
        one = self.sliced(value, axis, index, index + 1, 1)
        kept = None if one.axis is None else one.axis - (one.axis > axis)
        return Value(np.squeeze(one.items, axis), kept, one.length)

    def permuted(self, value: Value, order: list[int]) -> Value:
        """The axes in another order."""
        order = [axis % value.items.ndim for axis in order]
        axis = None if value.axis is None else order.index(value.axis)
        return Value(value.items.transpose(order), axis, value.length)

    def flipped(self, value: Value, axes: list[int]) -> Value:
        """The elements along axes in the opposite order."""
        for axis in (a % len(value.shape) for a in axes):
            if axis == value.axis:
                value = self._at(value, value.length - 1, -1, value.length)
            else:
                value = value._replace(items=np.flip(value.items, axis))
        return value

    # -- internals -------------------------------------------------------------------------------

    def _raised(self, value: Value, rank: int) -> Value:
        more = rank - value.items.ndim
        if more == 0:
            return value
        axis = None if value.axis is None else value.axis + more
        return Value(value.items.reshape((1,) * more + value.items.shape), axis, value.length)

    def _at(self, value: Value, start: int, step: int, length: int) -> Value:
        flat = [int(node) for node in value.items.reshape(-1)]
        try:
            nodes = self.expressions.reindexed(flat, start, step, length)
        except ValueError as error:
            raise Untraceable(str(error)) from error
        return Value(np.array(nodes, dtype=int).reshape(value.items.shape), value.axis, length)

    def _elements(self, value: Value, positions: list[int]) -> Value:
        assert value.axis is not None
        parts = [self._at(value, k, 1, 0).items for k in positions]
        empty = list(value.items.shape)
        empty[value.axis] = 0
        return Value(np.concatenate(parts, value.axis) if parts else np.zeros(empty, dtype=int))

    def _split(self, value: Value, shape: tuple[int, ...]) -> Value:
        """A long vector as a tensor of several axes."""
        axis = long_axis(shape)
        assert axis is not None
        strides = _strides(shape)
        short = _short(shape, axis)
        items = np.zeros(short, dtype=int)
        for where in np.ndindex(short):
            start = sum(i * s for i, s in zip(where, strides, strict=True))
            items[where] = self._at(value, start, strides[axis], shape[axis]).items.reshape(-1)[0]
        return Value(items, axis, shape[axis])

    def _flattened(self, value: Value) -> Placed:
        shape, strides = value.shape, _strides(value.shape)
        assert value.axis is not None
        segments = []
        for where in np.ndindex(value.items.shape):
            start = sum(i * s for i, s in zip(where, strides, strict=True))
            node = int(value.items[where])
            segments.append(Segment(start, strides[value.axis], value.length, node))
        return Placed(math.prod(shape), tuple(segments))

    def _picked(self, value: Placed, shape: tuple[int, ...]) -> Value:
        """A placed vector whose segments are the rows of a tensor of several axes."""
        axis = long_axis(shape)
        places = {(s.start, s.step, s.length): s.node for s in value.segments}
        if axis is None or len(places) != len(value.segments):
            raise Untraceable("parts of a vector are put together in a way that has no loop")
        strides = _strides(shape)
        short = _short(shape, axis)
        items = np.zeros(short, dtype=int)
        for where in np.ndindex(short):
            start = sum(i * s for i, s in zip(where, strides, strict=True))
            node = places.pop((start, strides[axis], shape[axis]), None)
            if node is None:
                raise Untraceable("parts of a vector are put together in a way that has no loop")
            items[where] = node
        return Value(items, axis, shape[axis])


def _short(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """A shape with 1 for an axis."""
    return (*shape[:axis], 1, *shape[axis + 1 :])


def _strides(shape: tuple[int, ...]) -> list[int]:
    return [math.prod(shape[i + 1 :]) for i in range(len(shape))]


def _filled(shape: tuple[int, ...], total: int) -> tuple[int, ...]:
    known = math.prod(size for size in shape if size != -1)
    return tuple(total // max(known, 1) if size == -1 else size for size in shape)
