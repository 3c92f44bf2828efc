"""Geweke's joint test: right kernels pass, broken ones fail."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from inference import HMC, MH, NUTS, SVI, Gibbs, geweke, hmc, mh
from ppl_models import EngineError, ModelError
from tests.programs import FEW, improper
from tests.statistics import LEVEL
from tests.targets import NormalMeanVariance
from tests.test_sabotage import Sabotage

Y = torch.linspace(-1.0, 2.0, 6, dtype=torch.float64)


def heavy(y, labels):
    """A prior without moments, a simplex, a discrete site that is summed out."""
    scale = pyro.sample("scale", dist.HalfCauchy(1.0))
    p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("rows", len(y)):
        z = pyro.sample("z", dist.Bernoulli(0.3))
        pyro.sample("y", dist.Normal(2 * z, 1 + scale), obs=y)
        pyro.sample("labels", dist.Categorical(p), obs=labels)


HEAVY = (heavy, {"y": Y, "labels": torch.tensor([0, 1, 2, 2, 1, 0])})
NORMAL = (NormalMeanVariance(), {"y": Y})
CASES = {
    "nuts": (*NORMAL, NUTS(warmup=60, max_depth=5)),
    "hmc": (*NORMAL, HMC(warmup=60, steps=4)),
    "mh": (*NORMAL, MH(warmup=60)),
    "gibbs": (*NORMAL, Gibbs()),
    "heavy": (*HEAVY, HMC(warmup=60, steps=4)),
}


def run(name):
    program, data, engine = CASES[name]
    chains, steps = {"gibbs": (40, 15), "nuts": (100, 30)}.get(name, (500, 40))
    return geweke(program, data, engine, chains=chains, steps=steps, level=LEVEL)


@pytest.mark.parametrize("name", CASES)
def test_right_kernels_pass(name):
    result = run(name)
    assert result.passed, result.table
    assert "log_likelihood" in result.table.index


BROKEN = {
    "hmc leaves the kinetic energy out of its acceptance": (
        "hmc",
        Sabotage(
            hmc,
            "energy",
            "0.5 * momentum.square().sum(-1, dtype=log_density.dtype) - log_density",
            "-log_density",
        ),
    ),
    "metropolis accepts at half the log ratio": (
        "mh",
        Sabotage(mh, "metropolis", "uniform.log() < log_ratio", "uniform.log() < log_ratio / 2"),
    ),
    "a conditional forgets the prior of the variance": (
        "gibbs",
        Sabotage(NormalMeanVariance, "conditionals", "2 * self.A + n + 1", "n + 1"),
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_kernels_fail(name, monkeypatch):
    place, sabotage = BROKEN[name]
    sabotage.commit(monkeypatch)
    assert not run(place).passed


def test_what_has_no_kernel_or_prior_is_refused():
    with pytest.raises(EngineError, match="no kernel"):
        geweke(*NORMAL, SVI())
    with pytest.raises(EngineError, match="chains=1"):
        geweke(*NORMAL, MH(), chains=1)
    with pytest.raises(ModelError, match="improper"):
        geweke(improper, {"y": torch.as_tensor(FEW)}, MH())
