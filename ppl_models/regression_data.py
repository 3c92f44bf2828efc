"""Covariates and outcomes of a regression, checked and named."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ppl_models.base import Data
from ppl_models.data import as_fields, finite, same_length
from ppl_models.errors import DataError


def regression(data: Any) -> Data:
    """Checked x (N, P), y (N,), trials (N,) if any, centre and spread (P,), and features' names.

    ``data`` is a mapping or a DataFrame with ``y``, which may be None, optionally ``trials``, and
    either ``x`` (N, P) or (N,), or one field or column per feature. Beside x, ``features`` may name
    its columns, and ``centre`` and ``spread`` replace what ``units`` makes of them.

    Raises ``DataError`` for missing, infinite, non-numeric or empty data, fields of different
    lengths, and outcomes that are not 0 or 1 (or 0 to trials).
    """
    features = None
    if isinstance(data, Mapping) and "x" in data and "features" in data:
        features = [str(name) for name in data["features"]]
        data = {name: value for name, value in data.items() if name != "features"}
    fields = as_fields(data)
    if "y" not in fields:
        raise DataError(f"y: missing; the data have {', '.join(fields) or 'no fields'}")
    y, trials = fields.pop("y"), fields.pop("trials", None)
    scaled = "x" in fields and isinstance(data, Mapping)  # a DataFrame has columns of data only
    given = {name: fields.pop(name) for name in ("centre", "spread") if scaled and name in fields}
    if "x" in fields:
        if len(fields) > 1:
            unknown = ", ".join(fields.keys() - {"x"})
            raise DataError(f"{unknown}: unknown beside x; put all the features in x")
        x = matrix("x", fields["x"])
        if features is None and isinstance(data["x"], pd.DataFrame):
            features = [str(name) for name in data["x"].columns]
        elif features is None:
            features = [f"x{column}" for column in range(x.shape[1])]
        if len(features) != x.shape[1]:
            raise DataError(f"features: {len(features)} names for {x.shape[1]} columns; name each")
    else:
        features = list(fields)
        x = columns({name: vector(name, value) for name, value in fields.items()})
    return {"x": x, **outcomes(x, y, trials), **standard(x, given), "features": features}


def columns(vectors: dict[str, Tensor]) -> Tensor:
    """The covariates x (N, P) of vectors (N,); ``DataError`` for none, or different lengths."""
    if not vectors:
        raise DataError('x: missing; give "x", or one field or column per feature')
    same_length(**vectors)
    return torch.stack(list(vectors.values()), -1)


def standard(x: Tensor, given: Data) -> Data:
    """``centre`` and ``spread`` (P,): as given, else those of x (N, P)."""
    own: Data = dict(zip(("centre", "spread"), units(x), strict=True))
    for name in own.keys() & given.keys():
        value = vector(name, given[name]).to(x)
        if value.shape != own[name].shape:
            raise DataError(f"{name}: has {len(value)} values for {x.shape[1]} columns; give each")
        own[name] = value
    return own


def units(x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the standard deviation (ddof 0; 1 in a constant column) of the columns of x.

    ``x`` is (N, P); both are (P,): the ``centre`` and ``spread`` that priors of coefficients use.
    """
    constant = (x == x[:1]).all(0)
    return x.mean(0), torch.where(constant, torch.ones_like(x[0]), x.std(0, correction=0))


def vector(name: str, value: Any) -> Tensor:
    """A finite real tensor (N,), else ``DataError``: integers and bools become float64."""
    return _real(name, value, (1,))


def matrix(name: str, value: Any) -> Tensor:
    """A finite real tensor (N, P) with P >= 1 from (N, P) or (N,), else ``DataError``."""
    value = _real(name, value, (1, 2))
    value = value if value.dim() == 2 else value[:, None]
    if value.shape[1] == 0:
        raise DataError(f"{name}: has no columns; give at least one feature")
    return value


def _real(name: str, value: Any, dims: tuple[int, ...]) -> Tensor:
    if not isinstance(value, Tensor) or value.is_complex():
        raise DataError(f"{name}: is a {type(value).__name__}; give an array of real numbers")
    if value.dim() not in dims:
        raise DataError(f"{name}: has shape {tuple(value.shape)}; give one row per observation")
    return finite(name, value if value.is_floating_point() else value.double())


def outcomes(x: Tensor, y: Any, trials: Any, name: str = "y") -> Data:
    """``{"y": y}`` or ``{"y": y, "trials": trials}``, in the dtype and on the device of x (N, P).

    ``trials`` may be one number for all rows, and ``y`` None. Raises ``DataError`` where y, which
    the user calls ``name``, is not 0 or 1 (or 0 to trials), or trials are not 1, 2, ...
    """
    lengths = {"x": x}
    checked: Data = {"y": y}
    if y is not None:
        checked["y"] = lengths[name] = vector(name, y).to(x)
    count = torch.ones_like(x[:, 0])
    if trials is not None:
        common = isinstance(trials, Integral)
        count = int(trials) * count if common else vector("trials", trials).to(x)
        checked["trials"] = lengths["trials"] = count
    same_length(**lengths)
    remedy = "give whole numbers of at least 1, and drop rows without trials"
    _refuse("trials", count, (count < 1) | (count != count.round()), remedy)
    if y is not None:
        y = checked["y"]
        span = "0 or 1 unless trials are given" if trials is None else "a whole number up to trials"
        _refuse(name, y, (y < 0) | (y > count) | (y != y.round()), f"an outcome is {span}")
    return checked


def _refuse(name: str, value: Tensor, bad: Tensor, remedy: str) -> None:
    if bool(bad.any()):
        row = int(bad.nonzero()[0, 0])
        raise DataError(f"{name}: row {row} is {float(value[row]):g}; {remedy}")
