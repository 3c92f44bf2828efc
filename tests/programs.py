"""Small Pyro programs of every shape that a user's may have, with their data."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from inference.program import Program
from ppl_models import HasEM, HasGuide, HasRows, Noise
from ppl_models.base import Data, Objective, Params

NUMBERS = np.random.default_rng(7)
X, NOISE = NUMBERS.normal(size=12), NUMBERS.normal(size=12)
Y = 0.5 + 1.5 * X + 0.7 * NOISE
FEW = np.array([-1.3, 0.4, 1.1, 2.6])
TABLE = np.array([[-1.3, 0.4, 1.1], [2.6, 1.9, 3.0]])


class Case(NamedTuple):
    """A program and the data that it takes."""

    program: Callable[..., Any]
    data: dict[str, Any]

    def tensors(self) -> dict[str, Tensor]:
        return {
            name: torch.as_tensor(value, dtype=torch.get_default_dtype())
            for name, value in self.data.items()
        }

    def bound(self) -> Program:
        return Program(self.program, self.tensors())


# -- continuous sites ------------------------------------------------------------------------------


def line(x, y):
    """A regression line: what most users start with."""
    a = pyro.sample("a", dist.Normal(0.0, 5.0))
    b = pyro.sample("b", dist.Normal(0.0, 5.0))
    s = pyro.sample("s", dist.HalfNormal(2.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(a + b * x, s), obs=y)


def schools(y):
    """Groups in a plate, non-centred, with the groups' own effects as deterministic sites."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(2.0))
    with pyro.plate("groups", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * z)
        pyro.sample("y", dist.Normal(theta, 1.0), obs=y)


