"""Fewer operations in a traced graph, for replay: what depends on no input is computed once.

Pyro's handlers and autograd leave many operations on constants (parameters, masks, the ones that a
backward pass starts from) and reshapes to the same shape. Replay costs microseconds for each.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

_aten = torch.ops.aten

_BY_SHAPE = {  # of their first argument only the shape matters
    _aten.zeros_like.default,
    _aten.ones_like.default,
    _aten.full_like.default,
    _aten.empty_like.default,
    _aten.new_zeros.default,
    _aten.new_ones.default,
    _aten.new_full.default,
    _aten.new_empty.default,
}
_RESHAPES = {_aten.view.default, _aten.expand.default, _aten.reshape.default}
_COPIES = {_aten.detach.default, _aten.alias.default, _aten.lift_fresh_copy.default}


def simplified(graph: fx.GraphModule) -> fx.GraphModule:
    """The graph, with the same values, without operations on constants and without idle ones.

    A graph that writes into constants is left as it is.
    """
    constants = _constants(graph)
    if constants is None:
        return merged(graph)
    whole: Any = graph.graph
    for node, value in constants.items():
        if node.op == "get_attr":
            node.meta["constant"] = value
        elif isinstance(value, Tensor) and any(user not in constants for user in node.users):
            name = f"_folded_{node.name}"
            graph.register_buffer(name, value, persistent=False)
            with whole.inserting_before(node):
                kept = whole.get_attr(name)
            kept.meta = {**node.meta, "constant": value}
            node.replace_all_uses_with(kept)
    for node in reversed(constants):  # writes into constants are not dead code by themselves
        if not node.users:
            whole.erase_node(node)
    whole.eliminate_dead_code()
    for node in list(whole.nodes):
        same = _idle(node)
        if same is not None:
            node.replace_all_uses_with(same)
    return merged(graph)


def merged(graph: fx.GraphModule) -> fx.GraphModule:
    """The graph with equal operations on equal arguments done once, and without unused ones."""
    whole: Any = graph.graph
    if not any(_writes(node) for node in whole.nodes):
        seen: dict[Any, Any] = {}
        for node in list(whole.nodes):
            if node.op == "get_attr":
                key: Any = node.target
            elif node.op == "call_function" and not _random(node):
                key = (node.target, _frozen(node.args), _frozen(node.kwargs))
            else:
                continue
            first = seen.setdefault(key, node)
            if first is not node:
                node.replace_all_uses_with(first)
                whole.erase_node(node)
    whole.eliminate_dead_code()
    graph.recompile()
    return graph


def _frozen(value: Any) -> Any:
    """Arguments as a key: equal numbers of different types are kept apart."""
    if isinstance(value, list | tuple):
        return tuple(map(_frozen, value))
    if isinstance(value, dict):
        return tuple((name, _frozen(item)) for name, item in value.items())
    if isinstance(value, Tensor):
        return id(value)
    return (type(value), str(value)) if isinstance(value, int | float | slice) else value


def _writes(node: Any) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _random(node: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _constants(graph: fx.GraphModule) -> dict[Any, Any] | None:
    """The values of the nodes that depend on no input; None where constants are written into."""
    values: dict[Any, Any] = {}
    node: Any
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            value: Any = graph
            for part in str(node.target).split("."):
                value = getattr(value, part)
            values[node] = value
            continue
        if node.op != "call_function":
            continue
        target: Any = node.target
        writes = _writes(node)
        inputs = node.all_input_nodes
        if _random(node):
            continue
        if not hasattr(target, "_schema") and target is not operator.getitem:
            continue
        arguments = node.args
        if target in _BY_SHAPE:
            like = node.args[0].meta["val"]
            arguments = (torch.empty(like.shape, dtype=like.dtype, device=like.device),)
            arguments += node.args[1:]
            inputs = [i for i in inputs if i is not node.args[0]]
        if not all(i in values for i in inputs):
            if writes and any(i in values for i in inputs):
                return None
            continue
        if writes and any(i.op == "get_attr" or len(i.users) > 1 for i in inputs[:1]):
            return None
        arguments, keywords = map_arg((arguments, node.kwargs), values.__getitem__)
        values[node] = target(*arguments, **keywords)
    return values


def _idle(node: Any) -> Any:
    """The node whose value this one repeats, if any."""
    target: Any = node.target
    first: Any = node.args[0] if node.args else None
    same: Any = None
    if target in _RESHAPES or target in _COPIES:
        same = first
    elif target is _aten.add.Tensor and _is_zero(first):
        same = node.args[1]
    elif target in (_aten.add.Tensor, _aten.sub.Tensor) and _is_zero(node.args[1]):
        same = first
    elif target is _aten.sum.dim_IntList and _is(first, _aten.unsqueeze.default):
        dims = first.meta["val"].dim()
        if [d % dims for d in node.args[1]] == [first.args[1] % dims] and len(node.args) == 2:
            same = first.args[0]
    elif target is _aten.neg.default and _is(first, _aten.neg.default):
        same = first.args[0]
    if not isinstance(same, fx.Node):
        return None
    before, after = same.meta.get("val"), node.meta.get("val")
    if not (isinstance(before, Tensor) and isinstance(after, Tensor)):
        return None
    return same if before.shape == after.shape and before.dtype == after.dtype else None


def _is(node: Any, target: Any) -> bool:
    return isinstance(node, fx.Node) and node.target is target


def _is_zero(value: Any) -> bool:
    if isinstance(value, fx.Node):
        constant = value.meta.get("constant")
        return constant is not None and not bool(constant.any())
    return isinstance(value, int | float) and value == 0
