"""The toys' densities integrate to one, their rows follow them, their entropies are the floors."""

import math
from functools import cache

import numpy as np
import pytest
import torch

from case_studies.toys import TOYS
from inference.two_samples import mode_coverage
from ppl_models import DataError

COUNT = 100_000


SIDE = 0.05


@cache
def grid(name):
    """Points in the middle of cells of that side, and log p there."""
    at = torch.arange(-6 + SIDE / 2, 6, SIDE, dtype=torch.float64)
    x = torch.cartesian_prod(at, at)
    log_p = TOYS[name].log_density(x)
    inside = torch.isfinite(log_p)
    return x[inside], log_p[inside]


def integral(name, values):
    """Of p times the values at the points of the grid."""
    return float((grid(name)[1].exp() * values).sum()) * SIDE**2


@pytest.mark.parametrize("name", TOYS)
def test_densities_integrate_to_one_and_to_their_entropies(name):
    toy = TOYS[name]
    assert integral(name, 1.0) == pytest.approx(1, abs=1e-9)
    assert -integral(name, grid(name)[1]) == pytest.approx(toy.entropy, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "floor", "error"), [("8gaussians", 2.8313, 0.0007), ("checkerboard", 3.4657, 5e-5)]
)
def test_entropies_are_the_published_floors(name, floor, error):
    assert abs(TOYS[name].entropy - floor) < error


@pytest.mark.parametrize("name", TOYS)
def test_rows_follow_their_density(name):
    toy = TOYS[name]
    x = toy.sample(COUNT, seed=1)
    surprise = -toy.log_density(x)
    error = float(surprise.std()) / math.sqrt(COUNT)
    assert error < 0.004
    assert abs(float(surprise.mean()) - toy.entropy) <= 4.5 * error + 1e-6
    for power in (
        [1, 0],
        [0, 1],
        [2, 0],
        [1, 1],
        [0, 2],
        [2, 1],
    ):  # and not another's of one entropy

        def product(v, power=power):
            return v[:, 0] ** power[0] * v[:, 1] ** power[1]

        values = product(x)
        exact = integral(name, product(grid(name)[0]))
        assert abs(float(values.mean()) - exact) < 4.5 * float(values.std()) / math.sqrt(COUNT)


def test_rows_have_all_modes_equally():
    for name in ("8gaussians", "checkerboard"):
        toy = TOYS[name]
        found = mode_coverage(toy.sample(20_000), toy.modes, toy.radius)
        assert found.covered == 8
        assert np.abs(found.weights - 1 / 8).max() < 4.5 * math.sqrt(7 / 64 / 20_000)


def test_seeds_differ_and_counts_are_checked():
    toy = TOYS["two moons"]
    assert torch.equal(toy.sample(5, seed=3), toy.sample(5, seed=3))
    assert not torch.equal(toy.sample(5, seed=3), toy.sample(5, seed=4))
    with pytest.raises(DataError, match="count=0"):
        toy.sample(0)
