"""How loops over arrays are compiled by numba where nanoseconds count."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from numba import njit

_PACKAGES = [Path(__file__).parent, Path(__file__).parent.parent / "inference"]


def forget_outdated(packages: list[Path]) -> None:
    """Remove what numba has kept of functions from before the last change to any of them.

    Numba compares a function with its own file alone, not with those that it calls, and would go on
    with the old code of these.
    """
    kept = [path for package in packages for path in package.glob("__pycache__/*.nbi")]
    # names of indices are MODULE.FUNCTION-LINE.py311.nbi
    sources = {path.parent.parent / f"{path.name.split('.')[0]}.py" for path in kept}
    changed = max((source.stat().st_mtime for source in sources if source.exists()), default=0)
    for path in kept:
        with contextlib.suppress(OSError):  # another process removed it, or it is not ours
            if path.stat().st_mtime < changed:
                path.unlink()


forget_outdated(_PACKAGES)

_OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy", "_nrt": False}

compiled = njit(**_OPTIONS)
"""For functions that make no array: numba then counts no references to those it is given.

Counting took most of the time of loops over a few numbers.
"""

inlined = njit(inline="always", **_OPTIONS)
"""The same for small functions that are called often: they become part of their callers."""
