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
from inference.codegen.prelude import WORTH
from inference.codegen.tape import Unrepaid, Untraceable, record
from inference.native import Native

_SECONDS_PER_NODE = 7e-4  # of the compiler
_SECONDS_OF_TRACE = 1.0  # of the other tiers, before their first evaluation
_SECONDS_PER_OPERATION = 3.5e-6  # of PyTorch, for each evaluation

_ANY = 1 << 62  # chains

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
        self._context = np.array([threads, reals.ctypes.data, positions.ctypes.data], np.int64)
        self._call: Any = self._library.density
        self._call.argtypes = [_WORD, *[_ADDRESS] * 4]
        self._call.restype = None
        address = ctypes.cast(self._call, _ADDRESS).value
        assert address is not None
        keep = (self._library, self._arrays, reals, positions, self._context)
        alone = _ANY if threads == 1 else WORTH // max(source.work, 1)
        self.native = Native(address, self._context.ctypes.data, keep, alone)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(C, D) -> (C,), (C, D)."""
        x = x.contiguous()
        value, gradient = x.new_empty(len(x)), torch.empty_like(x)
        self._call(len(x), x.data_ptr(), value.data_ptr(), gradient.data_ptr(), self.native.context)
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
        [np.ascontiguousarray(array, dtype=real) for array in reals],
        [np.ascontiguousarray(array, dtype=np.int32) for array in positions],
    )


def _addresses(arrays: list[np.ndarray]) -> np.ndarray:
    return np.array([array.ctypes.data for array in arrays] or [0], dtype=np.uintp)
