"""VAEs: the program and its guide against closed forms, their networks, and bad input."""

import math

import pyro
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.distributions import MultivariateNormal, Normal

from inference import HMC, SVI, RowWise, fit, row_weights, target
from inference.objectives import ELBO, ImportanceWeighted
from ppl_models import VAE, ConditionalVAE, DataError, ModelError
from ppl_models.autoencoder import activity
from ppl_models.likelihoods import Gaussian
from ppl_models.networks import ConvDecoder, ConvEncoder

DIGITS = load_digits()
GREY = torch.as_tensor(DIGITS.data / 16).reshape(-1, 8, 8)
LABELS = torch.as_tensor(DIGITS.target)


@pytest.fixture(autouse=True)
def scoped():
    with torch.random.fork_rng(), pyro.validation_enabled(False):
        torch.manual_seed(3)
        yield


def trained(model, data, steps, rate=1e-2, objective=None):
    """A few steps of Adam on all rows."""
    objective = objective or ELBO()
    optimiser = torch.optim.Adam(model.parameters(), rate)
    for _ in range(steps):
        optimiser.zero_grad()
        objective.losses(model, model.refreshed(data)).mean().backward()
        optimiser.step()
    return model


@torch.no_grad()
def loss(model, data):
    return float(ELBO(5).losses(model, data).mean())


def linear():
    """Probabilistic PCA as a VAE, and rows of its own."""
    model = VAE(2, (), "gaussian", shape=5).double()
    with torch.no_grad():
        model.likelihood.log_sd.fill_(math.log(0.5))
        z = torch.randn(200, 2, dtype=torch.float64)
        x = model.decode(z) + 0.5 * torch.randn(200, 5, dtype=torch.float64)
    return model, model.prepare(x)


def exact(model, x):
    """Log p(x) of the linear-Gaussian model, and mean and covariance of p(z | x)."""
    layer = model.decoder.layers[0]
    weight, variance = layer.weight, model.likelihood.log_sd.exp() ** 2
    covariance = weight @ weight.T + variance * torch.eye(len(weight), dtype=weight.dtype)
    precision = torch.eye(2, dtype=weight.dtype) + weight.T @ weight / variance
    mean = torch.linalg.solve(precision, weight.T @ (x - layer.bias).T / variance).T
    log_p = MultivariateNormal(layer.bias, covariance).log_prob(x)
    return log_p, mean, torch.linalg.inv(precision)


def test_a_linear_vae_is_probabilistic_pca():
    model, data = linear()
    with torch.no_grad():
        log_p, mean, covariance = exact(model, data["x"])
        posterior = MultivariateNormal(mean, covariance)
        z = torch.randn(200, 2, dtype=torch.float64)
        joint = row_weights.log_joint(model, data, {"z": z[None]})[0]
        assert torch.allclose(joint, log_p + posterior.log_prob(z))


def test_training_of_a_linear_vae_reaches_the_exact_likelihood():
    model, data = linear()
    trained(model, data, 500, 2e-2)
    trained(model, data, 200, 2e-3)
    with torch.no_grad():
        elbo = row_weights.weigh(model, data, 500, exact=True).log_weight.mean()
        log_p, mean, covariance = exact(model, data["x"])
        # the axes of z turn until the posterior is diagonal, as the guide is
        assert abs(float(elbo - log_p.mean())) < 0.05
        loc, sd = model.encode(data["x"])
        assert float((loc - mean).abs().max()) < 0.1
        assert torch.allclose(sd.mean(0), covariance.diagonal().sqrt(), rtol=0.1)


@pytest.mark.parametrize("likelihood", ["bernoulli", "continuous_bernoulli", "gaussian"])
def test_every_weight_moves(likelihood):
    binarise = "dynamic" if likelihood == "bernoulli" else None
    model = VAE(3, (16, 8), likelihood, shape=(8, 8), binarise=binarise)
    before = {name: value.clone() for name, value in model.named_parameters()}
    data = model.prepare(GREY[:50])
    first = loss(model, data)
    trained(model, data, 60)
    after = dict(model.named_parameters())
    assert all(bool((after[name] != value).any()) for name, value in before.items())
    assert loss(model, data) < first - 1


