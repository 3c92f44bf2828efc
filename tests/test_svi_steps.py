"""Steps of variational inference, compiled: those of autograd and ``torch.optim``, to rounding."""

import numpy as np
import pytest
import torch

from inference import SVI, Until, fit, svi_steps
from inference.codegen import build, compiler
from inference.guides import LowRank, family
from inference.laplace import Frame
from inference.svi_steps import Compiled, Eager
from tests.programs import CONTINUOUS

pytestmark = [
    pytest.mark.skipif(compiler.compiler() is None, reason="there is no C compiler"),
    pytest.mark.filterwarnings("ignore::inference.InferenceWarning"),
]

PROGRAM = CONTINUOUS["line"]
FAMILIES = ["mean-field", "full-rank", "low-rank"]


def fitted(tier, steps=500, dtype="float64", **settings):
    engine = SVI(steps=steps, draws=300, tier=tier, **settings)
    return fit(PROGRAM.program, PROGRAM.data, engine, dtype=dtype, seed=3)


@pytest.fixture
def kinds(monkeypatch):
    """The kinds of steps that were taken."""
    taken = []
    for kind in (Compiled, Eager):
        real = kind.take

        def take(self, *arguments, real=real, kind=kind):
            taken.append(kind)
            return real(self, *arguments)

        monkeypatch.setattr(kind, "take", take)
    return taken


@pytest.mark.parametrize("guide", FAMILIES)
@pytest.mark.parametrize("particles", [1, 5])
def test_compiled_steps_are_those_of_autograd(guide, particles, kinds):
    found = fitted("compiled", guide=guide, particles=particles, learning_rate=0.05)
    assert set(kinds) == {Compiled}
    kinds.clear()
    expected = fitted("traced", guide=guide, particles=particles, learning_rate=0.05)
    assert set(kinds) == {Eager}
    for name in ("elbo_trace", "elbo"):
        one, other = (f.posterior.attributes[name] for f in (found, expected))
        np.testing.assert_allclose(one, other, rtol=1e-9)
    assert found.posterior.attributes["steps"] == expected.posterior.attributes["steps"]
    torch.testing.assert_close(
        found.posterior.draws, expected.posterior.draws, rtol=1e-8, atol=1e-8
    )


def test_limited_time_is_not_spent_on_compiling(kinds, monkeypatch):
    monkeypatch.setattr(build, "_SECONDS_PER_NODE", 0.05)
    monkeypatch.setattr(build, "_SECONDS_OF_TRACE", 1e9)
    engine = SVI(steps=400, draws=50)
    fit(PROGRAM.program, PROGRAM.data, engine, until=Until(seconds=20))
    assert set(kinds) == {Eager}
    kinds.clear()
    fit(PROGRAM.program, PROGRAM.data, engine)
    assert set(kinds) == {Compiled}


def test_single_precision_agrees_as_far_as_it_goes(kinds):
    found = fitted("compiled", dtype="float32", steps=200)
    assert set(kinds) == {Compiled}
    assert found.posterior.draws["a"].dtype == torch.float32
    expected = fitted("traced", dtype="float32", steps=200)
    torch.testing.assert_close(
        found.posterior.draws, expected.posterior.draws, rtol=5e-3, atol=5e-3
    )


def test_other_optimisers_and_minibatches_take_steps_of_autograd(kinds):
    fitted("compiled", steps=20, optimiser=torch.optim.RMSprop)
    fitted("auto", steps=20)  # too few to compile
    assert set(kinds) == {Eager}


@pytest.mark.parametrize("sabotage", ["noise", "gradient"])
def test_steps_that_disagree_are_not_taken(sabotage, kinds, monkeypatch):
    if sabotage == "noise":
        monkeypatch.setattr(svi_steps, "_STREAM", 2)
    else:
        monkeypatch.setattr(svi_steps, "_DECAYS", (0.8, 0.999))  # numba keeps what it has compiled
    found = fitted("compiled", steps=50)
    assert Eager in kinds
    expected = fitted("traced", steps=50)
    torch.testing.assert_close(
        found.posterior.draws, expected.posterior.draws, rtol=1e-8, atol=1e-8
    )


def test_steps_are_undone_where_the_bound_is_not_finite(monkeypatch):
    """As by autograd: the rate is halved from the last window that was finite."""
    real, seen = Compiled.take, []

    def take(self, first, count, over):
        losses = real(self, first, count, over)
        seen.append(self._rate)
        return np.full_like(losses, np.nan) if len(seen) == 4 else losses  # the first is a check

    monkeypatch.setattr(Compiled, "take", take)
    found = fitted("compiled", plateau=False, learning_rate=0.04)
    assert seen == [0.0, 0.04, 0.04, 0.04, 0.02, 0.02]
    assert [finding.name for finding in found.posterior.findings] == ["rollbacks"]


def test_time_ends_compiled_steps():
    engine = SVI(steps=10_000_000, draws=50, plateau=False, tier="compiled")
    found = fit(PROGRAM.program, PROGRAM.data, engine, until=Until(seconds=1.5))
    assert 100 < found.posterior.attributes["steps"] < 10_000_000
    assert "seconds" in [finding.name for finding in found.posterior.findings]


def test_the_low_rank_family_has_the_density_of_torch():
    generator = torch.Generator().manual_seed(0)
    like = {"generator": generator, "dtype": torch.float64}
    frame = Frame(torch.randn(7, **like), torch.rand(7, **like) + 0.5, torch.eye(7).double())
    q = family("low-rank", frame)
    assert isinstance(q, LowRank)
    with torch.no_grad():
        q.factor += 0.5 * torch.randn(q.factor.shape, **like)
        q.log_scale += 0.3 * torch.randn(7, **like)
        x, log_q = q(torch.randn(20, q.width, **like))
        scale = frame.diagonal * q.log_scale.exp()
        exact = torch.distributions.LowRankMultivariateNormal(
            frame.centre + frame.diagonal * q.loc, scale[:, None] * q.factor, scale.square()
        )
        torch.testing.assert_close(log_q, exact.log_prob(x), rtol=1e-11, atol=1e-11)
