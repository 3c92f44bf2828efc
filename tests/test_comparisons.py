"""compare() over models, engines and seeds: known errors, distances and evidence, order, budget."""

import sys
import warnings
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from inference import (
    EM,
    HMC,
    MH,
    NUTS,
    SMC,
    SVI,
    Gibbs,
    ImportanceSampling,
    InferenceWarning,
    compare,
    criticism,
    distances,
    error_plot,
    fit,
    ksd,
    model_comparison,
)
from inference.compare_cells import cost
from inference.compare_table import COLUMNS, FIT_COLUMNS
from inference.engine import Engine, Posterior
from inference.finding import interrupted
from ppl_models import EngineError

Y = np.array([1.0, 2.0, 3.0])
MEAN, SD = Y.sum() / 3.01, 3.01**-0.5  # of mu given Y
DRAWS = 2000


def normal_mean(y, unit=1.0):
    """A normal mean in some unit: the posterior of mu / unit is N(MEAN, SD^2)."""
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0 * unit))
    with pyro.plate("observations", len(y)):
        pyro.sample("y", dist.Normal(mu / unit, 1.0), obs=y)


def log_evidence(y):
    covariance = np.eye(len(y)) + 100.0
    return stats.multivariate_normal.logpdf(y, np.zeros(len(y)), covariance)


@dataclass(frozen=True)
class Exact(Engine):
    """Independent draws of the posterior of ``normal_mean``, shifted and stretched by choice."""

    shift: float = 0.0  # posterior sds
    stretch: float = 1.0
    unit: float = 1.0
    draws: int = DRAWS
    stops_at: ClassVar[tuple[str, ...]] = ("seconds",)

    def run(self, problem):
        normal = problem.noise(1).normal(self.draws)  # (1, S)
        mu = self.unit * (MEAN + SD * (self.shift + self.stretch * normal))
        return Posterior("approximation", {"mu": mu}, unconstrained=mu[..., None], seconds={})


@dataclass(frozen=True)
class Broken(Exact):
    """Raises what it is given, or says that it was interrupted."""

    error: type[BaseException] | None = None

    def run(self, problem):
        if self.error is not None:
            raise self.error
        posterior = super().run(problem)
        posterior.findings.append(interrupted(self.draws))
        return posterior


DATA = {"y": Y}
TRUTH = {"mu": (MEAN, SD)}


def engines(**settings):
    return {
        "exact": Exact(**settings),
        "near": Exact(shift=0.5, **settings),
        "far": Exact(shift=-1.0, **settings),
    }


def reference_draws(number=DRAWS):
    values = MEAN + SD * np.random.default_rng(3).normal(size=(1, number))
    return {"mu": values}


def test_a_row_for_each_model_engine_seed_and_parameter_in_the_order_given():
    models = {"three": normal_mean, "two": (normal_mean, {"y": Y[:2]})}
    found = compare(models, DATA, {"far": Exact(shift=1.0), "exact": Exact()}, seeds=(5, 0))
    assert list(found.table.columns) == list(COLUMNS)
    assert list(found.by_fit.columns) == list(FIT_COLUMNS)
    expected = [(m, e, s) for m in models for e in ("far", "exact") for s in (5, 0)]
    for table in (found.table, found.by_fit):
        keys = table[["model", "engine", "seed"]].itertuples(index=False, name=None)
        assert list(keys) == expected
    assert list(found.fits) == [f"{m}, {e}, seed {s}" for m, e, s in expected]
    assert found.fits["two, exact, seed 0"].program.observations["y"].tolist() == [1, 2]


def test_names_hold_what_tells_fits_apart():
    assert list(compare(normal_mean, DATA, [Exact()]).fits) == ["exact"]
    assert list(compare({"a": normal_mean}, DATA, [Exact()]).fits) == ["exact"]
    two = compare({"a": normal_mean, "b": normal_mean}, DATA, [Exact()])
    assert list(two.fits) == ["a, exact", "b, exact"]


def test_errors_are_those_of_the_engines():
    found = compare(normal_mean, DATA, engines(), reference=TRUTH, seeds=range(4))
    errors = found.by_fit.set_index(["engine", "seed"])["worst_error_sd"]
    for name, shift in {"exact": 0.0, "near": 0.5, "far": 1.0}.items():
        assert errors[name].to_numpy() == pytest.approx(shift, abs=4.5 * DRAWS**-0.5)
    table = found.by_fit
    product = table["rms_error_sd"] * np.sqrt(table["seconds"])
    np.testing.assert_allclose(table["error_root_seconds"], product)


