"""Every legal pair of model and engine keeps the same contract; every other is refused before work.

A new model is a row of MODELS, a new engine a row of ENGINES.
"""

import copy
import dataclasses
import io
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints

from inference import (
    CAVI,
    EM,
    HMC,
    MALA,
    MAMS,
    MH,
    NUTS,
    SMC,
    SVI,
    ChEES,
    Gibbs,
    ImportanceSampling,
    InferenceWarning,
    Pathfinder,
    Target,
    Thermodynamic,
    arviz_bridge,
    fit,
)
from ppl_models import (
    PPCA,
    DataError,
    EngineError,
    GaussianMixture,
    LatentDirichletAllocation,
    LogisticRegression,
    MixturePPCA,
    ModelError,
    NaiveBayes,
    ORing,
)
from tests.programs import Means

pytestmark = pytest.mark.filterwarnings("ignore::inference.InferenceWarning")


def line(x, y):
    a = pyro.sample("a", dist.Normal(0.0, 5.0))
    b = pyro.sample("b", dist.Normal(torch.zeros(2), 5.0).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(2.0))
    mean = pyro.deterministic("mean", a + x @ b)
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean, sigma), obs=y)


def flat(y):
    mu = pyro.sample("mu", dist.ImproperUniform(constraints.real, (), ()))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def labels(y):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("rows", len(y)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("y", dist.Normal(torch.where(z == 0, -1.0, 1.0), 1.0), obs=y)


def switch(y):
    rate = pyro.sample("rate", dist.Beta(2.0, 2.0))
    z = pyro.sample("z", dist.Bernoulli(rate))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def shapes(y):
    scale = pyro.sample("scale", dist.LogNormal(torch.zeros(2), 0.5).to_event(1))
    corr = pyro.sample("corr", dist.LKJCholesky(2, 2.0))
    with pyro.plate("groups", 3):
        pyro.sample("group", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y)):
        tril = scale.diag() @ corr
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(2), scale_tril=tril), obs=y)


RNG = np.random.default_rng(0)
Y = RNG.normal(size=6)


class Row(NamedTuple):
    model: Callable[..., Any]
    data: Any
    shapes: dict[str, tuple[int, ...]]
    continuous: tuple[str, ...]
    capabilities: tuple[str, ...] = ()
    improper: bool = False


ORINGS = {"alpha": (), "beta": (), "p": (5,)}
FEATURES = {"x": RNG.normal(size=(6, 2)), "y": [0, 1, 1, 0, 1, 0]}
BOTH = ("EM", "Gibbs")
ALL = (*BOTH, "CAVI")


def mixed(k: int, d: int) -> dict[str, tuple[int, ...]]:
    """The shapes of a mixture's invariants."""
    moments = {"mixture_mean": (d,), "mixture_covariance": (d, d)}
    return {"sorted_weights": (k,), "log_determinant": (), **moments}


