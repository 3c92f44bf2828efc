"""A Pyro program over a model's latent sites, used to propose values of them.

Shared by independence Metropolis-Hastings and importance sampling.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from inference.engine import Problem
from inference.outputs import Outputs
from inference.program import Program
from inference.target import Target
from ppl_models.errors import ModelError
from ppl_models.noise import Noise

_STARTS = 1000
_ROUNDING = 1e-4  # of a value mapped to the real line and back


class Proposal:
    """Draws and densities of a proposal program, in the model's unconstrained space.

    Raises:
        ModelError: its latent sites are not those of the model, by name and shape.
    """

    def __init__(self, problem: Problem, program: Callable[..., Any]) -> None:
        self._program = Program(program, problem.data, plate_nesting=problem.program.plate_nesting)
        self._model = problem.outputs
        self._own = Outputs(self._program, problem.dtype, problem.device)
        wanted = {site.name: tuple(site.shape) for site in problem.program.sites}
        given = {site.name: tuple(site.shape) for site in self._program.sites}
        if wanted != given:
            raise ModelError(
                f"the proposal samples {given}, the model {wanted}; the proposal must sample the "
                "model's latent sites, by the same names and shapes"
            )

    def draw(self, noise: Noise, count: int) -> tuple[Tensor, Tensor]:
        """``count`` draws per chain and their log densities: (C, count, D), (C, count).

        A draw outside the model's support has no unconstrained point: its log density is infinite,
        so that its weight and its chance of acceptance are zero.
        """
        runs = [self._program.sample(count, seed) for seed in noise.integers()]
        values = {name: torch.stack([run[name] for run in runs]) for name in runs[0]}
        x = self._model.unconstrain(values)
        log_density = self._own.log_joint(values) + self._model.log_jacobian(x)
        outside = torch.zeros_like(log_density, dtype=torch.bool)
        for name, value in self._model.constrain(x).items():
            # transforms clamp: what is not of the support comes back as something else
            far = ~torch.isclose(value, values[name].to(value), rtol=_ROUNDING, atol=_ROUNDING)
            outside |= far.flatten(2).any(-1) if far.dim() > 2 else far
        return x, torch.where(outside, torch.inf, log_density)

    def log_density(self, x: Tensor) -> Tensor:
        """Log density at unconstrained points: (C, D) -> (C,)."""
        return self._own.log_joint(self._model.constrain(x)) + self._model.log_jacobian(x)

    def single(self, x: Tensor) -> Tensor:
        """Log density at one unconstrained point, to be traced: (D,) -> ()."""
        program = self._model.program
        return self._program.log_joint(program.constrain(x)) + program.log_jacobian(x)

    def start(self, target: Target, noise: Noise) -> Tensor:
        """For each chain the first of its draws with a finite target density: (C, D)."""
        x, log_proposal = self.draw(noise, _STARTS)
        good = torch.isfinite(target.log_density(x.flatten(0, 1))).reshape(x.shape[:2])
        good &= torch.isfinite(log_proposal)
        if not bool(good.any(-1).all()):
            raise ModelError(
                f"none of {_STARTS} draws of the proposal has a finite density under the model; "
                "check that their supports agree"
            )
        first = good.to(torch.uint8).argmax(-1)
        return x[torch.arange(len(x)), first]
