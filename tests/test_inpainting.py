"""What is hidden of a row given what is seen, against the conditional of normal data.

With the best linear denoiser the whole chain is normal, so that the posterior of the latent chain
and of the hidden numbers is one of conditioning a covariance: exact for however few steps.
"""

import numpy as np
import pytest
import torch

from inference import HMC, MH, NUTS, InferenceWarning, TwistedSMC, fit
from ppl_models import EngineError
from ppl_models.denoisers import LinearDenoiser, MLPDenoiser
from ppl_models.diffusion import Diffusion
from tests.statistics import check, quiet, student, surprises
from tests.targets import Known

MEAN = np.array([0.3, -0.2, 0.1])
COVARIANCE = np.array([[1.0, 0.8, -0.3], [0.8, 1.2, 0.2], [-0.3, 0.2, 0.7]])
SEEN = torch.tensor([True, False, False])
Y = 1.1
HIDDEN = np.array([1, 2])


def normal_model(steps):
    """The diffusion of N(MEAN, COVARIANCE) data, with the best denoiser."""
    model = Diffusion(LinearDenoiser(3, steps), (3,), steps=steps, parameterisation="data").double()
    table = model.table(torch.zeros(1, dtype=torch.float64))
    for t in range(steps):
        a, s = float(table.signal[t]), float(table.noise[t])
        gain = a * COVARIANCE @ np.linalg.inv(a**2 * COVARIANCE + s**2 * np.eye(3))
        model.denoiser.weight.data[t] = torch.as_tensor(gain)
        model.denoiser.offset.data[t] = torch.as_tensor(MEAN - a * gain @ MEAN)
    model.trained = True
    return model


def conditional(model, y=Y):
    """Mean (D (T + 1),) and covariance of (x_0, ..., x_T) given y, and log p(y)."""
    steps = model.steps
    table = [part.numpy() for part in model.table(torch.zeros(1, dtype=torch.float64))]
    _, _, _, to_data, to_noisy, variance = table
    mean, covariance = np.zeros(3), np.eye(3)  # of x_t and all above it, x_t first
    for t in range(steps - 1, -1, -1):
        weight = model.denoiser.weight[t].detach().numpy()
        slope = to_data[t] * weight + to_noisy[t] * np.eye(3)
        below = slope @ mean[:3] + to_data[t] * model.denoiser.offset[t].detach().numpy()
        cross = slope @ covariance[:3]
        own = slope @ covariance[:3, :3] @ slope.T + variance[max(t, 1)] * np.eye(3)
        mean = np.concatenate([below, mean])
        covariance = np.block([[own, cross], [cross.T, covariance]])
    gain = covariance[:, 0] / covariance[0, 0]
    log_p = -0.5 * ((y - mean[0]) ** 2 / covariance[0, 0] + np.log(2 * np.pi * covariance[0, 0]))
    covariance = covariance - np.outer(gain, covariance[0])
    return mean + gain * (y - mean[0]), covariance, log_p


def known(model):
    """Moments of x_1, x_T and of the hidden numbers given y."""
    mean, covariance, _ = conditional(model)
    place = {f"x[0, {d}]": d for d in HIDDEN}
    for t in (1, model.steps):
        place |= {f"x_{t}[0, {d}]": 3 * t + d for d in range(3)}
    pairs = [("x[0, 1]", "x[0, 2]"), ("x[0, 1]", "x_1[0, 1]"), ("x_1[0, 0]", "x_1[0, 1]")]
    return Known(
        model,
        mean={name: mean[i] for name, i in place.items()},
        sd={name: covariance[i, i] ** 0.5 for name, i in place.items()},
        covariance={(a, b): covariance[place[a], place[b]] for a, b in pairs},
    )


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
FAMILY = 19 * len(ENGINES)


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
    with pytest.raises(EngineError, match=r"threshold=2\): give a positive number below 1"):
        TwistedSMC(threshold=2)
    data = {"x": [[6.0, 0.0, 0.0]], "seen": SEEN}
    with pytest.warns(InferenceWarning, match="effective particles of 8"):
        found = fit(MODEL, data, TwistedSMC(particles=8, runs=1))
    assert any("all draws of run 0 are copies of one particle" in text for text in found.warnings)
