"""A function of expressions as C, for any number of chains.

Chains come in chunks. What is one number per chain is computed for several chains at once, in the
lanes of a vector register; a loop runs over blocks of rows, each for all chains of the chunk while
the data are in the cache, with rows in the lanes. A *level* is how many loops must have ended
before: sums of level 0 enter numbers of level 1. Large loops are cut into parts that threads share;
sums are put together in the order of the parts, whoever computed them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from inference.codegen.expressions import Segment
from inference.codegen.lowering import Function
from inference.codegen.plan import Loop, Plan, planned
from inference.codegen.prelude import prelude
from inference.codegen.text import Text
from inference.codegen.values import stride

_CHUNK = 64  # chains
_CACHE = 24_000  # bytes of data in a block of rows


class Source(NamedTuple):
    """C code, and which buffers it is called with, in their order."""

    text: str
    reals: list[int]
    positions: list[int]
    work: int  # operations for one chain


def emit(function: Function, dtype: torch.dtype) -> Source:
    """The C source of ``density``; see ``inference.native`` for how it is called."""
    return _Emission(function, dtype).source()


class _Emission:
    def __init__(self, function: Function, dtype: torch.dtype) -> None:
        self.make = function.expressions
        self.function = function
        self.plan: Plan = planned(function)
        self.text = Text(self.make)
        self.double = dtype == torch.float64
        self.lanes = 8 if self.double else 16
        self.covered = _covers(function.gradient, function.dim)

    def source(self) -> Source:
        plan = self.plan
        loops = [self._loop(number, loop) for number, loop in enumerate(plan.loops)]
        steps = []
        for level in range(plan.levels):
            steps.append(self._numbers(level))
            for number, loop in enumerate(plan.loops):
                if loop.level == level:
                    steps.append(self._call(number, loop))
        body = "\n".join(steps)
        reals, positions = self.text.reals, self.text.positions
        arrays = " + ".join(["0", *(str(self.make.arrays[a].size) for a in plan.arrays)])
        text = f"""{prelude(self.double)}
enum {{ DIM = {self.function.dim}, LANES = {self.lanes}, CHUNK = {_CHUNK} }};
enum {{ SLOTS = {len(plan.slots)} }};

{"".join(loops)}
static int chunk(const struct data *data, const int64_t chains, const real *restrict x,
                 real *restrict value, real *restrict gradient)
{{
    const int64_t threads = data->threads;
    real *const slots = calloc(SLOTS * CHUNK + chains * ({arrays}) + 1, sizeof(real));
    if (!slots) return 1;
    real *const arrays = slots + SLOTS * CHUNK;
    (void)threads, (void)arrays;
{"" if self.covered else "    memset(gradient, 0, chains * DIM * sizeof(real));"}
{body}
    free(slots);
    return 0;
}}