MODELS = {
    "oring": Row(ORing(), None, ORINGS, ("alpha", "beta"), BOTH, improper=True),
    "oring, flat": Row(ORing(prior="flat"), None, ORINGS, ("alpha", "beta"), BOTH, improper=True),
    "oring, normal": Row(ORing(prior="normal"), None, ORINGS, ("alpha", "beta"), BOTH),
    "oring, damaged": Row(
        ORing("damaged", pressure=True, prior="normal"),
        None,
        {**ORINGS, "gamma": ()},
        ("alpha", "beta", "gamma"),
        BOTH,
    ),
    "logistic": Row(
        LogisticRegression(), FEATURES, {"alpha": (), "beta": (2,)}, ("alpha", "beta"), BOTH
    ),
    "naive Bayes, bits": Row(
        NaiveBayes("bernoulli"),
        {"x": [[0, 1], [1, 1], [1, 0], [0, 0]], "y": [0, 1, 1, 0]},
        {"weights": (2,), "probability": (2, 2)},
        ("weights", "probability"),
        ALL,
    ),
    "naive Bayes, codes": Row(
        NaiveBayes("categorical"),
        {"x": [[0, 1], [1, 2], [1, 0], [0, 0]], "y": [0, 1, 1, 0]},
        {"weights": (2,), "probability_x0": (2, 2), "probability_x1": (2, 3)},
        ("weights", "probability_x0", "probability_x1"),
        ALL,
    ),
    "naive Bayes, reals": Row(
        NaiveBayes("gaussian"),
        {"x": RNG.normal(size=(6, 2)), "y": [0, 1, 1, 0, 1, 0]},
        {"weights": (2,), "variance": (2, 2), "mean": (2, 2)},
        ("weights", "variance", "mean"),
        ALL,
    ),
    "topics": Row(
        LatentDirichletAllocation(2, 1.5, 1.2),
        [[2, 1, 0], [0, 1, 2]],
        {"topics": (2, 3), "proportions": (2, 2), "topic_shares": (2,)},
        ("topics", "proportions"),
        ALL,
    ),
    "mixture of ppca": Row(
        MixturePPCA(2, 1),
        RNG.normal(size=(8, 3)),
        {
            "weights": (2,),
            "loadings": (2, 3, 1),
            "mean": (2, 3),
            "variance": (2,),
            "z": (8,),
            "sorted_weights": (2,),
            "mixture_mean": (3,),
            "mixture_covariance": (3, 3),
        },
        ("weights", "loadings", "mean", "variance"),
        ("EM",),
    ),
    "ppca": Row(
        PPCA(1),
        RNG.normal(size=(7, 3)),
        {"loadings": (3, 1), "mean": (3,), "variance": (), "eigenvalues": (1,)},
        ("loadings", "mean", "variance"),
        BOTH,
    ),
    "line": Row(
        line,
        {"x": RNG.normal(size=(6, 2)), "y": Y},
        {"a": (), "b": (2,), "sigma": (), "mean": (6,)},
        ("a", "b", "sigma"),
    ),
    "flat": Row(flat, {"y": Y}, {"mu": ()}, ("mu",), improper=True),
    "labels": Row(labels, {"y": Y}, {"weights": (2,), "z": (6,)}, ("weights",)),
    "switch": Row(switch, {"y": Y}, {"rate": (), "z": ()}, ("rate",)),
    "shapes": Row(
        shapes,
        {"y": RNG.normal(size=(6, 2))},
        {"scale": (2,), "corr": (2, 2), "group": (3,)},
        ("scale", "corr", "group"),
    ),
    "mixture": Row(
        GaussianMixture(2),
        RNG.normal(size=(9, 3)),
        {"weights": (2,), "mean": (2, 3), "covariance": (2, 3, 3), "z": (9,), **mixed(2, 3)},
        ("weights", "mean", "covariance"),
        ALL,
    ),
    "mixture, spherical": Row(
        GaussianMixture(2, "spherical"),
        RNG.normal(size=(9, 2)),
        {"weights": (2,), "mean": (2, 2), "covariance": (2,), "z": (9,), **mixed(2, 2)},
        ("weights", "mean", "covariance"),
        ALL,
    ),
}

MCMC: dict[str, Any] = {"chains": 2, "warmup": 25, "draws": 20, "tier": "traced"}
ENGINES = {
    "NUTS": NUTS(**MCMC, max_depth=5),  # 25 draws of warm-up do not tune it
    "HMC": HMC(**MCMC, steps=4),
    "ChEES": ChEES(**MCMC),
    "MAMS": MAMS(**MCMC),
    "MH": MH(**MCMC, thin=2),
    "MALA": MALA(**MCMC, thin=2),
    "SVI": SVI(steps=100, draws=20, tier="traced"),
    "SVI, full rank": SVI(guide="full-rank", steps=100, draws=20, tier="traced"),
    "Gibbs": Gibbs(chains=2, warmup=5, draws=20),
    "EM": EM(max_steps=200),
    "CAVI": CAVI(draws=20),
    "ImportanceSampling": ImportanceSampling(proposals=100, draws=20),
    "Pathfinder": Pathfinder(paths=2, proposals=100, draws=20, tier="traced"),
    "SMC": SMC(particles=20, runs=1, moves=1),
    "Thermodynamic": Thermodynamic(temperatures=3, chains=2, warmup=25, draws=20),
}
LINES = ("flat", "labels", "switch")  # one dimension of unconstrained space
FROM_PRIOR = ("ImportanceSampling", "SMC", "Thermodynamic")
KINDS = {
    "EM": "point",
    "SVI": "approximation",
    "CAVI": "approximation",
    "ImportanceSampling": "approximation",
    "Pathfinder": "approximation",
    "SMC": "approximation",
}


def legal(model: str, engine: str) -> bool:
    row = MODELS[model]
    if engine in ALL:
        return engine in row.capabilities
    return not ((engine in FROM_PRIOR and row.improper) or (engine == "MAMS" and model in LINES))


PAIRS = [(m, e) for m in MODELS for e in ENGINES if legal(m, e)]
OTHERS = [(m, e) for m in MODELS for e in ENGINES if not legal(m, e)]


