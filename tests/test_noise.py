"""The random numbers: known answers, moments, independence."""

import numpy as np
import pytest
import torch
from scipy import stats

from ppl_models import Noise
from ppl_models.noise import _generate, philox

# Random123's known answers for philox4x32-10 (Salmon et al. 2011): counter, key, words
KNOWN = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_philox_gives_the_known_answers(counter, key, words):
    made = philox(tuple(torch.tensor([c]) for c in counter), tuple(torch.tensor([k]) for k in key))
    assert [int(word) for word in made] == words


def test_compiled_and_tensor_versions_are_equal():
    noise = Noise.seeded(7, 5)
    counter = torch.arange(3, 40)
    fixed = [torch.full_like(counter, word) for word in (2, 0, 1)]
    tensor = torch.stack(philox((counter, *fixed), (noise.key[:, :1], noise.key[:, 1:])), -1)
    assert torch.equal(_generate(noise.key, 37, 3, 2, 1), tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_and_normal_have_their_first_four_moments(dtype):
    number = 400_000
    noise = Noise.seeded(1, 1, dtype=dtype)
    unit = noise.uniform(number)[0].double()
    assert 0 < unit.min() < unit.max() < 1
    for power in range(1, 5):
        exact, variance = 1 / (power + 1), 1 / (2 * power + 1) - 1 / (power + 1) ** 2
        assert abs(unit.pow(power).mean() - exact) < 4.5 * (variance / number) ** 0.5
    normal = noise.fold(1).normal(number)[0].double()
    moments = [1, 0, 1, 0, 3, 0, 15, 0, 105]
    for power in range(1, 5):
        variance = moments[2 * power] - moments[power] ** 2
        error = abs(normal.pow(power).mean() - moments[power])
        assert error < 4.5 * (variance / number) ** 0.5


def test_streams_of_chains_seeds_and_folds_are_uncorrelated_and_disjoint():
    streams = [Noise.seeded(seed, 3) for seed in (0, 1, 2**40)]
    streams += [streams[0].fold(1), streams[0].fold(2), streams[0].fold(1, 1)]
    rows = torch.cat([noise.normal(20_000) for noise in streams])
    correlation = torch.corrcoef(rows) - torch.eye(len(rows), dtype=rows.dtype)
    assert correlation.abs().max() < 4.5 / 20_000**0.5
    words = torch.cat([noise.words(64) for noise in streams]).tolist()
    assert len({tuple(row[:4]) for row in words}) == len(words)


def test_chains_of_one_seed_are_not_those_of_the_next():
    first, second = Noise.seeded(0, 2), Noise.seeded(1, 2)
    assert not torch.equal(first.normal(8)[1], second.normal(8)[0])


def test_stream_does_not_depend_on_how_many_run_beside_it():
    assert torch.equal(Noise.seeded(3, 2).normal(5, 2), Noise.seeded(3, 9).normal(5, 2)[:2])


def test_same_call_gives_the_same_numbers_and_folds_are_fresh():
    noise = Noise.seeded(0, 2)
    assert torch.equal(noise.normal(4), noise.normal(4))
    assert not torch.equal(noise.fold(1).normal(4), noise.normal(4))
    assert torch.equal(noise.fold(1, 2).key, noise.fold(1).fold(2).key)


def test_shapes_follow_the_chains():
    noise = Noise.seeded(0, 3)
    assert noise.normal().shape == (3,)
    assert noise.uniform(2, 5).shape == (3, 2, 5)
    assert noise.exponential(7).shape == (3, 7)
    assert len(noise.integers()) == 3
    assert all(0 <= number < 2**63 for number in noise.integers())


def test_exponential_has_mean_and_variance_one():
    draws = Noise.seeded(5, 1).exponential(200_000)[0].numpy()
    assert abs(draws.mean() - 1) < 4.5 / np.sqrt(draws.size)
    assert abs(draws.var() - 1) < 4.5 * np.sqrt(8 / draws.size)


def test_no_two_of_ten_thousand_streams_share_a_key():
    keys = torch.cat(
        [Noise.seeded(seed, 100).key for seed in [*range(50), *range(2**32, 2**32 + 50)]]
    )
    assert len({tuple(key) for key in keys.tolist()}) == 10_000


def test_first_uniform_numbers_do_not_depend_on_how_many_are_asked_for():
    noise = Noise.seeded(4, 3)
    assert torch.equal(noise.uniform(3), noise.uniform(1001)[:, :3])


def test_neighbours_in_a_stream_are_uncorrelated():
    number = 200_000
    for draws in (Noise.seeded(6, 1).normal(number)[0], Noise.seeded(6, 1).uniform(number)[0]):
        centred = (draws - draws.mean()) / draws.std()
        # the two halves of a normal draw are the sines and the cosines of the same angles
        for lag in (1, 2, 3, 4, number // 2):
            for power in (1, 2):
                power_of = centred**power - (centred**power).mean()
                products = power_of[lag:] * power_of[:-lag]
                assert abs(products.mean() / (products.std() / len(products) ** 0.5)) < 4.5


@pytest.mark.parametrize("concentration", [0.02, 0.5, 1.0, 3.7, 400.0])
def test_gamma_has_its_distribution(concentration):
    alpha = torch.full((1, 100_000), concentration, dtype=torch.float64)
    draws = Noise.seeded(7, 1).gamma(alpha)[0].numpy()
    assert stats.kstest(draws, stats.gamma(concentration).cdf).pvalue > 1e-4


def test_gamma_of_a_chain_does_not_depend_on_its_neighbours():
    alpha = torch.linspace(0.1, 9.0, 50, dtype=torch.float64)
    several = Noise.seeded(8, 3).gamma(alpha.expand(3, 50))
    assert torch.equal(Noise.seeded(8, 1).gamma(alpha[None])[0], several[0])


def test_dirichlet_has_its_marginals():
    alpha = torch.tensor([0.01, 0.3, 2.0, 5.0], dtype=torch.float64)
    draws = Noise.seeded(9, 1).dirichlet(alpha.expand(1, 100_000, 4))[0]
    assert torch.allclose(draws.sum(-1), torch.ones(100_000, dtype=torch.float64))
    for k in range(1, 4):
        marginal = stats.beta(float(alpha[k]), float(alpha.sum() - alpha[k]))
        assert stats.kstest(draws[:, k].numpy(), marginal.cdf).pvalue > 1e-4
    beta = stats.beta(0.01, 7.3)  # nearly all of it underflows: compare the mass above a point
    assert abs(float((draws[:, 0] > 1e-3).double().mean()) - beta.sf(1e-3)) < 4.5 * 0.5 / 316


def test_seeds_at_once_are_those_of_the_folds():
    noise = Noise.seeded(5, 1).fold(3)
    for first in (0, 7, 2**32 + 5):
        seeds = noise.seeds(first, 4)
        for step, seed in enumerate(seeds, first):
            with torch.random.fork_rng():
                noise.fold(step).seed_torch()
                assert torch.initial_seed() == seed
        assert len(set(seeds)) == 4
