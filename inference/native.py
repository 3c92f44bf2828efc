"""Log densities as C functions, and how code that numba compiles calls them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.errors import TypingError
from numba.extending import intrinsic


class Native(NamedTuple):
    """A log density with its gradient as a C function.

    ``void f(int64_t chains, const real *x, real *value, real *gradient, void *context)`` where
    ``real`` is ``double`` or ``float``, as the target's dtype; ``x`` (C, D) and ``gradient``
    (C, D) are contiguous, ``value`` is (C,). It is called without Python's lock.
    """

    address: int  # of the function
    context: int  # its last argument
    keep: Any  # what must stay alive as long as the function is called
    alone: int = 0  # for so many chains it takes one thread, and others may call it meanwhile


_WORD = ir.IntType(8 * np.dtype(np.intp).itemsize)


def _evaluate(
    typing_context: Any, address: Any, chains: Any, x: Any, value: Any, gradient: Any, context: Any
) -> Any:
    arguments = (address, chains, x, value, gradient, context)
    if not all(isinstance(argument, types.Integer) for argument in arguments):
        raise TypingError("evaluate takes whole numbers: the addresses of its arrays")
    word, pointer = types.int64, types.intp
    signature = types.void(word, word, pointer, pointer, pointer, pointer)

    def generate(_: Any, builder: Any, signature: Any, values: Any) -> None:
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(64), *[_WORD] * 4])
        builder.call(builder.inttoptr(values[0], kind.as_pointer()), values[1:])

    return signature, generate


evaluate: Any = intrinsic(_evaluate)
"""Call the C function at ``address``, within numba; arrays by their ``.ctypes.data``."""
