"""VaDE: the mixture in its prior against sums by hand, its stages, and its alarms."""

import pyro
import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from inference import EM, SVI, Pretrained, fit, row_weights
from inference.objectives import ELBO
from ppl_models import VAE, DataError, EngineError, ModelError, VaDE


@pytest.fixture(autouse=True)
def scoped():
    with torch.random.fork_rng(), pyro.validation_enabled(False):
        torch.manual_seed(6)
        yield


def small():
    """A model whose weights are anything, and rows."""
    model = VaDE(3, 2, 8, "gaussian", shape=4).double()
    with torch.no_grad():
        model.logits.normal_()
        model.log_sd.normal_().mul_(0.3)
    return model, model.prepare(torch.randn(6, 4, dtype=torch.float64))


def by_cluster(model, z):
    """Log p(c, z): (..., K)."""
    components = Normal(model.mean, model.log_sd.exp()).log_prob(z[..., None, :]).sum(-1)
    return model.logits.log_softmax(-1) + components


def test_the_cluster_is_summed_out_and_its_probability_is_that_of_bayes():
    model, data = small()
    z = torch.randn(5, 6, 2, dtype=torch.float64)
    log_p = by_cluster(model, z)
    likelihood = Normal(model.decode(z), 1.0).log_prob(data["x"]).sum(-1)
    joint = row_weights.log_joint(model, data, {"z": z})
    assert torch.allclose(joint, log_p.logsumexp(-1) + likelihood)
    assert torch.allclose(model.responsibilities(z), log_p.softmax(-1))


def test_the_bound_is_above_that_of_the_paper():
    """With q(c | x) = E p(c | z) beside q(z | x), equation 9 of the paper, in closed form."""
    model, data = small()
    with torch.no_grad():
        weighed = row_weights.weigh(model, data, 20_000)
        error = weighed.log_weight.std(0) / 20_000**0.5
        z = weighed.latents["z"]
        mean, sd = model.encode(data["x"])
        gamma = model.responsibilities(z).mean(0)
        likelihood = Normal(model.decode(z), 1.0).log_prob(data["x"]).sum(-1).mean(0)
        components = Normal(model.mean, model.log_sd.exp())
        to_each = kl_divergence(Normal(mean[:, None], sd[:, None]), components).sum(-1)
        of_c = (gamma * (gamma.log() - model.logits.log_softmax(-1))).sum(-1)
        paper = likelihood - (gamma * to_each).sum(-1) - of_c
        assert (weighed.log_weight.mean(0) > paper - 4 * error).all()
        assert (weighed.log_weight.mean(0) - paper).max() > 0.05


def test_every_weight_moves():
    model, data = small()
    before = {name: value.clone() for name, value in model.named_parameters()}
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for losses in (model.pretraining_losses, lambda data: ELBO(4).losses(model, data)):
        for _ in range(5):
            optimiser.zero_grad()
            losses(data).mean().backward()
            optimiser.step()
    assert all(bool((value != before[name]).any()) for name, value in model.named_parameters())


def test_pretraining_is_by_reconstruction_alone():
    model, data = small()
    mean, _ = model.encode(data["x"])
    expected = -Normal(model.decode(mean), 1.0).log_prob(data["x"]).sum(-1)
    assert torch.allclose(model.pretraining_losses(data), expected)
    assert torch.equal(model.codes(data), mean)


def test_clusters_start_from_a_mixture():
    model, data = small()
    weights = torch.tensor([0.5, 0.2, 0.3])
    mean, variance = torch.randn(3, 2), torch.rand(3, 2) + 0.1
    model.adopt({"weights": weights, "mean": mean, "covariance": variance})
    z = model.codes(data)
    components = Normal(mean, variance.sqrt()).log_prob(z[:, None]).sum(-1)
    expected = (weights.log() + components).logsumexp(-1)
    assert torch.allclose(model.prior(z).log_prob(z), expected)
    assert torch.equal(model.labels(data), (weights.log() + components).argmax(-1))
    with pytest.raises(ModelError, match=r"fit one of \(3, 2\): GaussianMixture\(3, 'diagonal'\)"):
        model.adopt({"weights": weights, "mean": mean, "covariance": torch.eye(2)[None]})


