"""One transition of every chain by any sampler at a fixed tuning, outside the sampling loop."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from inference.chains import Tuning
from inference.sampling import Sampler
from inference.target import Target
from ppl_models.noise import Noise

_BLOCK = 8  # steps at a time, for samplers whose transitions take several


class Moved(NamedTuple):
    """Where the chains are after a transition."""

    x: Tensor  # (C, D)
    log_density: Tensor  # (C,)
    acceptance_rate: Tensor  # (C,)


def transition(sampler: Sampler, target: Target, x: Tensor, tuning: Tuning, noise: Noise) -> Moved:
    """The first transition that every chain finishes from the points ``x`` (C, D)."""
    first = sampler.randomness(target, noise.fold(0), 1)[0]
    state = sampler.init(target, x, tuning, first)
    waiting = torch.ones(len(x), dtype=torch.bool, device=x.device)
    moved = Moved(x, x.new_zeros(len(x)), x.new_zeros(len(x)))
    steps, most = 0, 1
    while bool(waiting.any()):
        block = sampler.block(target, state, tuning, noise.fold(1), steps, most)
        history, state = block.history, block.state
        for row in range(len(history.done)):
            now = history.done[row] & waiting
            moved = Moved(
                torch.where(now[:, None], history.x[row], moved.x),
                torch.where(now, history.log_density[row], moved.log_density),
                torch.where(now, history.acceptance_rate[row], moved.acceptance_rate),
            )
            waiting = waiting & ~now
        steps, most = steps + block.steps, _BLOCK
    return moved


def tuned(scale: Tensor, step: Tensor | float, chains: int) -> Tuning:
    """One step size and scale for all chains."""
    size = torch.as_tensor(step, dtype=scale.dtype, device=scale.device)
    return Tuning(size.expand(chains).contiguous(), scale)
