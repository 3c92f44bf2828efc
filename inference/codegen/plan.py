"""In which order a function's numbers and loops are computed."""

from __future__ import annotations

from typing import NamedTuple

from inference.codegen.expressions import BOOLEAN, LEAVES, REDUCTIONS, Expressions, Segment
from inference.codegen.lowering import Function

_PARTS = 8
_PART_WORK = 20_000  # of a loop for one chain, from which on it is cut into parts

_COSTS = {"exp": 8, "log": 8, "log1p": 10, "expm1": 10, "pow": 30, "tanh": 10, "lgamma": 60,
          "digamma": 30, "trigamma": 30, "sin": 10, "cos": 10, "div": 4, "sqrt": 4,
          "gather": 4}  # fmt: skip


class Loop(NamedTuple):
    """What one loop computes."""

    level: int
    length: int
    totals: list[int]  # nodes of sums and extremes
    arrays: list[int]  # filled
    gradient: list[Segment]  # written
    parts: int = 1
    work: int = 0  # operations for one chain

    def roots(self, make: Expressions) -> list[int]:
        """The nodes that are computed for each index."""
        roots = [make.nodes[node].args[0] for node in self.totals]
        for number in self.arrays:
            kind, args, _ = make.arrays[number]
            if kind == "placed":
                roots += [s.node for s in args[0] if s.length == self.length]
            else:
                roots += args if kind == "scatter" else args[1:]
        return roots + [segment.node for segment in self.gradient]


class Plan(NamedTuple):
    """Numbers by level, loops, and where both leave what others need."""

    numbers: list[list[int]]  # by level: nodes of one number per chain
    loops: list[Loop]
    slots: dict[int, int]  # of numbers that are kept
    arrays: list[int]  # in memory, in their order
    node_levels: list[int]
    points: dict[int, int]  # arrays that are part of the point: where they begin
    work: int

    @property
    def levels(self) -> int:
        return len(self.numbers)

    def level(self, node: int) -> int:
        """How many loops end before a node can be computed."""
        return self.node_levels[node]

    def point_of(self, array: int) -> int | None:
        """Where in the point an array begins, if it is a part of it."""
        return self.points.get(array)


def planned(function: Function) -> Plan:
    """The plan of a function."""
    make = function.expressions
    points = {
        number: start
        for number in range(len(make.arrays))
        if (start := _start_in_point(make, number)) is not None
    }
    levels, array_levels = _levels(make, points)
    nodes, arrays = _reached(function)
    arrays = [a for a in arrays if a not in points]
    loops: dict[tuple[int, int], Loop] = {}

    def loop(level: int, length: int) -> Loop:
        return loops.setdefault((level, length), Loop(level, length, [], [], []))

    for node in nodes:
        if make.nodes[node].op in REDUCTIONS:
            (argument,) = make.nodes[node].args
            loop(levels[argument], make.nodes[argument].length).totals.append(node)
    for number in arrays:
        kind, args, _ = make.arrays[number]
        if kind == "placed":
            for level, length in {(levels[s.node], s.length) for s in args[0] if s.length}:
                loop(level, length).arrays.append(number)
        else:
            node = args[1] if kind == "dots" else args[0]
            length = make.nodes[node].length or make.nodes[args[-1]].length
            loop(array_levels[number] - 1, length).arrays.append(number)
    for segment in function.gradient:
        if segment.length:
            loop(levels[segment.node], segment.length).gradient.append(segment)

    top = max([levels[n] for n in nodes] + [key[0] for key in loops], default=0)
    numbers: list[list[int]] = [[] for _ in range(top + 1)]
    kept = set()
    for node in nodes:
        op, _, length = make.nodes[node]
        if op in REDUCTIONS:
            kept.add(node)
        elif not length and op != "constant":
            numbers[levels[node]].append(node)
    for node in nodes:
        op, _, length = make.nodes[node]
        apart = length or op in REDUCTIONS
        kept.update(
            argument
            for argument in make.read(node)
            if not make.nodes[argument].length and (apart or levels[argument] != levels[node])
        )
    for one in loops.values():
        for root in one.roots(make):
            read = make.read(root) if make.nodes[root].op in BOOLEAN else [root]
            kept.update(n for n in read if not make.nodes[n].length)
    kept = {node for node in kept if make.nodes[node].op != "constant"}
    slots = {node: place for place, node in enumerate(sorted(kept))}
    finished = [_sized(one, make) for _, one in sorted(loops.items())]
    work = sum(one.work for one in finished) + sum(map(len, numbers))
    return Plan(numbers, finished, slots, arrays, levels, points, work)


def _sized(loop: Loop, make: Expressions) -> Loop:
    nodes = make.needed(loop.roots(make))
    each = sum(_COSTS.get(make.nodes[n].op, 1) for n in nodes if make.nodes[n].length)
    each += sum(make.arrays[make.nodes[n].args[1]].size for n in nodes
                if make.nodes[n].op == "matvec")  # fmt: skip
    each += sum(make.arrays[a].size for a in loop.arrays if make.arrays[a].kind == "dots")
    work = each * loop.length
    parts = _PARTS if work > _PART_WORK and loop.length >= 64 * _PARTS else 1
    return loop._replace(parts=parts, work=work)


def _start_in_point(make: Expressions, number: int) -> int | None:
    kind, args, size = make.arrays[number]
    if kind != "placed" or len(args[0]) != 1:
        return None
    start, step, length, node = args[0][0]
    op, place, _ = make.nodes[node]
    whole = (start, step, length) == (0, 1, size) and op == "xs" and place[1] == 1
    return place[0] if whole else None


def _levels(make: Expressions, points: dict[int, int]) -> tuple[list[int], dict[int, int]]:
    """The level of every node, and of every array."""
    levels: list[int] = []
    arrays: dict[int, int] = {}

    def of_array(number: int) -> int:
        if number not in arrays:
            kind, args, _ = make.arrays[number]
            if number in points:
                arrays[number] = 0
            elif kind == "placed":
                arrays[number] = max(levels[s.node] + (s.length > 0) for s in args[0])
            else:
                node = args[1] if kind == "dots" else args[0]
                arrays[number] = levels[node] + 1
        return arrays[number]

    for op, args, _ in make.nodes:
        if op in ("entry", "entries", "gather"):
            levels.append(of_array(args[0]))
        elif op == "matvec":
            levels.append(of_array(args[1]))
        elif op in LEAVES:
            levels.append(0)
        else:
            levels.append(max(levels[arg] for arg in args) + (op in REDUCTIONS))
    for number in range(len(make.arrays)):
        of_array(number)
    return levels, arrays


def _reached(function: Function) -> tuple[list[int], list[int]]:
    """The nodes and arrays that the results are made of."""
    make = function.expressions
    nodes: set[int] = set()
    arrays: set[int] = set()
    waiting = [function.value, *(segment.node for segment in function.gradient)]
    while waiting:
        number = waiting.pop()
        if number in nodes:
            continue
        nodes.add(number)
        op, args, _ = make.nodes[number]
        waiting += make.arguments(number)
        if op in ("entry", "entries", "gather", "matvec"):
            array = args[1] if op == "matvec" else args[0]
            if array not in arrays:
                arrays.add(array)
                kind, parts, _ = make.arrays[array]
                if kind == "placed":
                    waiting += [segment.node for segment in parts[0]]
                else:
                    waiting += parts[1:] if kind == "dots" else parts
    return sorted(nodes), sorted(arrays)
