"""Training by minibatches of rows: what it reaches, and that nothing on the way is lost."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

from inference import (
    ELBO,
    HMC,
    SVI,
    ImportanceWeighted,
    InferenceWarning,
    fit,
    objectives,
    training_step,
)
from inference.program import isolated
from inference.run_store import RunStore
from inference.training import Trainer
from inference.training_step import step_function
from ppl_models import EngineError, HasRows, ModelError

pytestmark = pytest.mark.filterwarnings("ignore::inference.InferenceWarning")

RNG = np.random.default_rng(0)
LOADINGS = RNG.normal(size=(2, 4))
X = RNG.normal(size=(400, 2)) @ LOADINGS + 0.5 * RNG.normal(size=(400, 4)) + 1.0


class Linear(HasRows):
    """Probabilistic principal components: the maximum of the likelihood is known."""

    def __init__(self, latent=2, size=4):
        super().__init__()
        torch.manual_seed(3)
        self.latent = latent
        self.decoder, self.encoder = nn.Linear(latent, size), nn.Linear(size, latent)
        self.log_scale = nn.Parameter(torch.zeros(latent))
        self.log_noise = nn.Parameter(torch.zeros(()))
        self.double()

    def forward(self, x):
        with pyro.plate("rows", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.latent), 1.0).to_event(1))
            law = dist.Normal(self.decoder(z), self.log_noise.exp())
            pyro.sample("x", law.to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("rows", len(x), dim=-1):
            law = dist.Normal(self.encoder(x), self.log_scale.exp())
            pyro.sample("z", law.to_event(1))


def likelihood(x, latent=2):
    """The largest mean log likelihood of a row (Tipping & Bishop 1999)."""
    size = x.shape[1]
    values = np.sort(np.linalg.eigvalsh(np.cov(x.T, ddof=0)))[::-1]
    noise = values[latent:].mean()
    log_det = np.log(values[:latent]).sum() + (size - latent) * math.log(noise)
    return -0.5 * (size * math.log(2 * math.pi) + log_det + size)


BASE = SVI(
    steps=300, batch_size=64, learning_rate=0.02, draws=8, rows=5, plateau=False, tier="traced"
)


def weights(result):
    return torch.cat([w.detach().ravel() for w in result.model.parameters()])


def test_the_bound_reaches_the_largest_likelihood():
    # the posterior is normal with a covariance of its own, up to a rotation diagonal: no gap
    engine = replace(
        BASE,
        steps=2500,
        average=0.99,
        schedule=lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 2500),
    )
    result = fit(Linear(), {"x": X}, engine)
    model = result.model
    with torch.no_grad():
        loadings = model.decoder.weight
        noise = (2 * model.log_noise).exp() * torch.eye(4, dtype=torch.float64)
        law = MultivariateNormal(model.decoder.bias, loadings @ loadings.T + noise)
        reached = float(law.log_prob(torch.from_numpy(X)).mean())
        torch.manual_seed(0)
        bound = -objectives.ELBO(50).losses(model, {"x": torch.from_numpy(X)}).mean()
    assert reached == pytest.approx(likelihood(X), abs=0.005)
    assert float(bound) == pytest.approx(reached, abs=0.01)
    assert model.trained
    assert result.posterior.draws["z"].shape == (1, 8, 5, 2)
    assert len(result.data["x"]) == 5
    # the other engines take it
    chains = fit(model, {"x": X[:3]}, HMC(chains=2, warmup=50, draws=20))
    assert chains.posterior.draws["z"].shape == (2, 20, 3, 2)


def test_every_weight_moves_and_the_model_given_stays():
    model = Linear()
    before = {name: w.detach().clone() for name, w in model.named_parameters()}
    result = fit(model, {"x": X}, replace(BASE, steps=20))
    for name, weight in result.model.named_parameters():
        assert (weight != before[name]).all(), name
        assert torch.equal(dict(model.named_parameters())[name], before[name])


def test_all_tiers_make_the_same_steps():
    results = [
        fit(Linear(), {"x": X}, replace(BASE, steps=30, objective=objective, tier=tier))
        for objective in (ELBO(2), ImportanceWeighted(3, doubly=True))
        for tier in ("eager", "traced")
    ]
    assert [r.posterior.attributes["tier"] for r in results] == ["eager", "traced"] * 2
    assert torch.allclose(weights(results[0]), weights(results[1]), rtol=1e-10)
    assert torch.allclose(weights(results[2]), weights(results[3]), rtol=1e-10)


def test_a_compiled_step_agrees_with_the_program():
    model = Linear()
    batch = {"x": torch.from_numpy(X[:16])}
    named = {name: w.detach() for name, w in model.named_parameters()}
    values = {}
    with isolated(torch.float64):
        for tier in ("eager", "compiled"):
            step = step_function(model, ELBO(), batch, tier=tier, steps=1)
            assert step.tier == tier
            torch.manual_seed(1)
            with torch.no_grad():
                values[tier] = step.call(named, batch)
    assert torch.allclose(values["eager"][0], values["compiled"][0])
    for one, other in zip(values["eager"][1], values["compiled"][1], strict=True):
        assert torch.allclose(one, other)


class Killed(BaseException):
    pass


FULL = replace(
    BASE,
    average=0.9,
    holdout=0.1,
    clip=5.0,
    schedule=lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.05, total_steps=400),
)


@pytest.mark.parametrize("moment", [1, 100, 237])
def test_a_killed_training_goes_on_to_the_same_weights(moment, tmp_path, monkeypatch):
    whole = fit(Linear(), {"x": X}, FULL)
    steps = itertools.count(1)
    monkeypatch.setattr(RunStore, "due", lambda self: next(steps) == moment)
    step = Trainer._move

    def killed(self, at):
        if at.step == moment:
            raise Killed
        return step(self, at)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_move", killed)
        with pytest.raises(Killed):
            fit(Linear(), {"x": X}, FULL, store=tmp_path / "run")
    resumed = fit(Linear(), {"x": X}, FULL, resume=tmp_path / "run")
    assert torch.equal(weights(resumed), weights(whole))
    trace = whole.posterior.attributes["held_out_trace"]
    assert resumed.posterior.attributes["held_out_trace"] == trace
    assert torch.equal(resumed.posterior.draws["z"], whole.posterior.draws["z"])


def test_a_training_goes_on_for_more_steps(tmp_path):
    engine = replace(BASE, average=0.9)
    whole = fit(Linear(), {"x": X}, engine)
    begun = fit(Linear(), {"x": X}, replace(engine, steps=120), store=tmp_path / "run")
    resumed = fit(Linear(), {"x": X}, engine, resume=tmp_path / "run")
    assert torch.equal(weights(resumed), weights(whole))
    # the clock of the training goes on too
    before, after = (r.posterior.attributes["bound_seconds"] for r in (begun, resumed))
    assert after[: len(before)] == before
    assert after == sorted(after)


def test_ctrl_c_keeps_the_weights_of_the_last_look_and_goes_on(tmp_path, monkeypatch):
    whole = fit(Linear(), {"x": X}, BASE)
    step = Trainer._move

    def interrupted(self, at):
        if at.step == 150:
            step(self, at)  # in the midst of a step
            raise KeyboardInterrupt
        return step(self, at)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_move", interrupted)
        stopped = fit(Linear(), {"x": X}, BASE, store=tmp_path / "run")
    (told,) = [finding.text for finding in stopped.findings if finding.name == "interrupted"]
    assert "interrupted: kept the weights after 100 steps" in told
    assert "resume=" in told
    resumed = fit(Linear(), {"x": X}, BASE, resume=tmp_path / "run")
    assert torch.equal(weights(resumed), weights(whole))


@pytest.mark.parametrize("moment", [130, 260])
def test_a_training_that_goes_on_is_undone_as_one_that_never_stopped(moment, tmp_path, monkeypatch):
    step = Trainer._move

    def poisoned(self, at):
        loss = step(self, at)
        return loss * math.nan if at.step == 270 else loss

    monkeypatch.setattr(Trainer, "_move", poisoned)
    whole = fit(Linear(), {"x": X}, BASE)
    assert any(finding.name == "rollbacks" for finding in whole.findings)
    calls = itertools.count(1)
    monkeypatch.setattr(RunStore, "due", lambda self: next(calls) == moment)

    def killed(self, at):
        if at.step == moment:
            raise Killed
        return poisoned(self, at)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_move", killed)
        with pytest.raises(Killed):
            fit(Linear(), {"x": X}, BASE, store=tmp_path / "run")
    resumed = fit(Linear(), {"x": X}, BASE, resume=tmp_path / "run")
    assert torch.equal(weights(resumed), weights(whole))


def test_another_architecture_and_a_broken_file_are_told(tmp_path):
    fit(Linear(), {"x": X}, replace(BASE, steps=10), store=tmp_path / "run")
    with pytest.raises(EngineError, match="this is another run"):
        fit(Linear(latent=3), {"x": X}, BASE, resume=tmp_path / "run")
    file = tmp_path / "run" / "checkpoint.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(EngineError, match="no whole checkpoint"):
        fit(Linear(), {"x": X}, BASE, resume=tmp_path / "run")


def test_steps_that_are_not_finite_are_undone():
    engine = replace(BASE, optimiser=torch.optim.SGD, learning_rate=1e4, steps=600)
    result = fit(Linear(), {"x": X}, engine)
    assert torch.isfinite(weights(result)).all()
    assert any(finding.name == "rollbacks" for finding in result.findings)


class Cornered(Linear):
    """Its gradient at the start is not a number: that of a root at zero."""

    def forward(self, x):
        with pyro.plate("rows", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.latent), 1.0).to_event(1))
            law = dist.Normal(self.decoder(z), 1 + self.log_noise.abs().sqrt())
            pyro.sample("x", law.to_event(1), obs=x)


def test_a_loss_that_stays_not_finite_names_the_site():
    with pytest.raises(ModelError, match=r"no site .*; its gradient"):
        fit(Cornered(), {"x": X}, replace(BASE, steps=2000))


def test_a_plateau_ends_the_run_and_the_best_weights_are_returned():
    engine = replace(BASE, steps=20_000, plateau=True, holdout=0.2, patience=2, learning_rate=0.05)
    result = fit(Linear(), {"x": X}, engine)
    attributes = result.posterior.attributes
    assert attributes["steps"] < 20_000
    assert not any(finding.name == "steps" for finding in result.findings)
    held = np.array(attributes["held_out_trace"])
    assert held.max() > held[0]


class Idle(Linear):
    def __init__(self):
        super().__init__()
        self.forgotten = nn.Linear(2, 2).double()


def test_weights_that_no_loss_depends_on_are_told():
    with pytest.warns(InferenceWarning, match="2 weights \\(forgotten.weight, forgotten.bias\\)"):
        fit(Idle(), {"x": X}, replace(BASE, steps=2))


def test_mixed_precision_runs_the_networks_in_it():
    seen = []

    class Watched(Linear):
        def forward(self, x):
            super().forward(x)
            seen.append(self.decoder(x.new_zeros(1, 2)).dtype)

    engine = replace(BASE, steps=200, precision="bfloat16")
    result = fit(Watched().float(), {"x": X}, engine)
    assert torch.bfloat16 in seen
    assert weights(result).dtype == torch.float32
    single = fit(Linear().float(), {"x": X}, replace(engine, precision=None))
    elbo, other = (r.posterior.attributes["bound_trace"][-1] for r in (result, single))
    assert elbo == pytest.approx(other, abs=0.1)


def test_a_step_in_low_precision_is_judged_by_full_precision():
    """Two orders of summation differ by as much as either does from the exact result."""
    exact = [torch.ones(9)]
    rounded = [exact[0] + 0.05]
    assert training_step._agree([exact[0] - 0.08], rounded, exact)
    assert not training_step._agree([exact[0] + 0.12], rounded, exact)
    assert not training_step._agree(rounded, exact, exact)


class Density(HasRows):
    """A normal with weights: nothing latent, fitted by maximum likelihood."""

    def __init__(self):
        super().__init__()
        self.loc, self.log_scale = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))

    def forward(self, x):
        with pyro.plate("rows", len(x), dim=-1):
            pyro.sample("x", dist.Normal(self.loc, self.log_scale.exp()).to_event(1), obs=x)


def test_a_program_without_latent_sites_is_fitted_by_maximum_likelihood():
    model = Density().double()
    result = fit(model, {"x": X}, replace(BASE, batch_size=None, steps=1500, learning_rate=0.03))
    assert np.allclose(result.model.loc.detach(), X.mean(0), atol=1e-3)
    assert np.allclose(result.model.log_scale.detach().exp(), X.std(0), atol=1e-3)
    assert repr(result).startswith("Fit(Density by SVI: a point")
    assert result.posterior.kind == "point"
    result.to_arviz()
    with pytest.raises(EngineError, match="no continuous latent site"):
        fit(result.model, {"x": X}, HMC())


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        (lambda: SVI(holdout=1.0), "holdout=1.0"),
        (lambda: SVI(average=-0.1), "average=-0.1"),
        (lambda: SVI(objective="elbo"), "objective='elbo'"),  # type: ignore[arg-type]
        (lambda: SVI(objective=ELBO(), particles=3), "objective has its own"),
        (lambda: SVI(schedule=3), "schedule=3"),  # type: ignore[arg-type]
        (lambda: SVI(precision="float16"), "precision='float16'"),  # type: ignore[arg-type]
        (lambda: SVI(clip=0.0), "clip=0.0"),
        (lambda: SVI(rows=0), "rows=0"),
    ],
)
def test_settings_are_checked_when_made(engine, words):
    with pytest.raises(EngineError, match=words):
        engine()


def normal(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


@pytest.mark.parametrize(
    ("model", "engine", "words"),
    [
        (normal, SVI(clip=1.0), r"SVI\(clip=...\) is for models trained by rows"),
        (Linear(), replace(BASE, holdout=1e-4), "holds out 0 of 400 rows"),
        (
            Linear(),
            replace(BASE, schedule=torch.optim.lr_scheduler.ReduceLROnPlateau),
            "depends on the step alone",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_before_work(model, engine, words):
    with pytest.raises(EngineError, match=words):
        fit(model, {"x": X if model is not normal else X[:, 0]}, engine)