def test_root_mean_square_and_worst_error_of_two_parameters():
    def pair():
        pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("b", dist.Normal(0.0, 1.0))

    @dataclass(frozen=True)
    class Point(Engine):
        def run(self, problem):
            return Posterior("point", {"a": torch.tensor(3.0), "b": torch.tensor(-4.0)})

    row = compare(pair, None, [Point()], reference={"a": (0, 1), "b": (0, 1)}).by_fit.iloc[0]
    assert row["worst_error_sd"] == 4
    assert row["rms_error_sd"] == pytest.approx(12.5**0.5)


def test_error_plot_shows_biases_that_seeds_agree_on():
    found = compare(normal_mean, DATA, engines(), reference=TRUTH, seeds=range(5))
    axes = found.error_plot().axes[0]
    dashed = sorted(line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--")
    # the exact engine has none; the root of the mean square is off by the errors of five means
    assert dashed == pytest.approx([0.5, 1.0], abs=4.5 * (5 * DRAWS) ** -0.5)
    text = found.error_text()
    assert text.startswith("Error of the posterior means against time: exact 0.0")
    assert "near 0.5" in text
    assert "far 1 sds" in text or "far 0.9" in text
    assert text.count("is bias") == 2
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["exact", "near", "far"]


def test_bias_floor_of_known_errors():
    wave = 0.1 * np.array([[-1.0], [1.0], [-1.0], [1.0]])  # variance .04 / 3, of the mean a fourth
    assert error_plot.bias_floor(0.5 + wave) == pytest.approx((0.25 - 0.01 / 3) ** 0.5)
    assert error_plot.bias_floor(wave) is None
    assert error_plot.bias_floor(0.5 + wave[:2]) is None
    assert error_plot.bias_floor(np.full((3, 2), -0.3)) == pytest.approx(0.3)  # of a point


def test_error_path_is_that_of_the_first_draws_of_the_chains():
    engine = MH(draws=100, warmup=100, tier="traced")
    found = compare(normal_mean, DATA, [engine], reference=TRUTH)
    path = error_plot.error_path(found.fits["mh"], found.references["normal_mean"])
    mu = found.fits["mh"].posterior.draws["mu"].numpy()
    row = found.by_fit.iloc[0]
    assert path.error[0] == pytest.approx(abs(mu[:, :10].mean() - MEAN) / SD)
    assert path.error[-1] == pytest.approx(row["rms_error_sd"])
    assert path.seconds[-1] == pytest.approx(row["seconds"])
    assert (np.diff(path.seconds) > 0).all()


def test_no_error_plot_without_a_reference():
    with pytest.raises(EngineError, match="nothing to measure errors against"):
        compare(normal_mean, DATA, [Exact()]).error_plot()


@pytest.mark.parametrize("unit", [1.0, 1e3])
def test_stein_discrepancy_ranks_biased_engines_in_any_unit(unit):
    data = {"y": Y, "unit": unit}
    table = compare(normal_mean, data, engines(unit=unit)).by_fit.set_index("engine")
    ksd = table["ksd"]
    assert ksd["exact"] < ksd["near"] < ksd["far"]
    # of the same draws in another unit
    same = compare(normal_mean, DATA, engines()).by_fit.set_index("engine")["ksd"]
    np.testing.assert_allclose(ksd, same, rtol=1e-6)


def test_stein_discrepancy_is_of_equally_many_draws(monkeypatch):
    counts = []

    def counted(target, draws, *, scale):
        counts.append(len(draws))
        return ksd(target, draws, scale=scale)

    monkeypatch.setattr(distances, "ksd", counted)
    pair = {"few": Exact(draws=150), "many": Exact(draws=5000)}
    fits = compare(normal_mean, DATA, pair).fits
    assert set(distances.stein_discrepancies(fits)) == {"few", "many"}
    distances.stein_discrepancies({"many": fits["many"]})
    assert counts == [150, 150, 500]
    tiny = compare(normal_mean, DATA, {"tiny": Exact(draws=50), "many": Exact()}).by_fit
    assert np.isnan(tiny["ksd"][0])
    assert tiny["ksd"][1] > 0


@pytest.mark.parametrize("dim", [1, 3, 40, 300])
def test_sliced_wasserstein_of_a_shift_is_its_length_over_the_root_of_the_dimension(dim):
    rng = np.random.default_rng(0)
    x, d = rng.normal(size=(50, dim)), rng.normal(size=dim)
    found = distances.sliced_wasserstein(x, x + d)
    # up to 128 dimensions the directions are whole bases, so that the mean over them is exact
    exact = np.linalg.norm(d) / dim**0.5
    tolerance = 1e-9 if dim <= 128 else 4 * exact * (2 / 128) ** 0.5 / 2
    assert found == pytest.approx(exact, abs=tolerance)


def test_sliced_wasserstein_to_reference_draws_is_in_their_sds():
    found = compare(normal_mean, DATA, engines(), reference=reference_draws())
    distance = found.by_fit.set_index("engine")["sliced_wasserstein"]
    # W_2 of shifted normals is the shift; two empirical laws of n draws are off by their errors
    for name, shift in {"near": 0.5, "far": 1.0}.items():
        assert distance[name] == pytest.approx(shift, abs=4.5 * (2 / DRAWS) ** 0.5)
    assert distance["exact"] < 4.5 * (2 / DRAWS) ** 0.5


def test_sliced_wasserstein_sees_a_wrong_spread():
    # W_2^2 of N(0, 1) and N(0, s^2) is (1 - s)^2
    found = compare(normal_mean, DATA, {"wide": Exact(stretch=2.0)}, reference=reference_draws())
    assert found.by_fit["sliced_wasserstein"][0] == pytest.approx(1.0, abs=4.5 * DRAWS**-0.5)


def test_reference_draws_may_be_a_fit_an_arviz_object_or_arrays():
    truth = compare(normal_mean, DATA, [Exact()], seeds=(9,)).fits["exact"]
    arrays = {"mu": truth.posterior.draws["mu"]}
    tables = [
        compare(normal_mean, DATA, [Exact(shift=0.5)], reference=reference).by_fit
        for reference in (truth, truth.to_arviz(), arrays)
    ]
    columns = ["worst_error_sd", "sliced_wasserstein"]
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table[columns], tables[0][columns])


