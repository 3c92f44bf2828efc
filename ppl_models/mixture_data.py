"""Rows of numbers for mixtures: checked, and with the location and spread that priors go by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_models.base import Data
from ppl_models.conjugate_normal import Structure
from ppl_models.data import as_tensor
from ppl_models.errors import DataError
from ppl_models.regression_data import vector
from ppl_models.table import table, varying

_DEPENDENT = 1e-10
"""The share of a column's variance that the columns before it must leave."""


def mixture_rows(data: Any, components: int, structure: Structure) -> Data:
    """``x`` (N, D), ``location`` (D,), ``spread`` and ``features``, checked.

    ``data`` is an array, a DataFrame or a mapping with ``x`` or a field per column. A mapping may
    also give ``location`` and ``spread``, which are the mean and the covariance of x otherwise;
    then x may be of any length, or None with the number of ``rows`` to simulate.

    Raises ``DataError`` for missing, infinite or non-numeric values, fewer rows or distinct rows
    than components, constant columns, and, where covariances are matrices, dependent columns.
    """
    if isinstance(data, Mapping) and "x" in data and data["x"] is None:
        return _simulated(data, structure)
    x, features, given = table(data, "location", "spread", "rows")
    if given.keys() >= {"location", "spread"}:
        beside = _prior(given, x, structure)
    else:
        _check(x, features, components)
        own = dict(zip(("location", "spread"), moments_of(x, structure), strict=True))
        beside = {**own, **_prior(given, x, structure)}
    _independent(beside["spread"], features, structure)
    return {"x": x, **beside, "features": features}


def no_mode(concentration: float) -> str | None:
    """Why the joint density has no mode in the weights, if the prior's concentration is too low."""
    if concentration >= 1:
        return None
    return (
        f"with concentration={concentration:g} the joint density is infinite where a weight is "
        "zero; give 1 or more, or use EM(objective='likelihood')"
    )


def moments_of(x: Tensor, structure: Structure) -> tuple[Tensor, Tensor]:
    """The mean of x (N, D), and its covariance in the structure's shape.

    That is a matrix, the columns' variances, or the mean of these.
    """
    location = x.mean(0)
    centred = x - location
    if structure.matrix:
        spread = centred.mT @ centred / len(x)
    else:
        spread = centred.square().mean(0)
        spread = spread.mean() if structure.shared else spread
    return location, spread


def _prior(given: Mapping[str, Any], like: Tensor, structure: Structure) -> Data:
    shapes = {"location": 1, "spread": 2 if structure.matrix else 0 if structure.shared else 1}
    found: Data = {}
    for name, dims in shapes.items():
        if name not in given:
            continue
        value = torch.as_tensor(as_tensor(name, given[name])).to(like)
        expected = (like.shape[1],) * dims
        if value.shape != expected:
            raise DataError(
                f"{name}: has shape {tuple(value.shape)}; give {expected or 'one number'}"
            )
        if not bool(torch.isfinite(value).all()):
            raise DataError(f"{name}: is not finite; give the data's own, or leave it out")
        found[name] = value
    return found


def _simulated(given: Mapping[str, Any], structure: Structure) -> Data:
    missing = [name for name in ("location", "spread", "rows") if given.get(name) is None]
    if missing:
        raise DataError(
            f"x: is None and {', '.join(missing)} not given; give the data of the fit with x None "
            "and rows, as in fit.predict({**fit.data, 'x': None, 'rows': 100})"
        )
    rows = given["rows"]
    if isinstance(rows, bool) or not isinstance(rows, int | np.integer) or rows < 1:
        raise DataError(f"rows={rows!r}: give a positive whole number")
    location = vector("location", as_tensor("location", given["location"]))
    beside = _prior(given, location[None], structure)
    return {"x": None, **beside, "rows": int(rows), "features": given.get("features")}


def _check(x: Tensor, features: list[str], components: int) -> None:
    n = len(x)
    if n < components:
        raise DataError(
            f"x: has {n} row{'s' * (n != 1)} for {components} components; give at least as many "
            "rows, or fewer components"
        )
    varying(x, features)
    # a few rows are enough to tell, as a rule
    size = min(n, 100 * components)
    while (distinct := len(torch.unique(x[:size], dim=0))) < components:
        if size == n:
            raise DataError(
                f"x: has only {distinct} distinct rows for {components} components; give fewer "
                "components"
            )
        size = min(n, 8 * size)


def _independent(spread: Tensor, features: list[str], structure: Structure) -> None:
    if not structure.matrix:
        if not bool((spread > 0).all()):
            raise DataError("spread: is not positive; give variances, or leave it out")
        return
    sd = spread.diagonal().clamp(min=torch.finfo(spread.dtype).tiny).sqrt()
    correlation = (spread / sd / sd[:, None]).double().cpu()
    for size in range(1, len(sd) + 1):
        tril, info = torch.linalg.cholesky_ex(correlation[:size, :size])
        if info or float(tril[-1, -1]) ** 2 < _DEPENDENT:
            name = features[size - 1]
            raise DataError(
                f"x: column {name} is a linear combination of the columns before it; drop it, give "
                f"more rows than columns, or use covariance='diagonal'"
            )
