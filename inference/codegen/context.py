"""What the operations on tensors of symbols have in common."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from inference.codegen.expressions import Expressions, Segment
from inference.codegen.tape import Symbol, Untraceable
from inference.codegen.values import LONG, Placed, Value, Values, scalar

Lowered = Value | Placed | None
"""A tensor; None for a result that nothing may use."""

OPERATIONS: dict[str, Callable[..., Any]] = {}
"""PyTorch's operations by name; called with a ``Context`` and the arguments."""


def operation(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enter a function in the table under these names."""

    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            OPERATIONS[name] = function
        return function

    return enter


class Context:
    """Expressions under construction, and the results of operations so far."""

    def __init__(self) -> None:
        self.make = Expressions()
        self.values = Values(self.make)
        self.results: dict[int, Lowered] = {}

    def get(self, argument: Any) -> Value | Placed:
        """An argument of an operation: a symbol, a constant tensor or a number."""
        if isinstance(argument, Symbol):
            result = self.results.get(argument.number)
            if result is None:
                raise Untraceable("a result that has no symbols is used")
            return result
        if isinstance(argument, Tensor):
            return self.values.of_constant(argument)
        if isinstance(argument, bool | int | float):
            return scalar(self.make.constant(float(argument)))
        raise Untraceable(f"an argument of type {type(argument).__name__}")

    def value(self, argument: Any) -> Value:
        """An argument as a tensor; a placed vector is read back from memory."""
        lowered = self.get(argument)
        if isinstance(lowered, Value):
            return lowered
        if len(lowered.segments) == 1 and lowered.segments[0][:3] == (0, 1, lowered.size):
            return Value(np.array([lowered.segments[0].node]), 0, lowered.size)
        array = self.make.array("placed", lowered.segments, size=lowered.size)
        return self.from_memory(array, lowered.size)

    def segments(self, lowered: Value | Placed) -> tuple[Segment, ...]:
        """The elements of a tensor, in row-major order, as parts of a vector."""
        if isinstance(lowered, Placed):
            return lowered.segments
        if lowered.axis is None:
            flat = lowered.items.reshape(-1)
            return tuple(Segment(k, 1, 0, int(node)) for k, node in enumerate(flat))
        if lowered.items.size == 1:
            return (Segment(0, 1, lowered.length, int(lowered.items.reshape(-1)[0])),)
        return self.segments(self.values.reshaped(lowered, (-1,)))

    def in_memory(self, value: Value) -> int:
        """The array of a vector."""
        return self.make.array("placed", self.segments(value), size=math.prod(value.shape))

    def from_memory(self, array: int, size: int) -> Value:
        """A vector that lies in memory: a loop's, or written out."""
        if size > LONG:
            node = self.make.make("entries", array, 0, 1, length=size)
            return Value(np.array([node]), 0, size)
        return Value(np.array([self.make.entry(array, k) for k in range(size)], dtype=int))

    def each(self, function: Callable[..., int], *values: Value) -> Value:
        """A function of the elements of tensors that are broadcast against each other."""
        first, *rest = self.values.aligned(*values)
        columns = [value.items.reshape(-1).tolist() for value in (first, *rest)]
        flat = [function(*nodes) for nodes in zip(*columns, strict=True)]
        items = np.array(flat, dtype=int).reshape(first.items.shape)
        return Value(items, first.axis, first.length)

    def apply(self, op: str, *values: Value) -> Value:
        """An operation of expressions, elementwise."""
        return self.each(lambda *nodes: self.make.apply(op, *nodes), *values)

    def pairwise(self, op: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """An operation of expressions on two arrays of nodes."""
        pairs = zip(a.reshape(-1).tolist(), b.reshape(-1).tolist(), strict=True)
        return np.array([self.make.apply(op, *pair) for pair in pairs], dtype=int).reshape(a.shape)

    def stacked(self, parts: Sequence[Value], axis: int) -> Value:
        """Tensors along a new axis."""
        if len({(part.axis, part.length) for part in parts}) > 1:
            parts = [self.values.written_out(part) for part in parts]
        first = parts[0].axis
        moved = None if first is None else first + (first >= axis)
        return Value(np.stack([part.items for part in parts], axis), moved, parts[0].length)

    def joined(self, parts: Sequence[Value], axis: int) -> Value:
        """Tensors along one of their axes."""
        if len({(part.axis, part.length) for part in parts}) > 1 or parts[0].axis == axis:
            parts = [self.values.written_out(part) for part in parts]
        items = np.concatenate([part.items for part in parts], axis)
        return Value(items, parts[0].axis, parts[0].length)

    def part(self, value: Value, axis: int, k: int) -> Value:
        """One element along an axis that is written out, which stays with size 1."""
        return value._replace(items=np.take(value.items, [k], axis))

    def without(self, value: Value, axes: Sequence[int]) -> Value:
        """A tensor without axes of size 1."""
        rank = value.items.ndim
        gone = {axis % rank for axis in axes}
        kept = [axis for axis in range(rank) if axis not in gone]
        axis = None if value.axis is None else kept.index(value.axis)
        return Value(value.items.reshape([value.items.shape[a] for a in kept]), axis, value.length)

    def with_axis(self, value: Value, axis: int) -> Value:
        """A tensor with a new axis of size 1."""
        axis %= value.items.ndim + 1
        moved = None if value.axis is None else value.axis + (value.axis >= axis)
        return Value(np.expand_dims(value.items, axis), moved, value.length)

    def reduced(self, value: Value, axes: Any, keep: bool, short: str, long: str) -> Value:
        """Elements along axes put together by an operation, ``long`` for that over a loop."""
        rank = value.items.ndim
        over = range(rank) if axes is None or list(axes) == [] else [a % rank for a in axes]
        items, axis, length = value.items, value.axis, value.length
        for a in sorted(over, reverse=True):
            parts = list(np.moveaxis(items, a, 0))
            if a == axis:
                nodes = [self._over_loop(long, int(n), length) for n in parts[0].reshape(-1)]
                one = np.array(nodes, dtype=int).reshape(parts[0].shape)
                axis, length = None, 0
            elif parts:
                one = parts[0]
                for part in parts[1:]:
                    one = self.pairwise(short, one, part)
            else:
                empty = self.make.constant(0.0 if long == "total" else math.nan)
                one = np.full(items.shape[:a] + items.shape[a + 1 :], empty)
            items = np.expand_dims(one, a) if keep else np.asarray(one)
            if axis is not None and axis > a and not keep:
                axis -= 1
        return Value(items, axis, length)

    def _over_loop(self, op: str, node: int, length: int) -> int:
        node = self.make.number(node)
        if op == "total":
            return self.make.total(node, length)
        return self.make.make(op, node) if self.make.nodes[node].length else node
