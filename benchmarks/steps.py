"""Steps of training by several contestants in turns: seconds of each, and ratios within a round."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from inference import SVI, fit
from inference.training import Trainer

Clock = Callable[[], float]


def ours(model: Any, data: Any, engine: SVI, clock: Clock = time.perf_counter) -> float:
    """Seconds per step of ``fit``, whole, less the time until its first step."""
    begun: list[float] = []
    first = Trainer.run

    def run(self: Trainer) -> Any:
        begun.append(clock())
        result = first(self)
        begun.append(clock())
        return result

    Trainer.run = run  # type: ignore[method-assign]
    try:
        fit(model, data, engine, progress=False)
    finally:
        Trainer.run = first  # type: ignore[method-assign]
    return (begun[1] - begun[0]) / engine.steps


def looped(
    step: Callable[[Tensor], Any],
    rows: int,
    batch: int,
    steps: int,
    clock: Clock = time.perf_counter,
) -> float:
    """Seconds per step of a loop over minibatches: the step takes the numbers of its rows."""
    each = rows // batch
    begin = clock()
    for number in range(steps):
        if number % each == 0:
            order = torch.randperm(rows)
        place = number % each
        step(order[place * batch : (place + 1) * batch])
    return (clock() - begin) / steps


def contest(
    title: str,
    runs: Mapping[str, Callable[[], float]],
    *,
    peers: Sequence[str],
    repeats: int,
    batch: int,
) -> None:
    """Let them take turns; print medians over the repeats, and of ratios within a round."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for contestant, run in runs.items():
            seconds[contestant].append(run())
    print(title)
    for contestant, taken in seconds.items():
        median = statistics.median(taken)
        ratios = "".join(
            f"  {statistics.median(p / t for p, t in zip(seconds[peer], taken, strict=True)):.2f}"
            f" x {peer}"
            for peer in peers
        )
        print(f"  {contestant:9s} {1e6 * median:7.0f} us/step {batch / median:7.0f} rows/s{ratios}")
