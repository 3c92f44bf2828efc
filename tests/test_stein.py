"""The kernel Stein discrepancy against quadrature, autograd, and known rates."""

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch.func import grad, jacrev

from inference import Target, ksd, target
from inference.stein import stein_kernel
from ppl_models import EngineError
from tests.targets import CORRELATED

NORMAL = Target(lambda x: -0.5 * x.square().sum(), 1, tier="eager")


def test_stein_kernel_is_the_operator_applied_to_the_kernel_twice():
    rng = np.random.default_rng(0)
    x, y = torch.as_tensor(rng.normal(size=(2, 3)))
    s, t = torch.as_tensor(rng.normal(size=(2, 3)))

    def kernel(x, y):
        return (1.3**2 + (x - y).square().sum()) ** -0.5

    mixed = jacrev(grad(kernel, argnums=1), argnums=0)(x, y)
    expected = (
        s @ t * kernel(x, y)
        + s @ grad(kernel, argnums=1)(x, y)
        + t @ grad(kernel, argnums=0)(x, y)
        + mixed.trace()
    )
    got = stein_kernel(x[None], s[None], y[None], t[None], 1.3)
    assert torch.allclose(got[0, 0], expected)


def exact(mean, sd):
    """KSD^2 of N(mean, sd^2) from N(0, 1), by quadrature of E k_p(X, Y)."""

    def integrand(x, y):
        p = [torch.tensor([[v]], dtype=torch.float64) for v in (x, -x, y, -y)]
        weight = stats.norm.pdf(x, mean, sd) * stats.norm.pdf(y, mean, sd)
        return float(stein_kernel(*p)) * weight

    low, high = mean - 7 * sd, mean + 7 * sd
    x, w = np.polynomial.legendre.leggauss(200)
    x, w = 0.5 * (high - low) * x + 0.5 * (high + low), 0.5 * (high - low) * w
    points = torch.as_tensor(x)[:, None]
    density = torch.as_tensor(w * stats.norm.pdf(x, mean, sd))
    value = float(density @ stein_kernel(points, -points, points, -points) @ density)
    if (mean, sd) == (0.5, 1.0):  # the rule itself, once against an adaptive one
        adaptive = integrate.dblquad(integrand, -4, 5, -4, 5, epsabs=1e-4)[0]
        assert value == pytest.approx(adaptive, abs=1e-3)
    return value


@pytest.mark.parametrize(("mean", "sd"), [(0.0, 1.0), (0.5, 1.0), (0.0, 1.3), (0.0, 0.7)])
def test_unbiased_square_is_exact_within_its_error(mean, sd):
    """Independent sets of draws: their averages are t distributed."""
    rng = np.random.default_rng(1)
    squared = [ksd(NORMAL, mean + sd * rng.normal(size=(300, 1))).squared for _ in range(30)]
    t = (np.mean(squared) - exact(mean, sd)) / (np.std(squared, ddof=1) / np.sqrt(30))
    assert abs(t) < stats.t.isf(1e-4 / 8, 29)
    if (mean, sd) == (0.0, 1.0):
        assert exact(mean, sd) == pytest.approx(0, abs=1e-10)


def test_error_is_the_spread_of_the_square():
    rng = np.random.default_rng(2)
    found = [ksd(NORMAL, 0.7 + rng.normal(size=(300, 1))) for _ in range(60)]
    spread = np.std([f.squared for f in found], ddof=1)
    assert 0.7 < np.mean([f.error for f in found]) / spread < 1.4


def test_wrong_scale_and_shift_are_told_from_exact_draws_at_rate_one_over_sqrt_n():
    aim = target(CORRELATED.program)
    covariance = torch.tensor([[1.0, 1.9], [1.9, 4.0]], dtype=torch.float64)
    root = torch.linalg.cholesky(covariance)
    unit = np.random.default_rng(3).normal(size=(4, 2000, 2))
    mean = torch.tensor([1.0, -2.0], dtype=torch.float64)

    def value(shift=0.0, stretch=1.0, number=2000, chains=1):
        x = mean + shift + stretch * torch.as_tensor(unit[:chains, :number]) @ root.T
        return ksd(aim, x, scale=root, block=700).value

    assert value(shift=0.2) > 2 * value()
    assert value(stretch=1.2) > 2 * value()
    assert value(stretch=0.8) > 2 * value()
    rate = [value(number=n) * n**0.5 for n in (125, 500, 2000)]
    assert max(rate) / min(rate) < 1.5
    assert value(chains=4, number=500) < 1.5 * value(number=2000)


def test_blocks_do_not_matter():
    x = np.random.default_rng(4).normal(size=(50, 1))
    assert ksd(NORMAL, x, block=7).squared == pytest.approx(ksd(NORMAL, x).squared)


def test_draws_that_do_not_fit_are_refused():
    with pytest.raises(EngineError, match="dimension 1"):
        ksd(NORMAL, np.zeros((5, 2)))
    with pytest.raises(EngineError, match="one draw"):
        ksd(NORMAL, np.zeros((1, 1)))
    with pytest.raises(EngineError, match="no score"):
        ksd(NORMAL, np.array([[0.0], [np.nan]]))
    with pytest.raises(EngineError, match="scale"):
        ksd(NORMAL, np.zeros((5, 1)), scale=np.ones(3))
