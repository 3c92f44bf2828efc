"""How many threads work may take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_allowed: ContextVar[int | None] = ContextVar("allowed", default=None)


def allowed() -> int:
    """How many threads the caller allows: those of ``torch.set_num_threads``.

    Within ``one_in_torch`` those of before.
    """
    return _allowed.get() or torch.get_num_threads()


@contextmanager
def one_in_torch(small: bool) -> Iterator[None]:
    """One thread for PyTorch's operations where they are ``small``, which would stall on more.

    So would a C function that asks for threads at each call. Code that shares out many calls at
    once asks ``allowed``.
    """
    before = torch.get_num_threads()
    token = _allowed.set(allowed())
    if small:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        _allowed.reset(token)
