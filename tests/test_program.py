"""Programs become densities, draws and predictions: against brute force and closed forms.

Statistical checks fail for right code with a chance below ``LEVEL`` over the whole module.
"""

import logging
import math

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from scipy import stats
from torch import nn
from torch.distributions import biject_to

from inference import HMC, MH, NUTS, SVI, Gibbs, ImportanceSampling, fit
from inference.handlers import simulate
from inference.outputs import Outputs
from inference.program import Minibatch, Program, isolated
from inference.target import Target
from ppl_models import DataError, EngineError, LogisticRegression, ModelError, Noise, ORing
from tests.programs import CONTINUOUS, ENUMERATED, FEW, Case, assignments, mixture

LEVEL = 1e-4
CHECKS = 200  # at most so many statistical checks share the level
CRITICAL = float(stats.norm.isf(LEVEL / CHECKS / 2))

every_program = pytest.mark.parametrize("name", [*CONTINUOUS, *ENUMERATED])
every_enumerated = pytest.mark.parametrize("name", ENUMERATED)
quiet = pytest.mark.filterwarnings("ignore::inference.InferenceWarning")


@pytest.fixture(autouse=True)
def scope():
    with isolated(torch.float64):
        yield


def case(name):
    return {**CONTINUOUS, **ENUMERATED}[name]


def outputs(program):
    return Outputs(program, torch.float64, torch.device("cpu"))


