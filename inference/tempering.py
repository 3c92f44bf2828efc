"""Paths from a normalised reference q to the posterior: q^(1 - b) p^b, 0 <= b <= 1.

p is the unnormalised posterior, the program's joint density, whose integral is the evidence Z. With
u = log p - log q the density at b is q exp(b u), and

    log Z = int_0^1 E_b[u] db = log E_0[exp u].

With the prior for q, u is the log likelihood and the path is that of power posteriors. A partly
improper prior has no such path, but any normalised q with the posterior's support does: the normal
approximation at the mode, or a proposal program. All is in the model's unconstrained space.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from inference.engine import Problem, TierChoice
from inference.finding import Finding
from inference.laplace import find_mode, hessian
from inference.proposal import Proposal
from inference.target import Target
from ppl_models.errors import EngineError
from ppl_models.noise import Noise

Reference = Callable[..., Any] | str
"""``"prior"``, ``"laplace"``, or a Pyro program over the model's latent sites."""

_STARTS = 4
_ROUGH = 0.5  # standard errors of a log evidence


def check_reference(name: str, reference: Reference) -> None:
    """Refuse what is no reference. Raises ``EngineError``."""
    known = isinstance(reference, str) and reference in ("prior", "laplace")
    if not known and (isinstance(reference, str | type) or not callable(reference)):
        raise EngineError(
            f"{name}(reference={reference!r}): choose 'prior', 'laplace', or give a Pyro program "
            "over the model's latent sites"
        )


class Ends(Protocol):
    """The densities at both ends of a path; see ``Path``."""

    dim: int
    dtype: torch.dtype
    device: torch.device
    posterior: Any  # a Target, or what samplers take for one
    reference: Any


def difference(ends: Ends, x: Tensor) -> Tensor:
    """U = log p - log q: (C, D) -> (C,); NaN becomes -inf."""
    u = ends.posterior.log_density(x) - ends.reference.log_density(x)
    return torch.nan_to_num(u, nan=-torch.inf, posinf=torch.inf)


class Path:
    """The reference, and the densities along the path.

    Raises:
        EngineError: the prior is asked for and improper.
        ModelError: there is no mode to approximate, or a program has other sites than the model.
    """

    def __init__(
        self, problem: Problem, reference: Reference, tier: TierChoice, calls: int
    ) -> None:
        self.posterior = problem.target(tier, calls)
        self.dim = self.posterior.dim
        self.dtype, self.device = problem.dtype, problem.device
        self._proposal: Proposal | None = None
        if reference == "laplace":
            laplace = self._laplace(problem)

            def density(x: Tensor) -> Tensor:
                return laplace(x)

        else:
            program = problem.program.prior() if isinstance(reference, str) else reference
            self._proposal = Proposal(problem, program)
            proposal = self._proposal

            def density(x: Tensor) -> Tensor:  # a function, since make_fx miscounts a method's self
                return proposal.single(x)

        self.reference = Target(
            density, self.dim, dtype=self.dtype, device=self.device, tier=tier, calls=calls
        )

    def draw(self, noise: Noise, count: int) -> Tensor:
        """Independent draws of the reference with a finite density: (C, count, D)."""
        if self._proposal is None:
            unit = noise.normal(count, self.dim)
            return self._mode + unit @ self._factor.T
        try:
            x, log_q = self._proposal.draw(noise, count)
        except NotImplementedError as error:
            raise EngineError(
                "the prior is improper (flat), so that no path leads from it to the posterior; "
                'give reference="laplace", or a Pyro program over the latent sites with the '
                "posterior's support"
            ) from error
        if not bool(torch.isfinite(log_q).all()):
            raise EngineError(
                "the reference draws values outside the model's support; give one with the same "
                "support"
            )
        return x

    def _laplace(self, problem: Problem) -> Callable[[Tensor], Tensor]:
        self._mode = find_mode(self.posterior, problem.noise(_STARTS).fold(0))
        curvature = -hessian(self.posterior.uncompiled(), self._mode)
        lower, fault = torch.linalg.cholesky_ex(curvature)
        if bool(fault) or not bool(torch.isfinite(lower).all()):
            raise EngineError(
                "reference='laplace': the density has no mode with curvature in every direction; "
                "give a Pyro program over the latent sites as reference"
            )
        identity = torch.eye(self.dim, dtype=self.dtype, device=self.device)
        self._factor = torch.linalg.solve_triangular(lower, identity, upper=False).T.contiguous()
        constant = float(lower.diagonal().log().sum()) - 0.5 * self.dim * math.log(2 * math.pi)
        mode = self._mode.clone()

        def single(x: Tensor) -> Tensor:
            return constant - 0.5 * (lower.T @ (x - mode)).square().sum()

        return single


class Tempered:
    """The density q exp(b u) for samplers, each chain at its own b.

    Args:
        path: from reference to posterior, by its ends.
        b: (C,).
        frame: the points z of x = centre + S z, (C, D) and (C, D, D), or (C, D) if diagonal.
    """

    def __init__(self, path: Ends, b: Tensor, frame: tuple[Tensor, Tensor] | None = None) -> None:
        self.path, self.b, self.frame = path, b, frame
        self.dim, self.dtype, self.device = path.dim, path.dtype, path.device

    def as_target(self) -> Target:
        """This, for samplers, which ask no more of a target."""
        return cast(Target, self)

    def at(self, frame: tuple[Tensor, Tensor]) -> Tempered:
        """The same density in another frame."""
        other = copy.copy(self)
        other.frame = frame
        return other

    def position(self, z: Tensor) -> Tensor:
        """The model's unconstrained x of the points z: (C, D)."""
        if self.frame is None:
            return z
        centre, scale = self.frame
        return centre + (scale * z if scale.dim() == 2 else (scale @ z[..., None])[..., 0])

    def log_density(self, z: Tensor) -> Tensor:
        """(C, D) -> (C,)."""
        x = self.position(z)
        log_q = self.path.reference.log_density(x)
        return self._mixed(log_q, self.path.posterior.log_density(x))

    def log_density_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(C, D) -> (C,), (C, D)."""
        x = self.position(z)
        log_q, slope_q = self.path.reference.log_density_and_grad(x)
        log_p, slope_p = self.path.posterior.log_density_and_grad(x)
        b = self.b[:, None]
        slope = torch.where(b > 0, slope_q + b * (slope_p - slope_q), slope_q)
        if self.frame is not None:
            scale = self.frame[1]
            slope = scale * slope if scale.dim() == 2 else (slope[:, None] @ scale)[:, 0]
        return self._mixed(log_q, log_p), slope

    def evaluator(self, z: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """The function behind ``log_density_and_grad``."""
        return self.log_density_and_grad

    def native(self, z: Tensor) -> None:
        """There is no C function: the chains' temperatures are not those of one density."""

    def _mixed(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        return torch.where(self.b > 0, log_q + self.b * (log_p - log_q), log_q)


def rough_evidence(error: float, remedy: str) -> list[Finding]:
    """The finding that an evidence is too rough to compare models by, if it is."""
    if error < _ROUGH:
        return []
    return [
        Finding(
            "log_evidence_error",
            "warning",
            error,
            f"the log evidence has a standard error of {error:.2f}: Bayes factors cannot be told "
            "from it",
            f"{remedy}, or give a reference nearer the posterior",
        )
    ]
