"""The second half of the battery: posteriors, engines and budgets that no threshold was chosen on.

No threshold was chosen by their findings, though one changed after they were written. Other
dimensions, data and shapes than in ``battery_cases``. Truth is by closed forms, or by quadrature
where there are at most three parameters.
"""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch

from benchmarks.battery_cases import Case, Truth, each, mixture, moments, student
from inference import HMC, MALA, MH, NUTS, SMC, SVI, ULA, ImportanceSampling
from inference.engine import Engine

REAL = dist.constraints.real

# -- linear and normal: exact by linear algebra ----------------------------------------------------


def _truth(name: str, mean: np.ndarray, covariance: np.ndarray) -> Truth:
    sd = np.sqrt(np.diag(covariance))
    return {f"{name}[{i}]": (float(mean[i]), float(sd[i])) for i in range(len(mean))}


def regression(rows: int, columns: int, correlation: float) -> Case:
    """Linear regression on correlated columns, noise of sd 1: normal, with nearly flat ridges."""
    random = np.random.default_rng(8)
    shared = random.normal(size=(rows, 1))
    x = math.sqrt(correlation) * shared
    x = x + math.sqrt(1 - correlation) * random.normal(size=(rows, columns))
    y = x @ random.normal(size=columns) + random.normal(size=rows)

    def program(x: torch.Tensor, y: torch.Tensor) -> None:
        b = pyro.sample("b", dist.Normal(0.0, 3.0).expand([x.shape[1]]).to_event(1))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(x @ b, 1.0), obs=y)

    covariance = np.linalg.inv(x.T @ x + np.eye(columns) / 9)
    return Case(program, _truth("b", covariance @ x.T @ y, covariance), {"x": x, "y": y})


def walk(length: int) -> Case:
    """A random walk seen through noise, in its natural and strongly correlated parameters."""
    random = np.random.default_rng(9)
    path = np.cumsum(0.3 * random.normal(size=length))
    y = path + random.normal(size=length)

    def program(y: torch.Tensor) -> None:
        x = pyro.sample("x", dist.Normal(0.0, 10.0).expand([len(y)]).to_event(1))
        pyro.factor("steps", dist.Normal(x[:-1], 0.3).log_prob(x[1:]).sum())
        pyro.factor("wide", -dist.Normal(0.0, 10.0).log_prob(x[1:]).sum())
        with pyro.plate("times", len(y)):
            pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    difference = np.diff(np.eye(length), axis=0)
    precision = difference.T @ difference / 0.09 + np.eye(length)
    precision[0, 0] += 0.01
    covariance = np.linalg.inv(precision)
    return Case(program, _truth("x", covariance @ y, covariance), {"y": y})


def rotated(dim: int, condition: float) -> Case:
    """A normal whose axes, of very different lengths, lie askew."""
    basis = np.linalg.qr(np.random.default_rng(10).normal(size=(dim, dim)))[0]
    covariance = basis @ np.diag(np.logspace(0, -2 * math.log10(condition), dim)) @ basis.T
    covariance = (covariance + covariance.T) / 2
    factor = torch.as_tensor(np.linalg.cholesky(covariance))

    def program() -> None:
        law = dist.MultivariateNormal(torch.zeros(dim).double(), scale_tril=factor)
        pyro.sample("x", law)

    return Case(program, _truth("x", np.zeros(dim), covariance))


# log relative risks of tuberculosis after vaccination, with standard errors: 13 trials, Colditz et
# al. (1994), JAMA 271
_RISKS = [-0.889, -1.585, -1.348, -1.442, -0.218, -0.786, -1.621, 0.012, -0.469, -1.371, -0.339,
          0.446, -0.017]  # fmt: skip
_ERRORS = [0.571, 0.441, 0.645, 0.141, 0.226, 0.083, 0.472, 0.063, 0.238, 0.270, 0.111, 0.730,
           0.268]  # fmt: skip