def points(program, count=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 1.5 * torch.randn(count, program.dim, generator=generator)


def held(values):
    """The values of one point of a batch."""
    return {name: value[0] for name, value in values.items()}


# -- the density with its discrete sites summed out ------------------------------------------------


def summed(case, values):
    return torch.stack([a.log_joint for a in assignments(case, values)]).logsumexp(0)


@every_enumerated
def test_the_density_is_the_sum_over_all_assignments(name):
    program = case(name).bound()
    for x in points(program):
        values = program.constrain(x)
        expected = summed(case(name), values)
        torch.testing.assert_close(program.log_joint(values), expected)
        torch.testing.assert_close(program.log_density(x), expected + program.log_jacobian(x))


@every_enumerated
def test_the_gradient_is_that_of_the_sum_over_all_assignments(name):
    program = case(name).bound()
    x = points(program, 2)
    _, gradient = Target(program.log_density, program.dim, tier="traced").log_density_and_grad(x)
    for row, slope in zip(x, gradient, strict=True):
        point = row.clone().requires_grad_(True)
        value = summed(case(name), program.constrain(point)) + program.log_jacobian(point)
        torch.testing.assert_close(slope, torch.autograd.grad(value, point)[0])


def posterior(case, values):
    """The probability of every joint assignment, and its indices in one row: (A,), (A, sites)."""
    every = list(assignments(case, values))
    probability = torch.stack([a.log_joint for a in every]).softmax(0)
    return probability, torch.stack([flattened(a.indices) for a in every])


def flattened(indices):
    return torch.cat([index.reshape(-1) for index in indices.values()])


def indices(program, draws):
    """The place of every drawn value in its site's support: (S, sites)."""
    columns = []
    for site in program.discrete:
        value = draws[site.name][0]  # (S, *batch, *event)
        event = site.support.dim() - 1
        equal = value.unsqueeze(value.dim() - event) == site.support
        matches = equal.flatten(-event).all(-1) if event else equal
        assert bool((matches.sum(-1) == 1).all())
        columns.append(matches.int().argmax(-1).reshape(len(value), -1))
    return torch.cat(columns, 1)


def chi_square(observed, expected):
    """The p-value of counts; cells of fewer than five expected are joined."""
    order = expected.argsort()
    observed, expected = observed[order], expected[order]
    small = expected.cumsum() < 5
    cut = int(small.sum()) + 1
    observed = np.append(observed[:cut].sum(), observed[cut:])
    expected = np.append(expected[:cut].sum(), expected[cut:])
    assert len(expected) > 1
    statistic = ((observed - expected) ** 2 / expected).sum()
    return stats.chi2.sf(statistic, len(expected) - 1)


def fit_of_draws(case, drawn, values):
    """The p-value of drawn assignments (S, sites) against the exact joint posterior."""
    probability, cells = posterior(case, values)
    sizes = cells.amax(0) + 1
    weight = torch.cat([sizes.flip(0).cumprod(0).flip(0)[1:], torch.ones(1, dtype=sizes.dtype)])
    cell = torch.bincount((drawn * weight).sum(1), minlength=int(sizes.prod()))
    return chi_square(
        cell[(cells * weight).sum(1)].numpy().astype(float), len(drawn) * probability.numpy()
    )


@every_enumerated
def test_discrete_sites_are_drawn_from_their_joint_posterior(name):
    program = case(name).bound()
    (x,) = points(program, 1, seed=1)
    draws = outputs(program).discrete(x.expand(1, draws_of(name), -1), Noise.seeded(3, 1))
    p = fit_of_draws(case(name), indices(program, draws), program.constrain(x))
    assert p > LEVEL / CHECKS


def draws_of(name):
    return 400 if name == "counts" else 2000  # which runs eagerly


@pytest.mark.parametrize("name", ["hidden_markov", "shared", "shared_afterwards", "two_in_a_row"])
def test_sabotage_drawing_each_site_by_its_own_marginal_is_noticed(name):
    program = case(name).bound()
    (x,) = points(program, 1, seed=1)
    marginals = outputs(program).responsibilities(x[None, None])
    unit = Noise.seeded(3, 1).uniform(4000, 20)[0]
    columns = []
    for site in program.discrete:
        for row in marginals[site.name][0, 0].reshape(-1, len(site.support)):
            columns.append((unit[:, len(columns), None] >= row.cumsum(-1)).sum(-1))
    assert fit_of_draws(case(name), torch.stack(columns, 1), program.constrain(x)) < LEVEL / CHECKS


@every_enumerated
def test_responsibilities_are_the_exact_marginals(name):
    program = case(name).bound()
    (x,) = points(program, 1, seed=2)
    found = outputs(program).responsibilities(x[None, None])
    probability, cells = posterior(case(name), program.constrain(x))
    place = 0
    for site in program.discrete:
        size = site.batch.numel()
        one_hot = nn.functional.one_hot(cells[:, place : place + size], len(site.support))
        exact = (probability[:, None, None] * one_hot).sum(0)
        torch.testing.assert_close(found[site.name][0, 0].reshape(exact.shape), exact)
        place += size


def test_responsibilities_of_a_mixture_are_those_of_the_closed_form():
    program = case("mixture").bound()
    x = points(program, 6, seed=2).reshape(2, 3, -1)
    values = outputs(program).constrain(x)
    density = dist.Normal(values["mu"][..., None, :], 1.0).log_prob(torch.tensor(FEW)[:, None])
    exact = (values["weights"].log()[..., None, :] + density).softmax(-1)
    torch.testing.assert_close(outputs(program).responsibilities(x)["z"], exact)


# -- pointwise log likelihoods ---------------------------------------------------------------------

SPLIT = [*CONTINUOUS, "mixture", "outliers", "two_in_a_row", "beside_a_plate", "one_hot", "counts"]


@pytest.mark.parametrize("name", SPLIT)
def test_pointwise_log_likelihoods_sum_to_the_marginal_one(name):
    program = case(name).bound()
    x = points(program, 6).reshape(2, 3, -1)
    pointwise = outputs(program).pointwise(x)
    assert list(pointwise) == ["y"]
    rows = 1 if name == "with_factor" else len(case(name).data["y"])
    assert pointwise["y"].reshape(2, 3, -1).shape == (2, 3, rows)
    for found, row in zip(pointwise["y"].reshape(6, -1), x.reshape(6, -1), strict=True):
        values = program.constrain(row)
        expected = program.log_likelihood(values)
        if name == "with_factor":
            expected = expected + values["m"].square()  # the factor is no observation
        torch.testing.assert_close(found.sum(), expected)


def test_a_continuous_site_tied_to_a_discrete_one_is_conditioned_on():
    program = case("discrete_then_continuous").bound()
    (x,) = points(program, 1)
    values = program.constrain(x)
    t, y, b = values["t"], torch.tensor(FEW), torch.tensor([[0.0], [1.0]])
    before = torch.tensor([[0.6], [0.4]]).log() + dist.Normal(values["m"] + 2 * b, 1.0).log_prob(t)
    exact = (before.log_softmax(0) + dist.Normal(t + b, 1.0).log_prob(y)).logsumexp(0)
    torch.testing.assert_close(outputs(program).pointwise(x[None])["y"][0], exact)


@pytest.mark.parametrize("name", ["hidden_markov", "shared", "shared_afterwards", "groups"])
def test_observations_tied_by_a_discrete_site_have_no_pointwise_log_likelihood(name):
    program = case(name).bound()
    with pytest.raises(ModelError, match=r"no pointwise log likelihood.*marginalise"):
        outputs(program).pointwise(points(program, 1))


# -- transforms and values -------------------------------------------------------------------------

SUPPORTS = {
    "real": lambda: dist.Normal(0.0, 1.0),
    "positive": lambda: dist.HalfNormal(2.0),
    "interval": lambda: dist.Uniform(-2.0, 5.0),
    "unit": lambda: dist.Beta(2.0, 3.0),
    "greater": lambda: dist.Pareto(1.5, 3.0),
    "vector": lambda: dist.Normal(torch.zeros(2, 3), 1.0).to_event(2),
    "multivariate": lambda: dist.MultivariateNormal(torch.zeros(2), 2 * torch.eye(2)),
    "simplex": lambda: dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0, 4.0])),
    "simplexes": lambda: dist.Dirichlet(torch.ones(2, 3)).to_event(1),
    "cholesky": lambda: dist.LKJCholesky(4, 1.5),
    "correlation": lambda: dist.LKJ(3, 1.5),
    "ordered": lambda: dist.TransformedDistribution(
        dist.Normal(torch.zeros(3), 1.0).to_event(1), dist.transforms.OrderedTransform()
    ),
    "logits": lambda: dist.TransformedDistribution(
        dist.Normal(0.0, 1.0), dist.transforms.SigmoidTransform()
    ),
    "improper": lambda: dist.ImproperUniform(constraints.positive, (2,), ()),
}


