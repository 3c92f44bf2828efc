"""The diffusion bound, term by term, against closed forms and Pyro's ELBO of the program."""

import math

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from scipy import stats
from torch import float64, nn
from torch.distributions import Normal, kl_divergence

from inference import SVI, fit
from ppl_models import DataError, ModelError, Noise, schedules
from ppl_models.denoisers import LinearDenoiser, MLPDenoiser, UNetDenoiser
from ppl_models.diffusion import Diffusion
from ppl_models.discretised import DiscretisedNormal, log_ndtr

VARIANCE = 0.49
NAMES = ("linear", "cosine", "learned")
KINDS = ("noise", "data", "velocity")


class Best(nn.Module):
    """The best denoiser of x_0 ~ N(0, VARIANCE) in each parameterisation, in closed form."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.register_buffer("one", torch.ones(1))

    def forward(self, x, time):
        steps = self.model.table(x)
        levels = (steps.noise / steps.signal).log()  # interpolated between steps
        place = time * self.model.steps - 1
        below, above = levels[place.floor().long()], levels[place.ceil().long()]
        sigma = torch.lerp(below, above, place - place.floor()).exp()[:, None]
        a = (1 + sigma**2).rsqrt()
        s = sigma * a
        guess = a * VARIANCE / (a**2 * VARIANCE + s**2) * x
        if self.kind == "data":
            return guess
        noise = (x - a * guess) / s
        return noise if self.kind == "noise" else a * noise - s * guess


def best(kind="data", schedule="cosine", steps=12, **options):
    model = Diffusion(
        Best(kind), (2,), steps=steps, schedule=schedule, parameterisation=kind, **options
    ).double()
    object.__setattr__(model.denoiser, "model", model)
    return model


def rows(count, seed=0):
    return math.sqrt(VARIANCE) * torch.randn(
        count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_table_is_that_of_the_joint_gaussian(name):
    """Weights and variance of q(x_{t-1} | x_t, x_0) by conditioning the chain's covariance."""
    model = best(schedule=name, steps=7)
    steps = model.table(torch.zeros(1, dtype=torch.float64))
    beta = steps.beta.detach().numpy()
    assert ((beta > 0) & (beta < 1)).all()
    # x_t = sum of weights of (x_0, n_1, ..., n_T)
    weights = [np.eye(8)[0]]
    for t in range(7):
        weights.append(np.sqrt(1 - beta[t]) * weights[-1] + np.sqrt(beta[t]) * np.eye(8)[t + 1])
    for t in range(1, 8):
        own, before = weights[t], weights[t - 1]
        assert float(steps.signal[t - 1].detach()) == pytest.approx(own[0])
        assert float(steps.noise[t - 1].detach()) == pytest.approx(np.linalg.norm(own[1:]))
        slope = before[1:] @ own[1:] / (own[1:] @ own[1:])
        left = before[1:] @ before[1:] - slope * (before[1:] @ own[1:])
        assert float(steps.to_noisy[t - 1].detach()) == pytest.approx(slope, abs=1e-12)
        assert float(steps.to_data[t - 1].detach()) == pytest.approx(before[0] - slope * own[0])
        assert float(steps.variance[t - 1].detach()) == pytest.approx(left, abs=1e-12)


