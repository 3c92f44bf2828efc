"""The tensor operations of a function and of its gradient, as they reach PyTorch's dispatcher.

Tensors are told apart by where their values lie: as long as all are kept and none is written to,
the same memory, shape and strides hold the same values, whatever Python object shows them.
Reverse-mode differentiation needs this, since it gives back what it saved as new objects. Nothing
is imported but the dispatcher, where ``make_fx`` takes a second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

_aten = torch.ops.aten
_READS = {  # operations whose results leave the tensors
    _aten._local_scalar_dense.default,
    _aten.is_nonzero.default,
    _aten.equal.default,
    _aten.nonzero.default,
}

_TAKEN_OUT = {"numpy", "tolist", "__array__", "__dlpack__"}


class Untraceable(Exception):  # noqa: N818  # not an error: another tier serves
    """Why a function cannot be recorded, or its operations cannot be written as C."""


class Symbol(NamedTuple):
    """A tensor that depends on the input: the ``number``-th result of the tape."""

    number: int
    shape: tuple[int, ...]


class Unrepaid(Untraceable):
    """The function could be compiled, but for the work ahead that would not pay."""


class Operation(NamedTuple):
    """A call of the dispatcher; symbols stand for tensors that depend on the input."""

    target: Any
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    results: list[Symbol | None]  # None: a result that is no tensor


class Tape(NamedTuple):
    """All operations in their order; ``outputs`` are symbols, or tensors of constants."""

    input: Symbol
    operations: list[Operation]
    outputs: list[Symbol | Tensor]


def record(function: Callable[[Tensor], Tensor], example: Tensor) -> Tape:
    """The operations of ``function``, (D,) -> (), and of its gradient, (D,), at ``example``.

    Raises ``Untraceable`` where they depend on values, draw random numbers or write to tensors that
    others share.
    """
    x = example.detach().clone().requires_grad_(True)
    recorder = _Recorder(x)
    with torch.enable_grad(), recorder, _Readings(recorder):
        value = function(x)
        if value.requires_grad:
            (gradient,) = torch.autograd.grad(value, x, materialize_grads=True)
        else:
            gradient = torch.zeros_like(x)
    outputs = [recorder.symbol(value), recorder.symbol(gradient)]
    return Tape(recorder.input, recorder.operations, outputs)


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)


class _Recorder(TorchDispatchMode):
    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self._kept: list[Tensor] = []
        self._symbols: dict[Any, Symbol] = {}
        self._shared: dict[int, set[Any]] = {}  # places by storage
        self._number = 0
        self.input = self._new(x)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to wrap the mode for Dynamo would import all of it

    def symbol(self, tensor: Tensor) -> Symbol | Tensor:
        return self._symbols.get(_place(tensor), tensor) if tensor.numel() else tensor

    def _new(self, tensor: Tensor) -> Symbol:
        symbol = Symbol(self._number, tuple(tensor.shape))
        self._number += 1
        if tensor.numel():
            place = _place(tensor)
            self._symbols[place] = symbol
            self._shared.setdefault(tensor.untyped_storage().data_ptr(), set()).add(place)
        self._kept.append(tensor)
        return symbol

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}

        def seen(value: Any) -> Any:
            return self.symbol(value) if isinstance(value, Tensor) else value

        arguments, keywords = tree_map(seen, (args, kwargs))
        traced = any(isinstance(leaf, Symbol) for leaf in _leaves((arguments, keywords)))
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise Untraceable(f"{func} draws random numbers")
        if not traced:
            result = func(*args, **kwargs)
            self._kept += [leaf for leaf in tree_flatten(result)[0] if isinstance(leaf, Tensor)]
            return result
        if func in _READS:
            raise Untraceable("its course depends on values")
        given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
        written = [
            given[argument.name]
            for argument in func._schema.arguments
            if argument.alias_info is not None
            and argument.alias_info.is_write
            and argument.name in given
        ]
        for tensor in written:
            others = self._shared.get(tensor.untyped_storage().data_ptr(), set())
            if not others <= {_place(tensor)} or not isinstance(self.symbol(tensor), Symbol):
                raise Untraceable(f"{func} writes to a tensor that others share")
        result = func(*args, **kwargs)
        flat = list(result) if isinstance(result, tuple | list) else [result]
        results = [self._new(each) if isinstance(each, Tensor) else None for each in flat]
        self.operations.append(Operation(func, arguments, keywords, results))
        return result


class _Readings(TorchFunctionMode):
    """Refuses what takes values out of tensors without the dispatcher's knowledge."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in _TAKEN_OUT and isinstance(self._recorder.symbol(args[0]), Symbol):
            raise Untraceable(f"its course may depend on values ({name})")
        return func(*args, **(kwargs or {}))


def _leaves(value: Any) -> list[Any]:
    """Symbols are tuples: they are leaves here."""
    return tree_flatten(value, is_leaf=lambda leaf: isinstance(leaf, Symbol))[0]
