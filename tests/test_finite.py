"""Exact tools for finite chains, against closed forms and published figures."""

import numpy as np
import pytest

from inference import finite
from ppl_models import DataError
from tests.chains import metropolis

TWO = np.array([[0.8, 0.2], [0.1, 0.9]])
WEIGHTS = 2.0 ** -np.arange(10)
WALK, INDEPENDENCE = metropolis(True), metropolis(False)


def test_two_states_have_closed_forms():
    np.testing.assert_allclose(finite.stationary(TWO), [1 / 3, 2 / 3])
    np.testing.assert_allclose(finite.eigenvalues(TWO), [1.0, 0.7])
    t = np.arange(31)
    np.testing.assert_allclose(finite.total_variation(TWO, 0, 30), 2 / 3 * 0.7**t, atol=1e-12)
    assert finite.total_variation(TWO, 0, 10)[10] == pytest.approx(0.0188316833, abs=1e-10)
    np.testing.assert_allclose(finite.worst_total_variation(TWO, 30), 2 / 3 * 0.7**t, atol=1e-12)
    assert finite.asymptotic_variance(TWO, [0, 1]) == pytest.approx(1.2592592592592593)
    assert finite.mixing_time(TWO) == 3  # 2/3 0.7^t falls below 1/4 between 2 and 3


def test_metropolis_chains_have_the_published_figures():
    state = np.arange(10)
    for matrix, variance, gap in (
        (WALK, 38.2547625146806, 0.07750148803604007),
        (INDEPENDENCE, 13.066362373624962, 0.1998046874999997),
    ):
        pi = finite.stationary(matrix)
        np.testing.assert_allclose(pi, WEIGHTS / WEIGHTS.sum(), atol=1e-12)
        assert pi @ state == pytest.approx(0.9902248289345053)
        assert finite.asymptotic_variance(matrix, state) == pytest.approx(variance)
        assert finite.spectral_gap(matrix) == pytest.approx(gap)
        assert finite.imbalance(matrix) < 1e-15
    assert finite.total_variation(WALK, 9, 20)[20] == pytest.approx(0.46433143492402074)
    assert finite.worst_total_variation(INDEPENDENCE, 20)[20] == pytest.approx(0.005798482980973791)


def test_mixing_time_is_the_first_that_is_near():
    d = finite.worst_total_variation(WALK, 200)
    for distance in (0.25, 0.01, 0.9, 1.0):
        time = finite.mixing_time(WALK, distance)
        assert d[time] <= distance
        assert time == 0 or d[time - 1] > distance


def test_a_rotation_is_stationary_without_detailed_balance():
    p = np.array([[0.1, 0.8, 0.1], [0.1, 0.1, 0.8], [0.8, 0.1, 0.1]])
    np.testing.assert_allclose(finite.stationary(p), 1 / 3)
    assert finite.imbalance(p) == pytest.approx(0.7 / 3)
    assert np.iscomplexobj(finite.eigenvalues(p))
    # sigma^2 by brute force: var + 2 sum of covariances
    f = np.array([1.0, -0.5, 2.0])
    g = f - f.mean()
    powers = [np.linalg.matrix_power(p, n) for n in range(1, 200)]
    brute = (g**2).mean() + 2 * sum((g * (q @ g)).mean() for q in powers)
    assert finite.asymptotic_variance(p, f) == pytest.approx(brute)


def walk(states, rng, *, broken=False):
    proposed = states + rng.choice([-1, 1], size=len(states))
    ratio = np.where(
        (proposed >= 0) & (proposed < 10), 2.0 ** (states - proposed.astype(float)), 0.0
    )
    if broken:
        ratio = np.sqrt(ratio)
    return np.where(rng.uniform(size=len(states)) < ratio, proposed, states)


def test_detailed_balance_of_a_random_kernel_is_seen_and_its_breach_too():
    """45 z statistics, all below 4.9 with probability 0.99995."""
    p, error = finite.estimate(walk, 10)
    assert (np.abs(p - WALK) < 5 * np.maximum(error, 1e-5)).all()
    pi = finite.stationary(WALK)
    z = finite.balanced(walk, pi)
    np.testing.assert_array_equal(z, -z.T)
    assert np.abs(z).max() < 4.9
    broken = finite.balanced(lambda s, rng: walk(s, rng, broken=True), pi)
    assert np.abs(broken).max() > 20


def test_what_is_no_chain_is_refused():
    for matrix, text in (
        (np.ones(3), "square"),
        ([[0.5, 0.6], [0.5, 0.5]], "row 0 sums to 1.1"),
        ([[1.5, -0.5], [0.5, 0.5]], "no probabilities"),
        (np.eye(2), "several stationary"),
    ):
        with pytest.raises(DataError, match=text):
            finite.stationary(matrix)
    with pytest.raises(DataError, match="not mixed"):
        finite.mixing_time([[0, 1], [1, 0]], most=100)
    with pytest.raises(DataError, match="kernel"):
        finite.estimate(lambda s, rng: s + 1, 3, draws=10)
