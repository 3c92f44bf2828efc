"""k-means++ seeding and Lloyd's iterations, all restarts in one batch.

Arthur & Vassilvitskii (2007), "k-means++: the advantages of careful seeding"; Lloyd (1982).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_models.noise import Noise


def seeds(x: Tensor, clusters: int, noise: Noise) -> Tensor:
    """Rows of ``x`` (N, D) far from each other, for each stream of ``noise``: (R, K, D).

    Each is drawn with probability proportional to its squared distance from the nearest before it.
    """
    unit = noise.uniform(clusters)  # (R, K)
    index = (unit[:, 0] * len(x)).long().clamp(max=len(x) - 1)
    chosen = [x[index]]
    nearest = torch.full((len(unit), len(x)), torch.inf, dtype=x.dtype, device=x.device)
    for k in range(1, clusters):
        nearest = torch.minimum(nearest, _squared_distances(x, chosen[-1]))
        cumulative = nearest.cumsum(-1)
        wanted = unit[:, k, None] * cumulative[:, -1:]
        index = torch.searchsorted(cumulative, wanted).clamp(max=len(x) - 1)[:, 0]
        chosen.append(x[index])
    return torch.stack(chosen, 1)


def lloyd(x: Tensor, centres: Tensor, steps: int) -> Tensor:
    """The cluster of every row after some iterations from ``centres`` (R, K, D): (R, N)."""
    restarts, clusters, d = centres.shape
    labels = _closest(x, centres)
    for _ in range(steps):
        index = torch.arange(clusters, device=x.device)[:, None]
        member = (labels[:, None] == index).to(x.dtype)  # (R, K, N)
        count = member.sum(-1, keepdim=True)
        total = (member.view(-1, len(x)) @ x).view(restarts, clusters, d)
        centres = torch.where(count > 0, total / count.clamp(min=1), centres)
        labels = _closest(x, centres)
    return labels


def _closest(x: Tensor, centres: Tensor) -> Tensor:
    product = (centres.reshape(-1, centres.shape[-1]) @ x.mT).view(*centres.shape[:2], -1)
    distances = centres.square().sum(-1, keepdim=True) - 2 * product  # (R, K, N), less |x|^2
    least, labels = distances[:, 0], torch.zeros_like(distances[:, 0], dtype=torch.int64)
    for k in range(1, distances.shape[1]):  # torch's argmin over a middle dimension is slow
        labels = torch.where(distances[:, k] < least, k, labels)
        least = torch.minimum(least, distances[:, k])
    return labels


def _squared_distances(x: Tensor, centres: Tensor) -> Tensor:
    """From every row (N, D) to one centre for each restart (R, D): (R, N)."""
    squares = x.square().sum(-1) - 2 * centres @ x.mT + centres.square().sum(-1, keepdim=True)
    return squares.clamp(min=0)
