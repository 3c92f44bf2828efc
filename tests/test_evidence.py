"""Evidences and draws along tempered paths, against closed forms.

An estimate comes from R independent runs or chains, so that its error has R - 1 degrees of freedom.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import special, stats

from inference import HMC, MH, NUTS, SMC, Thermodynamic
from inference.smc import systematic
from inference.thermodynamic import integrate
from ppl_models import EngineError
from tests.statistics import check, quiet
from tests.targets import CONJUGATE, KNOWN, LABELS, ORING, SIMPLEX, NormalMeanVariance
from tests.test_sabotage import Sabotage

LEVEL = 1e-4


def _conjugate():
    model, y = NormalMeanVariance, CONJUGATE.data["y"].numpy()
    n, k, a = len(y), model.K + len(y), model.A + len(y) / 2
    b = model.B + ((y**2).sum() - y.sum() ** 2 / k) / 2
    gammas = special.gammaln(a) - special.gammaln(model.A)
    powers = model.A * math.log(model.B) - a * math.log(b) + 0.5 * math.log(model.K / k)
    return gammas + powers - n / 2 * math.log(2 * math.pi)


def _simplex():
    counts = np.bincount(SIMPLEX.data["y"])
    total = special.gammaln(1 + counts).sum()
    return total + special.gammaln(4) - special.gammaln(4 + counts.sum())


def _labels():
    y = LABELS.data["y"].numpy()
    n = len(y)
    z = np.array(list(itertools.product((0, 1), repeat=n)))
    prior = special.betaln(2 + z.sum(1), 3 + n - z.sum(1)) - special.betaln(2, 3)
    return special.logsumexp(prior + stats.norm.logpdf(y, 2 * z).sum(1))


# robert & casella's prior on alpha, flat in beta; by quadrature
ORING_EVIDENCE = -14.05633

EXACT = {
    "conjugate": _conjugate(),
    "simplex": _simplex(),
    "labels": _labels(),
    "oring": ORING_EVIDENCE,
}

SMALL = {"particles": 150, "runs": 20}
ENGINES = {
    "smc-conjugate": ("conjugate", SMC(**SMALL)),
    "smc-walk-conjugate": ("conjugate", SMC(**SMALL, kernel=MH(), moves=8)),
    "smc-nuts-conjugate": ("conjugate", SMC(particles=60, runs=8, kernel=NUTS(), moves=1)),
    "smc-laplace-conjugate": ("conjugate", SMC(**SMALL, reference="laplace")),
    "smc-simplex": ("simplex", SMC(**SMALL)),
    "smc-labels": ("labels", SMC(**SMALL)),
    "smc-oring": ("oring", SMC(particles=400, runs=40, reference=ORING.proposal)),
    "path-conjugate": ("conjugate", Thermodynamic(chains=16, warmup=150, draws=150)),
    "path-walk-conjugate": ("conjugate", Thermodynamic(chains=16, draws=400, kernel=MH())),
    "path-simplex": ("simplex", Thermodynamic(chains=16, warmup=100, draws=100)),
    "path-oring": (
        "oring",
        Thermodynamic(temperatures=9, chains=32, warmup=150, draws=250, reference="laplace"),
    ),
}


def estimate(name):
    posterior, engine = ENGINES[name]
    known = KNOWN[posterior]
    fitted = quiet(known.program, known.data, engine, seed=2)
    attributes = fitted.posterior.attributes
    return fitted, attributes["log_evidence"], attributes["log_evidence_error"]


@pytest.mark.parametrize("name", ENGINES)
def test_evidence_is_exact_within_its_error(name):
    posterior, engine = ENGINES[name]
    fitted, value, error = estimate(name)
    freedom = getattr(engine, "runs", None) or engine.chains
    limit = stats.t.isf(LEVEL / len(ENGINES) / 2, freedom - 1)
    assert abs(value - EXACT[posterior]) < limit * error, (value, EXACT[posterior], error)
    assert error < 0.06
    if posterior == "oring":
        assert abs(value - ORING_EVIDENCE) < 0.02
    # runs and chains are independent: their spread judges second moments too
    if freedom >= 16:
        check(fitted.posterior.draws, KNOWN[posterior], 100)


@pytest.mark.parametrize(
    "sabotage",
    [
        Sabotage(HMC, "step", "randomness.uniform[:, 0].log() < change", "change > -1000"),
        Sabotage(SMC, "run", "- math.log(self.particles)", "- 0.98 * math.log(self.particles)"),
    ],
    ids=["the kernel accepts always", "weights are not averaged"],
)
def test_broken_tempering_is_exposed(sabotage, monkeypatch):
    sabotage.commit(monkeypatch)
    with pytest.raises(AssertionError):
        test_evidence_is_exact_within_its_error("smc-conjugate")


def test_power_posteriors_of_a_gaussian_integrate_to_its_evidence():
    """E_b and V_b in closed form, so that only the quadrature is left: y ~ N(m, 1), m ~ N(0, 1).

    At b, m ~ N(b y / (1 + b), 1 / (1 + b)); u = log N(y; m, 1).
    """
    y = 1.7
    exact = stats.norm.logpdf(y, 0, math.sqrt(2))
    ladder = torch.linspace(0, 1, 41, dtype=torch.float64) ** 2
    mean, sd = ladder * y / (1 + ladder), (1 + ladder) ** -0.5
    # symmetric quantiles stand for draws
    unit = torch.as_tensor(stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000))
    m = mean + sd * unit[:, None]
    u = (-0.5 * (y - m) ** 2 - 0.5 * math.log(2 * math.pi))[:, :, None].expand(-1, -1, 2)
    result = integrate(ladder, u)
    assert result.value == pytest.approx(exact, abs=2e-4)
    assert abs(result.value - exact) < 5 * result.quadrature + 2e-4


def testsystematic_resampling_has_the_right_expectations():
    log_weight = torch.tensor([[0.1, 0.5, 0.15, 0.25]], dtype=torch.float64).log()
    units = torch.linspace(0.0005, 0.9995, 1000, dtype=torch.float64)[:, None]
    chosen = systematic(log_weight.expand(1000, -1), units)
    counts = torch.stack([(chosen == i).double().mean() for i in range(4)])
    assert torch.allclose(counts, log_weight.exp()[0], atol=1e-3)


def test_settings_and_references_are_checked():
    for build in (
        lambda: SMC(reference="posterior"),
        lambda: SMC(kernel=3),
        lambda: SMC(threshold=1.5),
        lambda: Thermodynamic(temperatures=10),
        lambda: Thermodynamic(kernel=NUTS()),
        lambda: Thermodynamic(reference=4),
    ):
        with pytest.raises(EngineError):
            build()
    for engine in (SMC(), Thermodynamic()):
        with pytest.raises(EngineError, match="improper"):
            quiet(ORING.program, ORING.data, engine)
