"""The checks of the other modules fail on broken kernels: the library's own, one expression off.

A check that a broken sampler passes is worth nothing. ``mutant`` takes a function's source, changes
one expression in it and puts it in the original's place. The originals pass the same checks, with
the same settings, seed and critical value, in ``test_correctness`` and ``test_laws``.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import textwrap
from typing import Any, NamedTuple

import numpy as np
import pytest
from scipy import stats
from scipy.signal import lfilter

from inference import (
    HMC,
    MAMS,
    ChEES,
    Gibbs,
    Target,
    hmc,
    importance,
    mams,
    mh,
    nuts,
    nuts_cpu,
    warmup,
)
from inference.handlers import Substitute
from inference.langevin import MALA, Langevin
from inference.trajectories import SharedLength
from ppl_models.noise import Noise
from tests import test_correctness, test_laws, test_noise
from tests.statistics import LEVEL, draws, student, surprises
from tests.targets import CORRELATED, KNOWN, NormalMeanVariance
from tests.test_correctness import CASES, FAMILY


class Sabotage(NamedTuple):
    """Where ``owner.name`` reads ``old``, it shall read ``new``."""

    owner: Any
    name: str
    old: str
    new: str

    def commit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        original = getattr(self.owner, self.name)
        monkeypatch.setattr(self.owner, self.name, mutant(original, self.old, self.new))


def mutant(function: Any, old: str, new: str) -> Any:
    """``function`` with the one place in its source that reads ``old`` made to read ``new``."""
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{function.__qualname__} has changed: no single {old!r}"
    scope: dict[str, Any] = {}
    code = "from __future__ import annotations\n" + source.replace(old, new)
    exec(code, inspect.unwrap(function).__globals__, scope)
    return scope[function.__name__]


STEP = (nuts.NUTS, "step")
COARSE, LONG = "nuts-tensors-coarse-bounded", "nuts-tensors-coarse-correlated"

BY_MOMENTS = {
    "nuts gives every leaf of a subtree the same weight": (
        COARSE,
        Sabotage(*STEP, "log_weight - joint_weight)", "-(state.leaves + 1.0).log())"),
    ),
    "nuts takes the last leaf of a subtree": (
        COARSE,
        Sabotage(
            *STEP, "(first | (randomness.uniform[:, 0].log() < log_weight - joint_weight))", "True"
        ),
    ),
    "nuts always moves to the newest subtree": (
        COARSE,
        Sabotage(
            *STEP,
            "randomness.uniform[:, 1].log() < subtree.log_weight - state.tree.log_weight",
            "subtree.log_weight > -torch.inf",
        ),
    ),
    "nuts only goes forward in time": (
        LONG,
        Sabotage(
            nuts, "_direction", "randomness.uniform[:, 2] > 0.5", "randomness.uniform[:, 2] > 0"
        ),
    ),
    "nuts keeps a subtree that turns within": (
        LONG,
        Sabotage(*STEP, "whole = ~failed & (", "whole = (turning & ~diverging) | ~failed & ("),
    ),
    "nuts does not look for turns within a subtree": (
        LONG,
        Sabotage(*STEP, "failed = diverging | turning", "failed = diverging"),
    ),
    "nuts draws momenta too wide": (
        COARSE,
        Sabotage(
            nuts, "begin", "momentum = randomness.normal", "momentum = 1.2 * randomness.normal"
        ),
    ),
    "hmc leaves the kinetic energy out of its acceptance": (
        "hmc-coarse-bounded",
        Sabotage(
            hmc,
            "energy",
            "0.5 * momentum.square().sum(-1, dtype=log_density.dtype) - log_density",
            "-log_density",
        ),
    ),
    "hmc accepts always": (
        "hmc-coarse-bounded",
        Sabotage(HMC, "step", "randomness.uniform[:, 0].log() < change", "change > -1000"),
    ),
    "hmc draws momenta too narrow": (
        "hmc-coarse-bounded",
        Sabotage(HMC, "step", "momentum = randomness.normal", "momentum = 0.9 * randomness.normal"),
    ),
    "chees leaves the kinetic energy out of its acceptance": (
        "chees-coarse-bounded",
        Sabotage(ChEES, "travel", "energy(phase.log_density, momentum))", "-phase.log_density)"),
    ),
    "mams leaves the volume that it loses out of its acceptance": (
        "mams-coarse-bounded",
        Sabotage(MAMS, "travel", "kinetic - phase.log_density", "-phase.log_density"),
    ),
    "mams counts a dimension too many": (
        "mams-coarse-bounded",
        Sabotage(mams, "kick", "freedom * log_width", "(freedom + 1) * log_width"),
    ),
    "trajectories are accepted always": (
        "chees-coarse-bounded",
        Sabotage(
            SharedLength, "step", "change, randomness.uniform", "change + 1000, randomness.uniform"
        ),
    ),
    "the jacobian is forgotten": (
        "hmc-coarse-bounded",
        Sabotage(
            Substitute,
            "_pyro_sample",
            "self.log_det + log_det.sum(dtype=self._total)",
            "self.log_det",
        ),
    ),
    "langevin forgets the way back": (
        "mala-dense-conjugate",
        Sabotage(
            Langevin,
            "step",
            "energy(new.log_density, momentum)",
            "energy(new.log_density, randomness.normal)",
        ),
    ),
    "langevin accepts always": (
        "mala-dense-conjugate",
        Sabotage(MALA, "settle", "state, new, log_ratio", "state, new, log_ratio + 1000"),
    ),
    "metropolis accepts always": (
        "walk-dense-conjugate",
        Sabotage(mh, "metropolis", "uniform.log() < log_ratio", "log_ratio > -10"),
    ),
    "the random walk drifts": (
        "walk-dense-conjugate",
        Sabotage(mh.MH, "step", "randomness.normal)", "randomness.normal + 0.2)"),
    ),
    "the independence sampler forgets its proposal's density": (
        "independence-conjugate",
        Sabotage(mh.Independence, "step", "state.log_proposal - new.log_proposal", "0.0"),
    ),
    "gibbs draws its blocks from the same numbers": (
        "gibbs-conjugate",
        Sabotage(
            Gibbs,
            "run",
            "noise.fold(1, at.sweeps, sweep, position)",
            "noise.fold(1, at.sweeps, sweep)",
        ),
    ),
    "a conditional has a degree of freedom too few": (
        "gibbs-conjugate",
        Sabotage(NormalMeanVariance, "conditionals", "2 * self.A + n + 1", "2 * self.A + n"),
    ),
}


@pytest.mark.parametrize("name", BY_MOMENTS)
def test_moments_expose_a_broken_kernel(name, monkeypatch):
    place, sabotage = BY_MOMENTS[name]
    case = CASES[place]
    if case.tensors:
        monkeypatch.setattr(nuts_cpu, "usable", lambda device: False)
    sabotage.commit(monkeypatch)
    known = KNOWN[case.posterior]
    assert surprises(draws(known, case.engine), known, FAMILY)


def test_means_alone_do_not_expose_a_sampler_that_second_moments_do(monkeypatch):
    place, sabotage = BY_MOMENTS["hmc leaves the kinetic energy out of its acceptance"]
    known = dataclasses.replace(CORRELATED, covariance={})
    only_means = dataclasses.replace(known, sd={})
    sabotage.commit(monkeypatch)
    drawn = draws(known, CASES[place].engine)
    assert not surprises(drawn, only_means, FAMILY)
    assert set(surprises(drawn, known, FAMILY)) == {"var x[0]", "var x[1]"}


def test_moments_expose_importance_sampling_without_weights(monkeypatch):
    old = "np.exp(smoothed.log_weights).cumsum()"
    Sabotage(importance, "weighted", old, "np.ones(number).cumsum()").commit(monkeypatch)
    with pytest.raises(AssertionError, match="t statistics beyond chance"):
        test_correctness.test_weighted_draws_have_the_moments_of_the_posterior("simplex")


KICK = "momentum + 0.5 * step * whiten(scale, phase.gradient)"
BY_LAWS = {
    "leapfrog leaves out its first half kick": (
        Sabotage(test_laws, "leapfrog", KICK, "momentum"),
        lambda target: test_laws.test_leapfrog_runs_backwards(target, "dense"),
    ),
    "leapfrog has friction": (
        Sabotage(test_laws, "leapfrog", KICK, KICK.replace("momentum", "0.99 * momentum")),
        lambda target: test_laws.test_leapfrog_keeps_volume(target, "diagonal"),
    ),
    "leapfrog drifts the wrong way": (
        Sabotage(test_laws, "leapfrog", "phase.x + step", "phase.x - step"),
        lambda target: test_laws.test_energy_error_is_of_second_order(target, "diagonal"),
    ),
    "leapfrog whitens by S and not by its transpose": (
        Sabotage(hmc, "whiten", "gradient @ scale", "gradient @ scale.T"),
        lambda target: test_laws.test_energy_error_is_of_second_order(target, "dense"),
    ),
    "metropolis accepts at half the log ratio": (
        Sabotage(
            test_laws, "metropolis", "uniform.log() < log_ratio", "uniform.log() < log_ratio / 2"
        ),
        lambda target: test_laws.test_metropolis_keeps_detailed_balance(),
    ),
    "only the smallest subtrees are tested for turns": (
        Sabotage(nuts, "_checkpoints", "(levels > last - trailing)", "(levels == last)"),
        lambda target: test_laws.test_checkpoints_find_the_turns_of_the_recursive_tree(3),
    ),
    "a checkpoint is stored in the wrong place": (
        Sabotage(nuts, "_checkpoints", "(n >> (levels + 1)) & 1", "(n >> (levels + 2)) & 1"),
        lambda target: test_laws.test_checkpoints_find_the_turns_of_the_recursive_tree(3),
    ),
    "the covariance is not shrunk": (
        Sabotage(warmup, "scale", "n / (n + 5.0) * scatter", "scatter"),
        lambda target: test_laws.test_moments_merged_in_parts_are_those_of_all_draws(
            "dense", True, "merged"
        ),
    ),
    "merging moments forgets the shift of the mean": (
        Sabotage(warmup, "merged", "+ weighted[:, :, None] * shift[:, None]", ""),
        lambda target: test_laws.test_moments_merged_in_parts_are_those_of_all_draws(
            "dense", True, "merged"
        ),
    ),
    "dual averaging goes the wrong way": (
        Sabotage(warmup, "update", "(target - acceptance)", "(acceptance - target)"),
        lambda target: test_laws.test_dual_averaging_reaches_its_target(0.8),
    ),
    "chain 1 of a seed is chain 0 of the next": (
        Sabotage(
            Noise,
            "seeded",
            "philox((chain, zero, zero, zero + 0x5EED), (words[0], words[1]))",
            "philox((chain + seed, zero, zero, zero + 0x5EED), (zero, zero))",
        ),
        lambda target: test_noise.test_chains_of_one_seed_are_not_those_of_the_next(),
    ),
}


@pytest.mark.parametrize("name", BY_LAWS)
def test_laws_expose_a_broken_kernel(name, monkeypatch):
    sabotage, law = BY_LAWS[name]
    target = Target(test_laws.quartic, test_laws.DIM, tier="traced")
    law(target)
    sabotage.commit(monkeypatch)
    with pytest.raises(AssertionError):
        law(target)


def test_t_statistics_of_autocorrelated_chains_are_students():
    """Even where 300 draws per chain are worth 16: first-order autoregression at 0.9."""
    replicates, draws_, coefficient = 2000, 300, 0.9
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(replicates, 8, draws_ + 100)) * math.sqrt(1 - coefficient**2)
    chains = lfilter([1], [1, -coefficient], noise)[..., 100:]
    t = [student(x) for x in chains]
    assert stats.kstest(t, stats.t(7).cdf).pvalue > LEVEL
    squares = [student(x**2 - 1) for x in chains]
    beyond = np.mean(np.abs(squares) > stats.t.isf(0.01, 7))
    assert 0.01 < beyond < 0.04
