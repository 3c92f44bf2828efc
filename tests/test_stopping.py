"""Runs that end before their limit: their time is over, or they are precise enough."""

import time
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch

from inference import (
    CAVI,
    EM,
    HMC,
    MH,
    NUTS,
    SMC,
    SVI,
    ChEES,
    Gibbs,
    ImportanceSampling,
    Thermodynamic,
    Until,
    fit,
    mixing,
)
from inference.stopping import Clock, after
from ppl_models import GaussianMixture, LogisticRegression
from ppl_models.errors import EngineError

pytestmark = pytest.mark.filterwarnings("ignore::inference.InferenceWarning")

DATA = {"x": [-1.0, 0.5, 2.0, 1.0, -0.3, 0.2], "y": [0, 1, 1, 0, 0, 1]}
POINTS = {"x": torch.tensor([[0.0, 0.1], [0.2, -0.1], [4.0, 4.1], [4.2, 3.9], [0.1, 0.3]])}
TRACED = {"tier": "traced"}


def normal():
    pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))


SAMPLERS = {
    "nuts": NUTS(warmup=20, draws=10**7, **TRACED),
    "hmc": HMC(warmup=20, draws=10**7, **TRACED),
    "chees": ChEES(chains=4, warmup=5, draws=10**7, **TRACED),
    "mh": MH(warmup=20, draws=10**7, **TRACED),
    "gibbs": Gibbs(warmup=5, draws=10**7),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_chains_stop_when_their_time_is_over(name):
    # what numba compiles at a first run is not in the time
    fit(LogisticRegression(), DATA, replace(SAMPLERS[name], draws=1))
    begin = time.perf_counter()
    fitted = fit(LogisticRegression(), DATA, SAMPLERS[name], until=Until(seconds=2.5))
    assert time.perf_counter() - begin < 60  # and not after days
    number = fitted.posterior.draws["alpha"].shape[1]
    found = [f for f in fitted.findings if f.name == "seconds"]
    assert [(f.severity, f.figure) for f in found] == [("warning", number)]
    assert f"with {number} of 10000000 draws" in found[0].text


ITERATIONS = {
    "em": (LogisticRegression(), DATA, EM()),
    "cavi": (GaussianMixture(2), POINTS, CAVI()),
    "cavi, minibatches": (GaussianMixture(2), POINTS, CAVI(batch_size=3)),
    "importance": (LogisticRegression(), DATA, ImportanceSampling(proposals=10_000)),
}


@pytest.mark.parametrize("name", ITERATIONS)
def test_iterations_stop_after_a_step_when_there_is_no_time(name):
    fitted = fit(*ITERATIONS[name], until=Until(seconds=1e-9))
    assert [f.severity for f in fitted.findings if f.name == "seconds"] == ["warning"]
    assert not [f for f in fitted.findings if f.name == "max_steps"]


def test_svi_stops_when_its_time_is_over():
    engine = SVI(steps=10**8, plateau=False, draws=100, **TRACED)
    fitted = fit(LogisticRegression(), DATA, engine, until=Until(seconds=3.0))
    assert [f.severity for f in fitted.findings if f.name == "seconds"] == ["warning"]
    assert 0 < fitted.posterior.attributes["steps"] < 10**8


NOTHING = {
    "nuts": NUTS(warmup=10**7, **TRACED),
    "gibbs": Gibbs(warmup=10**7),
    "laplace": SVI(guide="laplace"),
    "smc": SMC(),
    "thermodynamic": Thermodynamic(),
}


@pytest.mark.parametrize("name", NOTHING)
def test_an_engine_with_nothing_to_return_says_so(name):
    with pytest.raises(EngineError, match=r"seconds: 0.2 s were over before .* give more seconds"):
        fit(LogisticRegression(), DATA, NOTHING[name], until=Until(seconds=0.2))


@pytest.mark.parametrize("engine", [NUTS(draws=10**6, **TRACED), Gibbs(draws=10**6)])
def test_chains_stop_at_the_first_look_that_is_precise_enough(engine):
    fitted = fit(LogisticRegression(), DATA, engine, until=Until(ess=700))
    again = fit(LogisticRegression(), DATA, engine, until=Until(ess=700))
    draws = fitted.posterior.draws
    assert torch.equal(draws["alpha"], again.posterior.draws["alpha"])
    number, looks = draws["alpha"].shape[1], [0]
    while looks[-1] < number:
        looks.append(after(looks[-1]))
    assert looks[-1] == number

    def smallest(length: int) -> float:
        return min(mixing.ess_bulk(v[:, :length].numpy()).min() for v in draws.values())

    assert smallest(number) >= 700
    assert all(smallest(length) < 700 for length in looks[1:-1])
    assert [f.severity for f in fitted.findings if f.name == "ess"] == ["note"]
    assert not fitted.warnings


def test_mcse_is_in_posterior_sds():
    fitted = fit(normal, {}, HMC(draws=10**6, **TRACED), until=Until(mcse=0.02))
    x = fitted.posterior.draws["x"].numpy()
    assert (mixing.mcse_mean(x) / x.std((0, 1), ddof=1)).max() <= 0.02
    assert fitted.summary()["mean"].abs().max() < 5 * 0.02


def test_labels_that_switch_do_not_keep_chains_from_being_precise():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 2, generator=generator) + torch.tensor([0.0, 1.5]).repeat(20)[:, None]
    fitted = fit(GaussianMixture(2), {"x": x}, Gibbs(draws=3000), until=Until(ess=50))
    assert fitted.posterior.draws["weights"].shape[1] < 3000


def test_a_stopped_run_is_the_beginning_of_the_whole_run():
    engine = NUTS(chains=2, warmup=50, draws=400, **TRACED)
    whole = fit(LogisticRegression(), DATA, engine, seed=3).posterior.unconstrained
    short = fit(LogisticRegression(), DATA, engine, seed=3, until=Until(ess=100)).posterior
    assert short.unconstrained.shape[1] < 400
    assert torch.equal(short.unconstrained, whole[:, : short.unconstrained.shape[1]])


def test_rules_that_mean_nothing_are_refused_before_any_work():
    def unused():
        raise AssertionError

    for rule in ({"ess": 400}, {"mcse": 0.1}):
        with pytest.raises(EngineError, match=r"SVI has no Markov chain.*give seconds"):
            fit(unused, {}, SVI(), until=Until(**rule))
    for wrong in (0, -1, float("nan"), float("inf"), True, "60"):
        with pytest.raises(EngineError, match=r"Until\(seconds="):
            Until(seconds=wrong)
    with pytest.raises(EngineError, match="until=60"):
        fit(unused, {}, NUTS(), until=60)


def test_steps_fit_into_the_time_left():
    clock = Clock(100.0)
    assert clock.steps(0, clock.begun) == 1
    now = time.perf_counter()
    assert 40 <= clock.steps(10, now - 20) <= 50  # 2 s each, 100 s left
    assert Clock().steps(10, now) > 10**9
    assert not Clock().over
