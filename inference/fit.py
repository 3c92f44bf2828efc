"""``fit``: one call for every engine; device, dtype and seed are decided here and nowhere else."""

from __future__ import annotations

import copy
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from inference import arviz_bridge, diagnostics, scratch
from inference.engine import Engine, Posterior, Problem, TierChoice
from inference.finding import Finding
from inference.probe import probe
from inference.program import Program, isolated, trained
from inference.progress import bar
from inference.recording import chunk_size
from inference.stopping import Clock, Until
from inference.target import Target
from ppl_models.base import Data, Model
from ppl_models.data import as_fields
from ppl_models.errors import EngineError
from ppl_models.threads import one_in_torch

_TABLED = 5_000  # scalars that a table holds
_THREADS_ABOVE = 200_000  # data elements; below, a second thread waits more than it works


class InferenceWarning(UserWarning):
    """Something about the answer that a user must know before trusting it."""


@dataclass(frozen=True, repr=False)
class Fit:
    """A fitted model.

    ``posterior`` holds tensors, ``to_arviz()`` the same for ArviZ, ``summary()`` a table,
    ``warnings`` what to know before trusting them.
    """

    model: Callable[..., Any]
    data: Data
    engine: Engine
    posterior: Posterior
    seed: int
    device: torch.device
    dtype: torch.dtype
    program: Program
    parameters: Any = None
    """What was trained by ``pyro.param``: a state for ``pyro.get_param_store().set_state``."""

    @property
    def findings(self) -> list[Finding]:
        """All that was found, each with its severity, figure, meaning and remedy."""
        return self.posterior.findings

    @property
    def warnings(self) -> list[str]:
        """The findings that speak against the answer, in words; empty where there are none."""
        return [finding.text for finding in self.findings if finding.severity != "note"]

    @property
    def status(self) -> str:
        """The findings without their explanations; "ok" where there are none."""
        against = [finding for finding in self.findings if finding.severity != "note"]
        return "; ".join(finding.meaning.split(":")[0] for finding in against) or "ok"

    @property
    def seconds(self) -> dict[str, float]:
        """Wall time by phase, and in total; ``checks``, the time of the verdict, comes on top."""
        return self.posterior.seconds

    def to_arviz(self, *, log_likelihood: bool = False, posterior_predictive: bool = False) -> Any:
        """The fit for ArviZ: InferenceData (0.x) or DataTree (1.x).

        Args:
            log_likelihood: add the pointwise log likelihood, discrete sites summed out.
            posterior_predictive: add one draw of the observed sites for each posterior draw.
        """
        names = self._names()
        attrs = self._attributes()
        leading = () if self.posterior.kind == "point" else ("chain", "draw")
        draws = {name: _numpy(value) for name, value in self.posterior.draws.items()}
        main = "point" if self.posterior.kind == "point" else "posterior"
        groups = {main: arviz_bridge.dataset(draws, names, leading, attrs)}
        if self.posterior.stats:
            stats = {name: _numpy(value) for name, value in self.posterior.stats.items()}
            groups["sample_stats"] = arviz_bridge.dataset(stats, {}, ("chain", "draw"), attrs)
        observed = {name: _numpy(self.program.observations[name]) for name in self.program.observed}
        if observed:
            groups["observed_data"] = arviz_bridge.dataset(observed, names, (), attrs)
        constant = {
            name: _numpy(value)
            for name, value in self.data.items()
            if isinstance(value, Tensor) and name not in observed
        }
        if constant:
            groups["constant_data"] = arviz_bridge.dataset(constant, names, (), attrs)
        if log_likelihood:
            values = {k: _numpy(v) for k, v in self.log_likelihood().items()}
            groups["log_likelihood"] = arviz_bridge.dataset(values, names, leading, attrs)
        if posterior_predictive:
            values = {k: _numpy(v) for k, v in self.predict().items()}
            groups["posterior_predictive"] = arviz_bridge.dataset(values, names, leading, attrs)
        return arviz_bridge.build(groups, attrs)

    def summary(self, names: Sequence[str] | None = None) -> pd.DataFrame:
        """One row per scalar: mean, sd, and for Markov chains MCSE, R-hat and ESS.

        Draws of an approximation are independent, so R-hat would say nothing; a point has no sd.

        Args:
            names: of the sites and other draws wanted; by default all, or where these hold more
                than 5,000 scalars, the small ones up to so many.
        """
        chosen = self._summarised() if names is None else list(names)
        draws = [self.posterior.draws[name] for name in chosen]
        if self.posterior.kind != "samples" or sum(x.nbytes for x in draws) <= scratch.LARGE:
            return arviz_bridge.summary(self.to_arviz(), chosen)
        group = arviz_bridge.group(self.to_arviz(), "posterior")
        wanted = group[[arviz_bridge.unslashed(name) for name in chosen]]
        return pd.concat([arviz_bridge.statistics(part) for part in scratch.parts(wanted)])

    def log_likelihood(self) -> dict[str, Tensor]:
        """Log likelihood of each observation at each draw, {site: (chain, draw, *batch)}."""
        with self._isolated(), torch.no_grad():
            return self._problem().outputs.pointwise(self._unconstrained())

    def responsibilities(self) -> dict[str, Tensor]:
        """p(value | draw, data) for each discrete site, {site: (chain, draw, *batch, K)}."""
        with self._isolated():
            return self._problem().outputs.responsibilities(self._unconstrained())

    def predict(self, data: Any = None, *, seed: int | None = None) -> dict[str, Tensor]:
        """Posterior predictive draws of the observed sites, {site: (chain, draw, *shape)}.

        Args:
            data: new data for the program; by default those of the fit. The observed sites may be
                None in them. A discrete site with one value per observation is drawn anew.
            seed: of the simulation; by default that of the fit.

        Raises ``DataError`` or ``ModelError`` where the new data do not fit the posterior.
        """
        with self._isolated(), torch.no_grad():
            new = None
            if data is not None:
                new = _prepare(self.model, data)
                if isinstance(self.model, Model):
                    new = self.model.renewed(self.data, new)
                new = _place(new, self.device, self.dtype)
            chosen = self.seed if seed is None else seed
            return self.program.predictive(self.posterior.draws, chosen, new)

    def save(self, path: str | PathLike[str], **groups: bool) -> Path:
        """Write the ArviZ object as NetCDF; the file appears whole, by rename."""
        return arviz_bridge.save(self.to_arviz(**groups), path)

    def report(self, path: str | PathLike[str]) -> Path:
        """Write a self-contained HTML report of this fit."""
        from inference.report import write_report

        return write_report({type(self.engine).__name__: self}, path)

    def __repr__(self) -> str:
        model = getattr(self.model, "__name__", type(self.model).__name__)
        size = "a point"
        if self.posterior.kind != "point":
            chains, draws = next(iter(self.posterior.draws.values())).shape[:2]
            size = f"{chains} x {draws} draws"
        return f"Fit({model} by {type(self.engine).__name__}: {size}, {self.status})"

    # -- internals -------------------------------------------------------------------------------

    def _isolated(self) -> AbstractContextManager[None]:
        return isolated(self.dtype, self.device, parameters=self.parameters)

    def _problem(self) -> Problem:
        return Problem(self.model, self.data, self.program, self.seed, self.dtype, self.device)

    def _summarised(self) -> list[str]:
        """The draws whose scalars a table can hold, in their order."""
        lead = 0 if self.posterior.kind == "point" else 2
        sizes = {k: v.shape[lead:].numel() for k, v in self.posterior.draws.items()}
        order = sorted(sizes, key=lambda name: sizes[name])
        totals = np.cumsum([sizes[name] for name in order])
        small = {name for name, total in zip(order, totals, strict=True) if total <= _TABLED}
        return [name for name in sizes if name in small]

    def _unconstrained(self) -> Tensor:
        if self.posterior.unconstrained is not None:
            return self.posterior.unconstrained
        if not self.program.sites:
            return torch.zeros(0, dtype=self.dtype, device=self.device)
        return self._problem().outputs.unconstrain(self.posterior.draws)

    def _names(self) -> Mapping[str, Mapping[str, list[Any]]]:
        return self.model.coordinates(self.data) if isinstance(self.model, Model) else {}

    def _attributes(self) -> dict[str, Any]:
        from inference import __version__

        attributes = {
            "inference_library": "ppl-suite",
            "inference_library_version": __version__,
            "engine": type(self.engine).__name__,
            "kind": self.posterior.kind,
            "seed": self.seed,
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "torch_version": str(torch.__version__),
            "platform": platform.platform(),
            "sampling_time": self.seconds.get("sampling", self.seconds.get("total", 0.0)),
            "warnings": "\n".join(self.warnings),
        }
        attributes |= {f"seconds_{name}": value for name, value in self.seconds.items()}
        settings = {f"setting_{k}": repr(v) for k, v in self.engine.settings().items()}
        return attributes | settings | self.posterior.attributes