def trials(*, centred: bool) -> Case:
    """Random effects; given tau all else is normal, so that one quadrature gives all moments."""
    y, error = np.array(_RISKS), np.array(_ERRORS)

    def program(y: torch.Tensor, error: torch.Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        tau = pyro.sample("tau", dist.HalfNormal(1.0))
        with pyro.plate("trials", len(y)):
            if centred:
                theta = pyro.sample("theta", dist.Normal(mu, tau))
            else:
                theta = mu + tau * pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.deterministic("theta", theta)
            pyro.sample("y", dist.Normal(theta, error), obs=y)

    tau = np.linspace(1e-4, 5, 4000)[:, None]
    precision = 1 / (error**2 + tau**2)
    total = precision.sum(1) + 0.25
    mu = (precision * y).sum(1) / total
    log_p = 0.5 * (np.log(precision).sum(1) - np.log(total) - tau[:, 0] ** 2)
    log_p += 0.5 * (total * mu**2 - (precision * y**2).sum(1))
    weight = np.exp(log_p - log_p.max())
    weight /= weight.sum()
    shrink = tau**2 * precision
    mean = shrink * y + (1 - shrink) * mu[:, None]
    variance = shrink * error**2 + (1 - shrink) ** 2 / total[:, None]
    means = {"mu": (mu, 1 / total), "tau": (tau[:, 0], 0 * mu)}
    means |= {f"theta[{i}]": (mean[:, i], variance[:, i]) for i in range(len(y))}
    truth = {}
    for name, (centre, within) in means.items():
        first = float(weight @ centre)
        truth[name] = (first, math.sqrt(float(weight @ (within + (centre - first) ** 2))))
    return Case(program, truth, {"y": y, "error": error})


# -- few parameters, by quadrature -----------------------------------------------------------------


def bioassay() -> Case:
    """Four groups of five animals: Racine et al. (1986); Gelman et al. (2013), section 3.7."""
    data = {"x": np.array([-0.86, -0.30, -0.05, 0.73]), "y": np.array([0.0, 1.0, 3.0, 5.0])}

    def program(x: torch.Tensor, y: torch.Tensor) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 5.0))
        b = pyro.sample("b", dist.Normal(0.0, 20.0))
        with pyro.plate("groups", len(y)):
            pyro.sample("y", dist.Binomial(5, logits=a + b * x), obs=y)

    a, b = np.meshgrid(np.linspace(-12, 15, 500), np.linspace(-15, 80, 700), indexing="ij")
    logits = a[..., None] + b[..., None] * data["x"]
    log_p = (data["y"] * logits - 5 * np.logaddexp(0, logits)).sum(-1) - a**2 / 50 - b**2 / 800
    truth = {"a": moments(a.ravel(), log_p.ravel()), "b": moments(b.ravel(), log_p.ravel())}
    return Case(program, truth, data)


def separated_in_the_plane(sd: float | None) -> Case:
    """Classes apart along a slanted line: with a flat prior no slope alone runs away."""
    x = np.array([[-1.0, -0.6], [-0.2, -1.1], [-1.2, 0.7], [1.1, -0.5], [0.3, 1.2], [0.9, 0.8]])
    data = {"x": x, "y": np.array([0.0, 0.0, 0.0, 1.0, 1.0, 1.0])}

    def program(x: torch.Tensor, y: torch.Tensor) -> None:
        flat = dist.ImproperUniform(REAL, (), ()).expand([2]).to_event(1)
        prior = flat if sd is None else dist.Normal(0.0, sd).expand([2]).to_event(1)
        b = pyro.sample("b", prior)
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Bernoulli(logits=x @ b), obs=y)

    if sd is None:
        return Case(program, {"b[0]": (math.inf, math.inf)}, data)
    first, second = np.meshgrid(*[np.linspace(-12 * sd, 12 * sd, 701)] * 2, indexing="ij")
    logits = first[..., None] * x[:, 0] + second[..., None] * x[:, 1]
    log_p = (data["y"] * logits - np.logaddexp(0, logits)).sum(-1)
    log_p -= (first**2 + second**2) / (2 * sd**2)
    truth = {f"b[{i}]": moments(v.ravel(), log_p.ravel()) for i, v in enumerate((first, second))}
    return Case(program, truth, data)


