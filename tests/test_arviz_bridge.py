"""What is handed to ArviZ, written and read back, and its statistics against ArviZ's own.

Python 3.11 has ArviZ 0.x, later ones 1.x; what can be seen of either's code from the other is.
"""

import os
import warnings

import arviz as az
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from inference import EM, HMC, SVI, ImportanceSampling, arviz_bridge, fit
from inference.storage import whole
from ppl_models import LogisticRegression, ORing
from tests.programs import CONTINUOUS, ENUMERATED, FEW

pytestmark = pytest.mark.filterwarnings("ignore::inference.InferenceWarning")

CHAINS, SAMPLES = ("chain", "draw"), {"chains": 3, "warmup": 10, "draws": 40, "tier": "traced"}


def autoregression(*shape, seed=0, memory=0.6):
    """Chains (chain, draw, *event) that remember."""
    noise = np.random.default_rng(seed).normal(size=shape)
    chains = np.zeros(shape)
    for draw in range(1, shape[1]):
        chains[:, draw] = memory * chains[:, draw - 1] + noise[:, draw]
    return chains


# -- statistics ------------------------------------------------------------------------------------

CASES = {
    "scalars": autoregression(4, 200),
    "odd number of draws": autoregression(3, 151, 2),
    "one chain": autoregression(1, 300, 2),
    "matrix": autoregression(4, 100, 2, 3),
    "long memory": autoregression(2, 400, 2, memory=0.97),
    "antithetic": autoregression(4, 200, 2, memory=-0.8),
    "different modes": autoregression(4, 100) + 10 * np.arange(4)[:, None],
    "different spreads": autoregression(4, 100) * (1 + np.arange(4)[:, None]),
    "whole numbers": np.random.default_rng(1).integers(0, 3, size=(4, 80, 2)),
    "float32": autoregression(4, 100).astype(np.float32),
    "ties": np.round(autoregression(4, 100)),
    "four draws": autoregression(2, 4),
    "heavy tails": np.random.default_rng(2).standard_cauchy(size=(4, 200)),
}


def arviz_statistics(posterior):
    """The same figures by ArviZ's own functions, scalar by scalar."""
    tail = {"prob": (0.05, 0.95)} if arviz_bridge.MAJOR > 0 else {}
    columns = {
        "mcse_mean": az.mcse(posterior, method="mean"),
        "r_hat": az.rhat(posterior),
        "ess_bulk": az.ess(posterior, method="bulk"),
        "ess_tail": az.ess(posterior, method="tail", **tail),
    }
    tables = {name: plain(values) for name, values in columns.items()}
    return pd.DataFrame({name: arviz_bridge.scalars(values) for name, values in tables.items()})


def plain(values):
    return values if isinstance(values, xr.Dataset) else values.to_dataset()


