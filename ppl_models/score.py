"""Score matching: learn grad log p(x) from draws of p, without its normalising constant.

For a score network s(x), the expected squared error J = E |s(x) - grad log p(x)|^2 / 2 is, up to a
constant that does not depend on s, the expectation of each of these losses of a row:

- ``implicit``: tr grad s(x) + |s(x)|^2 / 2 (Hyvarinen 2005);
- ``sliced``: v' grad s(x) v + |s(x)|^2 / 2 with random directions v (Song, Garg, Shi & Ermon 2019);
- ``denoising``: |s(x + d n) + n / d|^2 / 2, for the score of p with noise of sd d added
  (Vincent 2011).

A score is any function (B, D) -> (B, D); an energy E gives the score -grad E by ``of_energy``.
Random numbers are those of a stream, or of torch's generator where none is given, as in training.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ppl_models.errors import DataError
from ppl_models.noise import Noise

Score = Callable[[Tensor], Tensor]


def of_energy(energy: Callable[[Tensor], Tensor]) -> Score:
    """The score -grad E(x) of an energy (B, D) -> (B,), p being proportional to exp(-E).

    >>> score = of_energy(lambda x: 0.5 * x.square().sum(-1))
    >>> score(torch.tensor([[1.0, -2.0]]))
    tensor([[-1.,  2.]])
    """

    def total(x: Tensor) -> Tensor:
        return -energy(x).sum()

    return torch.func.grad(total)


def implicit(score: Score, x: Tensor) -> Tensor:
    """Give tr grad s(x) + |s(x)|^2 / 2 of each row, the trace summed exactly: (B, D) -> (B,).

    Time grows with D backward passes; above a few tens of dimensions take ``sliced``.
    """
    x = _rows(x)
    value, pull = torch.func.vjp(score, x)[:2]
    unit = torch.eye(x.shape[1]).to(x)[:, None].expand(-1, *x.shape)  # (D, B, D)
    trace = torch.func.vmap(lambda v: (pull(v)[0] * v).sum(-1))(unit).sum(0)
    return trace + 0.5 * value.square().sum(-1)


def sliced(score: Score, x: Tensor, noise: Noise | None = None, directions: int = 1) -> Tensor:
    """The mean of v' grad s(x) v + |s(x)|^2 / 2 over directions v of random signs: (B, D) -> (B,).

    Args:
        score: s.
        x: rows, (B, D).
        noise: one stream, or None.
        directions: per row, at least 1.
    """
    x = _rows(x)
    value, pull = torch.func.vjp(score, x)[:2]
    shape = (directions, *x.shape)
    unit = (
        torch.rand(shape, dtype=x.dtype, device=x.device)
        if noise is None
        else noise.uniform(*shape)[0].to(x)
    )
    signs = unit.round() * 2 - 1
    along = torch.func.vmap(lambda v: (pull(v)[0] * v).sum(-1))(signs).mean(0)
    return along + 0.5 * value.square().sum(-1)


def denoising(score: Score, x: Tensor, sd: float | Tensor, noise: Noise | None = None) -> Tensor:
    """|s(x + d n) + n / d|^2 / 2 of each row: (B, D) -> (B,).

    The minimiser is the score of the data with noise added, not of the data: its expectation
    differs from J for that density by a constant, and tends to infinity as d goes to zero.

    Args:
        score: s.
        x: rows, (B, D).
        sd: d, a positive number or one per row (B, 1).
        noise: one stream, or None.
    """
    x = _rows(x)
    traced = noise is None and isinstance(sd, Tensor)  # training, which must not look at values
    if not traced and not bool((torch.as_tensor(sd) > 0).all()):
        raise DataError(f"sd={sd!r}: give a positive number")
    normal = torch.randn_like(x) if noise is None else noise.normal(*x.shape)[0].to(x)
    return 0.5 * (score(x + sd * normal) + normal / sd).square().sum(-1)


def _rows(x: Tensor) -> Tensor:
    if x.dim() != 2:
        raise DataError(f"x: has shape {tuple(x.shape)}; give rows (B, D)")
    return x
