"""The one place that knows ArviZ's versions: 0.x (InferenceData) and 1.x (xarray DataTree)."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import arviz as az
import numpy as np
import pandas as pd
import xarray as xr

from inference import mixing
from inference.storage import whole

MAJOR = int(az.__version__.split(".")[0])

Names = Mapping[str, Mapping[str, Sequence[Any]]]
"""``{variable: {dimension: labels}}`` for the dimensions after the sample dimensions."""


def dataset(
    values: Mapping[str, np.ndarray],
    names: Names,
    leading: tuple[str, ...],
    attrs: Mapping[str, Any],
) -> xr.Dataset:
    """Arrays with the leading dimensions given (chain, draw, or none), the others labelled.

    Neither files nor a ``DataTree`` hold names with a slash: see ``unslashed``.
    """
    arrays: dict[str, tuple[tuple[str, ...], np.ndarray]] = {}
    coordinates: dict[str, Any] = {}
    for dim, size in zip(
        leading, next(iter(values.values())).shape if values else (), strict=False
    ):
        coordinates[dim] = np.arange(size)
    for variable, array in values.items():
        labels = names.get(variable, {})
        dims = list(labels)[: array.ndim - len(leading)]
        coordinates |= {dim: list(labels[dim]) for dim in dims}
        for axis in range(len(leading) + len(dims), array.ndim):
            dim = f"{unslashed(variable)}_dim_{axis - len(leading)}"
            dims.append(dim)
            coordinates[dim] = np.arange(array.shape[axis])
        arrays[unslashed(variable)] = ((*leading, *dims), array)
    return xr.Dataset(arrays, coords=coordinates, attrs=dict(attrs))


def unslashed(name: str) -> str:
    """The name of a site in an ArviZ object: "scope.x" for "scope/x"."""
    return name.replace("/", ".")


def escaped(name: str) -> str:
    """The name of a site as that of a folder."""
    return name.replace("%", "%25").replace("/", "%2F")


def unescaped(name: str) -> str:
    """The name of a site by that of its folder."""
    return name.replace("%2F", "/").replace("%25", "%")


def build(groups: Mapping[str, xr.Dataset], attrs: Mapping[str, Any]) -> Any:
    """An ArviZ object of the installed major version."""
    if MAJOR == 0:
        data = az.InferenceData(**dict(groups))  # pyright: ignore[reportArgumentType]
        data.attrs.update(attrs)
        return data
    tree = xr.DataTree.from_dict(dict(groups))
    tree.attrs.update(attrs)
    return tree


def is_data(thing: Any) -> bool:
    """Whether something is an ArviZ object of the installed major version."""
    return isinstance(thing, az.InferenceData if MAJOR == 0 else xr.DataTree)


def has_group(data: Any, name: str) -> bool:
    """Whether an ArviZ object has the group."""
    if MAJOR == 0:
        return name in data.groups()
    return name in data.children


def group(data: Any, name: str) -> xr.Dataset:
    """A group as a Dataset."""
    found = data[name]
    return found if isinstance(found, xr.Dataset) else found.to_dataset()


def arrays(draws: xr.Dataset) -> dict[str, np.ndarray]:
    """Every variable as an array (chain, draw, ...)."""
    ordered = draws.transpose("chain", "draw", ...)
    return {str(name): np.asarray(value) for name, value in ordered.data_vars.items()}


def attributes(data: Any) -> dict[str, Any]:
    """The attributes of the whole object."""
    return dict(data.attrs)


def save(data: Any, path: str | os.PathLike[str]) -> Path:
    """Write NetCDF; the file appears whole, by rename."""
    with whole(path) as temporary:
        data.to_netcdf(str(temporary), engine="h5netcdf")
    return Path(path)


def load(path: str | os.PathLike[str]) -> Any:
    """Read NetCDF, or a folder of Zarr, written by ``save`` or by any ArviZ of either version."""
    if Path(path).is_dir():
        with warnings.catch_warnings():  # a run that is stored has files of its own beside it
            warnings.filterwarnings("ignore", "Object at .* is not recognized", UserWarning)
            found = xr.open_groups(path, engine="zarr", consolidated=False)  # with it or without
        groups = {name.strip("/"): _unescaped(group) for name, group in found.items()}
        root = groups.pop("", xr.Dataset())
        return build(groups, root.attrs)
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    return az.from_netcdf(str(path), engine="h5netcdf")


def _unescaped(group: xr.Dataset) -> xr.Dataset:
    """Names of sites as everywhere, where a folder's name stands for a slash."""
    plain = {name: unslashed(unescaped(str(name))) for name in group}
    return group.rename({name: new for name, new in plain.items() if new != name})


