"""What the density tells against draws: cases that have a fault, and near ones that have not."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.special
import torch

from inference import SVI, Gibbs, InferenceWarning, diagnose, fit
from inference.climb import climb
from inference.fit import bind
from inference.padded import Padded
from inference.probe import searched
from inference.program import isolated
from inference.target import Target
from ppl_models import GaussianMixture

RNG = np.random.default_rng(5)


def found(program, draws, data=None):
    """The findings on draws (chain, draw, D) by name."""
    problem = bind(program, data)
    with isolated(problem.dtype, problem.device):
        findings = searched(problem, problem.target("traced", 0), torch.as_tensor(draws))
        return {finding.name: finding for finding in findings}


def normals(weights, means, sds):
    """A mixture of normals on the line."""

    def program():
        wide = dist.Normal(0.0, 50.0)
        x = pyro.sample("x", wide)
        parts = dist.Normal(torch.tensor(means), torch.tensor(sds)).log_prob(x)
        pyro.factor("ends", (torch.tensor(weights).log() + parts).logsumexp(-1) - wide.log_prob(x))

    return program


def line(mean=0.0, sd=1.0):
    """Draws in random order, whose moments are nearly those asked for."""
    quantiles = scipy.special.ndtri((np.arange(1200) + 0.5) / 1200)
    return mean + sd * RNG.permutation(quantiles).reshape(4, 300, 1)


@pytest.mark.parametrize("dim", [1, 7])
def test_climbs_end_at_the_maximum_of_a_quadratic(dim):
    scale = torch.logspace(-2, 2, dim, dtype=torch.float64)
    target = Target(lambda x: -0.5 * (x / scale - 1).square().sum(), dim, tier="traced")
    start = torch.as_tensor(5 * RNG.normal(size=(20, dim)))
    ends = climb(Padded(target, start), start, torch.ones(dim, dtype=torch.float64))
    assert bool(ends.arrived.all())
    torch.testing.assert_close(ends.x, scale.expand(20, -1), rtol=0.01, atol=0.0)


def test_a_climb_of_a_density_without_maximum_does_not_arrive():
    target = Target(lambda x: x.sum(), 2, tier="traced")
    start = torch.zeros(3, 2, dtype=torch.float64)
    ends = climb(Padded(target, start), start, torch.ones(2, dtype=torch.float64))
    assert not bool(ends.arrived.any())


@pytest.mark.parametrize(("share", "apart"), [(0.5, 15.0), (0.2, 15.0), (0.03, 6.0)])
def test_a_mode_that_no_draw_has_seen_is_an_error_with_its_share(share, apart):
    program = normals((1 - share, share), (0.0, apart), (1.0, 1.0))
    finding = found(program, line())["unseen_modes"]
    assert finding.severity == "error"
    assert finding.figure == pytest.approx(share, rel=0.15)  # 400 importance draws


def test_a_mode_that_matters_little_is_a_warning_or_nothing():
    near = normals((0.985, 0.015), (0.0, 6.0), (1.0, 0.2))
    assert found(near, line())["unseen_modes"].severity == "warning"
    none = normals((0.9999, 0.0001), (0.0, 6.0), (1.0, 0.2))
    assert found(none, line()) == {}


def test_modes_that_draws_have_seen_are_not_told():
    program = normals((0.5, 0.5), (-15.0, 15.0), (1.0, 1.0))
    both = line()
    both[::2] += 15.0
    both[1::2] -= 15.0
    assert found(program, both) == {}
    assert found(normals((0.5, 0.5), (-1.0, 1.0), (1.0, 1.0)), line(0.0, 1.4)) == {}


def test_a_narrow_mode_in_the_plane_is_found_though_few_climbs_lead_there():
    centre, sd = torch.tensor([[-6.0, 0.0], [6.0, 3.0]]), torch.tensor([[0.2], [2.0]])

    def program():
        wide = dist.Normal(0.0, 30.0).expand([2]).to_event(1)
        x = pyro.sample("x", wide)
        parts = dist.Normal(centre, sd).to_event(1).log_prob(x)
        parts = parts + torch.tensor([0.6, 0.4]).log()
        pyro.factor("ends", parts.logsumexp(-1) - wide.log_prob(x))

    draws = np.array([6.0, 3.0]) + 2 * RNG.normal(size=(4, 300, 2))
    assert found(program, draws)["unseen_modes"].figure == pytest.approx(0.6, rel=0.15)


def test_a_funnel_has_no_unseen_mode():
    """Its density has a peak of no mass, far from every draw."""

    def funnel():
        v = pyro.sample("v", dist.Normal(0.0, 3.0))
        pyro.sample("y", dist.Normal(0.0, (v / 2).exp()).expand([9]).to_event(1))

    v = 3 * RNG.normal(size=(4, 300, 1))
    y = np.exp(v / 2) * RNG.normal(size=(4, 300, 9))
    assert "unseen_modes" not in found(funnel, np.concatenate([v, y], -1))


Y = np.array([-10.3, -9.6, -10.9, -9.8, 10.4, 9.7, 10.1, 11.0])


@pytest.mark.filterwarnings("ignore::inference.InferenceWarning")
def test_symmetric_labels_are_told_as_such_and_not_where_the_model_knows_them():
    def program(y):
        means = pyro.sample("means", dist.Normal(0.0, 10.0).expand([2]).to_event(1))
        parts = dist.Normal(means, torch.ones(2))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), parts), obs=y)

    one = np.array([-10.1, 10.3]) + 0.5 * RNG.normal(size=(4, 300, 2))
    finding = found(program, one, {"y": Y})["unseen_modes"]
    assert finding.figure == pytest.approx(0.5, rel=0.15)
    assert "labels" in finding.remedy
    known = fit(GaussianMixture(2), Y[:, None], Gibbs(warmup=50, draws=200), progress=False)
    assert "unseen_modes" not in [finding.name for finding in diagnose(known)]


def student(degrees):
    def program():
        pyro.sample("x", dist.StudentT(torch.full((2,), degrees), 0.0, 3.0).to_event(1))

    return program, 3 * RNG.standard_t(degrees, size=(4, 300, 2))


def power(degrees):
    """A positive scalar whose density falls as x^(-degrees - 1), walked on the log scale."""

    def program():
        pyro.sample("scale", dist.InverseGamma(degrees, 1.0))

    return program, -np.log(RNG.gamma(degrees, size=(4, 300, 1)))


@pytest.mark.parametrize("law", [student, power])
@pytest.mark.parametrize("degrees", [1.0, 2.2, 5.0])
def test_the_power_of_a_tail_is_read_off_the_density(law, degrees):
    findings = found(*law(degrees))
    if degrees == 5.0:
        assert findings == {}
        return
    assert findings["tails"].severity == "error"
    assert findings["tails"].figure == pytest.approx(2 / degrees, rel=0.02)


@pytest.mark.filterwarnings("ignore::inference.InferenceWarning")
def test_light_tails_on_other_supports_are_not_told():
    def program():
        pyro.sample("a", dist.LogNormal(0.0, 1.0))
        pyro.sample("b", dist.Beta(2.0, 3.0))
        pyro.sample("c", dist.Dirichlet(torch.ones(3)))
        pyro.sample("d", dist.Exponential(1.0))

    result = fit(program, None, draws_of_the_prior(), progress=False)
    assert not [finding for finding in diagnose(result) if finding.severity == "error"]


def draws_of_the_prior():
    from inference import ImportanceSampling

    return ImportanceSampling(proposals=2000, draws=1000)


def flat_logistic(x):
    def program(y):
        flat = dist.ImproperUniform(dist.constraints.real, (), ())
        b = pyro.sample("b", flat)
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Bernoulli(logits=b * torch.tensor(x)), obs=y)

    return program


def test_an_improper_posterior_is_told_and_a_proper_one_with_the_same_prior_is_not():
    y = {"y": np.array([0.0, 0.0, 1.0, 1.0])}
    apart = found(flat_logistic([-2.0, -1.0, 1.0, 2.0]), line(5.0, 2.0), y)
    assert apart["improper"].severity == "error"
    assert "improper" not in found(flat_logistic([-2.0, 1.0, -1.0, 2.0]), line(0.8, 0.8), y)


def test_draws_much_narrower_than_the_density_do_not_make_it_improper():
    findings = found(normals((1.0,), (0.0,), (1.0,)), line(0.5, 1e-7))
    assert "improper" not in findings
    assert findings["virial"].severity == "error"


@pytest.mark.parametrize(
    ("sd", "severity"),
    [
        (1.0, None),
        (1.1, None),
        (1.25, "warning"),
        (1.4, "error"),
        (0.75, "warning"),
        (0.6, "error"),
    ],
)
def test_the_virial_of_a_normal_is_the_ratio_of_variances(sd, severity):
    findings = found(normals((1.0,), (2.0,), (1.0,)), line(2.0, sd))
    if severity is None:
        assert findings == {}
        return
    assert findings["virial"].severity == severity
    expected = sd**2
    # the sample variance of 1,000 draws has a relative error of sqrt(2 / 1000)
    error = 4 * expected * math.sqrt(2 / 1000)
    assert findings["virial"].figure == pytest.approx(expected, abs=error)


def test_what_diagnose_finds_is_what_fit_warns_of():
    program = normals((0.5, 0.5), (-15.0, 15.0), (1.0, 1.0))
    with pytest.warns(InferenceWarning) as caught:
        result = fit(program, None, SVI(guide="laplace", tier="traced"), progress=False)
    findings = diagnose(result)
    assert [finding.name for finding in findings] == ["unseen_modes"]
    assert [str(warning.message) for warning in caught] == [f"SVI: {findings[0].text}"]
    assert findings == result.findings
    assert result.seconds["checks"] > 0


@pytest.mark.filterwarnings("ignore::inference.InferenceWarning")
def test_a_large_problem_is_searched_on_request():
    def program():
        wide = dist.Normal(0.0, 50.0)
        x = pyro.sample("x", wide)
        pyro.sample("rest", dist.Normal(torch.zeros(100), 1.0).to_event(1))
        parts = dist.Normal(torch.tensor([-9.0, 9.0]), 1.0).log_prob(x)
        pyro.factor("ends", parts.logsumexp(-1) - wide.log_prob(x))

    result = fit(program, None, SVI(guide="laplace", draws=500, tier="traced"), progress=False)
    noted = {finding.name: finding for finding in diagnose(result)}
    assert noted["unsearched"].severity == "note"
    assert "101 dimensions" in noted["unsearched"].text
    searched = [finding.name for finding in diagnose(result, search=True)]
    assert "unseen_modes" in searched
    assert "unsearched" not in searched


@pytest.mark.filterwarnings("ignore::inference.InferenceWarning")
def test_an_answer_survives_the_failure_of_its_check(monkeypatch):
    def fails(*arguments):
        raise ArithmeticError("no such number")

    monkeypatch.setattr("inference.probe.unbalanced", fails)
    result = fit(normals((1.0,), (0.0,), (1.0,)), None, SVI(guide="laplace"), progress=False)
    (finding,) = diagnose(result)
    assert (finding.name, finding.severity) == ("unsearched", "note")
    assert "no such number" in finding.text
