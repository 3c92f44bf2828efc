"""Kill runs at random moments, go on with them, and compare with runs that were never stopped.

    python -m benchmarks.kill --times 50

Each trial starts a stored run in a process of its own, kills it by SIGKILL after a random time, and
so again when it goes on, some times, and lets it end. Counted are the trials whose draws,
statistics and weights equal those of an undisturbed run in memory to the bit, and those where
xarray opened the store after each kill and found the beginning of the same draws. States are
written every 0.02 seconds and chunks are of 64 draws, so that kills hit all phases of writing. Four
of the runs are chains; the fifth trains a variational autoencoder by rows.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from inference import (
    HMC,
    MH,
    NUTS,
    SVI,
    Engine,
    Gibbs,
    ImportanceWeighted,
    InferenceWarning,
    fit,
    recording,
    run_store,
    stopping,
)
from ppl_models import VAE, LogisticRegression


class Case(NamedTuple):
    """A run to be killed."""

    model: Callable[[], Any]
    data: Any
    engine: Engine


def autoencoder() -> VAE:
    """Fresh weights, always the same."""
    torch.manual_seed(0)
    return VAE(2, 16, shape=8, binarise="dynamic")


DATA = {"x": [-1.0, 0.5, 2.0, 1.0, -0.3, 0.2], "y": [0, 1, 1, 0, 0, 1]}
IMAGES = np.random.default_rng(0).uniform(size=(200, 8))
CHAINS: dict[str, Engine] = {
    "NUTS": NUTS(chains=3, warmup=150, draws=500, tier="traced"),
    "HMC": HMC(chains=2, warmup=100, draws=400, steps=4, tier="traced"),
    "MH, thinned": MH(chains=3, warmup=100, draws=400, thin=3, tier="traced"),
    "Gibbs": Gibbs(chains=2, warmup=50, draws=400),
}
TRAINING = SVI(
    objective=ImportanceWeighted(3),
    steps=3000,
    batch_size=32,
    clip=1.0,
    average=0.99,
    holdout=0.1,
    rows=4,
    draws=8,
    tier="traced",
)
CASES = {name: Case(LogisticRegression, DATA, engine) for name, engine in CHAINS.items()}
CASES["SVI by rows"] = Case(autoencoder, IMAGES, TRAINING)
KILLS = 3  # at most, in one trial


def forked(work: Callable[[], None]) -> int:
    """A process that does the work and leaves with status 0, or 1 after an error."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    try:
        torch.set_num_threads(1)
        work()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def ended(pid: int) -> int:
    """The status with which a process left; negative where a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def keep(file: Path, case: Case, **where: Path) -> None:
    """Fit, and write draws, statistics and weights to a file."""
    run_store.EVERY = 0.02
    recording.LARGEST = 64
    if where:  # in memory blocks of steps are long, and cut otherwise
        stopping.LOOK = 0.0
    warnings.simplefilter("ignore", InferenceWarning)
    found: Any = fit(case.model(), case.data, case.engine, seed=1, **where)
    values = found.posterior.draws | found.posterior.stats | found.model.state_dict()
    np.savez(file, **{name: value.numpy() for name, value in values.items()})


def look(store: Path, reference: Path) -> None:
    """Open the store as anyone would and compare it with the undisturbed draws."""
    import xarray as xr

    whole = np.load(reference)
    for group in ("posterior", "sample_stats"):
        for name, values in xr.open_zarr(store, group=group).items():
            there = whole[str(name)][:, : values.sizes["draw"]]
            # what is shown of a chunk on its way may differ in rounding from the whole chunk
            np.testing.assert_allclose(values.to_numpy(), there, rtol=1e-12, atol=1e-12)


def trial(
    case: Case, folder: Path, reference: Path, seconds: float, moments: random.Random
) -> bool:
    """Whether a run that is killed and goes on ends as one that is not."""
    store, result = folder / "run.zarr", folder / "result.npz"
    shutil.rmtree(store, ignore_errors=True)
    result.unlink(missing_ok=True)
    for kill in range(KILLS + 1):
        there = (store / "run.json").is_file()
        where = {"resume" if there else "store": store}
        pid = forked(lambda w=where: keep(result, case, **w))
        if kill < KILLS:
            time.sleep(moments.uniform(0, seconds))
            os.kill(pid, signal.SIGKILL)
        status = ended(pid)
        if status == 0:
            break
        if status != -signal.SIGKILL:
            return False
        if (store / "zarr.json").is_file() and ended(forked(lambda: look(store, reference))):
            return False
    before, after = np.load(reference), np.load(result)
    return before.files == after.files and all(
        np.array_equal(before[name], after[name]) for name in before.files
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--times", type=int, default=50, help="trials, shared by the runs")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    arguments = parser.parse_args()
    moments = random.Random(arguments.seed)
    equal = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, (label, case) in enumerate(CASES.items()):
            times = len(range(number, arguments.times, len(CASES)))
            reference, other = folder / f"{number}.npz", folder / "undisturbed.zarr"
            if not times:
                continue
            if ended(forked(lambda r=reference, c=case: keep(r, c))):
                sys.exit(f"{label}: the undisturbed run failed")
            begin = time.perf_counter()
            ended(forked(lambda c=case, o=other: keep(folder / "other.npz", c, store=o)))
            seconds = time.perf_counter() - begin
            shutil.rmtree(other)
            same = sum(trial(case, folder, reference, seconds, moments) for _ in range(times))
            print(f"{label}: {same} of {times} equal ({seconds:.1f} s undisturbed)", flush=True)
            equal += same
    print(f"{equal} of {arguments.times} equal")


if __name__ == "__main__":
    main()
