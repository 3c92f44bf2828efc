"""The gaps of an encoder against those of a linear-Gaussian model in closed form."""

import pytest
import torch

from inference import AIS, HMC, gaps, inference_gaps
from ppl_models import EngineError
from tests.programs import Linear
from tests.test_ais import Blind
from tests.test_sabotage import Sabotage

MODEL = Linear(2, 5)
MODEL.trained = True
DATA = {"x": MODEL.simulated(10, seed=2)}
ANNEALING = AIS(chains=32, temperatures=200, kernel=HMC(steps=2))
BEYOND = 4.5  # standard errors of one of 20 figures, at a level of 1e-4


def exact():
    """Log p(x), the ELBO of the best diagonal normal, and that of the encoder: (rows,) each."""
    with torch.no_grad():
        log_p = MODEL.exact(DATA["x"])
        mean, covariance = MODEL.posterior(DATA["x"])
        precision = covariance.inverse()
        best = log_p - 0.5 * (precision.diagonal().log().sum() - precision.logdet())
        loc, log_scale = MODEL.encoder(DATA["x"]).chunk(2, -1)
        away = loc - mean
        quadratic = (away @ precision * away).sum(-1)
        trace = ((2 * log_scale).exp() * precision.diagonal()).sum(-1)
        entropy = 2 * log_scale.sum(-1) + precision.logdet()
        return log_p, best, log_p - 0.5 * (trace + quadratic - 2 - entropy)


def off(found, family="diagonal"):
    """How far each figure is from the exact one, in standard errors."""
    log_p, best, elbo = exact()
    best = log_p if family == "full" else best
    pairs = [(found.log_likelihood, log_p), (found.best, best), (found.elbo, elbo)]
    return [((f.value - e).abs() / (f.error + 1e-3)).max() for f, e in pairs]


def test_gaps_are_those_of_the_closed_form():
    found = inference_gaps(MODEL, DATA, ANNEALING, steps=300)
    assert max(off(found)) < BEYOND
    log_p, best, elbo = exact()
    table = found.table
    for name, gap in (("approximation", log_p - best), ("amortisation", best - elbo)):
        away = float((getattr(found, name) - gap).mean())
        assert abs(away) < BEYOND * table.loc[f"{name}_gap", "monte_carlo"]
    assert abs(table.loc["approximation_gap", "mean"] - float((log_p - best).mean())) < 0.05
    assert table.loc["gap", "mean"] == pytest.approx(
        table.loc["approximation_gap", "mean"] + table.loc["amortisation_gap", "mean"]
    )
    assert "approximation_gap" in repr(found)


def test_a_full_covariance_leaves_no_approximation_gap():
    found = inference_gaps(MODEL, DATA, ANNEALING, family="full", steps=300, samples=500)
    assert max(off(found, "full")[:2]) < BEYOND
    assert abs(float((exact()[0] - found.best.value).mean())) < 0.01


def test_an_elbo_without_its_entropy_is_exposed(monkeypatch):
    old = "log_det = (log_sd + spread.log()).sum(-1, keepdim=True)"
    new = "log_det = spread.log().sum(-1, keepdim=True)"
    Sabotage(gaps, "best_normal", old, new).commit(monkeypatch)
    assert off(inference_gaps(MODEL, DATA, ANNEALING, steps=300))[1] > BEYOND


def test_what_has_no_gap_is_refused():
    blind = Blind()
    blind.trained = True
    with pytest.raises(EngineError, match="has no guide whose gap could be told"):
        inference_gaps(blind, DATA)
    with pytest.raises(EngineError, match="family='normal'"):
        inference_gaps(MODEL, DATA, family="normal")  # type: ignore[arg-type]
    with pytest.raises(EngineError, match="does not train the program's weights"):
        inference_gaps(Linear(2, 5), DATA)
