"""Is the posterior of a logistic regression proper under flat coefficients?

The log-likelihood is concave; with the coefficients v of columns F flat, the posterior is proper
exactly when it falls along every ray, that is when no v != 0 has

    s_i F_i . v >= 0 for every row i,    s_i = +1 if all trials of row i succeed, -1 if none does,

and F_i . v = 0 for every row that has both. Such a v separates the outcomes: completely where all
rows have > 0, else quasi-completely (Albert & Anderson 1984, Biometrika 71:1-10). Coefficients with
a log-concave prior that falls in every direction do not enter: along a ray that moves them, the
posterior falls anyway.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

from ppl_models.errors import DataError

_RANK = 1e-9  # of a column's own length: less than that beside the columns before it is rounding

Array = NDArray[np.float64]


def check_proper(columns: Array, names: list[str], y: Array, trials: Array) -> None:
    """Raise ``DataError`` where flat coefficients of ``columns`` have an improper posterior.

    ``columns`` (N, K) have ``names``; ``y`` (N,) counts successes out of ``trials`` (N,) >= 1. The
    error names the columns that depend on those before them, or reports a separation, which is
    found by linear programming (Konis 2007, DPhil thesis, University of Oxford).
    """
    basis, triangle = np.linalg.qr(columns / np.maximum(np.linalg.norm(columns, axis=0), 1e-300))
    lengths = np.zeros(len(names))
    lengths[: len(triangle)] = np.abs(np.diag(triangle))
    dependent = [name for name, length in zip(names, lengths, strict=True) if length < _RANK]
    if dependent:
        raise DataError(
            f"x: under a flat prior column {', '.join(dependent)} cannot be told from the columns "
            f"before it ({', '.join(n for n in names if n not in dependent) or 'it is zero'}); "
            "drop it, or give a proper prior such as NormalPrior()"
        )
    if separation(basis, y, trials):
        raise DataError(
            f"y: a linear combination of {', '.join(names)} separates the outcomes perfectly, so "
            "that a flat prior leaves the posterior improper and maximum likelihood infinite; "
            "give a proper prior such as NormalPrior()"
        )


def separation(basis: Array, y: Array, trials: Array) -> bool:
    """Whether some combination of the orthonormal columns ``basis`` (N, K) separates the outcomes.

    Maximises sum_i s_i F_i . v over the v in the cone with |v_k| <= 1, F = basis * sqrt(N). The
    maximum is 0 if there is no separation; else it is at least sqrt(N), as the margins are then
    >= 0 with sum of squares N |v|^2 >= N: no tolerance to tune.
    """
    rows = len(basis)
    margin = np.sqrt(rows) * basis * np.where(y > 0, 1.0, -1.0)[:, None]
    mixed = (y > 0) & (y < trials)
    pure = ~mixed
    solution = linprog(
        -margin[pure].sum(0),
        A_ub=-margin[pure] if pure.any() else None,
        b_ub=np.zeros(int(pure.sum())) if pure.any() else None,
        A_eq=margin[mixed] if mixed.any() else None,
        b_eq=np.zeros(int(mixed.sum())) if mixed.any() else None,
        bounds=(-1, 1),
    )
    if not solution.success:
        raise RuntimeError(f"the search for a separation failed: {solution.message}")
    return bool(-solution.fun > 0.5 * np.sqrt(rows))
