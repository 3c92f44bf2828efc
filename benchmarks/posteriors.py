"""Five posteriors, from two parameters to fifty-one: data and programs.

A program is written once for Pyro and NumPyro, whose primitives have the same names: it takes the
module and its distributions, and returns the function of the data. ``pymc_models`` has the same
posteriors for PyMC; ``references`` has their means and standard deviations.
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
    """A program with its data."""

    write: Callable[[Any, Any], Program]
    data: Callable[[], Arrays]


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


# -- mixture: three Gaussians with diagonal covariances in the plane -------------------------------

_CENTRES = np.array([[-3.0, 0.0], [0.0, 3.0], [3.0, 0.0]])


# Uniform on (-2, 2), where libraries begin by default, is 0.5 about the centres: who begins farther
# away may end in a permutation of the components, whose share of the posterior is below 1e-7.
def _mixture(ppl: Any, dist: Any) -> Program:
    def program(x: Any, centres: Any, ones: Any) -> None:
        weights = ppl.sample("weights", dist.Dirichlet(ones))
        with ppl.plate("components", 3):
            shift = ppl.sample("shift", dist.Normal(0.0, 4.0).expand([2]).to_event(1))
            sd = ppl.sample("sd", dist.LogNormal(0.0, 0.5).expand([2]).to_event(1))
        parts = dist.Normal(centres + shift / 4, sd).to_event(1)
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


def logistic(ppl: Any, dist: Any) -> Program:
    def program(x: Any, y: Any) -> None:
        alpha = ppl.sample("alpha", dist.Normal(0.0, 5.0))
        beta = ppl.sample("beta", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
        with ppl.plate("rows", len(y)):
            ppl.sample("y", dist.Bernoulli(logits=alpha + x @ beta), obs=y)

    return program


def logistic_rows(rows: int, columns: int) -> Arrays:
    random = np.random.default_rng(0)
    x, beta = random.normal(size=(rows, columns)), 0.3 * random.normal(size=columns)
    return {"x": x, "y": _bernoulli(random, 0.3 + x @ beta)}


def _bernoulli(random: np.random.Generator, logits: np.ndarray) -> np.ndarray:
    return (random.uniform(size=len(logits)) < 1 / (1 + np.exp(-logits))).astype(float)


POSTERIORS = {
    "oring": Posterior(_oring, _oring_data),
    "mixture": Posterior(_mixture, _mixture_data),
    "eight_schools": Posterior(_eight_schools, _eight_schools_data),
    "hierarchical": Posterior(_hierarchical, _hierarchical_data),
    "logistic": Posterior(logistic, lambda: logistic_rows(10_000, 50)),
}
