"""Five posteriors, from two parameters to fifty-one: data and programs.

A program is written once for Pyro and NumPyro, whose primitives have the same names: it takes the
module and its distributions, and returns the function of the data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
Program = Callable[..., None]


@dataclass(frozen=True)
class Posterior:
    """A program with its data; ``reference`` gives exact posterior means where they are known."""

    write: Callable[[Any, Any], Program]
    data: Callable[[], Arrays]
    reference: Callable[[], Arrays] | None = None
    slow: bool = False  # four chains of the slowest peer take more than minutes


# -- O-ring: logistic regression of thermal distress on temperature --------------------------------

# 23 shuttle flights before Challenger: Dalal, Fowlkes & Hoadley (1989), JASA 84, table 1
_FAHRENHEIT = [66, 70, 69, 68, 67, 72, 73, 70, 57, 63, 70, 78, 67, 53, 67, 75, 70, 81, 76, 79, 75,
               76, 58]  # fmt: skip
_DISTRESS = [0, 1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 1]


def _oring(ppl: Any, dist: Any) -> Program:
    def program(x: Any, y: Any) -> None:
        alpha = ppl.sample("alpha", dist.Normal(0.0, 10.0))
        beta = ppl.sample("beta", dist.Normal(0.0, 10.0))
        with ppl.plate("flights", len(y)):
            ppl.sample("y", dist.Bernoulli(logits=alpha + beta * x), obs=y)

    return program


def _oring_data() -> Arrays:
    x = np.array(_FAHRENHEIT, dtype=float)
    return {"x": (x - x.mean()) / x.std(), "y": np.array(_DISTRESS, dtype=float)}


def _oring_reference() -> Arrays:
    """By quadrature on a grid that holds all but 1e-10 of the mass."""
    x, y = _oring_data().values()
    alpha, beta = np.meshgrid(np.linspace(-9, 5, 401), np.linspace(-10, 5, 401), indexing="ij")
    logits = alpha[..., None] + beta[..., None] * x
    density = (y * logits - np.logaddexp(0, logits)).sum(-1) - (alpha**2 + beta**2) / 200
    weight = np.exp(density - density.max())
    return {
        "alpha": np.array((weight * alpha).sum() / weight.sum()),
        "beta": np.array((weight * beta).sum() / weight.sum()),
    }


# -- mixture: three Gaussians with diagonal covariances in the plane -------------------------------

_CENTRES = np.array([[-3.0, 0.0], [0.0, 3.0], [3.0, 0.0]])


def _mixture(ppl: Any, dist: Any) -> Program:
    def program(x: Any, centres: Any, ones: Any) -> None:
        weights = ppl.sample("weights", dist.Dirichlet(ones))
        with ppl.plate("components", 3):
            mean = ppl.sample("mean", dist.Normal(centres, 1.0).to_event(1))
            sd = ppl.sample("sd", dist.LogNormal(0.0, 0.5).expand([2]).to_event(1))
        parts = dist.Normal(mean, sd).to_event(1)
        with ppl.plate("points", len(x)):
            ppl.sample("x", dist.MixtureSameFamily(dist.Categorical(weights), parts), obs=x)

    return program


def _mixture_data() -> Arrays:
    random = np.random.default_rng(0)
    sd = np.array([[1.0, 0.7], [0.6, 0.9], [1.1, 0.8]])
    label = random.choice(3, 500, p=[0.5, 0.3, 0.2])
    x = _CENTRES[label] + sd[label] * random.normal(size=(500, 2))
    return {"x": x, "centres": _CENTRES, "ones": np.ones(3)}


# -- eight schools, non-centred --------------------------------------------------------------------

# effects and standard errors: Rubin (1981), J. Educ. Stat. 6; Gelman et al., BDA3, table 5.2
_EFFECT = [28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]
_ERROR = [15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]


def _eight_schools(ppl: Any, dist: Any) -> Program:
    def program(y: Any, error: Any) -> None:
        mu = ppl.sample("mu", dist.Normal(0.0, 5.0))
        tau = ppl.sample("tau", dist.HalfCauchy(5.0))
        with ppl.plate("schools", 8):
            theta = ppl.sample("theta", dist.Normal(0.0, 1.0))
            ppl.sample("y", dist.Normal(mu + tau * theta, error), obs=y)

    return program


def _eight_schools_data() -> Arrays:
    return {"y": np.array(_EFFECT), "error": np.array(_ERROR)}


def _eight_schools_reference() -> Arrays:
    """Exact given tau, where all else is Gaussian; then quadrature over log tau."""
    y, error = _eight_schools_data().values()
    tau = np.exp(np.linspace(-15, 9, 20_001))[:, None]
    variance = error**2 + tau**2
    precision = 1 / 25 + (1 / variance).sum(-1)
    mu = (y / variance).sum(-1) / precision
    density = -0.5 * (np.log(variance).sum(-1) + np.log(precision))
    density += -0.5 * ((y**2 / variance).sum(-1) - precision * mu**2)
    density += np.log(tau[:, 0]) - np.log1p(tau[:, 0] ** 2 / 25)  # Jacobian, and the prior
    weight = np.exp(density - density.max())
    weight /= weight.sum()
    theta = tau * (y - mu[:, None]) / variance
    means = {"mu": weight @ mu, "tau": weight @ tau[:, 0], "theta": weight @ theta}
    return {name: np.asarray(value) for name, value in means.items()}


# -- hierarchical logistic regression: 5,000 rows in 20 groups -------------------------------------


def _hierarchical(ppl: Any, dist: Any) -> Program:
    def program(x: Any, group: Any, y: Any) -> None:
        mu = ppl.sample("mu", dist.Normal(0.0, 5.0))
        tau = ppl.sample("tau", dist.HalfNormal(1.0))
        beta = ppl.sample("beta", dist.Normal(0.0, 1.0).expand([10]).to_event(1))
        with ppl.plate("groups", 20):
            effect = ppl.sample("effect", dist.Normal(0.0, 1.0))
        with ppl.plate("rows", len(y)):
            logits = (mu + tau * effect)[group] + x @ beta
            ppl.sample("y", dist.Bernoulli(logits=logits), obs=y)

    return program


def _hierarchical_data() -> Arrays:
    random = np.random.default_rng(0)
    x, group = random.normal(size=(5_000, 10)), random.integers(0, 20, 5_000)
    beta, effect = 0.5 * random.normal(size=10), -0.5 + 0.8 * random.normal(size=20)
    y = _bernoulli(random, effect[group] + x @ beta)
    return {"x": x, "group": group, "y": y}


# -- logistic regression: 10,000 rows, 50 columns --------------------------------------------------


def _logistic(ppl: Any, dist: Any) -> Program:
    def program(x: Any, y: Any) -> None:
        alpha = ppl.sample("alpha", dist.Normal(0.0, 5.0))
        beta = ppl.sample("beta", dist.Normal(0.0, 1.0).expand([50]).to_event(1))
        with ppl.plate("rows", len(y)):
            ppl.sample("y", dist.Bernoulli(logits=alpha + x @ beta), obs=y)

    return program


def _logistic_data() -> Arrays:
    random = np.random.default_rng(0)
    x, beta = random.normal(size=(10_000, 50)), 0.3 * random.normal(size=50)
    return {"x": x, "y": _bernoulli(random, 0.3 + x @ beta)}


def _bernoulli(random: np.random.Generator, logits: np.ndarray) -> np.ndarray:
    return (random.uniform(size=len(logits)) < 1 / (1 + np.exp(-logits))).astype(float)


POSTERIORS = {
    "oring": Posterior(_oring, _oring_data, _oring_reference),
    "mixture": Posterior(_mixture, _mixture_data, slow=True),
    "eight_schools": Posterior(_eight_schools, _eight_schools_data, _eight_schools_reference),
    "hierarchical": Posterior(_hierarchical, _hierarchical_data, slow=True),
    "logistic": Posterior(_logistic, _logistic_data, slow=True),
}
