"""How many chains reach a precision soonest: what ``NUTS(chains="auto")`` decides.

Every chain spends its own warm-up, but all share what a step costs whatever their number: the calls
of the density's operations. With C chains, W transitions of warm-up each, and n(C) draws each until
all together are as precise as asked, a run takes the time of

    (a + b C) (W + n(C))

steps of one chain, where n(C) falls like 1 / C. The powers of two are compared; a and b are
predicted from the density's graph. Nothing is measured: a choice made by a clock would give other
draws on another day.
"""

from __future__ import annotations

import math

import torch

from inference import graph
from inference.engine import Problem
from inference.stopping import FIRST, Until
from inference.target import Target

_CHOICES = tuple(2**k for k in range(2, 11))
_EFFECTIVE = 0.5  # independent draws per draw of NUTS
# seconds of a step of NUTS beside the density, by ``benchmarks/driver.py``: around a C function or
# not; and of every chain in it, for each dimension, and for each entry of a dense scale
_STEP, _STEP_IN_PYTHON = 3e-7, 1e-5
_CHAIN, _DIMENSION, _ENTRY = 1.2e-7, 7e-9, 5e-10
_LAUNCH = 1e-5  # seconds of an operation on a GPU
_MANY = 64  # chains at which the growth of the density's cost is looked at


def chain_count(problem: Problem, target: Target, warmup: int, draws: int, *, dense: bool) -> int:
    """The number of chains for the precision that ``problem.until`` asks for.

    Args:
        problem, target: what is sampled.
        warmup: transitions of each chain.
        draws: of each chain, at most.
        dense: whether a step multiplies by a matrix.
    """
    goal = effective(problem.until)
    fixed, each = seconds(problem, target, dense=dense)

    def cost(chains: int) -> tuple[bool, float]:
        needed = max(FIRST, math.ceil(goal / (_EFFECTIVE * chains)))
        return needed > draws, (fixed + each * chains) * (warmup + min(needed, draws))

    return min(_CHOICES, key=cost)


def effective(until: Until) -> float:
    """The independent draws that a stop rule asks for."""
    return max(until.ess or 0.0, until.mcse**-2 if until.mcse else 0.0)


def seconds(problem: Problem, target: Target, *, dense: bool) -> tuple[float, float]:
    """Predicted seconds of a step: those that all chains share, and those of each."""
    own = _CHAIN + _DIMENSION * target.dim + (_ENTRY * target.dim**2 if dense else 0.0)
    x = torch.linspace(-0.7, 0.9, target.dim, dtype=target.dtype, device=target.device)
    points = x.repeat(_MANY, 1)
    with torch.no_grad():
        try:
            single = graph.trace(problem.program.log_density, x)
            operations, numbers = graph.work(graph.batched(single, points))
        except Exception:  # then it runs eagerly, most of it Python
            return 1.0, own
    if target.device.type != "cpu":
        return _STEP_IN_PYTHON + operations * _LAUNCH, 0.0
    each = own + numbers / _MANY * graph.SECONDS_PER_ELEMENT
    if target.native(points) is not None:  # a C function, which has no operations to call
        return _STEP, each
    return _STEP_IN_PYTHON + operations * graph.SECONDS_PER_OP, each