def fit(
    model: Callable[..., Any],
    data: Any = None,
    engine: Engine | None = None,
    *,
    seed: int = 0,
    device: str | torch.device = "auto",
    dtype: torch.dtype | str | None = None,
    progress: bool | None = None,
    until: Until | None = None,
    store: str | PathLike[str] | None = None,
    resume: str | PathLike[str] | None = None,
) -> Fit:
    """Fit a Pyro program by an engine.

    Args:
        model: a ``Model`` or any Pyro function.
        data: its keyword arguments: a mapping or DataFrame of arrays, tensors, columns; for a
            ``Model`` whatever its ``prepare`` accepts.
        engine: an engine with its settings, such as ``NUTS(chains=4)``; NUTS by default.
        seed: a non-negative integer; the same seed gives the same draws.
        device: "cpu", "cuda", or "auto": a GPU where there is one and the model has weights, else
            the CPU, which is faster for small problems.
        dtype: of the real numbers; by default that of the model's weights, else float64, but
            float32 for NUTS, HMC, ChEES, MAMS and MALA on a GPU, where log densities are then added
            up in float64, unless discrete sites are summed out.
        progress: whether to show a progress bar; by default where standard error is a terminal.
        until: when to stop before the engine's own limit, such as ``Until(seconds=60)``.
        store: a folder to write the draws to as they come, as a Zarr store such as "run.zarr".
        resume: the folder of a stored run to go on with, which was stopped or killed, or is to have
            more draws; everything else must be as it was. The draws are those of a run that was
            never stopped, to the bit on a CPU.

    Returns:
        A ``Fit``. What it must warn about is in ``.warnings`` and is issued as
        ``InferenceWarning``.

    Raises:
        DataError, ModelError, EngineError: before any work, naming the cause and the remedy.
    """
    if engine is None:
        from inference.nuts import NUTS

        engine = NUTS()
    _check_engine(engine)
    until = Until() if until is None else until
    if not isinstance(until, Until):
        raise EngineError(f"until={until!r}: give a stop rule such as Until(seconds=60)")
    engine.check_until(until)
    if store is not None and resume is not None:
        raise EngineError("both store= and resume= are given; resume= goes on with a run in place")
    whole = isinstance(seed, int | np.integer) and not isinstance(seed, bool)
    if not whole or not 0 <= seed < 2**64:
        raise EngineError(f"seed={seed!r}: give a non-negative integer below 2^64")
    _check_model(model)
    clock = Clock(until.seconds)
    model = copy.deepcopy(model) if isinstance(model, nn.Module) else model
    fields = _prepare(model, data)
    where = _device(device, model, fields)
    kind = _dtype(dtype, model, _precision(engine, model, fields, where) if dtype is None else None)
    if isinstance(model, nn.Module):
        model = model.to(device=where, dtype=kind)
    title = type(engine).__name__
    small = _elements(fields) <= _THREADS_ABOVE
    with isolated(kind, where), one_in_torch(small), bar(title, show=progress) as report:
        placed = _place(fields, where, kind)
        bound = engine.bound(model, placed)
        with isolated(kind, where, validate=True):
            program = Program(model, bound)
        engine.check(model, program)
        problem = Problem(
            model, bound, program, int(seed), kind, where, report, until, clock, whole=placed
        )
        engine = engine.settled(problem)
        with _kept(engine, problem, store, resume) as problem:
            posterior = engine.run(problem)
        parameters = trained()
        if isinstance(model, Model):
            posterior = _told_by_model(model, _canonical(model, posterior, problem), bound)
        posterior.seconds["total"] = time.perf_counter() - clock.begun
        result = Fit(model, bound, engine, posterior, int(seed), where, kind, program, parameters)
        _judge(result)
    for text in result.warnings:
        warnings.warn(f"{title}: {text}", InferenceWarning, stacklevel=2)
    return result


