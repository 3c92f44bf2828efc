"""Posteriors with known moments, as data: a Pyro program, its data, and the exact figures."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from scipy import integrate, special
from torch import Tensor

from ppl_models import ORing
from ppl_models.base import Data, HasConditionals, Params
from ppl_models.noise import Noise


@dataclass(frozen=True)
class Known:
    """A program and the exact moments of its scalars, named ``site`` or ``site[i]``.

    Args:
        mean, sd, covariance: some of them; every sd and covariance is about the exact mean.
        proposal: a program over the same sites, for independence proposals; its tails are heavier.
    """

    program: Callable[..., None]
    mean: Mapping[str, float]
    sd: Mapping[str, float]
    covariance: Mapping[tuple[str, str], float] = field(default_factory=dict)
    data: Mapping[str, Any] | None = None
    proposal: Callable[..., None] | None = None

    def unit(self, scalar: str) -> float:
        return self.sd.get(scalar, 1.0)

    @property
    def moments(self) -> int:
        return len(self.mean) + len(self.sd) + len(self.covariance)


def names(site: str, count: int) -> list[str]:
    return [f"{site}[{i}]" for i in range(count)]


def real(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# -- Gaussians -------------------------------------------------------------------------------------

CORRELATION = 0.95


def _correlated() -> None:
    covariance = real(1.0, 2 * CORRELATION, 2 * CORRELATION, 4.0).reshape(2, 2)
    pyro.sample("x", dist.MultivariateNormal(real(1.0, -2.0), covariance))


def _correlated_proposal() -> None:
    covariance = real(2.0, 4 * CORRELATION, 4 * CORRELATION, 9.0).reshape(2, 2)
    pyro.sample("x", dist.MultivariateNormal(real(0.0, -3.0), covariance))


CORRELATED = Known(
    _correlated,
    mean={"x[0]": 1.0, "x[1]": -2.0},
    sd={"x[0]": 1.0, "x[1]": 2.0},
    covariance={("x[0]", "x[1]"): 2 * CORRELATION},
    proposal=_correlated_proposal,
)

_SCALES = torch.logspace(-1, 1, 10, dtype=torch.float64)  # variances differ by a factor of 10^4

SCALED = Known(
    lambda: pyro.sample("x", dist.Normal(torch.ones_like(_SCALES), _SCALES).to_event(1)),
    mean=dict.fromkeys(names("x", 10), 1.0),
    sd=dict(zip(names("x", 10), _SCALES.tolist(), strict=True)),
    covariance={("x[0]", "x[9]"): 0.0, ("x[4]", "x[5]"): 0.0},
)


# -- Neal's funnel, non-centred --------------------------------------------------------------------


def _funnel() -> None:
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    x = (v / 2).exp() * z
    pyro.deterministic("inside", (x.abs() < 1).to(v.dtype), event_dim=1)


def _inside() -> float:
    """P(|x| < 1), x ~ N(0, e^v), v ~ N(0, 9)."""

    def integrand(v: float) -> float:
        return special.erf(math.exp(-v / 2) / math.sqrt(2)) * math.exp(-(v**2) / 18)

    return integrate.quad(integrand, -30, 30)[0] / math.sqrt(18 * math.pi)


_P = _inside()

FUNNEL = Known(
    _funnel,
    mean={"v": 0.0, **dict.fromkeys(names("z", 3), 0.0), **dict.fromkeys(names("inside", 3), _P)},
    sd={
        "v": 3.0,
        **dict.fromkeys(names("z", 3), 1.0),
        **dict.fromkeys(names("inside", 3), math.sqrt(_P * (1 - _P))),
    },
    covariance={("v", "z[0]"): 0.0},
)


# -- constrained supports --------------------------------------------------------------------------


def _bounded() -> None:
    pyro.sample("uniform", dist.Uniform(real(-1.0)[0], real(3.0)[0]))
    pyro.sample("beta", dist.Beta(2.0, 5.0))
    pyro.sample("gamma", dist.Gamma(3.0, 2.0))
    pyro.sample("lognormal", dist.LogNormal(0.3, 0.4))


def _bounded_proposal() -> None:
    pyro.sample("uniform", dist.Uniform(real(-1.0)[0], real(3.0)[0]))
    pyro.sample("beta", dist.Uniform(real(0.0)[0], real(1.0)[0]))
    pyro.sample("gamma", dist.Gamma(2.0, 1.0))
    pyro.sample("lognormal", dist.LogNormal(0.3, 0.8))


_LOGNORMAL = math.exp(0.3 + 0.4**2 / 2)

BOUNDED = Known(
    _bounded,
    mean={"uniform": 1.0, "beta": 2 / 7, "gamma": 1.5, "lognormal": _LOGNORMAL},
    sd={
        "uniform": 4 / math.sqrt(12),
        "beta": math.sqrt(2 * 5 / (7**2 * 8)),
        "gamma": math.sqrt(3) / 2,
        "lognormal": _LOGNORMAL * math.sqrt(math.expm1(0.4**2)),
    },
    covariance={("beta", "gamma"): 0.0},
    proposal=_bounded_proposal,
)


def _simplex(y: Tensor, categories: int) -> None:
    p = pyro.sample("p", dist.Dirichlet(torch.ones(categories)))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Categorical(p), obs=y)


def _dirichlet(counts: list[int]) -> Known:
    """The posterior is Dirichlet(1 + counts)."""
    a = [1 + count for count in counts]
    total = sum(a)
    mean = [value / total for value in a]
    site = names("p", len(a))
    y = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return Known(
        _simplex,
        mean=dict(zip(site, mean, strict=True)),
        sd={n: math.sqrt(m * (1 - m) / (total + 1)) for n, m in zip(site, mean, strict=True)},
        covariance={(site[0], site[1]): -mean[0] * mean[1] / (total + 1)},
        data={"y": y, "categories": len(counts)},
        proposal=lambda y, categories: pyro.sample("p", dist.Dirichlet(torch.ones(categories))),
    )


SIMPLEX = _dirichlet([0, 2, 3, 7])


# -- conjugate normal mean and variance ------------------------------------------------------------


class NormalMeanVariance(HasConditionals):
    """y_i ~ N(mean, variance), mean | variance ~ N(0, variance / K), variance ~ InvGamma(A, B)."""

    A, B, K = 3.0, 4.0, 0.5

    def forward(self, y: Tensor) -> None:  # type: ignore[override]
        variance = pyro.sample("variance", dist.InverseGamma(self.A, self.B))
        mean = pyro.sample("mean", dist.Normal(0.0, (variance / self.K).sqrt()))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mean, variance.sqrt()), obs=y)

    def conditionals(self, data: Data) -> Mapping[str, Callable[[Params, Noise], Params]]:
        """The mean is normal; the variance is scaled inverse chi square."""
        y = data["y"]
        n = len(y)

        def mean(params: Params, noise: Noise) -> Params:
            sd = (params["variance"] / (n + self.K)).sqrt()
            return {**params, "mean": y.sum() / (n + self.K) + sd * noise.normal()}

        def variance(params: Params, noise: Noise) -> Params:
            loc = params["mean"]
            squares = (y - loc[:, None]).square().sum(-1) + self.K * loc**2 + 2 * self.B
            freedom = round(2 * self.A + n + 1)
            return {**params, "variance": squares / noise.normal(freedom).square().sum(-1)}

        return {"mean": mean, "variance": variance}

    def proposal(self, y: Tensor) -> None:
        """Wider than the posterior on every side."""
        pyro.sample("variance", dist.InverseGamma(self.A, self.B))
        pyro.sample("mean", dist.StudentT(5.0, 1.0, 1.0))


def _normal_mean_variance(y: list[float]) -> Known:
    """The posterior is normal-inverse-gamma."""
    model = NormalMeanVariance()
    n, total = len(y), sum(y)
    k, a = model.K + n, model.A + n / 2
    b = model.B + (sum(v**2 for v in y) - total**2 / k) / 2
    variance = b / (a - 1)
    return Known(
        model,
        mean={"mean": total / k, "variance": variance},
        sd={"mean": math.sqrt(variance / k), "variance": variance / math.sqrt(a - 2)},
        covariance={("mean", "variance"): 0.0},
        data={"y": real(*y)},
        proposal=model.proposal,
    )


CONJUGATE = _normal_mean_variance(
    [1.2, -0.4, 2.9, 0.7, 1.8, 3.3, -1.1, 0.2, 1.6, 2.4, 0.9, -0.6, 2.1, 1.4, 0.5, 1.0]
)


# -- a discrete site, summed out and drawn again ---------------------------------------------------


def _labels(y: Tensor) -> None:
    weight = pyro.sample("weight", dist.Beta(2.0, 3.0))
    with pyro.plate("rows", len(y)):
        z = pyro.sample("z", dist.Bernoulli(weight), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(2 * z, 1.0), obs=y)


def _by_enumeration(y: list[float]) -> Known:
    """Moments over all 2^N labellings: given one with k ones, weight ~ Beta(2 + k, 3 + N - k)."""
    n = len(y)
    z = np.array(list(itertools.product((0, 1), repeat=n)))
    a, b = 2 + z.sum(1), 3 + n - z.sum(1)
    log_joint = special.betaln(a, b) - ((np.array(y) - 2 * z) ** 2).sum(1) / 2
    share = np.exp(log_joint - special.logsumexp(log_joint))
    weight = share @ (a / (a + b))
    square = share @ (a * (a + 1) / ((a + b) * (a + b + 1)))
    label = share @ z
    pair = share @ (z[:, 0] * z[:, 2])
    with_weight = share @ (a / (a + b) * z[:, 2])
    site = names("z", n)
    return Known(
        _labels,
        mean={"weight": weight, **dict(zip(site, label, strict=True))},
        sd={"weight": math.sqrt(square - weight**2)},
        covariance={
            (site[0], site[2]): pair - label[0] * label[2],
            ("weight", site[2]): with_weight - weight * label[2],
        },
        data={"y": real(*y)},
    )


LABELS = _by_enumeration([-0.3, 2.6, 1.1, 0.8, 1.9])


# -- eight schools ---------------------------------------------------------------------------------

# Rubin (1981), "Estimation in parallel randomized experiments", table 1
_EFFECTS = (28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0)
_ERRORS = (15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0)


def _schools(y: Tensor, sigma: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * z)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def _schools_by_quadrature() -> tuple[dict[str, float], dict[str, float], float]:
    """Means, sds, and the covariance of mu and tau; given tau all is Gaussian.

    tau = 5 tan(u) makes the half Cauchy prior uniform in u; the midpoint rule on u.
    """
    u = (np.arange(200_000) + 0.5) / 200_000 * math.pi / 2
    tau = 5 * np.tan(u)[:, None]
    y, sigma = np.array(_EFFECTS), np.array(_ERRORS)
    v = sigma**2 + tau**2
    precision = 1 / 25 + (1 / v).sum(1)
    m = (y / v).sum(1) / precision
    log_joint = (-np.log(v) - y**2 / v).sum(1) / 2 + (precision * m**2 - np.log(precision)) / 2
    share = np.exp(log_joint - special.logsumexp(log_joint))
    theta = (sigma**2 * m[:, None] + tau**2 * y) / v
    theta_variance = sigma**2 * tau**2 / v + (sigma**2 / v) ** 2 / precision[:, None]
    first = {"mu": share @ m, "tau": share @ tau[:, 0]}
    second = {"mu": share @ (m**2 + 1 / precision), "tau": share @ tau[:, 0] ** 2}
    for j, name in enumerate(names("theta", 8)):
        first[name] = share @ theta[:, j]
        second[name] = share @ (theta_variance[:, j] + theta[:, j] ** 2)
    sd = {name: math.sqrt(second[name] - first[name] ** 2) for name in first}
    return first, sd, share @ (m * tau[:, 0]) - first["mu"] * first["tau"]


_SCHOOLS_MEAN, _SCHOOLS_SD, _SCHOOLS_COVARIANCE = _schools_by_quadrature()

SCHOOLS = Known(
    _schools,
    mean=_SCHOOLS_MEAN,
    sd=_SCHOOLS_SD,
    covariance={("mu", "tau"): _SCHOOLS_COVARIANCE},
    data={"y": real(*_EFFECTS), "sigma": real(*_ERRORS)},
)


# -- the O-rings of the space shuttle --------------------------------------------------------------

_ORING = ORing("incident", prior="robert-casella")

# Robert & Casella (2004), chapter 7; moments by quadrature
ORING = Known(
    _ORING,
    mean={
        "alpha": 15.09022,
        "beta": -0.2337596,
        **dict(zip(names("p", 5), (0.999455, 0.963285, 0.732121, 0.476206, 0.233868), strict=True)),
    },
    sd={"alpha": 1.22540, "beta": 0.0197855},
    covariance={("alpha", "beta"): -0.90691 * 1.22540 * 0.0197855},
    proposal=_ORING.independence_proposal(),
)

KNOWN = {
    "correlated": CORRELATED,
    "scaled": SCALED,
    "funnel": FUNNEL,
    "bounded": BOUNDED,
    "simplex": SIMPLEX,
    "conjugate": CONJUGATE,
    "labels": LABELS,
    "schools": SCHOOLS,
    "oring": ORING,
}


# -- posteriordb -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Published:
    """A program and the means and sds of 10,000 nearly independent draws: {scalar: (mean, sd)}.

    ``start`` is a rough guess of the unconstrained values, where chains must begin near one.
    """

    program: Callable[..., None]
    data: Mapping[str, Any]
    moments: Mapping[str, tuple[float, float]]
    start: Tensor | None = None


# posteriordb, eight_schools-eight_schools_noncentered, reference draws: 10 chains x 1000
_SCHOOLS_PUBLISHED = {
    "theta[0]": (6.150502, 5.615863),
    "theta[1]": (4.939581, 4.645578),
    "theta[2]": (3.905906, 5.280712),
    "theta[3]": (4.796017, 4.770938),
    "theta[4]": (3.614436, 4.614721),
    "theta[5]": (4.051148, 4.796248),
    "theta[6]": (6.317170, 5.002855),
    "theta[7]": (4.883997, 5.317692),
    "mu": (4.410518, 3.309296),
    "tau": (3.602060, 3.198478),
}

_POSTERIORDB = Path(__file__).parents[2] / "shared" / "data" / "posteriors"


def _ar(y: Tensor, lagged: Tensor) -> None:
    alpha = pyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = pyro.sample("beta", dist.Normal(torch.zeros(lagged.shape[1]), 10.0).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    with pyro.plate("times", len(y)):
        pyro.sample("y", dist.Normal(alpha + lagged @ beta, sigma), obs=y)


def _ar_data(raw: dict[str, Any]) -> dict[str, Any]:
    y, k = real(*raw["y"]), raw["K"]
    lags = [y[k - lag : len(y) - lag] for lag in range(1, k + 1)]
    return {"y": y[k:], "lagged": torch.stack(lags, 1)}


def _blr(y: Tensor, x: Tensor) -> None:
    beta = pyro.sample("beta", dist.Normal(torch.zeros(x.shape[1]), 10.0).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(10.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)


def _blr_data(raw: dict[str, Any]) -> dict[str, Any]:
    return {"y": real(*raw["y"]), "x": torch.tensor(raw["X"], dtype=torch.float64)}


def _kid(kid_score: Tensor, mom_iq: Tensor) -> None:
    beta = pyro.sample("beta", dist.ImproperUniform(constraints.real_vector, (), (2,)))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    with pyro.plate("children", len(kid_score)):
        pyro.sample("y", dist.Normal(beta[0] + beta[1] * mom_iq, sigma), obs=kid_score)


def _kid_data(raw: dict[str, Any]) -> dict[str, Any]:
    return {name: real(*raw[name]) for name in ("kid_score", "mom_iq")}


def _mixture(y: Tensor) -> None:
    """Two normals, labels summed out; the order of the means is part of the support."""
    mu = pyro.sample("mu", dist.ImproperUniform(constraints.ordered_vector, (), (2,)))
    pyro.sample("prior of mu", dist.Normal(torch.zeros(2), 2.0).to_event(1), obs=mu)
    sigma = pyro.sample("sigma", dist.HalfNormal(2 * torch.ones(2)).to_event(1))
    theta = pyro.sample("theta", dist.Beta(5.0, 5.0))
    weights = dist.Categorical(torch.stack([theta, 1 - theta]))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.MixtureSameFamily(weights, dist.Normal(mu, sigma)), obs=y)


_FILES: dict[str, tuple[str, Callable[..., None], Callable[[dict[str, Any]], dict[str, Any]]]] = {
    "ar_k": ("arK", _ar, _ar_data),
    "sblri": ("sblri_blr", _blr, _blr_data),
    "kidscore_momiq": ("kidscore_momiq", _kid, _kid_data),
    "low_dim_gauss_mix": (
        "low_dim_gauss_mix",
        _mixture,
        lambda raw: {"y": real(*raw["y"])},
    ),
}

# The mixture has a second mode, of e^-450 of the mass, where one component has all the rows; some
# of the usual starting points lead there. These are means -2 and 2, sds 1, a weight of one half.
_STARTS = {"low_dim_gauss_mix": real(-2.0, math.log(4.0), 0.0, 0.0, 0.0)}

PUBLISHED = {
    "schools": 64,
    "ar_k": 32,
    "sblri": 32,
    "kidscore_momiq": 32,
    "low_dim_gauss_mix": 8,
}
"""How many chains to run: the fewer, the more data there are."""


@cache
def published(name: str) -> Published:
    """A posterior of posteriordb; skips the test where its files are not beside the project."""
    if name == "schools":
        return Published(_schools, dict(SCHOOLS.data or {}), _SCHOOLS_PUBLISHED)
    folder, program, data = _FILES[name]
    path = _POSTERIORDB / folder
    if not path.is_dir():
        pytest.skip(f"posteriordb's {folder} is not in ../shared/data/posteriors")
    reference = json.loads((path / "reference.json").read_text())["summary"]
    moments = {_from_zero(key): (row["mean"], row["sd"]) for key, row in reference.items()}
    fields = data(json.loads((path / "data.json").read_text()))
    return Published(program, fields, moments, _STARTS.get(name))


def _from_zero(name: str) -> str:
    """``beta[1]`` of Stan is ``beta[0]`` here."""
    site, bracket, rest = name.partition("[")
    return f"{site}[{int(rest[:-1]) - 1}]" if bracket else site
