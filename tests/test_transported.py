"""Chains on the base space of a fitted map have the moments of a banana and of a funnel."""

from dataclasses import replace
from functools import cache

import pyro
import pyro.distributions as dist
import pytest
import torch

from inference import (
    HMC,
    NUTS,
    SVI,
    Gibbs,
    Transported,
    Until,
    fit,
    guides,
    mixing,
    target,
    transported,
)
from inference.guides import Frame
from ppl_models import EngineError
from tests.statistics import check, draws, error, quiet, surprises
from tests.targets import Known
from tests.test_sabotage import Sabotage

KERNEL = NUTS(chains=64, warmup=100, draws=100, tier="traced")
MAP = SVI(guide="realnvp", steps=1000, tier="traced")


def banana():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Normal(a.square(), 0.3))
    pyro.deterministic("off", (b - a.square()) / 0.3)


def funnel():
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    x = pyro.sample("x", dist.Normal(0.0, (v / 2).exp()).expand([2]).to_event(1))
    pyro.deterministic("w", x * (-v / 2).exp(), event_dim=1)  # standard normal: moments exist


KNOWN = {
    "banana": Known(
        banana,
        mean={"a": 0.0, "b": 1.0, "off": 0.0},
        sd={"a": 1.0, "off": 1.0},
        covariance={("a", "off"): 0.0},
    ),
    "funnel": Known(
        funnel,
        mean={"v": 0.0, "w[0]": 0.0, "w[1]": 0.0},
        sd={"v": 3.0, "w[0]": 1.0, "w[1]": 1.0},
        covariance={("v", "w[0]"): 0.0, ("w[0]", "w[1]"): 0.0},
    ),
}
FAMILY = sum(known.moments for known in KNOWN.values())


@cache
def chains(name, engine):
    return quiet(KNOWN[name].program, None, engine).posterior


@pytest.mark.parametrize("name", KNOWN)
def test_draws_have_the_moments_of_the_posterior(name):
    check(chains(name, Transported(KERNEL, MAP)).draws, KNOWN[name], FAMILY)


def test_moments_expose_a_forgotten_log_determinant(monkeypatch):
    Sabotage(transported, "pulled_back", "function(x) + log_det", "function(x)").commit(monkeypatch)
    quick = Transported(KERNEL, replace(MAP, steps=300))  # of a banana it hardly varies
    assert surprises(draws(KNOWN["funnel"], quick), KNOWN["funnel"], FAMILY)


@pytest.mark.parametrize(("name", "scalar"), [("banana", "a"), ("funnel", "v")])
def test_the_same_chains_fail_without_the_map_at_more_gradients(name, scalar):
    mapped, plain = chains(name, Transported(KERNEL, MAP)), chains(name, KERNEL)
    steps = [found.stats["n_steps"].double().mean() for found in (mapped, plain)]
    assert steps[1] > 1.5 * steps[0]
    values = [found.draws[scalar].numpy() for found in (mapped, plain)]
    assert mixing.r_hat(values[0]) < 1.02
    assert mixing.r_hat(values[1]) > 1.05
    errors = [error(v) for v in values]
    assert errors[1] > 2 * errors[0]


@pytest.mark.parametrize("name", ["mean-field", "full-rank", "flow", "realnvp"])
def test_the_pulled_back_density_is_exact_for_every_map(name):
    """Against the Jacobian by automatic differentiation, at random weights."""
    numbers = torch.Generator().manual_seed(0)
    lower = torch.eye(3).double() + 0.3 * torch.ones(3, 3).double().tril(-1)
    frame = Frame(torch.arange(3.0).double(), torch.full((3,), 0.7).double(), lower)
    transport = guides.family(name, frame)
    with torch.no_grad():
        for parameter in transport.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=numbers).to(parameter))
    density = transported.pulled_back(lambda x: -x.square().sum() - x[0] ** 4, transport)
    for z in torch.randn(4, 3, generator=numbers).double():
        x = transport(z[None])[0][0]
        jacobian = torch.autograd.functional.jacobian(lambda v: transport(v[None])[0][0], z)
        exact = -x.square().sum() - x[0] ** 4 + torch.linalg.slogdet(jacobian).logabsdet
        torch.testing.assert_close(density(z), exact, rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore::inference.InferenceWarning")
def test_draws_densities_and_stop_rules_are_those_of_the_posterior():
    kernel = HMC(warmup=50, draws=400, steps=4, tier="traced")
    engine = Transported(kernel, SVI(guide="full-rank", steps=100, tier="traced"))
    found = quiet(banana, None, engine).posterior
    exact = target(banana).log_density(found.unconstrained.flatten(0, 1))
    torch.testing.assert_close(found.stats["lp"].flatten(), exact)
    torch.testing.assert_close(found.draws["b"], found.unconstrained[..., 1])
    assert found.attributes["map_steps"] == 100
    stopped = fit(banana, None, engine, until=Until(mcse=0.5), progress=False)
    assert stopped.posterior.draws["a"].shape[1] < 400


def test_what_is_no_map_or_no_kernel_is_refused():
    with pytest.raises(EngineError, match=r"must be invertible.*'realnvp'"):
        Transported(NUTS(), "low-rank")  # type: ignore[arg-type]
    with pytest.raises(EngineError, match="must be invertible"):
        Transported(NUTS(), SVI())
    with pytest.raises(EngineError, match="give a kernel"):
        Transported(Gibbs())  # type: ignore[arg-type]