def frequency() -> Case:
    """The frequency of a sine seen at few times: many narrow modes."""
    t = np.array([0.0, 1.3, 2.9, 4.2, 6.1, 7.7, 9.4])
    y = np.sin(2.0 * t) + 0.8 * np.random.default_rng(11).normal(size=len(t))

    def program(t: torch.Tensor, y: torch.Tensor) -> None:
        omega = pyro.sample("omega", dist.Uniform(0.0, 6.0))
        with pyro.plate("times", len(t)):
            pyro.sample("y", dist.Normal((omega * t).sin(), 0.8), obs=y)

    omega = np.linspace(0, 6, 60_001)
    log_p = -((y - np.sin(omega[:, None] * t)) ** 2).sum(1) / (2 * 0.64)
    return Case(program, {"omega": moments(omega, log_p)}, {"t": t, "y": y})


def three_labels() -> Case:
    """Three means without order: six modes, all means of the same law."""
    y = np.array([-5.2, -4.7, -5.5, 0.2, -0.4, 0.3, 4.8, 5.3, 5.1])
    grid = np.linspace(-9, 9, 121)
    one = -0.5 * (y - grid[:, None]) ** 2  # (G, N)
    log_p = np.zeros((121, 121, 121))
    for row in one.T:
        pair = np.logaddexp(row[:, None], row)
        log_p += np.logaddexp(pair[:, :, None], row)
    log_p -= (grid[:, None, None] ** 2 + grid[:, None] ** 2 + grid**2) / (2 * 36)
    first = np.broadcast_to(grid[:, None, None], log_p.shape)
    known = moments(first.ravel(), log_p.ravel())

    def program(y: torch.Tensor) -> None:
        means = pyro.sample("means", dist.Normal(0.0, 6.0).expand([3]).to_event(1))
        with pyro.plate("rows", len(y)):
            parts = dist.Normal(means, torch.ones(3))
            pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(torch.ones(3)), parts), obs=y)

    return Case(program, {f"means[{i}]": known for i in range(3)}, {"y": y})


def edge() -> Case:
    """A share whose posterior peaks at the edge of its support, and a rate of few events."""

    def program(y: torch.Tensor) -> None:
        p = pyro.sample("p", dist.Uniform(0.0, 1.0))
        rate = pyro.sample("rate", dist.Gamma(0.5, 0.1))
        pyro.sample("y", dist.Binomial(20, p), obs=y[0])
        pyro.sample("n", dist.Poisson(rate), obs=y[1])

    beta = (1 / 22, math.sqrt(21 / (22**2 * 23)))
    gamma = (1.5 / 1.1, math.sqrt(1.5) / 1.1)
    return Case(program, {"p": beta, "rate": gamma}, {"y": np.array([0.0, 1.0])})


def scale(rows: int) -> Case:
    """Mean and sd of few values under the reference prior: a Student t and a heavy scale."""
    y = np.random.default_rng(12).normal(size=rows)

    def program(y: torch.Tensor) -> None:
        mu = pyro.sample("mu", dist.ImproperUniform(REAL, (), ()))
        log_sigma = pyro.sample("log_sigma", dist.ImproperUniform(REAL, (), ()))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mu, log_sigma.exp()), obs=y)

    degrees = rows - 1
    variance = y.var(ddof=1) / rows * degrees / (degrees - 2) if degrees > 2 else math.inf
    return Case(program, {"mu": (float(y.mean()), math.sqrt(variance))}, {"y": y})


# -- shapes ----------------------------------------------------------------------------------------


def ring() -> None:
    """Around a circle of radius 5: no maximum is a point."""
    law = dist.Normal(0.0, 10.0).expand([2]).to_event(1)
    x = pyro.sample("x", law)
    radius = x.square().sum().sqrt()
    pyro.factor("ring", dist.Normal(5.0, 0.5).log_prob(radius) - radius.log() - law.log_prob(x))


def narrow_funnel() -> None:
    v = pyro.sample("v", dist.Normal(0.0, 1.5))
    pyro.sample("y", dist.Normal(0.0, v.exp()).expand([2]).to_event(1))


def bent() -> None:
    """Four dimensions, each the square of the one before and noise."""
    x = pyro.sample("a", dist.Normal(1.0, 0.5))
    for name in "bcd":
        x = pyro.sample(name, dist.Normal(0.5 * x**2, 0.3))


def lognormal() -> None:
    pyro.sample("x", dist.LogNormal(0.0, 2.0))


def counts() -> None:
    pyro.sample("share", dist.Dirichlet(torch.arange(1.0, 11.0)))
    pyro.sample("rate", dist.Gamma(torch.arange(2.0, 12.0), 1.0).to_event(1))