@contextmanager
def _kept(
    engine: Engine,
    problem: Problem,
    store: str | PathLike[str] | None,
    resume: str | PathLike[str] | None,
) -> Iterator[Problem]:
    """The problem with records on disk, if they are asked for."""
    path = store if resume is None else resume
    if path is None:
        yield problem
        return
    engine.check_store(problem.model)
    from inference.identity import identity
    from inference.run_store import RunStore

    known = identity(engine, problem)
    size = chunk_size(problem.program.dim)
    records = RunStore(path, known, resume=resume is not None, size=size, device=problem.device)
    try:
        yield replace(problem, records=records)
    finally:
        records.close()


def target(
    model: Callable[..., Any],
    data: Any = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str | None = None,
    tier: TierChoice = "traced",
) -> Target:
    """The unnormalised log density of a model's continuous sites, for use outside an engine.

    Its points are unconstrained, in the order of ``target.sites``; the Jacobian is included.

    Raises:
        DataError, ModelError: as ``fit`` does.
    """
    problem = bind(model, data, device=device, dtype=dtype)
    program, kind, where = problem.program, problem.dtype, problem.device

    def log_density(x: Tensor) -> Tensor:
        with isolated(kind, where):
            return program.log_density(x)

    return Target(
        log_density, program.dim, dtype=kind, device=where, tier=tier, sites=tuple(program.sites)
    )