@pytest.mark.parametrize("name", CASES)
def test_statistics_are_those_of_arviz(name):
    values = CASES[name]
    posterior = arviz_bridge.dataset({"x": values}, {}, CHAINS, {})
    found = arviz_bridge.statistics(posterior)
    expected = arviz_statistics(posterior)
    tolerance = 1e-5 if values.dtype == np.float32 else 1e-10
    for column in expected:
        np.testing.assert_allclose(found[column], expected[column], rtol=tolerance, atol=tolerance)
    flat = values.reshape(values.shape[0] * values.shape[1], -1).astype(float)
    np.testing.assert_allclose(found["mean"], flat.mean(0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found["sd"], flat.std(0, ddof=1), rtol=1e-6)


@pytest.mark.parametrize("name", ["scalars", "matrix", "long memory", "heavy tails"])
def test_the_error_of_an_sd_is_that_of_its_square_by_the_delta_method(name):
    values = CASES[name]
    found = arviz_bridge.statistics(arviz_bridge.dataset({"x": values}, {}, CHAINS, {}))
    square = (values - values.mean((0, 1))) ** 2
    posterior = arviz_bridge.dataset({"x": square}, {}, CHAINS, {})
    ess = arviz_bridge.scalars(plain(az.ess(posterior, method="mean"))).to_numpy()
    variance = square.mean((0, 1)).reshape(-1)
    error = np.sqrt(square.var((0, 1)).reshape(-1) / ess) / (2 * np.sqrt(variance))
    np.testing.assert_allclose(found["mcse_sd"], error, rtol=1e-10)


def test_a_scalar_that_never_changes_has_no_r_hat_and_raises_no_warning():
    values = autoregression(4, 50, 2)
    values[:, :, 1] = 3.0
    posterior = arviz_bridge.dataset({"x": values}, {}, CHAINS, {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = arviz_bridge.statistics(posterior)
    assert np.isnan(table.loc["x[1]", "r_hat"])
    assert table.loc["x[1]", "sd"] == 0
    assert np.isfinite(table.loc["x[0]"]).all()


def test_the_order_of_the_dimensions_does_not_matter():
    posterior = arviz_bridge.dataset({"x": CASES["matrix"]}, {}, CHAINS, {})
    turned = posterior.transpose("x_dim_0", "draw", "x_dim_1", "chain")
    expected = arviz_bridge.statistics(posterior)
    pd.testing.assert_frame_equal(arviz_bridge.statistics(turned).loc[expected.index], expected)


# -- names -----------------------------------------------------------------------------------------


def test_scalars_are_named_as_arviz_names_them():
    values = {
        "alpha": autoregression(2, 50),
        "beta": autoregression(2, 50, 2),
        "p": autoregression(2, 50, 3),
        "w": autoregression(2, 50, 2, 2),
    }
    names = {"beta": {"feature": ["age", "dose"]}, "p": {"temperature": [31.0, 50.5, 70.0]}}
    posterior = arviz_bridge.dataset(values, names, CHAINS, {})
    data = arviz_bridge.build({"posterior": posterior}, {})
    rows = list(arviz_bridge.moments(posterior).index)
    assert rows[:3] == ["alpha", "beta[age]", "beta[dose]"]
    assert rows[3:] == [
        "p[31.0]",
        "p[50.5]",
        "p[70.0]",
        *(f"w[{i}, {j}]" for i in "01" for j in "01"),
    ]
    assert list(az.summary(data, kind="stats").index) == rows


def test_dimensions_without_labels_are_numbered():
    array = np.zeros((2, 5, 3, 4))
    found = arviz_bridge.dataset({"x": array}, {"x": {"group": ["a", "b", "c"]}}, CHAINS, {"n": 1})
    assert found["x"].dims == ("chain", "draw", "group", "x_dim_1")
    assert found.sizes == {"chain": 2, "draw": 5, "group": 3, "x_dim_1": 4}
    assert list(found["chain"].values) == [0, 1]
    assert list(found["x_dim_1"].values) == [0, 1, 2, 3]
    assert found.attrs == {"n": 1}
    point = arviz_bridge.dataset({"x": np.float64(2.0), "v": np.ones(2)}, {}, (), {})
    assert point["x"].dims == ()
    assert point["v"].dims == ("v_dim_0",)


# -- the object of the installed ArviZ -------------------------------------------------------------

GROUPS = {
    "posterior": arviz_bridge.dataset(
        {"x": CASES["matrix"], "z": np.round(CASES["matrix"]).astype(int)},
        {},
        CHAINS,
        {"kind": "samples"},
    ),
    "sample_stats": arviz_bridge.dataset(
        {"lp": CASES["float32"], "diverging": CASES["float32"] > 1}, {}, CHAINS, {}
    ),
    "observed_data": arviz_bridge.dataset({"y": np.arange(3)}, {}, (), {}),
}
ATTRIBUTES = {
    "engine": "NUTS",
    "seed": 3,
    "warnings": "one – with a dash\ntwo",
    "elbo_trace": [1.0, 2.5],
    "pareto_k": float("inf"),
}
majors = pytest.mark.parametrize("major", [0, 1])


def choose(major, monkeypatch):
    if major == 0 and arviz_bridge.MAJOR > 0:
        pytest.skip("InferenceData is gone from ArviZ 1.x")
    monkeypatch.setattr(arviz_bridge, "MAJOR", major)


@majors
def test_groups_and_attributes_come_back_from_the_object(major, monkeypatch):
    choose(major, monkeypatch)
    data = arviz_bridge.build(GROUPS, ATTRIBUTES)
    assert isinstance(data, xr.DataTree if major else az.InferenceData)
    assert not arviz_bridge.has_group(data, "prior")
    for name, expected in GROUPS.items():
        assert arviz_bridge.has_group(data, name)
        xr.testing.assert_identical(arviz_bridge.group(data, name), expected)
    assert arviz_bridge.attributes(data) == ATTRIBUTES


@majors
def test_names_with_slashes_can_be_saved(major, monkeypatch, tmp_path):
    choose(major, monkeypatch)
    values = {"scope/x": np.random.default_rng(0).normal(size=(2, 8, 2))}
    group = arviz_bridge.dataset(values, {}, CHAINS, {})
    data = arviz_bridge.build({"posterior": group}, {})
    rows = list(arviz_bridge.summary(data, ["scope/x"]).index)
    assert rows == ["scope.x[0]", "scope.x[1]"]
    arviz_bridge.save(data, tmp_path / "x.nc")
    found = arviz_bridge.group(arviz_bridge.load(tmp_path / "x.nc"), "posterior")
    assert found["scope.x"].dims == (*CHAINS, "scope.x_dim_0")


@majors
def test_a_file_of_either_version_is_read_by_the_installed_one(major, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        choose(major, patch)
        path = arviz_bridge.save(
            arviz_bridge.build(GROUPS, ATTRIBUTES), tmp_path / "new folder" / "fit.nc"
        )
    assert os.listdir(path.parent) == ["fit.nc"]
    data = arviz_bridge.load(path)
    for name, expected in GROUPS.items():
        found = arviz_bridge.group(data, name)
        for variable in expected:
            assert found[variable].dtype == expected[variable].dtype
            np.testing.assert_array_equal(found[variable], expected[variable])
            assert found[variable].dims == expected[variable].dims
    found = arviz_bridge.attributes(data)
    for name, value in ATTRIBUTES.items():
        assert np.array_equal(found[name], value), name
    tree = xr.open_datatree(path, engine="h5netcdf")
    np.testing.assert_array_equal(tree["posterior"]["x"], GROUPS["posterior"]["x"])
    tree.close()


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.nc: no such file"):
        arviz_bridge.load(tmp_path / "nothing.nc")


def test_a_failed_save_leaves_the_older_file(tmp_path):
    path = tmp_path / "fit.nc"
    path.write_text("older")

    def fails():
        with whole(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        fails()
    assert path.read_text() == "older"
    assert os.listdir(tmp_path) == ["fit.nc"]


# -- of a fit --------------------------------------------------------------------------------------


def of(name):
    return {**CONTINUOUS, **ENUMERATED}[name]


FITS = {
    "samples": lambda: fit(of("schools").program, {"y": FEW}, HMC(**SAMPLES, steps=2)),
    "enumerated": lambda: fit(of("mixture").program, {"y": FEW}, HMC(**SAMPLES, steps=2)),
    "svi": lambda: fit(
        of("line").program, of("line").data, SVI(steps=100, draws=30, tier="traced")
    ),
    "laplace": lambda: fit(
        of("line").program, of("line").data, SVI(guide="laplace", draws=30, tier="traced")
    ),
    "importance": lambda: fit(of("outliers").program, {"y": FEW}, ImportanceSampling(500, 30)),
    "point": lambda: fit(ORing(prior="normal"), None, EM()),
}


@pytest.mark.parametrize("name", FITS)
def test_a_fit_is_saved_and_read_back_whole(name, tmp_path):
    fitted = FITS[name]()
    point = fitted.posterior.kind == "point"
    # all that can be asked for; these programs have pointwise log likelihoods
    path = fitted.save(tmp_path / "fit.nc", log_likelihood=True, posterior_predictive=True)
    data = arviz_bridge.load(path)
    leading = () if point else CHAINS
    lead = next(iter(fitted.posterior.draws.values())).shape[: len(leading)]
    draws = arviz_bridge.group(data, "point" if point else "posterior")
    assert set(draws) == set(fitted.posterior.draws)
    for site, value in fitted.posterior.draws.items():
        np.testing.assert_array_equal(draws[site], value.numpy())
        assert draws[site].dims[: len(leading)] == leading
    rows = len(fitted.data["y"])
    for group in ("log_likelihood", "posterior_predictive"):
        assert arviz_bridge.group(data, group)["y"].shape == (*lead, rows)
    np.testing.assert_array_equal(
        arviz_bridge.group(data, "observed_data")["y"], fitted.data["y"].numpy()
    )
    assert arviz_bridge.has_group(data, "sample_stats") == bool(fitted.posterior.stats)
    assert arviz_bridge.has_group(data, "constant_data") == (len(fitted.data) > 1)
    attributes = arviz_bridge.attributes(data)
    assert attributes["kind"] == fitted.posterior.kind
    for setting, value in fitted.engine.settings().items():
        assert attributes[f"setting_{setting}"] == repr(value)
    assert attributes["seconds_total"] > 0


def test_names_of_features_are_the_labels():
    table = pd.DataFrame(
        {"age": [1.0, 2.0, 4.0, 3.0], "dose": [0.0, 1.0, 1.0, 0.5], "y": [0, 1, 0, 1]}
    )
    fitted = fit(LogisticRegression(), table, HMC(**SAMPLES, steps=2))
    beta = arviz_bridge.group(fitted.to_arviz(), "posterior")["beta"]
    assert beta.dims == ("chain", "draw", "feature")
    assert list(beta["feature"].values) == ["age", "dose"]
    assert set(fitted.summary().index) == {"alpha", "beta[age]", "beta[dose]"}


def test_arviz_takes_a_fit_as_its_own():
    fitted = FITS["enumerated"]()
    data = fitted.to_arviz(log_likelihood=True, posterior_predictive=True)
    table = az.summary(data, var_names=["mu", "weights"], kind="stats")
    mean = fitted.posterior.draws["mu"].mean((0, 1))
    np.testing.assert_allclose(table["mean"].astype(float)[:3], mean.numpy(), atol=6e-4)
    likelihood = arviz_bridge.group(data, "log_likelihood")["y"].values
    with torch.no_grad():
        again = fitted.log_likelihood()["y"].numpy()
    np.testing.assert_allclose(likelihood, again)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on few draws, its own k-hat may be large
        loo = az.loo(data, pointwise=True)
    assert np.isfinite(float(loo.elpd_loo if hasattr(loo, "elpd_loo") else loo.elpd))


def test_loo_is_the_exact_leave_one_out_density_of_a_normal_mean():
    y = np.random.default_rng(3).normal(1.0, 1.0, 12)
    mean, variance = y.sum() / (len(y) + 0.01), 1 / (len(y) + 0.01)
    mu = np.random.default_rng(4).normal(mean, variance**0.5, (4, 2000))
    log_likelihood = -0.5 * (y - mu[..., None]) ** 2 - 0.5 * np.log(2 * np.pi)
    groups = {
        "posterior": arviz_bridge.dataset({"mu": mu}, {}, ("chain", "draw"), {}),
        "log_likelihood": arviz_bridge.dataset({"y": log_likelihood}, {}, ("chain", "draw"), {}),
    }
    precision = len(y) - 1 + 0.01
    centre, wide = (y.sum() - y) / precision, 1 / precision + 1
    each = -0.5 * (y - centre) ** 2 / wide - 0.5 * np.log(2 * np.pi * wide)
    exact = each.sum()
    found, error, bad = arviz_bridge.loo(arviz_bridge.build(groups, {}), "y")
    assert bad == 0
    assert error == pytest.approx(each.std() * len(y) ** 0.5, rel=0.02)
    # 8,000 independent draws: an error of some hundredths of the gap to the density in sample
    assert abs(found - exact) < 0.03
    assert log_likelihood.mean((0, 1)).sum() - exact > 0.3
