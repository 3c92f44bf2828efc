"""Counter-based random numbers: every chain has its own stream, on any device, with no state.

Philox4x32-10 (Salmon, Moraes, Dror & Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3") is a
bijection of a counter under a key. A chain's key is hashed from (seed, chain), so streams of
different seeds and chains do not overlap, a chain's numbers do not depend on how many chains run
beside it, and a run is resumed from the number of its step alone. Like a JAX key, ``Noise`` is a
value: the same call gives the same numbers; ``fold`` derives a fresh stream.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_models.noise_cpu import FOLD, generate

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def philox(counter: tuple[Tensor, ...], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Ten rounds of Philox on four counter words and two key words: 32-bit values in int64.

    The words broadcast against each other. The 64-bit products wrap in int64; the shift and mask
    recover their high words.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((product1 >> 32) & _MASK) ^ c1 ^ k0,
            product1 & _MASK,
            ((product0 >> 32) & _MASK) ^ c3 ^ k1,
            product0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


class Noise(NamedTuple):
    """Independent streams of random numbers, one per chain.

    ``key`` holds two 32-bit words per chain; ``dtype`` is that of the real numbers drawn.
    """

    key: Tensor  # (C, 2) int64
    dtype: torch.dtype

    @classmethod
    def seeded(
        cls,
        seed: int,
        chains: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float64,
    ) -> Noise:
        """The streams of ``seed``: chain c has the key philox(counter=(c, ...), key=seed)."""
        chain = torch.arange(chains, device=device)
        words = [torch.tensor((seed >> shift) & _MASK, device=device) for shift in (0, 32)]
        zero = torch.zeros_like(chain)
        hashed = philox((chain, zero, zero, zero + 0x5EED), (words[0], words[1]))
        return cls(torch.stack(hashed[:2], -1), dtype)

    @property
    def chains(self) -> int:
        return len(self.key)

    def fold(self, *numbers: int) -> Noise:
        """Fresh streams named by ``numbers``, independent of these and of one another."""
        key = self.key
        for number in numbers:
            low, high = number & _MASK, (number >> 32) & _MASK
            key = _generate(key, 1, low, high, FOLD)[:, 0, :2]
        return Noise(key.contiguous(), self.dtype)

    def seeds(self, first: int, count: int) -> list[int]:
        """What ``fold(n).seed_torch()`` seeds with, for n = first, ..., first + count - 1.

        All at once they cost a small step of training less than one by one.
        """
        keys = _generate(self.key[:1], count, first & _MASK, (first >> 32) & _MASK, FOLD)
        return [_seed(*words) for words in keys[0, :, :2].tolist()]

    def words(self, count: int) -> Tensor:
        """32-bit words as int64: (C, count)."""
        return _generate(self.key, -(-count // 4), 0, 0, 0).flatten(1)[:, :count]

    def uniform(self, *shape: int) -> Tensor:
        """Uniform on the open interval (0, 1), at 2^32 levels: (C, *shape)."""
        words = self.words(math.prod(shape))
        # float32 keeps 24 bits: fewer levels, so that neither end is rounded onto 0 or 1
        bits = 32 if self.dtype == torch.float64 else 23
        unit = ((words >> (32 - bits)).to(self.dtype) + 0.5) * 2.0**-bits
        return unit.reshape(self.chains, *shape)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal by Box and Muller's transform: (C, *shape)."""
        count = math.prod(shape)
        half = -(-count // 2)
        unit = self.uniform(2, half)
        radius, angle = (-2 * unit[:, 0].log()).sqrt(), (2 * math.pi) * unit[:, 1]
        pair = torch.cat([radius * angle.cos(), radius * angle.sin()], -1)
        return pair[:, :count].reshape(self.chains, *shape)

    def exponential(self, *shape: int) -> Tensor:
        """Exponential with rate 1: (C, *shape)."""
        return -self.uniform(*shape).log()

    def gamma(self, concentration: Tensor) -> Tensor:
        """Gamma with rate 1, by Marsaglia & Tsang (2000): (C, ...) of each concentration (C, ...).

        Rejected proposals are drawn again, all at once. Below 1, gamma(a) is gamma(a + 1) u^(1/a).
        """
        shape = concentration.shape[1:]
        raised = torch.where(concentration < 1, concentration + 1, concentration)
        d = raised - 1 / 3
        c = (9 * d).rsqrt()
        result = torch.full_like(concentration, torch.nan)
        waiting = torch.ones_like(concentration, dtype=torch.bool)
        attempt = 0
        while bool(waiting.any()):
            stream = self.fold(attempt)
            x = stream.fold(0).normal(*shape)
            v = (1 + c * x) ** 3
            bound = x * x / 2 + d - d * v + d * v.clamp(min=torch.finfo(self.dtype).tiny).log()
            good = waiting & (v > 0) & (stream.fold(1).uniform(*shape).log() < bound)
            result = torch.where(good, d * v, result)
            waiting = waiting & ~good & ~torch.isnan(concentration)
            attempt += 1
        boost = (self.fold(-1).uniform(*shape).log() / concentration).exp()
        return torch.where(concentration < 1, result * boost, result)

    def dirichlet(self, concentration: Tensor) -> Tensor:
        """Dirichlet over the last dimension: (C, ..., K)."""
        # on the log scale, where small concentrations would underflow to 0 / 0
        small = concentration < 1
        gamma = self.fold(0).gamma(torch.where(small, concentration + 1, concentration))
        unit = self.fold(1).uniform(*concentration.shape[1:])
        logs = gamma.log() + torch.where(small, unit.log() / concentration, 0.0)
        return torch.softmax(logs, -1)

    def integers(self) -> list[int]:
        """One 63-bit integer per chain, to seed a generator of another library."""
        words = self.words(2)
        return ((words[:, 0] << 31) ^ words[:, 1]).tolist()

    def seed_torch(self) -> None:
        """Seed torch's global generator of the device of the first stream, as programs use it.

        ``torch.manual_seed`` seeds every device that there might be, which takes longer than a
        small step of training.
        """
        seed_torch(_seed(*self.key[0].tolist()), self.key.device)


def seed_torch(seed: int, device: torch.device) -> None:
    """Seed torch's global generator of a device, and of no other."""
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


def _seed(low: int, high: int) -> int:
    """A key as one number of 63 bits."""
    return (high << 31) ^ low


def _generate(key: Tensor, count: int, low: int, high: int, tag: int) -> Tensor:
    """Words at the counters (low + i, high, 0, tag), i < count, for every key: (C, count, 4)."""
    if key.device.type == "cpu":
        out = torch.empty(len(key), count, 4, dtype=torch.int64)
        generate(key.contiguous().numpy(), count, low, high, tag, out.numpy())
        return out
    counter = torch.arange(low, low + count, device=key.device)
    fixed = [torch.full_like(counter, word) for word in (high, 0, tag)]
    return torch.stack(philox((counter, *fixed), (key[:, :1], key[:, 1:])), -1)
