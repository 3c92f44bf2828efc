"""Runs that survive: stopped at any moment, they go on to the draws of a run that never stopped."""

import contextlib
import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr

from inference import (
    CAVI,
    EM,
    HMC,
    MAMS,
    MH,
    NUTS,
    SMC,
    SVI,
    ChEES,
    Gibbs,
    ImportanceSampling,
    Pathfinder,
    Thermodynamic,
    Until,
    arviz_bridge,
    checkpoint,
    fit,
    nuts_cpu,
    recording,
    run_store,
    scratch,
    stopping,
)
from inference.recording import Recorder
from inference.run_store import RunStore
from ppl_models import GaussianMixture, LatentDirichletAllocation, LogisticRegression, NormalPrior
from ppl_models.errors import EngineError
from tests import natives

pytestmark = pytest.mark.filterwarnings("ignore::inference.InferenceWarning")

ROOT = Path(__file__).parent.parent
DATA = {"x": [-1.0, 0.5, 2.0, 1.0, -0.3, 0.2], "y": [0, 1, 1, 0, 0, 1]}
POINTS = {"x": torch.tensor([[0.0, 0.1], [0.2, -0.1], [4.0, 4.1], [4.2, 3.9], [0.1, 0.3]])}
WORDS = {"counts": [[3, 2, 0, 0], [4, 1, 0, 1], [0, 0, 2, 3], [0, 1, 3, 3]]}
TRACED = {"tier": "traced"}


def proposal(x, y, trials=None, centre=None, spread=None, features=None):
    pyro.sample("beta", dist.Normal(torch.zeros(1), 1.0).to_event(1))
    pyro.sample("alpha", dist.Normal(0.0, 3.0))


def switching(y):
    """A mixture whose labels are summed out and drawn back."""
    mu = pyro.sample("mu", dist.Normal(torch.tensor([-1.0, 1.0]), 1.0).to_event(1))
    with pyro.plate("rows", len(y)):
        z = pyro.sample("z", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(mu[z.long()], 0.5), obs=y)
    pyro.deterministic("gap", mu[1] - mu[0])


def normals():
    pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))


SHORT = {"chains": 3, "warmup": 40, "draws": 100, **TRACED}
RUNS = {
    "nuts": (LogisticRegression(), DATA, NUTS(**SHORT)),
    "nuts, dense and thinned": (LogisticRegression(), DATA, NUTS(**SHORT, mass="dense", thin=2)),
    "nuts, warm": (LogisticRegression(), DATA, NUTS(**SHORT, starts="pathfinder")),
    "hmc, until converged": (
        LogisticRegression(),
        DATA,
        HMC(**{**SHORT, "warmup": 500}, steps=4, adapt="until converged"),
    ),
    "nuts, tensors": (LogisticRegression(), DATA, NUTS(chains=2, warmup=25, draws=50, **TRACED)),
    "hmc": (LogisticRegression(), DATA, HMC(**SHORT, steps=4)),
    "chees": (LogisticRegression(), DATA, ChEES(**{**SHORT, "warmup": 120})),
    "mams": (LogisticRegression(), DATA, MAMS(**{**SHORT, "warmup": 120})),
    "mh, thinned": (LogisticRegression(), DATA, MH(**SHORT, thin=3)),
    "independence": (LogisticRegression(), DATA, MH(**SHORT, proposal=proposal)),
    "gibbs": (LogisticRegression(), DATA, Gibbs(chains=3, warmup=5, draws=60, thin=2)),
    "gibbs, mixture": (GaussianMixture(2), POINTS, Gibbs(chains=2, warmup=5, draws=50)),
    "gibbs, topics": (LatentDirichletAllocation(2), WORDS, Gibbs(chains=2, warmup=5, draws=50)),
    "nuts, C function": (normals, {}, NUTS(**SHORT, thin=2)),
    "discrete sites": (switching, {"y": [-1.0, 0.8, 1.2]}, NUTS(**SHORT)),
}


class Stopped(BaseException):
    """What no engine catches, like a kill."""


@pytest.fixture(autouse=True)
def often(monkeypatch):
    """States after every block of steps, and chunks of few draws."""
    monkeypatch.setattr(run_store, "EVERY", 0.0)
    monkeypatch.setattr(run_store, "SHARE", float("inf"))
    monkeypatch.setattr(recording, "LARGEST", 32)
    monkeypatch.setattr(stopping, "LOOK", 0.0)


