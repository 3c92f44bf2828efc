"""Draws larger than memory should hold: mapped from disk, and looked at in parts."""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from torch import Tensor

LARGE = 1 << 27
"""Bytes of draws that are held and looked at as a whole."""

_JUDGED = 10_000  # draws per chain that are enough to judge it by

_MAPPED: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()


def mapped(parts: Iterable[np.ndarray], shape: tuple[int, ...], folder: Path) -> Tensor:
    """The parts, (chain, n, *event) each, joined along the draws to ``shape``, without a copy here.

    The file has no name, so that it goes with the process. All draws of a scalar lie together in
    it: figures by scalar read no more than they need.
    """
    chains, draws, *event = shape
    scalars = int(np.prod(event, dtype=np.int64))
    array: np.ndarray | None = None
    first = 0
    for part in parts:
        if array is None:
            array = _anonymous((chains, scalars, draws), part.dtype, folder)
        flat = part.reshape(chains, part.shape[1], scalars)
        array[:, :, first : first + part.shape[1]] = flat.transpose(0, 2, 1)
        first += part.shape[1]
        release()
    assert array is not None
    return torch.from_numpy(np.moveaxis(array.reshape(chains, *event, draws), -1, 1))


def release() -> None:
    """Let go of the memory that holds what was read or written of mapped arrays."""
    if hasattr(mmap, "MADV_DONTNEED"):
        for memory in list(_MAPPED):
            memory.madvise(mmap.MADV_DONTNEED)


def thinned(draws: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Draws that memory holds, {site: (chain, draw, *event)}: every k-th of what is large.

    At least 10,000 per chain are left, of which R-hat is that of all, and effective sample sizes
    are too where they are small enough to be of concern.
    """
    length = next(iter(draws.values())).shape[1]
    every = min(sum(x.nbytes for x in draws.values()) // LARGE, length // _JUDGED)
    if every < 2:
        return draws
    return {name: _every(x, every) for name, x in draws.items()}


def parts(group: xr.Dataset) -> Iterator[xr.Dataset]:
    """The scalars of a group (chain, draw, *event), a few at a time, in memory while needed."""
    for name, array in group.data_vars.items():
        dim = array.dims[2] if array.ndim > 2 else None
        size = 1 if dim is None else array.sizes[dim]
        step = max(1, size * (LARGE >> 4) // max(1, array.nbytes))
        for first in range(0, size, step):
            some = array if dim is None else array.isel({dim: slice(first, first + step)})
            yield xr.Dataset({name: some.copy(deep=True)})
            release()


def _every(x: np.ndarray, step: int) -> np.ndarray:
    """Every so many-th draw, read a chain and a row of the event at a time."""
    kept = np.empty_like(x[:, ::step], order="C")
    for chain, *row in np.ndindex(x.shape[0], *x.shape[2:3]):
        kept[chain, :, *row] = x[chain, ::step, *row]
        release()
    return kept


def _anonymous(shape: tuple[int, ...], dtype: np.dtype, folder: Path) -> np.ndarray:
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    handle, name = tempfile.mkstemp(dir=folder, prefix=".scratch-")
    try:
        if hasattr(os, "posix_fallocate"):  # a full disk is told here, not by a crash later
            os.posix_fallocate(handle, 0, size)
        os.truncate(handle, size)
        memory = mmap.mmap(handle, size)
        _MAPPED.add(memory)
    finally:
        os.close(handle)
        os.unlink(name)
    return np.frombuffer(memory, dtype=dtype).reshape(shape)
