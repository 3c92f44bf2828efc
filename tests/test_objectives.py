"""Bounds and their gradients, against the exact likelihood of a linear-Gaussian model."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from inference import row_weights
from inference.objectives import ELBO, ImportanceWeighted
from ppl_models import EngineError, ModelError
from tests.programs import Linear


@pytest.fixture(autouse=True)
def scoped():
    with torch.random.fork_rng(), pyro.validation_enabled(False):
        torch.manual_seed(2)
        yield


MODEL = Linear()
DATA = {"x": torch.tensor([[0.3, -0.2, 0.5], [1.0, 0.1, -0.4]], dtype=torch.float64)}


def errors(draws):
    """Mean and standard error over the first dimension."""
    return draws.mean(0), draws.std(0) / len(draws) ** 0.5


def test_the_elbo_falls_short_of_the_likelihood_by_the_divergence_of_the_guide():
    with torch.no_grad():
        weight, bias = MODEL.decoder.weight, MODEL.decoder.bias
        precision = 1 + weight.square().sum() / 0.25
        mean = (DATA["x"] - bias) @ weight[:, 0] / 0.25 / precision
        loc, log_scale = MODEL.encoder(DATA["x"]).T
        ratio = (2 * log_scale).exp() * precision
        gap = 0.5 * (ratio + (loc - mean).square() * precision - 1 - ratio.log())
        for exact in (False, True):
            weighed = row_weights.weigh(MODEL, DATA, 40_000, exact=exact)
            value, error = errors(weighed.log_weight)
            assert ((value - (MODEL.exact(DATA["x"]) - gap)).abs() < 4 * error).all()


def test_importance_weights_give_the_likelihood():
    with torch.no_grad():
        weights = row_weights.weigh(MODEL, DATA, 40_000).log_weight
        shifted = (weights - MODEL.exact(DATA["x"])).exp()
        value, error = errors(shifted)
        assert ((value - 1).abs() < 4 * error).all()


def gradients(objective, number):
    found = []
    for _ in range(number):
        MODEL.zero_grad()
        objective.losses(MODEL, DATA).mean().backward()
        found.append(torch.cat([weight.grad.ravel() for weight in MODEL.parameters()]))
    return torch.stack(found)


def test_the_doubly_reparameterised_gradient_is_that_of_the_bound_with_less_noise(monkeypatch):
    plain, plain_error = errors(gradients(ImportanceWeighted(8), 1000))
    doubly, doubly_error = errors(gradients(ImportanceWeighted(8, doubly=True), 1000))
    spread = (plain_error.square() + doubly_error.square()).sqrt()
    assert ((plain - doubly).abs() < 4 * spread).all()
    guide = slice(-8, None)  # the encoder's weights come last
    assert (doubly_error[guide] < plain_error[guide]).all()
    # without holding the guide's weights the score comes in, and the gradient is another
    monkeypatch.setattr(row_weights, "held", lambda model, call: call())
    wrong, wrong_error = errors(gradients(ImportanceWeighted(8, doubly=True), 1000))
    assert ((wrong - plain).abs() / (wrong_error.square() + plain_error.square()).sqrt()).max() > 8


def test_one_draw_makes_all_bounds_the_elbo():
    torch.manual_seed(5)
    bound = ImportanceWeighted(1).losses(MODEL, DATA)
    torch.manual_seed(5)
    assert torch.allclose(bound, -row_weights.weigh(MODEL, DATA).log_weight[0])


def test_joint_and_guide_at_given_values_make_the_weights():
    weighed = row_weights.weigh(MODEL, DATA, 3)
    joint = row_weights.log_joint(MODEL, DATA, weighed.latents)
    guide = row_weights.log_guide(MODEL, DATA, weighed.latents)
    assert torch.allclose(weighed.log_weight, joint - guide)
    assert torch.allclose(joint, _by_hand(weighed.latents["z"]))


def _by_hand(z):
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    return prior + torch.distributions.Normal(MODEL.decoder(z), 0.5).log_prob(DATA["x"]).sum(-1)


class Outside(Linear):
    def forward(self, x):
        pyro.sample("shift", dist.Normal(0.0, 1.0))
        super().forward(x)

    def guide(self, x):
        pyro.sample("shift", dist.Normal(0.0, 1.0))
        super().guide(x)


class Other(Linear):
    def guide(self, x):
        with pyro.plate("rows", len(x), dim=-1):
            pyro.sample("y", dist.Normal(0.0, 1.0))


class Rigid(Linear):
    def forward(self, x):
        with pyro.plate("rows", len(x), dim=-1):
            n = pyro.sample("n", dist.Poisson(2.0))
            pyro.sample("x", dist.Normal(n[..., None] + torch.zeros(3), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("rows", len(x), dim=-1):
            pyro.sample("n", dist.Poisson(3.0))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Outside(), "shift: has a log density of shape"),
        (Other(), "does not sample z and samples y"),
        (Rigid(), "n: draws of a Poisson have no gradient"),
    ],
)
def test_programs_that_cannot_be_trained_by_rows_are_refused(model, words):
    with pytest.raises(ModelError, match=words):
        ELBO().check(model, DATA)


def test_settings_are_checked():
    with pytest.raises(EngineError, match="ELBO\\(particles=0\\)"):
        ELBO(0)
    with pytest.raises(EngineError, match="give a positive whole number"):
        ImportanceWeighted(2.5)  # type: ignore[arg-type]


def test_a_site_that_is_not_finite_is_named():
    bad = {"x": DATA["x"].clone().index_fill_(0, torch.tensor([1]), torch.inf)}
    assert row_weights.faulty(MODEL, bad).startswith("site 'z' of the guide at row 1")