void density(int64_t chains, const real *x, real *value, real *gradient, void *context)
{{
    const struct data *data = context;
    const int64_t chunks = (chains + CHUNK - 1) / CHUNK;
    PARALLEL(data->threads > 1 && chunks > 1 && chains * {plan.work} > WORTH, data->threads)
    for (int64_t k = 0; k < chunks; k++) {{
        const int64_t first = k * CHUNK, left = chains - first;
        const int64_t n = left < CHUNK ? left : CHUNK;
        if (chunk(data, n, x + first * DIM, value + first, gradient + first * DIM))
            for (int64_t c = first; c < first + n; c++) value[c] = NAN;
    }}
}}
"""
        return Source(text, reals, positions, plan.work)

    # -- one number per chain --------------------------------------------------------------------

    def _numbers(self, level: int) -> str:
        """What is computed at a level for each chain, several chains at a time."""
        plan, make, text = self.plan, self.make, self.text
        nodes = plan.numbers[level]
        inside = set(nodes)
        loads, lines, stores = [], [], []

        def reference(node: int) -> str:
            return f"t{node}" if node in inside else f"slots[{plan.slots[node]} * CHUNK + g + w]"

        for node in nodes:
            op, args, _ = make.nodes[node]
            if op == "x":
                loads.append(f"in[{len(loads)}][w] = p[{args[0]}];")
                lines.append(f"const real t{node} = in[{len(loads) - 1}][w];")
            elif op == "entry":
                place = f"arrays[{self._at(args[0])} + c * {make.arrays[args[0]].size} + {args[1]}]"
                loads.append(f"in[{len(loads)}][w] = {place};")
                lines.append(f"const real t{node} = in[{len(loads) - 1}][w];")
            elif not text.inline(node):
                lines.append(f"const real t{node} = {text.of(node, reference)};")
            if node in plan.slots:
                lines.append(f"slots[{plan.slots[node]} * CHUNK + g + w] = t{node};")

        def store(node: int, place: str, sign: str = "=") -> None:
            number = len(stores)
            lines.append(f"out[{number}][w] = {text.operand(node, reference)};")
            stores.append(f"{place} {sign} out[{number}][w];")

        if plan.level(self.function.value) == level:
            store(self.function.value, "value[g + w]")
        for segment in self.function.gradient:
            if segment.length == 0 and plan.level(segment.node) == level:
                sign = "=" if self.covered else "+="
                store(segment.node, f"gradient[(g + w) * DIM + {segment.start}]", sign)
        for array in plan.arrays:
            kind, args, size = make.arrays[array]
            for segment in args[0] if kind == "placed" else ():
                if segment.length == 0 and plan.level(segment.node) == level:
                    place = f"arrays[{self._at(array)} + (g + w) * {size} + {segment.start}]"
                    store(segment.node, place, "+=")
        if not lines:
            return ""
        loading = (
            f"""        real in[{len(loads)}][LANES];
        for (int64_t w = 0; w < LANES; w++) {{
            const int64_t c = g + (w < n ? w : n - 1);
            const real *const p = x + c * DIM;
            (void)p;
            {_lines(loads, 12)}
        }}"""
            if loads
            else ""
        )
        storing = (
            f"""        for (int64_t w = 0; w < n; w++) {{
            {_lines(stores, 12)}
        }}"""
            if stores
            else ""
        )
        return f"""
    for (int64_t g = 0; g < chains; g += LANES) {{
        const int64_t n = chains - g < LANES ? chains - g : LANES;
        (void)n;
{loading}
        {f"real out[{len(stores)}][LANES];" if stores else ""}
        SIMD
        for (int64_t w = 0; w < LANES; w++) {{
            {_lines(lines, 12)}
        }}
{storing}
    }}"""

    # -- loops -----------------------------------------------------------------------------------

    def _loop(self, number: int, loop: Loop) -> str:
        """The function of one part of a loop."""
        plan, make, text = self.plan, self.make, self.text
        roots = loop.roots(make)
        nodes = make.needed(roots)
        block = self._block(loop, nodes)
        outer, lines, after = [], [], []
        outside = {n for node in nodes for n in make.read(node)} | set(roots)
        for node in sorted(outside):
            if node in plan.slots:
                outer.append(f"const real t{node} = slots[{plan.slots[node]} * CHUNK + c];")
        text.loop(loop.length)

        def reference(node: int) -> str:
            return f"t{node}"

        def array(a: int) -> str:
            start = plan.point_of(a)
            if start is not None:
                return f"(x + c * DIM + {start})"
            return f"(arrays + {self._at(a)} + c * {make.arrays[a].size})"

        for node in nodes:
            op, args, length = make.nodes[node]
            if length == 0:
                continue
            if op == "matvec":
                matrix = text.real(args[0])
                rows = make.arrays[args[1]].size
                outer.append(f"ALIGNED real m{node}[{block}];")
                outer.append(
                    f"matvec(n, {rows}, {matrix} + b, {stride(length)}, {array(args[1])}, m{node});"
                )
                lines.append(f"const real t{node} = m{node}[k];")
            elif op == "xs":
                lines.append(f"const real t{node} = x[c * DIM + {_affine(*args)}];")
            elif op in ("entries", "gather"):
                where = _affine(*args[1:]) if op == "entries" else text.position(args[1], reference)
                lines.append(f"const real t{node} = {array(args[0])}[{where}];")
            elif not text.inline(node):
                lines.append(f"const real t{node} = {text.of(node, reference)};")
        reductions = []
        for slot, node in enumerate(loop.totals):
            op, (argument,), _ = make.nodes[node]
            value = text.operand(argument, reference)
            first, join, sign = {
                "total": ("0", f"a{slot} += {value};", "+"),
                "largest": ("-INFINITY", f"a{slot} = larger(a{slot}, {value});", "max"),
                "smallest": ("INFINITY", f"a{slot} = smaller(a{slot}, {value});", "min"),
            }[op]
            outer.append(f"real a{slot} = {first};")
            reductions.append(f"reduction({sign}:a{slot})" if op == "total" else "")
            lines.append(join)
            place = f"sums[{slot} * CHUNK + c]"
            name = {"total": "", "largest": "larger", "smallest": "smaller"}[op]
            after.append(
                f"{place} += a{slot};" if not name else f"{place} = {name}({place}, a{slot});"
            )
        offset = f"{len(loop.totals)} * CHUNK"
        for a in loop.arrays:
            kind, args, size = make.arrays[a]
            if kind == "placed":
                for segment in args[0]:
                    if segment.length == loop.length and plan.level(segment.node) == loop.level:
                        value = text.operand(segment.node, reference)
                        place = _affine(segment.start, segment.step)
                        lines.append(f"{array(a)}[{place}] += {value};")
                continue
            node = args[1] if kind == "dots" else args[0]
            outer.append(f"ALIGNED real r{a}[{block}];")
            lines.append(f"r{a}[k] = {text.operand(node, reference)};")
            into = f"(sums + {offset} + c * {size})"
            if kind == "dots":
                matrix = text.real(args[0])
                apart = stride(loop.length)
                after.append(f"dots(n, {size}, {matrix} + b, {apart}, r{a}, {into});")
            else:
                where = text.position(args[1], reference)
                after.append(
                    f"for (int64_t k = 0; k < n; k++) {{ const int64_t i = b + k; (void)i; "
                    f"{into}[{where}] += r{a}[k]; }}"
                )
            offset += f" + chains * {size}"
        for segment in loop.gradient:
            value = text.operand(segment.node, reference)
            sign = "=" if self.covered else "+="
            place = _affine(segment.start, segment.step)
            lines.append(f"gradient[c * DIM + {place}] {sign} {value};")
        return f"""