def test_log_evidence_is_that_of_the_conjugate_model():
    engine = SMC(particles=300, runs=8)
    row = compare(normal_mean, DATA, [engine]).by_fit.iloc[0]
    error = row["log_evidence_error"]
    assert error < 0.2
    assert abs(row["log_evidence"] - log_evidence(Y)) < 5 * error  # Student t of 7 degrees


def test_log_evidence_by_weights_of_the_prior_and_its_error():
    proposals = 20_000
    row = compare(normal_mean, DATA, [ImportanceSampling(proposals=proposals)]).by_fit.iloc[0]
    # var L / (E L)^2 under the prior, by quadrature
    mu = np.linspace(-60, 60, 100_001)
    likelihood = np.exp(stats.norm.logpdf(Y[:, None], mu).sum(0))
    prior = stats.norm.pdf(mu, 0, 10) * (mu[1] - mu[0])
    ratio = (prior @ likelihood**2) / (prior @ likelihood) ** 2 - 1
    error = (ratio / proposals) ** 0.5
    assert row["log_evidence"] == pytest.approx(log_evidence(Y), abs=4.5 * error)
    assert row["log_evidence_error"] == pytest.approx(error, rel=0.1)  # 700 draws weigh


def test_elbo_and_k_hat_of_an_exact_approximation():
    row = compare(normal_mean, DATA, [SVI(guide="laplace", draws=200)]).by_fit.iloc[0]
    # the guide is the posterior: every draw's log p - log q is the log evidence
    assert row["elbo"] == pytest.approx(log_evidence(Y), abs=1e-6)


# -- models ----------------------------------------------------------------------------------------


