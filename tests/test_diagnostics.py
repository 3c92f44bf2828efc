"""Findings on chains whose faults are known."""

import numpy as np
import pytest
import torch

from inference import HMC, diagnostics, fit
from tests.programs import Means

RNG = np.random.default_rng(3)
GOOD = RNG.normal(size=(4, 1000, 2))
LP = {"lp": RNG.normal(size=(4, 1000))}


def names(*arguments):
    return [finding.name for finding in diagnostics.chains(*arguments)]


def test_independent_draws_have_no_finding():
    assert names({"mu": GOOD}, LP) == []
    assert names({"mu": GOOD}, LP, {"total": GOOD.sum(-1)}) == []


def test_chains_apart_are_found():
    apart = GOOD.copy()
    apart[0] += 5
    assert "r_hat" in names({"mu": apart}, LP)


def test_chains_that_differ_by_labels_alone_are_said_to_do_so():
    centred = GOOD + np.array([-5.0, 5.0])
    switched = centred.copy()
    switched[0] = switched[0, :, ::-1]
    findings = diagnostics.chains({"mu": switched}, LP, {"sorted_mu": np.sort(switched, -1)})
    assert findings[0].name == "labels"
    assert "trust sorted_mu" in findings[0].text


def test_chains_in_different_modes_are_said_to_be_so_whatever_their_labels():
    stuck = GOOD + np.array([-5.0, 5.0])
    stuck[0] += np.array([0.0, 9.0])
    levels = {"lp": LP["lp"] + np.array([-7.0, 0, 0, 0])[:, None]}
    findings = diagnostics.chains({"mu": stuck}, levels, {"sorted_mu": np.sort(stuck, -1)})
    assert findings[0].name == "modes"
    assert "different modes" in findings[0].text
    assert "-7" in findings[0].text  # the log density of each chain, to tell them apart


def test_one_chain_and_few_draws_are_not_judged():
    assert names({"mu": GOOD[:1]}, {}) == ["chains"]
    assert names({"mu": GOOD[:, :3]}, {}) == ["draws"]


class Sorted(Means):
    """Three means, told apart by their order; their sum does not depend on it."""

    def invariants(self, data, draws):
        return {"total": draws["mu"].sum(-1)}

    def findings(self, data, draws):
        return [f"the largest mean is {float(draws['mu'].mean((0, 1)).max()):.0f}"]


@pytest.mark.filterwarnings("ignore::inference.InferenceWarning")
def test_invariants_and_findings_of_a_model_are_told_with_its_fit():
    y = np.array([-11.0, -10.0, -9.5, 0.0, 0.5, 9.5, 10.0, 11.0])
    engine = HMC(chains=2, warmup=50, draws=20, steps=4, tier="traced")
    result = fit(Sorted(), {"y": y}, engine)
    draws = result.posterior.draws
    torch.testing.assert_close(draws["total"], draws["mu"].sum(-1))
    assert "total" in result.summary().index
    assert any(text.startswith("the largest mean is") for text in result.warnings)


def weighted(mean, sd):
    """Draws of N(mean, sd^2) that stand for N(0, 1), with their importance weights."""
    x = mean + sd * RNG.normal(size=(1, 20_000))
    log_q = -0.5 * ((x - mean) / sd) ** 2 - np.log(sd)
    return diagnostics.approximation({"x": x}, {"log_weight": -0.5 * x**2 - log_q})


@pytest.mark.parametrize(
    ("mean", "sd", "expected"),
    [
        (0.0, 1.0, []),
        (0.3, 1.0, [("shift", "warning")]),
        (0.6, 1.1, [("shift", "error")]),
        (0.0, 0.8, [("sd_ratio", "warning")]),
        (0.0, 0.7, [("sd_ratio", "error")]),
        (0.0, 1.5, [("sd_ratio", "error")]),
        (0.0, 0.3, [("pareto_k", "error")]),
    ],
)
def test_an_approximation_is_judged_by_its_importance_weights(mean, sd, expected):
    assert [(finding.name, finding.severity) for finding in weighted(mean, sd)] == expected
