"""The number of chains that NUTS(chains="auto") chooses."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from inference import NUTS, RowWise, Until, chain_count, fit, graph
from inference.chain_count import effective
from ppl_models import EngineError

TRACED = {"tier": "traced"}


def normal():
    pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def rows(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.StudentT(4.0, mean, scale), obs=y)


def chosen(monkeypatch, fixed, each, ess, warmup=1000, draws=100_000):
    """The choice where a step takes ``fixed`` + ``each`` * chains."""
    monkeypatch.setattr(chain_count, "seconds", lambda *arguments, **named: (fixed, each))
    engine = NUTS(chains="auto", warmup=warmup, draws=draws, **TRACED)
    captured = []
    monkeypatch.setattr(NUTS, "run", lambda self, problem: captured.append(self.chains) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fit(normal, None, engine, until=Until(ess=ess))
    return captured[0]


@pytest.mark.parametrize("ratio", [1.0, 30.0, 1000.0])
def test_choice_is_near_the_minimum_in_closed_form(ratio, monkeypatch):
    # (a + b C) (W + E / (e C)) is least at C = sqrt(a E / (b e W))
    ess = 200_000.0
    best = math.sqrt(ratio * ess / (0.5 * 1000))
    expected = min(max(best, 4), 1024)
    assert 0.5 <= chosen(monkeypatch, ratio * 1e-6, 1e-6, ess) / expected <= 2


def test_few_chains_where_nothing_is_shared_or_little_is_asked(monkeypatch):
    assert chosen(monkeypatch, 0.0, 1e-6, 10_000.0) == 4
    assert chosen(monkeypatch, 1e-3, 1e-6, 200.0) == 4


def test_more_chains_where_few_could_not_reach_the_goal(monkeypatch):
    # 4 chains of 1000 draws are some 2000 independent draws
    assert chosen(monkeypatch, 0.0, 1e-6, 50_000.0, draws=1000) == 128


def test_error_of_the_mean_is_an_effective_size():
    assert effective(Until(mcse=0.1)) == pytest.approx(100)
    assert effective(Until(mcse=0.1, ess=400)) == 400


def test_steps_cost_more_for_more_data_and_share_less(monkeypatch):
    found, own = [], chain_count.seconds
    monkeypatch.setattr(
        chain_count, "seconds", lambda *a, **n: found.append(own(*a, **n)) or found[-1]
    )
    engine = NUTS(chains="auto", warmup=5, draws=100, **TRACED)
    for number in (10, 10_000):
        y = np.random.default_rng(0).normal(size=number)
        quiet_until(rows, {"y": y}, engine)
    (few, each_few), (many, each_many) = found
    assert few == many  # the same operations
    assert each_many > 100 * each_few


def quiet_until(program, data, engine, ess=10.0):
    """A fit whose engine chooses, without its run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NUTS, "run", lambda self, problem: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            fit(program, data, engine, until=Until(ess=ess))


def test_work_of_a_graph_is_its_calls_and_the_numbers_they_make():
    single = graph.trace(lambda x: (x * x).sum(), torch.zeros(3))
    assert graph.work(single) == (2, 4)


@pytest.mark.filterwarnings("ignore::inference.InferenceWarning")
def test_choice_is_recorded_and_giving_its_number_repeats_the_run(tmp_path):
    auto = NUTS(chains="auto", warmup=50, draws=400, **TRACED)
    until = Until(ess=600)
    first = fit(normal, None, auto, until=until, store=tmp_path / "run")
    number = first.engine.chains
    assert number > 4
    assert first.posterior.draws["x"].shape[0] == number
    again = fit(normal, None, NUTS(chains=number, warmup=50, draws=400, **TRACED), until=until)
    assert torch.equal(again.posterior.draws["x"], first.posterior.draws["x"])
    longer = fit(
        normal, None, NUTS(chains=number, warmup=50, draws=400, **TRACED), resume=tmp_path / "run"
    )
    shorter = first.posterior.draws["x"].shape[1]
    assert torch.equal(longer.posterior.draws["x"][:, :shorter], first.posterior.draws["x"])


def test_a_choice_needs_a_precision_and_a_fit():
    with pytest.raises(EngineError, match="for a precision: give fit"):
        fit(normal, None, NUTS(chains="auto"))
    with pytest.raises(EngineError, match="for a precision"):
        fit(normal, None, NUTS(chains="auto"), until=Until(seconds=5))
    with pytest.raises(EngineError, match="chains='auto'"):
        RowWise(NUTS(chains="auto"))
