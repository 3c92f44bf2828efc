"""One run of one sampler in a process of its own: ``python -m benchmarks.measure JSON DRAWS``.

The process may be of another environment than the suite's: only the contender's own module is
imported, and importing it is timed apart. Everything after that is counted: what a library imports
later, tracing and compiling. The draws go to the npz file DRAWS, to be judged elsewhere by one
function for all; the answer is one line of JSON, the last of standard output.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
import warnings
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from benchmarks.posteriors import POSTERIORS, Arrays


@dataclass(frozen=True)
class Job:
    """What one process is asked to do."""

    posterior: str
    contender: str  # a module of benchmarks.contenders
    variant: str
    precision: str  # "float64" or "float32"
    chains: int
    warmup: int
    draws: int
    seed: int
    threads: int | None = None  # of torch; None leaves the library's own default
    again: int = 0  # further calls, for what the first cannot tell


class Run(NamedTuple):
    """Draws by site, (chain, draw, *event), and what they took."""

    draws: Arrays
    total_s: float  # everything from the program and its data to draws in hand
    run_s: float  # warm-up and draws, without tracing and compiling
    sampling_s: float = np.nan  # the draws after warm-up alone
    gradients_per_s: float = np.nan  # of all chains


def share(run_s: float, warmup_steps: np.ndarray, steps: np.ndarray, *, lockstep: bool) -> float:
    """The seconds of ``run_s`` that the draws took, by the leapfrogs (chain, draw) of each phase.

    In lockstep a transition of all chains takes as many leapfrogs as that of the slowest.
    """

    def cost(n: np.ndarray) -> int:
        return int((n.max(0) if lockstep else n).sum())

    return run_s * cost(steps) / (cost(warmup_steps) + cost(steps))


def main() -> None:
    job = Job(**json.loads(sys.argv[1]))
    begin = time.perf_counter()
    contender = importlib.import_module(f"benchmarks.contenders.{job.contender}")
    gc.collect()  # a pass over what was imported, which else comes at any time
    imported = time.perf_counter() - begin
    run: Run = contender.run(POSTERIORS[job.posterior], job)
    np.savez(sys.argv[2], **{name: np.asarray(value) for name, value in run.draws.items()})
    print(
        json.dumps(
            {"import_s": imported} | {k: v for k, v in run._asdict().items() if k != "draws"}
        )
    )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    main()