@pytest.mark.parametrize(("model", "engine"), PAIRS)
def test_pair_keeps_the_contract(model, engine, tmp_path, monkeypatch):
    if engine != "MH":  # the search of a density takes longer than these fits: once for each model
        monkeypatch.setattr(sys.modules[fit.__module__], "probe", lambda result: [])
    row, chosen = MODELS[model], ENGINES[engine]
    before = copy.deepcopy((row.data, vars(row.model), chosen))
    result = fit(row.model, row.data, chosen, seed=2)
    assert same((row.data, vars(row.model), chosen), before)
    kind = KINDS.get(engine.split(",")[0], "samples")
    assert result.posterior.kind == kind
    lead = {"point": (), "approximation": (1, 20), "samples": (2, 20)}[kind]
    expected = dict(row.shapes)
    if kind == "point":
        expected = {name: shape for name, shape in expected.items() if name != "z"}
    assert {n: tuple(v.shape) for n, v in result.posterior.draws.items()} == {
        name: lead + shape for name, shape in expected.items()
    }
    for name in row.continuous:
        value = result.posterior.draws[name]
        assert value.dtype == torch.float64
        assert torch.isfinite(value).all()
    assert all(v.shape == lead for v in result.posterior.stats.values())
    assert result.seconds["total"] > 0

    data = result.to_arviz()
    group = arviz_bridge.group(data, "point" if kind == "point" else "posterior")
    assert set(group.data_vars) == set(expected)
    for dim, size in zip(("chain", "draw"), lead, strict=False):
        assert all(variable.dims.index(dim) < 2 for variable in group.data_vars.values())
        assert list(group[dim].values) == list(range(size))
    attributes = arviz_bridge.attributes(data)
    assert attributes["engine"] == type(chosen).__name__
    assert attributes["seed"] == 2
    for setting in dataclasses.fields(chosen):
        assert f"setting_{setting.name}" in attributes
    loaded = arviz_bridge.load(result.save(tmp_path / "fit.nc"))
    again = arviz_bridge.group(loaded, "point" if kind == "point" else "posterior")
    for name in expected:
        np.testing.assert_array_equal(again[name].values, group[name].values)
    summary = result.summary()
    assert len(summary) == sum(int(np.prod(shape)) for shape in expected.values())
    assert ("r_hat" in summary) == (kind == "samples")


