"""How loops over arrays are compiled by numba where nanoseconds count."""

from __future__ import annotations

from typing import Any

from numba import njit

_OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy", "_nrt": False}

compiled = njit(**_OPTIONS)
"""For functions that make no array: numba then counts no references to those it is given.

Counting took most of the time of loops over a few numbers.
"""

inlined = njit(inline="always", **_OPTIONS)
"""The same for small functions that are called often: they become part of their callers."""
