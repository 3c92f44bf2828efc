"""Same seed, same draws; a chain depends on its own stream alone; nothing leaks out of a fit."""

import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from inference import (
    EM,
    HMC,
    MALA,
    MAMS,
    MH,
    NUTS,
    SVI,
    ChEES,
    Gibbs,
    ImportanceSampling,
    Pathfinder,
    fit,
)
from ppl_models import LogisticRegression, ORing

pytestmark = pytest.mark.filterwarnings("ignore::inference.InferenceWarning")

TRACED = {"tier": "traced"}
SHORT = {"chains": 3, "warmup": 40, "draws": 40}


def proposal(x, y, trials=None, centre=None, spread=None, features=None):
    pyro.sample("beta", dist.Normal(torch.zeros(1), 1.0).to_event(1))
    pyro.sample("alpha", dist.Normal(0.0, 3.0))


DATA = {"x": [-1.0, 0.5, 2.0, 1.0, -0.3, 0.2], "y": [0, 1, 1, 0, 0, 1]}
ENGINES = {
    "nuts": NUTS(**SHORT, **TRACED),
    "hmc": HMC(**SHORT, **TRACED),
    "chees": ChEES(**SHORT, **TRACED),
    "mams": MAMS(**SHORT, **TRACED),
    "mh": MH(**SHORT, **TRACED),
    "mala": MALA(**SHORT, **TRACED),
    "independence": MH(**SHORT, **TRACED, proposal=proposal),
    "gibbs": Gibbs(**SHORT),
    "em": EM(),
    "svi": SVI(steps=200, draws=40, **TRACED),
    "svi with minibatches": SVI(steps=100, draws=40, batch_size=3),
    "laplace": SVI(guide="laplace", draws=40, **TRACED),
    "importance": ImportanceSampling(proposals=200, draws=40),
    "pathfinder": Pathfinder(paths=2, proposals=200, draws=40, **TRACED),
}


@pytest.mark.parametrize("name", ENGINES)
def test_same_seed_gives_the_same_draws_whatever_the_global_random_state(name):
    torch.manual_seed(1)
    first = fit(LogisticRegression(), DATA, ENGINES[name], seed=4).posterior.draws
    torch.manual_seed(2)
    second = fit(LogisticRegression(), DATA, ENGINES[name], seed=4).posterior.draws
    for site, value in first.items():
        assert torch.equal(value, second[site]), site


@pytest.mark.parametrize("name", [n for n in ENGINES if n not in ("em", "laplace")])
def test_other_seeds_and_other_chains_give_other_draws(name):
    first = fit(LogisticRegression(), DATA, ENGINES[name], seed=0).posterior.draws["alpha"]
    second = fit(LogisticRegression(), DATA, ENGINES[name], seed=1).posterior.draws["alpha"]
    rows = torch.cat([first, second])
    for i in range(len(rows)):
        for j in range(i):
            assert not torch.equal(rows[i], rows[j])


FROZEN = {
    "nuts": lambda c: NUTS(chains=c, warmup=0, draws=70, step_size=0.3, **TRACED),
    "nuts, dense": lambda c: NUTS(chains=c, warmup=0, draws=70, step_size=0.3, mass="dense"),
    "hmc": lambda c: HMC(chains=c, warmup=0, draws=70, step_size=0.2, **TRACED),
    "mh": lambda c: MH(chains=c, warmup=0, draws=70, **TRACED),
    "independence": lambda c: MH(chains=c, warmup=0, draws=70, proposal=proposal, **TRACED),
    "gibbs": lambda c: Gibbs(chains=c, warmup=0, draws=70),
}


@pytest.mark.parametrize("name", FROZEN)
def test_without_adaptation_a_chain_does_not_depend_on_those_beside_it(name):
    alone = fit(LogisticRegression(), DATA, FROZEN[name](1), seed=3).posterior.draws
    among = fit(LogisticRegression(), DATA, FROZEN[name](5), seed=3).posterior.draws
    for site, value in alone.items():
        torch.testing.assert_close(value[0], among[site][0], rtol=1e-9, atol=1e-9)


def validation():
    """Whether torch's and Pyro's distributions, handlers and inference check their arguments."""
    return (
        torch.distributions.Distribution._validate_args,
        dist.is_validation_enabled(),
        pyro.poutine.util.is_validation_enabled(),
        pyro.infer.util.is_validation_enabled(),
    )


@pytest.mark.parametrize("name", ["nuts", "svi", "em", "independence"])
def test_fit_leaves_the_world_as_it_was(name):
    torch.manual_seed(0)
    pyro.get_param_store().clear()
    pyro.param("mine", torch.ones(1))
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    others = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    flags = validation()
    fit(LogisticRegression(), DATA, ENGINES[name])
    assert torch.equal(state, torch.get_rng_state())
    assert others == (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
    assert torch.get_num_threads() == threads
    assert torch.get_default_dtype() == torch.float32
    assert validation() == flags
    assert list(pyro.get_param_store().keys()) == ["mine"]
    pyro.get_param_store().clear()


def test_fit_leaves_the_world_as_it_was_after_an_error():
    threads = torch.get_num_threads()

    def broken(y):
        raise RuntimeError("no")

    with pytest.raises(ValueError, match="no"):
        fit(broken, {"y": [1.0]})
    assert torch.get_default_dtype() == torch.float32
    assert torch.get_num_threads() == threads


def test_model_and_data_are_left_as_they_were():
    model, x = ORing(), torch.tensor([60.0, 70.0, 75.0])
    data = {"temperature": x, "incident": [1, 1, 0]}
    fit(model, data, NUTS(warmup=20, draws=20, **TRACED))
    assert not model.__dict__.get("_forward_hooks")
    assert torch.equal(x, torch.tensor([60.0, 70.0, 75.0]))
    assert list(data) == ["temperature", "incident"]


@pytest.mark.parametrize("engine", [NUTS(**SHORT), HMC(**SHORT), MH(**SHORT)])
def test_gpu_agrees_with_the_cpu(cuda, engine):
    there = fit(LogisticRegression(), DATA, engine, device=cuda).summary()
    here = fit(LogisticRegression(), DATA, engine, device="cpu").summary()
    z = (there["mean"] - here["mean"]) / (there["mcse_mean"] ** 2 + here["mcse_mean"] ** 2) ** 0.5
    assert (z.abs() < 4.5).all()
