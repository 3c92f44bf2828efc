"""What the benchmarks judge by: reference moments, agreement with them, ratios to goals."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyro
import pytest

from benchmarks.goals import verdicts
from benchmarks.judge import agreement, reliability
from benchmarks.posteriors import POSTERIORS
from benchmarks.references import Moments, reference
from inference.fit import bind


@pytest.mark.parametrize("name", POSTERIORS)
def test_every_site_has_reference_moments(name: str) -> None:
    posterior = POSTERIORS[name]
    program = bind(posterior.write(pyro, pyro.distributions), posterior.data()).program
    shapes = {site.name: tuple(site.shape) for site in program.sites}
    known = reference(name)
    assert {site: np.shape(m.mean) for site, m in known.items()} == shapes
    assert all(np.shape(m.sd) == shapes[site] for site, m in known.items())
    assert all((np.asarray(m.sd) > 0).all() for m in known.values())


def test_quadrature_gives_the_published_moments_of_eight_schools() -> None:
    """posteriordb: 10,000 independent draws, whose standard errors are about sd / 100."""
    known = reference("eight_schools")
    for site, mean, sd in (("mu", 4.4105, 3.309), ("tau", 3.602, 3.199)):
        assert abs(known[site].mean - mean) < 3 * sd / 100
        assert abs(known[site].sd - sd) < 3 * sd / 100


def test_agreement_tells_wrong_means_and_sds_from_right_ones() -> None:
    random = np.random.default_rng(0)
    draws = {"x": random.normal(1.0, 2.0, size=(4, 500, 3))}
    right = Moments(np.full(3, 1.0), np.full(3, 2.0))
    assert max(agreement(draws, {"x": right}).values()) < 4
    for wrong, which in (
        (right._replace(mean=right.mean + 0.5), "mean_mcse"),
        (right._replace(sd=1.2 * right.sd), "sd_mcse"),
    ):
        assert agreement(draws, {"x": wrong})[which] > 5
    told = reliability(draws)
    assert told["min_ess"] > 1_000
    assert told["max_rhat"] < 1.02


def test_verdicts_take_the_ratio_within_each_round() -> None:
    rows = [
        {
            "posterior": "oring", "chains": 4, "contender": contender, "precision": "float64",
            "cache": "cold", "seed": seed, "ess_per_s_run": speed, "ess_per_s": speed,
            "ess_per_s_sampling": speed,
        }
        for contender, speeds in (("suite", [40.0, 8.0, 20.0]), ("nutpie", [10.0, 4.0, 4.0]))
        for seed, speed in enumerate(speeds)
    ]  # fmt: skip
    judged = verdicts(pd.DataFrame(rows)).set_index("what")
    alone, everything = judged.loc["without compiling"], judged.loc["everything, empty cache"]
    assert (alone["ratio"], alone["least"], alone["most"]) == (4.0, 2.0, 5.0)
    assert alone["verdict"] == "met"
    assert everything["verdict"] == "met"
    slower = pd.DataFrame(rows)
    slower.loc[slower["contender"] == "suite", "ess_per_s_run"] /= 8
    assert verdicts(slower).set_index("what").loc["without compiling", "verdict"] == "missed by 3 x"
