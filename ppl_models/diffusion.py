"""A denoising diffusion model as what it is: a chain of latent variables with a fixed guide.

    x_T ~ N(0, I),   x_{t-1} ~ p(x_{t-1} | x_t) = N(mu_t(x_t), v_t I),  t = T, ..., 1,

with x_0 the data, and the guide q(x_T | x_0) q(x_{T-1} | x_T, x_0) ... q(x_1 | x_2, x_0), the
noising chain run backwards, which has no weights. Sohl-Dickstein, Weiss, Maheswaranathan & Ganguli
(2015); Ho, Jain & Abbeel (2020). The bound is -(L_T + L_{T-1} + ... + L_0) in nats,

    L_T = KL(q(x_T | x_0) | N(0, I)),   L_{t-1} = E KL(q(x_{t-1} | x_t, x_0) | p(x_{t-1} | x_t)),
    L_0 = -E log p(x_0 | x_1).
"""

from __future__ import annotations

import copy
import json
import math
from typing import Any, Literal, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_models import diffusion_checks as checks
from ppl_models import schedules
from ppl_models.base import Data, HasRows, Params
from ppl_models.discretised import DiscretisedNormal
from ppl_models.errors import ModelError
from ppl_models.noise import Noise
from ppl_models.schedules import Steps

Parameterisation = Literal["noise", "data", "velocity"]
Variance = Literal["fixed_small", "fixed_large", "learned"]
Values = Literal["continuous", "8-bit"] | int

_LAST = 0.01  # nats per number of a row, above which L_T is told of


class Terms(NamedTuple):
    """The terms of the negative bound of each row, in nats."""

    last: Tensor  # (N,): L_T
    steps: Tensor  # (N, T - 1): L_1, ..., L_{T-1}
    data: Tensor  # (N,): L_0

    @property
    def total(self) -> Tensor:
        """The negative bound: (N,)."""
        return self.last + self.steps.sum(-1) + self.data


