"""Contenders, and runs of them in fresh processes with caches of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import typer

from benchmarks.measure import Job

# a thread limit set for something else would hold back those that use all cores by default
_LIMITS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


@dataclass(frozen=True)
class Contender:
    """A row of the table; ``cache`` says whether compiled code of an earlier process is at hand."""

    name: str
    module: str  # of benchmarks.contenders
    variant: str
    precision: str = "float64"
    cache: str = "-"

    @property
    def ours(self) -> bool:
        return self.module == "suite"


def caches(folder: Path, *, ours: bool) -> dict[str, str]:
    """Environment variables that keep what each library's compiler leaves in the folder."""
    found = {
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "PPL_SUITE_CACHE": str(folder / "suite"),
    }
    if ours:  # numba's functions of the suite are no model's: compiled once per installation
        return found
    return found | {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "NUMBA_CACHE_DIR": str(folder / "numba"),
        "PYTENSOR_FLAGS": f"base_compiledir={folder / 'pytensor'}",
    }


def run_fresh(
    row: Contender, job: Job, peers_python: str, cache: Path | None, **more: str
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What the job took and its draws, from a process of its own; both empty where it failed.

    Args:
        row: who runs it.
        job: what is run.
        peers_python: the interpreter of the peers' environment.
        cache: the folder of compiled code; None leaves the user's own.
        more: other environment variables.
    """
    environment = {k: v for k, v in os.environ.items() if k not in _LIMITS} | more
    if cache is not None:
        environment |= caches(cache, ours=row.ours)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "draws.npz"
        python = sys.executable if row.ours else peers_python
        command = [python, "-m", "benchmarks.measure", json.dumps(asdict(job)), str(path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            typer.echo(f"{row.name}, {job.posterior}: failed\n{done.stderr[-2000:]}", err=True)
            return {}, {}
        with np.load(path) as file:
            return json.loads(done.stdout.splitlines()[-1]), dict(file)
