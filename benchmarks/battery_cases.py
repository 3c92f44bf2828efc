"""Posteriors whose moments are known, and engines with budgets good and bad, for the battery."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch

from benchmarks.posteriors import POSTERIORS
from inference import HMC, MALA, MH, NUTS, SMC, SVI, ULA, Gibbs, ImportanceSampling
from inference.engine import Engine
from ppl_models import GaussianMixture

Truth = dict[str, tuple[float, float]]


class Case(NamedTuple):
    """A model with its data, and mean and sd of every scalar that is judged."""

    model: Callable[..., Any]
    truth: Truth
    data: Any = None


def each(name: str, number: int, mean: float, sd: float) -> Truth:
    return {f"{name}[{i}]": (mean, sd) for i in range(number)}


# -- without data: the prior is the posterior ------------------------------------------------------


def normal() -> None:
    pyro.sample("x", dist.Normal(torch.tensor([3.0, -1.0, 0.0]), torch.tensor([2.0, 0.1, 1.0])))


def correlated() -> None:
    covariance = torch.tensor([[1.0, 0.95], [0.95, 1.0]])
    pyro.sample("x", dist.MultivariateNormal(torch.zeros(2), covariance))


def wide() -> None:
    pyro.sample("x", dist.Normal(0.0, torch.logspace(-2, 2, 20)).to_event(1))


def fifty() -> None:
    """Fifty normals with correlation 0.5 between any two."""
    shared = pyro.sample("shared", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(shared, 1.0).expand([49]).to_event(1))


def funnel() -> None:
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    pyro.sample("y", dist.Normal(0.0, (v / 2).exp()).expand([9]).to_event(1))


def non_centred() -> None:
    pyro.sample("v", dist.Normal(0.0, 3.0))
    pyro.sample("z", dist.Normal(0.0, 1.0).expand([9]).to_event(1))


def mild_funnel() -> None:
    v = pyro.sample("v", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(0.0, (v / 2).exp()).expand([4]).to_event(1))


def banana() -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x**2, 0.5))


def student(degrees: float, number: int) -> Callable[[], None]:
    def program() -> None:
        pyro.sample("x", dist.StudentT(degrees).expand([number]).to_event(1))

    return program


def skewed() -> None:
    pyro.sample("x", dist.Gamma(torch.tensor([2.0, 5.0]), 1.0).to_event(1))


def constrained() -> None:
    pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    pyro.sample("half", dist.HalfNormal(2.0))
    pyro.sample("share", dist.Beta(0.5, 1.5))
    pyro.sample("simplex", dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])))


def mixture(
    weights: tuple[float, ...], means: tuple[tuple[float, ...], ...], sds: tuple[float, ...]
) -> Case:
    """Round normals in any dimension, as a factor over a wide prior that is divided out."""
    centre, spread = torch.tensor(means), torch.tensor(sds)
    log_weights = torch.tensor(weights).log()

    def program() -> None:
        wide = dist.Normal(0.0, 30.0).expand([centre.shape[1]]).to_event(1)
        x = pyro.sample("x", wide)
        parts = dist.Normal(centre, spread[:, None]).to_event(1).log_prob(x)
        pyro.factor("ends", (log_weights + parts).logsumexp(-1) - wide.log_prob(x))

    w, m, s = (np.array(part) for part in (weights, means, sds))
    mean = w @ m
    sd = np.sqrt(w @ (m**2 + s[:, None] ** 2) - mean**2)
    pairs = zip(mean, sd, strict=True)
    return Case(program, {f"x[{i}]": (float(a), float(b)) for i, (a, b) in enumerate(pairs)})


# -- with data -------------------------------------------------------------------------------------


def separated(sd: float | None) -> Case:
    """A logistic regression whose classes are apart; with a flat prior it has no posterior."""
    x, y = torch.tensor([-2.0, -1.0, 1.0, 2.0]), torch.tensor([0.0, 0.0, 1.0, 1.0])

    def program() -> None:
        flat = dist.ImproperUniform(dist.constraints.real, (), ())
        b = pyro.sample("b", flat if sd is None else dist.Normal(0.0, sd))
        with pyro.plate("rows", 4):
            pyro.sample("y", dist.Bernoulli(logits=b * x), obs=y)

    if sd is None:
        return Case(program, {"b": (math.inf, math.inf)})
    b = np.linspace(-10 * sd, 10 * sd, 200_001)
    density = -2 * np.logaddexp(0, -b) - 2 * np.logaddexp(0, -2 * b) - b**2 / (2 * sd**2)
    return Case(program, {"b": moments(b, density)})


def moments(x: np.ndarray, log_density: np.ndarray) -> tuple[float, float]:
    weight = np.exp(log_density - log_density.max())
    weight /= weight.sum()
    mean = float(weight @ x)
    return mean, math.sqrt(float(weight @ (x - mean) ** 2))


# posteriordb (stan-dev), eight_schools-eight_schools_noncentered: reference draws, summarised
EIGHT_SCHOOLS: Truth = {
    "mu": (4.4105, 3.3093),
    "tau": (3.6021, 3.1985),
    "theta[0]": (6.1505, 5.6159),
    "theta[1]": (4.9396, 4.6456),
    "theta[2]": (3.9059, 5.2807),
    "theta[3]": (4.7960, 4.7709),
    "theta[4]": (3.6144, 4.6147),
    "theta[5]": (4.0511, 4.7962),
    "theta[6]": (6.3172, 5.0029),
    "theta[7]": (4.8840, 5.3177),
}


def schools(*, centred: bool) -> Case:
    def program(y: torch.Tensor, error: torch.Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("schools", 8):
            if centred:
                theta = pyro.sample("theta", dist.Normal(mu, tau))
            else:
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                theta = pyro.deterministic("theta", mu + tau * z)
            pyro.sample("y", dist.Normal(theta, error), obs=y)

    return Case(program, EIGHT_SCHOOLS, POSTERIORS["eight_schools"].data())


def oring() -> Case:
    """Two coefficients; moments by quadrature."""
    posterior = POSTERIORS["oring"]
    data = posterior.data()
    x, y = data["x"], data["y"]
    alpha, beta = np.meshgrid(np.linspace(-9, 5, 401), np.linspace(-10, 5, 401), indexing="ij")
    logits = alpha[..., None] + beta[..., None] * x
    density = (y * logits - np.logaddexp(0, logits)).sum(-1) - (alpha**2 + beta**2) / 200
    truth = {
        name: moments(values.ravel(), density.ravel())
        for name, values in {"alpha": alpha, "beta": beta}.items()
    }
    return Case(posterior.write(pyro, dist), truth, data)


def exchangeable() -> Case:
    """Two means without labels: both have the same law, with one mode at either cluster."""
    y = np.array([-2.3, -1.6, -2.9, -1.8, 2.4, 1.7, 2.1, 3.0])
    grid = np.linspace(-6, 6, 481)
    one = -0.5 * (y - grid[:, None]) ** 2
    density = (np.logaddexp(one[:, None], one[None]) + math.log(0.5)).sum(-1)
    density = density - (grid[:, None] ** 2 + grid**2) / 50
    both = np.broadcast_to(grid[:, None], density.shape)
    known = moments(both.ravel(), density.ravel())

    def program(y: torch.Tensor) -> None:
        means = pyro.sample("means", dist.Normal(0.0, 5.0).expand([2]).to_event(1))
        with pyro.plate("rows", len(y)):
            parts = dist.Normal(means, torch.ones(2))
            pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), parts), obs=y)

    return Case(program, {"means[0]": known, "means[1]": known}, {"y": y})


def clusters() -> Case:
    """A mixture whose two clusters are far apart: conjugate given the labels, which are certain."""
    random = np.random.default_rng(0)
    parts = [-10 + random.normal(size=30), 10 + random.normal(size=20)]
    x = np.concatenate(parts)
    shrinkage, degrees = 0.01, 3.0
    truth: Truth = {}
    for k, rows in enumerate(parts):
        n, total = len(rows), len(x) + 2
        share = (n + 1) / total
        truth[f"weights[{k}]"] = (share, math.sqrt(share * (1 - share) / (total + 1)))
        mean = (n * rows.mean() + shrinkage * x.mean()) / (n + shrinkage)
        between = shrinkage * n / (shrinkage + n) * (rows.mean() - x.mean()) ** 2
        scale = x.var() / 4 + n * rows.var() + between
        variance = scale / (degrees + n - 2)
        truth[f"mean[{k}, x0]"] = (mean, math.sqrt(variance / (n + shrinkage)))
    return Case(GaussianMixture(2), truth, x[:, None])


SCALES = np.logspace(-2, 2, 20)
ONE = (1.0, 1.0)
CASES: dict[str, Case] = {
    "normal": Case(normal, {"x[0]": (3, 2), "x[1]": (-1, 0.1), "x[2]": (0, 1)}),
    "correlated": Case(correlated, each("x", 2, 0, 1)),
    "funnel": Case(funnel, {"v": (0, 3), **each("y", 9, 0, math.exp(2.25))}),
    "student 5": Case(student(5.0, 5), each("x", 5, 0, math.sqrt(5 / 3))),
    "bimodal far": mixture((0.5, 0.5), ((-15.0,), (15.0,)), ONE),
    "separated": separated(None),
    "wide": Case(wide, {f"x[{i}]": (0, s) for i, s in enumerate(SCALES)}),
    "non-centred": Case(non_centred, {"v": (0, 3), **each("z", 9, 0, 1)}),
    "student 2.2": Case(student(2.2, 3), each("x", 3, 0, math.sqrt(11))),
    "skewed": Case(skewed, {"x[0]": (2, math.sqrt(2)), "x[1]": (5, math.sqrt(5))}),
    "bimodal near": mixture((0.5, 0.5), ((-1.5,), (1.5,)), ONE),
    "bimodal uneven": mixture((0.2, 0.8), ((-15.0,), (15.0,)), ONE),
    "fifty": Case(fifty, {"shared": (0, 1), **each("x", 49, 0, math.sqrt(2))}),
    "mild funnel": Case(mild_funnel, {"v": (0, 1), **each("y", 4, 0, math.exp(0.25))}),
    "banana": Case(banana, {"x": (0, 1), "y": (1, 1.5)}),
    "cauchy": Case(student(1.0, 2), each("x", 2, 0, math.inf)),
    "constrained": Case(
        constrained,
        {
            "scale": (math.exp(0.125), math.exp(0.125) * math.sqrt(math.expm1(0.25))),
            "half": (2 * math.sqrt(2 / math.pi), 2 * math.sqrt(1 - 2 / math.pi)),
            "share": (0.25, 0.25),
            "simplex[0]": (1 / 6, math.sqrt(5 / 252)),
            "simplex[1]": (2 / 6, math.sqrt(8 / 252)),
            "simplex[2]": (3 / 6, math.sqrt(9 / 252)),
        },
    ),
    "wide and narrow": mixture((0.6, 0.4), ((-6.0, 0.0), (6.0, 3.0)), (0.2, 2.0)),
    "small mode": mixture((0.03, 0.97), ((-4.0,), (4.0,)), ONE),
    "three modes": mixture((0.3, 0.3, 0.4), ((-6.0, 0.0), (6.0, 0.0), (0.0, 8.0)), (1.0, 1.0, 1.0)),
    "separated, prior": separated(3.0),
    "schools, centred": schools(centred=True),
    "schools": schools(centred=False),
    "o-ring": oring(),
    "exchangeable": exchangeable(),
    "clusters": clusters(),
}

ENGINES: dict[str, Engine] = {
    "nuts": NUTS(warmup=500, draws=500, tier="traced"),
    "nuts, 1 chain": NUTS(chains=1, warmup=500, draws=1000, tier="traced"),
    "nuts, too short": NUTS(warmup=10, draws=15, tier="traced"),
    "nuts, short": NUTS(warmup=100, draws=100, tier="traced"),
    "nuts, coarse step": NUTS(warmup=50, draws=300, step_size=2.2, max_depth=6, tier="traced"),
    "nuts, 32 chains": NUTS(chains=32, warmup=200, draws=50, tier="traced"),
    "hmc": HMC(warmup=500, draws=1000, steps=8, tier="traced"),
    "hmc, tiny step": HMC(warmup=200, draws=300, steps=4, step_size=1e-3, tier="traced"),
    "mala": MALA(warmup=500, draws=500, thin=3, tier="traced"),
    "ula, coarse": ULA(warmup=500, draws=1000, thin=3, step_size=1.0, tier="traced"),
    "mh": MH(warmup=1000, draws=1000, thin=5, tier="traced"),
    "mh, 1 chain": MH(chains=1, warmup=1000, draws=1000, thin=5, tier="traced"),
    "mh, too short": MH(warmup=50, draws=100, tier="traced"),
    "mean-field": SVI(draws=2000, tier="traced"),
    "mean-field, short": SVI(steps=100, draws=1000, tier="traced"),
    "mean-field, wild": SVI(steps=60, learning_rate=3.0, draws=1000, tier="traced"),
    "full-rank": SVI(guide="full-rank", draws=2000, tier="traced"),
    "laplace": SVI(guide="laplace", draws=2000, tier="traced"),
    "importance": ImportanceSampling(proposals=5000, draws=1000),
    "importance, few": ImportanceSampling(proposals=60, draws=1000),
    "smc": SMC(particles=500, runs=2, kernel=HMC(steps=3)),
    "gibbs": Gibbs(warmup=100, draws=500),
    "smc, few": SMC(particles=30, runs=1, moves=1, kernel=MH()),
}

_EVERYWHERE = 6
"""So many cases, the first, are fitted by all engines, the others by those below."""

_SOME = (
    "nuts",
    "nuts, too short",
    "hmc",
    "mh",
    "mean-field",
    "full-rank",
    "laplace",
    "importance",
    "smc",
)
SETTINGS = [
    (case, engine)
    for number, case in enumerate(CASES)
    for engine in (ENGINES if number < _EVERYWHERE else _SOME)
] + [("clusters", "gibbs")]
"""What the battery runs: pairs of names."""