def kind(data: Any) -> str:
    """What the draws are: "samples" of Markov chains unless the object says otherwise."""
    if has_group(data, "point"):
        return "point"
    return str(attributes(data).get("kind", "samples"))


def summary(data: Any, names: Sequence[str] | None = None) -> pd.DataFrame:
    """One row per scalar of the posterior, or of some variables: see ``Fit.summary``."""
    what = kind(data)
    if what == "point" and not has_group(data, "point"):
        return pd.DataFrame({"mean": scalars(xr.Dataset())})  # of a program without latent sites
    draws = group(data, "point" if what == "point" else "posterior")
    draws = draws if names is None else draws[[unslashed(name) for name in names]]
    if what == "point":
        return pd.DataFrame({"mean": scalars(draws)})
    return moments(draws) if what == "approximation" else statistics(draws)


def moments(posterior: xr.Dataset) -> pd.DataFrame:
    """Mean and sd of every scalar."""
    sample = ("chain", "draw")
    columns = {"mean": posterior.mean(sample), "sd": posterior.std(sample, ddof=1)}
    return pd.DataFrame({name: scalars(values) for name, values in columns.items()})


def statistics(posterior: xr.Dataset) -> pd.DataFrame:
    """Mean, sd, MCSE, R-hat, bulk and tail ESS of every scalar; rows named as ArviZ names them.

    The definitions are ArviZ's (``mixing``); tail ESS is at 5 % and 95 % whatever its version.
    """
    ordered = posterior.transpose("chain", "draw", ...)
    columns = {
        "mcse_mean": mixing.mcse_mean,
        "mcse_sd": mixing.mcse_sd,
        "r_hat": mixing.r_hat,
        "ess_bulk": mixing.ess_bulk,
        "ess_tail": mixing.ess_tail,
    }
    table = {
        name: scalars(
            ordered.map(lambda a, f=function: a[0, 0].copy(data=f(a.values)), keep_attrs=False)
        )
        for name, function in columns.items()
    }
    return moments(posterior).join(pd.DataFrame(table))


def loo(data: Any, variable: str) -> tuple[float, float, int]:
    """Leave-one-out predictive density by Pareto-smoothed importance sampling.

    Its estimate and standard error on the log scale, and for how many observations the Pareto
    k-hat is above 0.7, where the estimate cannot be trusted. ``data`` holds the group
    ``log_likelihood``. Source: Vehtari, Gelman & Gabry (2017), Stat. Comput. 27:1413-1432.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Estimated shape parameter of Pareto", UserWarning)
        result: Any = az.loo(data, pointwise=True, var_name=unslashed(variable))
    each = np.asarray(result.loo_i if MAJOR == 0 else result.elpd_i).ravel()
    # the versions divide differently in their standard errors
    error = each.std() * each.size**0.5
    return float(each.sum()), float(error), int((np.asarray(result.pareto_k) > 0.7).sum())


def scalars(values: xr.Dataset) -> pd.Series:
    """Every scalar of a Dataset, named ``variable[label, ...]``."""
    rows: dict[str, float] = {}
    for name, array in values.data_vars.items():
        labels = itertools.product(*([str(x) for x in array[d].values] for d in array.dims))
        for label, value in zip(labels, array.values.ravel(), strict=True):
            text = ", ".join(label)
            rows[f"{name}[{text}]" if text else str(name)] = float(value)
    return pd.Series(rows, dtype=float)