def horseshoe() -> None:
    """A shrunken effect: the local scale has no mean."""
    pyro.sample("lam", dist.HalfCauchy(1.0))
    pyro.sample("z", dist.Normal(0.0, 1.0))


def _bent_truth() -> Truth:
    """Moments by two million draws of the program itself, with errors below 0.5 % of an sd."""
    random = np.random.default_rng(13)
    x, truth = 1 + 0.5 * random.normal(size=2_000_000), {"a": (1.0, 0.5)}
    for name in "bcd":
        x = 0.5 * x**2 + 0.3 * random.normal(size=x.size)
        truth[name] = (float(x.mean()), float(x.std()))
    return truth


def _counts_truth() -> Truth:
    alpha = np.arange(1.0, 11.0) / 55
    truth = {f"share[{i}]": (a, math.sqrt(a * (1 - a) / 56)) for i, a in enumerate(alpha)}
    return truth | {f"rate[{i}]": (i + 2.0, math.sqrt(i + 2.0)) for i in range(10)}


ROOT = math.sqrt(12.625)  # of E r^2 / 2, r ~ N(5, 0.25)


def _cases() -> dict[str, Case]:
    sd = math.exp(1.5**2)  # of y in the narrow funnel: the root of E exp(2 v)
    five = (tuple([-2.0] * 5), tuple([2.5] * 5))
    return {
        "regression": regression(60, 30, 0.9),
        "walk": walk(60),
        "rotated": rotated(20, 300.0),
        "trials, centred": trials(centred=True),
        "trials": trials(centred=False),
        "bioassay": bioassay(),
        "separated plane": separated_in_the_plane(None),
        "separated plane, prior": separated_in_the_plane(4.0),
        "frequency": frequency(),
        "three labels": three_labels(),
        "edge": edge(),
        "scale of 3": scale(3),
        "scale of 12": scale(12),
        "ring": Case(ring, each("x", 2, 0.0, ROOT)),
        "narrow funnel": Case(narrow_funnel, {"v": (0.0, 1.5), **each("y", 2, 0.0, sd)}),
        "bent": Case(bent, _bent_truth()),
        "lognormal": Case(
            lognormal, {"x": (math.exp(2.0), math.exp(2.0) * math.sqrt(math.expm1(4.0)))}
        ),
        "counts": Case(counts, _counts_truth()),
        "horseshoe": Case(horseshoe, {"lam": (math.inf, math.inf)}),
        "student 3": Case(student(3.0, 8), each("x", 8, 0.0, math.sqrt(3.0))),
        "modes in five": mixture((0.35, 0.65), five, (1.0, 1.0)),
        "spike and slab": mixture((0.3, 0.7), ((1.0, 1.0), (0.0, 0.0)), (0.1, 3.0)),
    }


CASES = _cases()

ENGINES: dict[str, Engine] = {
    "nuts": NUTS(chains=4, warmup=300, draws=400, tier="traced"),
    "nuts, 2 chains": NUTS(chains=2, warmup=60, draws=60, tier="traced"),
    "hmc, long": HMC(chains=6, warmup=200, draws=300, steps=24, tier="traced"),
    "hmc, step 0.02": HMC(chains=4, warmup=100, draws=200, steps=6, step_size=0.02, tier="traced"),
    "mala": MALA(chains=4, warmup=300, draws=300, thin=5, tier="traced"),
    "ula, step 0.7": ULA(chains=4, warmup=300, draws=500, thin=5, step_size=0.7, tier="traced"),
    "mh": MH(chains=8, warmup=800, draws=400, thin=20, tier="traced"),
    "mh, short": MH(chains=3, warmup=200, draws=300, thin=1, tier="traced"),
    "mean-field": SVI(steps=3000, draws=1500, tier="traced"),
    "low-rank": SVI(guide="low-rank", steps=3000, draws=1500, tier="traced"),
    "laplace": SVI(guide="laplace", draws=1500, tier="traced"),
    "importance": ImportanceSampling(proposals=3000, draws=1500),
    "smc": SMC(particles=400, runs=3, kernel=HMC(steps=4)),
}

SETTINGS = [
    (case, engine)
    for row, case in enumerate(CASES)
    for column, engine in enumerate(ENGINES)
    if (row + column) % 2 == 0
]
"""Every other pair of names, as on a chessboard."""
