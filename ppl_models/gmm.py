"""Mixtures of Gaussians, by closed-form EM, mean field and Gibbs sampling on one program.

    weights ~ Dirichlet(concentration),    z_n ~ Categorical(weights),
    x_n | z_n = k ~ Normal(mean_k, covariance_k),
    mean_k | covariance_k ~ Normal(location, covariance_k / shrinkage),
    covariance_k ~ inverse-Wishart(degrees, scale).

The prior of a component is the conjugate one, with the weak hyperparameters that Fraley & Raftery
(2007, "Bayesian regularization for normal mixture estimation and model-based clustering", Journal
of Classification 24:155-181) propose from the data: it leaves well-supported components as they are
and keeps the likelihood's singularities away. So the posterior is proper for any data, all
conditionals are known laws, and every engine aims at one joint density.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_models import kmeans
from ppl_models.base import Data, HasConditionals, HasEM, HasMeanField, Objective, Params
from ppl_models.component_laws import MeanGiven, RowGiven
from ppl_models.conjugate_normal import STRUCTURES, Natural, Prior, Standard, Structure
from ppl_models.errors import ModelError
from ppl_models.inverse_wishart import Placed
from ppl_models.mixture_data import mixture_rows, moments_of, no_mode
from ppl_models.noise import Noise
from ppl_models.quadratic_rows import LOG_2PI, Moments, Rows
from ppl_models.relabel import invariants_of_mixture, relabelled

_START_ROWS = 20_000  # rows that starting points are found from
_LLOYD = 5  # iterations of k-means before EM


class GaussianMixture(HasEM, HasMeanField, HasConditionals):
    """A mixture of K Gaussians over rows ``x`` (N, D).

    Sites: ``weights`` (K,); ``mean`` (K, D), in the units of x; ``covariance``, (K, D, D) if
    "full", (D, D) if "tied", the variances (K, D) if "diagonal" and (K,) if "spherical"; ``z``
    (N,), the component of each row, summed out; ``x`` (N, D), observed, in the plate
    ``observations``.

    EM finds the mode of the joint density of weights, means and covariances, or with
    ``objective="likelihood"`` the maximum-likelihood estimate, in closed form from k-means++
    starts. The likelihood has no maximum: a component on one row can shrink for ever. Covariances
    are therefore kept above ``floor`` times that of the data, in every direction, and a component
    that ends there is reported. The mean field has the factors q(weights) prod_k q(mean_k,
    covariance_k) prod_n q(z_n) (Blei, Kucukelbir & McAuliffe 2017), Gibbs the blocks ``z``,
    ``weights`` and ``components``.

    Labels mean nothing: components are numbered by the first coordinate of their means, and draws
    relabelled to agree (``canonical``).

    Args:
        components: K.
        covariance: "full", "diagonal", "spherical" or "tied".
        concentration: of the Dirichlet prior; EM for the joint needs at least 1.
        shrinkage: of the means towards ``location``, the mean of x, in rows.
        degrees: of freedom of the covariances' prior; D + 2 by default. Diagonal and spherical
            covariances have variances with so many degrees each.
        scale: of the covariances' prior, in units of the covariance of x; by default K^(-2/D),
            which gives each component an equal part of the volume.
        floor: of the covariances under ``objective="likelihood"``, in the same units.

    Raises ``ModelError`` where an argument is out of range.
    """

    def __init__(
        self,
        components: int,
        covariance: Literal["full", "diagonal", "spherical", "tied"] = "full",
        *,
        concentration: float = 1.0,
        shrinkage: float = 0.01,
        degrees: float | None = None,
        scale: float | None = None,
        floor: float = 1e-6,
    ) -> None:
        super().__init__()
        if isinstance(components, bool) or not isinstance(components, int) or components < 1:
            raise ModelError(f"components={components!r}: give a whole number of at least 1")
        if covariance not in STRUCTURES:
            legal = ", ".join(repr(name) for name in STRUCTURES)
            raise ModelError(f"covariance={covariance!r}: choose one of {legal}")
        numbers = {"concentration": concentration, "shrinkage": shrinkage, "floor": floor}
        for name, value in {**numbers, "degrees": degrees, "scale": scale}.items():
            if value is not None and not 0 < value < math.inf:
                raise ModelError(f"{name}={value!r}: give a positive number")
        self.components = components
        self.covariance = covariance
        self.concentration = float(concentration)
        self.shrinkage = float(shrinkage)
        self.degrees = degrees
        self.scale = scale
        self.floor = float(floor)

    @property
    def structure(self) -> Structure:
        return STRUCTURES[self.covariance]

    def prior(self, location: Tensor, spread: Tensor) -> Prior:
        """The components' prior for data of that ``location`` and ``spread``.

        Raises ``ModelError`` where there are too few ``degrees`` for the number of columns.
        """
        dim = location.shape[-1]
        degrees = dim + 2.0 if self.degrees is None else float(self.degrees)
        if self.structure.matrix and degrees <= dim - 1:
            raise ModelError(
                f"degrees={self.degrees!r}: covariances of {dim} columns need more than {dim - 1}"
            )
        factor = self.components ** (-2 / dim) if self.scale is None else self.scale
        return Prior(self.shrinkage, degrees, factor * spread)

    def forward(  # type: ignore[override]
        self,
        x: Tensor | None,
        location: Tensor | None = None,
        spread: Tensor | None = None,
        rows: int | None = None,
        features: list[str] | None = None,
    ) -> None:
        """The Pyro program for rows ``x`` (N, D); None simulates ``rows`` of them.

        ``location`` (D,) and ``spread``, a covariance of x, are what the prior goes by, those of x
        unless given. ``features`` names the columns and does not enter.
        """
        if location is None or spread is None:
            assert x is not None, "x=None needs location and spread"
            location, spread = moments_of(x, self.structure)
        k, dim = self.components, location.shape[-1]
        prior, structure = self.prior(location, spread), self.structure
        weights = pyro.sample("weights", dist.Dirichlet(self.concentration * location.new_ones(k)))
        unit = spread.diagonal(dim1=-2, dim2=-1) if structure.matrix else spread.expand(dim)
        if structure.tied:
            covariance = pyro.sample("covariance", structure.law(prior.degrees, prior.scale))
        with pyro.plate("components", k, dim=-1):
            if not structure.tied:
                scale = prior.scale.expand(k, *prior.scale.shape)
                law = structure.law(prior.degrees, scale)
                covariance = pyro.sample("covariance", law.to_event(len(law.batch_shape) - 1))
            each = structure.by_component(covariance, k, dim)  # type: ignore[possibly-undefined]
            law = MeanGiven(structure, location, each, prior.shrinkage)
            mean = pyro.sample("mean", Placed(law, location, unit.sqrt()))
        size = rows if x is None else len(x)
        with pyro.plate("observations", size, dim=-1):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", RowGiven(structure, z, mean, each), obs=x)

    def prepare(self, data: Any) -> Data:
        """Check the rows, and turn them into the arguments of ``forward``.

        ``data`` is an array (N, D) or (N,), a DataFrame of numeric columns, or a mapping with ``x``
        or one field per column. ``location`` and ``spread`` in it replace those of x; the data of
        a fit have them, so that ``fit.predict({**fit.data, "x": new})`` takes rows of any number,
        and ``{**fit.data, "x": None, "rows": 100}`` simulates 100.

        Raises ``DataError`` for missing, infinite or non-numeric values, naming row or column; for
        fewer rows, or distinct rows, than components; for constant columns; and, where covariances
        are matrices, for linearly dependent columns.
        """
        fields = mixture_rows(data, self.components, self.structure)
        self.prior(fields["location"], fields["spread"])
        return fields

    def obstacle(self, data: Data, use: str) -> str | None:
        """With a concentration below 1 the joint has no mode."""
        return no_mode(self.concentration) if use == "joint" else None

    def coordinates(self, data: Data) -> Mapping[str, Mapping[str, list[Any]]]:
        numbers = {"component": list(range(self.components))}
        features = {"feature": list(data["features"])}
        both = features | {"other_feature": features["feature"]}
        covariance = {
            "full": numbers | both,
            "tied": both,
            "diagonal": numbers | features,
            "spherical": numbers,
        }
        return {
            "weights": numbers,
            "mean": numbers | features,
            "covariance": covariance[self.covariance],
        }

    def canonical(self, draws: Params) -> Params:
        """One labelling for all draws, by the assignment to a pivot: see ``relabelled``."""
        return relabelled(draws, self.structure)

    def invariants(self, data: Data, draws: Params) -> Params:
        """What does not depend on labels: sorted weights, and moments of the mixture as a whole."""
        return invariants_of_mixture(draws, self.structure)

    def findings(self, data: Data, draws: Params) -> list[str]:
        """Components that hold no rows, or have collapsed onto a few."""
        weights = draws["weights"].flatten(0, 1)  # (S, K)
        rows = len(data["x"]) * weights.mean(0)
        empty = (rows < 1).nonzero()[:, 0].tolist()
        found = [
            f"component {k} is empty: it holds {float(rows[k]):.2g} of {len(data['x'])} rows; use "
            "fewer components"
            for k in empty
        ]
        if len(weights) > 1:
            return found
        narrow = self._narrowest(data, draws["covariance"].flatten(0, 1)[0])
        for k in (narrow < 1.001 * self.floor).nonzero()[:, 0].tolist():
            if k in empty and not self.structure.tied:
                continue
            what = "the covariance" if self.structure.tied else f"component {k}"
            many = "" if self.structure.tied else f" on about {float(rows[k]):.3g} rows"
            found.append(
                f"{what} has collapsed{many}: its variance in some direction is at the floor, "
                f"{self.floor:g} of the data's, and the likelihood there means nothing; use "
                "objective='joint', fewer components, or a simpler covariance, or drop duplicates"
            )
        return found

    def _narrowest(self, data: Data, covariance: Tensor) -> Tensor:
        """The smallest variance of each covariance in units of that of the data: (K,) or (1,)."""
        spread = data["spread"]
        if not self.structure.matrix:
            return (covariance / spread).reshape(len(covariance), -1).amin(-1)
        root = torch.linalg.cholesky(spread)
        half = torch.linalg.solve_triangular(root, covariance, upper=False)
        white = torch.linalg.solve_triangular(root, half.mT, upper=False)
        return torch.linalg.eigvalsh(white)[..., 0].reshape(-1)

    # -- EM --------------------------------------------------------------------------------------

    def start(self, data: Data, restarts: int, noise: Noise) -> Params:
        """The mode given clusters of k-means++ and a few of Lloyd's iterations, each restart's."""
        x = data["x"]
        if len(x) > _START_ROWS:
            chosen = Noise(noise.key[:1], noise.dtype).fold(0).uniform(_START_ROWS)[0]
            x = x[(chosen * len(x)).long().clamp(max=len(x) - 1)]
        y = (x - data["location"]) / x.std(0).clamp(min=torch.finfo(x.dtype).tiny)
        centres = kmeans.seeds(y, self.components, noise.fold(1))
        labels = kmeans.lloyd(y, centres, _LLOYD)
        moments = Rows(x, data["location"], self.structure.matrix).tallied(labels, self.components)
        return self._mode(data, moments, max(self.concentration, 1.0))

    def e_step(self, data: Data, params: Params) -> Moments:
        """The moments of the rows weighted by responsibilities p(z_n = k | x_n, params)."""
        rows = self._rows(data)
        return rows.expected(self._coefficients(data, rows, params))[0]

    def m_step(self, data: Data, expectations: Moments, objective: Objective) -> Params:
        """The maximiser given the moments of e_step, in closed form."""
        if objective == "joint":
            return self._mode(data, expectations, self.concentration)
        mean, covariance = self.structure.likeliest(expectations, self.floor * data["spread"])
        weights = _shares(expectations.number)
        return {"weights": weights, "mean": data["location"] + mean, "covariance": covariance}

    def log_objective(self, data: Data, params: Params, objective: Objective) -> Tensor:
        """The log likelihood, in blocks of rows, and for the joint the log prior beside it."""
        rows = self._rows(data)
        likelihood = rows.expected(self._coefficients(data, rows, params))[1]
        if objective == "likelihood":
            return likelihood
        nothing = likelihood.new_zeros(1, self.components, rows.features)
        prior = self._law(data, rows.moments(nothing))
        mean = params["mean"] - data["location"]
        components = self.structure.log_density(prior, mean[None], params["covariance"][None])[0]
        concentration = torch.full_like(params["weights"], self.concentration)
        weights = dist.Dirichlet(concentration, validate_args=False).log_prob(params["weights"])
        return likelihood + weights + components

    def _mode(self, data: Data, moments: Moments, concentration: float) -> Params:
        law = self._law(data, moments)
        return {
            "weights": _shares(moments.number + concentration - 1),
            "mean": data["location"] + law.mean,
            "covariance": self.structure.mode(law),
        }

    def _law(self, data: Data, moments: Moments) -> Standard:
        prior = self.prior(data["location"], data["spread"])
        return self.structure.standard(self.structure.natural(prior, moments))

    def _rows(self, data: Data) -> Rows:
        return Rows(data["x"], data["location"], self.structure.matrix)

    def _coefficients(self, data: Data, rows: Rows, params: Params) -> Tensor:
        """Those of log p(x_n, z_n = k | params) in the features of a row: (B, K, F)."""
        mean = params["mean"] - data["location"]
        k, dim = mean.shape[-2:]
        covariance = self.structure.by_component(params["covariance"], k, dim)
        if self.structure.matrix:
            tril = torch.linalg.cholesky_ex(covariance)[0]
            precision = torch.cholesky_inverse(tril)
            half = tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        else:
            precision, half = 1 / covariance, covariance.log().sum(-1) / 2
        return rows.coefficients(
            precision, mean, params["weights"].log() - half - dim / 2 * LOG_2PI
        )

    # -- Gibbs -----------------------------------------------------------------------------------

    def initial(self, data: Data, chains: int, noise: Noise) -> Params:
        return self.start(data, chains, noise)

    def conditionals(self, data: Data) -> Mapping[str, Callable[[Params, Noise], Params]]:
        """Labels z given all else; weights given z; means and covariances jointly given z."""
        rows = self._rows(data)

        def z(params: Params, noise: Noise) -> Params:
            uniform = noise.uniform(len(rows.x))
            labels, moments = rows.assigned(self._coefficients(data, rows, params), uniform)
            return {**params, "z": labels, **dict(zip(_MOMENTS, moments, strict=True))}

        def weights(params: Params, noise: Noise) -> Params:
            return {**params, "weights": noise.dirichlet(self.concentration + params["count of z"])}

        def components(params: Params, noise: Noise) -> Params:
            law = self._law(data, Moments(*(params[name] for name in _MOMENTS)))
            mean, covariance = self.structure.draws(law, noise, 1)
            return {**params, "mean": data["location"] + mean[:, 0], "covariance": covariance[:, 0]}

        return {"z": z, "weights": weights, "components": components}

    # -- mean field ------------------------------------------------------------------------------

    def rows(self, data: Data) -> int:
        return len(data["x"])

    def initial_factors(self, data: Data, restarts: int, noise: Noise) -> Params:
        """The factors given the expected moments of the rows at EM's starting points."""
        moments = self.e_step(data, self.start(data, restarts, noise))
        return self._factors(data, moments)

    def coordinate_step(
        self, data: Data, factors: Params, rows: Tensor | None
    ) -> tuple[Params, Tensor]:
        """One round: q(z) given the factors, then the factors given q(z); and the ELBO between."""
        whole = self._rows(data)
        part = whole if rows is None else whole._replace(x=whole.x[rows])
        share = len(whole.x) / len(part.x)
        law, concentration = self._read(factors)
        prior = self.prior(data["location"], data["spread"])
        precision, logs = self.structure.precision(law)
        dim = law.mean.shape[-1]
        weights = torch.digamma(concentration) - torch.digamma(concentration.sum(-1, keepdim=True))
        constant = weights + (logs - dim / law.shrinkage - dim * LOG_2PI) / 2
        moments, evidence = part.expected(part.coefficients(precision, law.mean, constant))
        moments = Moments(*(share * value for value in moments))
        of_weights = dist.Dirichlet(concentration, validate_args=False)
        before = dist.Dirichlet(torch.full_like(concentration, self.concentration))
        divergence = torch.distributions.kl_divergence(of_weights, before)
        divergence = divergence + self.structure.divergence(law, prior)
        return self._factors(data, moments), share * evidence - divergence

    def factor_draws(self, data: Data, factors: Params, noise: Noise, draws: int) -> Params:
        law, concentration = self._read(factors)
        weights = noise.fold(0).dirichlet(concentration[:, None].expand(-1, draws, -1))
        mean, covariance = self.structure.draws(law, noise.fold(1), draws)
        return {"weights": weights, "mean": data["location"] + mean, "covariance": covariance}

    def factor_log_density(self, data: Data, factors: Params, draws: Params) -> Tensor:
        law, concentration = self._read(factors)
        of_weights = dist.Dirichlet(concentration[:, None], validate_args=False)
        components = self.structure.log_density(
            law, draws["mean"] - data["location"], draws["covariance"]
        )
        return of_weights.log_prob(draws["weights"]) + components

    def _factors(self, data: Data, moments: Moments) -> Params:
        prior = self.prior(data["location"], data["spread"])
        law = self.structure.natural(prior, moments)
        return {"concentration": self.concentration + moments.number, **law._asdict()}

    def _read(self, factors: Params) -> tuple[Standard, Tensor]:
        law = Natural(*(factors[name] for name in Natural._fields))
        return self.structure.standard(law), factors["concentration"]


_MOMENTS = ("count of z", "first of z", "second of z")


def _shares(count: Tensor) -> Tensor:
    count = count.clamp(min=torch.finfo(count.dtype).tiny)
    return count / count.sum(-1, keepdim=True)
