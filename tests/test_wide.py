"""Single precision on a GPU, whose log densities are added up in double."""

import importlib

import pyro
import pyro.distributions as dist
import pytest
import torch

from inference import EM, HMC, MALA, MAMS, NUTS, ChEES, fit
from inference.engine import Problem
from inference.fit import bind
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
    ],
    ids=["NUTS", "warm NUTS", "HMC", "ChEES", "MAMS", "MALA"],
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
    check(posterior.draws, PAIR, family=6 * PAIR.moments)


@pytest.mark.parametrize(
    ("engine", "expected"),
    [(NUTS(), torch.float32), (ChEES(), torch.float32), (EM(), torch.float64)],
    ids=["NUTS", "ChEES", "EM"],
)
def test_samplers_by_gradients_are_single_on_a_gpu(engine, expected, monkeypatch):
    module, placed = importlib.import_module("inference.fit"), []

    def place(fields, device, dtype):
        placed.append((device.type, dtype))
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_place", place)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for device in ("cuda", "cpu"):
        with pytest.raises(KeyboardInterrupt):
            fit(pair, {}, engine, device=device)
    assert placed == [("cuda", expected), ("cpu", torch.float64)]
