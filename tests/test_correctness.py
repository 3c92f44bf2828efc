"""Every sampler, on posteriors whose moments are known.

Means, variances and covariances are compared with exact figures in units of the Monte Carlo error.
With correct samplers and normal chain averages, the chance that any exact check of this module
fails is at most ``statistics.LEVEL`` for a random seed; seeds are fixed, so that a failure repeats.
The posteriors of posteriordb are compared with figures that carry an error themselves, by a rule of
thumb: means within 4 standard errors (32 figures: a chance of about 0.2 %), sds within 5 %.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import pytest

from inference import (
    HMC,
    MALA,
    MAMS,
    MH,
    NUTS,
    ChEES,
    Engine,
    Gibbs,
    ImportanceSampling,
    Pathfinder,
    Target,
    arviz_bridge,
    nuts_cpu,
)
from tests.statistics import check, critical, deviations, draws, quiet, student
from tests.targets import KNOWN, PUBLISHED, published

CHAINS = 64


def _runs(warmup: int, draws: int) -> dict[str, int | str]:
    return {"chains": CHAINS, "warmup": warmup, "draws": draws, "tier": "traced"}


NUTS_DIAGONAL = NUTS(**_runs(200, 250), mass="diagonal")
NUTS_DENSE = NUTS(**_runs(200, 250), mass="dense")
NUTS_COARSE = NUTS(
    chains=2 * CHAINS, warmup=200, draws=250, tier="traced", mass="diagonal", target_acceptance=0.6
)
HMC_DIAGONAL = HMC(**_runs(200, 250), steps=7, mass="diagonal")
HMC_COARSE = HMC(**_runs(200, 250), steps=7, mass="diagonal", target_acceptance=0.6)
HMC_DENSE = HMC(**_runs(200, 250), steps=5, mass="dense")
CHEES_DIAGONAL = ChEES(**_runs(200, 250), mass="diagonal")
CHEES_COARSE = ChEES(**_runs(200, 250), mass="diagonal", target_acceptance=0.6)
MAMS_DIAGONAL = MAMS(**_runs(200, 250), mass="diagonal")
MAMS_COARSE = MAMS(**_runs(200, 250), mass="diagonal", step_size=1.5)
MAMS_DENSE = MAMS(**_runs(200, 250), mass="dense")
CHEES_DENSE = ChEES(**_runs(200, 250), mass="dense")
MALA_DIAGONAL = MALA(**_runs(200, 250), mass="diagonal")
MALA_DENSE = MALA(**_runs(200, 250), mass="dense")
WALK_DIAGONAL = MH(**_runs(200, 250), mass="diagonal")
WALK_DENSE = MH(**_runs(200, 250), mass="dense")
INDEPENDENCE = MH(chains=CHAINS, warmup=20, draws=200, thin=5, tier="traced")
GIBBS = Gibbs(chains=CHAINS, warmup=50, draws=300)


class Case(NamedTuple):
    engine: Engine
    posterior: str
    tensors: bool = False  # NUTS without its compiled bookkeeping


CASES = {
    **{
        f"nuts-diagonal-{name}": Case(NUTS_DIAGONAL, name)
        for name in ("correlated", "scaled", "funnel", "bounded", "schools", "oring")
    },
    **{
        f"nuts-dense-{name}": Case(NUTS_DENSE, name)
        for name in ("correlated", "scaled", "bounded", "simplex", "conjugate", "oring")
    },
    "nuts-warm-scaled": Case(dataclasses.replace(NUTS_DIAGONAL, starts="pathfinder"), "scaled"),
    "nuts-dense-labels": Case(dataclasses.replace(NUTS_DENSE, chains=32, draws=150), "labels"),
    "nuts-tensors-coarse-correlated": Case(NUTS_COARSE, "correlated", tensors=True),
    "nuts-tensors-coarse-bounded": Case(NUTS_COARSE, "bounded", tensors=True),
    "nuts-tensors-dense-simplex": Case(NUTS_DENSE, "simplex", tensors=True),
    **{
        f"hmc-diagonal-{name}": Case(HMC_DIAGONAL, name) for name in ("scaled", "funnel", "schools")
    },
    "hmc-coarse-bounded": Case(HMC_COARSE, "bounded"),
    **{
        f"hmc-dense-{name}": Case(HMC_DENSE, name)
        for name in ("correlated", "simplex", "conjugate", "oring")
    },
    # of a thousand draws: in the tail of tau a chain may stay so long that fewer see too little
    "chees-diagonal-funnel": Case(CHEES_DIAGONAL, "funnel"),
    "chees-diagonal-schools": Case(dataclasses.replace(CHEES_DIAGONAL, draws=1000), "schools"),
    "chees-coarse-bounded": Case(CHEES_COARSE, "bounded"),
    **{
        f"chees-dense-{name}": Case(CHEES_DENSE, name)
        for name in ("correlated", "simplex", "oring")
    },
    "mams-diagonal-funnel": Case(MAMS_DIAGONAL, "funnel"),
    "mams-diagonal-schools": Case(dataclasses.replace(MAMS_DIAGONAL, draws=1000), "schools"),
    "mams-coarse-bounded": Case(MAMS_COARSE, "bounded"),
    **{f"mams-dense-{name}": Case(MAMS_DENSE, name) for name in ("correlated", "simplex", "oring")},
    **{f"mala-diagonal-{name}": Case(MALA_DIAGONAL, name) for name in ("scaled", "bounded")},
    **{
        f"mala-dense-{name}": Case(MALA_DENSE, name)
        for name in ("correlated", "simplex", "conjugate", "oring")
    },
    **{f"walk-diagonal-{name}": Case(WALK_DIAGONAL, name) for name in ("bounded", "scaled")},
    **{
        f"walk-dense-{name}": Case(WALK_DENSE, name)
        for name in ("correlated", "funnel", "simplex", "conjugate", "schools", "oring")
    },
    **{
        f"independence-{name}": Case(
            dataclasses.replace(INDEPENDENCE, proposal=KNOWN[name].proposal), name
        )
        for name in ("correlated", "bounded", "simplex", "conjugate", "oring")
    },
    **{f"gibbs-{name}": Case(GIBBS, name) for name in ("conjugate", "oring")},
}

WEIGHTED = ("correlated", "bounded", "simplex", "conjugate", "oring")
PROPOSALS, WEIGHTED_DRAWS = 100_000, 1000
BY_PATHS = ("correlated", "scaled", "bounded", "simplex", "conjugate", "oring")

FAMILY = sum(KNOWN[case.posterior].moments for case in CASES.values()) + sum(
    KNOWN[name].moments for name in WEIGHTED + BY_PATHS
)


@pytest.mark.parametrize("name", CASES)
def test_draws_have_the_moments_of_the_posterior(name, monkeypatch):
    case = CASES[name]
    if case.tensors:
        monkeypatch.setattr(nuts_cpu, "usable", lambda device: False)
    known = KNOWN[case.posterior]
    check(draws(known, case.engine), known, FAMILY)


@pytest.mark.parametrize("name", WEIGHTED)
def test_weighted_draws_have_the_moments_of_the_posterior(name):
    proposal = KNOWN[name].proposal
    engine = ImportanceSampling(proposal=proposal, proposals=PROPOSALS, draws=WEIGHTED_DRAWS)
    check_weighted(name, engine)


@pytest.mark.parametrize("name", BY_PATHS)
def test_draws_of_paths_have_the_moments_of_the_posterior(name):
    check_weighted(name, Pathfinder(proposals=20_000, draws=WEIGHTED_DRAWS, tier="traced"))


def check_weighted(name: str, engine: Engine) -> None:
    known = KNOWN[name]
    fitted = quiet(known.program, known.data, engine)
    # 40 groups stand for chains. They share the proposals, which adds at most an eighth to the
    # squared error: the t statistics come out up to 6 % too large, never too small.
    assert fitted.posterior.attributes["importance_ess"] > 8 * WEIGHTED_DRAWS
    groups = {
        name: value.reshape(40, 25, *value.shape[2:])
        for name, value in fitted.posterior.draws.items()
    }
    check(groups, known, FAMILY)


@pytest.mark.parametrize("name", PUBLISHED)
def test_nuts_agrees_with_posteriordb(name, monkeypatch):
    posterior = published(name)
    engine = NUTS(chains=PUBLISHED[name], warmup=200, draws=500, tier="traced")
    if posterior.start is not None:
        guess = posterior.start
        monkeypatch.setattr(
            Target, "start", lambda _, noise: guess + 0.1 * noise.normal(len(guess))
        )
    fitted = quiet(posterior.program, posterior.data, engine)
    table = arviz_bridge.statistics(arviz_bridge.group(fitted.to_arviz(), "posterior"))
    errors = deviations(table, posterior.moments)
    assert max(map(abs, errors.values())) < 4, errors
    ratios = {name: table["sd"][name] / sd for name, (_, sd) in posterior.moments.items()}
    assert max(abs(ratio - 1) for ratio in ratios.values()) < 0.05, ratios


def test_independence_sampler_accepts_as_often_as_robert_and_casella_report():
    """Acceptance 0.0956 by an independent run of two million steps."""
    known = KNOWN["oring"]
    engine = MH(chains=8, warmup=10, draws=1000, thin=1, tier="traced", proposal=known.proposal)
    rates = quiet(known.program, known.data, engine).posterior.stats["acceptance_rate"]
    deviation = student(rates.numpy() - 0.0956)
    assert abs(deviation) < critical(1, chains=8), (float(rates.mean()), deviation)
