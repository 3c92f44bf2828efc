"""Draws and densities of a trained diffusion: chains and flows from noise to data.

With x_t = a_t x_0 + s_t n and the denoiser's guesses of x_0 and n:

- ``ancestral``: the program itself, x_T ~ N(0, I), x_{t-1} ~ p(x_{t-1} | x_t) (Ho, Jain & Abbeel
  2020), optionally with Langevin corrections at every level (Song et al. 2021);
- ``ddim``: fewer steps, with less noise or none (Song, Meng & Ermon 2021);
- ``flow_draws`` and ``flow_log_density``: the probability-flow ODE (Song et al. 2021), which in
  y = x / a and sigma = s / a is dy / dsigma = n, and its change of variables.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchdiffeq import odeint

from inference.progress import bar
from ppl_models.diffusion import Diffusion
from ppl_models.errors import EngineError
from ppl_models.noise import Noise
from ppl_models.schedules import Steps

_EXACT_UP_TO = 32  # dimensions whose divergence is summed exactly


@torch.no_grad()
def ancestral(
    model: Diffusion,
    count: int,
    *,
    seed: int = 0,
    corrections: int = 0,
    ratio: float = 0.16,
    watch: Callable[[int, Tensor], None] | None = None,
    progress: bool | None = None,
) -> Tensor:
    """Draws of the model's program, the data being drawn last: (count, *shape).

    Args:
        model: a trained model.
        count: how many draws.
        seed: of the random numbers.
        corrections: unadjusted Langevin steps at each level t with the learned score, of length
            2 (ratio |n| / |score|)^2 (Song et al. 2021, algorithm 5).
        ratio: the signal-to-noise ratio of these steps.
        watch: called with each t and x_t on the way, T, ..., 1, to look at the chain.
        progress: whether to show a bar; by default on a terminal.
    """
    steps, noise = _table(model), _noise(model, count, seed)
    x = noise.fold(0).normal(*model.shape)
    with bar("ancestral sampling", show=progress) as report:
        for t in range(model.steps, 0, -1):
            if watch is not None:
                watch(t, x)
            at = torch.full((count,), t, device=x.device)
            if t == 1:
                with torch.random.fork_rng():
                    torch.manual_seed(seed % 2**63)
                    return model.likelihood(x, steps).sample()
            mean, variance = model.reverse(x, at, steps)
            x = mean + variance.sqrt() * noise.fold(1, t).normal(*model.shape)
            for i in range(corrections):
                normal = noise.fold(2, t, i).normal(*model.shape)
                score = -_guesses(model, x, t - 1, steps)[1] / steps.noise[t - 2]
                length = 2 * (ratio * normal.norm() / score.norm()) ** 2
                x = x + length * score + (2 * length).sqrt() * normal
            report(1 - (t - 1) / model.steps, f"t = {t}")
    return x


@torch.no_grad()
def ddim(
    model: Diffusion,
    count: int,
    *,
    steps: int = 50,
    eta: float = 0.0,
    seed: int = 0,
    progress: bool | None = None,
) -> Tensor:
    """Draws by denoising diffusion implicit steps: (count, *shape).

        x_r = a_r x_0 + sqrt(s_r^2 - d^2) n + d z,  d = eta (s_r / s_t) sqrt(1 - a_t^2 / a_r^2),

    from each t kept to the next lower r; the last gives the guess of x_0.

    Args:
        model, count, seed, progress: as for ``ancestral``.
        steps: how many of the T levels are kept, evenly spaced.
        eta: 0 for a deterministic map of x_T; 1 for the noise of the chain.

    Raises:
        EngineError: more steps than the model has, or eta outside [0, 1].
    """
    if not 1 <= steps <= model.steps:
        raise EngineError(f"steps={steps!r}: give 1 to {model.steps}, the steps of the model")
    if not 0 <= eta <= 1:
        raise EngineError(f"eta={eta!r}: give a number in [0, 1]")
    table, noise = _table(model), _noise(model, count, seed)
    x = noise.fold(0).normal(*model.shape)
    kept = np.unique(np.linspace(1, model.steps, steps).round().astype(int)).tolist()
    kept = kept if steps > 1 else [model.steps]
    with bar("DDIM", show=progress) as report:
        for place in range(len(kept) - 1, -1, -1):
            t = kept[place]
            data, normal = _guesses(model, x, t, table)
            if place == 0:
                return data
            r = kept[place - 1]
            share = (table.signal[t - 1] / table.signal[r - 1]).square()
            spread = eta * table.noise[r - 1] / table.noise[t - 1] * (1 - share).sqrt()
            rest = (table.noise[r - 1].square() - spread.square()).clamp(min=0).sqrt()
            x = table.signal[r - 1] * data + rest * normal
            x = x + spread * noise.fold(1, t).normal(*model.shape)
            report(1 - place / len(kept), f"t = {t}")
    return x


@torch.no_grad()
def flow_draws(
    model: Diffusion,
    count: int,
    *,
    seed: int = 0,
    tolerance: float = 1e-5,
    progress: bool | None = None,
) -> Tensor:
    """Draws by the probability-flow ODE from x_T down to x_1: (count, *shape).

    Args:
        model, count, seed, progress: as for ``ancestral``.
        tolerance: relative and absolute, of the adaptive Runge-Kutta solver (Dormand-Prince 5).
    """
    table = _table(model)
    x = _noise(model, count, seed).fold(0).normal(*model.shape)
    levels = _levels(table)
    ends = torch.stack([levels[-1], levels[0]])
    velocity = _velocity(model, levels)
    return _solve(velocity, x / table.signal[-1], ends, tolerance, progress)[-1]


def flow_log_density(
    model: Diffusion,
    x: Tensor,
    *,
    seed: int = 0,
    probes: int | None = None,
    tolerance: float = 1e-5,
    progress: bool | None = None,
) -> Tensor:
    """The log density of rows under the probability flow, in nats: (N,).

        log p(y_1) = log N(x_T; 0, I) + D log a_T + integral of div(n) over sigma,

    y_1 being x: the density is that of data with noise of sd s_1 / a_1 added, the first level.

    Args:
        model: a trained model.
        x: rows, (N, *shape).
        seed: of the probes.
        probes: random signs per row that estimate the divergence without bias (Hutchinson); by
            default it is summed exactly up to 32 dimensions, and one probe is used above.
        tolerance: as for ``flow_draws``.
        progress: as for ``ancestral``.
    """
    table = _table(model)
    x = x.to(table.signal)
    levels = _levels(table)
    velocity = _velocity(model, levels)
    dim = x[0].numel()
    if probes is None and dim > _EXACT_UP_TO:
        probes = 1
    if probes is None:
        directions = torch.eye(dim).to(x).reshape(dim, 1, *x.shape[1:]).expand(-1, *x.shape)
        weight = 1.0
    else:
        unit = Noise.seeded(seed, len(x), device=x.device, dtype=x.dtype).uniform(probes, dim)
        directions = (unit.round() * 2 - 1).transpose(0, 1).reshape(probes, *x.shape)
        weight = 1 / probes

    def both(level: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        y = state[0]
        slope, pull = torch.func.vjp(lambda v: velocity(level, v), y)[:2]
        along = torch.func.vmap(lambda d: (pull(d)[0] * d).flatten(1).sum(-1))(directions)
        return slope, weight * along.sum(0)

    with torch.no_grad():
        ends = torch.stack([levels[0], levels[-1]])
        start = (x, x.new_zeros(len(x)))
        y, divergence = _solve(both, start, ends, tolerance, progress)
        last = (y[-1] * table.signal[-1]).flatten(1)
        constant = dim * (table.signal[-1].log() - 0.5 * np.log(2 * np.pi))
        return constant - 0.5 * last.square().sum(-1) + divergence[-1]


def score_of(model: Diffusion) -> Callable[[Tensor, float], Tensor]:
    """The learned score at y = x_t / a_t, for ``annealed_draws``: s(y, sd), (B, D) -> (B, D).

    It is the gradient of the log density of the data with noise of sd s_t / a_t added: of vectors,
    for sds from ``noise_levels``.
    """
    levels = _levels(_table(model))
    velocity = _velocity(model, levels)

    def score(y: Tensor, sd: float) -> Tensor:
        level = torch.as_tensor(math.log(sd)).to(levels)
        return -velocity(level, y.to(levels)) / sd**2

    return score


def noise_levels(model: Diffusion, number: int) -> list[float]:
    """So many sds s_t / a_t, from the last step of the chain to its first, by equal factors."""
    levels = _levels(_table(model))
    return torch.linspace(float(levels[-1]), float(levels[0]), number).exp().tolist()


def _levels(table: Steps) -> Tensor:
    """Log s_t / a_t of t = 1, ..., T."""
    return (table.noise / table.signal).log()


def _solve(slope: Any, start: Any, ends: Tensor, tolerance: float, progress: bool | None) -> Any:
    """The path at both ends, the last of which the solver steps to rather than beyond."""
    options = {"step_t": ends[1:]}
    with bar("probability flow", show=progress) as report:

        def watched(level: Tensor, state: Any) -> Any:
            report(float((level - ends[0]) / (ends[1] - ends[0])))
            return slope(level, state)

        return odeint(watched, start, ends, rtol=tolerance, atol=tolerance, options=options)


def _velocity(model: Diffusion, levels: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """The slope dy / dlog(sigma) = sigma n at log sigma and y (B, *shape).

    ``levels`` (T,) are the values of log sigma at t = 1, ..., T.
    """

    def velocity(level: Tensor, y: Tensor) -> Tensor:
        level = level.clamp(levels[0], levels[-1])  # where rounding leads beyond the ends
        sigma = level.exp()
        signal = (1 + sigma.square()).rsqrt()
        above = torch.searchsorted(levels, level).clamp(min=1)
        below = above - 1
        t = below + (level - levels[below]) / (levels[above] - levels[below])
        time = ((t + 1) / model.steps).expand(len(y))
        guess, _ = model.predict(signal * y, time, signal, sigma * signal)
        return y - guess  # sigma n = y - x_0

    return velocity


def _guesses(model: Diffusion, x: Tensor, t: int, steps: Steps) -> tuple[Tensor, Tensor]:
    """The denoiser's x_0 and n at x_t (B, *shape)."""
    signal, noise = steps.signal[t - 1], steps.noise[t - 1]
    time = torch.full((len(x),), t / model.steps, dtype=x.dtype, device=x.device)
    data, _ = model.predict(x, time, signal, noise)
    return data, (x - signal * data) / noise


def _table(model: Diffusion) -> Steps:
    like = next(iter([*model.parameters(), *model.buffers()]), torch.zeros(1))
    return Steps(*(part.detach() for part in model.table(like)))


def _noise(model: Diffusion, count: int, seed: int) -> Noise:
    if not (isinstance(count, int) and count >= 1):
        raise EngineError(f"count={count!r}: give a whole number of at least 1")
    like = _table(model).signal
    return Noise.seeded(seed, count, device=like.device, dtype=like.dtype)