def test_linear_noise_adds_up_to_the_same_whatever_the_steps():
    kept = [float((1 - schedules.Linear().betas(steps)).log().sum()) for steps in (1000, 100, 20)]
    assert kept[0] == pytest.approx(
        float(torch.linspace(1e-4, 0.02, 1000).neg().log1p().sum()), 1e-3
    )
    assert kept[1] == pytest.approx(kept[0], rel=1e-3)
    assert kept[2] == pytest.approx(kept[0], rel=1e-3)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_term_is_the_divergence_of_its_gaussians(kind, variance):
    model, x = best(kind, variance=variance), rows(5)
    steps = model.table(x)
    normal = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for t in range(1, 13):
        at = torch.full((5,), t)
        above = steps.signal[t - 1] * x + steps.noise[t - 1] * normal
        gain = steps.signal[t - 1] * VARIANCE
        gain = gain / (steps.signal[t - 1] ** 2 * VARIANCE + steps.noise[t - 1] ** 2)
        mean = steps.to_data[t - 1] * gain * above + steps.to_noisy[t - 1] * above
        wide = steps.beta[t - 1] if variance == "fixed_large" else steps.variance[max(t - 1, 1)]
        reverse = Normal(mean, wide.sqrt())
        if t == 1:
            expected = -reverse.log_prob(x).sum(-1)
        else:
            exact = steps.to_data[t - 1] * x + steps.to_noisy[t - 1] * above
            own = Normal(exact, steps.variance[t - 1].sqrt())
            expected = kl_divergence(own, reverse).sum(-1)
        torch.testing.assert_close(model.term(x, at, normal, steps), expected, rtol=1e-8, atol=1e-8)
    together = model.term(x, torch.tensor([1, 5, 12, 2, 1]), normal, steps)
    alone = [
        model.term(x, torch.full((5,), t), normal, steps)[i] for i, t in enumerate([1, 5, 12, 2, 1])
    ]
    torch.testing.assert_close(together, torch.stack(alone))


def exact_terms(model):
    """Expected L_{t-1}, t = 2, ..., T, and L_0, per row of two numbers, over the data."""
    steps = table_of(model)
    terms = []
    for t in range(1, model.steps + 1):
        a2, s2 = steps.signal[t - 1] ** 2, steps.noise[t - 1] ** 2
        left = VARIANCE * s2 / (a2 * VARIANCE + s2)  # of x_0 given x_t
        small = steps.variance[max(t - 1, 1)]
        wide = steps.beta[t - 1] if model.variance == "fixed_large" else small
        missed = steps.to_data[t - 1] ** 2 * left / wide
        if t == 1:  # the mean is the guess itself: to_noisy is 0
            terms.append(math.log(2 * math.pi * wide) + missed)
        else:
            ratio = steps.variance[t - 1] / wide
            terms.append(ratio - 1 - math.log(ratio) + missed)
    return np.array(terms)


def table_of(model):
    table = model.table(torch.zeros(1, dtype=torch.float64))
    return type(table)(*(part.detach().numpy() for part in table))


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_the_bound_has_the_expectation_in_closed_form(variance):
    model, x = best(variance=variance), rows(40_000)
    terms = model.bound(x, Noise.seeded(0, 1))
    drawn = torch.cat([terms.data[:, None], terms.steps], 1).numpy()
    error = drawn.std(0) / np.sqrt(len(drawn))
    assert (np.abs(drawn.mean(0) - exact_terms(model)) < 4.5 * error).all()
    steps = table_of(model)
    a2, s2 = steps.signal[-1] ** 2, steps.noise[-1] ** 2
    expected = a2 * VARIANCE + s2 - 1 - np.log(s2)
    assert float(terms.last.mean()) == pytest.approx(expected, abs=1e-3)


def test_many_small_steps_bound_the_entropy_of_the_data():
    entropy = math.log(2 * math.pi * math.e * VARIANCE)
    gaps = []
    for steps in (10, 100, 1000):
        model = best(variance="fixed_large", schedule="linear", steps=steps)
        table = table_of(model)
        a2, s2 = table.signal[-1] ** 2, table.noise[-1] ** 2
        last = a2 * VARIANCE + s2 - 1 - np.log(s2)
        gaps.append(exact_terms(model).sum() + last - entropy)
    assert 0 < gaps[2] < 0.01
    assert gaps[2] < gaps[1] < gaps[0]