def stop_at(monkeypatch, number, method="save", after=True):
    """Stop the run at the ``number``-th call of a method of its records."""
    own, calls = getattr(RunStore, method), []

    def stopping(self, *arguments):
        calls.append(arguments)
        if len(calls) == number and not after:
            raise Stopped
        own(self, *arguments)
        if len(calls) == number:
            raise Stopped

    monkeypatch.setattr(RunStore, method, stopping)


def same(one, other):
    ones = one.draws | one.stats | {"x": one.unconstrained}
    others = other.draws | other.stats | {"x": other.unconstrained}
    assert list(ones) == list(others)
    return all(torch.equal(value, others[name]) for name, value in ones.items())


def with_stops(monkeypatch, path, name, stops, **arguments):
    """The posterior of a run that is stopped at each of ``stops``, (method, number, after)."""
    where = {"store": path}
    for method, number, after in stops:
        with monkeypatch.context() as patch, contextlib.suppress(Stopped):
            stop_at(patch, number, method, after)
            fit(*RUNS[name], seed=2, **where, **arguments)
        where = {"resume": path}
    return fit(*RUNS[name], seed=2, **where, **arguments).posterior


STOPS = [("save", 1, True), ("save", 3, True), ("write", 2, False)]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_was_stopped_goes_on_to_the_same_draws(name, tmp_path, monkeypatch):
    if name == "nuts, tensors":
        monkeypatch.setattr(nuts_cpu, "usable", lambda device: False)
    if name == "nuts, C function":
        natives.serve(monkeypatch, natives.normal(3), 3)
    with monkeypatch.context() as patch:
        patch.setattr(stopping, "LOOK", 1e3)
        whole = fit(*RUNS[name], seed=2).posterior
    stopped = with_stops(monkeypatch, tmp_path / "run.zarr", name, STOPS)
    assert same(stopped, whole)
    assert stopped.attributes == whole.attributes
    again = fit(*RUNS[name], seed=2, resume=tmp_path / "run.zarr").posterior  # it just loads
    assert same(again, whole)


def test_draws_do_not_depend_on_how_often_states_are_written(tmp_path, monkeypatch):
    often = fit(*RUNS["nuts"], store=tmp_path / "often").posterior
    monkeypatch.setattr(run_store, "EVERY", 1e9)
    seldom = fit(*RUNS["nuts"], store=tmp_path / "seldom").posterior
    assert same(often, seldom)


def test_a_finished_run_can_be_made_longer(tmp_path):
    model, data, engine = RUNS["nuts"]
    short = NUTS(**{**SHORT, "draws": 70})
    fit(model, data, short, store=tmp_path / "run")
    longer = fit(model, data, engine, resume=tmp_path / "run").posterior
    assert same(longer, fit(model, data, engine).posterior)
    with pytest.raises(EngineError, match=r"draws=70: .* has 100 draws per chain"):
        fit(model, data, short, resume=tmp_path / "run")


@pytest.mark.parametrize("name", ["nuts", "gibbs"])
def test_ctrl_c_keeps_what_there_is_and_says_how_to_go_on(name, tmp_path, monkeypatch):
    whole, own, calls = fit(*RUNS[name], seed=2).posterior, Recorder.flush, []

    def interrupted(self):
        own(self)
        calls.append(self.draws)
        if self.draws > 40:  # after whole chunks
            raise KeyboardInterrupt

    path = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "flush", interrupted)
        kept = fit(*RUNS[name], seed=2, store=path)
    number = kept.posterior.unconstrained.shape[1]
    assert 40 < number < 100
    assert torch.equal(kept.posterior.unconstrained, whole.unconstrained[:, :number])
    [finding] = [f for f in kept.findings if f.name == "interrupted"]
    assert finding.remedy == f"go on with fit(..., resume={str(path)!r})"
    assert same(fit(*RUNS[name], seed=2, resume=path).posterior, whole)


def test_a_run_out_of_time_goes_on(tmp_path):
    model, data, engine = RUNS["nuts"]
    with pytest.raises(EngineError, match="before the first draw"):
        fit(model, data, engine, store=tmp_path / "run", until=Until(seconds=1e-3))
    fit(model, data, engine, resume=tmp_path / "run", until=Until(ess=50))
    resumed = fit(model, data, engine, resume=tmp_path / "run").posterior
    assert same(resumed, fit(model, data, engine).posterior)


