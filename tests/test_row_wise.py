"""Chains over the latents of each row, against posteriors in closed form."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from inference import HMC, MALA, MH, NUTS, ChEES, RowWise, Until, fit, hmc
from ppl_models import EngineError, HasRows, ModelError
from tests.programs import Linear
from tests.statistics import check, quiet, surprises
from tests.targets import Known
from tests.test_sabotage import Sabotage

pytestmark = pytest.mark.filterwarnings("ignore::inference.InferenceWarning")

RUN = {"chains": 48, "warmup": 120, "draws": 120, "tier": "traced"}
FAMILY = 4 * 15 + 12  # moments that this module checks


def linear(rows=3):
    model = Linear(2, 5)
    model.trained = True
    data = {"x": model.simulated(rows)}
    with torch.no_grad():
        mean, covariance = model.posterior(data["x"])
    names = [[f"z[{i}, {j}]" for j in range(2)] for i in range(rows)]
    means = {names[i][j]: float(mean[i, j]) for i in range(rows) for j in range(2)}
    sds = {n: math.sqrt(covariance[j, j]) for row in names for j, n in enumerate(row)}
    crossed = {(a, b): float(covariance[0, 1]) for a, b in names}
    return Known(model, means, sds, crossed, data)


LINEAR = linear()


@pytest.mark.parametrize(
    "sampler", [HMC(**RUN, steps=2), NUTS(**RUN), MALA(**RUN), MH(**RUN), ChEES(**RUN)]
)
def test_draws_of_each_row_have_the_moments_of_its_posterior(sampler):
    found = quiet(LINEAR.program, LINEAR.data, RowWise(sampler)).posterior
    assert found.draws["z"].shape == (48, 120, 3, 2)
    assert found.stats["lp"].shape == (48, 120)
    check(found.draws, LINEAR, FAMILY)


def test_moments_expose_an_acceptance_without_the_kinetic_energy(monkeypatch):
    old = "0.5 * momentum.square().sum(-1, dtype=log_density.dtype) - log_density"
    Sabotage(hmc, "energy", old, "-log_density").commit(monkeypatch)
    found = quiet(LINEAR.program, LINEAR.data, RowWise(HMC(**RUN, steps=2))).posterior
    assert surprises(found.draws, LINEAR, FAMILY)


class Counts(HasRows):
    """A rate in (0, inf) for each row, exposed for some time; no guide and no weights."""

    def forward(self, y, time):
        with pyro.plate("rows", len(y), dim=-1):
            rate = pyro.sample("rate", dist.Gamma(y.new_tensor(2.0), 1.0))
            pyro.sample("y", dist.Poisson(rate * time), obs=y)


def test_rows_of_very_different_widths_are_sampled_where_latents_are_positive():
    y, time = np.array([0.0, 3.0, 4000.0]), np.array([0.1, 1.0, 1000.0])
    shape, rate = 2 + y, 1 + time
    names = [f"rate[{i}]" for i in range(3)]
    known = Known(
        Counts(),
        dict(zip(names, shape / rate, strict=True)),
        dict(zip(names, np.sqrt(shape) / rate, strict=True)),
        data={"y": y, "time": time},
    )
    found = quiet(known.program, known.data, RowWise(NUTS(**RUN))).posterior
    check(found.draws, known, FAMILY)
    assert float(found.stats["acceptance_rate"].mean()) > 0.7


class Tied(Linear):
    """Every row is compared with the mean of all."""

    def forward(self, x):
        super().forward(x - x.mean(0))


class Mistaken(HasRows):
    def forward(self, y):
        pyro.sample("m", dist.Normal(y.new_zeros(3), 1.0).to_event(1))
        with pyro.plate("rows", len(y), dim=-1):
            z = pyro.sample("z", dist.Normal(y.new_zeros(()), 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def test_rows_that_are_not_independent_are_refused():
    tied = Tied(2, 5)
    tied.trained = True
    with pytest.raises(ModelError, match="they are not independent given the weights"):
        fit(tied, LINEAR.data, RowWise(HMC()))
    with pytest.raises(ModelError, match="m: has the shape \\(3,\\) for 3 rows"):
        fit(Mistaken(), {"y": torch.zeros(3)}, RowWise(HMC()))


def test_what_cannot_be_sampled_row_by_row_is_refused():
    with pytest.raises(EngineError, match="RowWise does not train the program's weights"):
        fit(Linear(), {"x": torch.zeros(2, 3)}, RowWise(HMC()))
    with pytest.raises(EngineError, match="needs HasRows"):
        fit(lambda: None, None, RowWise(HMC()))
    with pytest.raises(EngineError, match=r"RowWise\(sampler=.*give a sampler"):
        RowWise(sampler="nuts")
    with pytest.raises(EngineError, match="give a sampler such as"):
        RowWise(MH(proposal=LINEAR.program.guide))
    with pytest.raises(EngineError, match="leave superchains out"):
        RowWise(ChEES(chains=4, superchains=2))


def test_a_run_in_single_precision_stops_when_it_is_precise_enough():
    model = Linear(2, 5).float()
    model.trained = True
    engine = RowWise(HMC(chains=4, steps=2, warmup=100, draws=2000))
    found = fit(model, LINEAR.data, engine, until=Until(ess=150))
    assert found.posterior.draws["z"].dtype == torch.float32
    assert 100 <= found.posterior.draws["z"].shape[1] < 2000
    stopped = [finding.meaning for finding in found.findings if finding.name == "ess"]
    assert any("smallest bulk effective sample size" in meaning for meaning in stopped)