@pytest.mark.parametrize("support", SUPPORTS)
def test_transforms_invert_and_their_jacobian_is_that_of_autograd(support):
    distribution = SUPPORTS[support]()
    program = Program(lambda: pyro.sample("site", distribution), {})
    x = points(program, 4)
    maps = outputs(program)
    values = maps.constrain(x)
    assert values["site"].shape == (4, *distribution.shape())
    assert bool(distribution.support.check(values["site"]).all())
    torch.testing.assert_close(maps.unconstrain(values), x)
    torch.testing.assert_close(
        values["site"],
        biject_to(distribution.support)(x.reshape(4, *program.sites[0].unconstrained)),
    )
    difference = torch.stack([program.log_density(row) for row in x]) - maps.log_joint(values)
    torch.testing.assert_close(maps.log_jacobian(x), difference)
    for row, found in zip(x, maps.log_jacobian(x), strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda p: free(support, program, p), row)
        torch.testing.assert_close(found, torch.linalg.slogdet(jacobian).logabsdet)


def free(support, program, x):
    """As many of the values' coordinates as determine the others: the density is over these."""
    value = program.constrain(x)["site"]
    if support.startswith("simplex"):
        return value[..., :-1].reshape(-1)
    if support in ("cholesky", "correlation"):
        row, column = torch.tril_indices(*value.shape, offset=-1)
        return value[row, column]
    return value.reshape(-1)


def test_a_support_may_depend_on_another_site():
    program = case("bounded_by_another").bound()
    y = torch.tensor(FEW)
    for x in points(program):
        top = x[0].exp()
        share = x[1].sigmoid()
        low = -top + 2 * top * share
        by_hand = (
            dist.Gamma(3.0, 1.0).log_prob(top)
            + x[0]
            - (2 * top).log()
            + (2 * top * share * (1 - share)).log()
            + dist.Normal(low, 1.0).log_prob(y).sum()
        )
        torch.testing.assert_close(program.log_density(x), by_hand)
        torch.testing.assert_close(program.constrain(x)["low"], low)
        torch.testing.assert_close(program.unconstrain(program.constrain(x)), x)


def test_deterministic_sites_are_recorded_and_add_nothing_to_the_density():
    program = case("schools").bound()
    x = points(program, 6).reshape(2, 3, -1)
    values = outputs(program).values(x, Noise.seeded(0, 2))
    expected = values["mu"][..., None] + values["tau"][..., None] * values["z"]
    torch.testing.assert_close(values["theta"], expected)
    assert program.deterministic == ["theta"]
    sites = {name: value[0, 0] for name, value in values.items() if name != "theta"}
    by_hand = (
        dist.Normal(0.0, 5.0).log_prob(sites["mu"])
        + dist.HalfCauchy(2.0).log_prob(sites["tau"])
        + dist.Normal(0.0, 1.0).log_prob(sites["z"]).sum()
        + dist.Normal(expected[0, 0], 1.0).log_prob(torch.tensor(FEW)).sum()
    )
    torch.testing.assert_close(program.log_joint(sites), by_hand)


def test_deterministic_sites_see_the_discrete_draws():
    def program(y):
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        with pyro.plate("rows", len(y)):
            z = pyro.sample("z", dist.Bernoulli(p))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)
        pyro.deterministic("ones", z.sum())

    bound = Program(program, {"y": torch.tensor(FEW)})
    values = outputs(bound).values(points(bound, 20).reshape(1, 20, 1), Noise.seeded(0, 1))
    torch.testing.assert_close(values["ones"], values["z"].sum(-1))


@every_program
def test_the_program_is_run_as_it_stands_by_the_density(name):
    program = case(name).bound()
    if program.discrete:
        return  # by enumeration, above
    (x,) = points(program, 1)
    values = program.constrain(x)
    with pyro.validation_enabled(False):
        trace = poutine.trace(poutine.condition(case(name).program, values)).get_trace(
            **case(name).tensors()
        )
    torch.testing.assert_close(program.log_joint(values), trace.log_prob_sum())


# -- predictions and prior draws -------------------------------------------------------------------

OBSERVED = {
    "normal": dist.Normal(1.0, 2.0),
    "poisson": dist.Poisson(3.5),
    "binomial": dist.Binomial(7, torch.tensor(0.3)),
    "bernoulli": dist.Bernoulli(torch.tensor(0.3)),
    "gamma": dist.Gamma(2.5, 1.5),
    "negative binomial": dist.NegativeBinomial(3.0, torch.tensor(0.4)),
    "student": dist.StudentT(9.0, 1.0, 2.0),
    "multivariate": dist.MultivariateNormal(torch.tensor([1.0, -1.0]), 2 * torch.eye(2)),
    "dirichlet": dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])),
    "multinomial": dist.Multinomial(5, torch.tensor([0.2, 0.3, 0.5])),
    "beta": dist.Beta(2.0, 3.0),
    "exponential": dist.Exponential(2.0),
}