def test_the_terms_are_pyros_elbo_of_the_program_and_its_guide():
    torch.manual_seed(3)
    model = Diffusion(MLPDenoiser(2, 8, 1), (2,), steps=4).double()
    x = rows(3, 7)
    pyro.set_rng_seed(0)
    with torch.no_grad():
        wide = x.repeat(20_000, 1)  # each row of its own latent chain
        loss = TraceMeanField_ELBO().differentiable_loss(model, model.guide, x=wide) / 20_000
        terms = model.bound(wide, Noise.seeded(0, 1)).total.reshape(-1, 3).sum(1)
    error = float(terms.std()) * math.sqrt(2 / 20_000)
    assert abs(float(loss) - float(terms.mean())) < 4.5 * error
    assert error < 0.02 * abs(float(terms.mean()))


def test_a_learned_variance_lies_between_the_two_fixed_ones():
    for level in (-40.0, 40.0):
        net = LinearDenoiser(4, 6).double()
        with torch.no_grad():
            net.offset[:, 2:] = level
        wrapped = nn.Module()
        wrapped.forward = lambda x, time, net=net: net(torch.cat([x, x], 1), time)  # type: ignore
        model = Diffusion(wrapped, (2,), steps=6, variance="learned").double()
        steps = model.table(rows(1))
        for t in (1, 3, 6):
            _, variance = model.reverse(rows(4), torch.full((4,), t), steps)
            end = steps.beta[t - 1] if level > 0 else steps.variance[max(t - 1, 1)]
            torch.testing.assert_close(variance, end.expand(4, 2))


@pytest.mark.parametrize("values", ["continuous", "8-bit"])
def test_single_precision_has_finite_gradients_at_every_step(values):
    torch.manual_seed(0)
    net = MLPDenoiser(2, 8, 1, outputs=2)
    model = Diffusion(net, (2,), steps=6, schedule="learned", variance="learned", values=values)
    x = torch.tensor([[-1.0, 1.0]]).expand(6, 2)
    loss = model.term(x, torch.arange(1, 7), torch.randn(6, 2), model.table(x))
    assert torch.isfinite(loss).all()
    loss.sum().backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()


def test_discretised_normals_are_probabilities():
    levels = torch.linspace(-1, 1, 256, dtype=torch.float64)
    for loc, scale in ((0.0, 0.3), (0.999, 0.01), (-5.0, 0.1), (0.2, 1e-3), (0.0, 20.0)):
        law = DiscretisedNormal(
            torch.tensor(loc, dtype=float64), torch.tensor(scale, dtype=float64)
        )
        log_p = law.log_prob(levels)
        assert torch.isfinite(log_p).all()
        assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-9)
        middle = int((levels - loc).abs().argmin())
        if 0 < middle < 255:
            edges = (levels[middle] + torch.tensor([-1.0, 1.0]).double() / 255 - loc) / scale
            expected = stats.norm.cdf(float(edges[1])) - stats.norm.cdf(float(edges[0]))
            assert float(log_p[middle].exp()) == pytest.approx(expected, rel=1e-9)
    draws = DiscretisedNormal(torch.zeros(20_000).double(), torch.tensor(0.3).double()).sample()
    assert set(((draws + 1) * 127.5).round().long().tolist()) <= set(range(256))
    assert float(draws.std()) == pytest.approx(0.3, abs=0.3 * 4.5 / math.sqrt(40_000))


def test_eight_bit_rows_are_bounded_in_bits():
    model = Diffusion(MLPDenoiser(3), (3,), steps=5, values="8-bit").double()
    x = torch.randint(0, 256, (6, 3)).double() / 127.5 - 1
    terms = model.bound(model.prepare(x)["x"], Noise.seeded(0, 1))
    assert (terms.data > 0).all()  # a probability
    bits = model.bits_per_dimension(terms.total)
    torch.testing.assert_close(bits, terms.total / (3 * math.log(2)))
    with pytest.raises(DataError, match=r"pixels / 127\.5 - 1"):
        model.prepare(x + 1e-3)


