"""A diffusion of normal data: trained bound, flow and exact density agree, term by term."""

import functools
import math

import numpy as np
import pytest
import torch

from inference import MCEM, SVI, fit, generation
from inference.denoising import Denoising
from ppl_models.diffusion import Diffusion
from tests.gaussian_chain import averaged_terms, correlated, expected_terms, linear_diffusion

pytestmark = pytest.mark.filterwarnings("ignore::inference.InferenceWarning")

LAW = correlated()


def annealed(steps):
    return lambda optimiser: torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)


@functools.cache
def trained(levels=100, steps=1500, batch=2000):
    engine = SVI(
        objective=Denoising(),
        batch_size=batch,
        steps=steps,
        learning_rate=0.03,
        schedule=annealed(steps),
        average=0.998,
        plateau=False,
        rows=1,
        draws=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        rows = LAW.sample((20_000,))
    return fit(linear_diffusion(2, levels), rows, engine, progress=False).model


def moments():
    return LAW.mean, LAW.covariance_matrix


def test_each_term_has_its_closed_form():
    found, exact = averaged_terms(trained(), *moments()), expected_terms(trained(), *moments())
    assert np.abs(found - exact).max() < 1e-5


def test_a_term_of_another_step_is_exposed(monkeypatch):
    term = Diffusion.term
    monkeypatch.setattr(Diffusion, "term", lambda s, x, t, n, k: term(s, x, (t - 1).clamp(2), n, k))
    found, exact = averaged_terms(trained(), *moments()), expected_terms(trained(), *moments())
    assert np.abs(found - exact)[2:-1].max() > 1e-2


def test_bound_flow_and_exact_likelihood_agree():
    model, entropy = trained(), float(LAW.entropy())
    assert 0 < averaged_terms(model, *moments()).sum() - entropy < 0.01
    with torch.random.fork_rng():
        torch.manual_seed(2)
        held_out = LAW.sample((500,))
    off = generation.flow_log_density(model, held_out) - LAW.log_prob(held_out)
    assert abs(float(off.mean())) < 0.01 - 4.5 * float(off.std()) / math.sqrt(500)


@functools.cache
def by_em(levels=5, rounds=200):
    engine = MCEM(
        "guide",
        rounds=rounds,
        transitions=1,
        m_steps=1,
        batch_size=200,
        learning_rate=0.03,
        schedule=annealed(rounds),
        average=0.99,
        rows=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        rows = LAW.sample((2000,))
    return fit(linear_diffusion(2, levels), rows, engine, progress=False).model


def reached(model):
    return averaged_terms(model, *moments()).sum()


def test_em_and_svi_reach_the_same_bound():
    """Its E step is to draw the noising chain, which no weight changes."""
    svi = reached(trained(5, 200, 200))
    assert abs(reached(by_em()) / svi - 1) < 0.01
    assert reached(linear_diffusion(2, 5)) / svi - 1 > 0.2  # before training


def test_an_e_step_of_other_rows_is_exposed(monkeypatch):
    guide = Diffusion.guide
    monkeypatch.setattr(Diffusion, "guide", lambda self, x: guide(self, x.flip(0)))
    by_em.cache_clear()
    assert reached(by_em()) / reached(trained(5, 200, 200)) - 1 > 0.1
    by_em.cache_clear()
