"""Whether two sets of independent rows come from one law, and how far apart they are.

- ``sliced_wasserstein``: a distance in the units of the rows, for any dimension;
- ``mmd``: the maximum mean discrepancy, with a p-value by permutation;
- ``classifier_test``: how well a classifier tells the sets apart, 1/2 where it cannot;
- ``mode_coverage``: how many of the rows are near known modes, and how evenly.

Draws of a Markov chain are to be thinned first: dependent rows make every p-value too small.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import stats
from scipy.spatial.distance import cdist, pdist

from ppl_models.errors import EngineError

Rows = np.ndarray | torch.Tensor

_BLOCK = 100  # permutations at a time
_SHARE = 0.1  # of an equal share of the rows, which makes a mode covered


class Discrepancy(NamedTuple):
    """The maximum mean discrepancy of two sets of rows.

    Args:
        squared: MMD^2 without bias: around zero, and as often below, where the laws are one.
        p_value: the chance of so large a value if they are.
        length: of the kernel.
    """

    squared: float
    p_value: float
    length: float


class Classified(NamedTuple):
    """How well a classifier tells two sets of rows apart, each row judged by others.

    Args:
        accuracy: the share it tells rightly; 1/2 where the laws are one.
        error: standard error of ``accuracy``, rather too large than too small.
        p_value: the chance of so high an accuracy if they are.
    """

    accuracy: float
    error: float
    p_value: float


class Modes(NamedTuple):
    """Where rows are among M modes.

    Args:
        precision: the share of rows near a mode.
        recall: the share of modes near which are at least a tenth of the rows of an equal share.
        covered: how many modes those are.
        weights: the share of each mode among the rows that are near one, (M,).
    """

    precision: float
    recall: float
    covered: int
    weights: np.ndarray


def sliced_wasserstein(x: Rows, y: Rows, *, projections: int = 128, seed: int = 0) -> float:
    """The sliced 2-Wasserstein distance between two sets of rows.

    SW^2 = E_u W_2^2(u.x, u.y), u uniform on the unit sphere; in one dimension W_2 matches sorted
    values (Bonneel, Rabin, Peyre & Pfister 2015, J. Math. Imaging Vis. 51:22-45). Directions are
    rows of random orthogonal matrices, which lessens their variance (Rowland et al. 2019, AISTATS).
    Of normals with equal covariances and means d apart it is |d| / sqrt(D); of n exact draws of one
    law, about 1 / sqrt(n) sds.

    Args:
        x, y: rows (n, D) and (m, D). The larger set is thinned evenly to the size of the smaller.
        projections: how many directions, at least; whole orthogonal bases are taken up to D.
        seed: of the directions.

    Raises:
        EngineError: the shapes do not fit, or there are no rows.

    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(1).normal(size=(500, 4))
        >>> round(sliced_wasserstein(x, x + np.array([3.0, 0.0, 0.0, 0.0])), 6)
        1.5
    """
    x, y = _pair(x, y, 1)
    number = min(len(x), len(y))
    x, y = x[evenly(len(x), number)], y[evenly(len(y), number)]
    total, count = 0.0, 0
    for basis in _bases(x.shape[1], projections, seed):
        gap = np.sort(x @ basis, axis=0) - np.sort(y @ basis, axis=0)
        total += float(np.square(gap).mean(0).sum())
        count += basis.shape[1]
    return float(np.sqrt(total / count))


def mmd(
    x: Rows,
    y: Rows,
    *,
    length: float | None = None,
    permutations: int = 500,
    rows: int = 2000,
    seed: int = 0,
) -> Discrepancy:
    """The maximum mean discrepancy between two sets of rows, with its test.

    With the Gaussian kernel k(a, b) = exp(-|a - b|^2 / (2 l^2)), MMD^2 = E k(x, x') + E k(y, y') -
    2 E k(x, y), estimated without bias from pairs of different rows; its law where both sets come
    from one is that of the same figure after permutations of the rows (Gretton, Borgwardt, Rasch,
    Schoelkopf & Smola 2012, JMLR 13:723-773).

    Args:
        x, y: rows (n, D) and (m, D), independent.
        length: l; by default the median distance between two of all rows.
        permutations: of the p-value, which is at least 1 / (1 + permutations); 0 for none (NaN).
        rows: at most so many of each set are used, evenly thinned: time grows with their square.
        seed: of the permutations.

    Raises:
        EngineError: the shapes do not fit, or there are fewer than two rows in a set.

    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(1).normal(size=(200, 2))
        >>> mmd(x[:100], x[100:]).p_value > 0.01, mmd(x[:100], x[100:] + 1).p_value < 0.01
        (True, True)
    """
    x, y = _pair(x, y, 2)
    x, y = (z[evenly(len(z), min(rows, len(z)))] for z in (x, y))
    both = np.concatenate([x, y])
    if length is None:
        length = float(np.median(pdist(both)))
    if not length > 0:
        raise EngineError(f"length={length!r}: most rows are equal; give a positive length")
    kernel = np.exp(-0.5 * cdist(both, both, "sqeuclidean") / length**2)
    np.fill_diagonal(kernel, 0.0)
    first = np.arange(len(both))[:, None] < len(x)
    squared = float(_squared(kernel, first)[0])
    if permutations < 1:
        return Discrepancy(squared, float("nan"), length)
    rng, beyond = np.random.default_rng(seed), 0
    for start in range(0, permutations, _BLOCK):
        many = np.repeat(first, min(_BLOCK, permutations - start), axis=1)
        beyond += int((_squared(kernel, rng.permuted(many, axis=0)) >= squared).sum())
    return Discrepancy(squared, (1 + beyond) / (1 + permutations), length)


def classifier_test(
    x: Rows, y: Rows, *, classifier: Any = None, folds: int = 5, seed: int = 0
) -> Classified:
    """How well a classifier tells two sets of rows apart, by cross-validation.

    Lopez-Paz & Oquab (2017), "Revisiting classifier two-sample tests". The k parts are told by
    classifiers that share most of what they have learnt, so that the accuracies of parts are not
    independent; their common variance is multiplied by 1 / k + 1 / (k - 1) and not 1 / k (Nadeau &
    Bengio 2003, Mach. Learn. 52:239-281). An accuracy near 1/2 says no more than that this
    classifier, with so many rows, finds no difference.

    Args:
        x, y: rows (n, D) and (m, D), independent. The larger set is thinned evenly to the size of
            the smaller.
        classifier: of scikit-learn; boosted trees by default.
        folds: parts, each of which is told by a classifier that has learnt from the others.
        seed: of the parts, and of the default classifier.

    Raises:
        EngineError: the shapes do not fit, or there are fewer rows in a set than folds.

    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(1).normal(size=(400, 2))
        >>> classifier_test(x[:200], x[200:] + 3).accuracy > 0.9
        True
    """
    if folds < 2:
        raise EngineError(f"folds={folds!r}: give a whole number of at least 2")
    x, y = _pair(x, y, folds)
    number = min(len(x), len(y))
    both = np.concatenate([z[evenly(len(z), number)] for z in (x, y)])
    label = np.repeat([0, 1], number)
    if classifier is None:
        from sklearn.ensemble import HistGradientBoostingClassifier

        classifier = HistGradientBoostingClassifier(random_state=seed)
    from sklearn.base import clone
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    parts = StratifiedKFold(folds, shuffle=True, random_state=seed)
    told = np.asarray(cross_val_predict(clone(classifier), both, label, cv=parts))
    accuracy = float(np.mean(told == label))

    def error(share: float) -> float:
        return float(np.sqrt(share * (1 - share) / (2 * number) * (1 + folds / (folds - 1))))

    p_value = float(stats.norm.sf((accuracy - 0.5) / error(0.5)))
    return Classified(accuracy, error(accuracy), p_value)


def mode_coverage(x: Rows, centres: Rows, radius: float) -> Modes:
    """How many rows are near modes whose centres are known, and how evenly.

    Args:
        x: rows (n, D).
        centres: (M, D).
        radius: how far from the nearest centre a row near its mode may be.

    Raises:
        EngineError: the shapes do not fit, or the radius is not positive.

    Example:
        >>> import numpy as np
        >>> mode_coverage(np.array([[0.0], [0.1], [2.0], [9.0]]), np.array([[0.0], [2.0]]), 0.5)[:3]
        (0.75, 1.0, 2)
    """
    x, centres = _pair(x, centres, 1)
    if not radius > 0:
        raise EngineError(f"radius={radius!r}: give a positive number")
    distance = cdist(x, centres)
    near = distance.min(1) <= radius
    counts = np.bincount(distance.argmin(1)[near], minlength=len(centres))
    covered = int((counts >= _SHARE * len(x) / len(centres)).sum())
    weights = counts / max(int(near.sum()), 1)
    return Modes(float(near.mean()), covered / len(centres), covered, weights)


def evenly(size: int, number: int) -> np.ndarray:
    """The places of ``number`` of ``size`` things, evenly spread."""
    return np.linspace(0, size - 1, number).round().astype(int)


def _squared(kernel: np.ndarray, first: np.ndarray) -> np.ndarray:
    """MMD^2 for each division of the rows: kernel (N, N), zero on its diagonal, (N, P) -> (P,)."""
    x = first.astype(float)
    sums = kernel @ x
    n, m = x[:, 0].sum(), len(x) - x[:, 0].sum()
    within = (x * sums).sum(0)
    across = sums.sum(0) - within
    other = kernel.sum() - within - 2 * across
    return within / (n * (n - 1)) + other / (m * (m - 1)) - 2 * across / (n * m)


def _bases(dim: int, projections: int, seed: int) -> list[np.ndarray]:
    """Orthogonal directions, (D, k) at a time; in one dimension there is but one."""
    generator = np.random.default_rng(seed)
    width = min(dim, projections)
    number = 1 if dim == 1 else -(-projections // width)
    return [np.linalg.qr(generator.normal(size=(dim, width)))[0] for _ in range(number)]


def _pair(x: Rows, y: Rows, least: int) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays. Raises ``EngineError``."""
    x, y = (
        z.detach().cpu().numpy() if isinstance(z, torch.Tensor) else np.asarray(z) for z in (x, y)
    )
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or 0 in (*x.shape, *y.shape):
        raise EngineError(f"draws have shapes {x.shape} and {y.shape}; give (n, D) and (m, D)")
    if min(len(x), len(y)) < least:
        raise EngineError(f"{len(x)} and {len(y)} rows; give at least {least} of each")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise EngineError("some rows are missing (NaN) or infinite; leave them out")
    return x.astype(float), y.astype(float)