def test_any_number_of_levels_makes_probabilities():
    model = Diffusion(MLPDenoiser(2), (2,), steps=5, values=17).double()
    x = torch.randint(0, 17, (6, 2)).double() / 8 - 1
    assert (model.bound(model.prepare(x)["x"], Noise.seeded(0, 1)).data > 0).all()
    with pytest.raises(DataError, match=r"17 levels.*pixels / 8 - 1"):
        model.prepare(x + 0.01)
    with pytest.raises(ModelError, match="values='7-bit'"):
        Diffusion(MLPDenoiser(2), (2,), values="7-bit")  # type: ignore[arg-type]


def test_what_is_not_seen_does_not_count():
    model = Diffusion(MLPDenoiser(2, 8, 1), (2,), steps=3).double()
    seen = torch.tensor([True, False])
    nan = float("nan")
    fields = model.prepare({"x": [[0.5, nan], [-0.5, 7.0]], "seen": seen})
    assert bool(torch.isfinite(fields["x"]).all())
    values = {f"x_{t}": torch.full((2, 2), 0.1 * t, dtype=torch.float64) for t in (1, 2, 3)}
    trace = pyro.poutine.trace(pyro.poutine.condition(model, values)).get_trace(**fields)
    law = model.likelihood(values["x_1"], model.table(values["x_1"]))
    expected = law.base_dist.log_prob(fields["x"])[:, 0]
    torch.testing.assert_close(trace.nodes["x"]["fn"].log_prob(fields["x"]), expected)
    with pytest.raises(DataError, match="row 1 is missing"):
        model.prepare({"x": [[0.5, nan], [nan, 7.0]], "seen": seen})
    with pytest.raises(ModelError, match="the guide of a diffusion needs whole rows"):
        model.guide(**fields)


def test_a_plate_of_particles_repeats_the_chain():
    model = Diffusion(UNetDenoiser(2, width=4, levels=1), (2, 1, 2), steps=3).double()
    x = torch.randn(5, 2, 1, 2, dtype=torch.float64)
    with pyro.plate("particles", 3, dim=-2):
        guide = pyro.poutine.trace(model.guide).get_trace(x=x)
        program = pyro.poutine.trace(pyro.poutine.replay(model, trace=guide)).get_trace(x=x)
    assert guide.nodes["x_2"]["value"].shape == (3, 5, 2, 1, 2)
    for i in range(3):
        values = {f"x_{t}": guide.nodes[f"x_{t}"]["value"][i] for t in (1, 2, 3)}
        one = pyro.poutine.trace(pyro.poutine.condition(model, values)).get_trace(x=x)
        for name in ("x", "x_1", "x_3"):
            both = [trace.nodes[name] for trace in (one, program)]
            alone, among = (node["fn"].log_prob(node["value"]) for node in both)
            torch.testing.assert_close(alone, among[i])


@pytest.mark.parametrize("size", [(8, 8), (7, 5)])
def test_a_u_net_takes_images_of_any_size_and_sees_the_time(size):
    torch.manual_seed(1)
    model = Diffusion(
        UNetDenoiser(2, width=4, levels=3, outputs=2), (2, *size), steps=5, variance="learned"
    ).double()
    x = model.prepare(torch.randn(3, 2, *size, dtype=torch.float64))["x"]
    terms = model.bound(x, Noise.seeded(0, 1))
    assert bool(torch.isfinite(terms.total).all())
    with torch.no_grad():
        early, late = (model.denoiser(x, torch.full((3,), t).to(x)) for t in (0.2, 0.9))
        alone = model.denoiser(x[1:2], torch.full((1,), 0.2).to(x))
    assert float((early - late).abs().max()) > 1e-3
    torch.testing.assert_close(alone, early[1:2])  # no row sees another
    with pytest.raises(ModelError, match=r"the denoiser fails on rows of \(3, 7, 7\)"):
        Diffusion(UNetDenoiser(2), (3, 7, 7)).prepare(torch.zeros(1, 3, 7, 7))


