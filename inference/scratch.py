"""Arrays larger than memory should hold: on disk, mapped, and gone with the process."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


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
        release(array)
    assert array is not None
    return torch.from_numpy(np.moveaxis(array.reshape(chains, *event, draws), -1, 1))


def release(array: np.ndarray) -> None:
    """Let go of the memory that holds what was read or written of a mapped array."""
    base: object = array
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    if isinstance(base, mmap.mmap):
        base.flush()
        if hasattr(mmap, "MADV_DONTNEED"):
            base.madvise(mmap.MADV_DONTNEED)


def _anonymous(shape: tuple[int, ...], dtype: np.dtype, folder: Path) -> np.ndarray:
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    handle, name = tempfile.mkstemp(dir=folder, prefix=".scratch-")
    try:
        os.posix_fallocate(handle, 0, size)  # a full disk is told here, not by a crash later
        memory = mmap.mmap(handle, size)
    finally:
        os.close(handle)
        os.unlink(name)
    return np.frombuffer(memory, dtype=dtype).reshape(shape)
