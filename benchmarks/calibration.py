"""Simulation-based calibration of the samplers on three models, and of a sabotaged one.

    python -m benchmarks.calibration [--replications 200]

Ranks of the truth among draws given data simulated from it; the sabotage multiplies momenta by 0.8.
"""

from __future__ import annotations

import argparse
import time
import warnings
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from inference import HMC, MH, NUTS, Gibbs, sbc
from inference.chains import Randomness
from inference.sampling import Sampler
from ppl_models import GaussianMixture, ORing
from tests.targets import NormalMeanVariance


@dataclass(frozen=True)
class Narrow(HMC):
    """HMC with momenta whose sd is 0.8 instead of 1."""

    def step(self, target: Any, state: Any, tuning: Any, randomness: Randomness) -> Any:
        narrow = randomness._replace(normal=0.8 * randomness.normal)
        return super().step(target, state, tuning, narrow)


def cases() -> dict[str, tuple[Any, Any]]:
    rows = torch.randn(40, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return {
        "normal, mean and variance": (
            NormalMeanVariance(),
            {"y": torch.linspace(-1.0, 2.0, 8, dtype=torch.float64)},
        ),
        "O-ring, normal prior": (ORing(prior="normal"), None),
        "mixture of two": (
            GaussianMixture(
                2,
                covariance="diagonal",
                concentration=3.0,
                shrinkage=0.2,
                degrees=8.0,
                scale=1.0,
            ),
            # identifiable up to labels: sbc ranks what the model's canonical form orders
            {"x": rows, "location": [0.0], "spread": [4.0]},
        ),
    }


def engines(draws: int) -> dict[str, Sampler | Gibbs]:
    common: dict[str, Any] = {"chains": 1, "tier": "traced"}
    return {
        "NUTS": NUTS(warmup=300, draws=draws, **common),
        "HMC": HMC(warmup=300, draws=draws, steps=8, **common),
        "MH": MH(warmup=1000, draws=draws, thin=10, **common),
        "Gibbs": Gibbs(chains=1, warmup=100, draws=draws),
        "HMC, narrow momenta": Narrow(warmup=300, draws=draws, steps=8, **common),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--replications", type=int, default=200)
    parser.add_argument("--draws", type=int, default=200)
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    for name, (model, data) in cases().items():
        for label, engine in engines(chosen.draws).items():
            begin = time.perf_counter()
            result = sbc(model, data, engine, replications=chosen.replications, seed=11)
            rows.append(
                {
                    "model": name,
                    "engine": label,
                    "statistics": len(result.table),
                    "least_p": result.table["ecdf_p"].min(),
                    "passed": result.passed,
                    "seconds": time.perf_counter() - begin,
                }
            )
            print(rows[-1], flush=True)
    print(pd.DataFrame(rows).to_string(index=False, float_format="%.3g"))


if __name__ == "__main__":
    main()
