"""Are the verdicts right? Runs whose truth is known, and what ``diagnose`` says of them.

    python -m benchmarks.battery [--held-out] [--seeds 2] [--cases funnel/banana] [--save runs.csv]

An answer is wrong where a mean is off by more than half a posterior sd, or an sd by more than 30 %,
for any scalar whose truth is given. Wrong answers should be flagged by an error, right ones not.

A run can be right by luck: four chains stuck in two modes, two in each. Its chance of being wrong
is told by its parts, which are independent: chains, runs of particles, or where there is one, three
further seeds. Where the truth lies so far from these that a mean or an sd would be wrong in
more than one run of twenty, a right answer is counted as luck, and a flag on it as deserved. A
second table judges settings over their seeds: a setting (posterior, engine and budget) is wrong
where the root mean square over seeds of the bias, or of the logarithm of the sd's ratio, is beyond
the same limits, and flagged where at least half of its runs are. ``--save`` writes every run at
once and goes on from there, so that a battery can be run in parts. ``--held-out`` takes the
settings that no threshold was chosen on.
"""

from __future__ import annotations

import argparse
import logging
import math
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks import battery_cases
from benchmarks.battery_cases import Case
from inference import SVI, Fit, diagnose, fit
from inference.engine import Engine
from ppl_models import SuiteError

BIAS, RATIO = 0.5, math.log(1.3)
"""In posterior sds, and of the logarithm of the ratio of the sds: what is wrong."""

_CHANCE = 1.96  # standard errors on either side that leave out one run of twenty
_FARTHEST = 20.0  # logarithm of a ratio, where it is infinite
_NARROW = math.log(1 / 0.7)


def by_luck(case: Case, engine: Engine, seed: int, result: Fit) -> bool:
    """Whether more than one run of twenty would be wrong, by how far its parts are from the truth.

    Errors of a chain's mean (in posterior sds) and of its second moment about the true mean are
    those of the answer times the root of the number of chains.
    """
    again: list[int] = []
    if len(next(iter(result.posterior.draws.values()))) == 1 and not isinstance(engine, SVI):
        again = [1000 + 3 * seed + i for i in range(3)]
    results = [fit(case.model, case.data, engine, seed=s, progress=False) for s in again]
    results.append(result)
    for name, (mean, sd) in case.truth.items():
        site, _, index = name.partition("[")
        where = (..., *(int(number) for number in re.findall(r"\d+", index)))
        draws = torch.cat([one.posterior.draws[site][where].double() for one in results])
        z = (draws - mean) / sd  # (parts, draw)
        if len(z) < 2:
            return False
        errors = torch.stack([z.mean(1), (z.square().mean(1) - 1) / 2])  # (2, parts)
        parts = 1 if again else len(z)
        bias, log_ratio = (_CHANCE * (errors.square().mean(1) / parts).sqrt()).tolist()
        if bias > BIAS or log_ratio > RATIO:
            return True
    return False


def judged(case: Case, engine: Engine, seed: int) -> dict[str, Any]:
    """Whether an answer is wrong, by how much, and what was found."""
    try:
        result = fit(case.model, case.data, engine, seed=seed, progress=False)
    except SuiteError as error:
        return {"refused": str(error)[:60]}
    found = diagnose(result)
    summary = result.summary()
    bias, log_ratio = 0.0, 0.0
    for name, (mean, sd) in case.truth.items():
        row = summary.loc[name]
        if not math.isfinite(sd):  # no answer can be right
            bias, log_ratio = math.inf, _FARTHEST
            break
        off = abs(float(row["mean"]) - mean) / sd
        bias = max(bias, off if math.isfinite(off) else math.inf)
        other = math.log(max(float(row["sd"]) / sd, 1e-9)) if off < math.inf else _FARTHEST
        log_ratio = max(log_ratio, other, key=abs)
    wrong = bias > BIAS or not -_NARROW <= log_ratio <= RATIO
    return {
        "bias": bias,
        "log_ratio": min(log_ratio, _FARTHEST),
        "wrong": wrong,
        "luck": not wrong and by_luck(case, engine, seed, result),
        "error": any(finding.severity == "error" for finding in found),
        "findings": ", ".join(
            f"{finding.name}{'!' if finding.severity == 'error' else ''}={finding.figure:.3g}"
            for finding in found
            if finding.severity != "note"
        ),
        "seconds": result.seconds["total"],
        "judging": result.seconds["checks"],
    }


