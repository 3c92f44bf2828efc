"""Bounds of whole data sets in parts, units and clusters, against closed forms and pictures."""

import math

import numpy as np
import pyro
import pytest
import torch
from torch.distributions import MultivariateNormal

from inference import exhibit_plots, row_evaluation
from inference.plots import picture
from inference.row_evaluation import clustering, evaluate, log_likelihood
from ppl_models import VAE, ConditionalVAE, DataError, EngineError, ORing, VaDE
from ppl_models.exhibits import Bars, ImageGrid, Points


@pytest.fixture(autouse=True)
def scoped():
    with torch.random.fork_rng(), pyro.validation_enabled(False):
        torch.manual_seed(8)
        yield


def linear():
    """Probabilistic PCA whose second unit is not used, its exact guide, and log p(x) of rows."""
    model = VAE(2, (), "gaussian", shape=5).double()
    decoder, encoder = model.decoder.layers[0], model.encoder.layers[0]
    with torch.no_grad():
        decoder.weight[:, 1] = 0
        precision = 1 + decoder.weight[:, 0].square().sum()
        encoder.weight.zero_()
        encoder.bias.zero_()
        encoder.weight[0] = decoder.weight[:, 0] / precision
        encoder.bias[0] = -encoder.weight[0] @ decoder.bias
        encoder.bias[2] = -precision.log() / 2
        x = model.decode(torch.randn(300, 2).double()) + torch.randn(300, 5).double()
        covariance = decoder.weight @ decoder.weight.T + torch.eye(5).double()
        return model, x, MultivariateNormal(decoder.bias, covariance).log_prob(x)


def test_bounds_with_the_exact_guide_are_the_likelihood(monkeypatch):
    model, x, log_p = linear()
    found = evaluate(model, x, samples=3)
    assert torch.allclose(found.bound, log_p)
    # the divergence is exact and the rest a draw, so single rows differ
    error = float((found.elbo - log_p).std()) / 300**0.5
    assert abs(float((found.elbo - log_p).mean())) < 4 * error
    assert found.active == 1
    assert float(found.divergence[1]) < 1e-12
    table = found.table()
    assert table.loc["active units", "mean"] == 1
    assert math.isclose(table.loc["bound of 3 draws", "mean"], float(log_p.mean()))


def test_parts_do_not_change_what_the_bound_estimates(monkeypatch):
    model, x, log_p = linear()
    with torch.no_grad():
        model.encoder.layers[0].bias[0] += 0.3  # the guide is exact no longer
    parts = []
    inner = row_evaluation.row_weights.weigh

    def noted(model, part, draws=1, **options):
        parts.append((model.rows(part), draws))
        return inner(model, part, draws, **options)

    monkeypatch.setattr(row_evaluation.row_weights, "weigh", noted)
    monkeypatch.setattr(row_evaluation, "_NUMBERS", 5 * 64 * 10)
    monkeypatch.setattr(row_evaluation, "_MOST", 64)
    found = log_likelihood(model, x, samples=1_000)
    assert len(parts) == 30 * 16
    assert all(rows * draws <= 640 for rows, draws in parts)
    assert sum(rows * draws for rows, draws in parts) == 300 * 1_000
    gap = found - log_p
    assert abs(float(gap.mean())) < 0.01
    one = log_likelihood(model, x, samples=1)
    assert float((one - log_p).mean()) < -0.03  # one draw gives the ELBO
    assert torch.equal(log_likelihood(model, x, samples=1), one)


def test_clusters_against_labels():
    truth = np.array([0, 0, 0, 1, 1, 2])
    found = clustering(np.array([5, 5, 7, 7, 7, 9]), truth)
    assert math.isclose(found["accuracy"], 5 / 6)
    assert clustering(truth[::-1] + 1, truth[::-1]) == pytest.approx(
        {"accuracy": 1, "nmi": 1, "ari": 1}
    )
    # one cluster for all: the largest label's share, and no information
    single = clustering(np.zeros(6), truth)
    assert single["accuracy"] == 0.5
    assert single["nmi"] == 0
    assert single["ari"] == 0
    with pytest.raises(DataError, match="3 clusters and 6 labels"):
        clustering([0, 1, 2], truth)


def test_what_cannot_be_evaluated_is_told():
    model, x, _ = linear()
    with pytest.raises(EngineError, match="ORing has no independent rows"):
        evaluate(ORing(), None)
    with pytest.raises(EngineError, match="samples=0: give a positive whole number"):
        evaluate(model, x, samples=0)
    with pytest.raises(DataError, match="the model takes images of"):
        evaluate(model, x[:, :3])


# -- pictures --------------------------------------------------------------------------------------

X = torch.rand(20, 6, 4)


@pytest.mark.parametrize(
    ("model", "data", "rows"),
    [
        (VAE(3, 8, shape=(6, 4), binarise="dynamic"), X, 4),
        (
            ConditionalVAE(3, 8, "gaussian", classes=5, shape=(6, 4), prior="by class"),
            {"x": X, "y": torch.arange(20) % 5},
            5,
        ),
        (VaDE(7, 3, 8, "gaussian", shape=(6, 4)), X, 7),
    ],
)
def test_autoencoders_have_something_to_show(model, data, rows):
    data = model.prepare(data)
    shown = model.exhibits(data, {"z": torch.randn(1, 9, 20, 3)})
    assert list(shown) == [
        "Reconstructions", "Draws from the prior", "Latent space", "Latent units",
    ]  # fmt: skip
    assert shown["Reconstructions"].images.shape == (2, 12, 6, 4)
    assert torch.equal(shown["Reconstructions"].images[0], X[:12])
    assert shown["Draws from the prior"].images.shape == (rows, 12, 6, 4)
    assert shown["Latent units"].values.shape == (3,)
    assert (shown["Latent units"].values >= 0).all()
    assert shown["Latent space"].points.shape == (20, 3)


@pytest.mark.parametrize(
    ("exhibit", "words"),
    [
        (ImageGrid("", torch.rand(2, 5, 6, 4)), "some: 2 x 5 images"),
        (ImageGrid("", torch.randn(3, 2, 3, 6, 4)), "some: 3 x 2 images"),
        (Points("", torch.randn(50, 7), torch.arange(50) % 12), "50 points, coloured by 12 labels"),
        (Points("", torch.randn(3000, 2)), "3000 points"),
        (Points("", torch.randn(10, 1)), "10 points"),
        (Bars("", torch.tensor([0.1, 2.0]), "nats"), "from 2 down to 0.1 nats"),
    ],
)
def test_exhibits_become_pictures(exhibit, words):
    draw, size = exhibit_plots.drawing("some", exhibit)
    made = picture(draw, **size)
    assert words in made.alt
    assert made.source.startswith("data:image/svg+xml;base64,")


def test_tiles_are_in_their_places():
    images = torch.arange(6.0).reshape(2, 3, 1, 1).expand(2, 3, 2, 2) / 5
    tiles = exhibit_plots.mosaic(images)
    assert tiles.shape == (5, 8)
    assert np.allclose(tiles[::3, ::3] * 5, [[0, 1, 2], [3, 4, 5]])
    assert np.isnan(tiles[2]).all()


def test_the_plane_is_that_of_the_largest_variance():
    x = torch.randn(200, 5) * torch.tensor([0.1, 3.0, 0.1, 9.0, 0.1])
    at = exhibit_plots.plane(x)
    largest = np.linalg.eigvalsh(np.cov(x.double().numpy().T))[:-3:-1]
    assert np.allclose(np.cov(at.T), np.diag(largest), atol=1e-8)
