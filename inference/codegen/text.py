"""Expressions as C text."""

from __future__ import annotations

import math
from collections.abc import Callable

from inference.codegen.expressions import BOOLEAN, Expressions

_OPERATORS = {"add": "+", "sub": "-", "mul": "*", "div": "/", "lt": "<", "le": "<=", "gt": ">",
              "ge": ">=", "eq": "==", "ne": "!=", "and": "&", "or": "|"}  # fmt: skip
_NAMES = {"max": "larger", "min": "smaller", "abs": "absolute"}

Reference = Callable[[int], str]


class Text:
    """Writes nodes of one function; keeps which buffers they read."""

    def __init__(self, make: Expressions) -> None:
        self._make = make
        self.reals: list[int] = []
        self.positions: list[int] = []
        self._declared: dict[str, str] = {}

    def loop(self, length: int) -> None:
        """Begin another loop, which declares its buffers anew."""
        del length
        self._declared = {}

    def declarations(self) -> list[str]:
        """The buffers that the present loop reads."""
        return list(self._declared.values())

    def inline(self, node: int) -> bool:
        """Whether a node has no variable of its own: constants and conditions."""
        return self._make.nodes[node].op in BOOLEAN | {"constant"}

    def operand(self, node: int, reference: Reference) -> str:
        """A node where it is used."""
        return self.of(node, reference) if self.inline(node) else reference(node)

    def of(self, node: int, reference: Reference) -> str:
        """The formula of a node."""
        op, args, _ = self._make.nodes[node]
        if op == "constant":
            return number(args[0])
        if op == "data":
            return f"{self.real(args[0])}[{self._place(*args[1:])}]"
        if op == "index":
            return "(real)i"
        parts = [self.operand(arg, reference) for arg in args]
        if op in _OPERATORS:
            return f"({parts[0]} {_OPERATORS[op]} {parts[1]})"
        if op == "neg":
            return f"(-{parts[0]})"
        if op == "not":
            return f"(!{parts[0]})"
        if op == "where":
            return f"({parts[0]} ? {parts[1]} : {parts[2]})"
        return f"{_NAMES.get(op, f'F({op})')}({', '.join(parts)})"

    def real(self, buffer: int) -> str:
        """The name of a buffer of numbers."""
        return self._named(buffer, self.reals, "d", "const real *restrict const", "reals")

    def position(self, node: int, reference: Reference) -> str:
        """A node as a position in an array."""
        op, args, _ = self._make.nodes[node]
        if op == "data":
            kind = "const int32_t *restrict const"
            name = self._named(args[0], self.positions, "q", kind, "positions")
            return f"{name}[{self._place(*args[1:])}]"
        return f"(int32_t){self.operand(node, reference)}"

    def _named(self, buffer: int, known: list[int], letter: str, kind: str, field: str) -> str:
        if buffer not in known:
            known.append(buffer)
        place = known.index(buffer)
        name = f"{letter}{place}"
        self._declared[name] = f"{kind} {name} = data->{field}[{place}];"
        return name

    @staticmethod
    def _place(start: int, step: int) -> str:
        scaled = "i" if step == 1 else f"{step} * i"
        return scaled if start == 0 else f"{start} + {scaled}"


def number(value: float) -> str:
    """A constant, exactly."""
    if math.isnan(value):
        return "NAN"
    if math.isinf(value):
        return "INFINITY" if value > 0 else "(-INFINITY)"
    return f"(real){value!r}" if value >= 0 else f"((real){value!r})"
