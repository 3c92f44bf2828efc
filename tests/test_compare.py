"""compare(), the report and the O-ring study's command line."""

import re
import sys

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import typer
from typer.testing import CliRunner

from case_studies import oring
from case_studies.__main__ import studies
from inference import EM, MH, NUTS, SVI, arviz_bridge, compare, fit, storage
from inference.compare import COLUMNS
from ppl_models import EngineError, ORing

pytestmark = pytest.mark.filterwarnings("ignore::inference.InferenceWarning")


def normal_mean(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("observations", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


DATA = {"y": [1.0, 2.0, 3.0]}
TRUTH = {"mu": (6 / 3.01, 3.01**-0.5)}
TABLES = {f"{name}.{kind}" for name in ("comparison", "by_fit") for kind in ("csv", "parquet")}
SHORT = NUTS(warmup=100, draws=200, tier="traced")


@pytest.fixture(scope="module")
def comparison():
    engines = {"nuts": SHORT, "svi": SVI(draws=200), "em": EM()}
    return compare(normal_mean, DATA, engines, reference=TRUTH)


def test_table_has_its_columns_and_a_row_per_engine(comparison):
    assert list(comparison.table.columns) == list(COLUMNS)
    assert list(comparison.table["engine"]) == ["nuts", "svi", "em"]
    nuts = comparison.table.iloc[0]
    assert nuts["error_sd"] == pytest.approx((nuts["mean"] - 6 / 3.01) * 3.01**0.5)
    assert abs(nuts["error_mcse"]) < 5


def scoped(y):
    mu = pyro.sample("part/mu", dist.Normal(0.0, 10.0))
    with pyro.plate("observations", len(y)):
        pyro.sample("part/y", dist.Normal(mu, 1.0), obs=y)


def test_a_reference_goes_by_the_names_of_sites():
    engine = MH(chains=2, warmup=20, draws=20, tier="traced")
    known = {"part/mu": TRUTH["mu"]}
    for given in (known, pd.DataFrame.from_dict(known, orient="index", columns=["mean", "sd"])):
        table = compare(scoped, DATA, [engine], reference=given).table
        assert list(table["parameter"]) == ["part.mu"]
        assert np.isfinite(table["error_sd"]).all()


def test_a_stored_run_names_its_sites_as_a_fit_does(tmp_path):
    engine = MH(chains=2, warmup=20, draws=20, tier="traced")
    fitted = fit(scoped, DATA, engine, store=tmp_path / "run.zarr", progress=False)
    stored = arviz_bridge.load(tmp_path / "run.zarr")
    names = [list(arviz_bridge.group(data, "posterior")) for data in (stored, fitted.to_arviz())]
    assert names == [["part.mu"], ["part.mu"]]


def test_engine_that_cannot_fit_the_model_is_a_row_with_the_reason(comparison):
    row = comparison.table.iloc[2]
    assert "EM needs HasEM" in row["status"]
    assert "EM needs HasEM" in comparison.failures["em"]


def test_kinds_keep_to_their_own_figures(comparison):
    svi = comparison.table.iloc[1]
    assert svi["kind"] == "approximation"
    assert np.isnan(svi["r_hat"])
    assert np.isnan(svi["ess_bulk"])


def test_engines_of_one_class_are_told_apart():
    result = compare(normal_mean, DATA, [SHORT, SHORT])
    assert list(result.fits) == ["nuts", "nuts_2"]


def test_mistakes_in_the_data_are_an_error_and_not_a_table_of_failures():
    with pytest.raises(EngineError, match="takes y, the data give z"):
        compare(normal_mean, {"z": [1.0]}, [SHORT, MH()])
    with pytest.raises(EngineError, match="engines is empty"):
        compare(normal_mean, DATA, [])
    with pytest.raises(EngineError, match="columns mean and sd"):
        compare(normal_mean, DATA, [SHORT], reference=pd.DataFrame({"a": [1]}))


def test_saved_folder_holds_table_draws_and_report(comparison, tmp_path):
    comparison.save(tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == TABLES | {"nuts.nc", "svi.nc", "report.html"}
    table = pd.read_csv(tmp_path / "out" / "comparison.csv")
    assert list(table["engine"]) == ["nuts", "svi", "em"]
    posterior = arviz_bridge.group(arviz_bridge.load(tmp_path / "out" / "nuts.nc"), "posterior")
    np.testing.assert_array_equal(posterior["mu"], comparison.fits["nuts"].posterior.draws["mu"])


def test_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write():
        with storage.whole(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


# -- the command line ------------------------------------------------------------------------------

app = typer.Typer()
app.command()(oring.main)


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_study_prints_its_table_and_writes_its_files(tmp_path):
    result = run("--engines", "em,nuts", "--draws", 100, "--warmup", 100, "--out", tmp_path / "o")
    assert result.exit_code == 0, result.output
    assert "15.61" in result.output  # the mode under Robert & Casella's prior
    names = {path.name for path in (tmp_path / "o").iterdir()}
    assert names == TABLES | {"report.html", "probability.png", "em.nc", "nuts.nc"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engines", "em,foo"], "unknown engine 'foo'"),
        (["--prior", "cauchy"], "give one of robert-casella"),
        (["--outcome", "loss"], "incident"),
        (["--draws", "0"], "greater than or equal to 1"),
        (["--device", "tpu"], "device='tpu'"),
        (["--dtype", "float16"], "choose 'float32' or 'float64'"),
        (["--out", "/proc/nowhere"], "cannot write"),
    ],
)
def test_mistakes_on_the_command_line_are_one_message_and_exit_code_two(arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in re.sub(r"[\s│]+", " ", result.output)
    assert "Traceback" not in result.output


def test_engine_that_fails_in_the_study_gives_exit_code_one():
    # the flat prior of the slope cannot be drawn from
    result = run("--prior", "flat", "--engines", "em,importance")
    assert result.exit_code in (1, 2)
    assert "its prior is flat" in result.output


def test_quadrature_gives_the_published_posterior():
    truth = oring.reference(ORing())
    assert truth.loc["alpha", "mean"] == pytest.approx(15.09022, abs=2e-4)
    assert truth.loc["alpha", "sd"] == pytest.approx(1.22540, abs=2e-4)
    assert truth.loc["beta", "mean"] == pytest.approx(-0.2337596, abs=5e-6)
    assert truth.loc["beta", "sd"] == pytest.approx(0.0197855, abs=5e-6)
    for t, p in {31: 0.999455, 50: 0.963285, 60: 0.732121, 65: 0.476206, 70: 0.233868}.items():
        assert truth.loc[f"p[{t}.0]", "mean"] == pytest.approx(p, abs=5e-6)
    assert truth.attrs["log_evidence"] == pytest.approx(-14.05633, abs=1e-4)


def test_studies_are_listed_with_what_they_show():
    assert "quadrature" in studies()["oring"]
    assert sys.modules["case_studies.oring"] is oring
