"""Asymptotic variances and their bands, on chains whose answers are known exactly."""

import warnings

import numpy as np
import pytest

from inference import ergodic, mixing
from ppl_models import EngineError
from tests.chains import autoregressive, finite, metropolis

METHODS = ["monotone", "positive", "batch", "overlapping", "spectral"]


def exact(matrix):
    """sigma^2 of the state by the fundamental matrix (Kemeny & Snell 1960)."""
    size = len(matrix)
    stationary = np.linalg.matrix_power(matrix, 4096)[0]
    f = np.arange(size) - stationary @ np.arange(size)
    fundamental = np.linalg.inv(np.eye(size) - matrix + np.outer(np.ones(size), stationary))
    return 2 * stationary @ (f * (fundamental @ f)) - stationary @ f**2


def test_exact_variances_are_the_published_ones():
    two_state = np.array([[0.8, 0.2], [0.1, 0.9]])
    assert exact(two_state) == pytest.approx(1.2592592592592593)
    assert exact(metropolis(True)) == pytest.approx(38.2547625146806)
    assert exact(metropolis(False)) == pytest.approx(13.066362373624962)


CHAINS = {
    "two states": (lambda s: finite([[0.8, 0.2], [0.1, 0.9]], 20, 20_000, s), 1.2592592592592593),
    "random walk": (lambda s: finite(metropolis(True), 20, 20_000, s), 38.2547625146806),
    "independence": (lambda s: finite(metropolis(False), 20, 20_000, s), 13.066362373624962),
    "AR(1) 0.5": (lambda s: autoregressive(0.5, 20, 20_000, s), 3.0),
    "AR(1) 0.9": (lambda s: autoregressive(0.9, 20, 20_000, s), 19.0),
    "AR(1) -0.5": (lambda s: autoregressive(-0.5, 20, 20_000, s), 1 / 3),
}


@pytest.mark.parametrize("name", CHAINS)
def test_geyers_estimates_are_within_ten_per_cent(name):
    make, sigma2 = CHAINS[name]
    x = make(1)
    for method in ("monotone", "positive"):
        assert ergodic.asymptotic_variance(x, method) == pytest.approx(sigma2, rel=0.1)


@pytest.mark.parametrize("name", CHAINS)
def test_batch_estimates_are_within_their_known_bias(name):
    # of relative order tau / sqrt(N), downwards, for a window of sqrt(N)
    make, sigma2 = CHAINS[name]
    x = make(2)
    bias = ergodic.autocorrelation_time(x) / np.sqrt(x.shape[1])
    for method in ("batch", "overlapping", "spectral"):
        ratio = ergodic.asymptotic_variance(x, method) / sigma2
        assert 0.9 - bias < ratio < 1.1


@pytest.mark.parametrize("method", METHODS)
def test_scalars_are_estimated_each_for_itself(method):
    x = np.stack([autoregressive(0.3, 2, 400, s) for s in range(6)], -1).reshape(2, 400, 2, 3)
    together = ergodic.asymptotic_variance(x, method)
    alone = [ergodic.asymptotic_variance(x[:, :, i, j], method) for i in range(2) for j in range(3)]
    np.testing.assert_allclose(together.ravel(), alone)


def test_bands_cover_the_mean_as_often_as_they_say():
    # 1,000 chains: the standard error of a coverage of 95 % is 0.7 points
    hits = []
    for seed in range(1000):
        band = ergodic.running_mean(autoregressive(0.9, 1, 8000, seed), points=3)
        hits.append(band.lower[-1] < 0 < band.upper[-1])
    assert 0.93 <= np.mean(hits) <= 0.97


def test_bands_that_ignore_correlation_are_found_out():
    hits = []
    for seed in range(200):
        x = autoregressive(0.9, 1, 8000, seed)
        hits.append(abs(x.mean()) < 1.96 * x.std() / np.sqrt(x.size))
    assert np.mean(hits) < 0.8


def test_running_mean_ends_at_the_mean_of_all_draws():
    x = autoregressive(0.5, 3, 1000, 0)
    band = ergodic.running_mean(x, points=10)
    assert band.draws[-1] == 1000
    assert band.mean[-1] == pytest.approx(x.mean())
    assert (band.lower < band.mean).all()


def test_unknown_method_and_short_chains_are_refused():
    with pytest.raises(EngineError, match="choose one of monotone"):
        ergodic.asymptotic_variance(np.zeros((1, 20)), "geyer")  # type: ignore[arg-type]
    with pytest.raises(EngineError, match="at least 10"):
        ergodic.asymptotic_variance(np.zeros((1, 5)))


