"""Geweke's joint test: does a kernel keep the joint law of parameters and data?

Geweke (2004), "Getting it right: joint distribution tests of posterior simulators". Draw (theta, y)
from the program; then again and again move theta by the kernel that is to keep p(theta | y), and
draw y anew given theta. If and only if the kernel keeps it, every theta has the prior's law and
(theta, y) the joint one. Other than simulation-based calibration it needs no long fits, and sees a
fault of a single transition; it says nothing of warm-up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from inference.engine import Engine, Problem
from inference.fit import bind
from inference.gibbs import Gibbs
from inference.moves import transition, tuned
from inference.program import isolated
from inference.replicated import Replicated, with_target
from inference.sampling import Sampler
from inference.simulation import Assemble, Simulator
from ppl_models.base import Data, Params
from ppl_models.errors import EngineError
from ppl_models.noise import Noise

_INDEPENDENT = 20_000  # draws of the program that chains are compared with


@dataclass(frozen=True)
class JointTest:
    """What Geweke's test found.

    ``table`` has a row per scalar: ``location`` and ``spread`` are t statistics of the mean and the
    variance of the scalar's ranks among independent draws of the program, ``p`` the smaller of
    their two-sided p-values. Location > 0: the kernel moves to values that are too large; spread >
    0: to values too far out.
    """

    table: pd.DataFrame
    level: float

    @property
    def passed(self) -> bool:
        """Whether no p-value is below ``level``, by Bonferroni over scalars and statistics."""
        return bool((self.table["p"] > self.level / (2 * len(self.table))).all())


def geweke(
    model: Callable[..., Any],
    data: Any,
    engine: Engine,
    *,
    chains: int = 200,
    steps: int = 50,
    seed: int = 0,
    assemble: Assemble | None = None,
    level: float = 0.01,
) -> JointTest:
    """Geweke's joint test of an engine's kernel on a model.

    ``chains`` successive-conditional simulators start from independent draws of the program, so
    that they are stationary from the first step if the kernel is right; their averages over steps
    are then independent and of known mean. What is averaged is the rank of each scalar, and of the
    log likelihood, among independent draws of the program: bounded whatever the prior's tails.

    Args:
        model: a ``Model`` or any Pyro function; its prior must be proper.
        data: a template: sizes, covariates, and observed values, which simulated ones replace.
        engine: a ``Sampler``, whose tuning is learnt by its warm-up on the first data sets and then
            fixed, or ``Gibbs``.
        chains: independent simulators.
        steps: transitions of each; a fault shows after as many as the kernel takes to mix.
        seed: of everything.
        assemble: as of ``sbc``.
        level: the chance that a correct kernel fails.

    Raises:
        ModelError: the prior is improper, or data cannot be simulated.
        EngineError: an engine without a kernel.
    """
    for name, value, least in (("chains", chains, 10), ("steps", steps, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise EngineError(f"{name}={value!r}: give a whole number of at least {least}")
    sampler = isinstance(engine, Sampler) and getattr(engine, "proposal", None) is None
    if not sampler and not isinstance(engine, Gibbs):
        raise EngineError(
            f"{type(engine).__name__} has no kernel that keeps a posterior; give a sampler without "
            "a proposal, such as NUTS(), HMC(), MH(), or Gibbs()"
        )
    problem = bind(model, data, seed=seed)
    engine.check(model, problem.program)
    with isolated(problem.dtype, problem.device), torch.no_grad():
        simulator = Simulator(problem, assemble)
        reference = _scalars(simulator, *simulator.joint(_INDEPENDENT, seed + 1))
        truth, drawn = simulator.joint(chains, seed)
        noise = problem.noise(chains)
        kernel: Any = _Conditionals if isinstance(engine, Gibbs) else _Transitions
        moving = kernel(simulator, engine, drawn, noise.fold(0))
        values = {site.name: truth[site.name] for site in problem.program.sites}
        seeds = Noise.seeded(seed, steps).fold(2).integers()
        kept: dict[str, list[np.ndarray]] = {}
        for step in range(steps):
            values = moving(values, drawn, noise.fold(1, step))
            drawn = problem.program.predictive(values, seeds[step])
            for name, column in _scalars(simulator, values, drawn).items():
                kept.setdefault(name, []).append(column)
    rows = {n: _row(np.stack(kept[n], 1), reference[n]) for n in reference}
    return JointTest(pd.DataFrame(rows).T, level)


class _Transitions:
    """A sampler's transitions at a fixed tuning, each chain on its own data."""

    def __init__(self, simulator: Simulator, engine: Sampler, drawn: Params, noise: Noise) -> None:
        self.simulator, self.engine = simulator, engine
        fields = simulator.batch(drawn)
        self.replicated = Replicated(simulator.problem, fields)
        target = self.replicated.as_target()
        problem = with_target(simulator.problem, self.replicated)
        x = engine.start(target, noise.fold(0))
        self.tuning = engine.warm_up(target, x, noise.fold(1), problem)[1]

    def __call__(self, values: Params, drawn: Params, noise: Noise) -> Params:
        fields = self.simulator.batch(drawn)
        lifted = {name: value[:, None] for name, value in values.items()}
        x = self.simulator.unconstrain(lifted, fields)[:, 0]
        target = self.replicated.with_fields(fields).as_target()
        tuning = tuned(self.tuning.scale, self.tuning.step_size[0], len(x))
        x = transition(self.engine, target, x, tuning, noise).x
        moved = self.simulator.constrain(x[:, None], fields)
        return {name: value[:, 0] for name, value in moved.items()}


