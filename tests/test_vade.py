"""VaDE: the mixture in its prior against sums by hand, its stages, and its alarms."""

import pyro
import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from inference import EM, SVI, Pretrained, fit, row_weights
from inference.objectives import ELBO
from inference.row_evaluation import clustering
from ppl_models import VAE, DataError, EngineError, ModelError, VaDE
from ppl_models.corruptions import Jitter, Masking

KINDS = pytest.mark.parametrize("covariance", ["diagonal", "full"])


@pytest.fixture(autouse=True)
def scoped():
    with torch.random.fork_rng(), pyro.validation_enabled(False):
        torch.manual_seed(6)
        yield


def small(covariance="diagonal"):
    """A model whose weights are anything, and rows."""
    model = VaDE(3, 2, 8, "gaussian", shape=4, covariance=covariance).double()
    with torch.no_grad():
        model.logits.normal_()
        model.log_sd.normal_().mul_(0.3)
        if covariance == "full":
            model.lower.normal_()
    return model, model.prepare(torch.randn(6, 4, dtype=torch.float64))


def by_cluster(model, z):
    """Log p(c, z): (..., K)."""
    sd = model.log_sd.exp()
    factors = torch.diag_embed(sd)
    if model.covariance == "full":
        factors[:, 1, 0] = sd[:, 1] * model.lower[:, 1, 0]
    laws = [MultivariateNormal(m, L @ L.T) for m, L in zip(model.mean, factors, strict=True)]
    components = torch.stack([law.log_prob(z) for law in laws], -1)
    return model.logits.log_softmax(-1) + components


@KINDS
def test_the_cluster_is_summed_out_and_its_probability_is_that_of_bayes(covariance):
    model, data = small(covariance)
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


@KINDS
def test_every_weight_moves(covariance):
    model, data = small(covariance)
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


@KINDS
def test_clusters_start_from_a_mixture(covariance):
    model, data = small(covariance)
    weights, mean = torch.tensor([0.5, 0.2, 0.3]).double(), torch.randn(3, 2).double()
    spread = torch.rand(3, 2).double() + 0.1
    whole = torch.diag_embed(spread)
    if covariance == "full":
        whole = whole + torch.tensor([[0.0, 0.05], [0.05, 0.0]]).double()
    given = whole if covariance == "full" else spread
    model.adopt({"weights": weights, "mean": mean, "covariance": given})
    z = model.codes(data)
    laws = [MultivariateNormal(m, s) for m, s in zip(mean, whole, strict=True)]
    expected = weights.log() + torch.stack([law.log_prob(z) for law in laws], -1)
    assert torch.allclose(model.prior(z).log_prob(z), expected.logsumexp(-1))
    assert torch.equal(model.labels(data), expected.argmax(-1))
    with pytest.raises(ModelError, match=rf"GaussianMixture\(3, '{covariance}'\)"):
        model.adopt({"weights": weights, "mean": mean, "covariance": torch.eye(2)[None]})


@KINDS
def test_the_m_step_and_the_start_are_those_of_one_mixture(covariance):
    """Moments of draws weighed by p(c | z), as a mixture's M step has them."""
    model, data = small(covariance)
    z = torch.randn(40, 6, 2, dtype=torch.float64)
    new = model.maximiser(model.statistics(data, {"z": z}))
    rows, known = z.flatten(0, 1), model.responsibilities(z).flatten(0, 1)
    spread = []
    for k in range(3):
        weighed = torch.cov(rows.T, correction=0, aweights=known[:, k])
        spread.append(weighed if covariance == "full" else weighed.diagonal())
    share = known.mean(0)
    mean = (known.T @ rows) / known.sum(0)[:, None]
    model.adopt({"weights": share, "mean": mean, "covariance": torch.stack(spread)})
    for name, value in new.items():
        assert torch.allclose(model.get_parameter(name), value, atol=1e-4), name


