"""The HTML report: what it says, and that no input makes it fail."""

import base64
import re

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from matplotlib.figure import Figure

from inference import EM, HMC, NUTS, SVI, arviz_bridge, compare, fit
from inference.fit import bind
from inference.graphical import graph_of
from inference.plots import density, grid_of, picture
from inference.report import write_report
from inference.report_figures import worst_first
from ppl_models import ORing
from tests.programs import CONTINUOUS, ENUMERATED

pytestmark = pytest.mark.filterwarnings("ignore::inference.InferenceWarning")


def normal_mean(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("observations", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


DATA = {"y": [1.0, 2.0, 3.0]}
TRUTH = {"mu": (6 / 3.01, 3.01**-0.5)}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The report of a comparison, without the bytes of its pictures."""
    nuts = NUTS(chains=2, warmup=50, draws=100, tier="traced")
    engines = {"nuts": nuts, "svi": SVI(draws=200, steps=300, tier="traced"), "em": EM()}
    comparison = compare(normal_mean, DATA, engines, reference=TRUTH)
    figure = Figure()
    figure.subplots().plot([1, 2], "k")
    path = tmp_path_factory.mktemp("report") / "report.html"
    html = comparison.report(path, figures={"A figure of one's own": figure}).read_text()
    return re.sub(r"base64,[A-Za-z0-9+/=]+", "", html)


def data_of(posterior, stats=None, **attributes):
    groups = {"posterior": arviz_bridge.dataset(posterior, {}, ("chain", "draw"), {})}
    if stats:
        groups["sample_stats"] = arviz_bridge.dataset(stats, {}, ("chain", "draw"), {})
    return arviz_bridge.build(groups, attributes)


def alts(html):
    return re.findall(r'<img[^>]* alt="([^"]*)"', html)


def test_everything_is_in_the_file(page):
    assert "://" not in page
    assert not re.search(r"<(link|iframe|script)\b[^>]+(src|href)", page)
    sources = re.findall(r'<img[^>]* src="([^"]*)"', page)
    assert len(sources) >= 20
    assert all(source.startswith("data:image/") for source in sources)


def test_verdict_is_the_worst_of_the_findings(page):
    verdict, body = page.index("Do not use these answers"), page.index("<table")
    assert verdict < body
    assert "EM needs HasEM" in page
    assert 'class="undrawn"' not in page


def test_figures_say_what_they_show(page):
    told = alts(page)
    assert len(told) == page.count("<img")
    for words in (
        "Trace of mu in 2 chains", "Histograms of the ranks of mu", "Running mean of mu",
        "Autocorrelation of mu", "Effective sample size of mu: bulk", "by tenths of its draws",
        "Tree depth by chain", "E-BFMI by chain", "mu by fit, mean and 94 % interval: nuts",
        "The reference, dashed, is 1.99", "ELBO from", "Log importance weights",
        "Density of y, observed", "Pareto k-hat of the 3 observations", "ECDF of the LOO-PIT",
        "A figure of one&#39;s own",
    ):  # fmt: skip
        assert any(words in alt for alt in told), words


def test_settings_versions_and_the_model_are_told(page):
    for words in ("target_acceptance", "torch_version", "processor", "In words"):
        assert words in page
    assert "mu is Normal; observed y is Normal given mu, in plate observations" in page


def test_point_has_a_report_with_predictions(tmp_path):
    html = fit(ORing(), None, EM()).report(tmp_path / "em.html").read_text()
    assert "Nothing was found" in html
    assert any("values of y, observed and replicated" in alt for alt in alts(html))
    assert 'class="undrawn"' not in html


def test_divergences_are_where_they_are_drawn(tmp_path):
    draws = np.random.default_rng(0).normal(size=(4, 200, 3))
    diverging = draws[..., 1] < -1.8
    data = data_of({"x": draws}, {"diverging": diverging, "tree_depth": np.full((4, 200), 3)})
    told = alts(write_report({"a": data}, tmp_path / "r.html").read_text())
    pairs = [alt for alt in told if "divergent draws, red crosses" in alt]
    assert len(pairs) == 2
    assert all("against x[1]" in alt and f"{diverging.sum()} divergent" in alt for alt in pairs)


def test_of_many_scalars_the_worst_are_plotted_and_all_can_be_searched(tmp_path):
    draws = np.random.default_rng(0).normal(size=(4, 100, 300))
    draws[0, :, 137] += 2.0
    html = write_report({"a": data_of({"x": draws})}, tmp_path / "r.html").read_text()
    assert "Plotted are the 8 of 300 scalars" in html
    assert any("Trace of x[137]" in alt for alt in alts(html))
    assert html.index("x[137]") < html.index("x[0]")
    assert "All 300 rows" in html
    assert 'data-for="parameters-0"' in html


def test_worst_come_first_by_either_figure():
    table = pd.DataFrame(
        {"r_hat": [1.0, 1.2, 1.0], "ess_bulk": [900.0, 800.0, 12.0], "ess_tail": [900.0] * 3},
        index=["a", "b", "c"],
    )
    assert set(worst_first(table).index[:2]) == {"b", "c"}


def test_density_integrates_to_one_and_stays_within_bounds():
    values = np.random.default_rng(0).exponential(size=20_000)
    grid = grid_of(values)
    height = density(values, grid)
    assert grid[0] >= 0
    assert height.sum() * (grid[1] - grid[0]) == pytest.approx(1, abs=0.02)
    middle = (grid > 0.3) & (grid < 3)
    np.testing.assert_allclose(height[middle], np.exp(-grid[middle]), rtol=0.25)


def odd_inputs():
    rng = np.random.default_rng(0)
    usual = rng.normal(size=(4, 50))
    yield "one chain", data_of({"x": usual[:1]})
    yield "three draws", data_of({"x": usual[:, :3]})
    yield "one draw", data_of({"x": usual[:, :1]})
    yield "constant", data_of({"x": np.ones((2, 50)), "y": usual[:2]})
    yield "only constants", data_of({"x": np.ones((2, 50))})
    broken = usual.copy()
    broken[1, 3] = np.nan
    yield "NaN", data_of({"x": broken, "y": np.full((4, 50), np.inf)})
    yield "integers", data_of({"z": rng.integers(0, 3, size=(4, 50, 2))})
    yield "large integers", data_of({"z": rng.integers(0, 10**9, size=(4, 50))})
    yield "booleans", data_of({"z": rng.random((4, 50)) < 0.5})
    yield "texts", data_of({"z": np.full((4, 50), "a"), "x": usual})
    yield "only texts", data_of({"z": np.full((4, 50), "a")})
    yield (
        "thousands of scalars",
        data_of({"big": rng.normal(size=(2, 20, 6000)), "x": usual[:2, :20]}),
    )
    yield "empty variable", data_of({"e": np.empty((4, 50, 0)), "x": usual})
    yield "huge numbers", data_of({"x": usual * 1e300, "y": usual * 1e-300})
    yield "markup", data_of({"<b>$x_1$</b>": usual})
    yield (
        "approximation",
        data_of({"x": usual[:1]}, {"log_weight": -(usual[:1] ** 2)}, kind="approximation"),
    )
    yield (
        "flat weights",
        data_of({"x": usual[:1]}, {"log_weight": 0 * usual[:1]}, kind="approximation"),
    )
    yield "short trace", data_of({"x": usual[:1]}, kind="approximation", elbo_trace=[1.0, 2.0])
    yield "bad statistics", data_of({"x": usual}, {"energy": broken, "diverging": usual > 9})
    yield "all diverge", data_of({"x": usual}, {"diverging": usual < 9, "tree_depth": broken})
    yield "no posterior", arviz_bridge.build({"prior": xr.Dataset({"a": ("b", [1.0])})}, {})
    yield "point", arviz_bridge.build({"point": xr.Dataset({"a": ("b", [1.0, 2.0])})}, {})


@pytest.mark.parametrize(("name", "data"), list(odd_inputs()))
def test_no_input_makes_it_fail(name, data, tmp_path):
    html = write_report({name: data}, tmp_path / "r.html").read_text()
    assert "Verdict" in html
    assert 'class="undrawn"' not in html
    assert "<b>$" not in html


def test_draws_that_cannot_be_judged_are_told_so(tmp_path):
    data = arviz_bridge.build({"prior": xr.Dataset({"a": ("b", [1.0])})}, {})
    html = write_report({"prior": data}, tmp_path / "r.html").read_text()
    assert "it could not be judged: nothing to diagnose" in html


def test_figure_that_fails_is_told_and_the_rest_is_there(tmp_path, monkeypatch):
    def broken(*_):
        raise ValueError("no axes today")

    monkeypatch.setattr("inference.chain_plots.energy", broken)
    x = np.random.default_rng(0).normal(size=(2, 30))
    html = write_report({"a": data_of({"x": x}, {"energy": x})}, tmp_path / "r.html").read_text()
    assert "energy: ValueError: no axes today" in html
    assert any("Trace of x" in alt for alt in alts(html))


def test_same_fit_gives_the_same_figures(tmp_path):
    data = data_of({"x": np.random.default_rng(0).normal(size=(2, 30))})
    first, second = (write_report({"a": data}, tmp_path / n).read_text() for n in ("1", "2"))
    assert first == second


@pytest.mark.parametrize("name", list(CONTINUOUS | ENUMERATED))
def test_every_program_has_its_graph(name):
    case = (CONTINUOUS | ENUMERATED)[name]
    graph = graph_of(bind(case.program, case.data).program)
    assert graph is not None
    assert graph.svg.count("<ellipse") == graph.text.count(";") + 1


def test_graph_has_the_arrows_and_plates_of_the_program():
    graph = graph_of(bind(CONTINUOUS["schools"].program, CONTINUOUS["schools"].data).program)
    assert graph is not None
    assert graph.text == (
        "mu is Normal; tau is HalfCauchy; z is Normal, in plate groups; "
        "theta is computed from mu, tau, z, in plate groups; "
        "observed y is Normal given theta, in plate groups"
    )
    assert graph.svg.count('class="edge"') == 4
    assert graph.svg.count('class="plate"') == 1


def test_vectors_have_no_pit_and_the_report_says_so(tmp_path):
    def vectors(y):
        m = pyro.sample("m", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(m, 1.0).to_event(1), obs=y)

    engine = HMC(chains=1, warmup=20, draws=20, steps=3, tier="traced")
    result = fit(vectors, {"y": [[0.3, 1.0], [0.5, -0.2]]}, engine)
    html = result.report(tmp_path / "r.html").read_text()
    assert "leave-one-out of y: EngineError: the observations of &#39;y&#39; are vectors" in html


def test_long_names_are_seen_whole_and_copies_once():
    draws = np.random.default_rng(5).normal(size=(4, 100))
    names = ["sepal length in cm", "petal width in cm"]
    both = np.stack([draws, draws], -1)
    data = xr.Dataset(
        {"covariance_of_lengths": (("chain", "draw", "a"), both)},
        {"chain": range(4), "draw": range(100), "a": names},
    )
    table = arviz_bridge.summary(arviz_bridge.build({"posterior": data}, {}))
    assert len(table) == 2
    assert len(worst_first(table)) == 1
    long = f"covariance_of_lengths[{names[0]}, {names[1]}]"
    address = picture(lambda axes: str(axes.set(title=long))).source
    svg = base64.b64decode(address.split("base64,")[1]).decode()
    words = " ".join(re.findall(r"<text[^>]*>([^<]*)</text>", svg))
    assert long in words
