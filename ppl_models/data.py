"""Data as a user brings it (arrays, tensors, DataFrames, mappings) turned into named fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ppl_models.errors import DataError


def as_fields(data: Any) -> dict[str, Any]:
    """Name the parts of ``data``: a mapping's items, a DataFrame's columns, or nothing for None.

    Raises ``DataError`` where there are no names to take.
    """
    if data is None:
        return {}
    if isinstance(data, pd.DataFrame):
        fields = {str(name): column for name, column in data.items()}
    elif isinstance(data, Mapping):
        fields = {str(name): value for name, value in data.items()}
    else:
        raise DataError(
            f"data is a {type(data).__name__}; give a mapping such as "
            '{"x": x, "y": y} or a DataFrame, so that each part has a name'
        )
    return {name: as_tensor(name, value) for name, value in fields.items()}


def as_tensor(name: str, value: Any) -> Any:
    """A tensor for arrays, Series and lists of numbers; any other value as it is.

    Real numbers become float64 (the dtype of the fit is set later), integers and bools keep theirs.
    Raises ``DataError`` for text, for objects, and for ragged lists.
    """
    if isinstance(value, Tensor):
        return value
    if isinstance(value, pd.DataFrame):
        # by column: to_numpy makes objects of columns of different types, such as bool and float
        columns = [as_tensor(f"{name}.{label}", column) for label, column in value.items()]
        return torch.stack(columns, -1) if columns else torch.empty(value.shape)
    if isinstance(value, pd.Series):
        if value.isna().any():
            row = value.index[value.isna().to_numpy()][0]
            raise DataError(f"{name}: row {row} is missing; drop the row or fill in the value")
        value = value.to_numpy()
    if isinstance(value, list | tuple):
        try:
            value = np.asarray(value)
        except ValueError as error:
            raise DataError(f"{name}: rows differ in length; give a rectangular array") from error
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biuf":
            raise DataError(
                f"{name}: holds {value.dtype} values, not numbers; encode or drop this column"
            )
        # a column of a DataFrame is read-only, which torch warns of: copied only then
        return torch.as_tensor(np.require(value, requirements=["C", "W"]))
    return value


def finite(name: str, value: Tensor) -> Tensor:
    """``value`` if all its entries are finite; else ``DataError`` naming the first row at fault."""
    bad = ~torch.isfinite(value)
    if bool(bad.any()):
        row = int(bad.reshape(len(value), -1).any(-1).nonzero()[0, 0])
        what = "missing (NaN)" if bool(torch.isnan(value[row]).any()) else "infinite"
        raise DataError(f"{name}: row {row} is {what}; drop the row or fill in the value")
    return value


def same_length(**fields: Tensor) -> int:
    """The common length of the fields; ``DataError`` where they differ or are empty."""
    lengths = {name: len(value) for name, value in fields.items()}
    if len(set(lengths.values())) > 1:
        text = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise DataError(f"the fields differ in length: {text} rows; give one row per observation")
    length = next(iter(lengths.values()))
    if length == 0:
        raise DataError("the data are empty; give at least one row")
    return length
