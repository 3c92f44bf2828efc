"""The command ppl-suite: exit codes, messages, files."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import xarray as xr
from typer.testing import CliRunner

from case_studies import oring
from case_studies.__main__ import app, studies
from case_studies.study import Study
from inference import EM, MH, SVI, Engine, arviz_bridge, fit
from ppl_models import EngineError, ORing

RNG = np.random.default_rng(1)


def command(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def saved(path, draws):
    """Draws in a NetCDF file, as any other library would write them."""
    group = arviz_bridge.dataset({"mu": draws}, {}, ("chain", "draw"), {})
    return arviz_bridge.save(arviz_bridge.build({"posterior": group}, {}), path)


def test_good_draws_exit_with_zero(tmp_path):
    result = command("diagnose", saved(tmp_path / "good.nc", RNG.normal(size=(4, 500))))
    assert result.exit_code == 0
    assert "Nothing was found" in result.output


def test_bad_draws_exit_with_three_and_say_why(tmp_path):
    draws = RNG.normal(size=(4, 500))
    draws[0] += 4
    path = saved(tmp_path / "bad.nc", draws)
    result = command("diagnose", path)
    assert result.exit_code == 3
    assert "the chains have not mixed" in " ".join(result.output.split())
    result = command("diagnose", path, "--json")
    assert result.exit_code == 3
    finding = json.loads(result.output)[0]
    assert finding["name"] == "r_hat"
    assert finding["severity"] == "error"
    assert finding["figure"] > 1.5
    result = command("report", path)
    assert result.exit_code == 3
    assert "the chains have not mixed" in result.output
    assert "the chains have not mixed" in path.with_suffix(".html").read_text()


def test_report_of_a_file_of_another_library(tmp_path):
    path = saved(tmp_path / "some.nc", RNG.normal(size=(4, 100)))
    result = command("report", path)
    assert result.exit_code == 0, result.output
    html = (tmp_path / "some.html").read_text()
    assert "Rank plots" in html
    assert "://" not in html.split("base64,")[0]


def test_a_point_is_reported_and_not_judged(tmp_path):
    path = fit(ORing(), None, EM()).save(tmp_path / "em.nc")
    assert command("report", path, "--out", tmp_path / "em.html").exit_code == 0
    result = command("diagnose", path)
    assert result.exit_code == 2
    assert "the file holds a point" in result.output


@pytest.mark.parametrize("name", ["missing.nc", "text.nc"])
def test_a_file_that_cannot_be_read_is_one_line_and_exit_code_two(name, tmp_path):
    (tmp_path / "text.nc").write_text("no NetCDF")
    for what in ("diagnose", "report"):
        result = command(what, tmp_path / name)
        assert result.exit_code == 2
        assert result.output.startswith("error: ")
        assert "Traceback" not in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.nc"]


def test_studies_run_with_their_own_options():
    result = command("run", "oring", "--engines", "em")
    assert result.exit_code == 0, result.output
    assert "15.61" in result.output
    assert "--pressure" in command("run", "oring", "--help").output
    result = command("run", "foo")
    assert result.exit_code == 2
    assert "unknown study 'foo'" in result.output


def test_studies_are_listed():
    assert "oring" in command("list").output


# -- compare ---------------------------------------------------------------------------------------


def coin():
    pyro.sample("p", dist.Beta(3.0, 2.0))


@dataclass(frozen=True)
class Stopped(Engine):
    """Ctrl-C as soon as it runs."""

    def run(self, problem):
        raise KeyboardInterrupt


@dataclass(frozen=True)
class Endless(Engine):
    """Says when it would have ended."""

    stops_at: ClassVar[tuple[str, ...]] = ("seconds",)

    def run(self, problem):
        raise EngineError(f"stopped after {problem.until.seconds:g} s")


COIN = Study(
    coin,
    None,
    {
        "good": lambda: SVI(guide="laplace", draws=200),
        "short": lambda: MH(chains=2, warmup=10, draws=10, thin=1, tier="traced"),
        "em": EM,
        "stopped": Stopped,
        "endless": Endless,
    },
    usual="good",
    reference=lambda: {"p": (0.6, 0.2)},
)


@pytest.fixture
def study(monkeypatch):
    """The study of the O-rings, made quick."""
    monkeypatch.setattr(oring, "study", lambda: COIN)


def test_a_study_is_compared_by_its_usual_engines_against_its_reference(study, tmp_path):
    result = command("compare", "oring", "--seeds", 2, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert "worst error sd" in result.output
    names = {path.name for path in tmp_path.iterdir()}
    assert {"comparison.parquet", "by_fit.csv", "report.html", "good-seed-1.nc"} <= names


def test_a_comparison_as_json(study):
    result = command("compare", "oring", "--engines", "good,em", "--json")
    content = json.loads(result.stdout)
    good, em = content["fits"]
    assert good["engine"] == "good"
    assert good["rms_error_sd"] == pytest.approx(abs(content["parameters"][0]["error_sd"]))
    assert good["worst_r_hat"] is None  # no Markov chain
    assert em["status"].startswith("failed")
    assert "EM needs HasEM" in content["failures"]["em"]
    assert result.exit_code == 1


@pytest.mark.parametrize(
    ("engines", "code"), [("good", 0), ("good,em", 1), ("good,short", 3), ("good,stopped", 130)]
)
def test_exit_code_of_a_comparison_is_its_verdict(engines, code, study, tmp_path):
    result = command("compare", "oring", "--engines", engines, "--json", "--out", tmp_path)
    assert result.exit_code == code, result.output
    assert (tmp_path / "good.nc").is_file()  # what was done is kept


def test_a_budget_is_that_of_every_fit(study):
    result = command("compare", "oring", "--engines", "good,endless", "--budget", 20, "--json")
    assert json.loads(result.stdout)["failures"] == {"endless": "stopped after 20 s"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["foo"], "unknown study 'foo'"),
        (["oring", "--engines", "foo"], "unknown engine 'foo'; choose from good, short"),
        (["oring", "--seeds", "0"], "greater than or equal to 1"),
        (["oring", "--budget", "-1"], "give a positive number"),
        (["oring", "--out", "/proc/nowhere"], "cannot write"),
    ],
)
def test_mistakes_in_a_comparison_are_one_message_and_exit_code_two(study, arguments, message):
    result = command("compare", *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())
    assert "Traceback" not in result.output


def test_a_study_that_cannot_be_compared_is_named(monkeypatch):
    monkeypatch.delattr(oring, "study")
    result = command("compare", "oring")
    assert result.exit_code == 2
    assert "cannot be compared" in result.output


@pytest.mark.parametrize("name", ["oring", "gmm_iris", "lda_reuters", "vae_digits", "vade_digits"])
def test_every_study_names_engines_that_it_has(name):
    module = pytest.importorskip(f"case_studies.{name}")
    given = module.study()
    assert set(given.usual.split(",")) <= set(given.engines)
    assert all(isinstance(engine(), Engine) for engine in given.engines.values())


def test_run_prints_json():
    result = command("run", "oring", "--engines", "em", "--json")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    alpha = next(row for row in content["parameters"] if row["parameter"] == "alpha")
    assert alpha["mean"] == pytest.approx(15.61, abs=0.01)


# -- the shell -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["list", "compare", "diagnose", "report"])
def test_help_has_an_example(name):
    result = command(name, "--help")
    assert result.exit_code == 0
    assert f"Example: ppl-suite {name}" in " ".join(result.output.split())


def test_help_of_a_study_has_an_example():
    assert "Example: ppl-suite run oring" in command("run", "oring", "--help").output


SHELL = "import sys; from case_studies.__main__ import app; app(prog_name='ppl-suite')"


@pytest.mark.parametrize("name", ["run", "compare"])
def test_the_shell_completes_the_names_of_studies(name):
    words = {"_PPL_SUITE_COMPLETE": "complete_bash", "COMP_WORDS": f"ppl-suite {name} o"}
    environment = os.environ | words | {"COMP_CWORD": "2"}
    done = subprocess.run(
        [sys.executable, "-c", SHELL], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [name for name in studies() if name.startswith("o")]


def test_completion_and_help_do_not_wait_for_torch():
    code = "import sys; import case_studies.__main__; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_draws_in_a_zarr_folder_are_judged(tmp_path):
    pytest.importorskip("zarr")
    draws = RNG.normal(size=(4, 500))
    draws[0] += 4
    group = arviz_bridge.dataset({"mu": draws}, {}, ("chain", "draw"), {})
    tree = xr.DataTree.from_dict({"/posterior": group})
    tree.to_zarr(tmp_path / "bad.zarr", consolidated=False)
    result = command("diagnose", tmp_path / "bad.zarr", "--json")
    assert result.exit_code == 3, result.output
    assert json.loads(result.output)[0]["name"] == "r_hat"


def test_a_folder_without_draws_is_one_line_and_exit_code_two(tmp_path):
    result = command("diagnose", tmp_path)
    assert result.exit_code == 2
    assert result.output.startswith("error: ")
    assert "Traceback" not in result.output
