"""How many times the effective draws per second of each peer the suite is to make."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

SMALL, _LARGE = ("oring", "eight_schools"), ("mixture", "hierarchical", "logistic")
_ALL = SMALL + _LARGE


class Goal(NamedTuple):
    """Times what a peer makes, by its name in the table."""

    what: str
    measure: str
    cache: str
    posteriors: tuple[str, ...]
    chains: tuple[int, ...]
    times: dict[str, float]


GOALS = [
    Goal("without compiling", "ess_per_s_run", "cold", SMALL, (4,),
         {"pyro": 500, "numpyro": 50, "numpyro-jit": 3, "nutpie": 1.5}),
    Goal("without compiling", "ess_per_s_run", "cold", _LARGE, (4,),
         {"pyro": 30, "numpyro": 2, "numpyro-jit": 1.5, "nutpie": 1.5}),
    Goal("without compiling", "ess_per_s_run", "cold", SMALL, (64,),
         {"numpyro": 50, "numpyro-jit": 5, "nutpie": 2}),
    Goal("everything, empty cache", "ess_per_s", "cold", _ALL, (4, 64),
         {"pyro": 5, "numpyro": 2, "numpyro-jit": 2, "nutpie": 1}),
    Goal("everything, warm cache", "ess_per_s", "warm", _ALL, (4, 64),
         {"pyro": 100, "numpyro": 20, "numpyro-jit": 10, "nutpie": 5}),
]  # fmt: skip


def verdicts(runs: pd.DataFrame) -> pd.DataFrame:
    """Medians over repeats of the suite's ratio to each peer within a repeat, against the goals.

    ``draws_alone`` is the same ratio for the draws after warm-up alone, ``float32`` that to the
    peer in single precision, where these were measured.
    """
    rows: list[dict[str, Any]] = []
    for goal in GOALS:
        for posterior in goal.posteriors:
            for chains in goal.chains:
                for peer, times in goal.times.items():
                    row = _row(runs, goal, posterior, chains, peer, times)
                    rows += [] if row is None else [row]
    return pd.DataFrame(rows)


def _row(
    runs: pd.DataFrame, goal: Goal, posterior: str, chains: int, peer: str, times: float
) -> dict[str, Any] | None:
    here = runs[(runs["posterior"] == posterior) & (runs["chains"] == chains)]

    def ratios(measure: str, precision: str = "float64") -> pd.Series:
        ours = here[(here["contender"] == "suite") & (here["cache"] == goal.cache)]
        theirs = here[(here["contender"] == peer) & (here["precision"] == precision)]
        theirs = theirs[theirs["cache"].isin((goal.cache, "-"))]
        found = ours.set_index("seed")[measure] / theirs.set_index("seed")[measure]
        return found.dropna()

    found = ratios(goal.measure)
    if found.empty:
        return None
    ratio = float(found.median())
    alone = ratios("ess_per_s_sampling").median() if goal.measure == "ess_per_s_run" else np.nan
    return {
        "what": goal.what,
        "posterior": posterior,
        "chains": chains,
        "peer": peer,
        "ratio": ratio,
        "least": found.min(),
        "most": found.max(),
        "goal": times,
        "verdict": "met" if ratio >= times else f"missed by {times / ratio:.3g} x",
        "draws_alone": alone,
        "float32": ratios(goal.measure, "float32").median(),
    }