def prior_of(sd):
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, sd))
        with pyro.plate("observations", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    return model


@dataclass(frozen=True)
class Conjugate(Engine):
    """Independent draws of the posterior of the model with the given sd of the prior."""

    sd: float
    draws: int = 20_000

    def run(self, problem):
        precision = len(problem.data["y"]) + self.sd**-2
        normal = problem.noise(1).normal(self.draws)
        mu = float(problem.data["y"].sum()) / precision + precision**-0.5 * normal
        return Posterior("approximation", {"mu": mu}, unconstrained=mu[..., None])


ROWS = np.random.default_rng(7).normal(0.8, 1.0, size=30)


def left_out(sd):
    """Exact log p(y_i | the others) for each observation."""
    precision = len(ROWS) - 1 + sd**-2
    mean = (ROWS.sum() - ROWS) / precision
    return stats.norm.logpdf(ROWS, mean, (1 + 1 / precision) ** 0.5)


def test_models_are_ranked_by_leave_one_out_as_in_closed_form():
    narrow, wide = prior_of(0.1), prior_of(10.0)
    found = compare(
        {"narrow": narrow, "wide": wide},
        {"y": ROWS},
        {"for_narrow": Conjugate(0.1), "for_wide": Conjugate(10.0)},
    )
    fits = {"narrow": found.fits["narrow, for_narrow"], "wide": found.fits["wide, for_wide"]}
    table, told = model_comparison.loo_table(fits)
    assert list(table.index) == ["wide", "narrow"]
    assert not told
    exact = {"narrow": left_out(0.1), "wide": left_out(10.0)}
    mcse = {name: criticism.loo(result).mcse for name, result in fits.items()}
    for name, values in exact.items():
        assert table["elpd"][name] == pytest.approx(values.sum(), abs=4.5 * mcse[name])
    gap = exact["wide"] - exact["narrow"]
    off = 4.5 * np.hypot(*mcse.values())
    assert off < 0.1 * gap.sum()
    assert table["elpd_diff"]["narrow"] == pytest.approx(gap.sum(), abs=off)
    assert table["diff_se"]["narrow"] == pytest.approx(30**0.5 * gap.std(), abs=off)
    assert table["elpd_diff"]["wide"] == table["diff_se"]["wide"] == 0


def test_one_fit_with_draws_stands_for_each_model():
    models = {"a": normal_mean, "b": normal_mean}
    chains = MH(draws=200, warmup=100, tier="traced")
    found = compare(models, DATA, {"laplace": SVI(guide="laplace", draws=500), "mh": chains})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InferenceWarning)  # three observations
        assert list(found.loo()["fit"].sort_index()) == ["a, mh", "b, mh"]
        by_name = found.loo("laplace")
        assert list(by_name["fit"].sort_index()) == ["a, laplace", "b, laplace"]
    with pytest.raises(EngineError, match="no fit by 'nuts' of model 'a'"):
        found.loo("nuts")


def test_an_observation_that_weights_cannot_leave_out_is_told():
    rows = np.append(ROWS, 40.0)
    found = compare(normal_mean, {"y": rows}, [MH(draws=500, thin=2, warmup=200, tier="traced")])
    with pytest.warns(InferenceWarning, match="the Pareto k-hat of 1 of 31 observations"):
        assert found.loo()["unreliable"]["normal_mean"] == 1


@dataclass(frozen=True)
class Mode(Engine):
    def run(self, problem):
        return Posterior("point", {"mu": torch.tensor(MEAN)}, unconstrained=torch.tensor([MEAN]))


def test_leave_one_out_refuses_points_and_unequal_data():
    with pytest.raises(EngineError, match="only a point"):
        compare(normal_mean, DATA, [Mode()]).loo()
    for other, message in ((Y[:2], "3 observations and 'b' 2"), (Y + 1, "observe other values")):
        models = {"a": normal_mean, "b": (normal_mean, {"y": other})}
        with pytest.raises(EngineError, match=message):
            compare(models, DATA, [Exact()]).loo()


def test_cheap_engines_run_first(monkeypatch):
    order = []

    def record(model, data, engine, **settings):
        order.append(type(engine).__name__)
        return fit(model, data, Exact(), **settings)

    monkeypatch.setattr(sys.modules["inference.compare"], "fit", record)
    given = [
        NUTS(draws=100, warmup=100),
        MH(draws=100, warmup=100, thin=1),
        EM(),
        HMC(draws=100, warmup=100, steps=4),
        SVI(),
    ]
    compare(normal_mean, DATA, given)
    assert order == ["EM", "SVI", "MH", "HMC", "NUTS"]
    assert cost(Gibbs(draws=200)) < cost(Gibbs(draws=400)) < cost(SMC(particles=10_000))


@dataclass(frozen=True)
class Endless(Exact):
    """Ends when its time is over, however fast the machine."""

    def run(self, problem):
        while not problem.clock.over:
            pass
        posterior = super().run(problem)
        posterior.findings.append(problem.clock.finding(self.draws, 10**9))
        return posterior


@dataclass(frozen=True)
class Patient(Exact):
    stops_at: ClassVar[tuple[str, ...]] = ()


