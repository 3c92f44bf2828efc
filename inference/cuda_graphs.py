"""Blocks of steps on a GPU as replays of one graph: no kernel is launched from Python again.

A step of a sampler is a hundred small kernels, whose launches take longer than their work. Captured
once as a CUDA graph (NVIDIA, CUDA C++ Programming Guide, "CUDA Graphs"), a step is one launch. The
graph reads the random numbers of its step and writes its history by a counter that it advances
itself; state, step sizes and averages stay in its own memory. The host looks at nothing before the
block's end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

Capture = Callable[[Callable[[], None], torch.device], Callable[[], None]]
"""Makes a function without arguments one that replays its work on the same memory."""


class Moving(NamedTuple):
    """What a step changes."""

    state: Any
    tuning: Any
    averaging: Any  # None if nothing adapts


Step = Callable[[Moving, Any], tuple[Moving, Any]]
"""One step with its random numbers: what it leaves, and a record of tensors (C, ...)."""


@final
class StepGraph:
    """A step of all chains, captured, with memory for the records of a block.

    Args:
        step: the step; it must not look at values from the host.
        moving: an example of what it changes.
        numbers: an example of the random numbers of a step.
        length: the longest block.
        capture: how work is captured, such as ``cuda_graph``.

    Raises:
        RuntimeError: the step cannot be captured, since it waits for values or changes others than
            tensors.
    """

    def __init__(
        self, step: Step, moving: Moving, numbers: Any, length: int, capture: Capture
    ) -> None:
        device = moving.state.x.device
        self._moving, self._layout = _own(moving)
        self._numbers = tree_map(lambda part: part.new_zeros(length, *part.shape), numbers)
        self._at = torch.zeros(1, dtype=torch.int64, device=device)
        with torch.no_grad():
            new, record = step(moving, numbers)
        if _settings(new) != _settings(moving):
            raise RuntimeError("the step changes what is no tensor")
        self._record = tree_map(lambda part: part.new_zeros(length, *part.shape), record)

        def once() -> None:
            now = tree_map(lambda part: part.index_select(0, self._at)[0], self._numbers)
            new, record = step(tree_unflatten(self._moving, self._layout), now)
            held = tree_flatten(self._record)[0]
            for into, part in zip(held, tree_flatten(record)[0], strict=True):
                into.index_copy_(0, self._at, part[None])
            values = [part.clone() for part in tree_flatten(new)[0] if isinstance(part, Tensor)]
            own = [part for part in self._moving if isinstance(part, Tensor)]
            for into, value in zip(own, values, strict=True):
                into.copy_(value)
            self._at.add_(1)

        self._replay = capture(once, device)

    def serves(self, moving: Moving) -> bool:
        """Whether a block may begin here: what is no tensor is part of the graph."""
        given, layout = tree_flatten(moving)
        return (
            layout == self._layout
            and _kinds(given) == _kinds(self._moving)
            and _settings(moving) == _settings(self._moving)
        )

    def run(self, moving: Moving, numbers: list[Any]) -> tuple[Moving, Any]:
        """A step for each of ``numbers``: what they leave, and their records (K, C, ...)."""
        for into, value in zip(self._moving, tree_flatten(moving)[0], strict=True):
            if isinstance(into, Tensor):
                into.copy_(value)
        for k, now in enumerate(numbers):
            for into, value in zip(
                tree_flatten(self._numbers)[0], tree_flatten(now)[0], strict=True
            ):
                into[k].copy_(value)
        self._at.zero_()
        for _ in numbers:
            self._replay()
        left = tree_unflatten([_copy(part) for part in self._moving], self._layout)
        return left, tree_map(lambda part: part[: len(numbers)].clone(), self._record)


def capture_for(device: torch.device) -> Capture | None:
    """How steps are captured on a device; None where they are not."""
    return cuda_graph if device.type == "cuda" else None


def cuda_graph(once: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """The work of a function captured as a CUDA graph, after two runs that set up libraries."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.no_grad(), torch.cuda.stream(stream):
        for _ in range(2):
            once()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        once()
    return graph.replay


def _own(moving: Moving) -> tuple[list[Any], Any]:
    parts, layout = tree_flatten(moving)
    return [_copy(part) for part in parts], layout


def _kinds(parts: list[Any]) -> list[Any]:
    return [(part.shape, part.dtype) for part in parts if isinstance(part, Tensor)]


def _settings(moving: Any) -> list[Any]:
    return [part for part in tree_flatten(moving)[0] if not isinstance(part, Tensor)]


def _copy(part: Any) -> Any:
    return part.clone() if isinstance(part, Tensor) else part