SABOTAGES = {
    "transitions of chains ahead are forgotten": (
        Recorder,
        "parts",
        lambda own: (
            lambda self: {
                k: p._replace(done=p.done & False) if len(p.done) else p
                for k, p in own(self).items()
            }
        ),
    ),
    "the number of the step is off by one": (
        RunStore,
        "save",
        lambda own: (
            lambda self, parts: own(
                self, parts | ({"steps": parts["steps"] + 1} if "steps" in parts else {})
            )
        ),
    ),
    "the trees half grown are begun anew": (
        RunStore,
        "save",
        lambda own: (
            lambda self, parts: own(
                self,
                parts
                | (
                    {"state": parts["state"]._replace(integers=parts["state"].integers * 0)}
                    if "state" in parts
                    else {}
                ),
            )
        ),
    ),
}


@pytest.mark.parametrize("name", SABOTAGES)
def test_a_state_that_lacks_something_is_seen(name, tmp_path, monkeypatch):
    owner, method, broken = SABOTAGES[name]
    monkeypatch.setattr(owner, method, broken(getattr(owner, method)))
    stops = [("show", 3, True)]  # the first is of the empty store
    resumed = with_stops(monkeypatch, tmp_path / "run", "nuts", stops)
    assert not same(resumed, fit(*RUNS["nuts"], seed=2).posterior)


def test_the_store_can_be_opened_while_the_run_goes_on(tmp_path, monkeypatch):
    whole, own, seen = fit(*RUNS["discrete sites"], seed=2).posterior, RunStore.show, []

    def look(self):
        own(self)
        draws = xr.open_zarr(tmp_path / "run", group="posterior")
        stats = xr.open_zarr(tmp_path / "run", group="sample_stats")
        if draws:
            seen.append(draws.sizes["draw"])
            assert stats.sizes["draw"] == seen[-1]
            for name, value in draws.items():
                there = torch.from_numpy(value.to_numpy())
                torch.testing.assert_close(there, whole.draws[name][:, : seen[-1]])

    monkeypatch.setattr(RunStore, "show", look)
    fit(*RUNS["discrete sites"], seed=2, store=tmp_path / "run")
    assert seen == sorted(seen)
    assert len(set(seen)) > 2
    assert seen[-1] == 100
    tree = xr.open_datatree(tmp_path / "run", engine="zarr")
    assert set(tree["posterior"].data_vars) == set(whole.draws)


