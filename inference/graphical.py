"""A program's graphical model, laid out and drawn as SVG without another program.

Sites stand in rows, each below all that it depends on; those of a plate stand side by side in a
block of columns of their own, so that its frame holds no other site where plates are nested.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from markupsafe import Markup, escape

from inference.program import Program, isolated

_MOST = 40  # sites that a drawing can hold
_ROW, _GAP, _LETTER, _LEAST = 74, 26, 7.2, 64
_HIGH = 34  # of a site


class Graph(NamedTuple):
    """A drawing and what it shows in words; no drawing where there are too many sites."""

    svg: Markup
    text: str


class _Node(NamedTuple):
    name: str
    law: str
    parents: list[str]
    plates: tuple[str, ...]
    observed: bool
    computed: bool


def graph_of(program: Program) -> Graph | None:
    """The graphical model of a program; None where the program hides its dependencies."""
    try:
        with isolated(program.example().dtype):
            nodes = _nodes(program.relations())
    except Exception:  # code outside torch, such as numba's, cannot be followed
        return None
    text = "; ".join(_sentence(node) for node in nodes)
    return Graph(_draw(nodes, text) if len(nodes) <= _MOST else Markup(""), text)


def _nodes(relations: dict[str, Any]) -> list[_Node]:
    plates: dict[str, set[str]] = {}
    for plate, sites in relations["plate_sample"].items():
        plates.setdefault(plate.split("__CLONE")[0], set()).update(sites)
    outer = sorted(plates, key=lambda plate: (-len(plates[plate]), plate))
    nodes = []
    for name, parents in relations["sample_sample"].items():
        law = relations["sample_dist"][name].replace("Unit", "factor")
        own = tuple(plate for plate in outer if name in plates[plate])
        computed = law == "Deterministic"
        observed = name in relations["observed"] and not computed
        nodes.append(_Node(name, law, list(parents), own, observed, computed))
    return nodes


def _sentence(node: _Node) -> str:
    given = f" given {', '.join(node.parents)}" if node.parents else ""
    plates = f", in plate {' and '.join(node.plates)}" if node.plates else ""
    if node.computed:
        return f"{node.name} is computed{' from' + given[6:] if given else ''}{plates}"
    return f"{'observed ' if node.observed else ''}{node.name} is {node.law}{given}{plates}"


def _draw(nodes: list[_Node], text: str) -> Markup:
    named = {node.name: node for node in nodes}
    level: dict[str, int] = {}
    for node in nodes:  # in the order of the program: parents come first
        above = [level[p] for p in node.parents if p in level]
        level[node.name] = 1 + max(above, default=-1)
    wide = {n.name: max(_LEAST, _LETTER * max(len(n.name), len(n.law)) + 18) for n in nodes}
    centre: dict[str, tuple[float, float]] = {}
    spans: dict[tuple[str, ...], tuple[float, float]] = {}
    deepest = max((len(node.plates) for node in nodes), default=0)
    margin = 16 + 14 * deepest
    left = float(margin)
    for block in sorted({node.plates for node in nodes}):
        rows: dict[int, list[str]] = {}
        for node in nodes:
            if node.plates == block:
                rows.setdefault(level[node.name], []).append(node.name)
        width = max(sum(wide[n] + _GAP for n in row) - _GAP for row in rows.values())
        for depth, row in rows.items():
            x = left + (width - sum(wide[n] + _GAP for n in row) + _GAP) / 2
            for name in row:
                centre[name] = (x + wide[name] / 2, margin + 20 + depth * _ROW)
                x += wide[name] + _GAP
        spans[block] = (left, left + width)
        left += width + _GAP + 28 * max(1, deepest)
    bottom = max(y for _, y in centre.values()) + _HIGH / 2 + margin + 8
    size = f"{left + margin - _GAP:.0f} {bottom:.0f}"
    parts = [
        Markup(
            '<svg class="graph" role="img" aria-label="Graphical model: {}" viewBox="0 0 {}" '
            'style="max-width:{}px">'
            '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7.5" refY="4" markerWidth="8" '
            'markerHeight="8" orient="auto"><path d="M0 0 8 4 0 8z" fill="currentColor"/></marker>'
            "</defs>"
        ).format(text, size, size.split(maxsplit=1)[0])
    ]
    parts += [_plate(plate, nodes, centre, wide) for plate in _by_size(nodes)]
    for node in nodes:
        parts += [_arrow(centre[p], centre[node.name], wide[p], wide[node.name])
                  for p in node.parents if p in named]  # fmt: skip
    parts += [_site(node, *centre[node.name], wide[node.name]) for node in nodes]
    return Markup("").join(parts) + Markup("</svg>")


def _by_size(nodes: list[_Node]) -> list[str]:
    plates = {plate for node in nodes for plate in node.plates}
    return sorted(plates, key=lambda p: (-sum(p in node.plates for node in nodes), p))


def _plate(
    plate: str, nodes: list[_Node], centre: dict[str, tuple[float, float]], wide: dict[str, float]
) -> Markup:
    inside = [node for node in nodes if plate in node.plates]
    # a plate within others has less room around its sites
    pad = 10 + 13 * max(len(node.plates) - 1 - node.plates.index(plate) for node in inside)
    left = min(centre[n.name][0] - wide[n.name] / 2 for n in inside) - pad
    right = max(centre[n.name][0] + wide[n.name] / 2 for n in inside) + pad
    top = min(centre[n.name][1] for n in inside) - _HIGH / 2 - pad
    bottom = max(centre[n.name][1] for n in inside) + _HIGH / 2 + pad + 8
    return Markup(
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" '
        f'height="{bottom - top:.1f}" rx="6" class="plate"/>'
        f'<text x="{right - 6:.1f}" y="{bottom - 4:.1f}" text-anchor="end" class="small">'
        f"{escape(plate)}</text>"
    )


def _arrow(
    start: tuple[float, float], end: tuple[float, float], width: float, width_end: float
) -> Markup:
    """From border to border of two ellipses."""
    (x1, y1), (x2, y2) = start, end
    dx, dy = x2 - x1, y2 - y1
    a = ((2 * dx / width) ** 2 + (2 * dy / _HIGH) ** 2) ** -0.5
    b = ((2 * dx / width_end) ** 2 + (2 * dy / _HIGH) ** 2) ** -0.5
    return Markup(
        f'<path d="M{x1 + a * dx:.1f} {y1 + a * dy:.1f} {x2 - b * dx:.1f} {y2 - b * dy:.1f}" '
        'class="edge" marker-end="url(#arrow)"/>'
    )


def _site(node: _Node, x: float, y: float, width: float) -> Markup:
    kind = "observed" if node.observed else "computed" if node.computed else "latent"
    law = "" if node.computed else node.law
    lift = 0 if node.computed else -2
    return Markup(
        f'<g transform="translate({x:.1f} {y:.1f})" text-anchor="middle">'
        f'<ellipse rx="{width / 2:.1f}" ry="{_HIGH / 2}" class="{kind}"/>'
        f'<text y="{lift + 2}">{escape(node.name)}</text>'
        f'<text y="11" class="small">{escape(law)}</text></g>'
    )
