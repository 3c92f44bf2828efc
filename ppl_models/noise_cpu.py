"""The numbers of ``Noise`` one at a time, for loops that numba compiles.

The words are the same, the formulas those of ``Noise.uniform`` and ``Noise.normal``. A loop over
steps takes the numbers of a step, and of one chain, where it needs them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ppl_models.loops import compiled

FOLD = 0xF01D
"""The last counter word where keys are made."""

LONGEST = 64
"""Steps of a block, at most; see ``block_of``."""

_MASK = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)


@compiled
def _philox(k0: Any, k1: Any, low: Any, high: Any, tag: Any) -> Any:
    """``noise.philox`` at the counter (low, high, 0, tag): four 32-bit words.

    All are unsigned, so that it is compiled once.
    """
    c0, c1, c2, c3 = low, high, np.uint64(0), tag
    for _ in range(10):
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (p1 >> _HALF) ^ c1 ^ k0, p1 & _MASK, (p0 >> _HALF) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


@compiled
def generate(key: Any, count: int, low: int, high: int, tag: int, out: Any) -> None:
    """Words at each of ``count`` counters from ``low`` on, for every chain's key: (C, count, 4)."""
    for chain in range(key.shape[0]):
        for i in range(count):
            k0, k1 = np.uint64(key[chain, 0]), np.uint64(key[chain, 1])
            words = _philox(k0, k1, np.uint64(low + i), np.uint64(high), np.uint64(tag))
            out[chain, i, 0], out[chain, i, 1] = words[0], words[1]
            out[chain, i, 2], out[chain, i, 3] = words[2], words[3]


@compiled
def folded(k0: Any, k1: Any, number: int) -> Any:
    """The key of ``fold(number)``."""
    low, high = np.uint64(number & 0xFFFFFFFF), np.uint64((number >> 32) & 0xFFFFFFFF)
    words = _philox(k0, k1, low, high, np.uint64(FOLD))
    return words[0], words[1]


@compiled
def _word(words: Any, lane: int) -> Any:
    if lane < 2:
        return words[0] if lane == 0 else words[1]
    return words[2] if lane == 2 else words[3]


@compiled
def _words(k0: Any, k1: Any, counter: int) -> Any:
    return _philox(k0, k1, np.uint64(counter), np.uint64(0), np.uint64(0))


@compiled
def _unit(word: Any, bits: int) -> float:
    return (np.float64(word >> np.uint64(32 - bits)) + 0.5) * 2.0**-bits


@compiled
def uniform(k0: Any, k1: Any, index: int, bits: int) -> float:
    """Number ``index`` of ``Noise.uniform``; ``bits`` is 32 in double, 23 in single precision."""
    return _unit(_word(_words(k0, k1, index >> 2), index & 3), bits)


@compiled
def normals(k0: Any, k1: Any, first: int, count: int, bits: int, out: Any) -> None:
    """Numbers ``first``, ``first`` + 1, ... of the ``count`` of ``Noise.normal``: fills ``out``."""
    half = (count + 1) // 2
    radii = angles = _words(k0, k1, 0)
    at = other = 0
    for i in range(len(out)):
        index = first + i
        pair = index if index < half else index - half
        if pair >> 2 != at:
            at = pair >> 2
            radii = _words(k0, k1, at)
        if (half + pair) >> 2 != other:
            other = (half + pair) >> 2
            angles = _words(k0, k1, other)
        radius = np.sqrt(-2 * np.log(_unit(_word(radii, pair & 3), bits)))
        angle = 2 * np.pi * _unit(_word(angles, (half + pair) & 3), bits)
        out[i] = radius * (np.cos(angle) if index < half else np.sin(angle))


@compiled
def block_of(step: int) -> Any:
    """The block of steps that a step is in: its number, its first step and its length.

    Blocks of 1, 1, 2, 4, ..., 32 steps, then all of 64: a loop draws the numbers of a block from
    ``fold(number)``, so that those of a step depend on its number alone.
    """
    if step >= LONGEST:
        return 6 + step // LONGEST, step - step % LONGEST, LONGEST
    number, size = 1, 1
    while 2 * size <= step:
        number, size = number + 1, 2 * size
    return (number, size, size) if step else (0, 0, 1)