def z_scores(draws, mean, variance):
    """The mean and the variance of independent draws (S, ...) against the exact ones."""
    size = len(draws)
    centred = draws - mean
    first = centred.mean(0) / (variance / size).sqrt()
    square = centred.square() - variance
    second = square.mean(0) / (square.std(0) / math.sqrt(size))
    return torch.stack([first, second])


@pytest.mark.parametrize("observed", OBSERVED)
def test_predictions_have_the_shape_and_the_moments_of_their_distribution(observed):
    distribution = OBSERVED[observed]

    def program(y):
        pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 2):
            pyro.sample("y", distribution, obs=y)

    rows = distribution.sample((2,)).to(torch.float64)
    bound = Program(program, {"y": rows})
    predicted = bound.predictive({"m": torch.zeros(2, 1500)}, seed=1)["y"].double()
    assert predicted.shape == (2, 1500, *rows.shape)
    draws = predicted.flatten(0, 1)
    z = z_scores(draws, distribution.mean, distribution.variance)
    assert float(z.abs().max()) < CRITICAL
    # no two draws, and no two rows, may share their random numbers
    for one, other in [(draws[:-1, 0], draws[1:, 0]), (draws[:, 0], draws[:, 1])]:
        product = (one - distribution.mean) * (other - distribution.mean)
        z = product.mean(0) / (product.std(0) / math.sqrt(len(product)))
        assert float(z.abs().max()) < CRITICAL


def test_predictions_follow_their_own_draw():
    bound = Case(
        lambda y: pyro.sample(
            "y", dist.Normal(pyro.sample("m", dist.Normal(0.0, 1.0)), 1e-6), obs=y
        ),
        {"y": 1.0},
    ).bound()
    m = torch.arange(12.0).reshape(3, 4)
    torch.testing.assert_close(bound.predictive({"m": m}, seed=0)["y"], m, atol=1e-4, rtol=0)


def test_predictions_of_common_distributions_run_the_program_once_for_all_draws():
    runs = []

    def program(y):
        runs.append(1)
        m = pyro.sample("m", dist.Beta(2.0, 2.0))
        w = pyro.sample("w", dist.Dirichlet(torch.ones(3)))
        z = pyro.sample("z", dist.HalfCauchy(1.0) if len(y) else dist.Exponential(1.0))
        pyro.sample("y", dist.Normal(m + w.sum() + z, 1.0).expand([4]).to_event(1), obs=y)

    bound = Program(program, {"y": torch.tensor(FEW)})
    runs.clear()
    draws = bound.sample(500, seed=0)
    bound.predictive(draws, seed=0)
    assert len(runs) == 2
    assert len(draws["m"].unique()) == 500


def test_simulation_in_a_loop_is_as_random_as_by_vmap():
    def once(index):
        value = pyro.sample("x", dist.Normal(0.0, 1.0))
        return {"x": value if value > -100 else -value}  # a branch, which vmap refuses

    draws = simulate(once, 2000, seed=0)["x"]
    assert float(z_scores(draws, torch.tensor(0.0), torch.tensor(1.0)).abs().max()) < CRITICAL
    product = draws[1:] * draws[:-1]
    assert abs(float(product.mean() / (product.std() / math.sqrt(1999)))) < CRITICAL
    torch.testing.assert_close(simulate(once, 2000, seed=0)["x"], draws)


def test_an_error_in_a_simulation_is_not_swallowed():
    def once(index):
        raise RuntimeError("the cause")

    with pytest.raises(RuntimeError, match="the cause"):
        simulate(once, 3, seed=0)


@quiet
def test_prior_draws_are_those_of_the_program_without_its_observations():
    bound = Program(case("mixture").bound().prior(), case("mixture").tensors())
    draws = bound.sample(3000, seed=2)
    assert draws["mu"].shape == (3000, 3)
    assert draws["z"].shape == (3000, len(FEW))
    z = [
        z_scores(draws["mu"], torch.tensor(0.0), torch.tensor(9.0)),
        z_scores(draws["weights"], torch.tensor(1 / 3), torch.tensor(2 / 36)),
        z_scores((draws["z"] == 1).double(), torch.tensor(1 / 3), torch.tensor(2 / 9)),
    ]
    assert max(float(part.abs().max()) for part in z) < CRITICAL
    assert bound.observed == []


@quiet
def test_prediction_for_new_rows_draws_their_discrete_sites_anew():
    engine = HMC(chains=1, warmup=0, draws=3, steps=1, step_size=0.01, tier="traced")
    fitted = fit(mixture, {"y": FEW}, engine)
    weights = torch.tensor([0.2, 0.3, 0.5]).expand(4, 800, 3)
    mu = torch.tensor([-20.0, 0.0, 30.0]).expand(4, 800, 3)
    fitted.posterior.draws.update(weights=weights, mu=mu, z=torch.zeros(4, 800, len(FEW)).long())
    # the rows of the fit keep their components; new ones have none, were they as many or not
    assert float(fitted.predict()["y"].max()) < -10
    for rows in (len(FEW), 7):
        predicted = fitted.predict({"y": np.zeros(rows)})["y"]
        assert predicted.shape == (4, 800, rows)
        upper = (predicted > 15).double().flatten(0, 1)
        z = z_scores(upper, torch.tensor(0.5), torch.tensor(0.25))
        assert float(z[0].abs().max()) < CRITICAL


