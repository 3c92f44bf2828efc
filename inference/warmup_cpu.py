"""Adaptation of ``warmup`` transition by transition, compiled by numba.

What is learnt depends on the transitions and their order alone, not on the blocks that they came
in, to the bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ppl_models.loops import compiled

SHRINKAGE, STABILISATION, DECAY = 0.1, 10.0, 0.75
"""Stan's t0 and kappa, and twice its gamma: 0.05 moves the step size so much that its average, at
which draws are made, accepts 0.89 to 0.93 where 0.8 is asked for."""


@compiled
def average(state: Any, c: int, rate: float, goal: float) -> float:
    """``warmup.update`` for one chain, rows as in ``warmup.Averaging``; the new step size."""
    state[3, c] += 1
    weight = 1 / (state[3, c] + STABILISATION)
    state[2, c] = (1 - weight) * state[2, c] + weight * (goal - rate)
    state[0, c] = state[4, c] - np.sqrt(state[3, c]) / SHRINKAGE * state[2, c]
    weight = state[3, c] ** -DECAY
    state[1, c] = weight * state[0, c] + (1 - weight) * state[1, c]
    return np.exp(state[0, c])


@compiled
def add(number: Any, mean: Any, scatter: Any, rows: Any, done: Any, away: Any) -> None:
    """``warmup.merged`` in place (Welford 1962).

    ``scatter`` is (C, D), or (C, D * D) of a matrix; ``away`` (D,) is room to work in.
    """
    dim = rows.shape[2]
    dense = scatter.shape[1] != dim
    for k in range(len(done)):
        for c in range(rows.shape[1]):
            if not done[k, c]:
                continue
            number[c] += 1
            share = 1 / number[c]
            for i in range(dim):
                away[i] = rows[k, c, i] - mean[c, i]
                mean[c, i] += share * away[i]
            for i in range(dim):
                if not dense:
                    scatter[c, i] += (1 - share) * away[i] * away[i]
                    continue
                for j in range(dim):
                    scatter[c, i * dim + j] += (1 - share) * away[i] * away[j]
