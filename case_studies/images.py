"""Images with labels: scikit-learn's digits, or files in the formats in which MNIST is found."""

from __future__ import annotations

import gzip
import math
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.datasets import fetch_openml, load_digits

from ppl_models import DataError

DIGITS = "digits"
NAMES = {"mnist": "mnist_784", "fashion-mnist": "Fashion-MNIST"}
"""Sets of images that have files or can be fetched, with their names at OpenML."""

_TEST = 297  # of the 1,797 digits
_TRAINED = 60_000  # of the rows at OpenML, which come first
_IDX = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_NPZ = {"train": ("train.npz", "mnist.npz"), "test": ("test.npz", "t10k.npz", "mnist.npz")}
_FIELDS = {
    "train": (("x", "images", "x_train"), ("y", "labels", "y_train")),
    "test": (("x", "images", "x_test"), ("y", "labels", "y_test")),
}


class Images(NamedTuple):
    """Grey values in [0, 1] and labels."""

    train: np.ndarray  # (N, height, width)
    train_labels: np.ndarray  # (N,)
    test: np.ndarray  # (M, height, width)
    test_labels: np.ndarray  # (M,)

    @property
    def whole(self) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels of both parts, as clustering uses them."""
        return (
            np.concatenate([self.train, self.test]),
            np.concatenate([self.train_labels, self.test_labels]),
        )


def load(name: str = DIGITS, directory: Path | None = None) -> Images:
    """Images by name.

    Args:
        name: "digits", 1,797 images of 8 x 8 that scikit-learn brings, of which the last 297 are
            for tests; or "mnist" or "fashion-mnist".
        directory: with the files of these: IDX, plain or gzipped, or npz; without one they are
            fetched from OpenML.

    Raises ``DataError`` where the name is unknown, or the files are missing or damaged.
    """
    if name == DIGITS:
        if directory is not None:
            raise DataError("digits come with scikit-learn; leave the folder out, or name mnist")
        digits: Any = load_digits()
        x, y = digits.images.astype(np.float32) / 16, digits.target
        return Images(x[:-_TEST], y[:-_TEST], x[-_TEST:], y[-_TEST:])
    if name not in NAMES:
        raise DataError(f"unknown images '{name}'; choose from {', '.join((DIGITS, *NAMES))}")
    if directory is None:
        return _fetched(name)
    if not directory.is_dir():
        raise DataError(f"{directory}: is no folder; give that of the IDX or npz files")
    parts = [value for part in ("train", "test") for value in _part(directory, part)]
    if parts[0].shape[1:] != parts[2].shape[1:]:
        raise DataError(
            f"{directory}: images for training are of {parts[0].shape[1:]}, for tests of "
            f"{parts[2].shape[1:]}; they belong to different sets"
        )
    return Images(*parts)


def _fetched(name: str) -> Images:
    try:
        found: Any = fetch_openml(NAMES[name], version=1, as_frame=False)
    except Exception as error:  # of whatever the network does
        raise DataError(
            f"{name} could not be fetched from OpenML ({error}); give --data-dir with its files"
        ) from error
    x = found.data.reshape(-1, 28, 28).astype(np.float32) / 255
    y = found.target.astype(np.int64)
    return Images(x[:_TRAINED], y[:_TRAINED], x[_TRAINED:], y[_TRAINED:])


def _part(directory: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of the training or the test part, from whichever files there are."""
    images, labels = (_found(directory, (name, f"{name}.gz")) for name in _IDX[part])
    if images is not None and labels is not None:
        x, y, where = _idx(images), _idx(labels), images
    elif (archive := _found(directory, _NPZ[part])) is not None:
        x, y, where = *_npz(archive, part), archive
    else:
        wanted = " and ".join(f"{name}[.gz]" for name in _IDX[part])
        raise DataError(f"{directory}: has neither {wanted} nor {' or '.join(_NPZ[part])}")
    side = math.isqrt(x.shape[-1]) if x.ndim == 2 else 0
    if side and side**2 == x.shape[-1]:  # rows of pixels
        x = x.reshape(-1, side, side)
    if x.ndim != 3 or y.ndim != 1 or len(x) != len(y) or not len(x):
        raise DataError(
            f"{where}: images of shape {x.shape} and labels of shape {y.shape}; they must be "
            "(N, height, width) and (N,)"
        )
    scale = 255 if x.dtype == np.uint8 else 1
    return x.astype(np.float32) / scale, y.astype(np.int64)


def _found(directory: Path, names: tuple[str, ...]) -> Path | None:
    return next((directory / name for name in names if (directory / name).is_file()), None)


def _idx(path: Path) -> np.ndarray:
    """Bytes of an IDX file: two zeros, type 8, the number of dimensions, sizes, values."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: is damaged ({error}); fetch it again") from error
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise DataError(f"{path}: is no IDX file of bytes; it must begin with 00 00 08")
    head = 4 + 4 * content[3]
    sizes = struct.unpack(f">{content[3]}I", content[4:head]) if len(content) >= head else (-1,)
    if len(content) != head + int(np.prod(sizes)):
        raise DataError(f"{path}: is cut short or too long for what its head says; fetch it again")
    return np.frombuffer(content, np.uint8, offset=head).reshape(sizes)


def _npz(path: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = [next((n for n in known if n in archive), None) for known in _FIELDS[part]]
            if None in names:
                wanted = " and ".join("/".join(known) for known in _FIELDS[part])
                raise DataError(f"{path}: holds {', '.join(archive)}; it needs {wanted}")
            x, y = (archive[name] for name in names)
    except (OSError, ValueError, EOFError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: cannot be read ({error}); fetch it again") from error
    return x, y