def bind(
    model: Callable[..., Any],
    data: Any = None,
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str | None = None,
) -> Problem:
    """A model with its data, checked and placed as ``fit`` does: what an engine is given."""
    _check_model(model)
    fields = _prepare(model, data)
    where = _device(device, model, fields)
    kind = _dtype(dtype, model)
    placed = _place(fields, where, kind)
    with isolated(kind, where, validate=True):
        program = Program(model, placed)
    return Problem(model, placed, program, seed, kind, where)


def _canonical(model: Model, posterior: Posterior, problem: Problem) -> Posterior:
    """The posterior with one representative of the model's symmetries, wherever it holds draws."""
    program, outputs = problem.program, problem.outputs
    draws = {**posterior.draws, **model.canonical(dict(posterior.draws))}
    moved = [name for name, old in posterior.draws.items() if draws[name] is not old]
    if not moved:
        return posterior
    with torch.no_grad():
        if all(site.name in draws for site in program.discrete):
            draws |= outputs.deterministics(draws)
        return replace(posterior, draws=draws, unconstrained=outputs.unconstrain(draws))


def _told_by_model(model: Model, posterior: Posterior, data: Data) -> Posterior:
    """The posterior with the model's invariants among its draws and the model's findings."""
    point = posterior.kind == "point"
    draws = {name: value[None, None] if point else value for name, value in posterior.draws.items()}
    with torch.no_grad():
        invariants = model.invariants(data, draws)
        found = model.findings(data, draws)
    added = {name: value[0, 0] if point else value for name, value in invariants.items()}
    return replace(
        posterior,
        draws=posterior.draws | added,
        invariants=tuple(added),
        findings=[*posterior.findings, *(Finding("model", "warning", np.nan, t) for t in found)],
    )