def test_a_fit_out_of_its_budget_says_so_in_its_row():
    pair = {"endless": Endless(), "exact": Exact(), "patient": Patient()}
    found = compare(normal_mean, DATA, pair, budget=0.05)
    status = found.by_fit.set_index("engine")["status"]
    assert "seconds: stopped after 0.05 s" in found.fits["endless"].findings[0].text
    assert "seconds" in status["endless"]
    assert "failed" not in status["endless"]
    assert status["exact"] == "ok"
    assert "cannot be stopped" in status["patient"]


def test_ctrl_c_keeps_what_is_done():
    given = {"first": Exact(), "stopped": Broken(error=KeyboardInterrupt), "never": Exact()}
    found = compare(normal_mean, DATA, given)
    assert list(found.fits) == ["first"]
    assert found.failures == {"stopped": "interrupted", "never": "interrupted"}
    assert list(found.by_fit["status"]) == ["ok", *["failed: interrupted"] * 2]
    with pytest.raises(KeyboardInterrupt):
        compare(normal_mean, DATA, dict(reversed(given.items())) | {"never": given["stopped"]})


def test_ctrl_c_during_a_chain_keeps_its_draws_and_stops():
    found = compare(normal_mean, DATA, {"first": Exact(), "chain": Broken(), "never": Exact()})
    assert list(found.fits) == ["first", "chain"]
    assert found.failures == {"never": "interrupted"}


def test_a_broken_engine_is_a_row():
    found = compare(normal_mean, DATA, {"broken": Broken(error=ZeroDivisionError), "a": Exact()})
    assert "ZeroDivisionError" in found.by_fit["status"][0]
    assert found.by_fit["status"][1] == "ok"


def test_tables_come_back_from_parquet_and_csv(tmp_path):
    models = {"one": normal_mean, "two": (normal_mean, {"y": Y[:2]})}
    given = engines() | {"em": EM()}
    found = compare(models, DATA, given, seeds=range(2), reference={"one": TRUTH})
    found.save(tmp_path)
    for name, table in (("comparison", found.table), ("by_fit", found.by_fit)):
        back = pd.read_parquet(tmp_path / f"{name}.parquet")
        pd.testing.assert_frame_equal(back, table, check_dtype=False)
        back = pd.read_csv(tmp_path / f"{name}.csv")
        pd.testing.assert_frame_equal(back, table, check_dtype=False)
    assert (tmp_path / "two-near-seed-1.nc").is_file()


def test_what_is_shown_is_what_tells(capsys):
    compare(normal_mean, DATA, engines(), seeds=range(2)).show()
    text = capsys.readouterr().out
    assert "seed" in text
    assert "ksd" in text
    assert "model" not in text
    assert "evidence" not in text  # no engine knows it
    compare(normal_mean, DATA, engines()).show()
    assert "seed" not in capsys.readouterr().out


def test_a_reference_of_other_parameters_is_told(capsys):
    compare(normal_mean, DATA, [Exact()], reference={"nu": (0.0, 1.0)}).show()
    assert "knows none of its parameters" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeds": 5}, "give seeds such as"),
        ({"seeds": ()}, "give seeds such as"),
        ({"budget": -1}, "give a positive number"),
        ({"models": {}}, "models is empty"),
        ({"models": {"a": (normal_mean, DATA, 3)}}, r"give \(model, data\)"),
        ({"models": {"a": normal_mean}, "reference": TRUTH}, "give references by the names a"),
        ({"reference": {"mu": 3.0}}, r"give \(mean, sd\)"),
        ({"reference": {"mu": "big"}}, "no array of numbers"),
        ({"reference": 3}, "reference is a int"),
        ({"reference": pd.DataFrame({"a": [1]})}, "columns mean and sd"),
    ],
)
def test_mistakes_are_told_before_any_work(settings, message, monkeypatch):
    module = sys.modules["inference.compare"]
    monkeypatch.setattr(module, "fit", lambda *_, **__: pytest.fail("work was done"))
    arguments = {"models": normal_mean, "data": DATA, "engines": [Exact()]} | settings
    with pytest.raises(EngineError, match=message):
        compare(**arguments)


def test_names_that_no_fit_has_leave_the_table_out(capsys):
    compare(normal_mean, DATA, [Exact()]).show(["nu"])
    assert "mean" not in capsys.readouterr().out.split("\n")[0]  # no heading of a table