@quiet
def test_prediction_for_new_covariates_needs_no_outcomes():
    engine = HMC(chains=2, warmup=10, draws=20, steps=2, tier="traced")
    fitted = fit(ORing(prior="normal"), None, engine)
    cold = fitted.predict({"temperature": [31.0, 40.0, 50.0], "y": None})["y"]
    assert cold.shape == (2, 20, 3)
    assert set(cold.unique().tolist()) <= {0.0, 1.0}


@quiet
def test_prediction_says_what_does_not_fit_the_posterior():
    engine = HMC(chains=1, warmup=5, draws=5, steps=2, tier="traced")
    groups = fit(case("schools").program, {"y": FEW}, engine)
    with pytest.raises(ModelError, match=r"z: .*shape \(4,\).*\(6,\).*the same groups"):
        groups.predict({"y": np.zeros(6)})
    with pytest.raises(DataError, match=r"it takes y, the data give x"):
        groups.predict({"x": FEW})
    with pytest.raises(ModelError, match=r"failed on the new data"):
        fit(case("line").program, case("line").data, engine).predict(
            {"x": np.ones((4, 2)), "y": FEW}
        )


# -- minibatches -----------------------------------------------------------------------------------


def regression(x, y):
    b = pyro.sample("b", dist.Normal(torch.zeros(x.shape[-1]), 2.0).to_event(1))
    s = pyro.sample("s", dist.HalfNormal(1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(x @ b, s), obs=y)


def square(x, k, y):
    """A matrix that has as many rows as the data by accident."""
    b = pyro.sample("b", dist.MultivariateNormal(torch.zeros(len(k)), k))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(x @ b, 1.0), obs=y)


def two_observed(x, y):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("x", dist.Normal(m, 1.0), obs=x)
        pyro.sample("y", dist.Normal(m * x, 1.0), obs=y)


RANDOM = np.random.default_rng(11)
K = RANDOM.normal(size=(6, 6))
ROWS = {"x": RANDOM.normal(size=(6, 6)), "y": RANDOM.normal(size=6)}
SLICED = {
    "regression": (Case(regression, ROWS), ["x", "y"]),
    "square": (Case(square, {**ROWS, "k": K @ K.T + np.eye(6)}), ["x", "y"]),
    "two observed": (Case(two_observed, {"x": ROWS["y"] + 1, "y": ROWS["y"]}), ["x", "y"]),
    "mixture": (Case(mixture, {"y": ROWS["y"]}), ["y"]),
    "outliers": (Case(ENUMERATED["outliers"].program, {"y": ROWS["y"]}), ["y"]),
}


@pytest.mark.parametrize("name", SLICED)
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_minibatches_that_share_out_the_rows_average_to_the_whole(name, batch):
    sliced, fields = SLICED[name]
    program = sliced.bound()
    minibatch = program.minibatch(batch)
    assert minibatch == Minibatch("rows", 6, batch, sorted(fields, key=list(sliced.data).index))
    rows = torch.randperm(6, generator=torch.Generator().manual_seed(0)).split(batch)

    def average(x):
        return torch.stack([program.log_density_of(minibatch, x, part) for part in rows]).mean()

    for x in points(program, 2):
        torch.testing.assert_close(average(x), program.log_density(x))
        torch.testing.assert_close(
            torch.func.grad(average)(x) if not program.discrete else slope(average, x),
            slope(program.log_density, x),
        )


def slope(function, x):
    x = x.clone().requires_grad_(True)
    return torch.autograd.grad(function(x), x)[0]


def test_minibatches_of_a_model_with_its_own_scales_are_unbiased():
    data = LogisticRegression().prepare({"x": ROWS["x"][:, :2], "y": [0, 1, 0, 1, 1, 0]})
    program = Program(LogisticRegression(), data)
    minibatch = program.minibatch(2)
    assert minibatch.fields == ["x", "y"]
    (x,) = points(program, 1)
    parts = [program.log_density_of(minibatch, x, rows) for rows in torch.arange(6).split(2)]
    torch.testing.assert_close(torch.stack(parts).mean(), program.log_density(x))


def means_inside(x, y):
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(b * (x - x.mean()), 1.0), obs=y)


def fixed_plate(y):
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", 6):
        pyro.sample("y", dist.Normal(b, 1.0), obs=y)


WHOLE = {
    "no plate": (CONTINUOUS["with_factor"], r"observations in a plate; put them in"),
    "a site per row": (CONTINUOUS["schools"], r"'z' lies in the plate.*guide program.*all rows"),
    "rows tied": (ENUMERATED["shared"], r"'common' lies outside.*marginalise it, or use all rows"),
    "means inside": (
        Case(means_inside, {"x": ROWS["y"] ** 2, "y": ROWS["y"]}),
        r"does not split into the rows.*x, y.*outside the program",
    ),
    "a plate of fixed length": (
        Case(fixed_plate, {"y": ROWS["y"]}),
        r"does not split.*the length of the data, as len\(y\)",
    ),
}


