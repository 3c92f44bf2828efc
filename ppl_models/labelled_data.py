"""Rows of features with a class each: checked, and turned into numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ppl_models.base import Data
from ppl_models.data import as_tensor, same_length
from ppl_models.errors import DataError
from ppl_models.regression_data import units, vector
from ppl_models.table import table, varying

_BESIDE = ("classes", "centre", "spread", "categories")


def labelled(data: Any, kind: str) -> Data:
    """Checked ``x`` (N, D), ``y`` (N,), names of classes and features, and what the kind needs.

    That is ``centre`` and ``spread`` (D,) of the columns for "gaussian", the number of each
    column's ``categories`` for "categorical". See ``NaiveBayes.prepare``.
    """
    if not isinstance(data, Mapping | pd.DataFrame) or "y" not in data:
        what = ", ".join(map(str, data)) if isinstance(data, Mapping | pd.DataFrame) else "no names"
        raise DataError(f"y: missing; give a mapping or DataFrame with y, not one with {what}")
    y = data["y"]
    if isinstance(data, pd.DataFrame):
        rest: Any = data.drop(columns="y")
    else:
        rest = {name: value for name, value in data.items() if name != "y"}
    rest = (
        rest
        if isinstance(rest, pd.DataFrame)
        else {
            name: value for name, value in rest.items() if not (name in _BESIDE and value is None)
        }
    )
    x, features, given = table(rest, *_BESIDE)
    known = given.get("classes")
    if y is None:
        if known is None:
            raise DataError(
                "y: is None, and no classes are given; give the data of the fit, with "
                "new x and y None: {**fit.data, 'x': x, 'y': None}"
            )
        index, classes = None, [str(name) for name in known]
    else:
        index, classes = _classes(y, known)
        same_length(x=x, y=index)
        index = index.to(x.device)
    fields: Data = {"x": x, "y": index, "classes": classes, "features": features}
    if kind == "gaussian":
        if "centre" not in given or "spread" not in given:
            varying(x, features)
        centre, spread = units(x)
        fields["centre"] = torch.as_tensor(given.get("centre", centre)).to(x)
        fields["spread"] = torch.as_tensor(given.get("spread", spread)).to(x)
    elif kind == "bernoulli":
        _refuse(x, features, (x != 0) & (x != 1), "give 0 or 1")
    else:
        whole = _whole(x, features)
        counts = (whole.amax(0) + 1).tolist()
        categories = [int(c) for c in given.get("categories", counts)]
        if len(categories) != len(features):
            raise DataError(f"categories: {len(categories)} numbers for {len(features)} columns")
        fields |= {"x": _within(whole, features, categories), "categories": categories}
    return fields


def prepared_rows(x: Any, kind: str, known: int | list[int]) -> Tensor:
    """New rows (N, D), checked: ``known`` is how many columns, or the categories of each."""
    rows, features, _ = table(x)
    columns = known if isinstance(known, int) else len(known)
    if rows.shape[1] != columns:
        raise DataError(f"x: has {rows.shape[1]} columns; the fit has {columns}")
    if kind == "bernoulli":
        _refuse(rows, features, (rows != 0) & (rows != 1), "give 0 or 1")
    if isinstance(known, list):
        return _within(_whole(rows, features), features, known)
    return rows


def _classes(y: Any, known: Any) -> tuple[Tensor, list[str]]:
    """The index of each row's class (N,), and the names of the classes."""
    array = np.asarray(y.cpu() if isinstance(y, Tensor) else y)
    if array.dtype.kind in "OUS":
        missing = np.flatnonzero(pd.isna(array))
        if len(missing):
            raise DataError(f"y: row {missing[0]} is missing; drop the row: each needs its class")
        if all(isinstance(value, str) for value in array.ravel()) and array.ndim == 1:
            return _named(array, known)
    value = vector("y", as_tensor("y", array))
    largest = int(value.max()) if len(value) else 0
    count = len(known) if known is not None else largest + 1
    bad = (value < 0) | (value != value.round()) | (value >= count)
    if bool(bad.any()):
        row = int(bad.nonzero()[0, 0])
        raise DataError(
            f"y: row {row} is {float(value[row]):g}; classes are 0, 1, ..., "
            f"{max(count - 1, 1)}, or text; rows without a class are not supported: drop them"
        )
    index = value.long()
    if known is None:
        empty = (torch.bincount(index, minlength=count) == 0).nonzero()[:, 0].tolist()
        if empty:
            raise DataError(
                f"y: class {empty[0]} has no rows, though class {count - 1} has; number the "
                "classes 0, 1, ... without gaps, or give their names as text"
            )
        if count < 2:
            raise DataError("y: holds one class only; give rows of at least two")
    return index, [str(name) for name in (range(count) if known is None else known)]


def _named(y: np.ndarray, known: Any) -> tuple[Tensor, list[str]]:
    names = sorted(set(y.tolist())) if known is None else [str(name) for name in known]
    place = {name: index for index, name in enumerate(names)}
    for row, name in enumerate(y):
        if name not in place:
            raise DataError(f"y: row {row} is '{name}'; the classes are {', '.join(names)}")
    if len(names) < 2:
        raise DataError("y: holds one class only; give rows of at least two")
    return torch.tensor([place[name] for name in y]), names


def _whole(x: Tensor, features: list[str]) -> Tensor:
    _refuse(x, features, (x < 0) | (x != x.round()), "give categories as 0, 1, 2, ...")
    return x.long()


def _within(x: Tensor, features: list[str], categories: list[int]) -> Tensor:
    most = torch.tensor(categories, device=x.device)
    seen = f"was not among the {'{}'} categories of the fit; drop the row, or fit with categories="
    bad = x >= most
    if bool(bad.any()):
        row, column = bad.nonzero()[0].tolist()
        raise DataError(
            f"x: row {row} of column '{features[column]}' is {int(x[row, column])}, which "
            + seen.format(categories[column])
            + "[...] in the data, one number for each column"
        )
    return x


def _refuse(x: Tensor, features: list[str], bad: Tensor, remedy: str) -> None:
    if bool(bad.any()):
        row, column = bad.nonzero()[0].tolist()
        raise DataError(
            f"x: row {row} of column '{features[column]}' is {float(x[row, column]):g}; {remedy}"
        )
