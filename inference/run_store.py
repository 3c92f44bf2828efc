"""A run on disk: its draws as a Zarr store that others can open while it goes on, and its state.

In the folder are the groups ``posterior``, ``sample_stats`` and ``unconstrained``, in chunks along
the draws; ``run.json``, what the run is of; ``checkpoint.safetensors``, from what it goes on; and a
lock. Each file appears whole. The metadata of all arrays stand together in the root's
``zarr.json``, so that who opens the store sees draws of one moment. The order is: draws, then the
state that counts them, then the metadata that show them. So a process may be killed at any moment.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np
import torch
import zarr
from filelock import FileLock, Timeout
from torch import Tensor

from inference import checkpoint, scratch
from inference.arviz_bridge import escaped, unescaped
from inference.checkpoint import Saved
from inference.recording import Chunk
from inference.storage import whole
from ppl_models.errors import EngineError

EVERY = 10.0
"""Seconds between states, at least."""

SHARE = 0.1
"""Of the time that may go into writing them."""

_GROUPS = ("posterior", "sample_stats", "unconstrained")
_METADATA = "zarr.json"
_LOCKS = ("lock", "owner")
_POINT = "x"  # the one array of the last group

P = ParamSpec("P")
T = TypeVar("T")


class RunStore:
    """The records of a run in a folder: see ``recording.Records``.

    Args:
        path: of the folder.
        identity: what makes the draws what they are, by name; see ``identity``.
        resume: whether to go on with the run that is there.
        size: draws per chunk.
        device: of the tensors read.

    Raises:
        EngineError: there is a run where none should be, or none where one should; it is another
            one; another process writes it; the folder cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        identity: dict[str, Any],
        *,
        resume: bool,
        size: int,
        device: torch.device,
    ) -> None:
        self.path = Path(path)
        self._size, self._device = size, device
        self._last, self._spent = -np.inf, 0.0
        self._order: dict[str, None] = {}
        self._open: dict[str, zarr.Array] = {}
        with self._told():
            self._prepare(resume)
            self._lock = FileLock(self.path / "lock", timeout=0)
            self._claim()
            try:
                self._identify(identity, resume)
            except BaseException:
                self._lock.release()
                raise

    def close(self) -> None:
        """Let other processes have the folder."""
        self._lock.release()

    @property
    def remedy(self) -> str:
        """How to go on with this run."""
        return f"go on with fit(..., resume={str(self.path)!r})"

    # -- the state -------------------------------------------------------------------------------

    def saved(self) -> Saved | None:
        with self._told():
            return checkpoint.read(self._checkpoint)

    def due(self) -> bool:
        return time.monotonic() - self._last >= max(EVERY, self._spent / SHARE)

    def save(self, parts: dict[str, Any]) -> None:
        self._spent = 0.0
        with self._told():
            self._still_there()
            checkpoint.write(self._checkpoint, parts)
        self._last = time.monotonic()

    # -- the draws -------------------------------------------------------------------------------

    def write(self, first: int, chunk: Chunk) -> None:
        with self._told():
            self._still_there()
            groups = (chunk.draws, chunk.stats, {_POINT: chunk.unconstrained})
            for group, values in zip(_GROUPS, groups, strict=True):
                for name, value in values.items():
                    self._put(f"{group}/{escaped(name)}", first, value)

    def show(self) -> None:
        with self._told():
            paths = [*_GROUPS, *(path for group in _GROUPS for path in self._names(group))]
            metadata = {p: json.loads((self.path / p / _METADATA).read_text()) for p in paths}
            root = {
                "zarr_format": 3,
                "node_type": "group",
                "attributes": {"inference_library": "ppl-suite", "kind": "samples"},
                "consolidated_metadata": {
                    "kind": "inline",
                    "must_understand": False,
                    "metadata": metadata,
                },
            }
            with whole(self.path / _METADATA) as temporary:
                temporary.write_text(json.dumps(root))

    def read(self, number: int) -> Chunk:
        with self._told():
            groups = [self._arrays(group) for group in _GROUPS]
            size = sum(_bytes(array, number) for arrays in groups for array in arrays.values())
            load = self._mapped if size > scratch.LARGE else self._loaded
            draws, stats, points = (
                {unescaped(name): load(array, number) for name, array in arrays.items()}
                for arrays in groups
            )
        return Chunk(draws, stats, points[_POINT])

    # -- internals -------------------------------------------------------------------------------

    @property
    def _checkpoint(self) -> Path:
        return self.path / "checkpoint.safetensors"

    @property
    def _record(self) -> Path:
        return self.path / "run.json"

    def _prepare(self, resume: bool) -> None:
        if resume and not self._record.is_file():
            raise EngineError(
                f"resume={str(self.path)!r}: there is no run; give store= to begin one"
            )
        if not resume and self.path.exists() and not self._empty():
            raise EngineError(
                f"store={str(self.path)!r} exists; give resume={str(self.path)!r} to go on with "
                "the run if it is one, or another path"
            )
        self.path.mkdir(parents=True, exist_ok=True)

    def _empty(self) -> bool:
        """Whether there is nothing but locks, and what a killed process left unfinished."""
        return self.path.is_dir() and all(
            p.name in _LOCKS or p.name.startswith(".") for p in self.path.iterdir()
        )

    def _claim(self) -> None:
        owner = self.path / "owner"
        try:
            self._lock.acquire()
        except Timeout as error:
            who = owner.read_text() if owner.is_file() else "another process"
            raise EngineError(
                f"{self.path}: {who} is writing this run; wait for it, or give another path"
            ) from error
        owner.write_text(f"process {os.getpid()} on {socket.gethostname()}")

    def _identify(self, identity: dict[str, Any], resume: bool) -> None:
        if not resume:
            with whole(self._record) as temporary:
                temporary.write_text(json.dumps(identity, indent=1))
            self._clean()
            return
        before = json.loads(self._record.read_text())
        for name in before | identity:
            then, now = before.get(name), identity.get(name)
            if not _same(then, now):
                raise EngineError(
                    f"resume={str(self.path)!r}: this is another run: {name} was {then} there and "
                    f"is {now} here; call fit with the same arguments, or begin anew by store="
                )
        self._clean()

    def _clean(self) -> None:
        """Make what is missing of the store, and remove what a killed process left unfinished."""
        for file in self.path.rglob("*"):
            if file.is_file() and (file.name.startswith(".") or file.suffix == ".partial"):
                file.unlink()
        for group in _GROUPS:
            if not (self.path / group / _METADATA).is_file():
                zarr.create_group(self.path / group)
        if (self.path / _METADATA).is_file():
            shown = json.loads((self.path / _METADATA).read_text())
            self._order = dict.fromkeys(shown["consolidated_metadata"]["metadata"])
        else:
            self.show()

    def _still_there(self) -> None:
        if not self._record.is_file():
            raise FileNotFoundError(2, "the folder is gone")

    def _put(self, path: str, first: int, value: Tensor) -> None:
        self._order.setdefault(path)
        array = value.detach().cpu().numpy()
        chains, number, *event = array.shape
        if path in self._open:
            target = self._open[path]
        elif (self.path / path / _METADATA).is_file():
            target = cast(zarr.Array, zarr.open_array(self.path / path, mode="r+"))
        else:
            name = path.split("/")[1]
            target = zarr.create_array(
                self.path / path,
                shape=(chains, 0, *event),
                chunks=(chains, self._size, *(max(1, n) for n in event)),
                dtype=array.dtype,
                compressors=None,
                dimension_names=("chain", "draw", *(f"{name}_dim_{i}" for i in range(len(event)))),
            )
        self._open[path] = target
        target.resize((chains, first + number, *event))
        target[:, first : first + number] = array

    def _arrays(self, group: str) -> dict[str, zarr.Array]:
        return {
            name.split("/")[1]: cast(zarr.Array, zarr.open_array(self.path / name, mode="r"))
            for name in self._names(group)
        }

    def _names(self, group: str) -> list[str]:
        """The arrays of a group, in the order of the program's sites."""
        there = {
            str(file.parent.relative_to(self.path))
            for file in (self.path / group).glob(f"*/{_METADATA}")
        }
        ordered = [name for name in self._order if name in there]
        return ordered + sorted(there.difference(ordered))

    def _loaded(self, array: zarr.Array, number: int) -> Tensor:
        return torch.from_numpy(np.asarray(array[:, :number])).to(self._device)

    def _mapped(self, array: zarr.Array, number: int) -> Tensor:
        parts = (
            np.asarray(array[:, i : min(i + self._size, number)])
            for i in range(0, number, self._size)
        )
        return scratch.mapped(parts, (array.shape[0], number, *array.shape[2:]), self.path)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Failures of the disk in words; and the time it takes."""
        begin = time.monotonic()
        try:
            yield
            self._spent += time.monotonic() - begin
        except OSError as error:
            reason = error.strerror or str(error)
            raise EngineError(
                f"{self.path}: the run cannot be kept there ({reason}); what was written before "
                "can still be read. Mend the cause, or copy the folder elsewhere, then "
                f"{self.remedy}"
            ) from error


def _same(then: Any, now: Any) -> bool:
    if isinstance(then, float) and isinstance(now, float):
        return abs(then - now) <= 1e-9 * (1 + abs(then)) or then == now
    return then == now


def _bytes(array: zarr.Array, draws: int) -> int:
    chains, _, *event = array.shape
    return chains * draws * int(np.prod(event, dtype=np.int64)) * np.dtype(array.dtype).itemsize
