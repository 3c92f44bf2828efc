"""The O-rings of the space shuttle: distress of the field joints against launch temperature.

    logit P(y = 1 | t) = alpha + beta t  (+ gamma s, with the leak-check pressure s),

fitted to the 23 flights before STS-51-L, which was launched at 31 F (Dalal, Fowlkes & Hoadley 1989;
Robert & Casella 2004, Monte Carlo Statistical Methods, 2nd ed.).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_models.base import Data, Params
from ppl_models.data import as_fields
from ppl_models.errors import DataError, ModelError
from ppl_models.logistic import LogisticRegression, observe
from ppl_models.priors import CoefficientPrior, FlatPrior, NormalPrior, RobertCasella
from ppl_models.regression_data import columns, outcomes, standard, units, vector

RINGS = 6
"""Primary field-joint O-rings per flight."""

LAUNCH_PRESSURE = 200.0
"""psi: the leak-check pressure of the last flights and of STS-51-L."""

Outcome = Literal["incident", "damaged"]

# maximum likelihood on the flights above, by Newton's method: estimate and standard error
_ESTIMATES: dict[tuple[Outcome, bool], dict[str, tuple[float, float]]] = {
    ("incident", False): {
        "alpha": (15.04290165, 7.378636434),
        "beta": (-0.2321627442, 0.1082365217),
    },
    ("incident", True): {
        "alpha": (14.35977545, 7.442901800),
        "beta": (-0.2415398687, 0.1097219862),
        "gamma": (0.009534022848, 0.008703149763),
    },
    ("damaged", False): {
        "alpha": (5.084977233, 3.052485560),
        "beta": (-0.1156011667, 0.04702384592),
    },
    ("damaged", True): {
        "alpha": (3.409727546, 3.178552181),
        "beta": (-0.1077471672, 0.04464856455),
        "gamma": (0.007379589472, 0.006446825255),
    },
}


def flights() -> pd.DataFrame:
    """The 23 flights: flight, temperature (F), incident (0/1), damaged (of 6) and pressure (psi).

    ``damaged`` counts the primary field-joint O-rings with thermal distress, ``incident`` tells
    whether there was any; ``pressure`` is that of the leak check. Flight 4 has no record.
    Source: Dalal, Fowlkes & Hoadley (1989), "Risk analysis of the space shuttle: pre-Challenger
    prediction of failure", JASA 84:945-957, table 1.
    """
    flight = (
        "1 2 3 5 6 7 8 9 41-B 41-C 41-D 41-G 51-A 51-C 51-D 51-B 51-G 51-F 51-I 51-J 61-A 61-B 61-C"
    )
    temperature = "66 70 69 68 67 72 73 70 57 63 70 78 67 53 67 75 70 81 76 79 75 76 58"
    damaged = "0 1 0 0 0 0 0 0 1 1 1 0 0 2 0 0 0 0 0 0 2 0 1"
    table = pd.DataFrame({"flight": flight.split()})
    table["temperature"] = [float(t) for t in temperature.split()]
    table["damaged"] = [int(count) for count in damaged.split()]
    table.insert(2, "incident", (table["damaged"] > 0).astype(int))
    table["pressure"] = [50.0] * 7 + [100.0] * 2 + [200.0] * 14
    return table


class ORing(LogisticRegression):
    """Logistic regression of O-ring distress on temperature, and optionally pressure.

    Sites: scalars ``alpha`` (logits), ``beta`` (logits per F), with ``pressure`` also ``gamma``
    (logits per psi); ``y`` (N,), observed; deterministic ``p`` (K,), the probability of an
    incident, or of damage to one ring, at the K temperatures ``predict_at`` (F), and at 200 psi if
    the pressure enters.

    ``outcome`` is "incident" (Bernoulli) or "damaged" (binomial out of 6). ``prior`` is
    "robert-casella" with alpha_hat the maximum likelihood estimate on the published flights,
    "normal", "flat", or a prior. ``predict_at=None`` leaves p out.

    Raises ``ModelError`` for an unknown outcome or prior.
    """

    def __init__(
        self,
        outcome: Outcome = "incident",
        pressure: bool = False,
        prior: str | CoefficientPrior = "robert-casella",
        predict_at: tuple[float, ...] | None = (31.0, 50.0, 60.0, 65.0, 70.0),
    ) -> None:
        if (outcome, pressure) not in _ESTIMATES:
            raise ModelError(f'outcome: is {outcome!r}; give "incident" or "damaged"')
        estimates = _ESTIMATES[outcome, pressure]
        named: dict[str, CoefficientPrior] = {
            "robert-casella": RobertCasella(estimates["alpha"][0]),
            "normal": NormalPrior(),
            "flat": FlatPrior(),
        }
        if isinstance(prior, str) and prior not in named:
            raise ModelError(f"prior: is {prior!r}; give one of {', '.join(named)}, or a prior")
        super().__init__(named[prior] if isinstance(prior, str) else prior)
        self.outcome = outcome
        self.pressure = pressure
        self.predict_at = predict_at
        self._estimates = estimates
        self._covariates = ("temperature", "pressure") if pressure else ("temperature",)

    flights = staticmethod(flights)

    def forward(  # type: ignore[override]
        self,
        temperature: Tensor,
        y: Tensor | None = None,
        pressure: Tensor | None = None,
        trials: Tensor | None = None,
        centre: Tensor | None = None,
        spread: Tensor | None = None,
    ) -> None:
        """The Pyro program: ``temperature`` (N,) in F, ``pressure`` (N,) in psi, outcomes ``y``.

        ``y`` None predicts the outcomes. ``trials`` (N,) is 6 for damaged rings unless given.
        ``centre`` and ``spread`` are as in ``LogisticRegression``: (1,), or (2,) with pressure.
        """
        data = self._data(temperature, pressure, centre, spread)
        values = self._sample(data, lambda site, width: self.prior.slopes(width))
        if trials is None and self.outcome == "damaged":
            trials = torch.full_like(temperature, RINGS)
        observe(self._logits(values, data), y, trials)
        if self.predict_at is not None:
            at = temperature.new_tensor(self.predict_at)
            there = {"temperature": at, "pressure": torch.full_like(at, LAUNCH_PRESSURE)}
            pyro.deterministic("p", self._logits(values, there).sigmoid(), event_dim=1)

    def independence_proposal(self) -> Callable[..., None]:
        """Robert & Casella's proposal of an independence Metropolis-Hastings sampler.

        A Pyro program with the arguments of ``forward``: alpha from its prior, and every slope from
        N(estimate, se^2), its maximum likelihood estimate and standard error on the published
        flights: for an incident, beta ~ N(-0.2322, 0.1082^2).

        Raises ``ModelError`` where the prior of alpha is improper.
        Source: Robert & Casella (2004), Monte Carlo Statistical Methods, 2nd ed., chapter 7.
        """
        if self.prior.flat_from == 0:
            raise ModelError('alpha: its prior is flat; the proposal needs prior="robert-casella"')

        def proposal(
            temperature: Tensor,
            y: Tensor | None = None,
            pressure: Tensor | None = None,
            trials: Tensor | None = None,
            centre: Tensor | None = None,
            spread: Tensor | None = None,
        ) -> None:
            def slope(site: str, width: Tensor) -> Any:
                estimate, error = self._estimates[site]
                return dist.Normal(width.new_tensor(estimate), error)

            self._sample(self._data(temperature, pressure, centre, spread), slope)

        return proposal

    def prepare(self, data: Any = None) -> Data:
        """Check the flights, and turn them into the arguments of ``forward``.

        ``data`` is None for the published flights, or a mapping or DataFrame with ``temperature``
        (F), ``incident`` or ``damaged`` (or ``y``), and if it enters ``pressure`` (psi); other
        columns are left alone.

        Raises ``DataError`` as ``LogisticRegression.prepare`` does.
        """
        table = flights() if data is None else data
        if not isinstance(table, pd.DataFrame | Mapping):
            as_fields(table)  # raises
        outcome = self.outcome if self.outcome in table else "y"
        wanted = [*self._covariates, outcome]
        missing = [name for name in wanted if name not in table]
        if missing:
            lacking = ", ".join(self.outcome if name == "y" else name for name in missing)
            found = ", ".join(map(str, table)) or "no fields"
            raise DataError(f"{lacking}: missing; the data have {found}; add it, one per flight")
        if isinstance(table, Mapping):  # a DataFrame has columns of data only
            wanted += [name for name in ("centre", "spread") if name in table]
        fields = as_fields({name: table[name] for name in wanted})
        covariates = {name: vector(name, fields[name]) for name in self._covariates}
        x = columns(covariates)
        trials = RINGS if self.outcome == "damaged" else None
        checked = outcomes(x, fields[outcome], trials, outcome)
        return self.checked({**covariates, **checked, **standard(x, fields)})

    def design(self, data: Data) -> Tensor:
        covariates = [data[name] for name in self._covariates]
        return torch.stack([torch.ones_like(covariates[0]), *covariates], -1)

    def pack(self, params: Params) -> Tensor:
        return torch.stack([params[site] for site in self._estimates], -1)

    def unpack(self, theta: Tensor) -> Params:
        return dict(zip(self._estimates, theta.unbind(-1), strict=True))

    def names(self, data: Data) -> list[str]:
        return list(self._covariates)

    def coordinates(self, data: Data) -> Mapping[str, Mapping[str, list[Any]]]:
        return {} if self.predict_at is None else {"p": {"temperature": list(self.predict_at)}}

    def _data(self, temperature: Tensor, pressure: Any, centre: Any, spread: Any) -> Data:
        """The covariates by name, with what the prior is standardised by."""
        if self.pressure and pressure is None:
            raise DataError(
                "pressure: missing; give the leak-check pressure of every flight in psi"
            )
        data: Data = {"temperature": temperature, "pressure": pressure}
        if centre is None or spread is None:
            centre, spread = units(self.design(data)[:, 1:])
        return {**data, "centre": centre, "spread": spread}

    def _sample(self, data: Data, slope: Callable[[str, Tensor], Any]) -> Params:
        """Sample the slopes from what ``slope`` gives for each, and alpha from its prior."""
        values: Params = {}
        shift = torch.zeros_like(data["centre"][0])
        sites = list(self._estimates)[1:]
        for site, centre, spread in zip(sites, data["centre"], data["spread"], strict=True):
            values[site] = pyro.sample(site, slope(site, spread))
            shift = shift + values[site] * centre
        values["alpha"] = pyro.sample("alpha", self.prior.intercept(shift))
        return values

    def _logits(self, values: Params, data: Data) -> Tensor:
        slopes = zip(list(self._estimates)[1:], self._covariates, strict=True)
        return sum((values[site] * data[name] for site, name in slopes), start=values["alpha"])
