"""Are the verdicts right? Runs whose truth is known, and what ``diagnose`` says of them.

    python -m benchmarks.battery [--seeds 2]

An answer is wrong where a mean is off by more than half a posterior sd, or an sd by more than 30 %.
Wrong answers should be flagged by an error, right ones not.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch

from inference import HMC, MH, NUTS, SVI, ImportanceSampling, diagnose, fit
from inference.engine import Engine
from ppl_models import SuiteError

Truth = dict[str, tuple[float, float]]


class Case(NamedTuple):
    """A program without data, and mean and sd of scalars (of every element of a site)."""

    program: Callable[[], None]
    truth: Truth


def normal() -> None:
    pyro.sample("x", dist.Normal(torch.tensor([3.0, -1.0, 0.0]), torch.tensor([2.0, 0.1, 1.0])))


def correlated() -> None:
    covariance = torch.tensor([[1.0, 0.95], [0.95, 1.0]])
    pyro.sample("x", dist.MultivariateNormal(torch.zeros(2), covariance))


def wide() -> None:
    pyro.sample("x", dist.Normal(0.0, torch.logspace(-2, 2, 20)).to_event(1))


def funnel() -> None:
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    pyro.sample("y", dist.Normal(0.0, (v / 2).exp()).expand([9]).to_event(1))


def non_centred() -> None:
    pyro.sample("v", dist.Normal(0.0, 3.0))
    pyro.sample("z", dist.Normal(0.0, 1.0).expand([9]).to_event(1))


def student() -> None:
    pyro.sample("x", dist.StudentT(5.0).expand([5]).to_event(1))


def heavy() -> None:
    pyro.sample("x", dist.StudentT(2.2).expand([3]).to_event(1))


def skewed() -> None:
    pyro.sample("x", dist.Gamma(torch.tensor([2.0, 5.0]), 1.0).to_event(1))


def bimodal(apart: float, weight: float = 0.5) -> Case:
    def program() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 30.0))
        ends = torch.stack(
            [
                math.log(weight) + dist.Normal(-apart, 1.0).log_prob(x),
                math.log1p(-weight) + dist.Normal(apart, 1.0).log_prob(x),
            ]
        )
        pyro.factor("ends", ends.logsumexp(0) - dist.Normal(0.0, 30.0).log_prob(x))

    mean = apart * (1 - 2 * weight)
    return Case(program, {"x": (mean, math.sqrt(1 + apart**2 - mean**2))})


def separated() -> Case:
    """A logistic regression whose classes are apart, with a flat prior: no posterior."""
    x, y = torch.tensor([-2.0, -1.0, 1.0, 2.0]), torch.tensor([0.0, 0.0, 1.0, 1.0])

    def program() -> None:
        real = dist.constraints.real
        b = pyro.sample("b", dist.ImproperUniform(real, (), ()))
        with pyro.plate("rows", 4):
            pyro.sample("y", dist.Bernoulli(logits=b * x), obs=y)

    return Case(program, {"b": (math.inf, math.inf)})


SCALES = np.logspace(-2, 2, 20)
CASES: dict[str, Case] = {
    "normal": Case(normal, {"x[0]": (3, 2), "x[1]": (-1, 0.1), "x[2]": (0, 1)}),
    "correlated": Case(correlated, {"x[0]": (0, 1), "x[1]": (0, 1)}),
    "wide": Case(wide, {f"x[{i}]": (0, s) for i, s in enumerate(SCALES)}),
    "funnel": Case(funnel, {"v": (0, 3)}),
    "non-centred": Case(non_centred, {"v": (0, 3), **{f"z[{i}]": (0, 1) for i in range(9)}}),
    "student 5": Case(student, {f"x[{i}]": (0, math.sqrt(5 / 3)) for i in range(5)}),
    "student 2.2": Case(heavy, {f"x[{i}]": (0, math.sqrt(11)) for i in range(3)}),
    "skewed": Case(skewed, {"x[0]": (2, math.sqrt(2)), "x[1]": (5, math.sqrt(5))}),
    "bimodal near": bimodal(1.5),
    "bimodal far": bimodal(15.0),
    "bimodal uneven": bimodal(15.0, 0.2),
    "separated": separated(),
}

ENGINES: dict[str, Engine] = {
    "nuts": NUTS(warmup=500, draws=500, tier="traced"),
    "nuts, 1 chain": NUTS(chains=1, warmup=500, draws=1000, tier="traced"),
    "nuts, too short": NUTS(warmup=10, draws=15, tier="traced"),
    "nuts, short": NUTS(warmup=100, draws=100, tier="traced"),
    "nuts, coarse step": NUTS(warmup=200, draws=500, step_size=2.2, tier="traced"),
    "hmc": HMC(warmup=500, draws=1000, steps=8, tier="traced"),
    "hmc, tiny step": HMC(warmup=200, draws=300, steps=4, step_size=1e-3, tier="traced"),
    "mh": MH(warmup=1000, draws=1000, thin=10, tier="traced"),
    "mh, too short": MH(warmup=50, draws=100, tier="traced"),
    "mean-field": SVI(draws=2000, tier="traced"),
    "mean-field, short": SVI(steps=100, draws=1000, tier="traced"),
    "full-rank": SVI(guide="full-rank", draws=2000, tier="traced"),
    "laplace": SVI(guide="laplace", draws=2000, tier="traced"),
    "importance": ImportanceSampling(proposals=5000, draws=1000),
}


def judged(case: Case, engine: Engine, seed: int) -> dict[str, Any]:
    """Whether an answer is wrong, by how much, and what was found."""
    begin = time.perf_counter()
    try:
        result = fit(case.program, None, engine, seed=seed, progress=False)
    except SuiteError as error:
        return {"refused": str(error)[:60]}
    summary = result.summary()
    bias, ratio = 0.0, 1.0
    for name, (mean, sd) in case.truth.items():
        row = summary.loc[name]
        if not math.isfinite(sd):
            bias = math.inf
            continue
        bias = max(bias, abs(float(row["mean"]) - mean) / sd)
        other = float(row["sd"]) / sd
        ratio = other if abs(math.log(max(other, 1e-9))) > abs(math.log(ratio)) else ratio
    found = diagnose(result)
    return {
        "bias": bias,
        "sd_ratio": ratio,
        "wrong": bias > 0.5 or not 0.7 <= ratio <= 1.3,
        "error": any(finding.severity == "error" for finding in found),
        "warning": any(finding.severity == "warning" for finding in found),
        "findings": ", ".join(f"{finding.name}={finding.figure:.3g}" for finding in found),
        "seconds": time.perf_counter() - begin,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=1)
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = [
        {"case": name, "engine": label, "seed": seed, **judged(case, engine, seed)}
        for name, case in CASES.items()
        for label, engine in ENGINES.items()
        for seed in range(chosen.seeds)
    ]
    table = pd.DataFrame(rows)
    with pd.option_context("display.width", 220, "display.max_rows", None):
        print(table.drop(columns=["warning"]).to_string(index=False, float_format="%.3g"))
    ran = table[table["wrong"].notna()]
    wrong = ran["wrong"].astype(bool)
    flagged = ran["error"].astype(bool)
    print(f"\n{len(table)} runs, {len(table) - len(ran)} refused before work or at their start")
    print(pd.crosstab(wrong.rename("wrong"), flagged.rename("flagged by an error")))
    print(f"wrong answers flagged: {flagged[wrong].mean():.1%} of {int(wrong.sum())}")
    print(f"right answers flagged: {flagged[~wrong].mean():.1%} of {int((~wrong).sum())}")


if __name__ == "__main__":
    main()