def _judge(result: Fit) -> None:
    """Add what draws, statistics and the log density tell to the findings, the worst first."""
    begin = time.perf_counter()
    posterior = result.posterior
    told = posterior.findings + _findings(posterior, result.program)
    posterior.findings[:] = diagnostics.joined(told, probe(result))
    posterior.seconds["checks"] = time.perf_counter() - begin


def _findings(posterior: Posterior, program: Program) -> list[Finding]:
    if posterior.kind == "point" or not program.dim:
        return []
    draws = {site.name: _numpy(posterior.draws[site.name]) for site in program.sites}
    if posterior.kind == "samples":
        draws = scratch.thinned(draws)
    stats = {name: _numpy(value) for name, value in posterior.stats.items()}
    if posterior.kind == "approximation":
        return diagnostics.approximation(draws, stats)
    invariants = {name: _numpy(posterior.draws[name]) for name in posterior.invariants}
    superchains = posterior.attributes.get("superchains")
    return diagnostics.chains(draws, stats, invariants, superchains)


def _elements(fields: Data) -> int:
    return sum(value.numel() for value in fields.values() if isinstance(value, Tensor))


def _prepare(model: Callable[..., Any], data: Any) -> Data:
    return model.prepare(data) if isinstance(model, Model) else as_fields(data)


def _place(fields: Data, device: torch.device, dtype: torch.dtype) -> Data:
    def place(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(device, dtype) if value.is_floating_point() else value.to(device)

    return {name: place(value) for name, value in fields.items()}


def _device(device: str | torch.device, model: Any, fields: Data) -> torch.device:
    if device != "auto":
        legal = f"device={device!r}: give 'cpu', 'cuda' or 'auto'"
        try:
            chosen = torch.device(device)
        except (RuntimeError, TypeError) as error:
            raise EngineError(legal) from error
        if chosen.type not in ("cpu", "cuda"):
            raise EngineError(legal)
        if chosen.type == "cuda" and not torch.cuda.is_available():
            raise EngineError(f"device={device!r}: torch sees no GPU here; use device='cpu'")
        return chosen
    weights = isinstance(model, nn.Module) and any(True for _ in model.parameters())
    return torch.device("cuda" if weights and torch.cuda.is_available() else "cpu")


def _precision(engine: Engine, model: Any, fields: Data, where: torch.device) -> torch.dtype:
    """What an engine takes on a device: float32 on a GPU, if densities can be added up in double.

    They cannot where discrete sites are summed out.
    """
    if where.type != "cuda" or not engine.float32_on_gpu:
        return torch.float64
    cpu = torch.device("cpu")
    with isolated(torch.float64, cpu):
        discrete = Program(model, engine.bound(model, _place(fields, cpu, torch.float64))).discrete
    return torch.float64 if discrete else torch.float32


def _dtype(
    dtype: torch.dtype | str | None, model: Any, otherwise: torch.dtype | None = None
) -> torch.dtype:
    if isinstance(dtype, str):
        named = {"float32": torch.float32, "float64": torch.float64}
        if dtype not in named:
            raise EngineError(f"dtype={dtype!r}: choose 'float32' or 'float64'")
        return named[dtype]
    if dtype is not None:
        if dtype not in (torch.float32, torch.float64):
            raise EngineError(f"dtype={dtype}: choose torch.float32 or torch.float64")
        return dtype
    if isinstance(model, nn.Module):
        for parameter in model.parameters():
            return parameter.dtype
    return otherwise or torch.float64


def _check_model(model: Any) -> None:
    if isinstance(model, type):
        raise EngineError(f"model is the class {model.__name__}; give {model.__name__}(...)")
    if not callable(model):
        raise EngineError(f"model is a {type(model).__name__}; give a Pyro function or a Model")


def _check_engine(engine: Any) -> None:
    if isinstance(engine, type) and issubclass(engine, Engine):
        raise EngineError(f"engine is the class {engine.__name__}; give {engine.__name__}(...)")
    if not isinstance(engine, Engine):
        raise EngineError(
            f"engine is a {type(engine).__name__}; give an engine such as NUTS(chains=4)"
        )


def _numpy(value: Tensor) -> np.ndarray:
    return value.detach().cpu().numpy()