class Diffusion(HasRows):
    """Denoising diffusion over rows of any shape, trained by ``SVI(objective=Denoising())``.

    With data ``{"x": x, "seen": mask}`` the program is that of the numbers seen alone, and engines
    that need no guide draw x_1, ..., x_T given them; ``fit.predict()`` then fills in the rest.
    Markov chains mix better over the noise of the steps: ``model.whitened()``.

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
        values: "continuous"; or so many levels, the numbers -1, -1 + 2/(levels - 1), ..., 1, with
            the probability that the Gaussian gives to the interval of each: "8-bit" is 256.

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
        ):
            if value not in legal:
                text = ", ".join(repr(choice) for choice in legal)
                raise ModelError(f"{name}={value!r}: choose one of {text}")
        levels = {"continuous": None, "8-bit": 256}.get(values, values)  # type: ignore[arg-type]
        if levels is not None and not (isinstance(levels, int) and levels >= 2):
            raise ModelError(
                f"values={values!r}: choose 'continuous', '8-bit', or a number of levels"
            )
        self.denoiser, self.shape, self.steps = denoiser, tuple(shape), steps
        self.schedule = schedules.schedule(schedule, steps)
        self.parameterisation, self.variance, self.levels = parameterisation, variance, levels
        self.white = False

    def whitened(self) -> Diffusion:
        """The same model, weights and all, with the noise of its steps as latent sites.

        They are noise_T, ..., noise_1, standard normal: the posterior of these given a part of x_0
        is nearly round, where that of x_1, ..., x_T is as narrow as the variance of a step.
        """
        other = copy.copy(self)
        other.white = True
        return other

    def prepare(self, data: Any) -> Data:
        """``x`` (N, *shape) from an array or a mapping with x, and ``seen`` if there is one.

        ``seen`` is a mask of the same shape, or of one that broadcasts to it; what it leaves out of
        x may be anything.

        Raises ``DataError`` for another shape, values that are missing or infinite, and with levels
        for values that are not among them; ``ModelError`` for a denoiser that does not fit.
        """
        fields = checks.rows(data, self.shape, self.levels)
        checks.fits(self.denoiser, self.shape, learned=self.variance == "learned")
        return fields

    def findings(self, data: Data, draws: Params) -> list[str]:
        """Whether the schedule leaves more than noise of these data: L_T, which should be small."""
        if "seen" in data:
            return []
        with torch.no_grad():
            last = float(self.prior_term(data["x"], self.table(data["x"])).mean())
        if last <= _LAST * math.prod(self.shape):
            return []
        return [
            f"the schedule does not reach noise: L_T is {last:.3g} nats per row, and draws begin "
            "at noise; centre the data and divide them by their sd, or give a schedule that adds "
            "more noise, such as 'cosine'"
        ]

    def get_extra_state(self) -> Tensor:
        """The settings, kept with the weights: the text of a JSON object as bytes."""
        return torch.tensor(list(json.dumps(self._settings()).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Compare the settings. Raises ``ModelError`` where the weights are of another model."""
        checks.same_settings(json.loads(bytes(state.tolist()).decode()), self._settings())

    # -- the program and its guide -----------------------------------------------------------------

    def forward(self, x: Tensor, seen: Tensor | None = None) -> None:  # type: ignore[override]
        """Sites x_T, ..., x_1, each (N, *shape), and x observed, where it is seen."""
        steps = self.table(x)
        with pyro.plate("rows", len(x), dim=-1):
            origin = x.new_zeros(len(x), *self.shape)
            above = self._latent(self.steps, origin, torch.ones_like(origin))
            for t in range(self.steps, 1, -1):
                at = torch.full((len(x),), t, device=x.device)
                above = self._latent(t - 1, *self.reverse(above, at, steps))
            pyro.sample("x", self.likelihood(above, steps, seen), obs=x)

    def guide(self, x: Tensor, seen: Tensor | None = None) -> None:  # type: ignore[override]
        """q(x_T | x), then q(x_{t-1} | x_t, x): exact draws of the noising chain."""
        if self.white:
            raise ModelError(
                "a whitened diffusion has no guide, and is not for training; train the model "
                "first, and call whitened() on fit.model"
            )
        if seen is not None:
            raise ModelError(
                "the guide of a diffusion needs whole rows; draw what is hidden by TwistedSMC() or "
                "by a Markov chain such as NUTS()"
            )
        steps, event = self.table(x), len(self.shape)
        with pyro.plate("rows", len(x), dim=-1):
            law = dist.Normal(steps.signal[-1] * x, steps.noise[-1]).to_event(event)
            above = pyro.sample(f"x_{self.steps}", law)
            for t in range(self.steps, 1, -1):
                mean = steps.to_data[t - 1] * x + steps.to_noisy[t - 1] * above
                law = dist.Normal(mean, steps.variance[t - 1].sqrt()).to_event(event)
                above = pyro.sample(f"x_{t - 1}", law)

    def _latent(self, t: int, mean: Tensor, variance: Tensor) -> Tensor:
        """x_t, sampled or by its noise: (N, *shape)."""
        event, sd = len(self.shape), variance.sqrt()
        if not self.white:
            return pyro.sample(f"x_{t}", dist.Normal(mean, sd).to_event(event))
        unit = dist.Normal(torch.zeros_like(mean), 1.0).to_event(event)
        return pyro.deterministic(f"x_{t}", mean + sd * pyro.sample(f"noise_{t}", unit), event)

    # -- its parts ---------------------------------------------------------------------------------

    def table(self, like: Tensor) -> Steps:
        """The constants of every step, with the dtype and on the device of ``like``."""
        return self.schedule.table(self.steps, like)

    def predict(
        self, x: Tensor, time: Tensor, signal: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """The denoiser's guess of x_0, and v in (0, 1) where the variance is learned.

        Args:
            x: x_t, (..., B, *shape).
            time: t / T, (B,).
            signal: a_t, to multiply rows with: (B, 1, ..., 1) or ().
            noise: s_t, likewise.
        """
        lead = x.shape[: x.dim() - len(self.shape)]
        out = self.denoiser(x.reshape(-1, *self.shape), time.expand(lead).reshape(-1))
        share = None
        if self.variance == "learned":
            out, share = out.chunk(2, dim=1)
            share = share.reshape(x.shape).sigmoid()
        out = out.reshape(x.shape)
        if self.parameterisation == "data":
            return out, share
        if self.parameterisation == "noise":
            return (x - noise * out) / signal, share
        return signal * x - noise * out, share

    def denoised(self, x: Tensor, t: Tensor, steps: Steps) -> tuple[Tensor, Tensor]:
        """The guess of x_0, and the variance of p(x_{t-1} | x_t): x (..., B, *shape), t (B,)."""
        signal, noise = self._at(steps.signal, t), self._at(steps.noise, t)
        guess, share = self.predict(x, t.to(x) / self.steps, signal, noise)
        large, small = self._at(steps.beta, t), self._small(t, steps)
        if self.variance == "fixed_large":
            return guess, large.expand_as(x)
        if share is None:
            return guess, small.expand_as(x)
        return guess, (share * large.log() + (1 - share) * small.log()).exp()

    def reverse(self, x: Tensor, t: Tensor, steps: Steps) -> tuple[Tensor, Tensor]:
        """Mean and variance of p(x_{t-1} | x_t): x (..., B, *shape), t (B,) of 1, ..., T."""
        guess, variance = self.denoised(x, t, steps)
        return self._at(steps.to_data, t) * guess + self._at(steps.to_noisy, t) * x, variance

    def noise_of(self, chain: Params) -> Params:
        """Sites noise_T, ..., noise_1 of a whitened model at x_T, ..., x_1: (..., N, *shape)."""
        above = chain[f"x_{self.steps}"]
        steps, rows = self.table(above), above.shape[-1 - len(self.shape)]
        noise = {f"noise_{self.steps}": above}
        for t in range(self.steps, 1, -1):
            mean, variance = self.reverse(above, torch.full((rows,), t, device=above.device), steps)
            above = chain[f"x_{t - 1}"]
            noise[f"noise_{t - 1}"] = (above - mean) / variance.sqrt()
        return noise

    def likelihood(self, x: Tensor, steps: Steps, seen: Tensor | None = None) -> Any:
        """p(x_0 | x_1), a distribution over rows, of what is seen: x is x_1, (..., N, *shape)."""
        first = torch.ones(x.shape[-1 - len(self.shape)], dtype=torch.int64, device=x.device)
        mean, variance = self.reverse(x, first, steps)
        law = self._law(mean, variance.sqrt())
        return (law if seen is None else law.mask(seen)).to_event(len(self.shape))

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
        guess, variance = self.denoised(self.noised(x, t, normal, steps), t, steps)
        return self.divergence(x, t, guess, variance, steps)

    def divergence(
        self, x: Tensor, t: Tensor, guess: Tensor, variance: Tensor, steps: Steps
    ) -> Tensor:
        """``term`` as a function of what ``denoised`` gives, (B, *shape) each."""
        first = self._like(t == 1, x)
        # at t = 1 the weight of x_0 is 1, so that the first of these serves the likelihood, too
        gap = (self._at(steps.to_data, t) * (x - guess)).square() / variance
        ratio = self._small(t, steps) / variance
        divergence = 0.5 * (gap + ratio - 1 - ratio.log())
        if self.levels is None:
            loss = 0.5 * (gap + variance.log() + math.log(2 * math.pi))
        else:
            # away from t = 1 the probability is not used: that of a value near will do
            loss = -self._law(torch.where(first, guess, x), variance.sqrt()).log_prob(x)
        return torch.where(first, loss, divergence).flatten(1).sum(-1)

    def error(self, x: Tensor, t: Tensor, guess: Tensor, steps: Steps) -> Tensor:
        """The squared error of what the denoiser predicts, by that of its guess of x_0: (B,)."""
        weight = {
            "data": torch.ones_like(steps.noise),
            "noise": (steps.signal / steps.noise).square(),
            "velocity": steps.noise.square().reciprocal(),
        }[self.parameterisation]
        return (self._at(weight, t) * (x - guess).square()).flatten(1).sum(-1)

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

        With levels, of a probability; else of a density on the scale of x.
        """
        return nats / (math.prod(self.shape) * math.log(2))

    def _at(self, values: Tensor, t: Tensor) -> Tensor:
        """The value of each row's t, to multiply rows with: (B, 1, ..., 1)."""
        return values[t - 1].reshape(-1, *[1] * len(self.shape))

    def _like(self, mask: Tensor, x: Tensor) -> Tensor:
        return mask.reshape(-1, *[1] * (x.dim() - 1))

    def _small(self, t: Tensor, steps: Steps) -> Tensor:
        """The variance of q(x_{t-1} | x_t, x_0), at t = 1 that of t = 2: (B, 1, ..., 1)."""
        return self._at(torch.cat([steps.variance[1:2], steps.variance[1:]]), t)

    def _law(self, loc: Tensor, scale: Tensor) -> Any:
        if self.levels is None:
            return dist.Normal(loc, scale)
        return DiscretisedNormal(loc, scale, self.levels)

    def _settings(self) -> dict[str, Any]:
        names = ("steps", "parameterisation", "variance", "levels")
        own = {name: getattr(self, name) for name in names}
        return own | {"schedule": repr(self.schedule), "shape": list(self.shape)}