OTHERS = {
    "seed": ({"seed": 5}, "seed was 2 there and is 5 here"),
    "setting": ({"engine": NUTS(**SHORT, max_depth=9)}, r"NUTS\(max_depth\) was 10 .* is 9"),
    "engine": ({"engine": HMC(**SHORT)}, "engine was NUTS there and is HMC"),
    "data": ({"data": {**DATA, "y": [1, 1, 1, 0, 0, 1]}}, r"data\['y'\] was"),
    "dtype": ({"dtype": "float32"}, "dtype was torch.float64"),
    "prior": ({"model": LogisticRegression(NormalPrior(1.0))}, "log density of the model"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_run_is_not_gone_on_with(name, tmp_path):
    model, data, engine = RUNS["nuts"]
    fit(model, data, engine, seed=2, store=tmp_path / "run")
    other, words = OTHERS[name]
    arguments = {"model": model, "data": data, "engine": engine, "seed": 2, **other}
    with pytest.raises(EngineError, match=words):
        fit(**arguments, resume=tmp_path / "run")


def test_another_version_is_not_gone_on_with(tmp_path):
    fit(*RUNS["gibbs"], store=tmp_path / "run")
    record = tmp_path / "run" / "run.json"
    record.write_text(record.read_text().replace(str(torch.__version__), "1.0"))
    with pytest.raises(EngineError, match=r"version of torch was 1\.0 there"):
        fit(*RUNS["gibbs"], resume=tmp_path / "run")


def test_paths_that_cannot_be_are_refused(tmp_path):
    model, data, engine = RUNS["gibbs"]
    with pytest.raises(EngineError, match="there is no run; give store="):
        fit(model, data, engine, resume=tmp_path / "none")
    fit(model, data, engine, store=tmp_path / "run")
    with pytest.raises(EngineError, match="exists; give resume="):
        fit(model, data, engine, store=tmp_path / "run")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(EngineError, match="exists"):
        fit(model, data, engine, store=tmp_path / "file")
    with pytest.raises(EngineError, match="cannot be kept there"):
        fit(model, data, engine, store=tmp_path / "file" / "run")
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(EngineError, match="both store= and resume="):
        fit(model, data, engine, store=tmp_path / "a", resume=tmp_path / "b")


@pytest.mark.parametrize(
    "engine", [EM(), SVI(), ImportanceSampling(), Pathfinder(), SMC(), Thermodynamic()]
)
def test_engines_that_cannot_store_say_so_before_any_work(engine, tmp_path):
    with pytest.raises(EngineError, match=rf"{type(engine).__name__} cannot be stored"):
        fit(LogisticRegression(), DATA, engine, store=tmp_path / "run")
    with pytest.raises(EngineError, match="CAVI cannot be stored"):
        fit(GaussianMixture(2), POINTS, CAVI(), store=tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_two_processes_do_not_write_one_run(tmp_path, monkeypatch):
    path, own = tmp_path / "run", RunStore.save

    def meanwhile(self, parts):
        own(self, parts)
        with pytest.raises(EngineError, match=rf"process {os.getpid()} on .* is writing this run"):
            fit(*RUNS["gibbs"], resume=path)
        raise Stopped

    monkeypatch.setattr(RunStore, "save", meanwhile)
    with pytest.raises(Stopped):
        fit(*RUNS["gibbs"], store=path)
    monkeypatch.setattr(RunStore, "save", own)
    fit(*RUNS["gibbs"], resume=path)  # the lock went with the run


@pytest.mark.parametrize("fault", ["full", "gone"])
def test_a_disk_that_fails_is_told_and_what_was_written_stays(fault, tmp_path, monkeypatch):
    path, own, calls = tmp_path / "run", checkpoint.write, []
    whole = fit(*RUNS["nuts"], seed=2).posterior

    def failing(file, parts):
        calls.append(file)
        if len(calls) == 12 and fault == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if len(calls) == 12:
            path.rename(tmp_path / "elsewhere")
        own(file, parts)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write", failing)
        with pytest.raises(EngineError, match=r"cannot be kept there .*go on with fit"):
            fit(*RUNS["nuts"], seed=2, store=path)
    there = tmp_path / "elsewhere" if fault == "gone" else path
    xr.open_zarr(there, group="posterior").load()
    assert same(fit(*RUNS["nuts"], seed=2, resume=there).posterior, whole)


def test_large_draws_are_mapped_from_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(scratch, "LARGE", 1)
    stored = fit(*RUNS["discrete sites"], seed=2, store=tmp_path / "run")
    whole = fit(*RUNS["discrete sites"], seed=2)
    assert same(stored.posterior, whole.posterior)
    assert not [p for p in (tmp_path / "run").iterdir() if p.name.startswith(".")]
    pd.testing.assert_frame_equal(stored.summary(), whole.summary(), rtol=1e-9)
    assert stored.predict()["y"].equal(whole.predict()["y"])


def test_mapped_parts_are_joined(tmp_path):
    parts = [torch.randn(2, n, 3, 2).numpy() for n in (4, 4, 1)]
    joined = scratch.mapped(parts, (2, 9, 3, 2), tmp_path)
    assert joined.equal(torch.cat([torch.from_numpy(part) for part in parts], 1))


def test_large_draws_are_thinned_to_be_judged_and_tabulated_in_parts(monkeypatch):
    x = torch.randn(3, 50, 4, 2).numpy().transpose(0, 1, 3, 2)  # as mapped draws: not contiguous
    draws = {"x": x, "y": x[:, :, 0, 0]}
    assert scratch.thinned(draws) is draws
    monkeypatch.setattr(scratch, "LARGE", 1)
    assert scratch.thinned(draws) is draws  # so few are all judged
    monkeypatch.setattr(scratch, "_JUDGED", 12)
    found = scratch.thinned(draws)
    assert all(np.array_equal(found[name], value[:, ::4]) for name, value in draws.items())
    group = arviz_bridge.dataset(draws, {}, ("chain", "draw"), {})
    parts = list(scratch.parts(group))
    assert [part.nbytes for part in parts].count(parts[0].nbytes) == 2  # a row of x each, then y
    assert xr.merge([parts[2], xr.concat(parts[:2], "x_dim_0")]).equals(group)


def test_states_hold_no_code(tmp_path):
    with pytest.raises(EngineError, match="holds a function cannot be stored"):
        checkpoint.write(tmp_path / "c.safetensors", {"state": (lambda: None)})
    assert not (tmp_path / "c.safetensors").exists()
    (tmp_path / "c.safetensors").write_bytes(b"junk")
    with pytest.raises(EngineError, match="no whole checkpoint of this library"):
        checkpoint.read(tmp_path / "c.safetensors")


def test_killed_runs_go_on_to_the_same_draws():
    command = [sys.executable, "-m", "benchmarks.kill", "--times", "2", "--seed", str(os.getpid())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.endswith("2 of 2 equal\n"), done.stdout + done.stderr
