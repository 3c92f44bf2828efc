"""How many threads work may take, and work shared among them."""

from __future__ import annotations

import functools
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch

T = TypeVar("T")

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


def each(function: Callable[[int], T], number: int, threads: int | None = None) -> list[T]:
    """``function`` of 0, ..., number - 1, on at most so many threads, of which this is one.

    By default those that torch has been given. It takes some 30 us where threads wait, and pays
    for functions that do not hold Python's lock. What PyTorch keeps for a thread, such as
    ``no_grad`` and its own number of threads, is not handed on. After an error or Ctrl-C nothing
    more is begun, and what has been is waited for.
    """
    threads = min(number, torch.get_num_threads() if threads is None else threads)
    if threads < 2:
        return [function(i) for i in range(number)]
    results: dict[int, T] = {}
    left, stopped = itertools.count(), threading.Event()

    def work() -> None:
        try:
            while not stopped.is_set() and (i := next(left)) < number:
                results[i] = function(i)
        except BaseException:
            stopped.set()
            raise

    others: list[Future[None]] = []
    try:
        others += (_pool().submit(work) for _ in range(threads - 1))
        work()
    except BaseException:
        stopped.set()
        raise
    finally:
        begun = [other for other in others if not other.cancel()]
        wait(begun)
    for other in begun:
        other.result()
    return [results[i] for i in range(number)]


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="ppl-suite")


if hasattr(os, "register_at_fork"):  # a child has none of its parent's threads
    os.register_at_fork(after_in_child=_pool.cache_clear)
