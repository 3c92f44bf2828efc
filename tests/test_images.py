"""Images from files: the formats of MNIST, and files that are damaged."""

import gzip
import struct

import numpy as np
import pytest

from case_studies import images
from ppl_models import DataError

RNG = np.random.default_rng(4)
TRAIN, TEST = (RNG.integers(0, 256, (n, 3, 3), dtype=np.uint8) for n in (5, 2))
LABELS = {"train": np.arange(5, dtype=np.uint8), "test": np.arange(2, dtype=np.uint8)}
FILES = {
    "train-images-idx3-ubyte": TRAIN,
    "train-labels-idx1-ubyte": LABELS["train"],
    "t10k-images-idx3-ubyte": TEST,
    "t10k-labels-idx1-ubyte": LABELS["test"],
}


def idx(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write(folder, *, packed=False, names=tuple(FILES)):
    for name in names:
        content = idx(FILES[name])
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)


def check(found):
    assert np.allclose(found.train * 255, TRAIN)
    assert np.allclose(found.test * 255, TEST)
    assert found.train.dtype == np.float32
    assert found.train_labels.tolist() == [0, 1, 2, 3, 4]
    x, y = found.whole
    assert len(x) == len(y) == 7


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files(tmp_path, packed):
    write(tmp_path, packed=packed)
    check(images.load("mnist", tmp_path))


def test_an_npz_for_training_beside_idx_files_for_tests(tmp_path):
    write(tmp_path, packed=True, names=list(FILES)[2:])
    np.savez(tmp_path / "train.npz", x=TRAIN.reshape(5, 9), y=LABELS["train"])
    check(images.load("mnist", tmp_path))


def test_one_npz_of_both_parts(tmp_path):
    np.savez(tmp_path / "mnist.npz", x_train=TRAIN, y_train=LABELS["train"],
             x_test=TEST, y_test=LABELS["test"])  # fmt: skip
    check(images.load("fashion-mnist", tmp_path))


def test_digits_need_no_files():
    digits = images.load()
    assert digits.train.shape == (1500, 8, 8)
    assert len(digits.test) == 297
    assert (digits.train.min(), digits.train.max()) == (0, 1)
    assert sorted(set(digits.test_labels)) == list(range(10))


def damaged(folder, name, change):
    write(folder)
    (folder / name).write_bytes(change((folder / name).read_bytes()))


def no_objects(folder):
    write(folder, names=list(FILES)[2:])
    np.savez(folder / "train.npz", x=np.array([{}]), y=LABELS["train"])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: None, r"has neither train-images-idx3-ubyte\[.gz\] and .* train.npz"),
        (lambda folder: write(folder, names=list(FILES)[:2]), "has neither t10k-images"),
        (lambda f: damaged(f, "train-images-idx3-ubyte", lambda b: b[:-1]), "is cut short"),
        (lambda f: damaged(f, "train-images-idx3-ubyte", lambda b: b[:6]), "is cut short"),
        (lambda f: damaged(f, "t10k-labels-idx1-ubyte", lambda b: b"PK" + b), "is no IDX file"),
        (
            lambda f: damaged(f, "t10k-labels-idx1-ubyte", lambda b: idx(np.zeros(3, np.uint8))),
            r"images of shape \(2, 3, 3\) and labels of shape \(3,\)",
        ),
        (
            lambda f: (write(f, packed=True),
                       (f / "train-images-idx3-ubyte.gz").write_bytes(b"nothing")),
            "is damaged",
        ),
        (lambda f: np.savez(f / "train.npz", pictures=TRAIN), "holds pictures; it needs x/images"),
        (lambda f: (f / "train.npz").write_bytes(b"nothing"), "cannot be read"),
        (no_objects, "cannot be read"),
        (
            lambda f: damaged(f, "t10k-images-idx3-ubyte", lambda b: idx(TRAIN[:2, :2])),
            "they belong to different sets",
        ),
    ],
)  # fmt: skip
def test_damaged_files_are_told(tmp_path, spoil, words):
    spoil(tmp_path)
    with pytest.raises(DataError, match=words):
        images.load("mnist", tmp_path)


def test_mistakes_are_told(tmp_path):
    with pytest.raises(DataError, match="unknown images 'mnits'; choose from digits, mnist"):
        images.load("mnits")
    with pytest.raises(DataError, match="is no folder"):
        images.load("mnist", tmp_path / "none")
    with pytest.raises(DataError, match="digits come with scikit-learn"):
        images.load("digits", tmp_path)


def test_what_is_fetched(monkeypatch):
    class Found:
        data = np.full((15, 784), 51)
        target = np.array(["7"] * 15)

    asked = []
    monkeypatch.setattr(images, "_TRAINED", 5)
    monkeypatch.setattr(images, "fetch_openml", lambda name, **_: asked.append(name) or Found)
    found = images.load("mnist")
    assert asked == ["mnist_784"]
    assert found.test.shape == (10, 28, 28)
    assert np.allclose(found.test, 0.2)
    assert set(found.test_labels) == {7}

    def offline(name, **_):
        raise OSError("no network")

    monkeypatch.setattr(images, "fetch_openml", offline)
    with pytest.raises(DataError, match=r"could not be fetched from OpenML \(no network\); give"):
        images.load("mnist")