def test_mixing_figures_equal_arviz():
    import arviz as az

    rng = np.random.default_rng(0)
    tail = {"prob": (0.05, 0.95)} if int(az.__version__.split(".")[0]) else {}
    for chains, draws in [(4, 500), (4, 501), (2, 7), (3, 20)]:
        for rho in (-0.9, 0.0, 0.5, 0.95, 0.999):
            x = np.stack([autoregressive(rho, chains, draws, s) for s in range(4)], -1)
            x[..., 2] = rng.standard_cauchy(size=x.shape[:2])
            x[..., 3] = np.round(2 * x[..., 3])  # ties
            data = az.convert_to_dataset({"x": x})
            pairs = {
                "r_hat": (mixing.r_hat(x), az.rhat(data)),
                "bulk": (mixing.ess_bulk(x), az.ess(data, method="bulk")),
                "tail": (mixing.ess_tail(x), az.ess(data, method="tail", **tail)),
                "mean": (mixing.ess_mean(x), az.ess(data, method="mean")),
                "mcse": (mixing.mcse_mean(x), az.mcse(data, method="mean")),
                "quantile": (
                    mixing.ess_quantile(x, 0.3),
                    az.ess(data, method="quantile", prob=0.3),
                ),
                "local": (
                    mixing.ess_local(x, 0.2, 0.5),
                    az.ess(data, method="local", prob=(0.2, 0.5)),
                ),
            }
            for name, (ours, theirs) in pairs.items():
                expected = theirs.x.values
                known = np.isfinite(ours) & np.isfinite(expected)
                assert known[:3].all()
                np.testing.assert_allclose(ours[known], expected[known], rtol=1e-8, err_msg=name)


def nested(x, groups):
    """Margossian et al. (2024), equations 4 to 8, for one scalar (chain, draw)."""
    means, within = [], []
    for group in np.split(x, groups):
        means.append(group.mean())
        between = group.mean(1).var(ddof=1) if len(group) > 1 else 0.0
        within.append(between + (group.var(1, ddof=1).mean() if x.shape[1] > 1 else 0.0))
    return np.sqrt(1 + np.var(means, ddof=1) / np.mean(within))


@pytest.mark.parametrize(("chains", "groups", "draws"), [(12, 4, 1), (12, 2, 3), (6, 6, 2)])
def test_nested_r_hat_is_that_of_its_definition(chains, groups, draws):
    x = np.random.default_rng(0).standard_cauchy(size=(chains, draws, 5)) + np.arange(5)
    folded = np.abs(x - np.median(x, axis=(0, 1)))
    for scalar in range(5):
        scores = [mixing._rank(part)[..., scalar] for part in (x, folded)]
        expected = max(nested(part, groups) for part in scores)
        assert mixing.nested_r_hat(x, groups)[scalar] == pytest.approx(expected, rel=1e-12)


def test_halves_of_a_chain_stay_in_its_group():
    import arviz as az

    x = np.random.default_rng(1).normal(size=(12, 9, 3)).cumsum(1)
    halves = np.concatenate([x[:, :4], x[:, -4:]], axis=1).reshape(24, 4, 3)  # of a chain in turn
    folded = np.abs(halves - np.median(halves, axis=(0, 1)))
    expected = [
        max(nested(mixing._rank(part)[..., scalar], 4) for part in (halves, folded))
        for scalar in range(3)
    ]
    np.testing.assert_allclose(mixing.nested_r_hat(x, 4), expected, rtol=1e-12)
    if hasattr(az, "rhat_nested"):  # ArviZ 1.x
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found chain dimension to be longer than draw")
            data = az.convert_to_dataset({"x": x})
        theirs = az.rhat_nested(data, superchain_ids=np.repeat(np.arange(4), 3))
        np.testing.assert_allclose(mixing.nested_r_hat(x, 4), theirs.x.values, rtol=1e-8)


def test_nested_r_hat_tells_short_chains_that_remember_their_start():
    """B / W is 1 / M for M independent draws in a group, and above for chains with a memory."""
    rng = np.random.default_rng(2)
    start = rng.normal(size=(32, 1, 1, 500))
    noise = rng.normal(size=(32, 16, 1, 500))
    for memory in (0.0, 0.9):
        x = memory * start + np.sqrt(1 - memory**2) * noise
        ratio = mixing.nested_r_hat(x.reshape(512, 1, 500), 32) ** 2 - 1
        if memory:
            assert ratio.min() > 1
        else:
            # of the larger of two figures, each of mean 1 / 16 and relative sd sqrt(2 / 31)
            assert 1 / 16 < ratio.mean() < (1 + np.sqrt(2 / 31)) / 16


def test_groups_of_unequal_size_are_refused():
    for groups in (1, 5, 0):
        with pytest.raises(EngineError, match="12 chains do not make"):
            mixing.nested_r_hat(np.zeros((12, 4)), groups)


def test_effective_sizes_grow_with_the_draws():
    x = autoregressive(0.5, 4, 3000, 0)[..., None]
    n, sizes = mixing.growth(mixing.ess_mean, x, points=6)
    assert n.tolist() == [500, 1000, 1500, 2000, 2500, 3000]
    np.testing.assert_allclose(sizes[:, 0] * 3 / (4 * n), 1, rtol=0.25)  # the exact time is 3
    assert sizes[-1] == mixing.ess_mean(x)


def test_parts_of_the_space_that_are_seldom_visited_have_small_sizes():
    states = finite([[0.99, 0.01], [0.5, 0.5]], 4, 5000, 0) * 1.0
    x = states + 1e-3 * np.random.default_rng(0).normal(size=states.shape)
    assert mixing.ess_local(x, 0.985, 1.0) < 0.5 * mixing.ess_local(x, 0.4, 0.6)
    with pytest.raises(EngineError, match="0 <= low < high <= 1"):
        mixing.ess_local(x, 0.5, 0.5)
