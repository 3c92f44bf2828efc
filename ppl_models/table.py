"""Tables of real numbers, one row per observation, checked and named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ppl_models.data import as_tensor
from ppl_models.errors import DataError
from ppl_models.regression_data import columns, matrix, vector


def table(data: Any, *beside: str) -> tuple[Tensor, list[str], dict[str, Any]]:
    """A finite real table x (N, D), the names of its columns, and what is given beside x.

    ``data`` is an array or DataFrame, a mapping with ``x`` and optionally ``features`` (the names)
    and the fields named ``beside``, or a mapping of one field per column.

    Raises ``DataError`` for missing, infinite, non-numeric or empty data and for unknown fields.
    """
    given: dict[str, Any] = {}
    names = None
    if isinstance(data, Mapping) and "x" in data:
        given = {name: value for name, value in data.items() if name in beside}
        unknown = data.keys() - {"x", "features", *beside}
        if unknown:
            raise DataError(f"{', '.join(sorted(unknown))}: unknown beside x; put all columns in x")
        names, data = data.get("features"), data["x"]
    if isinstance(data, Mapping) and not isinstance(data, pd.DataFrame):
        fields = {str(name): as_tensor(str(name), value) for name, value in data.items()}
        names = list(fields)
        x = columns({name: vector(name, value) for name, value in fields.items()})
    else:
        if isinstance(data, pd.DataFrame) and names is None:
            names = [str(name) for name in data.columns]
        x = matrix("x", as_tensor("x", data))
    if not len(x):
        raise DataError("x: is empty; give at least one row")
    names = [f"x{d}" for d in range(x.shape[1])] if names is None else [str(n) for n in names]
    if len(names) != x.shape[1]:
        raise DataError(f"features: {len(names)} names for {x.shape[1]} columns; name each")
    return x, names, given


def varying(x: Tensor, features: list[str]) -> None:
    """Refuse constant columns of x (N, D): ``DataError`` naming the first."""
    constant = (x == x[:1]).all(0)
    if bool(constant.any()):
        name = features[int(constant.nonzero()[0, 0])]
        raise DataError(
            f"x: the column '{name}' is constant, which no scale can be taken from; drop it"
        )


def common_scale(x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean (D,) of the columns of x (N, D), and one standard deviation () for all of them.

    Its square is the average of the columns' variances (ddof 0).
    """
    return x.mean(0), x.var(0, correction=0).mean().sqrt()


def scaled(x: Tensor, given: Mapping[str, Any]) -> dict[str, Tensor]:
    """``centre`` (D,) and ``scale`` (): those of ``common_scale`` unless given."""
    own = dict(zip(("centre", "scale"), common_scale(x), strict=True))
    for name in own.keys() & given.keys():
        value = torch.as_tensor(given[name]).to(x)
        if value.shape != own[name].shape:
            raise DataError(
                f"{name}: has shape {tuple(value.shape)}; give {tuple(own[name].shape)}"
            )
        own[name] = value
    return {**own}
