"""Progress on a terminal; silence elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn


class Report(Protocol):
    """Called with the share done, in [0, 1], and a few words."""

    def __call__(self, share: float, text: str = "") -> None: ...


def silent(share: float, text: str = "") -> None:
    """A report that says nothing."""


@contextmanager
def bar(title: str, *, show: bool | None = None) -> Iterator[Report]:
    """A progress bar on stderr; by default only where that is a terminal."""
    if not (sys.stderr.isatty() if show is None else show):
        yield silent
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=1.0, text="")

        def report(share: float, text: str = "") -> None:
            progress.update(task, completed=share, text=text)

        yield report
