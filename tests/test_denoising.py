"""The loss by one level per row, against the ELBO of the whole program, term by term."""

import math
from dataclasses import dataclass

import pyro
import pytest
import torch
from pyro import poutine
from torch.distributions import kl_divergence
from torch.fx.experimental.proxy_tensor import make_fx

from inference import SVI, fit, row_weights
from inference.denoising import Denoising, importance_shares
from inference.objectives import ELBO
from ppl_models import DataError, EngineError, ModelError, schedules
from ppl_models.denoisers import MLPDenoiser
from ppl_models.diffusion import Diffusion
from tests.test_diffusion import KINDS, rows

STEPS = 4
COUNT = 40_000


def small(seed=3, outputs=1, hidden=8, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Diffusion(
            MLPDenoiser(2, hidden, 1, outputs),
            (2,),
            **{"steps": STEPS, "parameterisation": "velocity", **options},
        ).double()


@pytest.fixture(autouse=True)
def scoped():
    with torch.random.fork_rng(), pyro.validation_enabled(False):
        torch.manual_seed(7)
        yield


@pytest.fixture(scope="module")
def exact():
    """L_0, ..., L_{T-1} and L_T of the program and its guide, means and standard errors."""
    model, x = small(), rows(1, 7).expand(COUNT, 2)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        guide = poutine.trace(model.guide).get_trace(x=x)
        program = poutine.trace(poutine.replay(model, trace=guide)).get_trace(x=x)
        terms = [-program.nodes["x"]["fn"].log_prob(x)]
        for t in range(1, STEPS + 1):
            terms.append(kl_divergence(guide.nodes[f"x_{t}"]["fn"], program.nodes[f"x_{t}"]["fn"]))
    return torch.stack([summary(term) for term in terms])


def summary(term):
    return torch.stack([term.mean(), term.std() / math.sqrt(len(term))])


def found(objective):
    """The same terms, and their sum last, by the losses of many copies of one row."""
    model, x = small(), rows(1, 7).expand(COUNT, 2)
    with torch.no_grad():
        torch.manual_seed(2)
        losses = objective.losses(model, {"x": x})
        torch.manual_seed(2)
        t, factor = objective.levels(model, x)
        last = model.prior_term(x, model.table(x))
        term = (losses - last) / factor
        terms = [summary(term[t == k]) for k in range(1, STEPS + 1)]
    return torch.stack([*terms, summary(last), summary(losses)])


def deviations(objective, exact):
    total = torch.stack([exact[:, 0].sum(), exact[:, 1].square().sum().sqrt()])
    exact = torch.cat([exact, total[None]])
    estimate = found(objective)
    error = (estimate[:, 1].square() + exact[:, 1].square()).sqrt()
    return (estimate[:, 0] - exact[:, 0]).abs() / error.clamp(min=1e-9)


@pytest.mark.parametrize("shares", [None, (4.0, 1.0, 2.0, 1.0)])
def test_the_mean_of_the_loss_is_the_elbo_of_the_program_term_by_term(exact, shares):
    assert (deviations(Denoising(shares=shares), exact) < 4).all()


def test_levels_have_their_shares_to_one_row_at_either_end():
    for shares in (None, (4.0, 1.0, 2.0, 1.0)):
        t, factor = Denoising(shares=shares).levels(small(), rows(800))
        for k in range(1, STEPS + 1):
            share = float((t == k).double().mean())
            assert share == pytest.approx(float(1 / factor[t == k][0]), abs=2 / 800)


def test_a_level_off_by_one_or_a_forgotten_share_is_noticed(exact, monkeypatch):
    @dataclass(frozen=True)
    class Forgetful(Denoising):
        def levels(self, model, x):
            t, factor = super().levels(model, x)
            return t, torch.full_like(factor, STEPS)

    assert deviations(Forgetful(shares=(4.0, 1.0, 2.0, 1.0)), exact)[-1] > 8
    noised = Diffusion.noised
    monkeypatch.setattr(
        Diffusion, "noised", lambda self, x, t, n, s: noised(self, x, (t - 1).clamp(1), n, s)
    )
    assert (deviations(Denoising(), exact)[1:STEPS] > 8).all()


def test_the_elbo_of_the_program_has_the_same_mean(exact):
    model, x = small(), rows(1, 7).expand(200, 2)
    with torch.no_grad():
        row_weights.check(model, {"x": x})
        each = ELBO(200).losses(model, {"x": x})
        value, error = summary(each)
    assert abs(value - exact[:, 0].sum()) < 4.5 * error


def test_levels_drawn_by_importance_make_the_loss_vary_less():
    model, x = small(hidden=16, steps=50, schedule="linear"), rows(4000)
    shares = importance_shares(model, {"x": x[:200]})
    assert len(shares) == 50
    assert min(shares) >= 0.1 / 50
    assert sum(shares) == pytest.approx(1)
    with torch.no_grad():
        plain, chosen = (Denoising(shares=s).losses(model, {"x": x}) for s in (None, shares))
    assert float(chosen.std()) < 0.7 * float(plain.std())
    error = (plain.var() + chosen.var()).div(len(x)).sqrt()
    assert float((plain.mean() - chosen.mean()).abs()) < 4 * float(error)


@pytest.mark.parametrize("kind", KINDS)
def test_the_simple_loss_is_the_error_of_what_the_denoiser_predicts(kind):
    model, x = small(parameterisation=kind), rows(50)
    objective = Denoising("simple")
    torch.manual_seed(4)
    losses = objective.losses(model, {"x": x})
    torch.manual_seed(4)
    t, _ = objective.levels(model, x)
    steps, normal = model.table(x), torch.randn_like(x)
    a, s = (part[t - 1][:, None] for part in (steps.signal, steps.noise))
    wanted = {"noise": normal, "data": x, "velocity": a * normal - s * x}[kind]
    output = model.denoiser(a * x + s * normal, t / STEPS)
    torch.testing.assert_close(losses, (output - wanted).square().sum(-1))


def test_the_hybrid_trains_the_mean_by_the_error_and_the_variance_by_the_bound():
    model, x = small(outputs=2, variance="learned"), rows(200)
    last = model.denoiser.last

    def gradient(call):
        model.zero_grad()
        torch.manual_seed(5)
        call().mean().backward()
        return last.bias.grad.clone()

    def error():
        torch.manual_seed(5)
        t, _ = Denoising().levels(model, x)
        steps = model.table(x)
        above = model.noised(x, t, torch.randn_like(x), steps)
        return model.error(x, t, model.denoised(above, t, steps)[0], steps)

    hybrid = gradient(lambda: Denoising("hybrid").losses(model, {"x": x}))
    bound = gradient(lambda: Denoising().losses(model, {"x": x}))
    torch.testing.assert_close(hybrid[:2], gradient(error)[:2])
    torch.testing.assert_close(hybrid[2:], 0.001 * bound[2:])


@pytest.mark.parametrize(
    "objective", [Denoising(), Denoising("hybrid"), Denoising(shares=(1.0,) * STEPS)]
)
def test_losses_have_no_control_flow_that_depends_on_numbers(objective):
    model = small(outputs=2, variance="learned", values=17)
    x = torch.randint(0, 17, (6, 2), dtype=torch.float64) / 8 - 1
    torch.manual_seed(6)
    losses = objective.losses(model, {"x": x})
    graph = make_fx(lambda x: objective.losses(model, {"x": x}))(x.clone())
    torch.manual_seed(6)
    torch.testing.assert_close(graph(x), losses)


def test_a_schedule_is_learnt_through_the_bound():
    """Few steps are best spent unevenly, and its ends are of no use to a narrow law."""
    model, x = small(hidden=16, schedule="learned"), 0.1 * rows(512)
    before = [weight.detach().clone() for weight in model.schedule.parameters()]
    optimiser = torch.optim.Adam(model.parameters(), 0.01)
    trace = []
    for _ in range(150):
        optimiser.zero_grad()
        loss = Denoising().losses(model, {"x": x}).mean()
        loss.backward()
        optimiser.step()
        trace.append(float(loss.detach()))
    assert all((a != b).any() for a, b in zip(before, model.schedule.parameters(), strict=True))
    fixed = small(hidden=16, schedule=schedules.Learned(STEPS))
    fixed.denoiser.load_state_dict(model.denoiser.state_dict())
    with torch.no_grad():
        held = Denoising().losses(fixed, {"x": x}).mean()
        assert float(Denoising().losses(model, {"x": x}).mean()) < float(held) - 1
    assert sum(trace[-20:]) < sum(trace[:20])


def test_what_it_does_not_train_is_refused():
    x = {"x": rows(3)}
    with pytest.raises(EngineError, match=r"weights='vlb'\): choose 'bound'"):
        Denoising("vlb")  # type: ignore[arg-type]
    with pytest.raises(EngineError, match="a positive number for each step"):
        Denoising(shares=(1.0, 0.0))
    with pytest.raises(EngineError, match="weights='bound', whose terms"):
        Denoising("simple", shares=(1.0,) * STEPS)
    with pytest.raises(ModelError, match="has 2 numbers for a model of 4 steps"):
        Denoising(shares=(1.0, 1.0)).check(small(), x)
    with pytest.raises(ModelError, match="adding no noise"):
        Denoising("simple").check(small(schedule="learned"), x)
    with pytest.raises(ModelError, match="use 'hybrid' or 'bound'"):
        Denoising("simple").check(small(outputs=2, variance="learned"), x)
    hidden = small().prepare({"x": rows(3), "seen": torch.tensor([True, False])})
    with pytest.raises(ModelError, match="whole rows"):
        Denoising().check(small(), hidden)
    with pytest.raises(DataError, match="seen: give a mask"):
        small().prepare({"x": rows(3), "seen": torch.ones(3)})


@pytest.mark.filterwarnings("ignore::inference.InferenceWarning")
def test_a_run_with_another_schedule_is_not_gone_on_from(tmp_path):
    x = rows(20)
    engine = SVI(objective=Denoising("bound"), steps=3, batch_size=5, rows=2, draws=4, tier="eager")
    fit(small(schedule="cosine"), x, engine, store=tmp_path / "run")
    with pytest.raises(EngineError, match=r"settings of the model was .*Cosine.* and is .*Linear"):
        fit(small(schedule="linear"), x, engine, resume=tmp_path / "run")