@pytest.mark.parametrize("name", WHOLE)
def test_programs_without_minibatches_are_refused(name):
    refused, message = WHOLE[name]
    with pytest.raises(ModelError, match=message):
        refused.bound().minibatch(2)


def test_a_minibatch_larger_than_the_data_is_refused():
    with pytest.raises(ModelError, match=r"batch_size=7 is more than the 6 rows of 'rows'"):
        SLICED["regression"][0].bound().minibatch(7)


# -- what a user may get wrong ---------------------------------------------------------------------


def normal(y):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(m, 1.0), obs=y)


def changes_structure(y):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    if m > 0:
        pyro.sample("extra", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(m, 1.0).expand([4]).to_event(1), obs=y)


def grows(y):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    pyro.sample("v", dist.Normal(torch.zeros(1 if m > 0 else 2), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(m, 1.0).expand([4]).to_event(1), obs=y)


def nan_everywhere(y):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    pyro.sample("bad", dist.Normal((m - 100).log(), 1.0, validate_args=False), obs=y[0])


def negative_scale(y):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(m, -1.0).expand([4]).to_event(1), obs=y)


def random_prior(y):
    m = pyro.sample("m", dist.Normal(torch.randn(()), 1.0))
    pyro.sample("y", dist.Normal(m, 1.0).expand([4]).to_event(1), obs=y)


def random_likelihood(y):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(m + torch.randn(4), 1.0).to_event(1), obs=y)


def subsampled(y):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y), subsample_size=2) as index:
        pyro.sample("y", dist.Normal(m, 1.0), obs=y[index])


def poisson_latent(y):
    with pyro.plate("rows", len(y)):
        n = pyro.sample("n", dist.Poisson(3.0))
        pyro.sample("y", dist.Normal(n, 1.0), obs=y)


def discrete_event(y):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    z = pyro.sample("z", dist.Bernoulli(torch.full((4,), 0.5)).to_event(1))
    pyro.sample("y", dist.Normal(m + z, 1.0).to_event(1), obs=y)


def undeclared_dimension(y):
    mu = pyro.sample("mu", dist.Normal(torch.zeros(3), 1.0))
    with pyro.plate("rows", len(y)):
        z = pyro.sample("z", dist.Categorical(torch.ones(3)))
        pyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)


def outside_its_plate(y):
    """Inclusion indicators: 2^3 joint values, not 2, so no sum site by site."""
    with pyro.plate("coefficients", 3):
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        included = pyro.sample("included", dist.Bernoulli(0.5))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal((b * included).sum(), 1.0), obs=y)


def across_plates(y):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with pyro.plate("one", len(y)):
        z = pyro.sample("z", dist.Bernoulli(0.5))
    common = pyro.sample("common", dist.Bernoulli(0.4))
    with pyro.plate("another", len(y)):
        pyro.sample("y", dist.Normal(m + 2 * (z - common).abs(), 1.0), obs=y)


def discrete_support(y):
    with pyro.plate("rows", len(y)):
        b = pyro.sample("b", dist.Categorical(torch.tensor([0.6, 0.4])))
        t = pyro.sample("t", dist.Uniform(0.0, torch.tensor([1.0, 2.0])[b]))
        pyro.sample("y", dist.Normal(t, 1.0), obs=y)


def only_discrete(y):
    with pyro.plate("rows", len(y)):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def only_observed(y):
    pyro.sample("y", dist.Normal(0.0, 1.0).expand([4]).to_event(1), obs=y)


def broken(y):
    pyro.sample("m", dist.Normal(0.0, 1.0))
    raise KeyError("the user's own")


