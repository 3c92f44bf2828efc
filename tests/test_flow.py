"""Flows are invertible maps with exact Jacobians; their densities integrate to one."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from inference import SVI, mmd
from ppl_models import DataError, Flow, ModelError
from ppl_models.flow import Coupling
from tests.statistics import LEVEL, quiet
from tests.test_sabotage import Sabotage

KINDS = ("spline", "realnvp")


def bent(dim, kind, size=0.2, bins=8):
    """A map with random weights of that size."""
    coupling = Coupling(dim, kind, layers=3, hidden=8, bins=bins).double()
    numbers = torch.Generator().manual_seed(dim)
    with torch.no_grad():
        for parameter in coupling.parameters():
            parameter.copy_(size * torch.randn(parameter.shape, generator=numbers))
    return coupling


def rows(count, dim, seed=0):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("bins", [2, 8])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_the_map_is_its_inverses_inverse_with_the_jacobian_of_autograd(dim, kind, bins):
    coupling = bent(dim, kind, bins=bins)
    z = 2 * rows(20, dim)
    x, log_det = coupling(z)
    assert float((x - z).detach().abs().max()) > 0.02
    back, back_det = coupling.inverse(x)
    torch.testing.assert_close(back, z, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(back_det, -log_det, rtol=1e-7, atol=1e-7)
    for i in range(5):
        jacobian = torch.autograd.functional.jacobian(lambda v: coupling(v)[0], z[i])
        torch.testing.assert_close(log_det[i], torch.linalg.slogdet(jacobian).logabsdet)


@pytest.mark.parametrize("kind", KINDS)
def test_an_untrained_map_is_the_identity(kind):
    z = rows(10, 3)
    x, log_det = Coupling(3, kind).double()(z)
    torch.testing.assert_close(x, z)
    torch.testing.assert_close(log_det, torch.zeros(10).double(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_densities_integrate_to_one_and_are_those_of_the_draws(kind):
    flow = Flow(2, kind).double()
    flow.map = bent(2, kind)
    flow.centre.copy_(torch.tensor([1.0, -2.0]))
    flow.scale.copy_(torch.tensor([0.5, 2.0]))
    drawn = flow.sample(20_000, seed=1)
    lows, highs = drawn.amin(0) - 2, drawn.amax(0) + 2
    axes = [torch.linspace(float(a), float(b), 400) for a, b in zip(lows, highs, strict=True)]
    cell = math.prod(float(axis[1] - axis[0]) for axis in axes)
    grid = torch.cartesian_prod(*axes).double()
    with torch.no_grad():
        log_p, log_drawn = flow.log_density(grid), flow.log_density(drawn)
    assert float(log_p.exp().sum()) * cell == pytest.approx(1, abs=1e-3)
    entropy = -float((log_p.exp() * log_p).sum()) * cell
    error = float(log_drawn.std()) / math.sqrt(len(drawn))
    assert abs(-float(log_drawn.mean()) - entropy) < 4.5 * error + 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_a_forgotten_jacobian_is_noticed(kind, monkeypatch):
    Sabotage(Coupling, "inverse", "log_det + change", "log_det").commit(monkeypatch)
    with pytest.raises(AssertionError):
        test_densities_integrate_to_one_and_are_those_of_the_draws(kind)


def correlated(count, seed):
    """Of mean (10, 10), sds 1 and correlation 0.8."""
    return 10 + rows(count, 2, seed) @ torch.tensor([[1.0, 0.0], [0.8, 0.6]]).double().T


def seeded(*args, **settings):
    """A flow whose first weights are always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Flow(*args, **settings)


def trained(steps=300):
    flow = seeded(2, "realnvp", layers=2, hidden=16)
    engine = SVI(steps=steps, batch_size=256, learning_rate=0.01, plateau=False, tier="traced")
    return quiet(flow, correlated(2000, seed=1), engine).model


def test_minibatches_fit_it_by_maximum_likelihood():
    flow = trained()
    x = correlated(20_000, seed=2)
    root = torch.tensor([[1.0, 0.0], [0.8, 0.6]])
    exact = torch.distributions.MultivariateNormal(torch.full((2,), 10.0), scale_tril=root)
    with torch.no_grad():
        gap = exact.log_prob(x.float()) - flow.log_density(x)
    error = float(gap.std()) / math.sqrt(len(gap))
    assert -4.5 * error < float(gap.mean()) < 0.03  # nats of divergence, never below zero
    assert mmd(flow.sample(1000, seed=3), x[:1000]).p_value > LEVEL


def test_splines_reach_the_entropy_of_a_density_with_two_modes():
    def density(x):
        return 0.3 * stats.norm.pdf(x, -2, 0.5) + 0.7 * stats.norm.pdf(x, 2, 0.7)

    entropy = integrate.quad(lambda x: -density(x) * math.log(density(x)), -8, 8, limit=200)[0]
    numbers = np.random.default_rng(0)
    left = numbers.random(40_000) < 0.3
    x = numbers.normal(np.where(left, -2, 2), np.where(left, 0.5, 0.7))[:, None]
    engine = SVI(steps=300, batch_size=500, learning_rate=0.03, plateau=False, tier="traced")
    flow = quiet(Flow(1, layers=1, bins=12).double(), x[:20_000], engine).model
    with torch.no_grad():
        log_q = flow.log_density(torch.as_tensor(x[20_000:])).numpy()
    gap = np.log(density(x[20_000:, 0])) - log_q
    assert -4.5 * gap.std() / math.sqrt(len(gap)) < gap.mean() < 0.03
    error = log_q.std() / math.sqrt(len(log_q))
    assert -log_q.mean() == pytest.approx(entropy, abs=0.03 + 4.5 * error)


def test_a_fit_without_latent_sites_predicts_and_judges_rows():
    x = correlated(500, seed=1)
    found = quiet(seeded(2, "realnvp", layers=2, hidden=8), x, SVI(steps=50, tier="traced"))
    assert found.summary().empty
    assert found.predict()["x"].shape == (64, 2)  # as many rows as the fit holds
    log_p = found.model.log_density(found.data["x"])
    torch.testing.assert_close(found.log_likelihood()["x"], log_p)


def test_an_untrained_model_takes_its_units_from_the_rows_and_a_trained_one_keeps_them():
    flow = trained(steps=1)
    assert float((flow.centre - 10).abs().max()) < 0.2
    before = flow.centre.clone()
    flow.prepare(rows(100, 2))
    torch.testing.assert_close(flow.centre, before)


def test_settings_and_rows_out_of_range_are_refused():
    with pytest.raises(ModelError, match="kind='maf'"):
        Coupling(2, "maf")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="layers=0"):
        Flow(2, layers=0)
    with pytest.raises(ModelError, match="bins=1"):
        Flow(2, bins=1)
    with pytest.raises(DataError, match=r"shape \(5, 3\); give at least two rows of 2"):
        Flow(2).prepare(torch.ones(5, 3))
    with pytest.raises(DataError, match="column 1 does not vary"):
        Flow(2).prepare(torch.tensor([[1.0, 1.0], [2.0, 1.0]]))
    with pytest.raises(DataError, match="row 1 is missing"):
        Flow(2).prepare({"x": torch.tensor([[1.0, 1.0], [torch.nan, 1.0]])})
    with pytest.raises(DataError, match="count=0"):
        Flow(2).sample(0)
