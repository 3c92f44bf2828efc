"""Microseconds per step of all chains, with a gradient that costs next to nothing.

    python -m benchmarks.driver

A step is a leapfrog of NUTS with its bookkeeping, or one of a trajectory as HMC takes it, on a
standard normal. In the columns ``C`` the density is a C function (here of numba), in the columns
``Python`` a function that returns tensors. Times are of the processor, the best of some rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from numba import carray, cfunc, types
from torch import Tensor

from inference import NUTS, Target
from inference.chains import Tuning
from inference.hmc import Phase, trajectory
from inference.native import Native
from ppl_models import Noise

ROUNDS, STEPS = 5, 20_000

_REALS = types.CPointer(types.float64)


@cfunc(types.void(types.int64, _REALS, _REALS, _REALS, types.intp))
def _normal(chains: Any, x: Any, value: Any, gradient: Any, dim: Any) -> None:
    points, slopes = carray(x, (chains, dim)), carray(gradient, (chains, dim))
    values = carray(value, (chains,))
    for c in range(chains):
        square = 0.0
        for i in range(dim):
            square += points[c, i] * points[c, i]
            slopes[c, i] = -points[c, i]
        values[c] = -0.5 * square


def target(dim: int, native: bool) -> Target:
    """The standard normal, its gradient as cheap as can be."""
    made: Any = Target(lambda x: -0.5 * x.square().sum(), dim, tier="traced")
    density = Native(_normal.address, dim, _normal)
    made.native = lambda x: density if native else None
    made.evaluator = lambda x: lambda points: (-0.5 * torch.linalg.vecdot(points, points), -points)
    return made


def nuts(chains: int, dim: int, mass: str, native: bool) -> Callable[[int], int]:
    """Makes some steps and says how many."""
    density, engine = target(dim, native), NUTS()
    noise, x = Noise.seeded(0, chains), torch.zeros(chains, dim, dtype=torch.float64)
    tuning = Tuning(torch.full_like(x[:, 0], 0.4), scale_of(dim, mass))
    state = engine.init(density, x, tuning, engine.numbers(density, noise, 0, 1)[0])
    return lambda steps: engine.block(density, state, tuning, noise, 0, steps).steps


def leapfrogs(chains: int, dim: int, mass: str, native: bool) -> Callable[[int], int]:
    """The same for trajectories of ten leapfrogs."""
    density, x = target(dim, native), torch.ones(chains, dim, dtype=torch.float64)
    phase, step = Phase(x, x[:, 0], -x), torch.full_like(x[:, :1], 0.1)

    def move(steps: int) -> int:
        for _ in range(steps // 10):
            trajectory(density, phase, x, step, scale_of(dim, mass), 10)
        return steps // 10 * 10

    return move


def scale_of(dim: int, mass: str) -> Tensor:
    one = torch.eye(dim, dtype=torch.float64)
    return one if mass == "dense" else one.diagonal().contiguous()


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    print("chains  D  scale     NUTS: C  Python   HMC: C  Python   [us per step of all chains]")
    for chains in (4, 64):
        for dim in (2, 10, 50):
            for mass in ("diagonal", "dense"):
                figures = []
                for kind in (nuts, leapfrogs):
                    for native in (True, False):
                        move, best = kind(chains, dim, mass, native), float("inf")
                        for _ in range(ROUNDS):
                            begin = time.process_time()
                            made = move(STEPS if native else STEPS // 20)
                            best = min(best, (time.process_time() - begin) / made * 1e6)
                        figures.append(best)
                text = "  {:7.2f} {:7.1f}  {:7.2f} {:7.1f}".format(*figures)
                print(f"{chains:6d} {dim:2d}  {mass:8s} {text}", flush=True)


if __name__ == "__main__":
    main()