def test_weights_of_another_diffusion_are_refused():
    def model(**options):
        return Diffusion(MLPDenoiser(2, 8, 1), (2,), **{"steps": 6, **options})

    kept = model().state_dict()
    model().load_state_dict(kept)
    with pytest.raises(ModelError, match=r"schedule=Cosine\(\), and this one has schedule=Linear"):
        model(schedule="linear").load_state_dict(kept)
    with pytest.raises(ModelError, match="steps=6, and this one has steps=7"):
        model(steps=7).load_state_dict(kept)
    own = model(schedule=schedules.Linear(high=0.03)).state_dict()
    with pytest.raises(ModelError, match=r"high=0\.03.*high=0\.02"):
        model(schedule="linear").load_state_dict(own)


def test_a_schedule_that_does_not_reach_noise_is_told_of():
    model = best(schedule=schedules.Linear(high=0.005))
    (text,) = model.findings({"x": rows(100)}, {})
    table = table_of(model)
    last = table.signal[-1] ** 2 * float(rows(100).square().sum(-1).mean())
    last = 0.5 * last + table.noise[-1] ** 2 - 1 - 2 * math.log(table.noise[-1])
    assert f"L_T is {last:.3g} nats per row" in text
    assert not best().findings({"x": rows(100)}, {})


def test_what_does_not_fit_is_refused():
    with pytest.raises(ModelError, match="steps=1"):
        best(steps=1)
    with pytest.raises(ModelError, match="schedule='quadratic'"):
        best(schedule="quadratic")
    with pytest.raises(ModelError, match="parameterisation='score'"):
        Diffusion(MLPDenoiser(2), (2,), parameterisation="score")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="made for 5 steps, not 6"):
        best(schedule=schedules.Learned(5), steps=6).table(rows(1))
    with pytest.raises(ModelError, match=r"the denoiser fails on rows of \(3,\)"):
        Diffusion(MLPDenoiser(2), (3,)).prepare(torch.zeros(4, 3))
    with pytest.raises(ModelError, match=r"gives \(2, 2\) .* a learned variance needs \(2, 4\)"):
        Diffusion(MLPDenoiser(2), (2,), variance="learned").prepare(torch.zeros(4, 2))
    with pytest.raises(
        DataError, match=r"shape \(4, 3\).*rows of \(2,\)|give at least one row of \(2,\)"
    ):
        best().prepare(torch.zeros(4, 3))
    with pytest.raises(DataError, match="row 1 is missing"):
        best().prepare(torch.tensor([[0.0, 1.0], [float("nan"), 0.0]]))


@pytest.mark.filterwarnings("ignore::inference.InferenceWarning")
def test_svi_trains_the_denoiser_through_the_program():
    torch.manual_seed(0)
    model = Diffusion(MLPDenoiser(2, 16, 1), (2,), steps=3, variance="fixed_large").double()
    before = float(model.bound(rows(500), Noise.seeded(0, 1)).total.mean())
    engine = SVI(steps=300, particles=1, draws=2, learning_rate=5e-3)
    fitted = fit(model, rows(100), engine, progress=False)
    assert list(fitted.posterior.draws) == ["x_3", "x_2", "x_1"]
    trained = fitted.model
    assert isinstance(trained, Diffusion)
    after = float(trained.bound(rows(500), Noise.seeded(0, 1)).total.mean())
    assert after < before - 1


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_the_log_normal_distribution_function_and_its_slope(dtype, close):
    x = torch.cat([torch.linspace(-60, 60, 2001), torch.tensor([-1e3, -1.0, 1e3])]).to(dtype)
    wide = x.double().requires_grad_()
    expected = torch.special.log_ndtr(wide)
    (slope,) = torch.autograd.grad(expected.sum(), wide)
    torch.testing.assert_close(log_ndtr(x), expected.detach().to(dtype), rtol=close, atol=1e-37)
    found = torch.func.vmap(torch.func.grad(log_ndtr))(x)
    torch.testing.assert_close(found, slope.to(dtype), rtol=100 * close, atol=1e-9)
