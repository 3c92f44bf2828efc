"""Scalar expressions, each made once: numbers per chain, and numbers per index of a loop.

A node of length 0 is one number for each chain. One of length L is L numbers, for the indices i of
a loop; what it holds at start + step i, as another node, is its ``reindexed``. Arrays are what must
lie in memory: tables that are looked up, and vectors that are multiplied by matrices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

BOOLEAN = {"lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not"}
REDUCTIONS = {"total", "largest", "smallest"}


class Node(NamedTuple):
    """An operation on nodes, or a leaf.

    Leaves: ``constant`` (value), ``x`` (position), ``xs`` (start, step) of the point, ``data``
    (buffer, start, step), ``index`` (the loop's own), ``entry`` (array, position), ``entries``
    (array, start, step), ``gather`` (array, node of positions), ``matvec`` (matrix, array).
    """

    op: str
    args: tuple[Any, ...]
    length: int = 0


class Segment(NamedTuple):
    """Numbers at start + step i of a vector; of length 0, one number at ``start``."""

    start: int
    step: int
    length: int
    node: int

    def places(self) -> range:
        """The places that it has in the vector."""
        if self.length == 0:
            return range(self.start, self.start + 1)
        return range(self.start, self.start + self.step * self.length, self.step)


class Array(NamedTuple):
    """A vector in memory, one for each chain.

    ``kind``: ``placed`` (segments, which add up where they overlap), ``dots`` (matrix, node: the
    sums over i of each row times the node), ``scatter`` (node, node of positions: sums by
    position).
    """

    kind: str
    args: tuple[Any, ...]
    size: int


LEAVES = {"constant", "x", "xs", "data", "index", "entry", "entries", "gather", "matvec"}

_FOLD: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": np.divide,
    "neg": lambda a: -a,
    "exp": np.exp,
    "log": np.log,
    "log1p": np.log1p,
    "sqrt": np.sqrt,
    "abs": abs,
    "pow": np.power,
    "max": max,
    "min": min,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "and": lambda a, b: bool(a) and bool(b),
    "or": lambda a, b: bool(a) or bool(b),
    "not": lambda a: not a,
}


class Expressions:
    """The nodes of a function, in an order in which each follows its arguments."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.arrays: list[Array] = []
        self.buffers: list[np.ndarray] = []
        self._known: dict[Any, int] = {}

    def make(self, op: str, *args: Any, length: int = 0) -> int:
        """The node of an operation, without simplification."""
        node = Node(op, args, length)
        key = (op, tuple(map(_exact, args)), length)
        if key not in self._known:
            self._known[key] = len(self.nodes)
            self.nodes.append(node)
        return self._known[key]

    def array(self, kind: str, *args: Any, size: int) -> int:
        """The number of an array."""
        array = Array(kind, args, size)
        if ("array", array) not in self._known:
            self._known["array", array] = len(self.arrays)
            self.arrays.append(array)
        return self._known["array", array]

    def constant(self, value: float) -> int:
        return self.make("constant", float(value))

    def known(self, node: int) -> float | None:
        """The value of a constant, else None."""
        op, args, _ = self.nodes[node]
        return args[0] if op == "constant" else None

    def number(self, node: int) -> int:
        """A condition as 0 or 1; a number as itself."""
        if self.nodes[node].op in BOOLEAN:
            return self.apply("where", node, self.constant(1.0), self.constant(0.0))
        return node

    def condition(self, node: int) -> int:
        """Whether a number is not 0; a condition as itself."""
        if self.nodes[node].op in BOOLEAN:
            return node
        return self.apply("ne", node, self.constant(0.0))

    def apply(self, op: str, *args: int) -> int:
        """An elementwise operation, simplified; its length is that of the longest argument."""
        if op in ("and", "or", "not"):
            args = tuple(map(self.condition, args))
        elif op == "where":
            args = (self.condition(args[0]), *map(self.number, args[1:]))
        else:
            args = tuple(map(self.number, args))
        values = [self.known(arg) for arg in args]
        if op in _FOLD and all(value is not None for value in values):
            with np.errstate(all="ignore"):
                result = float(_FOLD[op](*(np.float64(value) for value in values)))  # type: ignore[arg-type]
            if op in BOOLEAN:
                return self.apply_boolean(bool(result))
            return self.constant(result)
        simple = self._simplified(op, args, values)
        if simple is not None:
            return simple
        if op in ("add", "mul", "eq", "ne", "and", "or"):
            args = tuple(sorted(args))
        return self.make(op, *args, length=self.common_length(args))

    def apply_boolean(self, value: bool) -> int:
        """A condition that always, or never, holds."""
        zero = self.constant(0.0)
        return self.make("eq" if value else "ne", zero, zero)

    def common_length(self, nodes: Iterable[int]) -> int:
        """The one length that nodes have, but for those of length 0."""
        lengths = {self.nodes[node].length for node in nodes} - {0}
        if len(lengths) > 1:
            raise ValueError(f"lengths {sorted(lengths)} in one operation")
        return lengths.pop() if lengths else 0

    def reindexed(self, roots: list[int], start: int, step: int, length: int) -> list[int]:
        """The nodes at start + step i for i < length; at ``start`` alone where that is 0.

        Raises ``ValueError`` for products of matrices, whose elements cannot be had one by one.
        """
        new: dict[int, int] = {}
        for number in self.needed(roots):
            op, args, old = self.nodes[number]
            if old == 0:
                new[number] = number
            elif op == "index":
                new[number] = self._affine(start, step, length)
            elif op == "data":
                buffer, first, pace = args
                first, pace = first + pace * start, pace * step
                if length == 0:
                    new[number] = self.constant(self.buffers[buffer][first])
                else:
                    new[number] = self.make("data", buffer, first, pace, length=length)
            elif op in ("xs", "entries"):
                *which, first, pace = args
                first, pace = first + pace * start, pace * step
                if length:
                    new[number] = self.make(op, *which, first, pace, length=length)
                elif op == "xs":
                    new[number] = self.make("x", first)
                else:
                    new[number] = self.entry(which[0], first)
            elif op == "gather":
                new[number] = self.gather(args[0], new[args[1]])
            elif op == "matvec":
                raise ValueError("an element of a matrix product is asked for")
            else:
                new[number] = self.apply(op, *(new[arg] for arg in args))
        return [new[root] for root in roots]

    def entry(self, array: int, position: int) -> int:
        """One number of an array."""
        kind, args, _ = self.arrays[array]
        if kind == "placed":
            here = [segment for segment in args[0] if position in segment.places()]
            if not here:
                return self.constant(0.0)
            if not any(segment.length for segment in here):
                total = here[0].node
                for segment in here[1:]:
                    total = self.apply("add", total, segment.node)
                return total
        return self.make("entry", array, position)

    def gather(self, array: int, positions: int) -> int:
        """Numbers of an array at positions."""
        value = self.known(positions)
        if value is not None:
            return self.entry(array, int(value))
        return self.make("gather", array, positions, length=self.nodes[positions].length)

    def total(self, node: int, length: int) -> int:
        """The sum over the loop's indices."""
        op, args, own = self.nodes[node]
        if own == 0:
            return self.apply("mul", node, self.constant(length))
        if op == "neg":
            return self.apply("neg", self.total(args[0], length))
        if op == "mul" and 0 in (self.nodes[args[0]].length, self.nodes[args[1]].length):
            short, long = sorted(args, key=lambda arg: self.nodes[arg].length)
            return self.apply("mul", short, self.total(long, length))
        if op in ("add", "sub") and 0 in (self.nodes[args[0]].length, self.nodes[args[1]].length):
            return self.apply(op, *(self.total(arg, length) for arg in args))
        return self.make("total", node)

    def needed(self, roots: Iterable[int]) -> list[int]:
        """The nodes that some depend on within their loop, in order."""
        seen: set[int] = set()
        waiting = list(roots)
        while waiting:
            number = waiting.pop()
            if number not in seen:
                seen.add(number)
                waiting += self.arguments(number)
        return sorted(seen)

    def arguments(self, number: int) -> tuple[int, ...]:
        """The nodes that a node is made of, but for those of its arrays."""
        op, args, _ = self.nodes[number]
        if op == "gather":
            return (args[1],)
        return () if op in LEAVES else args

    def read(self, number: int) -> list[int]:
        """The numbers that a node's formula names: conditions are written where they are used."""
        named = []
        waiting = list(self.arguments(number))
        while waiting:
            argument = waiting.pop()
            if self.nodes[argument].op in BOOLEAN:
                waiting += self.arguments(argument)
            elif self.nodes[argument].op != "constant":
                named.append(argument)
        return named

    # -- internals -------------------------------------------------------------------------------

    def _affine(self, start: int, step: int, length: int) -> int:
        if length == 0:
            return self.constant(start)
        index = self.make("index", length=length)
        scaled = self.apply("mul", index, self.constant(step))
        return self.apply("add", scaled, self.constant(start))

    def _simplified(self, op: str, args: tuple[int, ...], values: list[float | None]) -> int | None:
        """An equal node that is simpler, if there is one."""
        first = self.nodes[args[0]]
        if op == "add":
            for i in (0, 1):
                if values[i] == 0:
                    return args[1 - i]
                if self.nodes[args[i]].op == "neg":
                    return self.apply("sub", args[1 - i], self.nodes[args[i]].args[0])
        elif op == "sub":
            if values[1] == 0:
                return args[0]
            if values[0] == 0:
                return self.apply("neg", args[1])
            if self.nodes[args[1]].op == "neg":
                return self.apply("add", args[0], self.nodes[args[1]].args[0])
        elif op == "mul":
            for i in (0, 1):
                if values[i] == 1:
                    return args[1 - i]
                if values[i] == -1:
                    return self.apply("neg", args[1 - i])
                if self.nodes[args[i]].op == "neg":
                    return self.apply(
                        "neg", self.apply("mul", self.nodes[args[i]].args[0], args[1 - i])
                    )
        elif op == "div":
            if values[1] is not None and values[1] != 0 and math.isfinite(1 / values[1]):
                return self.apply("mul", args[0], self.constant(1 / values[1]))
            if first.op == "neg":
                return self.apply("neg", self.apply("div", first.args[0], args[1]))
            if first.length and not self.nodes[args[1]].length and values[0] is None:
                inverse = self.apply("div", self.constant(1.0), args[1])
                return self.apply("mul", args[0], inverse)
        elif op == "exp":
            return self._share(first)
        elif op == "neg":
            if first.op == "neg":
                return first.args[0]
            if first.op == "sub":
                return self.apply("sub", first.args[1], first.args[0])
        elif op == "abs":
            if first.op == "neg":
                return self.apply("abs", first.args[0])
            if first.op == "sub" and first.args[0] > first.args[1]:
                return self.apply("abs", self.apply("sub", *first.args[::-1]))
        elif op == "not":
            if first.op == "not":
                return first.args[0]
            if first.op in ("eq", "ne"):
                return self.apply("ne" if first.op == "eq" else "eq", *first.args)
        elif op in ("eq", "ne"):
            return self._choice(op, args, values)
        elif op == "log":
            if first.op == "exp":
                return first.args[0]
        elif op == "where":
            if args[1] == args[2]:
                return args[1]
            always = self._always(args[0])
            if always is not None:
                return args[1] if always else args[2]
        elif op in ("and", "or"):
            for i in (0, 1):
                always = self._always(args[i])
                if always is not None:
                    return args[1 - i] if always == (op == "and") else args[i]
        elif op == "pow" and values[1] is not None:
            return self._power(args[0], values[1])
        return None

    def _always(self, condition: int) -> bool | None:
        """Whether a condition always holds, or never does: see ``apply_boolean``."""
        op, args, _ = self.nodes[condition]
        constant = op in ("eq", "ne") and args[0] == args[1] and self.known(args[0]) == 0
        return (op == "eq") if constant else None

    def _choice(self, op: str, args: tuple[int, ...], values: list[float | None]) -> int | None:
        """The condition itself, where one of two constants that it chooses is compared."""
        for i in (0, 1):
            node, value = self.nodes[args[i]], values[1 - i]
            if node.op != "where" or value is None:
                continue
            one, other = self.known(node.args[1]), self.known(node.args[2])
            if one is None or other is None:
                continue
            if (one == value) == (other == value):
                return self.apply_boolean((one == value) == (op == "eq"))
            holds = (one == value) == (op == "eq")
            return node.args[0] if holds else self.apply("not", node.args[0])
        return None

    def _share(self, exponent: Node) -> int | None:
        """exp(a - (log s + m)) as exp(a - m) / s, where that is known: the share of a in a sum."""
        if exponent.op != "sub" or self.nodes[exponent.args[1]].op != "add":
            return None
        a, both = exponent.args
        for log, most in (self.nodes[both].args, self.nodes[both].args[::-1]):
            known = self._find("exp", self._find("sub", a, most))
            if self.nodes[log].op == "log" and known is not None:
                return self.apply("div", known, self.nodes[log].args[0])
        return None

    def _find(self, op: str, *args: int | None) -> int | None:
        """The number of a node that exists."""
        if None in args:
            return None
        length = self.common_length(arg for arg in args if arg is not None)
        return self._known.get((op, args, length))

    def _power(self, base: int, exponent: float) -> int | None:
        if exponent == 0:
            return self.constant(1.0)
        if exponent == 1:
            return base
        if exponent == 0.5:
            return self.apply("sqrt", base)
        if exponent in (2.0, 3.0, 4.0):
            square = self.apply("mul", base, base)
            return {2.0: square, 3.0: None, 4.0: None}[exponent] or self.apply(
                "mul", square, base if exponent == 3 else square
            )
        if exponent in (-1.0, -2.0, -0.5):
            positive = self.apply("pow", base, self.constant(-exponent))
            return self.apply("div", self.constant(1.0), positive)
        return None


def _exact(value: Any) -> Any:
    """Numbers as keys: -0.0 and NaN as they are."""
    return value.hex() if isinstance(value, float) else value
