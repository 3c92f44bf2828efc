"""What answers are measured against: moments, or draws with their moments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from inference import arviz_bridge
from inference.fit import Fit
from ppl_models.errors import EngineError


class Reference(NamedTuple):
    """A known posterior.

    Args:
        moments: the columns ``mean`` and ``sd``, by parameter.
        draws: a row for each draw, a column for each parameter; None where only moments are known.
    """

    moments: pd.DataFrame
    draws: pd.DataFrame | None = None


def reference_of(given: Any) -> Reference:
    """The reference behind what a user gives.

    Args:
        given: a DataFrame with the columns ``mean`` and ``sd``, or a mapping from parameters to
            such pairs; or draws: a ``Fit``, an ArviZ object, or a mapping from sites to arrays
            (chain, draw, *event).

    Raises:
        EngineError: it is none of these.
    """
    if isinstance(given, Reference):
        return given
    if isinstance(given, pd.DataFrame):
        if not {"mean", "sd"} <= set(given.columns):
            raise EngineError(
                "reference needs the columns mean and sd, with parameters as its index"
            )
        return Reference(given.rename(index=_parameter))
    if isinstance(given, Fit):
        given = given.to_arviz()
    if arviz_bridge.is_data(given):
        if not arviz_bridge.has_group(given, "posterior"):
            raise EngineError("reference has no posterior draws; give draws, or means and sds")
        return _of_draws(scalar_draws(given))
    if not isinstance(given, Mapping) or not given:
        raise EngineError(
            f"reference is a {type(given).__name__}; give a DataFrame with the columns mean and "
            "sd, a mapping from parameters to (mean, sd), a Fit, an ArviZ object, or a mapping "
            "from sites to draws (chain, draw, ...)"
        )
    arrays = {name: _array(value) for name, value in given.items()}
    if all(value.ndim >= 2 for value in arrays.values()):
        data = arviz_bridge.dataset(arrays, {}, ("chain", "draw"), {})
        return _of_draws(scalar_draws(arviz_bridge.build({"posterior": data}, {})))
    for name, value in arrays.items():
        if value.shape != (2,):
            raise EngineError(
                f"reference of '{name}' has shape {value.shape}; give (mean, sd), or for every "
                "site draws (chain, draw, ...)"
            )
    rows = {name: tuple(value) for name, value in arrays.items()}
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["mean", "sd"], dtype=float)
    return Reference(table.rename(index=_parameter))


def _parameter(name: Any) -> str:
    return arviz_bridge.unslashed(str(name))


def scalar_draws(data: Any, variables: Sequence[str] | None = None) -> pd.DataFrame:
    """The draws of an ArviZ object: a row for each (chain, draw), a column for each scalar."""
    posterior = arviz_bridge.group(data, "posterior").transpose("chain", "draw", ...)
    if variables is not None:
        posterior = posterior[[arviz_bridge.unslashed(name) for name in variables]]
    names = arviz_bridge.scalars(posterior.isel(chain=0, draw=0, drop=True)).index
    arrays = arviz_bridge.arrays(posterior).values()
    parts = [a.reshape(a.shape[0] * a.shape[1], -1) for a in arrays]
    chains, draws = posterior.sizes["chain"], posterior.sizes["draw"]
    index = pd.MultiIndex.from_product([range(chains), range(draws)], names=["chain", "draw"])
    values = np.concatenate(parts, 1) if parts else np.empty((chains * draws, 0))
    return pd.DataFrame(values, index=index, columns=names)


def _of_draws(draws: pd.DataFrame) -> Reference:
    moments = pd.DataFrame({"mean": draws.mean(), "sd": draws.std(ddof=1)})
    return Reference(moments, draws)


def _array(value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    try:
        return np.asarray(value, dtype=float)
    except (TypeError, ValueError) as error:
        raise EngineError(f"reference holds {value!r}, which is no array of numbers") from error