def shapes(y):
    """Sites of every shape of value."""
    v = pyro.sample("vector", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    m = pyro.sample("matrix", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
    w = pyro.sample("simplex", dist.Dirichlet(torch.ones(3)))
    k = pyro.sample("cholesky", dist.LKJCholesky(3, 2.0))
    with pyro.plate("blocks", 2):
        pyro.sample("positive", dist.Gamma(2.0, 1.0))
    mean = (m @ k @ w).sum() + v.sum()
    pyro.deterministic("mean", mean)
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def bounded_by_another(y):
    """A support that depends on the value of another site."""
    top = pyro.sample("top", dist.Gamma(3.0, 1.0))
    low = pyro.sample("low", dist.Uniform(-top, top))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(low, 1.0), obs=y)


def improper(y):
    """A flat prior: there is nothing to draw from."""
    m = pyro.sample("m", dist.ImproperUniform(constraints.real, (), ()))
    s = pyro.sample("s", dist.Exponential(1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(m, s), obs=y)


def with_factor(y):
    """A term of the log density beside the sites, and no plate."""
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    pyro.factor("penalty", -m.square())
    pyro.sample("y", dist.StudentT(4.0, m, 1.0).expand([len(y)]).to_event(1), obs=y)


CONTINUOUS = {
    "line": Case(line, {"x": X, "y": Y}),
    "schools": Case(schools, {"y": FEW}),
    "shapes": Case(shapes, {"y": FEW}),
    "bounded_by_another": Case(bounded_by_another, {"y": FEW}),
    "improper": Case(improper, {"y": FEW}),
    "with_factor": Case(with_factor, {"y": FEW}),
}


# -- discrete sites, to be summed out --------------------------------------------------------------


def mixture(y):
    """One component per row."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("components", 3):
        mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    with pyro.plate("rows", len(y)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)


def outliers(y):
    """A Bernoulli site per row."""
    m = pyro.sample("m", dist.Normal(0.0, 2.0))
    share = pyro.sample("share", dist.Beta(2.0, 5.0))
    with pyro.plate("rows", len(y)):
        out = pyro.sample("out", dist.Bernoulli(share))
        pyro.sample("y", dist.Normal(m, 1 + 4 * out), obs=y)


def two_in_a_row(y):
    """Two discrete sites per row, one given the other."""
    p = pyro.sample("p", dist.Beta(2.0, 2.0))
    m = pyro.sample("m", dist.Normal(torch.zeros(2, 2), 2.0).to_event(2))
    with pyro.plate("rows", len(y)):
        a = pyro.sample("a", dist.Bernoulli(p))
        b = pyro.sample("b", dist.Bernoulli(0.3 + 0.5 * a))
        pyro.sample("y", dist.Normal(m[a.long(), b.long()], 1.0), obs=y)


def hidden_markov(y):
    """A chain of states in a Python loop."""
    move = pyro.sample("move", dist.Dirichlet(torch.ones(2, 2)).to_event(1))
    m = pyro.sample("m", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    z = 0
    for t in pyro.markov(range(len(y))):
        z = pyro.sample(f"z{t}", dist.Categorical(move[z]))
        pyro.sample(f"y{t}", dist.Normal(m[z], 1.0), obs=y[t])


def shared(y):
    """A discrete site common to all rows, which have discrete sites that depend on it."""
    m = pyro.sample("m", dist.Normal(0.0, 2.0))
    common = pyro.sample("common", dist.Bernoulli(0.4))
    with pyro.plate("rows", len(y)):
        own = pyro.sample("own", dist.Bernoulli(0.2 + 0.6 * common))
        pyro.sample("y", dist.Normal(m + 2 * own, 1.0), obs=y)


def shared_afterwards(y):
    """The common site comes after those of the rows, and both meet in the observations."""
    m = pyro.sample("m", dist.Normal(0.0, 2.0))
    rows = pyro.plate("rows", len(y))
    with rows:
        own = pyro.sample("own", dist.Bernoulli(0.5))
    common = pyro.sample("common", dist.Bernoulli(0.4))
    with rows:
        pyro.sample("y", dist.Normal(m + 2 * (own - common).abs(), 1.0), obs=y)


def groups(y):
    """Nested plates, a discrete site in each."""
    m = pyro.sample("m", dist.Normal(torch.zeros(2, 2), 2.0).to_event(2))
    with pyro.plate("groups", y.shape[0], dim=-2):
        a = pyro.sample("a", dist.Categorical(torch.tensor([0.3, 0.7])))
        with pyro.plate("rows", y.shape[1], dim=-1):
            b = pyro.sample("b", dist.Categorical(torch.tensor([0.6, 0.4])))
            pyro.sample("y", dist.Normal(m[a, b], 1.0), obs=y)


def beside_a_plate(y):
    """A continuous site in a plate further out than those of the observations."""
    with pyro.plate("columns", 2, dim=-2):
        u = pyro.sample("u", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y), dim=-1):
        b = pyro.sample("b", dist.Categorical(torch.tensor([0.6, 0.4])))
        pyro.sample("y", dist.Normal(u.sum() + b, 1.0), obs=y)


def discrete_then_continuous(y):
    """A continuous site per row, given a discrete one."""
    m = pyro.sample("m", dist.Normal(0.0, 2.0))
    with pyro.plate("rows", len(y)):
        b = pyro.sample("b", dist.Categorical(torch.tensor([0.6, 0.4])))
        t = pyro.sample("t", dist.Normal(m + 2.0 * b, 1.0))
        pyro.sample("y", dist.Normal(t + b, 1.0), obs=y)


def one_hot(y):
    """A discrete site whose values are vectors."""
    m = pyro.sample("m", dist.Normal(torch.zeros(3), 2.0).to_event(1))
    with pyro.plate("rows", len(y)):
        z = pyro.sample("z", dist.OneHotCategorical(torch.tensor([0.2, 0.3, 0.5])))
        pyro.sample("y", dist.Normal((z * m).sum(-1), 1.0), obs=y)


def counts(y):
    """A discrete site that the tracer cannot enumerate: the program runs eagerly."""
    m = pyro.sample("m", dist.Normal(0.0, 2.0))
    with pyro.plate("rows", len(y)):
        n = pyro.sample("n", dist.Binomial(2, 0.4))
        pyro.sample("y", dist.Normal(m + n, 1.0), obs=y)


ENUMERATED = {
    function.__name__: Case(function, {"y": TABLE if function is groups else FEW})
    for function in (
        mixture,
        outliers,
        two_in_a_row,
        hidden_markov,
        shared,
        shared_afterwards,
        groups,
        beside_a_plate,
        discrete_then_continuous,
        one_hot,
        counts,
    )
}


class Assignment(NamedTuple):
    """One value of every discrete site, and the log joint density of the program with it."""

    indices: dict[str, Tensor]  # into each site's support, of the site's batch shape
    log_joint: Tensor


def assignments(case: Case, values: dict[str, Tensor]) -> Iterator[Assignment]:
    """Every joint assignment of the discrete sites, by running the program with each."""
    data = case.tensors()
    sites = case.bound().discrete
    lengths = [len(site.support) for site in sites for _ in range(site.batch.numel())]
    for flat in itertools.product(*map(range, lengths)):
        parts = torch.tensor(flat).split([site.batch.numel() for site in sites])
        indices = {s.name: p.reshape(s.batch) for s, p in zip(sites, parts, strict=True)}
        held = {site.name: site.support[indices[site.name]] for site in sites}
        with pyro.validation_enabled(False):
            conditioned = poutine.condition(case.program, {**values, **held})
            trace = poutine.trace(conditioned).get_trace(**data)
        yield Assignment(indices, torch.as_tensor(trace.log_prob_sum()))


# -- models with capabilities ----------------------------------------------------------------------


class Means(HasEM):
    """A mixture of unit normals with equal weights: means in any order, hence many modes."""

    def __init__(self, components: int = 3) -> None:
        super().__init__()
        self.components = components

    def forward(self, y: Tensor) -> None:  # type: ignore[override]
        with pyro.plate("components", self.components):
            mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        pyro.deterministic("first", mu[..., 0])
        with pyro.plate("rows", len(y)):
            z = pyro.sample("z", dist.Categorical(torch.ones(self.components)))
            pyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)

    def canonical(self, draws: Params) -> Params:
        """Means in ascending order."""
        mu, order = draws["mu"].sort(-1)
        if "z" not in draws:
            return {**draws, "mu": mu}
        place = order.argsort(-1)[..., None, :].expand(*draws["z"].shape, -1)
        z = place.gather(-1, draws["z"][..., None].long())[..., 0]
        return {**draws, "mu": mu, "z": z}

    def start(self, data: Data, restarts: int, noise: Noise) -> Params:
        return {"mu": 10 * noise.normal(self.components)}

    def e_step(self, data: Data, params: Params) -> Tensor:
        """Responsibilities: (R, N, K)."""
        return (-0.5 * (data["y"][:, None] - params["mu"][:, None]) ** 2).softmax(-1)

    def m_step(self, data: Data, expectations: Tensor, objective: Objective) -> Params:
        precision = 0.01 if objective == "joint" else 0.0
        total = expectations.sum(1) + precision
        return {"mu": (expectations * data["y"][:, None]).sum(1) / total}


def encode(network: nn.Module, y: Tensor) -> None:
    """The guide of ``Factors`` by a network from a row to mean and log sd."""
    loc, log_scale = network(y).chunk(2, -1)
    with pyro.plate("rows", len(y)):
        pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


class Factors(HasGuide):
    """One factor per row, with a plain decoder and a plain encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Linear(1, 3)
        self.encoder = nn.Linear(3, 2)

    def forward(self, y: Tensor) -> None:  # type: ignore[override]
        with pyro.plate("rows", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(y), 1), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(self.decoder(z), 0.5).to_event(1), obs=y)

    def guide(self, y: Tensor) -> None:  # type: ignore[override]
        encode(self.encoder, y)


class Linear(HasRows):
    """z ~ N(0, I), x = W z + b + noise of sd 1/2: log p(x) and p(z | x) are normal."""

    def __init__(self, latent: int = 1, observed: int = 3) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.latent = latent
        self.decoder = nn.Linear(latent, observed)
        self.encoder = nn.Linear(observed, 2 * latent)
        self.double()

    def forward(self, x: Tensor) -> None:  # type: ignore[override]
        with pyro.plate("rows", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.latent), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 0.5).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:  # type: ignore[override]
        loc, log_scale = self.encoder(x).chunk(2, -1)
        with pyro.plate("rows", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    def exact(self, x: Tensor) -> Tensor:
        """Log p(x): (N,)."""
        weight = self.decoder.weight
        covariance = weight @ weight.T + 0.25 * torch.eye(len(weight), dtype=weight.dtype)
        return MultivariateNormal(self.decoder.bias, covariance).log_prob(x)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Means (N, latent) of p(z | x), and the covariance of all."""
        weight = self.decoder.weight
        precision = torch.eye(self.latent, dtype=weight.dtype) + weight.T @ weight / 0.25
        covariance = precision.inverse()
        return (x - self.decoder.bias) @ weight / 0.25 @ covariance, covariance

    def simulated(self, rows: int, seed: int = 0) -> Tensor:
        """Rows drawn from the model: (N, observed)."""
        generator = torch.Generator().manual_seed(seed)
        z, noise = (
            torch.randn(rows, size, generator=generator, dtype=torch.float64)
            for size in (self.latent, self.decoder.out_features)
        )
        return self.decoder(z).detach() + 0.5 * noise