def test_units_are_compared_with_clusters_one_by_one():
    """A unit's law in a cluster is its marginal, whatever it has to do with others."""
    model, data = small("full")
    factors = model.factors()
    sd = (factors @ factors.mT).diagonal(dim1=-2, dim2=-1).sqrt()
    mean, width = model.encode(data["x"])
    to_each = kl_divergence(Normal(mean[:, None], width[:, None]), Normal(model.mean, sd))
    expected = (model.responsibilities(mean)[..., None] * to_each).sum(1)
    assert torch.allclose(model.unit_divergences(data), expected)
    drawn = model.generated(5)
    assert drawn.shape == (3, 5, 4)


# -- alarms ----------------------------------------------------------------------------------------


def placed(logits, mean, covariance="diagonal"):
    model = VaDE(len(logits), 2, 8, "gaussian", shape=4, covariance=covariance)
    with torch.no_grad():
        model.logits.copy_(torch.tensor(logits))
        model.mean.copy_(torch.tensor(mean))
    return model


APART = [[0.0, 0.0], [20.0, 0.0], [0.0, 20.0], [20.0, 20.0]]


def told(model):
    z = torch.randn(1, 50, 64, 2) + 5 * torch.randn(64, 2)
    return model.findings({}, {"z": z})


@KINDS
def test_clusters_that_are_well_give_no_alarm(covariance):
    model = placed([0.0, 0.3, -0.3, 0.0], APART, covariance)
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
    with pytest.raises(ModelError, match="covariance='tied': choose 'diagonal' or 'full'"):
        VaDE(3, shape=4, covariance="tied")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"corruption=0\.2: give a function of images"):
        VaDE(3, shape=4, corruption=0.2)  # type: ignore[arg-type]
    for make in (lambda: Masking(1.0), lambda: Jitter(shift=-0.1)):
        with pytest.raises(ModelError, match=r"give a number in \[0, 1\)"):
            make()
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
    kind = {"covariance": "full", "corruption": Masking(0.05)}
    model = VaDE(3, 2, 16, "gaussian", shape=6, **kind).double()
    result = fit(model, x, engine, store=tmp_path / "run")
    found = result.model.labels(result.model.prepare(x))
    assert clustering(found, labels)["accuracy"] == 1
    resumed = fit(model, x, engine, resume=tmp_path / "run")
    for one, other in zip(result.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_recipe_is_for_models_with_codes():
    with pytest.raises(EngineError, match="Pretrained needs HasPretraining"):
        fit(VAE(2, 8, "gaussian", shape=4), torch.randn(6, 4), Pretrained())


# -- corruptions -----------------------------------------------------------------------------------


def test_the_first_stage_restores_what_was_corrupted():
    model = VaDE(3, 2, 8, "gaussian", shape=4, corruption=torch.zeros_like)
    data = model.prepare(torch.randn(6, 4))
    mean, _ = model.encode(torch.zeros(6, 4))
    expected = -Normal(model.decode(mean), 1.0).log_prob(data["x"]).sum(-1)
    assert torch.allclose(model.pretraining_losses(data), expected)


def test_masking_is_of_its_share():
    masked = Masking(0.3)(torch.ones(200, 50))
    error = (0.3 * 0.7 / masked.numel()) ** 0.5
    assert abs(float(1 - masked.mean()) - 0.3) < 4 * error
    assert set(masked.unique().tolist()) == {0.0, 1.0}


def test_jitter_moves_images_a_little():
    x = torch.rand(5, 3, 8, 8)
    assert torch.allclose(Jitter(0, 0, 0)(x), x, atol=1e-5)
    dot = torch.zeros(400, 9, 9)
    dot[:, 4, 4] = 1
    moved = Jitter(0.0, 2 / 9, 0.0)(dot)  # by up to a pixel, uniformly
    at = torch.arange(9.0) - 4
    for place in (moved.sum(axis) @ at for axis in (1, 2)):
        assert float(place.abs().max()) <= 1 + 1e-5
        # the variance of a uniform's square is 4/45
        assert abs(float(place.square().mean()) - 1 / 3) < 4 * (4 / 45 / 400) ** 0.5
    bar = torch.zeros(400, 9, 9)
    bar[:, 4] = 1
    turned = Jitter(0.2, 0.0, 0.0)(bar)
    slope = ((turned * at[:, None]).sum(1) @ at) / at.square().sum()
    assert 0.1 < float(slope.abs().max()) < 0.25
