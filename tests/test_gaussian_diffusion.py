"""A diffusion of normal data: trained bound, flow and exact density agree, term by term."""

import functools
import math

import numpy as np
import pytest

from inference import generation
from ppl_models.diffusion import Diffusion
from tests import gaussian_chain
from tests.gaussian_chain import (
    averaged_terms,
    by_em,
    correlated,
    expected_terms,
    linear_diffusion,
    rows,
)

pytestmark = pytest.mark.filterwarnings("ignore::inference.InferenceWarning")

LAW = correlated()


@functools.cache
def trained(levels=100, steps=1500, batch=2000):
    return gaussian_chain.trained(rows(20_000, 1), levels, steps, batch)


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
    held_out = rows(500, 2)
    off = generation.flow_log_density(model, held_out) - LAW.log_prob(held_out)
    assert abs(float(off.mean())) < 0.01 - 4.5 * float(off.std()) / math.sqrt(500)


def reached(model):
    return averaged_terms(model, *moments()).sum()


def test_em_and_svi_reach_the_same_bound():
    """Its E step is to draw the noising chain, which no weight changes."""
    svi = reached(trained(5, 200, 200))
    assert abs(reached(by_em(rows(2000, 1), 5, 200)) / svi - 1) < 0.01
    assert reached(linear_diffusion(2, 5)) / svi - 1 > 0.2  # before training


def test_an_e_step_of_other_rows_is_exposed(monkeypatch):
    guide = Diffusion.guide
    monkeypatch.setattr(Diffusion, "guide", lambda self, x: guide(self, x.flip(0)))
    assert reached(by_em(rows(2000, 1), 5, 200)) / reached(trained(5, 200, 200)) - 1 > 0.1
