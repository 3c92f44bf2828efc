"""Log densities as C functions, and how code that numba compiles calls them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.errors import TypingError
from numba.extending import intrinsic

from ppl_models.threads import allowed, each

_LANES = 16  # chains that a C function may take at once
_BOOKKEEPING = 1000  # operations of a step besides the density's, for one chain
_HEAVY = 10_000  # operations of a density for one chain; what chains share is less
_WORTH_THREADS = 1_000_000  # operations


class Native(NamedTuple):
    """A log density with its gradient as a C function.

    ``void f(int64_t chains, const real *x, real *value, real *gradient, void *context)`` where
    ``real`` is ``double`` or ``float``, as the target's dtype; ``x`` (C, D) and ``gradient``
    (C, D) are contiguous, ``value`` is (C,). It is called without Python's lock.
    """

    address: int  # of the function
    context: int  # its last argument
    keep: Any  # what must stay alive as long as the function is called
    single: int = 0  # its last argument for callers of one thread each, at once; 0: there is none
    work: int = 0  # operations for one chain, apart from what several share

    def repaid(self, chains: int) -> int:
        """So many steps of a sampler repay sharing the chains among threads."""
        return _WORTH_THREADS // (chains * (self.work + _BOOKKEEPING)) + 1

    def share(self, run: Callable[..., None], arrays: Sequence[Any], steps: int) -> None:
        """``run(context, *arrays)``, or the same of the chains of each thread where that pays.

        Arrays are (C, ...), and written to in place by a run of so many steps.
        """
        groups = self.groups(len(arrays[0]), steps)
        if len(groups) == 1:
            run(self.context, *arrays)
            return

        def group(k: int) -> None:
            low, high = groups[k]
            run(self.single, *(part[low:high] for part in arrays))

        each(group, len(groups), len(groups))

    def groups(self, chains: int, steps: int) -> list[tuple[int, int]]:
        """From where to where each thread has chains: whole vectors of them if work is light.

        All are one group where so many steps do not repay threads.
        """
        if chains < 2 or not self.single or steps < self.repaid(chains):
            return [(0, chains)]
        least = 1 if self.work >= _HEAVY else _LANES
        threads = min(allowed(), chains // least)
        takes_more = self.single != self.context and threads < allowed()  # threads of its own
        if threads < 2 or takes_more:
            return [(0, chains)]
        size = -(-chains // (threads * least)) * least
        return [(low, min(low + size, chains)) for low in range(0, chains, size)]


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
