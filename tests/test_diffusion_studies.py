"""The case studies of diffusion, by few and short steps."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from case_studies import diffusion_digits, diffusion_toys
from case_studies.__main__ import app
from case_studies.toys import TOYS
from ppl_models.diffusion import Terms

pytestmark = pytest.mark.filterwarnings("ignore::inference.InferenceWarning")


@pytest.fixture
def few(monkeypatch):
    for name, value in {"ROWS": 3000, "HELD_OUT": 500, "JUDGED": 200, "GRID": 8}.items():
        monkeypatch.setattr(diffusion_toys, name, value)
    monkeypatch.setattr(diffusion_digits, "HELD_OUT", 60)


def run(*words):
    return CliRunner().invoke(app, ["run", *words])


def test_toys_are_judged_and_pictured(few, tmp_path):
    toys = ["diffusion_toys", "--toys", "8gaussians", "--levels", "10", "--steps", "20"]
    done = run(*toys, "--out", str(tmp_path), "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    figures = told["figures"]["8gaussians"]
    assert figures["nll"] == pytest.approx(figures["entropy"] + figures["above floor"], abs=0.3)
    assert figures["above floor"] > 0
    terms = told["terms"]["8gaussians"]
    parts = terms["L_T"] + terms["L_1..T-1"] + terms["L_0"]
    assert terms["bound"] == pytest.approx(parts)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"toys.csv", "terms.csv", "report.html", "8gaussians.png"} <= names


def test_the_density_is_that_of_rows_as_they_are():
    """Divided by their scale for training, and back: it integrates to one."""
    model = diffusion_toys.diffusion(10)
    line = torch.arange(-12, 12, 0.5, dtype=torch.float64)
    x = torch.cartesian_prod(line, line)
    mass = diffusion_toys.log_density(model, x, 2.0).double().exp().sum() * 0.25
    assert float(mass) == pytest.approx(1, abs=0.02)


def test_exact_draws_are_as_far_from_fresh_rows_as_data_are(few):
    toy = TOYS["8gaussians"]
    rows, draws = diffusion_toys.prepared(toy), toy.sample(500, seed=9)
    assert 0.5 < diffusion_toys.distance(draws, rows) < 1.6
    assert diffusion_toys.distance(draws + 0.5, rows) > 2


def test_terms_are_told_in_nats_and_bits():
    terms = Terms(torch.tensor([1.0, 3.0]), torch.ones(2, 4), torch.tensor([5.0, 7.0]))
    row = diffusion_toys.term_table({"a": terms}, 2).loc["a"]
    assert list(row[["L_T", "L_1..T-1", "L_0", "bound"]]) == [2, 4, 6, 12]
    assert row["bound bits/dim"] == pytest.approx(6 / np.log(2))


def test_digits_are_drawn_and_restored(few, tmp_path):
    words = ["--levels", "5", "--steps", "20", "--draws", "10", "--restore", "2"]
    done = run("diffusion_digits", *words, "--out", str(tmp_path))
    assert done.exit_code == 0, done.output
    for text in ("bound bits/dim", "told apart", "error of the mean digit", "hmc", "twisted"):
        assert text in done.stdout
    names = {path.name for path in tmp_path.iterdir()}
    pictures = {name for name in names if name.endswith(".png")}
    assert len(pictures) == 4
    assert {"report.html", "terms.csv", "twisted.nc", "hmc.nc"} <= names


def test_restored_halves_are_measured_where_they_were_hidden():
    truth = torch.zeros(3, 64)
    drawn = torch.zeros(21, 3, 64)
    drawn[..., :32] = 9.0  # seen, and of no account
    drawn[..., 32:] = torch.linspace(-1, 1, 21)[:, None, None]
    found = diffusion_digits.restored(truth, drawn, torch.full((64,), 0.5))
    assert list(found) == pytest.approx([0, 0.5, 1], abs=1e-6)
    wide = diffusion_digits.restored(truth, drawn + 1.5, torch.zeros(64))
    assert wide["covered"] == 0


def test_images_pass_through_the_u_net_as_rows():
    network = diffusion_digits.ImageNetwork()
    assert network(torch.zeros(3, 64), torch.full((3,), 0.5)).shape == (3, 128)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["diffusion_toys", "--toys", "rings"], "unknown toy 'rings'; choose from 8gaussians"),
        (["diffusion_toys", "--engines", "vlb"], "unknown engine 'vlb'"),
        (["diffusion_digits", "--network", "cnn"], "unknown network 'cnn'; choose from mlp, unet"),
        (["diffusion_digits", "--engines", "gibbs"], "unknown engine 'gibbs'"),
    ],
)
def test_mistakes_are_told_before_any_work(words, text):
    done = run(*words)
    assert done.exit_code == 2
    assert text in done.output


def test_studies_are_offered_to_compare(few):
    given = diffusion_toys.study(("8gaussians",), levels=5, steps=1)
    assert given.usual in given.engines
    model, rows = given.models["8gaussians"]
    assert model.prepare(rows)["x"].shape == (3000, 2)
    study = diffusion_digits.inpainting(diffusion_toys.diffusion(5), torch.zeros(64))
    assert set(study.engines) == {"twisted", "hmc", "nuts"}
