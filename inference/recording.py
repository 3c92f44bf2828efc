"""What becomes of the transitions of Markov chains: draws, in chunks, kept here or on disk.

The loop of a sampler hands over blocks of steps in which some chains are done with a transition. As
soon as every chain has the transitions of a chunk of draws, they are mapped to what a posterior
holds and handed on to the records. Chunks are cut at fixed numbers of draws, whatever the blocks,
so that draws do not depend on how a run was divided.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from inference.checkpoint import Saved
from ppl_models.base import Params
from ppl_models.errors import EngineError

LARGEST = 1024
"""Draws per chunk, at most."""

Columns = dict[str, Tensor]
"""What is recorded of each step, (K, C, *shape), or of each draw, (C, n, *shape), by name."""


class Chunk(NamedTuple):
    """Draws as a posterior holds them."""

    draws: Params  # {site: (C, n, *event)}
    stats: Params  # {name: (C, n)}
    unconstrained: Tensor  # (C, n, D)


class Records(Protocol):
    """Where chunks go and, for a run that is to survive, its state."""

    def saved(self) -> Saved | None:
        """The state that the run goes on from, if it does."""
        ...

    def due(self) -> bool:
        """Whether it is time to save the state."""
        ...

    def save(self, parts: dict[str, Any]) -> None:
        """Save the state."""
        ...

    def write(self, first: int, chunk: Chunk) -> None:
        """Keep the draws from number ``first`` on."""
        ...

    def show(self) -> None:
        """Let others see all draws that were written."""
        ...

    def read(self, number: int) -> Chunk:
        """The first draws, so many per chain."""
        ...

    @property
    def remedy(self) -> str:
        """How to go on with a run that was stopped."""
        ...


class InMemory:
    """Records of a run that ends with its process."""

    remedy = ""

    def __init__(self) -> None:
        self._chunks: dict[int, Chunk] = {}

    def saved(self) -> Saved | None:
        return None

    def due(self) -> bool:
        return False

    def save(self, parts: dict[str, Any]) -> None:
        pass

    def write(self, first: int, chunk: Chunk) -> None:
        self._chunks = {at: old for at, old in self._chunks.items() if at < first} | {first: chunk}

    def show(self) -> None:
        pass

    def read(self, number: int) -> Chunk:
        return joined(list(self._chunks.values()), number)


def joined(chunks: list[Chunk], number: int) -> Chunk:
    """Chunks in their order as one, cut after so many draws."""

    def along(parts: list[Tensor]) -> Tensor:
        whole = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        return whole[:, :number]

    first = chunks[0]
    return Chunk(
        {name: along([chunk.draws[name] for chunk in chunks]) for name in first.draws},
        {name: along([chunk.stats[name] for chunk in chunks]) for name in first.stats},
        along([chunk.unconstrained for chunk in chunks]),
    )


def earlier_seconds(saved: Saved | None) -> float:
    """The seconds that a run's present phase took before it was stopped."""
    return 0.0 if saved is None else saved.part("seconds", None, torch.device("cpu"))


def chunk_size(dim: int) -> int:
    """Draws per chunk for points of so many dimensions: a power of two, about 8 MB at most."""
    fitting = (1 << 20) // max(dim, 1)
    return max(16, min(LARGEST, 1 << max(0, fitting.bit_length() - 1)))


class Pending(NamedTuple):
    """What a recorder holds: the draws written so far, and transitions beyond them."""

    written: int  # draws of every chain
    done: Tensor  # (K, C) bool
    columns: Columns  # (K, C, *shape)


class _Held(NamedTuple):
    """The same in several blocks: one value, so that an interruption leaves it whole."""

    written: int
    blocks: tuple[tuple[Tensor, Columns], ...]
    counts: Tensor | int  # (C,) transitions beyond those written

    def plus(self, done: Tensor, columns: Columns) -> _Held:
        done, columns = _compact(done, columns)
        return _Held(self.written, (*self.blocks, (done, columns)), self.counts + done.sum(0))


