"""Distances between sets of rows against their closed forms, and tests of the level they claim."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from inference import classifier_test, mmd, mode_coverage, sliced_wasserstein, two_samples
from ppl_models import EngineError
from tests.statistics import LEVEL
from tests.test_sabotage import Sabotage

LENGTH = 1.3


def normals(count, dim, seed, shift=0.0, sd=1.0):
    return shift + sd * np.random.default_rng(seed).normal(size=(count, dim))


def gaussian_mmd(shift, sd):
    """MMD^2 of N(0, I) and N(shift, sd^2 I) under the Gaussian kernel."""

    def expected(gap, variance):  # E k(a, b), a - b ~ N(gap, variance I)
        total = LENGTH**2 + variance
        return (LENGTH**2 / total) ** (len(shift) / 2) * math.exp(-0.5 * gap @ gap / total)

    zero = np.zeros_like(shift)
    return expected(zero, 2) + expected(zero, 2 * sd**2) - 2 * expected(shift, 1 + sd**2)


@pytest.mark.parametrize(("shift", "sd"), [(0.0, 1.0), (0.7, 1.0), (0.3, 1.5)])
def test_mmd_has_its_closed_form_without_bias(shift, sd):
    """Sets of nine and twelve rows, for which a bias of order 1 / n would be seen."""
    values = [
        mmd(
            normals(9, 2, seed=(1, i)),
            normals(12, 2, seed=(2, i), shift=shift, sd=sd),
            length=LENGTH,
            permutations=0,
        ).squared
        for i in range(4000)
    ]
    error = np.std(values) / math.sqrt(len(values))
    assert error < 0.005
    assert abs(np.mean(values) - gaussian_mmd(np.full(2, shift), sd)) < 4.5 * error


def test_a_biased_mmd_is_noticed(monkeypatch):
    Sabotage(two_samples, "mmd", "np.fill_diagonal(kernel, 0.0)", "pass").commit(monkeypatch)
    monkeypatch.setitem(globals(), "mmd", two_samples.mmd)
    with pytest.raises(AssertionError):
        test_mmd_has_its_closed_form_without_bias(0.0, 1.0)


def test_mmd_is_that_of_the_definition():
    x, y = normals(7, 3, seed=3), normals(5, 3, seed=4, shift=0.5)

    def average(a, b, same):
        pairs = [(u, v) for i, u in enumerate(a) for j, v in enumerate(b) if not (same and i == j)]
        return np.mean([math.exp(-0.5 * ((u - v) ** 2).sum() / LENGTH**2) for u, v in pairs])

    exact = average(x, x, True) + average(y, y, True) - 2 * average(x, y, False)
    assert mmd(x, y, length=LENGTH).squared == pytest.approx(exact, rel=1e-12)
    distances = [np.linalg.norm(a - b) for i, a in enumerate([*x, *y]) for b in [*x, *y][:i]]
    assert mmd(x, y).length == pytest.approx(np.median(distances))


def test_p_values_of_mmd_are_uniform_where_laws_are_one_and_small_where_not():
    p = [
        mmd(normals(20, 2, seed=(5, i)), normals(30, 2, seed=(6, i)), permutations=99, seed=i)[1]
        for i in range(400)
    ]
    # 1/100, ..., 100/100, equally likely
    assert stats.chisquare(np.histogram(p, np.linspace(0, 1, 11) + 0.005)[0]).pvalue > LEVEL
    wide = mmd(normals(300, 2, seed=7), normals(300, 2, seed=8, sd=1.5), permutations=999)
    assert wide.p_value == 0.001


@pytest.mark.parametrize("shift", [0.5, 2.0])
def test_a_linear_classifier_has_the_accuracy_of_the_best(shift):
    x, y = normals(4000, 2, seed=9), normals(4000, 2, seed=10)
    y[:, 0] += shift
    found = classifier_test(x, y, classifier=LinearDiscriminantAnalysis())
    assert abs(found.accuracy - stats.norm.cdf(shift / 2)) < 4.5 * found.error
    assert found.p_value < 1e-9


def null_accuracies():
    """Standardised accuracies where the laws are one."""
    linear = LinearDiscriminantAnalysis()
    found = [
        classifier_test(
            normals(60, 3, seed=(11, i)), normals(60, 3, seed=(12, i)), classifier=linear
        )
        for i in range(300)
    ]
    return np.array([(f.accuracy - 0.5) / f.error for f in found])


def test_accuracies_of_one_law_are_a_half_with_the_error_told():
    z = null_accuracies()
    assert abs(z.mean()) < 4.5 * z.std() / math.sqrt(len(z))
    # the error is meant to be too large rather than too small, but not by half
    assert 0.5 < z.var() < 1 + 4.5 * math.sqrt(2 / len(z))


def test_errors_of_independent_rows_are_noticed(monkeypatch):
    factor = " * (1 + folds / (folds - 1))"
    Sabotage(two_samples, "classifier_test", factor, "").commit(monkeypatch)
    monkeypatch.setitem(globals(), "classifier_test", two_samples.classifier_test)
    with pytest.raises(AssertionError):
        test_accuracies_of_one_law_are_a_half_with_the_error_told()


def test_a_classifier_that_has_seen_its_rows_is_noticed(monkeypatch):
    monkeypatch.setattr(
        "sklearn.model_selection.cross_val_predict",
        lambda classifier, x, y, cv: classifier.fit(x, y).predict(x),
    )
    with pytest.raises(AssertionError):
        test_accuracies_of_one_law_are_a_half_with_the_error_told()


def test_the_usual_classifier_sees_what_is_not_linear():
    found = classifier_test(normals(500, 2, seed=13), normals(500, 2, seed=14, sd=2.0))
    assert found.accuracy > 0.65


def test_sliced_wasserstein_is_that_of_pot():
    import ot

    x, y = normals(200, 5, seed=15), normals(200, 5, seed=16, shift=0.3, sd=1.4)
    bases = np.concatenate(two_samples._bases(5, 40, seed=2), axis=1)
    peer = ot.sliced_wasserstein_distance(x, y, projections=bases)
    assert sliced_wasserstein(x, y, projections=40, seed=2) == pytest.approx(float(peer), rel=1e-9)


def test_sliced_wasserstein_of_scaled_normals_has_its_closed_form():
    """W_2 of N(0, s^2) and N(0, 1) is |s - 1| in every direction; quantiles stand for draws."""
    at = stats.norm.ppf((np.arange(4000) + 0.5) / 4000)[:, None]
    exact = 0.7 * math.sqrt(float(np.mean(at**2)))
    assert sliced_wasserstein(at, 1.7 * at) == pytest.approx(exact, rel=1e-12)


def test_modes_are_counted():
    centres = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0], [4.0, 4.0]])
    counts = [60, 30, 9, 1]
    rows = np.concatenate(
        [c + normals(n, 2, seed=n, sd=0.1) for c, n in zip(centres, counts, strict=True)]
    )
    found = mode_coverage(np.concatenate([rows, np.full((25, 2), 20.0)]), centres, 1.0)
    assert found.precision == 100 / 125
    np.testing.assert_allclose(found.weights, np.array(counts) / 100)
    assert (found.covered, found.recall) == (3, 0.75)  # of 125 rows a tenth of a quarter is 3.1


def test_what_cannot_be_compared_is_refused():
    x = np.zeros((5, 2))
    with pytest.raises(EngineError, match=r"\(5, 2\) and \(5, 3\)"):
        mmd(x, np.zeros((5, 3)))
    with pytest.raises(EngineError, match="most rows are equal"):
        mmd(x, x)
    with pytest.raises(EngineError, match="NaN"):
        sliced_wasserstein(x, np.full((5, 2), np.nan))
    with pytest.raises(EngineError, match="at least 10 of each"):
        classifier_test(x, x, folds=10)
    with pytest.raises(EngineError, match="radius=0"):
        mode_coverage(x, x, 0.0)
