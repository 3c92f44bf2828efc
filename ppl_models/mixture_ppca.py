"""Mixtures of probabilistic principal components (Tipping & Bishop 1999b, Neural Comput. 11:443).

A row belongs to component k with probability weight_k, and is then W_k z + mean_k + noise, as in
``PPCA``. Labels and latent variables are summed out of the program; EM has both as missing data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_models import kmeans
from ppl_models.base import Data, HasEM, Objective, Params, Use
from ppl_models.errors import DataError, ModelError
from ppl_models.low_rank import LowRankNormal
from ppl_models.mixture_data import no_mode
from ppl_models.noise import Noise
from ppl_models.ppca import (
    Sums,
    check_latent,
    latent_map,
    loadings_prior,
    mean_prior,
    oriented,
    variance_prior,
    whole,
)
from ppl_models.relabel import matched, permuted
from ppl_models.table import scaled, table

_LEAST = 1e-12  # of a responsibility: a component that holds nothing keeps a place
_LLOYD = 5


class MixturePPCA(HasEM):
    """Rows from one of K planes of ``latent`` dimensions, each with noise about it.

    Sites: ``weights`` (K,) ~ Dirichlet(concentration); ``loadings`` W (K, D, q), ``mean`` (K, D)
    and ``variance`` (K,) of the noise, with the priors of ``PPCA`` for each component; ``z`` (N,),
    the component of each row, summed out; ``x`` (N, D), observed, in the plate ``rows``.

    EM ascends the joint or, with ``objective="likelihood"``, the likelihood, each step by closed
    forms: coefficients given the noise, then the noise (Meng & Rubin 1993). The likelihood grows
    without bound where a component shrinks onto a plane through a few rows; noise variances are
    therefore kept above ``floor`` times the variance of the data, and ``findings`` name a component
    that ends there. Restarts begin at clusters of k-means++.

    Labels mean nothing: components are numbered by the first coordinate of their means, draws
    relabelled to agree, and loadings turned to one orientation (``canonical``).

    Args:
        components: K.
        latent: q, fewer than the columns.
        concentration: of the prior of the weights; EM for the joint needs at least 1.
        floor: of the noise variances under ``objective="likelihood"``.
    """

    def __init__(
        self, components: int, latent: int, *, concentration: float = 1.0, floor: float = 1e-6
    ) -> None:
        super().__init__()
        self.components = whole("components", components)
        self.latent = whole("latent", latent)
        for name, value in (("concentration", concentration), ("floor", floor)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise ModelError(f"{name}={value!r}: give a positive number")
        self.concentration, self.floor = float(concentration), float(floor)

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        centre: Tensor | None = None,
        scale: Tensor | None = None,
        features: list[str] | None = None,
    ) -> None:
        """The Pyro program for rows ``x`` (N, D).

        ``centre`` (D,) and ``scale`` () place the priors, by default those of x; ``features`` names
        the columns and does not enter.
        """
        if centre is None or scale is None:
            own = scaled(x, {})
            centre, scale = own["centre"], own["scale"]
        k, d = self.components, x.shape[-1]
        weights = pyro.sample("weights", dist.Dirichlet(self.concentration * centre.new_ones(k)))
        with pyro.plate("components", k, dim=-1):
            loadings = pyro.sample("loadings", loadings_prior(scale, (d, self.latent)))
            mean = pyro.sample("mean", mean_prior(centre, scale))
            variance = pyro.sample("variance", variance_prior(scale))
        with pyro.plate("rows", len(x), dim=-1):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", LowRankNormal(mean[z], loadings[z], variance[z]), obs=x)

    def prepare(self, data: Any) -> Data:
        """Check the data, and turn them into the arguments of ``forward``.

        ``data`` is an array (N, D), a DataFrame, or a mapping with ``x``; ``centre`` and ``scale``
        may be given beside x.

        Raises ``DataError`` for missing, infinite, non-numeric or constant columns, for as many
        latent dimensions as columns, and for fewer distinct rows than components.
        """
        x, features, given = table(data, "centre", "scale")
        check_latent(self.latent, x, features)
        distinct = len(torch.unique(x, dim=0))
        if distinct < self.components:
            raise DataError(
                f"x: has {distinct} distinct rows for {self.components} components; use fewer "
                "components, or give more rows"
            )
        return {"x": x, **scaled(x, given), "features": features}

    def obstacle(self, data: Data, use: Use) -> str | None:
        """With a concentration below 1 the joint has no mode."""
        return no_mode(self.concentration) if use == "joint" else None

    def coordinates(self, data: Data) -> Mapping[str, Mapping[str, list[Any]]]:
        component = {"component": list(range(self.components))}
        feature = {"feature": list(data["features"])}
        return {
            "weights": component,
            "loadings": component | feature | {"axis": list(range(self.latent))},
            "mean": component | feature,
            "variance": component,
        }

    def canonical(self, draws: Params) -> Params:
        """One labelling for all draws, and for each component one orientation of its loadings."""
        mean, variance = draws["mean"], draws["variance"]
        lead, (k, d) = mean.shape[:-2], mean.shape[-2:]
        square = draws["loadings"].square().sum(-1)
        logs = torch.stack([draws["weights"], variance], -1).clamp(min=1e-300).log()
        features = torch.cat([mean, square, logs], -1).reshape(-1, k, 2 * d + 2)
        order = matched(features).reshape(*lead, k)
        result = {**draws}
        for name, events in (("weights", 0), ("mean", 1), ("loadings", 2), ("variance", 0)):
            result[name] = permuted(draws[name], order, events)
        planes = result["loadings"].unbind(-3)
        result["loadings"] = torch.stack([oriented(plane) for plane in planes], -3)
        if "z" in draws:
            z = draws["z"].long()
            new = order.argsort(-1).gather(-1, z.reshape(*lead, -1))
            result["z"] = new.reshape(z.shape).to(draws["z"].dtype)
        return result

    def invariants(self, data: Data, draws: Params) -> Params:
        """Weights in ascending order, and mean and covariance of the mixture as a whole."""
        weights, mean, loadings = draws["weights"], draws["mean"], draws["loadings"]
        centre = (weights[..., None] * mean).sum(-2)
        away = mean - centre[..., None, :]
        eye = torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device)
        within = loadings @ loadings.mT + draws["variance"][..., None, None] * eye
        covariance = (weights[..., None, None] * within).sum(-3)
        return {
            "sorted_weights": weights.sort(-1).values,
            "mixture_mean": centre,
            "mixture_covariance": covariance + (weights[..., None] * away).mT @ away,
        }

    def findings(self, data: Data, draws: Params) -> list[str]:
        """Components that hold no rows, or whose noise is at the floor."""
        rows = len(data["x"]) * draws["weights"].flatten(0, 1).mean(0)  # (K,)
        found = [
            f"component {k} is empty: it holds {float(rows[k]):.2g} of {len(data['x'])} rows; use "
            "fewer components"
            for k in (rows < 1).nonzero()[:, 0].tolist()
        ]
        lowest = draws["variance"].flatten(0, 1).mean(0) / data["scale"].square()
        for k in (lowest < 1.001 * self.floor).nonzero()[:, 0].tolist():
            if rows[k] >= 1:
                found.append(
                    f"component {k} has collapsed onto about {float(rows[k]):.3g} rows: its noise "
                    f"is at the floor, {self.floor:g} of the data's variance, and the likelihood "
                    "there means nothing; use objective='joint', fewer components or a smaller "
                    "latent, or drop duplicated rows"
                )
        return found

    # -- EM --------------------------------------------------------------------------------------

    def start(self, data: Data, restarts: int, noise: Noise) -> Params:
        """Clusters of k-means++ and a few of Lloyd's iterations: their shares, means and spreads.

        Loadings begin at random, with the variance of a cluster spread evenly over their columns.
        """
        x = data["x"] - data["centre"]
        centres = kmeans.seeds(x, self.components, noise.fold(0))
        labels = kmeans.lloyd(x, centres, _LLOYD)
        member = torch.nn.functional.one_hot(labels, self.components).to(x).mT  # (R, K, N)
        number = member.sum(-1).clamp(min=1)
        mean = (member @ x) / number[..., None]
        square = (member @ x.square()) / number[..., None] - mean.square()
        variance = square.mean(-1).clamp(min=1e-3 * data["scale"].square())
        white = noise.fold(1).normal(self.components, x.shape[1], self.latent).to(x)
        return {
            "weights": number / number.sum(-1, keepdim=True),
            "loadings": white * (variance / self.latent).sqrt()[..., None, None],
            "mean": mean + data["centre"],
            "variance": variance,
        }

    def e_step(self, data: Data, params: Params) -> tuple[Sums, Tensor]:
        """The sums of each component's regression on (1, z), and the noise variances (R, K)."""
        x = data["x"] - data["centre"]
        mean, loadings = params["mean"] - data["centre"], params["loadings"]
        law = LowRankNormal(
            mean[:, :, None], loadings[:, :, None], params["variance"][:, :, None], False
        )
        joint = params["weights"].log()[..., None] + law.log_prob(x)  # (R, K, N)
        share = torch.softmax(joint, 1).clamp(min=_LEAST)
        back, spread = latent_map(loadings, params["variance"])
        z = x @ back.mT - (mean[:, :, None] @ back.mT)  # (R, K, N, q)
        weighted = share[..., None] * z
        number = share.sum(-1)
        sums = Sums.of(
            number,
            share @ x,
            share @ x.square().sum(-1),
            weighted.sum(-2),
            weighted.mT @ z + number[..., None, None] * spread,
            x.mT @ weighted,
        )
        return sums, params["variance"]

    def m_step(self, data: Data, expectations: tuple[Sums, Tensor], objective: Objective) -> Params:
        """Weights, loadings and means in closed form, and then the noise."""
        sums, variance = expectations
        found = sums.maximiser(variance, data["centre"], data["scale"], objective)
        number = sums.number
        if objective == "joint":
            number = number + self.concentration - 1
        else:
            least = self.floor * data["scale"].square()
            found["variance"] = torch.maximum(found["variance"], least)
        return {"weights": number / number.sum(-1, keepdim=True), **found}

    # -- what users ask for ----------------------------------------------------------------------

    def responsibilities(self, params: Params, x: Any) -> Tensor:
        """p(z_n = k | x_n, params) of rows x (N, D): (..., N, K), by the leading dimensions."""
        rows, _, _ = table(x, "centre", "scale")
        if rows.shape[1] != params["mean"].shape[-1]:
            size = params["mean"].shape[-1]
            raise DataError(f"x: has {rows.shape[1]} columns; the parameters are of {size}")
        mean, loadings = params["mean"][..., None, :], params["loadings"][..., None, :, :]
        law = LowRankNormal(mean, loadings, params["variance"][..., None], False)
        joint = params["weights"].log()[..., None] + law.log_prob(rows.to(mean))
        return torch.softmax(joint, -2).mT
