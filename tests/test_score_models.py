"""Score and energy models trained by all losses have the scores of Gaussian data."""

import math

import pytest
import torch
from torch import nn

from inference import HMC, MALA, NUTS, SVI, ScoreMatching, fit, target
from ppl_models import DataError, EnergyModel, EngineError, Flow, ModelError, ScoreModel
from ppl_models.denoisers import MLPDenoiser
from tests.statistics import check, draws, quiet
from tests.targets import Known, real

COVARIANCE = real(1.0, 0.6, 0.6, 2.0).reshape(2, 2)
CENTRE = real(0.5, -1.0)
SD = 0.5
LOSSES = {
    "implicit": ScoreMatching(),
    "sliced": ScoreMatching("sliced", directions=2),
    "denoising": ScoreMatching("denoising", sd=SD),
}
CHAINS = {"chains": 64, "warmup": 100, "draws": 100, "tier": "traced"}
KERNELS = {"mala": MALA(**CHAINS), "hmc": HMC(**CHAINS, steps=5), "nuts": NUTS(**CHAINS)}


def rows():
    normal = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(0)).double()
    white = (normal - normal.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(normal.T.cov())).T
    return CENTRE + white @ torch.linalg.cholesky(COVARIANCE).T  # whose moments are exact


class Quadratic(nn.Module):
    """(x - m)' P (x - m) / 2 up to a constant, P = root root'."""

    def __init__(self):
        super().__init__()
        self.root = nn.Parameter(torch.eye(2))
        self.slope = nn.Parameter(torch.zeros(2))

    def forward(self, x):
        return 0.5 * (x @ self.root).square().sum(-1) - x @ self.slope


def engine(loss):
    return SVI(
        objective=loss,
        steps=400,
        batch_size=1000,
        learning_rate=0.03,
        average=0.98,
        plateau=False,
        tier="traced",
    )


@pytest.mark.parametrize("name", LOSSES)
def test_the_energy_of_gaussian_data_has_their_precision(name):
    found = quiet(EnergyModel(Quadratic(), 2).double(), rows(), engine(LOSSES[name]))
    assert found.posterior.attributes["tier"] == "traced"
    assert found.posterior.attributes["steps"] == 400
    network = found.model.network
    noise = SD**2 if name == "denoising" else 0.0
    precision = torch.linalg.inv(COVARIANCE + noise * torch.eye(2))
    root = network.root.detach()
    torch.testing.assert_close(root @ root.T, precision, atol=0.04, rtol=0)
    torch.testing.assert_close(network.slope.detach(), precision @ CENTRE, atol=0.05, rtol=0)


@pytest.mark.parametrize("name", ["implicit", "sliced"])
def test_a_linear_score_network_has_it_too(name):
    found = quiet(ScoreModel(nn.Linear(2, 2), 2).double(), rows(), engine(LOSSES[name]))
    x = rows()[:50]
    exact = (CENTRE - x) @ torch.linalg.inv(COVARIANCE)
    torch.testing.assert_close(found.model.score(x).detach(), exact, atol=0.1, rtol=0)


def exact_energy():
    model = EnergyModel(Quadratic(), 2).double()
    precision = torch.linalg.inv(COVARIANCE)
    with torch.no_grad():
        model.network.root.copy_(torch.linalg.cholesky(precision))
        model.network.slope.copy_(precision @ CENTRE)
    model.trained = True
    return model


GAUSSIAN = Known(
    exact_energy(),
    mean={"x[0]": 0.5, "x[1]": -1.0},
    sd={"x[0]": 1.0, "x[1]": math.sqrt(2.0)},
    covariance={("x[0]", "x[1]"): 0.6},
)


@pytest.mark.parametrize("name", KERNELS)
def test_samplers_draw_from_an_energy(name):
    check(draws(GAUSSIAN, KERNELS[name]), GAUSSIAN, GAUSSIAN.moments * len(KERNELS))


def test_an_energy_is_a_target():
    x = rows()[:5]
    value, slope = target(exact_energy()).log_density_and_grad(x)
    torch.testing.assert_close(value, -exact_energy().energy(x).detach())
    torch.testing.assert_close(slope, exact_energy().score(x).detach())


def test_a_run_goes_on_where_it_stopped(tmp_path):
    half = SVI(objective=LOSSES["sliced"], steps=20, batch_size=100, plateau=False, tier="traced")
    whole = SVI(objective=LOSSES["sliced"], steps=40, batch_size=100, plateau=False, tier="traced")
    model = EnergyModel(Quadratic(), 2).double()
    fit(model, rows(), half, store=tmp_path / "run", progress=False)
    resumed = fit(model, rows(), whole, resume=tmp_path / "run", progress=False).model
    at_once = fit(model, rows(), whole, progress=False).model
    torch.testing.assert_close(resumed.network.root, at_once.network.root, rtol=0, atol=0)


def test_the_network_sees_the_level_and_units_of_the_rows():
    class Echo(nn.Module):
        def forward(self, x, time):
            return x * time[:, None]

    model = ScoreModel(Echo(), 2, sds=(4.0, 2.0, 1.0)).double()
    model.prepare(10 + 3 * rows())
    z = (rows()[:3] * 3 + 10 - model.centre) / model.spread
    for sd, time in ((4.0, 1.0), (2.0, 2 / 3), (1.0, 1 / 3)):
        seen = z / math.sqrt(1 + (sd / float(model.spread)) ** 2)
        torch.testing.assert_close(model.score(3 * rows()[:3] + 10, sd), -seen * time / sd)


def test_what_cannot_be_trained_is_refused():
    energy, levels = EnergyModel(Quadratic(), 2), ScoreModel(MLPDenoiser(2, 8, 1), 2, (2.0, 1.0))
    with pytest.raises(ModelError, match=r"no normalised density.*SVI\(objective=ScoreMatching"):
        quiet(energy, rows(), SVI())
    with pytest.raises(ModelError, match="needs sd="):
        quiet(energy, rows(), SVI(objective=ScoreMatching("denoising")))
    with pytest.raises(ModelError, match="has noise levels"):
        quiet(levels, rows(), SVI(objective=ScoreMatching()))
    with pytest.raises(EngineError, match="ScoreMatching needs HasScore"):
        quiet(Flow(2), rows(), SVI(objective=ScoreMatching()))
    with pytest.raises(EngineError, match="choose 'implicit'"):
        ScoreMatching("exact")  # type: ignore[arg-type]
    with pytest.raises(EngineError, match="sd=-1"):
        ScoreMatching("denoising", sd=-1)
    with pytest.raises(DataError, match="training needs rows"):
        quiet(energy, None, SVI(objective=ScoreMatching()))
    with pytest.raises(DataError, match=r"shape \(5, 3\); give rows of 2"):
        quiet(energy, torch.ones(5, 3), SVI(objective=ScoreMatching()))
    with pytest.raises(EngineError, match="does not train the program's weights"):
        quiet(energy, None, NUTS())
    with pytest.raises(DataError, match="no column varies"):
        levels.prepare(torch.ones(5, 2))
    with pytest.raises(ModelError, match="numbers that decrease"):
        ScoreModel(MLPDenoiser(2), 2, (1.0, 2.0))
    with pytest.raises(ModelError, match="dim=0"):
        EnergyModel(Quadratic(), 0)
