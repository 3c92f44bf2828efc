"""From a log density of one point to a C function of many."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from inference.codegen import compiler
from inference.codegen.emission import Source, emit
from inference.codegen.expressions import Expressions
from inference.codegen.lowering import lower
from inference.codegen.tape import Unrepaid, Untraceable, record
from inference.native import Native

_SECONDS_PER_NODE = 7e-4  # of the compiler
_SECONDS_OF_TRACE = 1.0  # of the other tiers, before their first evaluation
_SECONDS_PER_OPERATION = 3.5e-6  # of PyTorch, for each evaluation

_ALIGNED = 64  # bytes: a line of the cache
_CACHED = 16 << 20  # bytes of data; more are read once for all chains, not by each thread

_WORD = ctypes.c_int64
_ADDRESS = ctypes.c_void_p


@dataclass
class Attempt:
    """Whether a function has been written as C, for all that evaluate it to share."""

    tried: bool = False
    density: Density | None = None
    compiles: bool = True  # False once a compiler was missing or failed


@final
class Density:
    """A log density and its gradient, compiled: (C, D) -> (C,), (C, D), for any C.

    Args:
        function: the log density of one point, (D,) -> ().
        dim: D.
        dtype: float64 or float32.
        threads: at most so many share large work.
        calls: refuse what so few evaluations would not repay; None compiles in any case.
        seconds: refuse what the compiler would take longer for, as predicted from the code's size.

    Raises:
        Untraceable: the function cannot be written as C, and why.
        CompilerError: there is no compiler, or it failed.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        dim: int,
        dtype: torch.dtype,
        threads: int,
        *,
        calls: int | None = None,
        seconds: float | None = None,
    ) -> None:
        if dtype not in (torch.float64, torch.float32):
            raise Untraceable(f"numbers are {dtype}")
        self.function = function
        # numbers of no meaning to the function, so that no branch is taken by chance
        example = torch.linspace(-0.7, 0.9, dim, dtype=dtype)
        tape = record(function, example)
        lowered = lower(tape)
        compiling = len(lowered.expressions.nodes) * _SECONDS_PER_NODE
        saved = _SECONDS_OF_TRACE + (calls or 0) * len(tape.operations) * _SECONDS_PER_OPERATION
        if calls is not None and compiling > saved:
            raise Unrepaid("to compile it would take longer than it saves")
        if seconds is not None and compiling > seconds:
            raise Unrepaid("to compile it would take too much of the time that there is")
        source = emit(lowered, dtype)
        self._library = compiler.load(source.text)
        self._arrays = _arrays(source, lowered.expressions, dtype)
        reals, positions = (_addresses(arrays) for arrays in self._arrays)
        data = reals.ctypes.data, positions.ctypes.data
        self._contexts = np.array([[count, *data] for count in sorted({threads, 1})], np.int64)
        self._call: Any = self._library.density
        self._call.argtypes = [_WORD, *[_ADDRESS] * 4]
        self._call.restype = None
        address = ctypes.cast(self._call, _ADDRESS).value
        assert address is not None
        keep = (self._library, self._arrays, reals, positions, self._contexts)
        size = sum(array.nbytes for arrays in self._arrays for array in arrays)
        single, many = (self._contexts[k].ctypes.data for k in (0, -1))
        self.native = Native(address, many, keep, single if size <= _CACHED else 0, source.work)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(C, D) -> (C,), (C, D)."""
        x = x.contiguous()
        value, gradient = x.new_empty(len(x)), torch.empty_like(x)

        def call(context: int, *parts: Tensor) -> None:
            self._call(len(parts[0]), *(part.data_ptr() for part in parts), context)

        self.native.share(call, (x, value, gradient), 1)
        return value, gradient


def _arrays(
    source: Source, make: Expressions, dtype: torch.dtype
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The data of a source, as it reads them."""
    real = np.float64 if dtype == torch.float64 else np.float32
    reals = [make.buffers[number] for number in source.reals]
    positions = [make.buffers[number] for number in source.positions]
    exact = 2**53 if real is np.float64 else 2**24
    for array in reals:
        whole = np.issubdtype(array.dtype, np.integer)
        if whole and np.abs(array).max(initial=0) > exact:
            raise Untraceable(f"whole numbers beyond {exact}")
    for array in positions:
        if array.max(initial=0) >= 2**31:
            raise Untraceable("positions beyond 2^31")
    return (
        [_aligned(array, real) for array in reals],
        [_aligned(array, np.int32) for array in positions],
    )


def _aligned(array: np.ndarray, kind: Any) -> np.ndarray:
    """The same numbers, from the beginning of a line of the cache on."""
    array = np.ascontiguousarray(array, dtype=kind)
    if array.ctypes.data % _ALIGNED == 0:
        return array
    room = np.empty(array.nbytes + _ALIGNED, dtype=np.uint8)
    first = -room.ctypes.data % _ALIGNED
    copy = room[first : first + array.nbytes].view(kind)
    copy[:] = array
    return copy


def _addresses(arrays: list[np.ndarray]) -> np.ndarray:
    return np.array([array.ctypes.data for array in arrays] or [0], dtype=np.uintp)
