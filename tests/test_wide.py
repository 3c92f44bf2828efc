"""Single precision on a GPU, whose log densities are added up in double."""

import importlib

import pyro
import pyro.distributions as dist
import pytest
import torch

from inference import EM, HMC, MALA, MAMS, MH, NUTS, ULA, ChEES, fit, probe
from inference.engine import Problem
from inference.fit import bind
from inference.hmc import energy
from tests.statistics import check
from tests.targets import Known

pytestmark = pytest.mark.filterwarnings("ignore::inference.InferenceWarning")


def pair():
    covariance = torch.tensor([[1.0, 0.6], [0.6, 2.0]])
    pyro.sample("x", dist.MultivariateNormal(torch.zeros(2), covariance))


PAIR = Known(
    pair,
    mean={"x[0]": 0.0, "x[1]": 0.0},
    sd={"x[0]": 1.0, "x[1]": 2.0**0.5},
    covariance={("x[0]", "x[1]"): 0.6},
)


def scales():
    with pyro.plate("many", 100_000):
        pyro.sample("s", dist.HalfNormal(1.0))


def signs(y):
    x = pyro.sample("x", dist.Normal(0.0, 10.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(x * x, 10.0), obs=y * y)


def labels():
    with pyro.plate("rows", 2):
        label = pyro.sample("label", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(label, 1.0))


def rows(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def test_a_million_terms_are_added_up_in_double():
    y = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0))
    problem = bind(rows, {"y": y}, dtype="float32")
    exact = bind(rows, {"y": y}, dtype="float64").target("traced", 1)
    x = torch.tensor([[0.0], [1e-3]])
    value, slope = problem.target("traced", 1, wide=True).log_density_and_grad(x)
    narrow, _ = problem.target("traced", 1).log_density_and_grad(x)
    right, gradient = exact.log_density_and_grad(x.double())
    assert (value.dtype, slope.dtype, narrow.dtype) == (torch.float64, *2 * [torch.float32])
    assert float((value - right).diff().abs()) < 2e-3
    assert float((narrow - right).diff().abs()) > 2e-2  # what it is for
    torch.testing.assert_close(slope.double(), gradient, rtol=1e-4, atol=0.1)


@pytest.mark.parametrize(
    "engine",
    [
        NUTS(chains=64, warmup=300, draws=200),
        NUTS(chains=64, warmup=300, draws=200, starts="pathfinder"),
        HMC(chains=64, warmup=300, draws=200),
        ChEES(chains=64, warmup=300, draws=200),
        MAMS(chains=64, warmup=300, draws=200),
        MALA(chains=64, warmup=300, draws=200),
        MH(chains=64, warmup=300, draws=1000),
    ],
    ids=["NUTS", "warm NUTS", "HMC", "ChEES", "MAMS", "MALA", "MH"],
)
def test_samplers_draw_from_such_a_density(engine, monkeypatch):
    """On a CPU, by the code that a GPU runs."""
    own = Problem.target
    monkeypatch.setattr(Problem, "target", lambda *a, **k: own(*a, **{**k, "wide": True}))
    monkeypatch.setattr("inference.nuts_cpu.usable", lambda device: False)
    engine = type(engine)(**{**engine.settings(), "tier": "traced"})
    posterior = fit(pair, {}, engine, dtype="float32", seed=3).posterior
    assert posterior.draws["x"].dtype == torch.float32
    assert posterior.stats["lp"].dtype == torch.float64
    check(posterior.draws, PAIR, family=7 * PAIR.moments)


def test_jacobians_and_momenta_are_added_up_in_double():
    problem = bind(scales, {}, dtype="float32")
    x = torch.full((2, problem.program.dim), -3.0)
    x[1, 0] += 1e-3
    value, _ = problem.target("traced", 1, wide=True).log_density_and_grad(x)
    momentum = 30 * torch.ones_like(x)
    momentum[1, 0] += 1e-2
    change = energy(value, momentum).diff()
    exact = bind(scales, {}, dtype="float64").target("traced", 1)
    right = energy(exact.log_density_and_grad(x.double())[0], momentum.double()).diff()
    assert float((change - right).abs()) < 1e-4


def test_a_search_in_float32_finds_the_mode_that_no_draw_has_seen():
    y = torch.cat([torch.full((20_000,), -3.0), torch.full((20_000,), 3.0)])
    problem = bind(signs, {"y": y}, dtype="float32")
    generator = torch.Generator().manual_seed(1)
    draws = 3 + 0.005 * torch.randn(4, 500, 1, generator=generator)
    found = probe.searched(problem, problem.target("traced", 0, wide=True), draws)
    assert "unseen_modes" in {finding.name for finding in found}
    both = torch.cat([draws[:2], -draws[2:]])
    found = probe.searched(problem, problem.target("traced", 0, wide=True), both)
    assert "unseen_modes" not in {finding.name for finding in found}


@pytest.mark.parametrize(
    ("program", "engine", "expected"),
    [
        (pair, NUTS(), torch.float32),
        (pair, ChEES(), torch.float32),
        (pair, ULA(), torch.float64),
        (pair, EM(), torch.float64),
        (labels, NUTS(), torch.float64),
    ],
    ids=["NUTS", "ChEES", "ULA", "EM", "NUTS of discrete sites"],
)
def test_samplers_by_gradients_are_single_on_a_gpu(program, engine, expected, monkeypatch):
    module, placed = importlib.import_module("inference.fit"), []
    own = module._place

    def place(fields, device, dtype):
        if device.type == "cuda":
            placed.append(dtype)
            raise KeyboardInterrupt
        return own(fields, device, dtype)

    monkeypatch.setattr(module, "_place", place)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(KeyboardInterrupt):
        fit(program, {}, engine, device="cuda")
    with pytest.raises(KeyboardInterrupt):
        fit(program, {}, engine, device="cuda", dtype="float64")
    assert placed == [expected, torch.float64]
