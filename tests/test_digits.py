"""The studies of handwritten digits, made quick: what they print and write, and bad input."""

import gzip
import re
import struct

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_digits
from typer.testing import CliRunner

from case_studies import vade_digits, vae_digits
from case_studies.__main__ import app
from inference import Pretrained, fit
from ppl_models import EngineError

DIGITS = load_digits()


def run(*arguments):
    return CliRunner().invoke(app, ["run", *map(str, arguments)])


def words(result):
    return re.sub(r"[\s│]+", " ", result.output)


@pytest.fixture
def folder(tmp_path):
    """200 digits as IDX files, 60 of them for tests."""
    pixels = np.uint8(DIGITS.images[:200] * 15.9375)
    parts = {"train": slice(0, 140), "t10k": slice(140, 200)}
    for name, rows in parts.items():
        x, y = pixels[rows], np.uint8(DIGITS.target[:200][rows])
        head = struct.pack(">BBBB3I", 0, 0, 8, 3, *x.shape)
        (tmp_path / f"{name}-images-idx3-ubyte").write_bytes(head + x.tobytes())
        content = struct.pack(">BBBBI", 0, 0, 8, 1, len(y)) + y.tobytes()
        (tmp_path / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(content))
    return tmp_path


SMALL = ["--data", "mnist", "--latent", 2, "--hidden", 16]


def test_an_autoencoder_is_trained_judged_and_sampled(folder):
    out = folder / "out"
    quick = ["--steps", 150, "--k", 5, "--samples", 50, "--temperatures", 30]
    few = ["--engines", "iwae", "--images", 4, "--sampled", 2, "--draws", 60, "--out", out]
    result = run("vae_digits", *SMALL, "--data-dir", folder, *quick, *few)
    assert result.exit_code == 0, result.output
    assert "60 test images, means in nats" in result.output
    bounds = pd.read_csv(out / "bounds.csv", index_col=0)
    assert list(bounds.index) == ["iwae"]
    # on average; of these draws only up to their noise
    assert (bounds["ELBO"] < bounds["log p(x) by 50 draws"] + 0.1).all()
    gaps = pd.read_csv(out / "gaps.csv", index_col=0)
    parts = gaps["approximation_gap"] + gaps["amortisation_gap"]
    assert np.allclose(parts, gaps["gap"], atol=1e-5)
    assert (abs(gaps["log_likelihood"] - gaps["importance"]) < 0.3).all()
    latents = pd.read_csv(out / "latents.csv", index_col=0)
    assert list(latents.index) == ["encoder", "nuts", "hmc", "mh", "ais"]
    assert (latents.loc[["hmc", "mh"], "mean_away"] < 0.5).all()
    names = {path.name for path in out.iterdir()}
    assert {"iwae.nc", "report.html", "comparison.csv", "latents"} <= names
    assert {"reconstructions_iwae.png", "draws_from_the_prior_iwae.png"} <= names
    assert "Reconstructions (iwae)" in (out / "report.html").read_text()


def test_trainings_are_compared(monkeypatch, tmp_path):
    given = vae_digits.study(DIGITS.images[:100] / 16, latent=2, hidden=8, steps=20, k=3)
    monkeypatch.setattr(vae_digits, "study", lambda: given)
    result = CliRunner().invoke(app, ["compare", "vae_digits", "--out", str(tmp_path / "out")])
    assert result.exit_code in (0, 3), result.output
    assert "256 rows by parameter" in result.output  # 2 fits, 64 images, 2 units
    assert (tmp_path / "out" / "iwae.nc").is_file()


def test_digits_are_clustered_and_judged(folder):
    out = folder / "out"
    quick = ["--before", 60, "--together", 20, "--restarts", 3, "--clusters", 3]
    where = ["--engines", "pretrained", "--data-dir", folder, "--out", out]
    result = run("vade_digits", *SMALL, *quick, *where)
    assert result.exit_code == 0, result.output
    assert "200 images, 3 clusters, seed 0" in result.output
    assert "pretrained: " in result.output
    assert "clusters told apart" in result.output
    table = pd.read_csv(out / "clustering.csv", index_col=0)
    assert list(table.index) == ["pretrained", "k-means", "mixture on 20 components"]
    assert table[["accuracy", "nmi", "ari"]].notna().all(axis=None)
    crossed = pd.read_csv(out / "clusters_pretrained.csv", index_col=0)
    assert crossed.to_numpy().sum() == 200
    assert (out / "latent_space_by_label_pretrained.png").is_file()


def test_the_recipe_counts_epochs():
    engine = vade_digits.study(np.zeros((300, 8, 8))).engines["pretrained"]()
    assert isinstance(engine, Pretrained)
    assert (engine.steps, engine.engine.steps) == (400, 200)  # 2 minibatches an epoch
    assert engine.em.objective == "likelihood"


@pytest.mark.parametrize("study", ["vae_digits", "vade_digits"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engines", "foo"], "unknown engine 'foo'; choose from"),
        (["--data", "cats"], "unknown images 'cats'; choose from digits, mnist"),
        (["--data", "mnist", "--data-dir", "nowhere"], "nowhere: is no folder"),
        (["--data-dir", "nowhere"], "digits come with scikit-learn"),
        (["--latent", "0"], "greater than or equal to 1"),
        (["--out", "/proc/nowhere"], "cannot write"),
    ],
)
def test_mistakes_are_one_message_and_exit_code_two(study, arguments, message):
    result = run(study, *arguments)
    assert result.exit_code == 2
    assert message in words(result)
    assert "Traceback" not in result.output


def test_images_outside_the_support_are_one_message(tmp_path):
    x = np.full((20, 8, 8), 7.0)
    x[3, 0, 0] = 9.0
    for name in ("train", "test"):
        np.savez(tmp_path / f"{name}.npz", x=x, y=np.arange(20) % 10)
    result = run("vae_digits", "--data", "mnist", "--data-dir", tmp_path)
    assert result.exit_code == 2
    assert "divide 8-bit pixels by 255" in words(result)


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    x = DIGITS.images[:100] / 16
    given = vae_digits.study(x, latent=2, hidden=8, steps=20)
    fit(given.models, x, given.engines["svi"](), store=tmp_path / "run")
    other = vae_digits.study(x, latent=2, hidden=9, steps=20)
    with pytest.raises(EngineError, match=r"weight 'encoder\.layers\.0\.weight'"):
        fit(other.models, x, other.engines["svi"](), resume=tmp_path / "run")
    file = tmp_path / "run" / "checkpoint.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(EngineError, match="no whole checkpoint"):
        fit(given.models, x, given.engines["svi"](), resume=tmp_path / "run")