FIT = HMC(chains=1, warmup=1, draws=4, steps=1, tier="traced")
GOOD = {"y": FEW}
WRONG = {
    # program, data, keywords of fit, error, cause and remedy
    "structure": (changes_structure, GOOD, {}, ModelError, r"'extra' appears.*write the branch as"),
    "shape": (grows, GOOD, {}, ModelError, r"'v' .*changes its shape.*fixed set of sites"),
    "nan start": (nan_everywhere, GOOD, {}, ModelError, r"NaN.* at site 'bad'.*their domains"),
    "scale": (
        negative_scale,
        GOOD,
        {},
        ModelError,
        r"after site 'm'.*scale.*their domains, by \.e",
    ),
    "random": (random_prior, GOOD, {}, EngineError, r"'m' is random.*pyro.sample"),
    "random y": (random_likelihood, GOOD, {}, EngineError, r"'y' is random.*pyro.sample"),
    "subsample": (subsampled, GOOD, {}, EngineError, r"'rows' subsamples.*remove subsample_size"),
    "poisson": (poisson_latent, GOOD, {}, ModelError, r"n: .*no finite support.*truncate"),
    "event": (discrete_event, GOOD, {}, ModelError, r"z: .*to_event.*in a pyro.plate"),
    "dimension": (undeclared_dimension, GOOD, {}, ModelError, r"site 'mu'.*\.to_event\(1\)"),
    "outside": (outside_its_plate, GOOD, {}, ModelError, r"'included' is not that.*within its own"),
    "across": (across_plates, GOOD, {}, ModelError, r"'common', 'z' is not that.*within its own"),
    "support": (discrete_support, GOOD, {}, ModelError, r"'b' cannot be summed.*support depend"),
    "discrete": (only_discrete, GOOD, {}, EngineError, r"HMC has nothing to infer.*sample one"),
    "no latent": (only_observed, GOOD, {}, EngineError, r"nothing to infer.*every site is obs"),
    "broken": (broken, GOOD, {}, ModelError, r"after site 'm'.*the user's own.*run it once"),
    "nan data": (normal, {"y": [1.0, math.nan]}, {}, DataError, r"y: .*at 1 is missing.*drop the"),
    "nan series": (
        normal,
        pd.DataFrame({"y": [1.0, math.nan]}),
        {},
        DataError,
        r"y: row 1 is missing; drop the row",
    ),
    "infinite data": (normal, {"y": [1.0, math.inf]}, {}, ModelError, r"'y' is infinite; check th"),
    "argument": (normal, {"x": FEW}, {}, DataError, r"it takes y, the data give x"),
    "no data": (normal, None, {}, DataError, r"missing.*'y'.*the data give nothing"),
    "extra": (normal, {"y": FEW, "w": FEW}, {}, DataError, r"unexpected.*'w'.*it takes y"),
    "list": (normal, [1.0, 2.0], {}, DataError, r"data is a list; give a mapping"),
    "text": (normal, pd.DataFrame({"y": ["a", "b"]}), {}, DataError, r"y: .*encode or drop"),
    "ragged": (normal, {"y": [[1.0, 2.0], [3.0]]}, {}, DataError, r"y: rows differ.*rectangular"),
    "class": (ORing, None, {}, EngineError, r"is the class ORing; give ORing\(\.\.\.\)"),
    "no program": (3, GOOD, {}, EngineError, r"model is a int; give a Pyro function"),
    "engine class": (normal, GOOD, {"engine": NUTS}, EngineError, r"class NUTS; give NUTS\("),
    "engine name": (normal, GOOD, {"engine": "nuts"}, EngineError, r"is a str; give an engine"),
    "seed": (normal, GOOD, {"seed": -1}, EngineError, r"seed=-1: give a non-negative integer"),
    "seed 1.5": (normal, GOOD, {"seed": 1.5}, EngineError, r"seed=1.5: give a non-negative int"),
    "seed True": (normal, GOOD, {"seed": True}, EngineError, r"seed=True: give a non-negative"),
    "seed 2^64": (normal, GOOD, {"seed": 2**64}, EngineError, r"integer below 2\^64"),
    "dtype": (normal, GOOD, {"dtype": "float16"}, EngineError, r"'float16'.*'float32' or 'float6"),
    "torch dtype": (normal, GOOD, {"dtype": torch.int64}, EngineError, r"choose torch.float32 or"),
    "device": (normal, GOOD, {"device": "tpu"}, EngineError, r"'tpu': give 'cpu', 'cuda' or 'aut"),
    "device type": (normal, GOOD, {"device": None}, EngineError, r"device=None: give 'cpu'"),
    "meta": (normal, GOOD, {"device": "meta"}, EngineError, r"'meta': give 'cpu', 'cuda' or"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_answered_by_its_cause_and_its_remedy(name):
    program, data, settings, error, message = WRONG[name]
    with pytest.raises(error, match=f"(?s){message}"):
        fit(program, data, **{"engine": FIT, **settings})


def test_a_device_that_is_not_there_is_named():
    if torch.cuda.is_available():
        pytest.skip("there is one here")
    with pytest.raises(EngineError, match=r"'cuda': torch sees no GPU here; use device='cpu'"):
        fit(normal, GOOD, FIT, device="cuda")


@pytest.mark.parametrize(
    "engine",
    [
        NUTS(chains=1, warmup=1, draws=1, tier="traced"),
        MH(chains=1, warmup=1, draws=1, tier="traced"),
        SVI(steps=1, draws=1, tier="traced"),
        SVI(guide="laplace", draws=1, tier="traced"),
        ImportanceSampling(proposals=5, draws=1),
    ],
    ids=["NUTS", "MH", "SVI", "Laplace", "ImportanceSampling"],
)
@pytest.mark.parametrize("program", [random_prior, subsampled])
def test_no_engine_works_on_a_random_log_density(engine, program):
    with pytest.raises(EngineError, match=rf"random, which {type(engine).__name__}|is random"):
        fit(program, GOOD, engine)


@quiet
def test_a_program_that_is_illegal_at_some_values_is_started_elsewhere():
    def program(y):
        m = pyro.sample("m", dist.Normal(1.0, 1.0))
        pyro.sample("y", dist.Normal(m.log(), 1.0).expand([4]).to_event(1), obs=y)

    drawn = fit(program, GOOD, HMC(chains=2, warmup=10, draws=10, tier="traced")).posterior.draws
    assert bool((drawn["m"] > 0).all())


def test_no_finite_start_names_the_site_at_fault():
    for name in ("line", "mixture"):
        program = Program(
            case(name).program, {k: torch.tensor([math.inf]) for k in case(name).data}
        )
        target = Target(program.log_density, program.dim, tier="traced", describe=program.describe)
        with pytest.raises(ModelError, match=r"no starting point in 100.*'y' is.*check the data's"):
            target.start(Noise.seeded(0, 2))


@quiet
def test_columns_of_a_table_are_the_arguments():
    table = pd.DataFrame({"x": case("line").data["x"], "y": case("line").data["y"]})
    one = fit(case("line").program, table, FIT)
    other = fit(case("line").program, case("line").data, FIT)
    torch.testing.assert_close(one.posterior.draws, other.posterior.draws, rtol=0, atol=0)


@quiet
def test_lists_and_whole_numbers_are_data_too():
    drawn = fit(normal, {"y": [1, 2, 3]}, FIT).posterior.draws["m"]
    assert drawn.dtype == torch.float64


# -- programs that cannot be traced ----------------------------------------------------------------


def branches(y):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    scale = 1.0 if m > 0.2 else 2.0
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(m, scale), obs=y)


def branchless(y):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    scale = torch.where(m > 0.2, 1.0, 2.0)
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(m, scale), obs=y)