def test_the_continuous_bernoulli_is_a_density():
    model = VAE(2, likelihood="continuous_bernoulli", shape=1)
    grid = torch.linspace(0, 1, 20_001)[:, None]
    for logit in (-3.0, 0.1, 2.0):
        log_p = model.likelihood.law(torch.full_like(grid, logit)).log_prob(grid)
        assert abs(float(torch.trapezoid(log_p[:, 0].exp(), grid[:, 0])) - 1) < 1e-4


class Watched(nn.Module):
    """A module that notes the shapes it is called with."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.seen = inner, []

    def forward(self, *parts):
        self.seen.append([tuple(part.shape) for part in parts])
        return self.inner(*parts)


@pytest.mark.parametrize("classes", [0, 10])
def test_networks_see_rows_and_the_encoder_each_row_once(classes):
    shape = (1, 7, 9)
    encoder = Watched(ConvEncoder(shape, 4, (3, 5), classes=classes))
    decoder = Watched(ConvDecoder(shape, 4, (5, 3), classes=classes))
    networks = {"encoder": encoder, "decoder": decoder}
    x = torch.rand(20, *shape).round()
    if classes:
        model = ConditionalVAE(4, shape=shape, classes=classes, **networks)
        data = model.prepare({"x": x, "y": torch.arange(20) % 10})
    else:
        model = VAE(4, shape=shape, **networks)
        data = model.prepare(x)
    losses = ImportanceWeighted(6).losses(model, data)
    assert losses.shape == (20,)
    beside = [(20, 10)] if classes else []
    assert encoder.seen == [[(20, *shape), *beside]]
    beside = [(120, 10)] if classes else []
    assert decoder.seen == [[(120, 4), *beside]]
    losses.mean().backward()
    assert all(bool(p.grad.abs().sum() > 0) for p in model.parameters())


def test_particles_are_rows_of_their_own():
    """A decoder that mixes its batch up would be seen here: labels are repeated with their rows."""
    model = ConditionalVAE(2, 8, "gaussian", classes=3, shape=4, prior="by class").double()
    nn.init.normal_(model.by_class)
    data = model.prepare({"x": torch.randn(6, 4).double(), "y": torch.arange(6) % 3})
    z = torch.randn(5, 6, 2).double()
    joint = row_weights.log_joint(model, data, {"z": z})
    for k in range(5):
        for i in range(6):
            mean, log_sd = model.by_class[data["y"][i]].chunk(2)
            beside = nn.functional.one_hot(data["y"][i], 3).double()
            out = model.decoder(z[k, i][None], beside[None])[0]
            log_p = Normal(mean, log_sd.exp()).log_prob(z[k, i]).sum()
            log_p = log_p + Normal(out, 1.0).log_prob(data["x"][i]).sum()
            assert torch.allclose(joint[k, i], log_p)


def test_labels_help_a_conditional_vae():
    """With one latent unit the images of a class are more alike than all images."""
    rows = slice(0, 300)
    plain = VAE(1, 32, "gaussian", shape=(8, 8))
    data = plain.prepare(GREY[rows])
    given = ConditionalVAE(1, 32, "gaussian", shape=(8, 8), classes=10)
    labelled = given.prepare({"x": GREY[rows], "y": LABELS[rows]})
    losses = [
        loss(trained(model, fields, 300), fields)
        for model, fields in ((plain, data), (given, labelled))
    ]
    assert losses[1] < losses[0] - 3


# -- binarisation ----------------------------------------------------------------------------------


def test_dynamic_binarisation_draws_anew_in_training_and_once_for_tests():
    model = VAE(2, 8, shape=(8, 8), binarise="dynamic")
    data = model.prepare(GREY[:200])
    again = model.prepare(GREY[:200])
    assert torch.equal(data["x"], again["x"])
    assert torch.equal(model.prepare(data)["x"], data["x"])
    drawn = torch.stack([model.refreshed(data)["x"] for _ in range(400)])
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    grey = data["intensity"]
    error = (grey * (1 - grey) / 400).sqrt()
    z = (drawn.mean(0) - grey)[error > 0] / error[error > 0]
    assert abs(float(z.square().mean()) - 1) < 0.05
    assert float(z.abs().max()) < 5.5
    some = model.take(data, torch.tensor([3, 5]))
    assert torch.equal(some["intensity"], grey[[3, 5]])


def test_other_binarisations():
    fixed = VAE(2, 8, shape=(8, 8), binarise="fixed").prepare(GREY[:50])
    assert fixed.keys() == {"x"}
    assert set(fixed["x"].unique().tolist()) == {0.0, 1.0}
    half = VAE(2, 8, shape=(8, 8), binarise="threshold").prepare(GREY[:50])
    assert torch.equal(half["x"], (GREY[:50] >= 0.5).float())


# -- collapse --------------------------------------------------------------------------------------


def test_activity_is_that_of_the_posterior_means_without_the_noise_of_draws():
    rows, draws = 2000, 8
    mean = torch.randn(rows, 2).double() * torch.tensor([0.0, 2.0])
    z = mean + torch.randn(draws, rows, 2).double()
    value = activity(z)
    # each half's mean has a variance of 1/4 beside that of the means
    assert abs(float(value[0])) < 4 * 0.25 / rows**0.5
    assert abs(float(value[1]) - 4) < 4 * 4.25 * (2 / rows) ** 0.5


def test_collapse_is_told():
    model = VAE(4, 8, "gaussian", shape=3)
    mean = torch.randn(64, 4) * torch.tensor([1.0, 0.0, 0.0, 0.0])
    draws = {"z": mean + 0.1 * torch.randn(1, 200, 64, 4)}
    (text,) = model.findings({}, draws)
    assert text.startswith("3 of 4 latent units are inactive")
    assert "use fewer units" in text
    mean = torch.randn(64, 4)
    assert model.findings({}, {"z": mean + 0.1 * torch.randn(1, 200, 64, 4)}) == []
    assert model.findings({}, {"z": mean[None, None]}) == []


# -- samplers see the same program -----------------------------------------------------------------


def test_the_target_of_a_trained_vae_is_its_joint():
    model = VAE(2, 8, "gaussian", shape=(4, 4), encoder=ConvEncoder((4, 4), 2),
                decoder=ConvDecoder((4, 4), 2)).double()  # fmt: skip
    data = model.prepare(torch.randn(3, 4, 4).double())
    density = target(model, data, dtype="float64")
    z = torch.randn(5, 3, 2, dtype=torch.float64)
    expected = row_weights.log_joint(model, data, {"z": z}).sum(-1)
    assert torch.allclose(density.log_density(z.flatten(1)), expected)


# -- bad input -------------------------------------------------------------------------------------

PLAIN = VAE(2, 8, shape=(2, 2))
DYNAMIC = VAE(2, 8, shape=(2, 2), binarise="dynamic")
GAUSSIAN = VAE(2, 8, "gaussian", shape=(2, 2))
GIVEN = ConditionalVAE(2, 8, classes=3, shape=(2, 2))
X = torch.zeros(3, 2, 2)


@pytest.mark.parametrize(
    ("model", "data", "words"),
    [
        (PLAIN, X + 0.5, "row 0 has a pixel of 0.5; a Bernoulli takes 0 and 1; for grey values"),
        (DYNAMIC, X + 255, "pixel of 255; a ContinuousBernoulli takes .* divide 8-bit pixels"),
        (PLAIN, torch.zeros(3, 5), r"has shape \(3, 5\), and the model takes images of \(2, 2\)"),
        (PLAIN, torch.zeros(0, 2, 2), "is empty"),
        (GAUSSIAN, X.index_fill(0, torch.tensor([1]), math.nan), "row 1 is missing"),
        (PLAIN, {"x": X, "z": X}, "z: unknown"),
        (PLAIN, {"y": X}, "y: unknown"),
        (PLAIN, "text", "is a str; give an array"),
        (GIVEN, X, "y: is missing; give the label"),
        (GIVEN, {"x": X, "y": [0, 1]}, "differ in length"),
        (GIVEN, {"x": X, "y": [0, 1, 3]}, "row 2 is 3; labels are 0, ..., 2"),
        (GIVEN, {"x": X, "y": [0, 1, 0.5]}, "row 2 is 0.5"),
        (GIVEN, {"x": X, "y": [0, 1, 1]}, "no image has the label 2"),
    ],
)
def test_bad_data_are_refused(model, data, words):
    with pytest.raises(DataError, match=words):
        model.prepare(data)


def test_a_trained_model_takes_data_without_some_class():
    model = ConditionalVAE(2, 8, classes=3, shape=(2, 2))
    model.trained = True
    assert model.prepare({"x": X, "y": [0, 1, 1]})["y"].tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: VAE(0, shape=4), "latent=0: give a positive whole number"),
        (lambda: VAE(2, 0, shape=4), "hidden=0"),
        (lambda: VAE(2, shape=(2, 0)), "shape=0"),
        (lambda: VAE(2, likelihood="poisson", shape=4), "choose one of 'bernoulli'"),
        (lambda: VAE(2, binarise="random", shape=4), "binarise='random': choose"),
        (lambda: VAE(2, 8, "gaussian", shape=4, binarise="fixed"), "is for likelihood='bernoulli'"),
        (lambda: VAE(2, shape=4, encoder=abs), "give an nn.Module"),
        (lambda: ConditionalVAE(2, shape=4, classes=0), "classes=0"),
        (lambda: ConditionalVAE(2, shape=4, classes=2, prior="flat"), "prior='flat'"),
        (lambda: Gaussian(-1.0), "sd=-1.0: give a positive number"),
        (lambda: ConvEncoder((4,), 2), "convolutions need"),
    ],
)
def test_bad_settings_are_refused(make, words):
    with pytest.raises(ModelError, match=words):
        make()


@pytest.mark.parametrize(
    ("networks", "words"),
    [
        ({"encoder": nn.Linear(4, 3)}, r"the encoder returns \(3, 3\) for 3 rows; give means"),
        ({"decoder": nn.Linear(2, 3)}, r"the decoder returns \(3, 3\) for 3 rows; give a number"),
    ],
)
def test_networks_of_the_wrong_size_are_told(networks, words):
    model = VAE(2, 8, shape=4, **networks)
    with pytest.raises(ModelError, match=words):
        ELBO().losses(model, model.prepare(X))


@pytest.mark.filterwarnings("ignore::inference.InferenceWarning")
def test_a_conditional_model_is_trained_by_a_traced_step_and_sampled_row_by_row():
    model = ConditionalVAE(2, 8, "gaussian", shape=4, classes=3).double()
    data = {"x": torch.randn(30, 4, dtype=torch.float64), "y": torch.arange(30) % 3}
    assert torch.equal(model.one_hot(data["y"], data["x"])[:3], torch.eye(3, dtype=torch.float64))
    engine = SVI(batch_size=10, steps=20, rows=3, draws=4, plateau=False, tier="traced")
    trained = fit(model, data, engine)
    assert trained.posterior.attributes["tier"] == "traced"
    few = {name: value[:2] for name, value in data.items()}
    chains = fit(trained.model, few, RowWise(HMC(chains=2, warmup=40, draws=10)))
    assert chains.posterior.draws["z"].shape == (2, 10, 2, 2)