# -- alarms ----------------------------------------------------------------------------------------


def placed(logits, mean):
    model = VaDE(len(logits), 2, 8, "gaussian", shape=4)
    with torch.no_grad():
        model.logits.copy_(torch.tensor(logits))
        model.mean.copy_(torch.tensor(mean))
    return model


APART = [[0.0, 0.0], [20.0, 0.0], [0.0, 20.0], [20.0, 20.0]]


def told(model):
    z = torch.randn(1, 50, 64, 2) + 5 * torch.randn(64, 2)
    return model.findings({}, {"z": z})


def test_clusters_that_are_well_give_no_alarm():
    model = placed([0.0, 0.3, -0.3, 0.0], APART)
    assert abs(model.effective_clusters() - 4) < 0.2
    assert told(model) == []


def test_dead_clusters_are_named():
    (text,) = told(placed([0.0, 0.0, 0.0, -6.0], APART))
    assert "1 of 4 clusters have died, with a share below 0.025 (3)" in text
    assert "Pretrained(SVI(...))" in text


@pytest.mark.parametrize(
    ("logits", "mean"),
    [([0.0, 9.0, 0.0, 0.0], APART), ([0.0, 0.1, 0.0, 0.0], [[0.0, 0.0]] * 4)],
    ids=["one takes everything", "all at one place"],
)
def test_a_collapse_into_one_cluster_is_told(logits, mean):
    (text,) = told(placed(logits, mean))
    assert "of 4 clusters 1.0 are in use: the largest, 1, has a share of" in text
    assert "give fewer clusters" in text


# -- bad input -------------------------------------------------------------------------------------


def test_bad_input_is_refused():
    with pytest.raises(ModelError, match="clusters=0: give a positive whole number"):
        VaDE(0, shape=4)
    with pytest.raises(DataError, match="y: unknown"):
        VaDE(3, 2, 8, shape=4).prepare({"x": torch.zeros(3, 4), "y": torch.zeros(3)})
    with pytest.raises(ModelError, match="the encoder returns"):
        VaDE(3, 2, shape=4, encoder=nn.Linear(4, 3)).codes({"x": torch.zeros(3, 4)})


# -- the recipe ------------------------------------------------------------------------------------


def blobs():
    """Rows of three groups far apart, and their labels."""
    labels = torch.arange(240) % 3
    centres = 4 * torch.eye(3, 6, dtype=torch.float64)
    return centres[labels] + 0.4 * torch.randn(240, 6, dtype=torch.float64), labels


@pytest.mark.filterwarnings("ignore::inference.InferenceWarning")
def test_three_stages_find_groups_that_are_apart(tmp_path):
    x, labels = blobs()
    last = SVI(batch_size=80, steps=60, learning_rate=5e-3, rows=4, draws=4, plateau=False)
    engine = Pretrained(last, steps=200, em=EM(restarts=4))
    model = VaDE(3, 2, 16, "gaussian", shape=6).double()
    result = fit(model, x, engine, store=tmp_path / "run")
    found = result.model.labels(result.model.prepare(x))
    groups = [set(found[labels == label].tolist()) for label in range(3)]
    assert [len(group) for group in groups] == [1, 1, 1]
    assert len(set.union(*groups)) == 3
    resumed = fit(model, x, engine, resume=tmp_path / "run")
    for one, other in zip(result.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_recipe_is_for_models_with_codes():
    with pytest.raises(EngineError, match="Pretrained needs HasPretraining"):
        fit(VAE(2, 8, "gaussian", shape=4), torch.randn(6, 4), Pretrained())
