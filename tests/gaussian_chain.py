"""What is known of diffusions of normal data with linear denoisers, by conditioning covariances.

Nothing here uses the model's own formulas: a chain's constants come from its noising variances, by
writing x_t as a sum of x_0 and independent noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from inference import MCEM, SVI, fit
from inference.denoising import Denoising
from ppl_models.denoisers import LinearDenoiser
from ppl_models.diffusion import Diffusion
from tests.targets import Known

MEAN = np.array([0.3, -0.2, 0.1])
COVARIANCE = np.array([[1.0, 0.8, -0.3], [0.8, 1.2, 0.2], [-0.3, 0.2, 0.7]])
SEEN = torch.tensor([True, False, False])
Y = 1.1
HIDDEN = np.array([1, 2])


class Step(NamedTuple):
    """x_t = a x_0 + s n, and the law of x_{t-1} given x_t and x_0."""

    signal: float
    noise: float
    to_data: float
    to_noisy: float
    variance: float


def chain(betas: np.ndarray) -> list[Step]:
    """The constants of t = 1, ..., T: x_{t-1} and x_t are linear in (x_0, n_1, ..., n_T)."""
    unit, steps = np.eye(len(betas) + 1), []
    above = unit[0]
    for beta, own in zip(betas, unit[1:], strict=True):
        below, above = above, np.sqrt(1 - beta) * above + np.sqrt(beta) * own
        slope = below[1:] @ above[1:] / (above[1:] @ above[1:])
        left = below[1:] @ below[1:] - slope * (below[1:] @ above[1:])
        size = float(np.linalg.norm(above[1:]))
        steps.append(Step(float(above[0]), size, below[0] - slope * above[0], slope, left))
    return steps


def cosine(steps: int) -> np.ndarray:
    """The noising variances of Nichol & Dhariwal (2021), equation 17."""
    f = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - f[1:] / f[:-1], 0.999)


def expected_terms(model: Diffusion, mean: Tensor, covariance: Tensor) -> np.ndarray:
    """L_0, ..., L_{T-1} and L_T in expectation over normal data: (T + 1,).

    The model has a cosine schedule, and a linear denoiser of the velocity with a learned variance.
    """
    denoiser: Any = model.denoiser
    m, c = mean.numpy(), covariance.numpy()
    betas, one, terms = cosine(model.steps), np.eye(len(m)), []
    steps = chain(betas)
    floors = [steps[1].variance, *(step.variance for step in steps[1:])]
    for t, (beta, step, small) in enumerate(zip(betas, steps, floors, strict=True)):
        weight, offset = (p[t].detach().numpy() for p in (denoiser.weight, denoiser.offset))
        shift, logit = offset[: len(m)], offset[len(m) :]
        share = 1 / (1 + np.exp(-logit))
        variance = beta**share * small ** (1 - share)
        a, s = step.signal, step.noise
        guess = a * one - s * weight  # x_0 = a x_t - s v
        off, bias = one - a * guess, m - a * guess @ m + s * shift
        missed = np.diag(off @ c @ off.T + s**2 * guess @ guess.T) + bias**2
        gap = step.to_data**2 * missed / variance
        if t == 0:
            terms.append(0.5 * (gap + np.log(2 * np.pi * variance)).sum())
        else:
            ratio = small / variance
            terms.append(0.5 * (gap + ratio - 1 - np.log(ratio)).sum())
    a2, s2 = steps[-1].signal ** 2, steps[-1].noise ** 2
    terms.append(0.5 * (a2 * (np.diag(c) + m**2) + s2 - 1 - np.log(s2)).sum())
    return np.array(terms)


@torch.no_grad()
def averaged_terms(model: Diffusion, mean: Tensor, covariance: Tensor) -> np.ndarray:
    """The same by the model itself, exactly: its terms are quadratic in x_0 and in the noise.

    The average of a quadratic over a normal law is that over the points sqrt(n) e_i and their
    mirror images (a cubature of degree three).
    """
    dim = len(mean)
    points = math.sqrt(2 * dim) * torch.cat([torch.eye(2 * dim), -torch.eye(2 * dim)]).to(mean)
    x = mean + points[:, :dim] @ torch.linalg.cholesky(covariance).T
    steps, terms = model.table(x), []
    for t in range(1, model.steps + 1):
        terms.append(model.term(x, torch.full((len(x),), t), points[:, dim:], steps).mean())
    return torch.stack([*terms, model.prior_term(x, steps).mean()]).numpy()


def linear_diffusion(dim: int, steps: int) -> Diffusion:
    """Untrained, with a learned variance, by which the bound of normal data is nearly exact."""
    denoiser = LinearDenoiser(dim, steps, outputs=2)
    return Diffusion(
        denoiser, (dim,), steps=steps, parameterisation="velocity", variance="learned"
    ).double()


def falling(steps: int) -> Callable[[torch.optim.Optimizer], Any]:
    """A learning rate that falls to zero in so many steps."""
    return lambda optimiser: torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)


def rows(count: int, seed: int) -> Tensor:
    """Normal data of two numbers: (count, 2)."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return correlated().sample((count,))


