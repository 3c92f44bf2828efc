"""Importance sampling with Pareto-smoothed weights."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from inference import psis
from inference.engine import Engine, Posterior, Problem
from inference.finding import Finding
from inference.proposal import Proposal
from ppl_models.errors import EngineError
from ppl_models.noise import Noise

_REMEDY = "give a proposal with heavier tails nearer the posterior, or use NUTS"
_FEW = 400  # effective draws below which four chains of an MCMC would be called too short


@dataclass(frozen=True)
class ImportanceSampling(Engine):
    """Weight independent draws of a proposal by posterior over proposal, and resample.

    The weights are smoothed (``psis``); k-hat says whether they can be trusted. The log evidence,
    log p(data), is estimated by the log of the mean raw weight.

    Args:
        proposals: how many draws of the proposal are weighted.
        draws: how many are returned, resampled by weight.
        proposal: a Pyro program over the model's latent sites; by default the prior.
    """

    proposals: int = 10_000
    draws: int = 1000
    proposal: Callable[..., Any] | None = None

    stops_at: ClassVar[tuple[str, ...]] = ("seconds",)

    def __post_init__(self) -> None:
        self.at_least(proposals=1, draws=1)
        self.program_or_none("proposal")

    @torch.no_grad()
    def run(self, problem: Problem) -> Posterior:
        """Draw, weight, smooth, resample."""
        begin = time.perf_counter()
        noise = problem.noise(1)
        proposal = Proposal(problem, self.proposal or _prior(problem))
        try:
            x, log_proposal = proposal.draw(noise.fold(0), self.proposals)
        except NotImplementedError as error:
            raise EngineError(
                "ImportanceSampling cannot draw from the prior: it is improper (flat); give "
                "proposal=, a Pyro program over the latent sites that can be sampled"
            ) from error
        target = problem.target("traced", 1)
        parts: list[Tensor] = []
        for part in x[0].split(1000):
            parts.append(target.log_density(part))
            if problem.clock.over:
                break
        log_density = torch.cat(parts)
        number = len(log_density)
        found = weighted(
            problem,
            x[0, :number],
            log_density - log_proposal[0, :number],
            self.draws,
            noise,
            _REMEDY,
        )
        seconds = time.perf_counter() - begin
        return dataclasses.replace(
            found,
            findings=found.findings + self._stopped(number),
            seconds={"sampling": seconds, "total": seconds},
        )

    def _stopped(self, number: int) -> list[Finding]:
        if number == self.proposals:
            return []
        text = f"seconds: stopped after {number} of {self.proposals} proposals"
        return [Finding("seconds", "warning", number, text, "give more seconds")]


def _prior(problem: Problem) -> Callable[..., Any]:
    return problem.program.prior()


def weighted(
    problem: Problem, x: Tensor, log_ratio: Tensor, draws: int, noise: Noise, remedy: str
) -> Posterior:
    """Draws resampled by smoothed weights, what speaks against them, and the log evidence.

    Args:
        problem: the model and its data.
        x: independent draws of a normalised density q, (S, D).
        log_ratio: log p - log q of each, (S,).
        draws: how many are returned.
        noise: of one stream.
        remedy: what to do where k-hat is high.

    Raises ``EngineError`` where no draw has a weight.
    """
    ratios = log_ratio.cpu().numpy()
    number = len(ratios)
    if not np.isfinite(ratios).any():
        raise EngineError(
            f"none of the {number} proposals has a finite posterior density; the "
            "proposal misses the posterior's support"
        )
    smoothed = psis.smooth(ratios)
    unit = noise.fold(1).uniform(draws)[0].cpu().numpy()
    cumulative = np.exp(smoothed.log_weights).cumsum()
    chosen = np.searchsorted(cumulative / cumulative[-1], unit).clip(max=number - 1)
    kept = x[None, torch.as_tensor(chosen, device=x.device)]
    usable = np.where(np.isnan(ratios), -np.inf, ratios)
    weights = np.exp(usable - usable.max())
    return Posterior(
        kind="approximation",
        draws=problem.outputs.values(kept, noise.fold(2)),
        findings=_findings(smoothed, number, remedy),
        attributes={
            "pareto_k": smoothed.k_hat,
            "importance_ess": smoothed.ess,
            "log_evidence": float(usable.max() + math.log(weights.mean())),
            # by the delta method; too small where k-hat is high
            "log_evidence_error": float(weights.std() / weights.mean() / math.sqrt(number)),
        },
        unconstrained=kept,
    )


def _findings(smoothed: psis.Smoothed, draws: int, remedy: str) -> list[Finding]:
    limit = psis.threshold(draws)
    if smoothed.k_hat > limit:
        return [
            Finding(
                "pareto_k",
                "error",
                smoothed.k_hat,
                f"Pareto k-hat is {smoothed.k_hat:.2f}, above {limit:.2f}: a few draws carry the "
                f"weight (effective sample size {smoothed.ess:.0f} of {draws}), so these answers "
                "cannot be trusted",
                remedy,
            )
        ]
    if smoothed.ess < _FEW:
        return [
            Finding(
                "ess",
                "warning",
                smoothed.ess,
                f"effective sample size is {smoothed.ess:.0f} of {draws} proposals: means and "
                "intervals are rough",
                "raise proposals, or give a proposal nearer the posterior",
            )
        ]
    return []