def same(one: Any, other: Any) -> bool:
    """Whether two nests of containers hold equal arrays and equal values."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(np.all(one == other))


@pytest.mark.parametrize(("model", "engine"), OTHERS)
def test_other_pair_is_refused_with_the_reason(model, engine, monkeypatch):
    row = MODELS[model]
    # before any work: the log density is never asked for
    monkeypatch.setattr(Target, "log_density_and_grad", None)
    with pytest.raises(EngineError) as caught:
        fit(row.model, row.data, ENGINES[engine])
    text = str(caught.value)
    lacks = {
        "EM": "lacks e_step, m_step, start",
        "Gibbs": "lacks conditionals",
        "CAVI": "lacks coo",
        "MAMS": "needs a posterior of two dimensions or more, where a velocity can turn; use ChEES",
        "SMC": "improper (flat), so that no path leads from it to the posterior; give reference=",
        "Thermodynamic": "improper (flat), so that no path leads",
    }
    assert lacks.get(engine, "it is improper (flat); give proposal=") in text


def test_coordinates_name_the_dimensions():
    data = fit(ORing(), None, ENGINES["NUTS"]).to_arviz()
    group = arviz_bridge.group(data, "posterior")
    assert group["p"].dims == ("chain", "draw", "temperature")
    assert list(group["temperature"]) == [31.0, 50.0, 60.0, 65.0, 70.0]
    assert arviz_bridge.has_group(data, "observed_data")


def test_further_groups_come_on_request():
    row = MODELS["labels"]
    data = fit(row.model, row.data, ENGINES["NUTS"]).to_arviz(
        log_likelihood=True, posterior_predictive=True
    )
    assert arviz_bridge.group(data, "log_likelihood")["y"].shape == (2, 20, 6)
    assert arviz_bridge.group(data, "posterior_predictive")["y"].shape == (2, 20, 6)


@pytest.mark.parametrize("engine", ENGINES)
def test_unknown_setting_is_an_error_that_names_it(engine):
    with pytest.raises(TypeError, match="chians"):
        type(ENGINES[engine])(chians=4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NUTS(chains=0), "chains=0.*at least 1"),
        (lambda: NUTS(draws=2.5), "draws=2.5"),
        (lambda: NUTS(step_size=-1.0), "step_size=-1.0.*positive"),
        (lambda: NUTS(target_acceptance=1.5), "target_acceptance"),
        (lambda: NUTS(mass="full"), "mass='full'.*choose one of"),
        (lambda: HMC(steps=0), "steps=0"),
        (lambda: HMC(starts="mode"), "starts='mode'.*choose one of 'uniform', 'pathfinder'"),
        (lambda: ChEES(chains=1), "chains=1.*at least 2"),
        (lambda: NUTS(chains="many"), "chains='many'.*at least 1"),
        (lambda: HMC(chains="auto"), "chains='auto'.*at least 1"),
        (lambda: MAMS(chains=12, superchains=5), "superchains=5.*multiple"),
        (lambda: ChEES(chains=4, superchains=4), "superchains=4.*several chains begin"),
        (lambda: MH(tier="fast"), "tier='fast'"),
        (lambda: SVI(guide="flat"), "guide='flat'.*'mean-field'"),
        (lambda: SVI(learning_rate=0), "learning_rate=0"),
        (lambda: EM(objective="map"), "objective='map'.*'joint', 'likelihood'"),
        (lambda: ImportanceSampling(proposals=0), "proposals=0"),
        (lambda: Pathfinder(paths=0), "paths=0"),
    ],
)
def test_setting_out_of_range_is_an_error_with_the_remedy(make, message):
    with pytest.raises(EngineError, match=message):
        make()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fit(line, None, NUTS), EngineError, r"the class NUTS; give NUTS\(\.\.\.\)"),
        (lambda: fit(line, None, "nuts"), EngineError, "give an engine such as"),
        (lambda: fit("line"), EngineError, "give a Pyro function or a Model"),
        (lambda: fit(flat, {"y": Y}, seed=-1), EngineError, "seed=-1"),
        (lambda: fit(flat, {"y": Y}, dtype="float16"), EngineError, "'float32' or 'float64'"),
        (lambda: fit(flat, {"z": Y}), DataError, "takes y, the data give z"),
        (lambda: fit(flat, Y), DataError, "so that each part has a name"),
        (lambda: fit(flat, {"y": ["a", "b"]}), DataError, "y: holds"),
        (lambda: fit(flat, {"y": [[1.0], [1.0, 2.0]]}), DataError, "differ in length"),
        (lambda: fit(flat, {"y": [1.0, np.nan]}), (DataError, ModelError), "y"),
    ],
)
def test_mistake_is_an_error_before_any_work(call, error, message):
    with pytest.raises(error, match=message):
        call()


# -- one representative of a symmetry --------------------------------------------------------------

APART = np.array([-11.0, -10.0, -9.5, 0.0, 0.5, 9.5, 10.0, 11.0])
FIRST = {"chains": 4, "warmup": 50, "draws": 20, "tier": "traced"}


@pytest.mark.parametrize(
    "engine",
    [
        HMC(**FIRST, steps=4),
        SVI(steps=100, draws=20, tier="traced"),
        ImportanceSampling(proposals=300, draws=20),
        EM(restarts=6),
    ],
    ids=["HMC", "SVI", "ImportanceSampling", "EM"],
)
def test_all_that_a_fit_tells_is_of_one_labelling(engine):
    result = fit(Means(), {"y": APART}, engine, seed=1)
    draws = result.posterior.draws
    mu, y = draws["mu"], torch.tensor(APART)
    assert bool((mu.diff(dim=-1) >= 0).all())
    exact = (-0.5 * (y[:, None] - mu[..., None, :]) ** 2).softmax(-1)
    found = result.responsibilities()["z"]
    torch.testing.assert_close(found, exact)
    if result.posterior.kind == "point":
        return
    torch.testing.assert_close(draws["first"], mu[..., 0])
    of_draw = found.gather(-1, draws["z"][..., None].long())[..., 0]
    assert bool((of_draw > 1e-9).all())
    # the log likelihood sums over the labels, and is that of the draws as they stand
    normal = torch.distributions.Normal(mu[..., None, :], 1.0).log_prob(y[:, None])
    torch.testing.assert_close(result.log_likelihood()["y"], normal.logsumexp(-1) - np.log(3))


@pytest.mark.filterwarnings("default::inference.InferenceWarning")
def test_a_chain_that_never_moves_is_reported_and_nothing_breaks():
    engine = HMC(chains=2, warmup=0, draws=8, steps=1, step_size=1e9, tier="traced")
    with pytest.warns(InferenceWarning, match=r"chain 0, 1 never moved"):
        result = fit(MODELS["flat"].model, MODELS["flat"].data, engine)
    assert result.summary()["r_hat"].isna().all()


def test_a_fit_is_silent_where_standard_error_is_no_terminal(capsys):
    fit(MODELS["line"].model, MODELS["line"].data, ENGINES["HMC"])
    assert capsys.readouterr() == ("", "")


def test_a_fit_shows_its_progress_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for progress, shown in [(None, True), (False, False)]:
        terminal = Terminal()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", terminal)
            fit(MODELS["line"].model, MODELS["line"].data, ENGINES["HMC"], progress=progress)
        assert ("HMC" in terminal.getvalue()) == shown
