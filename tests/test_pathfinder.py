"""Pathfinder: its algebra against dense matrices, its answers against closed forms.

A path that has gone through the dimensions of a Gaussian knows its mean and covariance. Statistical
checks fail for right code with a chance below ``LEVEL``; they were seen to fail where the Cauchy's
share is left out of the weights.
"""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch.distributions import MultivariateNormal, kl_divergence

from inference import HMC, NUTS, Pathfinder, RowWise, Target, Until, fit
from inference.climb import Matrices, climb
from inference.pathfinder import Factors, Normals, find, warm_start
from ppl_models import EngineError, LogisticRegression, ModelError, Noise
from tests.statistics import quiet

LEVEL = 1e-4
CHECKS = 20
CRITICAL = float(stats.norm.isf(LEVEL / CHECKS / 2))
REAL = {"dtype": torch.float64}


def numbers(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def gaussian(dim):
    """The mean and a covariance of sds from 0.3 to 10 along random axes."""
    axes, _ = torch.linalg.qr(numbers(dim, dim, dim))
    return 3 * numbers(1, dim), axes @ torch.diag(torch.logspace(-1, 2, dim, **REAL)) @ axes.T


def factors(paths=3, dim=5, history=4, steps=6):
    """Factors after steps on a quadratic, one of them rejected, and the pairs that they hold."""
    curvature = torch.linalg.inv(gaussian(dim)[1])
    inverse, pairs = Factors.unit(torch.zeros(paths, dim, **REAL), history), []
    for k in range(steps):
        step = numbers(20 + k, paths, dim)
        good = torch.tensor([True, k != 4, True])
        inverse = inverse.updated(step, step @ curvature, good)
        pairs.append((step, step @ curvature, good))
    return inverse, pairs


def test_factors_are_bfgs_on_their_diagonal():
    inverse, pairs = factors()
    for path in range(3):
        dense = Matrices(torch.diag(inverse.diagonal[path])[None])
        used = [(s, z) for s, z, good in pairs if good[path]][-4:]
        for step, bend in used:
            dense = dense.updated(step[None, path], bend[None, path], torch.tensor([True]))
        v = numbers(7, 3, 5)
        torch.testing.assert_close(inverse.times(v)[path], dense.matrix[0] @ v[path])


@pytest.mark.parametrize(("dim", "history"), [(5, 4), (12, 2)])
def test_normals_have_the_covariance_of_the_factors(dim, history):
    inverse, _ = factors(dim=dim, history=history)
    x, gradient = numbers(8, 3, dim), numbers(9, 3, dim)
    normals, proper = Normals.of(x, gradient, inverse)
    assert bool(proper.all())
    beta, gamma = inverse.low_rank()
    covariance = torch.diag_embed(inverse.diagonal) + beta @ gamma @ beta.mT
    mean = x + (covariance @ gradient[..., None])[..., 0]
    torch.testing.assert_close(normals.mean, mean)
    points = numbers(10, 3, 6, dim)
    exact = torch.stack(
        [
            MultivariateNormal(m, c).log_prob(p)
            for m, c, p in zip(mean, covariance, points, strict=True)
        ]
    )
    torch.testing.assert_close(normals.log_density(points), exact)
    root = normals.draws(torch.eye(dim, **REAL).expand(3, -1, -1)) - mean[:, None]
    torch.testing.assert_close(root.mT @ root, covariance)


def test_wide_proposals_have_the_density_of_a_normal_and_a_cauchy():
    inverse, _ = factors()
    normals, _ = Normals.of(numbers(8, 3, 5), numbers(9, 3, 5), inverse)
    points, beta = 3 * numbers(10, 3, 6, 5), inverse.low_rank()
    covariance = torch.diag_embed(inverse.diagonal) + beta[0] @ beta[1] @ beta[0].mT
    for path in range(3):
        mean, shape = normals.mean[path].numpy(), covariance[path].numpy()
        normal = stats.multivariate_normal(mean, shape).pdf(points[path])
        cauchy = stats.multivariate_t(mean, shape, df=1).pdf(points[path])
        found = normals.log_wide(points)[path].exp()
        np.testing.assert_allclose(found, 0.8 * normal + 0.2 * cauchy)


def test_an_update_of_the_diagonal_is_that_of_the_paper():
    before = torch.tensor([[1.0, 2.0, 0.5]], **REAL)
    step, bend = torch.tensor([[0.3, -0.2, 1.0]], **REAL), torch.tensor([[0.5, -0.1, 0.4]], **REAL)
    factors = Factors(before, torch.zeros(1, 2, 3, **REAL), torch.zeros(1, 2, 3, **REAL))
    found = factors.updated(step, bend, torch.tensor([True])).diagonal[0]
    a, s, z = before[0].numpy(), step[0].numpy(), bend[0].numpy()
    e, f, g = (z * a * z).sum(), (z * s).sum(), (s / a * s).sum()
    # Zhang et al., algorithm 3
    expected = 1 / (e / (f * a) + z**2 / f - e * s**2 / (f * g * a**2))
    np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize("dim", [1, 3, 10])
def test_paths_find_the_mean_and_covariance_of_a_gaussian(dim):
    mean, covariance = gaussian(dim)
    law = MultivariateNormal(mean, covariance)
    target = Target(law.log_prob, dim, tier="eager")
    noise = Noise.seeded(0, 8)
    paths = find(target, target, target.start(noise.fold(0)), noise.fold(1), 30, 25)
    eye = torch.eye(dim, **REAL).expand(8, -1, -1)
    root = paths.normals.draws(eye) - paths.normals.mean[:, None]
    found = [MultivariateNormal(m, r.T @ r) for m, r in zip(paths.normals.mean, root, strict=True)]
    assert max(float(kl_divergence(one, law)) for one in found) < 0.1
    # the ELBO of the exact normal is zero, whatever the draws
    best = found[int(paths.elbo.abs().argmin())]
    torch.testing.assert_close(best.mean, mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(best.covariance_matrix, covariance, rtol=0, atol=1e-6)


def test_draws_of_a_gaussian_have_its_moments_and_evidence():
    mean, covariance = gaussian(6)

    def program():
        pyro.sample("x", dist.MultivariateNormal(mean, covariance))

    fitted = fit(program, None, Pathfinder(proposals=20_000, draws=4000, tier="traced"))
    assert not fitted.warnings
    assert fitted.posterior.attributes["pareto_k"] < 0.3
    size = 1 / (1 / 4000 + 1 / fitted.posterior.attributes["importance_ess"])
    root = torch.linalg.cholesky(covariance)
    centred = fitted.posterior.draws["x"][0] - mean
    white = torch.linalg.solve_triangular(root, centred.T, upper=False).T
    assert float(white.mean(0).abs().max()) < CRITICAL / math.sqrt(size)
    product = white[:, :, None] * white[:, None, :]
    wrong = product.mean(0) - torch.eye(6, **REAL)
    assert float((wrong / product.std(0)).abs().max()) < CRITICAL / math.sqrt(size)
    error = fitted.posterior.attributes["log_evidence_error"]
    assert abs(fitted.posterior.attributes["log_evidence"]) < CRITICAL * error


def banana():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("b", dist.Normal(a.square(), 0.3))


def funnel():
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    pyro.sample("x", dist.Normal(torch.zeros(9), (v / 2).exp()).to_event(1))


@pytest.mark.parametrize("program", [banana, funnel])
@pytest.mark.parametrize("seed", range(3))
def test_k_hat_tells_of_a_posterior_that_is_not_normal(program, seed):
    fitted = quiet(program, None, Pathfinder(tier="traced"), seed=seed)
    (finding,) = [f for f in fitted.findings if f.name == "pareto_k"]
    assert finding.severity == "error"
    assert "or use NUTS" in finding.text


def modes():
    x = pyro.sample("x", dist.ImproperUniform(dist.constraints.real, (), ()))
    weights, centres = torch.tensor([0.25, 0.75]), torch.tensor([-6.0, 6.0])
    parts = dist.Normal(centres.to(x), torch.tensor([1.0, 0.5]).to(x)).log_prob(x[..., None])
    pyro.factor("density", (parts + weights.to(x).log()).logsumexp(-1))


def test_paths_that_meet_in_a_mode_do_not_count_it_twice():
    fitted = quiet(modes, None, Pathfinder(paths=12, proposals=20_000, draws=4000, tier="traced"))
    x = fitted.posterior.draws["x"][0]
    error = math.sqrt(0.25 * 0.75 * (1 / 4000 + 1 / fitted.posterior.attributes["importance_ess"]))
    assert abs(float((x < 0).double().mean()) - 0.25) < CRITICAL * error
    # while more paths end in the smaller mode; their ELBOs are the log weights of the modes
    ends = torch.tensor(fitted.posterior.attributes["path_elbos"], **REAL)
    assert 0 < int((ends > -0.8).sum()) < 6
    torch.testing.assert_close(ends.exp(), torch.where(ends > -0.8, 0.75, 0.25).to(ends))


def test_climbs_by_factors_and_by_matrices_reach_the_same_mode():
    data = {"x": numbers(3, 40, 4), "y": (numbers(4, 40) > 0).double()}
    fitted = quiet(LogisticRegression(), data, Pathfinder(draws=10, tier="traced"))
    density = Target(fitted.program.log_density, 5, tier="traced")
    start = density.start(Noise.seeded(1, 6))
    unit = torch.ones(5, **REAL)
    dense = climb(density.uncompiled(), start, unit)
    sparse = climb(density.uncompiled(), start, unit, Factors.unit(start, 4))
    assert bool((dense.arrived & sparse.arrived).all())
    torch.testing.assert_close(dense.x, sparse.x, rtol=0, atol=1e-2)
    torch.testing.assert_close(dense.log_density, sparse.log_density, rtol=0, atol=1e-5)


# -- as the beginning of chains -------------------------------------------------------------------


def correlated():
    pyro.sample("x", dist.MultivariateNormal(*gaussian(12)))


@pytest.mark.parametrize("dense", [True, False])
def test_chains_begin_as_spread_as_a_gaussian_and_with_its_scale(dense):
    mean, covariance = gaussian(6)
    target = Target(MultivariateNormal(mean, covariance).log_prob, 6, tier="eager")
    noise = Noise.seeded(2, 100)
    x, scale = warm_start(target, target.start(noise.fold(0)), noise.fold(1), dense=dense)
    found = MultivariateNormal(mean, scale @ scale.T if dense else torch.diag(scale.square()))
    exact = covariance if dense else torch.diag(covariance.diagonal())
    assert float(kl_divergence(found, MultivariateNormal(mean, exact))) < 0.05
    root = torch.linalg.cholesky(covariance)
    white = torch.linalg.solve_triangular(root, (x - mean).T, upper=False).T
    product = white[:, :, None] * white[:, None, :]
    wrong = (product.mean(0) - torch.eye(6, **REAL)) / product.std(0)
    assert float(white.mean(0).abs().max()) < CRITICAL / 10
    # the normals of paths are at most 0.1 nats from the posterior
    assert float(wrong.abs().max()) < CRITICAL / 10 + 0.1


def pair():
    x = pyro.sample("x", dist.ImproperUniform(dist.constraints.real, (), ()))
    pyro.factor("density", torch.logaddexp(-0.5 * (x - 6).square(), -0.5 * (x + 6).square()))


def test_chains_begin_in_the_modes_where_their_paths_end():
    program = quiet(modes, None, Pathfinder(draws=4, tier="traced")).program
    target = Target(program.log_density, 1, tier="traced")
    noise = Noise.seeded(0, 12)
    x, _ = warm_start(target, target.start(noise.fold(0)), noise.fold(1), dense=False)
    assert 0 < int((x > 0).sum()) < 12
    engine = NUTS(chains=8, warmup=100, draws=400, starts="pathfinder", tier="traced")
    figures = {finding.name: finding.figure for finding in quiet(pair, None, engine).findings}
    assert figures["r_hat"] > 1.3  # of ranks; chains that agree stay below 1.05


@pytest.mark.parametrize("sampler", [NUTS, HMC])
def test_a_warm_start_spares_gradients(sampler):
    settings = {"warmup": 300, "draws": 20, "tier": "traced"}
    found = [
        quiet(correlated, None, sampler(**settings, starts=starts)).posterior.attributes
        for starts in ("uniform", "pathfinder")
    ]
    if sampler is NUTS:
        assert found[1]["warmup_steps"] < 0.6 * found[0]["warmup_steps"]
    else:  # of fixed number
        assert found[1]["warmup_steps"] == found[0]["warmup_steps"]
        assert found[1]["step_size"] > 0.5


@pytest.mark.parametrize("starts", ["uniform", "pathfinder"])
def test_warm_up_ends_where_it_has_converged(starts):
    settings = {"draws": 400, "starts": starts, "tier": "traced"}
    found = quiet(correlated, None, NUTS(**settings, adapt="until converged")).posterior
    assert found.attributes["warmup_draws"] < 500
    whole = quiet(correlated, None, NUTS(**settings)).posterior
    assert whole.attributes["warmup_draws"] == 1000
    assert found.attributes["warmup_steps"] < whole.attributes["warmup_steps"]
    mean, covariance = gaussian(12)
    root = torch.linalg.cholesky(covariance)
    white = torch.linalg.solve_triangular(
        root, (found.draws["x"] - mean).flatten(0, 1).T, upper=False
    )
    # 1,600 draws of NUTS on a Gaussian are worth more for means, not much less for variances
    assert float(white.mean(1).abs().max()) < CRITICAL / 400**0.5
    assert float((white.var(1) - 1).abs().max()) < CRITICAL * (2 / 400) ** 0.5


@pytest.mark.parametrize("program", [funnel, pair])
def test_warm_up_goes_on_where_chains_do_not_agree(program):
    engine = NUTS(chains=8, draws=20, warmup=400, adapt="until converged", tier="traced")
    assert quiet(program, None, engine).posterior.attributes["warmup_draws"] == 400


def test_rows_do_not_begin_at_paths():
    with pytest.raises(EngineError, match=r"without proposal, from uniform starts"):
        RowWise(NUTS(starts="pathfinder"))


def test_a_density_that_is_finite_almost_nowhere_is_an_error():
    def density(x):
        return torch.where((x.abs() < 1e-3).all(-1), 0.0 * x.sum(-1), torch.nan)

    target = Target(density, 2, tier="eager")
    with pytest.raises(ModelError, match=r"no normal approximation with a finite ELBO.*use NUTS"):
        find(target, target, torch.zeros(3, 2, **REAL), Noise.seeded(0, 3), 6, 25)


def test_without_time_there_is_nothing_to_return():
    with pytest.raises(EngineError, match=r"were over before the paths ended.*give more seconds"):
        fit(banana, None, Pathfinder(tier="traced"), until=Until(seconds=1e-9))
