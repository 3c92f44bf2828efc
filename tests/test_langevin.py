"""Langevin chains: the bias of the unadjusted one is known, that of the adjusted one is none."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from inference import MALA, ULA, InferenceWarning, fit, ksd, mixing, target
from ppl_models import EngineError
from tests.statistics import quiet

STEPS = (0.4, 0.8, 1.2)
FIXED = {"chains": 64, "warmup": 0, "draws": 400, "tier": "traced"}  # nothing is learnt: S = I

SHORT = {"chains": 16, "warmup": 300, "draws": 100, "thin": 5, "tier": "traced"}


def normal():
    pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))


def squares(engine):
    return quiet(normal, None, engine).posterior.draws["x"][:, 50:].square().numpy()


@pytest.mark.parametrize("step", STEPS)
def test_unadjusted_chains_have_the_variance_of_their_step_size(step):
    square = squares(ULA(step_size=step, **FIXED))
    error = mixing.mcse_mean(square)
    exact = 1 / (1 - step**2 / 4)
    assert (error < 0.03).all()
    assert (np.abs(square.mean((0, 1)) - exact) < 4.5 * error).all()


@pytest.mark.parametrize("step", STEPS)
def test_adjusted_chains_have_no_bias(step):
    square = squares(MALA(step_size=step, **FIXED))
    assert (np.abs(square.mean((0, 1)) - 1) < 4.5 * mixing.mcse_mean(square)).all()


def test_the_stein_discrepancy_ranks_step_sizes_without_a_reference():
    density = target(normal)
    engines = [MALA(step_size=1.2, **FIXED), *(ULA(step_size=e, **FIXED) for e in (0.8, 1.2, 1.6))]
    values = []
    for engine in engines:
        draws = quiet(normal, None, engine).posterior.unconstrained[:, 50::50]
        values.append(ksd(density, draws).squared)
    assert values == sorted(values)
    assert values[-1] > 5 * values[0]


def test_an_unadjusted_chain_says_so():
    with pytest.warns(InferenceWarning, match=r"no Metropolis correction.*sds by about 9\.1%"):
        fitted = fit(normal, None, ULA(step_size=0.8, **FIXED))
    found = next(f for f in fitted.findings if f.name == "unadjusted")
    assert found.severity == "warning"
    assert found.figure == pytest.approx(0.8)


def test_warm_up_keeps_the_acceptance_rate_that_was_asked_for():
    # a little above it: steps are averaged on the log scale, as in Stan
    for engine, rate in ((MALA(**SHORT), 0.574), (ULA(**SHORT), 0.95)):
        rates = quiet(normal, None, engine).posterior.stats["acceptance_rate"]
        assert rate - 0.05 < float(rates.mean()) < (1 + rate) / 2


def test_settings_out_of_range_are_refused():
    with pytest.raises(EngineError, match="step_size=-1"):
        MALA(step_size=-1)
    with pytest.raises(EngineError, match="target_acceptance=2"):
        ULA(target_acceptance=2)
