"""What is hidden of a row given what is seen, against the conditional of normal data.

With the best linear denoiser the whole chain is normal, so that the posterior of the latent chain
and of the hidden numbers is one of conditioning a covariance: exact for however few steps.
"""

import numpy as np
import pytest
import torch

from inference import HMC, MH, NUTS, SVI, InferenceWarning, TwistedSMC, fit
from ppl_models import EngineError, ModelError
from ppl_models.denoisers import MLPDenoiser
from ppl_models.diffusion import Diffusion
from tests.gaussian_chain import (
    COVARIANCE,
    HIDDEN,
    MEAN,
    SEEN,
    Y,
    conditional,
    known,
    normal_model,
)
from tests.statistics import check, quiet, student, surprises


def found(model, engine):
    data = {"x": [[Y, np.nan, np.nan]], "seen": SEEN}
    result = quiet(model, data, engine, seed=3)
    draws = {**result.posterior.draws, **result.predict()}
    return {name: draws[name] for name in ("x", "x_1", f"x_{model.steps}")}


COMMON = {"chains": 24, "warmup": 150, "draws": 150, "tier": "traced"}
ENGINES = {
    "hmc": HMC(**COMMON, steps=6),
    "nuts": NUTS(**COMMON),
    "mh": MH(**COMMON, thin=20),
    "twisted": TwistedSMC(runs=64, particles=500),
}
MODEL = normal_model(3)
FAMILY = 19 * (len(ENGINES) + 2)  # two in another form, too


def test_many_steps_have_the_conditional_of_the_data():
    mean, covariance, _ = conditional(normal_model(400))
    gain = COVARIANCE[HIDDEN, 0] / COVARIANCE[0, 0]
    assert mean[HIDDEN] == pytest.approx(MEAN[HIDDEN] + gain * (Y - MEAN[0]), abs=0.01)
    rest = COVARIANCE[np.ix_(HIDDEN, HIDDEN)] - np.outer(gain, COVARIANCE[0, HIDDEN])
    assert covariance[np.ix_(HIDDEN, HIDDEN)] == pytest.approx(rest, abs=0.01)


@pytest.mark.parametrize("name", ENGINES)
def test_the_chain_and_what_is_hidden_have_the_exact_moments(name):
    engine = ENGINES[name]
    check(found(MODEL, engine), known(MODEL), FAMILY)


@pytest.mark.filterwarnings("ignore::inference.InferenceWarning")  # few particles on purpose
def test_the_evidence_of_what_is_seen_is_unbiased():
    model = normal_model(30)
    data = {"x": [[Y, np.nan, np.nan]] * 2, "seen": SEEN}
    result = fit(model, data, TwistedSMC(runs=64, particles=100), seed=4)
    told = result.posterior.attributes
    exact = 2 * conditional(model)[2]  # of two rows
    assert 0.001 < told["log_evidence_error"] < 0.1
    assert abs(told["log_evidence"] - exact) < 4.5 * told["log_evidence_error"]
    # runs of so few particles differ, which is told; their evidence is precise
    against = {finding.name for finding in result.findings if finding.severity != "note"}
    assert against <= {"r_hat"}


@pytest.mark.parametrize("broken", ["ratio", "psi"])
def test_guidance_without_its_weights_is_noticed(broken, monkeypatch):
    """A proposal that is not weighted, as guidance and replacement do, has another law."""
    look = TwistedSMC._look

    def wrong(self, problem, x, t, steps):
        seen = look(self, problem, x, t, steps)
        if broken == "ratio":  # no weight anywhere: psi_t is 1, and moves go on
            return seen._replace(log_psi=torch.zeros_like(seen.log_psi))
        return (
            seen._replace(slope=seen.slope * 0.5)
            if t > 1
            else seen._replace(log_psi=0.8 * seen.log_psi)
        )

    monkeypatch.setattr(TwistedSMC, "_look", wrong)
    draws = found(MODEL, ENGINES["twisted"])
    assert surprises(draws, known(MODEL), FAMILY)


@pytest.mark.filterwarnings("ignore::inference.InferenceWarning")  # that runs differ, as it does
def test_rows_have_particles_of_their_own():
    data = {"x": [[Y, 0, 0], [-Y, 0, 0]], "seen": SEEN}
    both = fit(MODEL, data, TwistedSMC(runs=32, particles=400), seed=5).predict()["x"]
    for row, y in enumerate((Y, -Y)):
        mean = conditional(MODEL, y)[0]
        for d in HIDDEN:
            assert abs(student(both[:, :, row, d].numpy() - mean[d])) < 4.5


@pytest.mark.filterwarnings("ignore::inference.InferenceWarning")  # those beside the expected one
def test_what_it_cannot_draw_is_refused():
    def program(y):
        return None

    with pytest.raises(EngineError, match="draws the chain of a Diffusion"):
        fit(program, {"y": torch.zeros(2)}, TwistedSMC())
    with pytest.raises(EngineError, match="does not train the program's weights"):
        fit(Diffusion(MLPDenoiser(2), (2,), steps=3), torch.zeros(1, 2), TwistedSMC())
    with pytest.raises(ModelError, match=r"call whitened\(\) on fit.model"):
        fit(Diffusion(MLPDenoiser(2), (2,), steps=3).whitened(), torch.zeros(1, 2), SVI(steps=1))
    with pytest.raises(EngineError, match=r"threshold=2\): give a positive number below 1"):
        TwistedSMC(threshold=2)
    data = {"x": [[6.0, 0.0, 0.0]], "seen": SEEN}
    with pytest.warns(InferenceWarning, match="effective particles of 8"):
        found = fit(MODEL, data, TwistedSMC(particles=8, runs=1))
    assert any("all draws of run 0 are copies of one particle" in text for text in found.warnings)


@pytest.mark.parametrize("name", ["nuts", "twisted"])
def test_the_noise_of_the_steps_has_the_same_posterior(name):
    """The non-centred form, whose latent sites are standard normal before the data."""
    data = {"x": [[Y, np.nan, np.nan]], "seen": SEEN}
    result = quiet(MODEL.whitened(), data, ENGINES[name], seed=3)
    chain = result.posterior.draws
    check({**chain, **result.predict()}, known(MODEL), FAMILY)
    noise = MODEL.noise_of(chain)
    for site in ("noise_3", "noise_1"):
        torch.testing.assert_close(chain[site], noise[site])