static void loop{number}(const struct data *data, const int64_t part, const int64_t chains,
                         const real *restrict x, real *restrict gradient,
                         const real *restrict slots, real *restrict arrays, real *restrict sums)
{{
    {_lines(text.declarations(), 4)}
    const int64_t low = PART(part, {loop.parts}, {loop.length});
    const int64_t high = PART(part + 1, {loop.parts}, {loop.length});
    (void)x, (void)gradient, (void)slots, (void)arrays, (void)sums;
    for (int64_t b = low; b < high; b += {block})
    for (int64_t c = 0; c < chains; c++) {{
        const int64_t n = high - b < {block} ? high - b : {block};
        {_lines(outer, 8)}
        _Pragma("omp simd {" ".join(filter(None, reductions))}")
        for (int64_t k = 0; k < n; k++) {{
            const int64_t i = b + k;
            (void)i;
            {_lines(lines, 12)}
        }}
        {_lines(after, 8)}
    }}
}}
"""

    def _call(self, number: int, loop: Loop) -> str:
        """Run all parts of a loop, and put their sums together."""
        make = self.make
        sizes = [make.arrays[a].size for a in loop.arrays if make.arrays[a].kind != "placed"]
        width = f"({len(loop.totals)} * CHUNK + chains * {sum(sizes)})"
        first, join = [], []
        for slot, node in enumerate(loop.totals):
            op = make.nodes[node].op
            place = f"slots[{self.plan.slots[node]} * CHUNK + c]"
            part = f"sums[q * width + {slot} * CHUNK + c]"
            start = {"largest": "-INFINITY", "smallest": "INFINITY"}.get(op)
            if start:
                first.append(f"{part} = {start};")
                name = {"largest": "larger", "smallest": "smaller"}[op]
                join.append(f"{place} = q ? {name}({place}, {part}) : {part};")
            else:
                join.append(f"{place} += {part};")
        offset = f"{len(loop.totals)} * CHUNK"
        for a in loop.arrays:
            kind, _, size = make.arrays[a]
            if kind == "placed":
                continue
            join.append(
                f"for (int64_t j = 0; j < {size}; j++) arrays[{self._at(a)} + c * {size} + j] += "
                f"sums[q * width + {offset} + c * {size} + j];"
            )
            offset += f" + chains * {size}"
        begin = (
            "".join(first)
            and f"""
        for (int64_t q = 0; q < {loop.parts}; q++)
            for (int64_t c = 0; c < chains; c++) {{ {" ".join(first)} }}"""
        )
        return f"""
    {{
        const int64_t width = {width};
        real *const sums = calloc({loop.parts} * width + 1, sizeof(real));
        if (!sums) {{ free(slots); return 1; }}{begin}
        PARALLEL(threads > 1 && {int(loop.parts > 1)} && chains * {loop.work} > WORTH, threads)
        for (int64_t q = 0; q < {loop.parts}; q++)
            loop{number}(data, q, chains, x, gradient, slots, arrays, sums + q * width);
        for (int64_t q = 0; q < {loop.parts}; q++)
            for (int64_t c = 0; c < chains; c++) {{
                {_lines(join, 16)}
            }}
        free(sums);
    }}"""

    def _block(self, loop: Loop, nodes: list[int]) -> int:
        """Rows whose data stay in the cache while all chains pass over them."""
        make = self.make
        columns = sum(make.nodes[n].op == "data" for n in nodes)
        columns += sum(make.arrays[make.nodes[n].args[1]].size for n in nodes
                       if make.nodes[n].op == "matvec")  # fmt: skip
        columns += sum(make.arrays[a].size for a in loop.arrays if make.arrays[a].kind == "dots")
        rows = _CACHE // (8 * max(columns, 1)) // 64 * 64
        return min(max(rows, 64), 1024, -(-loop.length // 8) * 8)

    def _at(self, array: int) -> str:
        """Where the array of the first chain begins."""
        before = self.plan.arrays[: self.plan.arrays.index(array)]
        return f"chains * {sum(self.make.arrays[a].size for a in before)}"


def _covers(segments: tuple[Segment, ...], size: int) -> bool:
    """Whether segments fill a vector, each place once."""
    filled = [place for segment in segments for place in segment.places()]
    return len(filled) == size and len(set(filled)) == size


def _affine(start: int, step: int) -> str:
    scaled = "i" if step == 1 else f"{step} * i"
    return scaled if start == 0 else f"{start} + {scaled}"


def _lines(lines: list[str], indent: int) -> str:
    return ("\n" + " " * indent).join(lines)