def branches_and_sums(y):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    share = 0.3 if m > 0.2 else 0.6
    with pyro.plate("rows", len(y)):
        z = pyro.sample("z", dist.Bernoulli(share))
        pyro.sample("y", dist.Normal(m + 2 * z, 1.0), obs=y)


def branchless_and_sums(y):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    share = torch.where(m > 0.2, 0.3, 0.6)
    with pyro.plate("rows", len(y)):
        z = pyro.sample("z", dist.Bernoulli(share))
        pyro.sample("y", dist.Normal(m + 2 * z, 1.0), obs=y)


def branches_on_data(y):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    scale = 1.0 if y.sum() > 0 else 2.0
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(m, scale), obs=y)


def branchless_on_data(y):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(m, torch.where(y.sum() > 0, 1.0, 2.0)), obs=y)


PAIRS = [
    (branches, branchless),
    (branches_and_sums, branchless_and_sums),
    (branches_on_data, branchless_on_data),
]


@quiet
@pytest.mark.parametrize(("program", "same"), PAIRS, ids=["plain", "enumerated", "data"])
@pytest.mark.parametrize(
    "engine",
    [
        HMC(chains=2, warmup=5, draws=5, steps=2, tier="traced"),
        MH(chains=2, warmup=5, draws=5, thin=2, tier="traced"),
    ],
    ids=["HMC", "MH"],
)
def test_control_flow_on_values_runs_eagerly_to_the_same_answers(program, same, engine, caplog):
    with caplog.at_level(logging.WARNING, "inference"):
        drawn = fit(program, GOOD, engine, seed=5)
    assert [r.message.split(" (")[0] for r in caplog.records] == ["The program cannot be traced"]
    caplog.clear()
    with caplog.at_level(logging.WARNING, "inference"):
        expected = fit(same, GOOD, engine, seed=5)
    assert not caplog.records
    torch.testing.assert_close(drawn.posterior.draws, expected.posterior.draws)
    torch.testing.assert_close(drawn.log_likelihood(), expected.log_likelihood())
    if program is branches_and_sums:
        torch.testing.assert_close(drawn.responsibilities(), expected.responsibilities())


# -- nothing leaks ---------------------------------------------------------------------------------


def numpy_state():
    return np.random.get_state()[1].copy()  # noqa: NPY002  # what Pyro's own seeding would set


@quiet
def test_a_fit_leaves_global_state_alone():
    pyro.get_param_store().clear()
    before = (torch.get_rng_state(), numpy_state(), torch.get_default_dtype())
    engines = [
        FIT,
        SVI(guide=normal_guide, steps=2, draws=2, particles=1),
        ImportanceSampling(proposals=10, draws=2),
    ]
    for engine in engines:
        fit(normal, GOOD, engine, dtype="float32").predict()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(numpy_state(), before[1])
    assert torch.get_default_dtype() == before[2]
    assert not pyro.get_param_store().keys()


def normal_guide(y):
    loc = pyro.param("loc", torch.tensor(0.0))
    pyro.sample("m", dist.Normal(loc, 1.0))


@quiet
def test_gibbs_and_a_random_walk_see_the_same_density():
    fitted = fit(ORing(prior="normal"), None, Gibbs(chains=2, warmup=2, draws=3))
    x = fitted.posterior.unconstrained
    program = Program(fitted.model, fitted.data)
    expected = torch.stack([program.log_density(row) for row in x.flatten(0, 1)]).reshape(2, 3)
    torch.testing.assert_close(fitted.posterior.stats["lp"], expected)


def test_values_that_are_all_but_impossible_do_not_fail_the_check_of_the_sum():
    """Held to a component 10^4 sds away, a row's share of the sum underflows."""

    def narrow(y):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("rows", len(y)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.4, 0.6])))
            pyro.sample("y", dist.Normal(mu[z], 1e-2), obs=y)

    program = Program(narrow, {"y": torch.tensor([0.1, -0.3, 0.7, 0.2])})
    assert [site.name for site in program.discrete] == ["z"]
