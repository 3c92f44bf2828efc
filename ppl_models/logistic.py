"""Bayesian logistic and binomial regression, with EM and Gibbs sampling by Polya-Gamma variables.

Given omega_i ~ PG(n_i, psi_i), psi = X theta, the likelihood is Gaussian in theta = (alpha, beta):

    exp(c . theta - theta' A theta / 2),    A = X' diag(omega) X,    c = X' (y - n / 2),

X being the covariates behind a column of ones. EM puts E[omega] in its place and maximises; a Gibbs
sweep draws omega, then theta (Polson, Scott & Windle 2013, JASA 108:1339-1349).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_models.base import Data, HasConditionals, HasEM, Objective, Params
from ppl_models.noise import Noise
from ppl_models.polya_gamma import pg_mean, polya_gamma
from ppl_models.priors import CoefficientPrior, FlatPrior, NormalPrior
from ppl_models.quadratic import Quadratic
from ppl_models.regression_data import regression, units
from ppl_models.separation import check_proper


class LogisticRegression(HasEM, HasConditionals):
    """P(y_i = 1) = 1 / (1 + exp(-alpha - x_i . beta)), or y_i successes out of trials_i.

    Sites: ``alpha``, the intercept, a scalar; ``beta`` (P,), in logits per unit of x; ``y`` (N,),
    observed, Bernoulli or, with trials, Binomial, in the plate ``observations``.

    EM ascends the joint of alpha and beta as they stand, or with ``objective="likelihood"`` the
    likelihood alone, which has no maximum if the outcomes can be separated. Each step is exact and
    never descends. The rate is linear: some 50 steps to 1e-10 where outcomes overlap well, and the
    more the nearer they are to separation. Gibbs sampling has one block, ``coefficients``.

    ``prior`` is a ``NormalPrior`` (the default), ``FlatPrior`` or ``RobertCasella``.
    """

    def __init__(self, prior: CoefficientPrior | None = None) -> None:
        super().__init__()
        self.prior = NormalPrior() if prior is None else prior

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        y: Tensor | None = None,
        trials: Tensor | None = None,
        centre: Tensor | None = None,
        spread: Tensor | None = None,
        features: list[str] | None = None,
    ) -> None:
        """The Pyro program for covariates ``x`` (N, P) and outcomes ``y`` (N,); None predicts them.

        ``trials`` (N,) makes y binomial. ``centre`` and ``spread`` (P,) are what the prior is
        standardised by, the means and standard deviations of x unless given. ``features`` names
        the columns and does not enter.
        """
        if centre is None or spread is None:
            centre, spread = units(x)
        beta = pyro.sample("beta", self.prior.slopes(spread).to_event(1))
        alpha = pyro.sample("alpha", self.prior.intercept((beta * centre).sum(-1)))
        # beyond one dimension beta comes from Pyro's vectorised plates: (..., 1, P)
        slope = x @ beta if beta.dim() == 1 else (x * beta).sum(-1)
        observe(alpha + slope, y, trials)

    def design(self, data: Data) -> Tensor:
        """X: the covariates of the prepared ``data`` behind a column of ones, (N, P + 1)."""
        x = data["x"]
        return torch.cat([torch.ones_like(x[:, :1]), x], -1)

    def pack(self, params: Params) -> Tensor:
        """The vector theta = (alpha, beta), (..., P + 1), of the values of the sites."""
        return torch.cat([params["alpha"][..., None], params["beta"]], -1)

    def unpack(self, theta: Tensor) -> Params:
        """The values of the sites, of the vector theta (..., P + 1)."""
        return {"alpha": theta[..., 0], "beta": theta[..., 1:]}

    def prepare(self, data: Any) -> Data:
        """Check the data, and turn them into the arguments of ``forward``.

        ``data`` is a mapping or a DataFrame with ``y``, optionally ``trials``, and either ``x``
        (N, P) or (N,), or one field or column per feature. Outcomes may be bools. ``y`` may be
        None, for prediction. x keeps its floating dtype, integers become float64.

        Raises ``DataError`` for missing, infinite, non-numeric or empty data, fields that differ in
        length, outcomes that are not 0 or 1 (or 0 to trials), and, where the prior is flat, for
        linearly dependent columns and separable outcomes, as the posterior is then improper.
        """
        return self.checked(regression(data))

    def checked(self, data: Data) -> Data:
        """The prepared ``data`` if its posterior is proper, else ``DataError`` with the remedy."""
        first = self.prior.flat_from
        if first is not None and data["y"] is not None:
            columns = self.design(data).double().cpu().numpy()[:, first:]
            y = data["y"].double().cpu().numpy()
            trials = data["trials"].double().cpu().numpy() if "trials" in data else np.ones_like(y)
            check_proper(columns, ["the intercept", *self.names(data)][first:], y, trials)
        return data

    def names(self, data: Data) -> list[str]:
        """The names of the covariates, in the order of theta."""
        return list(data["features"])

    def coordinates(self, data: Data) -> Mapping[str, Mapping[str, list[Any]]]:
        return {"beta": {"feature": self.names(data)}}

    def start(self, data: Data, restarts: int, noise: Noise) -> Params:
        """Standard normal coefficients of the standardised covariates, in the units of x."""
        centre, spread = data["centre"], data["spread"]
        white = noise.normal(1 + len(centre)).to(centre)
        beta = white[:, 1:] / spread
        return self.unpack(torch.cat([white[:, :1] - (beta @ centre)[:, None], beta], -1))

    def e_step(self, data: Data, params: Params) -> Quadratic:
        """The Gaussian of the augmented likelihood at E[omega] = n tanh(psi / 2) / (2 psi)."""
        design = self.design(data)
        omega = pg_mean(_count(data), self.pack(params) @ design.mT)
        return _quadratic(data, design, omega)

    def m_step(self, data: Data, expectations: Quadratic, objective: Objective) -> Params:
        """The alpha and beta that maximise prior times Gaussian, in closed form."""
        prior = self.prior if objective == "joint" else FlatPrior()
        return self.unpack(prior.maximise(expectations, data["centre"], data["spread"]))

    def conditionals(self, data: Data) -> Mapping[str, Callable[[Params, Noise], Params]]:
        """One block: omega given alpha and beta, then alpha and beta jointly given omega."""
        design = self.design(data)

        def coefficients(params: Params, noise: Noise) -> Params:
            psi = self.pack(params) @ design.mT
            quadratic = _quadratic(data, design, polya_gamma(_count(data), psi, noise.fold(0)))
            theta = self.prior.draw(quadratic, data["centre"], data["spread"], noise.fold(1))
            return {**params, **self.unpack(theta)}

        return {"coefficients": coefficients}


def observe(logits: Tensor, y: Tensor | None, trials: Tensor | None) -> None:
    """The observed site ``y`` of a Pyro program: Bernoulli, or with ``trials`` Binomial."""
    with pyro.plate("observations", logits.shape[-1], dim=-1):
        if trials is None:
            pyro.sample("y", dist.Bernoulli(logits=logits), obs=y)
        else:
            pyro.sample("y", dist.Binomial(total_count=trials, logits=logits), obs=y)


def _count(data: Data) -> Tensor | int:
    return data.get("trials", 1)


def _quadratic(data: Data, design: Tensor, omega: Tensor) -> Quadratic:
    """A = X' diag(omega) X and c = X' (y - n / 2), for omega (C, N)."""
    linear = (data["y"] - _count(data) / 2) @ design
    return Quadratic((design.mT * omega[:, None]) @ design, linear.expand(len(omega), -1))
