"""The command ppl-suite: exit codes, messages, files."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from case_studies.__main__ import app
from inference import EM, arviz_bridge, fit
from ppl_models import ORing

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


def test_report_of_a_file_of_another_library(tmp_path):
    path = saved(tmp_path / "some.nc", RNG.normal(size=(4, 100)))
    result = command("report", path)
    assert result.exit_code == 0, result.output
    html = (tmp_path / "some.html").read_text()
    assert "Rank plots" in html
    assert "http" not in html.split("base64,")[0]


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