def trained(x: Tensor, levels: int, steps: int, batch: int) -> Diffusion:
    """A linear diffusion, by the bound from one level of noise per row."""
    engine = SVI(
        objective=Denoising(),
        batch_size=batch,
        steps=steps,
        learning_rate=0.03,
        schedule=falling(steps),
        average=0.998,
        plateau=False,
        rows=1,
        draws=2,
    )
    found: Any = fit(linear_diffusion(2, levels), x, engine, progress=False).model
    return found


def by_em(x: Tensor, levels: int, rounds: int) -> Diffusion:
    """The same by EM, a step of the optimiser in each M step."""
    engine = MCEM(
        "guide",
        rounds=rounds,
        transitions=1,
        m_steps=1,
        batch_size=200,
        learning_rate=0.03,
        schedule=falling(rounds),
        average=0.99,
        rows=1,
    )
    found: Any = fit(linear_diffusion(2, levels), x, engine, progress=False).model
    return found


def correlated() -> MultivariateNormal:
    """Normal data of two numbers to train on."""
    mean = torch.tensor([0.3, -0.2], dtype=torch.float64)
    covariance = torch.tensor([[0.7, 0.4], [0.4, 0.6]], dtype=torch.float64)
    return MultivariateNormal(mean, covariance)


# -- what is hidden of a row, given what is seen ---------------------------------------------------


def normal_model(steps: int) -> Diffusion:
    """The diffusion of N(MEAN, COVARIANCE) data, with the best denoiser."""
    denoiser = LinearDenoiser(3, steps)
    model = Diffusion(denoiser, (3,), steps=steps, parameterisation="data").double()
    table = model.table(torch.zeros(1, dtype=torch.float64))
    for t in range(steps):
        a, s = float(table.signal[t]), float(table.noise[t])
        gain = a * COVARIANCE @ np.linalg.inv(a**2 * COVARIANCE + s**2 * np.eye(3))
        denoiser.weight.data[t] = torch.as_tensor(gain)
        denoiser.offset.data[t] = torch.as_tensor(MEAN - a * gain @ MEAN)
    model.trained = True
    return model


def conditional(model: Any, y: float = Y) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean (D (T + 1),) and covariance of (x_0, ..., x_T) given y, and log p(y)."""
    steps = model.steps
    table = [part.numpy() for part in model.table(torch.zeros(1, dtype=torch.float64))]
    _, _, _, to_data, to_noisy, variance = table
    mean, covariance = np.zeros(3), np.eye(3)  # of x_t and all above it, x_t first
    for t in range(steps - 1, -1, -1):
        weight = model.denoiser.weight[t].detach().numpy()
        slope = to_data[t] * weight + to_noisy[t] * np.eye(3)
        below = slope @ mean[:3] + to_data[t] * model.denoiser.offset[t].detach().numpy()
        cross = slope @ covariance[:3]
        own = slope @ covariance[:3, :3] @ slope.T + variance[max(t, 1)] * np.eye(3)
        mean = np.concatenate([below, mean])
        covariance = np.block([[own, cross], [cross.T, covariance]])
    gain = covariance[:, 0] / covariance[0, 0]
    log_p = -0.5 * ((y - mean[0]) ** 2 / covariance[0, 0] + np.log(2 * np.pi * covariance[0, 0]))
    covariance = covariance - np.outer(gain, covariance[0])
    return mean + gain * (y - mean[0]), covariance, log_p


def known(model: Any) -> Known:
    """Moments of x_1, x_T and of the hidden numbers given y."""
    mean, covariance, _ = conditional(model)
    place = {f"x[0, {d}]": d for d in HIDDEN}
    for t in (1, model.steps):
        place |= {f"x_{t}[0, {d}]": 3 * t + d for d in range(3)}
    pairs = [("x[0, 1]", "x[0, 2]"), ("x[0, 1]", "x_1[0, 1]"), ("x_1[0, 0]", "x_1[0, 1]")]
    return Known(
        model,
        mean={name: mean[i] for name, i in place.items()},
        sd={name: covariance[i, i] ** 0.5 for name, i in place.items()},
        covariance={(a, b): covariance[place[a], place[b]] for a, b in pairs},
    )
