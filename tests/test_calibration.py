"""Simulation-based calibration: right engines pass, broken ones fail, at one stated level."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from inference import EM, HMC, MH, NUTS, Gibbs, ImportanceSampling, Posterior, mh, sbc
from inference.calibration import Calibration
from ppl_models import EngineError, ModelError
from tests.programs import FEW, Means, improper, with_factor
from tests.statistics import LEVEL
from tests.targets import NormalMeanVariance
from tests.test_sabotage import Sabotage

SHORT = {"chains": 1, "warmup": 120, "draws": 60, "tier": "traced"}
GIBBS = Gibbs(chains=1, warmup=10, draws=30)
Y = torch.linspace(-1.0, 2.0, 8, dtype=torch.float64)


def simplex(y, extra):
    p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Categorical(p), obs=y)
        pyro.sample("extra", dist.Normal(m, 1.0), obs=extra)


CASES = {
    "nuts": (NormalMeanVariance(), {"y": Y}, NUTS(**SHORT)),
    "hmc": (NormalMeanVariance(), {"y": Y}, HMC(steps=6, **SHORT)),
    "mh": (NormalMeanVariance(), {"y": Y}, MH(**SHORT)),
    "gibbs": (NormalMeanVariance(), {"y": Y}, GIBBS),
    "simplex": (
        simplex,
        {"y": torch.tensor([0, 1, 1, 2]), "extra": Y[:4]},
        HMC(steps=6, **SHORT),
    ),
}


def run(name, replications=200, **options):
    program, data, engine = CASES[name]
    if name == "gibbs":
        replications = 50
    return sbc(program, data, engine, replications=replications, level=LEVEL, seed=1, **options)


@pytest.mark.parametrize("name", CASES)
def test_right_engines_pass(name):
    result = run(name)
    assert result.passed, result.table
    assert not result.findings
    assert (result.table["ecdf_p"] > 0).all()


BROKEN = {
    "the random walk drifts": (
        "mh",
        Sabotage(mh.MH, "step", "randomness.normal)", "randomness.normal + 0.6)"),
    ),
    "hmc draws momenta too narrow": (
        "hmc",
        Sabotage(HMC, "step", "momentum = randomness.normal", "momentum = 0.6 * randomness.normal"),
    ),
    "a conditional forgets the prior of the variance": (
        "gibbs",
        Sabotage(NormalMeanVariance, "conditionals", "2 * self.A + n + 1", "n + 1"),
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_kernels_fail(name, monkeypatch):
    place, sabotage = BROKEN[name]
    sabotage.commit(monkeypatch)
    result = run(place)
    assert not result.passed, result.table
    assert result.findings


def test_a_posterior_that_ignores_the_data_fails_by_its_log_likelihood_alone():
    """Draws of the prior have uniform ranks for parameters (Modrak et al. 2023)."""

    def program(y):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(m, 1.0).expand([5]).to_event(1), obs=y)

    class Prior(ImportanceSampling):
        def run(self, problem):
            x = problem.noise(1).normal(50, 1)
            return Posterior("approximation", problem.outputs.constrain(x), unconstrained=x)

    result = sbc(program, {"y": torch.zeros(5)}, Prior(), replications=100, level=LEVEL)
    table = result.table["ecdf_p"]
    assert table["m"] > 0.01
    assert table["log_likelihood"] < LEVEL
    assert not result.passed


def test_bias_and_width_are_named():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=500)
    wide = 2 * rng.normal(size=(500, 19))
    low = rng.normal(size=(500, 19)) - 0.5
    ranks = {name: (x < truth[:, None]).sum(1) for name, x in {"wide": wide, "low": low}.items()}
    result = Calibration(ranks, 20, 0.01, 19.0)
    assert result.table.loc["wide", "width"] < -5
    assert result.table.loc["low", "bias"] > 5
    assert any("spread too widely" in text for text in result.findings)
    assert any("lie too low" in text for text in result.findings)
    assert len(result.plot().axes) == 2


def test_ecdf_p_values_of_uniform_ranks_are_uniform():
    """Their distribution is discrete, a little conservative: tested against its upper side."""
    rng = np.random.default_rng(2)
    p = []
    for ranks in rng.integers(0, 20, size=(400, 100)):
        p.append(Calibration({"a": ranks}, 20, 0.01, 19.0).table.loc["a", "ecdf_p"])
    for level in (0.05, 0.2, 0.5):
        assert stats.binomtest(int((np.array(p) <= level).sum()), 400, level).pvalue > 1e-3


def test_the_band_holds_uniform_ranks_as_often_as_it_says():
    rng = np.random.default_rng(3)
    result = Calibration({"a": rng.integers(0, 20, 100)}, 20, 0.01, 19.0)
    band = result.band(0.05)
    sets = rng.multinomial(100, np.full(20, 0.05), size=4000).cumsum(1)[:, :-1] / 100
    inside = ((sets >= band.lower) & (sets <= band.upper)).all(1).mean()
    assert 0.93 < inside < 0.97


def test_truth_and_draws_are_relabelled_together():
    result = sbc(
        Means(2), {"y": FEW}, HMC(steps=6, **SHORT), replications=60, level=LEVEL, together=True
    )
    assert result.passed, result.table
    assert {"mu[0]", "mu[1]"} <= set(result.ranks)


def test_statistics_take_the_place_of_the_sites():
    program, data, engine = CASES["hmc"]
    result = sbc(
        program,
        data,
        engine,
        replications=40,
        level=LEVEL,
        statistics=lambda draws: {"square": draws["mean"].square()},
    )
    assert set(result.ranks) == {"square", "log_likelihood"}


def test_data_are_assembled_where_observed_sites_are_no_fields():
    def walk(y):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        for t in range(len(y)):
            m = pyro.sample(f"y{t}", dist.Normal(m, 1.0), obs=y[t])

    def assemble(template, drawn):
        return {"y": torch.stack([drawn["y0"], drawn["y1"]])}

    engine = HMC(steps=6, **SHORT)
    with pytest.raises(ModelError, match="assemble"):
        sbc(walk, {"y": Y[:2]}, engine, replications=40)
    assert sbc(walk, {"y": Y[:2]}, engine, replications=40, assemble=assemble, level=LEVEL).passed


def test_what_cannot_be_calibrated_is_refused():
    data = {"y": torch.as_tensor(FEW)}
    with pytest.raises(ModelError, match="improper"):
        sbc(improper, data, NUTS(**SHORT), replications=20)
    with pytest.raises(ModelError, match=r"pyro\.factor"):
        sbc(with_factor, data, NUTS(**SHORT), replications=20)
    with pytest.raises(EngineError, match="replications"):
        sbc(NormalMeanVariance(), data, NUTS(**SHORT), replications=2)
    with pytest.raises(EngineError, match="gives a point"):
        sbc(Means(2), data, EM(restarts=1), replications=20)
    with pytest.raises(EngineError, match="together"):
        sbc(NormalMeanVariance(), data, GIBBS, replications=20, together=True)


def test_a_chain_that_hardly_moves_does_not_pass():
    short = MH(chains=1, warmup=0, draws=10, thin=1, tier="traced")
    result = sbc(NormalMeanVariance(), {"y": Y}, short, replications=20, level=LEVEL)
    assert not result.passed
    assert any("raise warmup and draws" in text for text in result.findings)
