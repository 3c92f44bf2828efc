"""Score-matching losses of Gaussians, whose expectations are known, and their minimiser."""

import math

import pytest
import torch

from ppl_models import DataError, Noise, score

COVARIANCE = torch.tensor([[1.0, 0.6], [0.6, 2.0]], dtype=torch.float64)
CENTRE = torch.tensor([0.5, -1.0], dtype=torch.float64)
PRECISION = torch.linalg.inv(COVARIANCE)
MATRIX = torch.tensor([[-1.2, 0.4], [0.1, -0.3]], dtype=torch.float64)  # of a wrong score
COUNT, SD = 100_000, 0.5


def rows(seed=0):
    normal = Noise.seeded(seed, 1).normal(COUNT, 2)[0]
    return CENTRE + normal @ torch.linalg.cholesky(COVARIANCE).T


def wrong(x):
    return (x - CENTRE) @ MATRIX.T + 0.2


def expected(covariance):
    """E[tr grad s + |s|^2 / 2] of the wrong score under N(CENTRE, covariance)."""
    square = torch.trace(MATRIX @ covariance @ MATRIX.T) + 2 * 0.2**2
    return float(torch.trace(MATRIX) + 0.5 * square)


def check(loss, exact):
    error = float(loss.std()) / math.sqrt(len(loss))
    assert error < 0.02
    assert abs(float(loss.mean()) - exact) < 4.5 * error


def test_losses_have_their_expectations():
    check(score.implicit(wrong, rows()), expected(COVARIANCE))
    check(score.sliced(wrong, rows(), Noise.seeded(1, 1)), expected(COVARIANCE))
    # for the density with noise added, and E |n|^2 / (2 d^2) more
    smooth = COVARIANCE + SD**2 * torch.eye(2)
    constant = 2 / (2 * SD**2)
    check(score.denoising(wrong, rows(), SD, Noise.seeded(2, 1)), expected(smooth) + constant)


def test_the_trace_is_that_of_a_curved_score():
    x = rows()[:7]
    loss = score.implicit(lambda v: torch.stack([v[:, 0] * v[:, 1], v[:, 1] ** 3], -1), x)
    values = torch.stack([x[:, 0] * x[:, 1], x[:, 1] ** 3], -1)
    trace = x[:, 1] + 3 * x[:, 1] ** 2
    torch.testing.assert_close(loss, trace + 0.5 * values.square().sum(-1))


def test_directions_average_out():
    x = rows()[:3].repeat(5000, 1)

    def curved(v):
        return v.flip(-1) * v

    exact = score.implicit(curved, x)[:3]
    found = score.sliced(curved, x, Noise.seeded(3, 1), directions=2).reshape(5000, 3)
    error = found.std(0) / math.sqrt(5000)
    assert ((found.mean(0) - exact).abs() < 4.5 * error).all()
    assert (error > 0).all()


@pytest.mark.parametrize("name", ["implicit", "sliced", "denoising"])
def test_the_minimiser_is_the_score(name):
    """Linear scores make the losses quadratic: their minimiser by one Newton step."""
    x = rows(4)

    def loss(weights):
        def linear(v):
            return v @ weights[:4].reshape(2, 2).T + weights[4:]

        if name == "implicit":
            return score.implicit(linear, x).mean()
        if name == "sliced":
            return score.sliced(linear, x, Noise.seeded(5, 1)).mean()
        return score.denoising(linear, x, SD, Noise.seeded(5, 1)).mean()

    start = torch.zeros(6, dtype=torch.float64)
    gradient = torch.autograd.functional.jacobian(loss, start)
    curvature = torch.autograd.functional.hessian(loss, start)
    best = -torch.linalg.solve(curvature, gradient)
    noise = SD**2 if name == "denoising" else 0.0
    precision = torch.linalg.inv(COVARIANCE + noise * torch.eye(2))
    torch.testing.assert_close(best[:4].reshape(2, 2), -precision, atol=0.03, rtol=0)
    torch.testing.assert_close(best[4:], precision @ CENTRE, atol=0.03, rtol=0)


def test_an_energy_has_a_score():
    def energy(v):
        return 0.5 * ((v - CENTRE) @ PRECISION * (v - CENTRE)).sum(-1)

    x = rows()[:5]
    torch.testing.assert_close(score.of_energy(energy)(x), -(x - CENTRE) @ PRECISION)
    exact = -0.5 * float(torch.trace(PRECISION))  # of the true score
    check(score.implicit(score.of_energy(energy), rows()), exact)


def test_what_is_no_table_is_refused():
    with pytest.raises(DataError, match=r"shape \(3,\); give rows"):
        score.implicit(wrong, torch.zeros(3))
    with pytest.raises(DataError, match="sd=0"):
        score.denoising(wrong, rows()[:2], 0.0, Noise.seeded(0, 1))
    with pytest.raises(DataError, match="give a positive number"):
        score.denoising(wrong, rows()[:2], torch.tensor([[1.0], [-1.0]]), Noise.seeded(0, 1))
