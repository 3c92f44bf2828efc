"""Monte Carlo EM against the maximum-likelihood estimate of a linear-Gaussian model."""

from itertools import pairwise

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from inference import AIS, HMC, MCEM, NUTS, SVI, e_step, fit
from ppl_models import EngineError, HasMStep, HasRows, VaDE
from tests.programs import Linear
from tests.test_sabotage import Sabotage

pytestmark = pytest.mark.filterwarnings("ignore::inference.InferenceWarning")

X = Linear(2, 5).simulated(200)
QUICK = AIS(chains=16, temperatures=40, kernel=HMC(steps=2))
CHAINS = HMC(chains=4, steps=2, warmup=60, draws=40)
RUN = {"rounds": 150, "learning_rate": 0.03, "rows": 10, "annealing": QUICK}


def highest():
    """The mean log likelihood at its maximum (Tipping & Bishop 1999, with known variance)."""
    mean, variance = X.mean(0), 0.25
    values, vectors = torch.linalg.eigh((X - mean).T @ (X - mean) / len(X))
    loadings = vectors[:, -2:] * (values[-2:] - variance).clamp(min=0).sqrt()
    covariance = loadings @ loadings.T + variance * torch.eye(5, dtype=X.dtype)
    return float(torch.distributions.MultivariateNormal(mean, covariance).log_prob(X).mean())


HIGHEST = highest()


class Closed(Linear, HasMStep):
    """The decoder by least squares on the draws."""

    def statistics(self, data, latents):
        z = latents["z"]
        z = torch.cat([z, torch.ones_like(z[..., :1])], -1)
        number = z.shape[0] * z.shape[1]
        crossed = torch.einsum("ni,knj->ij", data["x"], z)
        return {"zz": torch.einsum("kni,knj->ij", z, z) / number, "xz": crossed / number}

    def maximiser(self, statistics):
        weight = torch.linalg.solve(statistics["zz"], statistics["xz"].T).T
        return {"decoder.weight": weight[:, :-1], "decoder.bias": weight[:, -1]}


def start(kind=Linear):
    """A model far from the maximum."""
    model = kind(2, 5)
    with torch.no_grad():
        model.decoder.weight.mul_(0.1)
        model.decoder.bias.add_(1.0)
    return model


def reached(found):
    return float(found.model.exact(X).detach().mean())


def test_em_without_an_encoder_reaches_the_maximum_and_svi_the_same():
    found = fit(start(), {"x": X}, MCEM(CHAINS, **RUN))
    assert abs(reached(found) / HIGHEST - 1) < 0.003
    trained = fit(start(), {"x": X}, SVI(steps=2000, learning_rate=0.03, draws=10, average=0.99))
    assert abs(reached(trained) / reached(found) - 1) < 0.01
    trace = found.posterior.attributes["log_likelihood_trace"]
    first = float(found.model.exact(X[:10]).detach().mean())
    assert trace[0] < trace[-1]
    assert abs(trace[-1] - first) < 0.15  # 10 rows by 16 chains
    assert found.posterior.draws["z"].shape == (4, 40, 10, 2)
    notes = [finding.meaning for finding in found.findings if finding.name == "idle_weights"]
    assert "2 weights (encoder.weight, encoder.bias) were not trained" in notes[0]


@pytest.mark.parametrize("sampler", [CHAINS, NUTS(chains=2, max_depth=3, warmup=40, draws=40)])
def test_closed_form_m_steps_by_minibatches_reach_the_maximum(sampler):
    found = fit(start(Closed), {"x": X}, MCEM(sampler, **RUN, batch_size=50))
    assert abs(reached(found) / HIGHEST - 1) < 0.003