class _Conditionals:
    """A Gibbs sweep of each chain on its own data."""

    def __init__(self, simulator: Simulator, engine: Gibbs, drawn: Params, noise: Noise) -> None:
        self.simulator = simulator
        self.extras: list[Params] = []
        for c, data in enumerate(simulator.datasets(drawn)):
            own = noise._replace(key=noise.key[c : c + 1])
            self.extras.append(_model(simulator.problem).initial(data, 1, own) or {})

    def __call__(self, values: Params, drawn: Params, noise: Noise) -> Params:
        model = _model(self.simulator.problem)
        moved = []
        for c, data in enumerate(self.simulator.datasets(drawn)):
            state = {**self.extras[c], **{n: v[c : c + 1] for n, v in values.items()}}
            own = noise._replace(key=noise.key[c : c + 1])
            for position, block in enumerate(model.conditionals(data).values()):
                state = block(state, own.fold(position))
            complete = model.complete(data, state, own.fold(-1))
            self.extras[c] = state
            moved.append({name: complete[name] for name in values})
        return {name: torch.cat([m[name] for m in moved]) for name in values}


def _model(problem: Problem) -> Any:
    return problem.model


def _scalars(simulator: Simulator, values: Params, drawn: Params) -> dict[str, np.ndarray]:
    """Every continuous scalar, and the log likelihood: {name: (R,)}."""
    names = [site.name for site in simulator.program.sites]
    columns: dict[str, Tensor] = {}
    for name in names:
        flat = values[name].flatten(1) if values[name].dim() > 1 else values[name][:, None]
        for index, column in enumerate(flat.unbind(1)):
            place = ", ".join(map(str, np.unravel_index(index, values[name].shape[1:])))
            columns[f"{name}[{place}]" if place else name] = column
    if drawn:
        fields: Data = simulator.batch(drawn)
        lifted = {name: values[name][:, None] for name in names}
        columns["log_likelihood"] = simulator.log_likelihood(lifted, fields)[:, 0]
    return {name: column.double().cpu().numpy() for name, column in columns.items()}


def _row(x: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """T statistics of a scalar's ranks: x (C, T) against independent draws (M,)."""
    order = np.sort(reference)
    left, right = (np.searchsorted(order, x, side) for side in ("left", "right"))
    rank = (left + right) / (2 * len(order)) - 0.5  # ties in the middle
    own = (np.searchsorted(order, order, "left") + np.searchsorted(order, order, "right")) / (
        2 * len(order)
    ) - 0.5
    found = {}
    for name, power in (("location", 1), ("spread", 2)):
        averages = (rank**power).mean(1)
        expected = (own**power).mean()
        error = np.hypot(averages.std(ddof=1) / len(x) ** 0.5, (own**power).std() / len(own) ** 0.5)
        found[name] = float((averages.mean() - expected) / error) if error > 0 else 0.0
    worst = max(abs(t) for t in found.values())
    return {**found, "p": float(2 * stats.t.sf(worst, len(x) - 1))}