def settings(runs: pd.DataFrame) -> pd.DataFrame:
    """Each setting over its seeds: root mean squares, whether it is wrong, and whether flagged."""
    rows = []
    for (case, engine), group in runs.groupby(["case", "engine"], sort=False):
        bias = math.sqrt(float(np.square(group["bias"]).mean()))
        ratio = math.sqrt(float(np.square(group["log_ratio"]).mean()))
        flagged = float(group["error"].astype(bool).mean())
        rows.append(
            {
                "case": case,
                "engine": engine,
                "bias": bias,
                "log_ratio": ratio,
                "wrong": bias > BIAS or ratio > RATIO,
                "luck": bool(group["luck"].astype(bool).any()),
                "error": flagged >= 0.5,
                "runs flagged": flagged,
                "findings": group["findings"].iloc[0],
            }
        )
    return pd.DataFrame(rows)


def tell(table: pd.DataFrame, what: str) -> None:
    """Print how many wrong answers are flagged, how many right ones, and which are missed."""
    wrong, flagged = table["wrong"].astype(bool), table["error"].astype(bool)
    luck = table["luck"].astype(bool) & ~wrong
    kind = np.select([wrong, luck], ["wrong", "right by luck"], "right")
    print(f"\n{what}")
    print(pd.crosstab(pd.Series(kind, table.index, name=""), flagged.rename("flagged by an error")))
    for name in ("wrong", "right", "right by luck"):
        if (kind == name).any():
            print(f"{name}, flagged: {flagged[kind == name].mean():.1%} of {(kind == name).sum()}")
    columns = [name for name in table.columns if name not in ("wrong", "luck", "error", "refused")]
    for title, rows in (
        ("missed", wrong & ~flagged),
        ("false alarms", (kind == "right") & flagged),
    ):
        if rows.any():
            print(f"\n{title}:")
            print(table[rows][columns].to_string(index=False, float_format="%.3g"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--held-out", action="store_true", help="settings of the second half")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--cases", default="", help="names, separated by slashes")
    parser.add_argument("--save", type=Path, help="a CSV file of the runs, to write and go on from")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    battery = battery_cases
    if chosen.held_out:
        from benchmarks import battery_held_out as battery
    names = chosen.cases.split("/") if chosen.cases else list(battery.CASES)
    pairs = [(name, label) for name, label in battery.SETTINGS if name in names]
    rows: list[dict[str, Any]] = []
    if chosen.save is not None and chosen.save.exists():
        rows = pd.read_csv(chosen.save, keep_default_na=True).to_dict("records")  # type: ignore[assignment]
    done = {(row["case"], row["engine"], row["seed"]) for row in rows}
    for seed in range(chosen.seeds):
        for name, label in pairs:
            if (name, label, seed) in done:
                continue
            row = {"case": name, "engine": label, "seed": seed}
            rows.append(row | judged(battery.CASES[name], battery.ENGINES[label], seed))
            if chosen.save is not None:
                pd.DataFrame(rows).to_csv(chosen.save, index=False)
    table = pd.DataFrame(rows)
    ran = table[table["wrong"].notna()].copy()
    ran["findings"] = ran["findings"].fillna("")
    print(f"{len(table)} runs, {len(table) - len(ran)} refused before work or at their start")
    print(
        f"judging: {ran['judging'].median():.2f} s, fits {ran['seconds'].median():.2f} s (medians)"
    )
    tell(ran, "by run")
    if chosen.seeds > 1:
        tell(settings(ran), "by setting")


if __name__ == "__main__":
    main()