FIELDS = "self.rows.fields_of(data)"
WRONG = {
    "chains have the data of other rows": Sabotage(
        e_step.Chains, "draw", FIELDS, "self.rows.fields_of({'x': data['x'].flip(0)})"
    ),
    "chains never move": Sabotage(e_step.Chains, "draw", "x, rate = moved.x,", "x, rate = x,"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_e_step_is_exposed(name, monkeypatch):
    WRONG[name].commit(monkeypatch)
    found = fit(start(Closed), {"x": X}, MCEM(CHAINS, **{**RUN, "rounds": 60}))
    assert abs(reached(found) / HIGHEST - 1) > 0.01


class Noised(HasRows):
    """x and a noisier z, whose guide is fixed: z = x / 2 + noise of sd 1/2."""

    def __init__(self):
        super().__init__()
        self.centre, self.line = nn.Parameter(torch.zeros(1)), nn.Linear(1, 1)
        self.double()

    def forward(self, x):
        with pyro.plate("rows", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(self.centre, 1.0).expand([len(x), 1]).to_event(1))
            pyro.sample("x", dist.Normal(self.line(z), 0.5).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("rows", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x / 2, 0.5).to_event(1))


def test_a_guide_that_is_the_posterior_needs_no_chains():
    x = torch.linspace(-2, 3, 100, dtype=torch.float64)[:, None]
    engine = MCEM("guide", rounds=400, transitions=20, m_steps=3, learning_rate=0.03, average=0.99)
    found = fit(Noised(), {"x": x}, engine)
    model, variance = found.model, float(x.var(correction=0))
    slope = (variance / 2) / (
        variance / 4 + 0.25
    )  # of x on z, by moments of x and z = x / 2 + noise
    offset = float(x.mean()) * (1 - slope / 2)
    assert abs(float(model.centre.detach()) - float(x.mean()) / 2) < 0.03
    assert abs(float(model.line.weight.detach()) - slope) < 0.03
    assert abs(float(model.line.bias.detach()) - offset) < 0.03
    trace = found.posterior.attributes["log_likelihood_trace"]
    assert trace[-1] > trace[0]
    assert found.posterior.draws["z"].shape == (1, 200, 64, 1)


def test_the_clusters_of_a_deep_mixture_have_a_closed_form():
    torch.manual_seed(0)
    model = VaDE(3, 2, 8, "gaussian", shape=5).double()
    z = torch.randn(4, 50, 2, dtype=torch.float64) + torch.tensor([2.0, -1.0])
    levels = []
    with torch.no_grad():
        for _ in range(20):
            levels.append(float(model.prior(z).log_prob(z).mean()))
            for name, value in model.maximiser(model.statistics({}, {"z": z})).items():
                model.get_parameter(name).copy_(value)
    assert all(b > a - 1e-9 for a, b in pairwise(levels))  # EM never falls
    moments = model.logits.softmax(-1) @ model.mean
    torch.testing.assert_close(moments, z.mean((0, 1)))  # a mixture's EM keeps the mean
    engine = MCEM(CHAINS, **{**RUN, "rounds": 20}, batch_size=50)
    found = fit(model, {"x": X}, engine).posterior
    trace = found.attributes["log_likelihood_trace"]
    assert trace[-1] > trace[0]


class Unknown(Closed):
    def maximiser(self, statistics):
        return {"weight": statistics["xz"]}


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(EngineError, match=r"the guide has weights \(encoder.weight, ...\)"):
        fit(Linear(2, 5), {"x": X}, MCEM("guide"))
    with pytest.raises(EngineError, match="maximiser returns weight, which is no weight"):
        fit(Unknown(2, 5), {"x": X}, MCEM(CHAINS))
    with pytest.raises(EngineError, match="needs HasRows"):
        fit(lambda x: None, {"x": X}, MCEM())
    with pytest.raises(EngineError, match=r"MCEM\(e_step='nuts'\): give a sampler"):
        MCEM("nuts")  # type: ignore[arg-type]
    with pytest.raises(EngineError, match=r"MCEM\(annealing=100\)"):
        MCEM(annealing=100)  # type: ignore[arg-type]
