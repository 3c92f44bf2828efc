"""The bound of a diffusion from one level of noise per row, and what users train instead of it.

With L_T, L_{t-1} and L_0 the terms of the negative bound (``ppl_models.diffusion``), and t drawn
with probability p_t for t = 1, ..., T,

    L = L_T + E_t [L_{t-1} / p_t],

so that a step costs one call of the network for each row, whatever T. Ho, Jain & Abbeel (2020).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from inference.objectives import Objective
from ppl_models.base import Data, HasRows
from ppl_models.diffusion import Diffusion
from ppl_models.errors import EngineError, ModelError
from ppl_models.noise import Noise
from ppl_models.schedules import Learned

_BOUND_SHARE = 0.001  # of the bound in "hybrid" (Nichol & Dhariwal 2021)


@dataclass(frozen=True)
class Denoising(Objective):
    """The negative bound of each row by one level t, or a loss without the bound's weights.

    The levels of a minibatch are spread evenly, t_i = F^{-1}(u + i / B mod 1) with one uniform u:
    each has the law p, and their mean varies less than that of independent ones (Kingma, Salimans,
    Poole & Ho 2021, appendix I.1).

    Args:
        weights: "bound"; "simple", the squared error of what the denoiser predicts, whose samples
            look better and whose bound is worse (Ho, Jain & Abbeel 2020); or "hybrid", "simple" for
            the mean and a thousandth of the bound for a learned variance (Nichol & Dhariwal 2021).
        shares: p_1, ..., p_T, up to a factor; uniform by default. ``importance_shares`` gives those
            of least variance.

    Example:
        >>> import torch
        >>> from inference.denoising import Denoising
        >>> from ppl_models.denoisers import MLPDenoiser
        >>> from ppl_models.diffusion import Diffusion
        >>> model = Diffusion(MLPDenoiser(2), (2,), steps=100)
        >>> Denoising().losses(model, {"x": torch.randn(5, 2)}).shape
        torch.Size([5])
    """

    weights: Literal["bound", "simple", "hybrid"] = "bound"
    shares: tuple[float, ...] | None = None

    needs = Diffusion

    def __post_init__(self) -> None:
        if self.weights not in ("bound", "simple", "hybrid"):
            raise EngineError(
                f"Denoising(weights={self.weights!r}): choose 'bound', 'simple' or 'hybrid'"
            )
        if self.shares is not None:
            good = all(math.isfinite(share) and share > 0 for share in self.shares)
            if not good or self.weights != "bound":
                raise EngineError(
                    "Denoising(shares=...): give a positive number for each step of the model, and "
                    "weights='bound', whose terms they are for"
                )

    def check(self, model: HasRows, data: Data) -> None:
        """Refuse a model that the loss does not train. Raises ``ModelError``."""
        diffusion = _diffusion(model)
        if self.shares is not None and len(self.shares) != diffusion.steps:
            raise ModelError(
                f"Denoising(shares=...) has {len(self.shares)} numbers for a model of "
                f"{diffusion.steps} steps; give one for each"
            )
        if "seen" in data:
            raise ModelError("Denoising trains on whole rows; leave out those with hidden parts")
        if self.weights != "bound" and isinstance(diffusion.schedule, Learned):
            raise ModelError(
                f"Denoising(weights={self.weights!r}) does not train a schedule, which would make "
                "it easy by adding no noise; use weights='bound', or another schedule"
            )
        if self.weights == "simple" and diffusion.variance == "learned":
            raise ModelError(
                "Denoising(weights='simple') does not train a learned variance; use 'hybrid' or "
                "'bound'"
            )

    def losses(self, model: HasRows, data: Data) -> Tensor:
        diffusion, x = _diffusion(model), data["x"]
        t, factor = self.levels(diffusion, x)
        steps = diffusion.table(x)
        above = diffusion.noised(x, t, torch.randn_like(x), steps)
        guess, variance = diffusion.denoised(above, t, steps)
        if self.weights == "bound":
            term = diffusion.divergence(x, t, guess, variance, steps)
            return diffusion.prior_term(x, steps) + factor * term
        error = diffusion.error(x, t, guess, steps)
        if self.weights == "simple":
            return error
        term = diffusion.divergence(x, t, guess.detach(), variance, steps)
        return error + _BOUND_SHARE * factor * term

    def levels(self, model: Diffusion, x: Tensor) -> tuple[Tensor, Tensor]:
        """A level t for each row, and 1 / p_t: (B,) each."""
        number = torch.arange(len(x), device=x.device)
        place = (torch.rand((), device=x.device) + number / len(x)) % 1
        last = model.steps - 1
        if self.shares is None:
            t = (place * model.steps).long().clamp(max=last)
            return t + 1, torch.full_like(place, model.steps).to(x)
        share = torch.tensor(self.shares, device=x.device)
        share = share / share.sum()
        t = torch.searchsorted(share.cumsum(0), place, right=True).clamp(max=last)
        return t + 1, share[t].reciprocal().to(x)


def importance_shares(
    model: Diffusion, data: Data, *, seed: int = 0, floor: float = 0.1
) -> tuple[float, ...]:
    """p_t proportional to sqrt(E L_{t-1}^2), by which one level per row varies least.

    Nichol & Dhariwal (2021) update it while they train; here it is that of the weights as they are,
    by one pass over the levels, so that steps have no state: train, ask, go on.

    Args:
        model: trained for a while.
        data: a few hundred rows, as ``model.prepare`` gives them.
        seed: of the noise.
        floor: the part of the shares that is uniform, lest a level that seems easy is forgotten.
    """
    terms = model.bound(data["x"], Noise.seeded(seed, 1))
    each = torch.cat([terms.data[:, None], terms.steps], -1)  # (N, T)
    share = each.square().mean(0).sqrt()
    share = (1 - floor) * share / share.sum() + floor / len(share)
    return tuple(share.tolist())


def _diffusion(model: HasRows) -> Diffusion:
    if not isinstance(model, Diffusion):
        raise ModelError(
            f"Denoising is for a Diffusion; {type(model).__name__} is none: use ELBO()"
        )
    return model
