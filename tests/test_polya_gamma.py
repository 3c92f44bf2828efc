"""Polya-Gamma draws against their known moments and Laplace transform."""

import math

import pytest
import torch

from ppl_models.errors import DataError
from ppl_models.noise import Noise
from ppl_models.polya_gamma import pg_mean, polya_gamma

CHAINS, DRAWS = 8, 25_000
Z = [0.0, 0.3, 1.5, 3.05, 3.15, 5.0, 20.0, 800.0]  # the sampler changes its proposal at 3.1


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def mean(n, z):
    return n / 4 if z == 0 else n * math.tanh(z / 2) / (2 * z)


def variance(n, z):
    """n (sinh z - z) / (4 z^3 cosh^2(z/2)), with e^z divided out."""
    if z == 0:
        return n / 24
    sinh, cosh2 = -math.expm1(-2 * z) / 2, (1 + math.exp(-z)) ** 2 / 4
    return n * (sinh - z * math.exp(-z)) / (4 * z**3 * cosh2)


def laplace(n, z, t):
    """E exp(-omega t) = (cosh(z/2) / cosh(sqrt((z^2/2 + t)/2)))^n, by logarithms."""

    def log_cosh(u):
        return u + math.log1p(math.exp(-2 * u)) - math.log(2)

    return math.exp(n * (log_cosh(z / 2) - log_cosh(math.sqrt((z**2 / 2 + t) / 2))))


def assert_mean(values, expected, limit=4.5):
    """The average of iid ``values`` lies within ``limit`` standard errors of ``expected``."""
    error = values.std() / math.sqrt(values.numel())
    score = float((values.mean() - expected) / error)
    assert abs(score) < limit, f"{score:.1f} standard errors off"


def assert_polya_gamma(draws, n, z):
    assert_mean(draws, mean(n, z))
    assert_mean((draws - mean(n, z)).square(), variance(n, z))
    for t in (0.5, 4.0, 30.0):
        assert_mean((-t * draws).exp(), laplace(n, z, t))


def sample(n, z, seed=0, dtype=torch.float64):
    noise = Noise.seeded(seed, CHAINS, dtype=dtype)
    return polya_gamma(n, torch.full((CHAINS, DRAWS), z, dtype=dtype), noise)


@pytest.mark.parametrize("z", Z)
def test_moments_and_laplace_transform(z):
    assert_polya_gamma(sample(1, z), 1, z)


def test_the_sign_of_z_does_not_matter():
    assert torch.equal(sample(1, 2.0), sample(1, -2.0))


def test_sums():
    assert_polya_gamma(sample(3, 1.5), 3, 1.5)


def test_float32():
    draws = sample(1, 1.0, dtype=torch.float32)
    assert draws.dtype == torch.float32
    assert_polya_gamma(draws.double(), 1, 1.0)


def test_trials_by_element_and_any_shape():
    trials = torch.tensor([[0, 1, 5], [2, 2, 9]])
    z = torch.tensor([[0.0, 4.0, -1.0], [9.0, 0.1, 2.0]], dtype=torch.float64)
    draws = polya_gamma(trials, z.expand(20_000, 2, 3), Noise.seeded(3, 20_000))
    assert draws.shape == (20_000, 2, 3)
    assert bool((draws[:, 0, 0] == 0).all())
    for i, j in ((0, 1), (0, 2), (1, 0), (1, 1), (1, 2)):
        n, tilt = int(trials[i, j]), abs(float(z[i, j]))
        assert_mean(draws[:, i, j], mean(n, tilt))
        assert_mean((draws[:, i, j] - mean(n, tilt)).square(), variance(n, tilt))


@pytest.mark.parametrize("trials", [1, 4])
def test_a_chain_does_not_see_its_neighbours(trials):
    few = torch.linspace(-9, 9, 500, dtype=torch.float64).expand(2, -1)
    slow = torch.full((5, 500), 3.1, dtype=torch.float64)  # the most rounds
    alone = polya_gamma(trials, few, Noise.seeded(1, 2))
    crowd = polya_gamma(trials, torch.cat([few, slow]), Noise.seeded(1, 7))
    assert torch.equal(alone, crowd[:2])
    assert not torch.equal(alone[0], alone[1])


def test_extremes_end():
    z = torch.tensor([[math.nan, 1e150, 1e8, 1e-300]], dtype=torch.float64)
    draws = polya_gamma(1, z, Noise.seeded(0, 1))[0]
    assert bool(draws[0].isnan())
    torch.testing.assert_close(draws[1:3], 1 / (2 * z[0, 1:3]), rtol=1e-3, atol=0)
    assert 0 < float(draws[3]) < 10
    assert polya_gamma(1, z[:, :0], Noise.seeded(0, 1)).shape == (1, 0)


@pytest.mark.parametrize("trials", [-1, torch.tensor([1.0, 2.5])])
def test_trials_are_whole_numbers(trials):
    with pytest.raises(DataError, match="trials: holds a negative or fractional number"):
        polya_gamma(trials, torch.zeros(1, 2, dtype=torch.float64), Noise.seeded(0, 1))


def test_pg_mean():
    z = torch.tensor([0.0, 5e-324, 1e-12, -1e-3, 0.7, -30.0, 1e6], dtype=torch.float64)
    expected = torch.tensor([mean(2, abs(float(v))) if abs(v) > 1e-9 else 0.5 for v in z]).double()
    torch.testing.assert_close(pg_mean(2, z), expected, rtol=1e-7, atol=0)
    torch.testing.assert_close(pg_mean(torch.tensor(2.0), z.float()), expected.float())


@pytest.mark.parametrize("z", [0.0, 3.15])
def test_sabotage_the_mean_in_place_of_a_draw_is_noticed(z):
    draws = sample(1, z)
    with pytest.raises(AssertionError, match="standard errors"):
        assert_polya_gamma(torch.full_like(draws, mean(1, z)) + 1e-9 * draws, 1, z)


def test_sabotage_a_short_tail_is_noticed():
    draws = sample(1, 0.0)
    with pytest.raises(AssertionError, match="standard errors"):
        assert_polya_gamma(draws[draws < 1.2], 1, 0.0)