class Recorder:
    """Collects the finished transitions of chains into draws, each the last of ``thin``.

    Args:
        finish: from the columns of a chunk, (C, n, *shape), and its number to what is kept.
        records: where chunks go.
        thin: transitions per draw; a flag is set for a draw where any of its transitions had it.
        size: draws per chunk.
    """

    def __init__(
        self, finish: Callable[[Columns, int], Chunk], records: Records, *, thin: int, size: int
    ) -> None:
        self._finish, self._records = finish, records
        self._thin, self._size = thin, size
        self._held = _Held(0, (), 0)

    @property
    def transitions(self) -> int:
        """How many transitions every chain has finished."""
        counts = self._held.counts
        beyond = int(counts.min()) if isinstance(counts, Tensor) else counts
        return self._held.written * self._thin + beyond

    @property
    def draws(self) -> int:
        """How many draws every chain has."""
        return self.transitions // self._thin

    def add(self, columns: Columns, done: Tensor) -> None:
        """Record a block of steps, (K, C, *shape), of which ``done`` (K, C) finished one."""
        self._held = self._held.plus(done, columns)

    def flush(self) -> None:
        """Hand on every chunk that is whole."""
        while self.draws - self._held.written >= self._size:
            rows, rest = self._taken(self._size)
            self._records.write(self._held.written, self._finished(rows))
            self._held = _Held(self._held.written + self._size, (), 0).plus(*rest)

    def first(self, number: int) -> Params:
        """The first draws of all sites, so many per chain, at least those handed on."""
        written = self._held.written
        parts = [self._records.read(written)] if written else []
        if number > written:
            parts.append(self._finished(self._taken(number - written)[0]))
        return joined(parts, number).draws

    def show(self, number: int) -> None:
        """Hand on the draws up to that number, though the chunk is not whole; they are kept."""
        written = self._held.written
        if number > written:
            rows = self._taken(number - written)[0]
            self._records.write(written, self._finished(rows))
        self._records.show()

    def parts(self) -> dict[str, Any]:
        """What a state holds of this, for ``go_on``: nothing before the first step."""
        return (
            {"pending": Pending(self._held.written, *self._joined())} if self._held.blocks else {}
        )

    def go_on(self, saved: Saved, draws: int, device: torch.device) -> None:
        """Go on where another recorder stopped.

        Raises ``EngineError`` where fewer draws are asked for than there are.
        """
        if "pending" not in saved:
            return
        pending: Pending = saved.part("pending", Pending, device)
        self._held = _Held(pending.written, (), 0).plus(pending.done, pending.columns)
        there = min(saved.part("asked", None, device), self.draws)  # a chain may have some more
        if draws < there:
            raise EngineError(
                f"draws={draws}: the run that is resumed has {there} draws per chain; give at "
                "least so many"
            )

    # -- internals -------------------------------------------------------------------------------

    def _joined(self) -> tuple[Tensor, Columns]:
        blocks = self._held.blocks
        if len(blocks) > 1:
            done = torch.cat([part for part, _ in blocks])
            columns = {k: torch.cat([part[k] for _, part in blocks]) for k in blocks[0][1]}
            self._held = self._held._replace(blocks=(_compact(done, columns),))
        return self._held.blocks[0]

    def _taken(self, number: int) -> tuple[Columns, tuple[Tensor, Columns]]:
        """The next draws, (C, number, *shape), and the transitions after them."""
        done, columns = self._joined()
        used = number * self._thin
        rows = {}
        for name, values in columns.items():
            groups = values[:used].unflatten(0, (number, self._thin))
            row = groups.any(1) if values.dtype == torch.bool else groups[:, -1]
            rows[name] = row.transpose(0, 1).contiguous()
        return rows, (done[used:], {name: values[used:] for name, values in columns.items()})

    def _finished(self, rows: Columns) -> Chunk:
        return self._finish(rows, self._held.written // self._size)


def _compact(done: Tensor, columns: Columns) -> tuple[Tensor, Columns]:
    """The steps of every chain that finished a transition, first, without rows that none needs."""
    number = int(done.sum(0).max()) if len(done) else 0
    if not bool((done[1:] & ~done[:-1]).any()):
        return done[:number], {name: values[:number] for name, values in columns.items()}
    order = torch.sort((~done).to(torch.uint8), dim=0, stable=True).indices[:number]

    def pick(values: Tensor) -> Tensor:
        index = order.reshape(*order.shape, *[1] * (values.dim() - 2))
        return values.gather(0, index.expand(-1, -1, *values.shape[2:]))

    return pick(done), {name: pick(values) for name, values in columns.items()}
