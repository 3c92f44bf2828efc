"""What the studies' command lines have in common: engines by name, errors without tracebacks."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import typer

from inference import Engine
from ppl_models import SuiteError

MISTAKE, FAILED, BAD = 2, 1, 3
"""Exit codes: the user's mistake, found before work; an engine that failed; a bad verdict."""


def chosen(names: str, known: Mapping[str, Callable[[], Engine]]) -> dict[str, Engine]:
    """The engines of a comma-separated list. Raises ``typer.BadParameter`` for an unknown one."""
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        what = f"unknown engine '{unknown[0]}'" if unknown else "no engine"
        raise typer.BadParameter(f"{what}; choose from {', '.join(known)}")
    return {name: known[name]() for name in wanted}


def writable(directory: Path | None) -> Path | None:
    """The folder, made if missing. Raises ``typer.BadParameter`` where it cannot be written."""
    if directory is None:
        return None
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise typer.BadParameter(f"cannot write to {directory}: {error.strerror}") from error
    return directory


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Print a user's mistake as one line and exit with code 2; exit with 130 on Ctrl-C."""
    try:
        yield
    except SuiteError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(MISTAKE) from None
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        raise typer.Exit(130) from None
