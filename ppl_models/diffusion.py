"""A denoising diffusion model as what it is: a chain of latent variables with a fixed guide.

    x_T ~ N(0, I),   x_{t-1} ~ p(x_{t-1} | x_t) = N(mu_t(x_t), v_t I),  t = T, ..., 1,

with x_0 the data, and the guide q(x_T | x_0) q(x_{T-1} | x_T, x_0) ... q(x_1 | x_2, x_0), the
noising chain run backwards, which has no weights. Sohl-Dickstein, Weiss, Maheswaranathan & Ganguli
(2015); Ho, Jain & Abbeel (2020). The bound is -(L_T + L_{T-1} + ... + L_0) in nats,

    L_T = KL(q(x_T | x_0) | N(0, I)),   L_{t-1} = E KL(q(x_{t-1} | x_t, x_0) | p(x_{t-1} | x_t)),
    L_0 = -E log p(x_0 | x_1).
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_models import schedules
from ppl_models.base import Data, HasGuide
from ppl_models.data import as_fields, finite
from ppl_models.discretised import DiscretisedNormal
from ppl_models.errors import DataError, ModelError
from ppl_models.noise import Noise

Parameterisation = Literal["noise", "data", "velocity"]
Variance = Literal["fixed_small", "fixed_large", "learned"]
Values = Literal["continuous", "8-bit"]


class Steps(NamedTuple):
    """What the schedule makes of each t = 1, ..., T."""

    beta: Tensor  # (T,)
    signal: Tensor  # (T,): a_t
    noise: Tensor  # (T,): s_t
    to_data: Tensor  # (T,): the weight of x_0 in the mean of q(x_{t-1} | x_t, x_0)
    to_noisy: Tensor  # (T,): the weight of x_t
    variance: Tensor  # (T,): that of q(x_{t-1} | x_t, x_0); 0 at t = 1


class Terms(NamedTuple):
    """The terms of the negative bound of each row, in nats."""

    last: Tensor  # (N,): L_T
    steps: Tensor  # (N, T - 1): L_1, ..., L_{T-1}
    data: Tensor  # (N,): L_0

    @property
    def total(self) -> Tensor:
        """The negative bound: (N,)."""
        return self.last + self.steps.sum(-1) + self.data


class Diffusion(HasGuide):
    """Denoising diffusion over rows of any shape, trained by ``SVI()``.

    Args:
        denoiser: a module called with x_t (B, *shape) and t / T (B,), returning (B, *shape); with
            ``variance="learned"`` (B, 2 shape[0], ...).
        shape: of a row: (D,) for vectors, (channels, height, width) for images.
        steps: T, at least 2.
        schedule: "linear", "cosine" or "learned", or a ``schedules.Schedule``.
        parameterisation: what the denoiser predicts: the "noise" n of x_t = a_t x_0 + s_t n, the
            "data" x_0, or the "velocity" a_t n - s_t x_0 (Salimans & Ho 2022).
        variance: of p(x_{t-1} | x_t): that of q(x_{t-1} | x_t, x_0) ("fixed_small"), beta_t
            ("fixed_large"), or between the two on the log scale, by the denoiser ("learned"; Nichol
            & Dhariwal 2021). At t = 1, where the first is zero, that of t = 2.
        values: "continuous", or "8-bit": numbers -1, -1 + 2/255, ..., 1, with the probability that
            the Gaussian gives to the interval of each.

    Raises ``ModelError`` for settings out of range.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        shape: tuple[int, ...],
        *,
        steps: int = 1000,
        schedule: schedules.Name | schedules.Schedule = "cosine",
        parameterisation: Parameterisation = "noise",
        variance: Variance = "fixed_small",
        values: Values = "continuous",
    ) -> None:
        super().__init__()
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 2:
            raise ModelError(f"steps={steps!r}: give a whole number of at least 2")
        for name, value, legal in (
            ("parameterisation", parameterisation, ("noise", "data", "velocity")),
            ("variance", variance, ("fixed_small", "fixed_large", "learned")),
            ("values", values, ("continuous", "8-bit")),
        ):
            if value not in legal:
                text = ", ".join(repr(choice) for choice in legal)
                raise ModelError(f"{name}={value!r}: choose one of {text}")
        self.denoiser, self.shape, self.steps = denoiser, tuple(shape), steps
        self.schedule = schedules.schedule(schedule, steps)
        self.parameterisation, self.variance, self.values = parameterisation, variance, values

    def prepare(self, data: Any) -> Data:
        """``x`` (N, *shape) from an array or a mapping with x.

        Raises ``DataError`` for another shape, values that are missing or infinite, and with
        ``values="8-bit"`` for values that are not among the 256.
        """
        fields = as_fields(data if isinstance(data, dict) else {"x": data})
        if fields.keys() != {"x"} or not isinstance(fields["x"], Tensor):
            raise DataError("give an array of rows, or a mapping with x alone")
        x = fields["x"]
        if x.shape[1:] != self.shape or not len(x):
            raise DataError(
                f"x: has shape {tuple(x.shape)}; give at least one row of {self.shape}: "
                f"(N, {', '.join(map(str, self.shape))})"
            )
        x = finite("x", x if x.is_floating_point() else x.double())
        if self.values == "8-bit":
            level = (x + 1) * 127.5
            if bool((level - level.round()).abs().max() > 1e-2) or bool(x.abs().max() > 1 + 1e-6):
                raise DataError(
                    "x: values='8-bit' needs numbers -1, -1 + 2/255, ..., 1; give "
                    "pixels / 127.5 - 1"
                )
        return {"x": x}

    # -- the program and its guide -----------------------------------------------------------------

    def forward(self, x: Tensor) -> None:  # type: ignore[override]
        """Sites x_T, ..., x_1, each (N, *shape), and x observed."""
        steps, event = self.table(x), len(self.shape)
        with pyro.plate("rows", len(x), dim=-1):
            origin = x.new_zeros(len(x), *self.shape)
            above = pyro.sample(f"x_{self.steps}", dist.Normal(origin, 1.0).to_event(event))
            for t in range(self.steps, 1, -1):
                mean, variance = self.reverse(
                    above, torch.full((len(x),), t, device=x.device), steps
                )
                law = dist.Normal(mean, variance.sqrt()).to_event(event)
                above = pyro.sample(f"x_{t - 1}", law)
            pyro.sample("x", self.likelihood(above, steps), obs=x)

    def guide(self, x: Tensor) -> None:  # type: ignore[override]
        """q(x_T | x), then q(x_{t-1} | x_t, x): exact draws of the noising chain."""
        steps, event = self.table(x), len(self.shape)
        with pyro.plate("rows", len(x), dim=-1):
            law = dist.Normal(steps.signal[-1] * x, steps.noise[-1]).to_event(event)
            above = pyro.sample(f"x_{self.steps}", law)
            for t in range(self.steps, 1, -1):
                mean = steps.to_data[t - 1] * x + steps.to_noisy[t - 1] * above
                law = dist.Normal(mean, steps.variance[t - 1].sqrt()).to_event(event)
                above = pyro.sample(f"x_{t - 1}", law)

    # -- its parts ---------------------------------------------------------------------------------

    def table(self, like: Tensor) -> Steps:
        """The constants of every step, with the dtype and on the device of ``like``."""
        beta = self.schedule.betas(self.steps).double()
        kept = torch.log1p(-beta).cumsum(0)  # log a_t^2
        before = torch.cat([kept.new_zeros(1), kept[:-1]])
        noise = -torch.expm1(kept)  # s_t^2
        noise_before = -torch.expm1(before)
        parts = Steps(
            beta,
            (0.5 * kept).exp(),
            noise.sqrt(),
            (0.5 * before).exp() * beta / noise,
            (1 - beta).sqrt() * noise_before / noise,
            noise_before / noise * beta,
        )
        return Steps(*(part.to(like) for part in parts))

    def predict(
        self, x: Tensor, time: Tensor, signal: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """The denoiser's guess of x_0, and v in (0, 1) where the variance is learned.

        Args:
            x: x_t, (B, *shape).
            time: t / T, (B,).
            signal: a_t, to multiply rows with: (B, 1, ..., 1) or ().
            noise: s_t, likewise.
        """
        out, share = self.denoiser(x, time), None
        if self.variance == "learned":
            out, share = out.chunk(2, dim=1)
            share = share.sigmoid()
        if self.parameterisation == "data":
            return out, share
        if self.parameterisation == "noise":
            return (x - noise * out) / signal, share
        return signal * x - noise * out, share

    def reverse(self, x: Tensor, t: Tensor, steps: Steps) -> tuple[Tensor, Tensor]:
        """Mean and variance of p(x_{t-1} | x_t): x (B, *shape), t (B,) of 1, ..., T."""
        signal, noise = self._at(steps.signal, t), self._at(steps.noise, t)
        guess, share = self.predict(x, t.to(x) / self.steps, signal, noise)
        mean = self._at(steps.to_data, t) * guess + self._at(steps.to_noisy, t) * x
        large = self._at(steps.beta, t)
        small = self._at(torch.cat([steps.variance[1:2], steps.variance[1:]]), t)
        if self.variance == "fixed_large":
            return mean, large.expand_as(mean)
        if share is None:
            return mean, small.expand_as(mean)
        return mean, (share * large.log() + (1 - share) * small.log()).exp()

    def likelihood(self, x: Tensor, steps: Steps) -> Any:
        """p(x_0 | x_1), a distribution over rows: x is x_1, (N, *shape)."""
        mean, variance = self.reverse(
            x, torch.ones(len(x), dtype=torch.int64, device=x.device), steps
        )
        law = DiscretisedNormal if self.values == "8-bit" else dist.Normal
        return law(mean, variance.sqrt()).to_event(len(self.shape))

    # -- the bound ---------------------------------------------------------------------------------

    def noised(self, x: Tensor, t: Tensor, normal: Tensor, steps: Steps) -> Tensor:
        """x_t = a_t x_0 + s_t n: x and n (B, *shape), t (B,)."""
        return self._at(steps.signal, t) * x + self._at(steps.noise, t) * normal

    def prior_term(self, x: Tensor, steps: Steps) -> Tensor:
        """L_T, exactly: (N,)."""
        variance = steps.noise[-1].square()
        mean = (steps.signal[-1] * x).flatten(1)
        return 0.5 * (mean.square() + variance - 1 - variance.log()).sum(-1)

    def term(self, x: Tensor, t: Tensor, normal: Tensor, steps: Steps) -> Tensor:
        """L_{t-1} of each row at its own t, by one draw of x_t = a_t x_0 + s_t n: (B,).

        The Kullback-Leibler divergence is exact given x_t; at t = 1 it is L_0.

        Args:
            x: rows, (B, *shape).
            t: of 1, ..., T, (B,).
            normal: n, (B, *shape).
            steps: ``table(x)``.
        """
        above = self.noised(x, t, normal, steps)
        mean, variance = self.reverse(above, t, steps)
        exact = self._at(steps.to_data, t) * x + self._at(steps.to_noisy, t) * above
        first = t == 1
        # q(x_0 | x_1, x_0) is a point, whose divergence is not used: any positive variance will do
        own = torch.where(self._like(first, x), variance, self._at(steps.variance, t))
        ratio = own / variance
        gap = (exact - mean).square() / variance
        divergence = 0.5 * (gap + ratio - 1 - ratio.log()).flatten(1).sum(-1)
        if not bool(first.any()):
            return divergence
        law = DiscretisedNormal if self.values == "8-bit" else dist.Normal
        # away from t = 1 the density is not used: any finite value will do
        log_p = law(torch.where(self._like(first, x), mean, x), variance.sqrt()).log_prob(x)
        return torch.where(first, -log_p.flatten(1).sum(-1), divergence)

    @torch.no_grad()
    def bound(self, x: Tensor, noise: Noise) -> Terms:
        """Every term of the negative bound, one draw of x_t for each t: exact in expectation.

        Args:
            x: rows, (N, *shape).
            noise: one stream.
        """
        steps, rows = self.table(x), []
        for t in range(1, self.steps + 1):
            normal = noise.fold(t).normal(*x.shape)[0].to(x)
            rows.append(self.term(x, torch.full((len(x),), t, device=x.device), normal, steps))
        return Terms(self.prior_term(x, steps), torch.stack(rows[1:], -1), rows[0])

    def bits_per_dimension(self, nats: Tensor) -> Tensor:
        """Nats per row as bits per number of the row.

        With ``values="8-bit"`` of pixels; else of a density on the scale of x.
        """
        return nats / (math.prod(self.shape) * math.log(2))

    def _at(self, values: Tensor, t: Tensor) -> Tensor:
        """The value of each row's t, to multiply rows with: (B, 1, ..., 1)."""
        return values[t - 1].reshape(-1, *[1] * len(self.shape))

    def _like(self, mask: Tensor, x: Tensor) -> Tensor:
        return mask.reshape(-1, *[1] * (x.dim() - 1))
