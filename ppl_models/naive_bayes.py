"""Naive Bayes classification: features that are independent given the class.

The priors are conjugate, so that the posterior is known in closed form (Gelman et al. 2013,
"Bayesian data analysis", chapters 2 and 3); every engine has it to be compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_models.base import Data, HasConditionals, HasEM, HasMeanField, Objective, Params, Use
from ppl_models.conjugate_normal import STRUCTURES, Natural, Prior
from ppl_models.errors import DataError, ModelError
from ppl_models.inverse_wishart import Placed, ScaledInverseChiSquared
from ppl_models.labelled_data import labelled, prepared_rows
from ppl_models.noise import Noise
from ppl_models.quadratic_rows import LOG_2PI, Moments

Features = Literal["bernoulli", "categorical", "gaussian"]

SHRINKAGE, DEGREES, SCALE = 0.01, 2.0, 0.2
"""Prior of a class's mean and variance: 1 / 100 of a row, two degrees of freedom about a tenth of
the column's variance."""

_CHUNK = 1 << 22  # elements of the densities that predict_proba holds at a time
_DIAGONAL = STRUCTURES["diagonal"]


class NaiveBayes(HasEM, HasMeanField, HasConditionals):
    """Classes y_n, and features x_n that are independent of each other given the class.

    Sites: ``weights`` (K,) of the classes; ``y`` (N,) and ``x`` (N, D), observed, in the plate
    ``rows``; and by the kind of ``features``

    - "bernoulli", x 0 or 1: ``probability`` (K, D) ~ Beta(alpha, alpha);
    - "categorical", x 0, 1, ...: for each feature ``probability_<name>`` (K, categories) ~
      Dirichlet(alpha, ..., alpha);
    - "gaussian": ``variance`` (K, D) ~ InverseGamma(1, s^2 / 10) and ``mean`` (K, D) ~
      Normal(c, 100 variance), with c and s^2 the mean and variance of the column.

    weights ~ Dirichlet(class_alpha, ..., class_alpha).

    EM takes one step, to the maximum-likelihood estimate or to the mode of the joint. Mean field is
    exact: its factors are the posterior and its ELBO is the log evidence. So are Gibbs draws, which
    are independent. ``predict_proba`` gives class probabilities from the draws of any fit,
    ``exact_proba`` in closed form.

    scikit-learn's estimates are these: with ``objective="likelihood"`` GaussianNB(var_smoothing=0);
    with ``objective="joint"``, class_alpha=1 and an alpha larger by one BernoulliNB(alpha) and
    CategoricalNB(alpha), as a mode of Beta(alpha + 1) is a mean under Beta(alpha). So
    ``exact_proba`` has their probabilities at the same alpha, but for the class shares, which
    scikit-learn does not smooth: class_alpha near zero.

    Args:
        features: their kind.
        alpha: the pseudo-count of each category, above zero; of no use to gaussian features.
        class_alpha: the pseudo-count of each class, above zero.

    >>> model = NaiveBayes("bernoulli")
    >>> data = {"x": [[0, 1], [1, 1], [1, 0]], "y": ["no", "yes", "yes"]}
    >>> model.exact_proba(data, [[1, 1]]).round(decimals=4)
    tensor([[0.2832, 0.7168]], dtype=torch.float64)
    """

    def __init__(
        self, features: Features = "gaussian", alpha: float = 1.0, class_alpha: float = 1.0
    ) -> None:
        super().__init__()
        if features not in ("bernoulli", "categorical", "gaussian"):
            raise ModelError(
                f"features={features!r}: choose one of 'bernoulli', 'categorical', 'gaussian'"
            )
        for name, value in (("alpha", alpha), ("class_alpha", class_alpha)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise ModelError(f"{name}={value!r}: give a positive number")
        self.features: Features = features
        self.alpha, self.class_alpha = float(alpha), float(class_alpha)

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        y: Tensor | None,
        classes: list[str],
        features: list[str],
        centre: Tensor | None = None,
        spread: Tensor | None = None,
        categories: list[int] | None = None,
    ) -> None:
        """The Pyro program for features ``x`` (N, D) and classes ``y`` (N,); None predicts them.

        ``classes`` and ``features`` are names. ``centre`` and ``spread`` (D,), the mean and the
        standard deviation of columns, place the priors of gaussian features; ``categories`` is how
        many values each categorical feature has.
        """
        like = x if x.is_floating_point() else torch.zeros((), device=x.device)
        k, d = len(classes), x.shape[-1]
        prior = torch.full((k,), self.class_alpha, dtype=like.dtype, device=like.device)
        weights = pyro.sample("weights", dist.Dirichlet(prior))
        law: Callable[[Tensor], Any]
        if self.features == "gaussian":
            assert centre is not None
            assert spread is not None
            with pyro.plate("classes", k, dim=-1):
                scale = (SCALE * spread.square()).expand(k, d)
                variances = ScaledInverseChiSquared(DEGREES, scale).to_event(1)
                variance = pyro.sample("variance", variances)
                normal = dist.Normal(centre, (variance / SHRINKAGE).sqrt()).to_event(1)
                mean = pyro.sample("mean", Placed(normal, centre, spread))
            law = lambda of: dist.Normal(mean[of], variance[of].sqrt())  # noqa: E731
        elif self.features == "bernoulli":
            alpha = torch.full((k, d), self.alpha, dtype=like.dtype, device=like.device)
            probability = pyro.sample("probability", dist.Beta(alpha, alpha).to_event(2))
            law = lambda of: dist.Bernoulli(probability[of])  # noqa: E731
        else:
            assert categories is not None
            each = []
            for name, count in zip(features, categories, strict=True):
                alpha = torch.full((k, count), self.alpha, dtype=like.dtype, device=like.device)
                each.append(pyro.sample(f"probability_{name}", dist.Dirichlet(alpha).to_event(1)))
            padded = _padded(each)
            law = lambda of: dist.Categorical(padded[of])  # noqa: E731
        with pyro.plate("rows", len(x), dim=-1):
            of = pyro.sample("y", dist.Categorical(weights), obs=y).long()
            pyro.sample("x", law(of).to_event(1), obs=x)

    def prepare(self, data: Any) -> Data:
        """Check the data, and turn them into the arguments of ``forward``.

        ``data`` is a mapping or a DataFrame with ``y`` and either ``x`` (N, D) or one field or
        column per feature. ``y`` holds classes as 0, 1, ..., K-1 or as text, which is sorted.
        ``y`` may be None where ``classes`` are given, as in ``{**fit.data, "x": new, "y": None}``.

        Raises ``DataError`` for missing, infinite, non-numeric or empty data, a class without rows,
        features that are not of their kind, and constant gaussian features.
        """
        return labelled(data, self.features)

    def obstacle(self, data: Data, use: Use) -> str | None:
        """Where the mode that EM seeks does not exist."""
        if use == "joint":
            small = self.class_alpha < 1 or (self.alpha < 1 and self.features != "gaussian")
            return (
                "with alpha or class_alpha below 1 the joint density is infinite where a "
                "probability is zero; give 1 or more (alpha=2 has the estimates of scikit-learn's "
                "alpha=1), or use EM(objective='likelihood')"
                if small
                else None
            )
        if use == "likelihood":
            empty = (self._sums(data).classes == 0).nonzero()[:, 0].tolist()
            if empty:
                name = data["classes"][empty[0]]
                return f"class {name} has no rows; drop it, or use EM(objective='joint')"
            if self.features == "gaussian":
                _, variance = self._within(data)
                constant = variance <= 1e-24 * data["spread"].square()  # but for rounding
                if bool(constant.any()):
                    k, d = constant.nonzero()[0].tolist()
                    return (
                        f"feature {data['features'][d]} is constant within class "
                        f"{data['classes'][k]}, where the likelihood is infinite at variance zero; "
                        "use EM(objective='joint'), or drop the feature"
                    )
        return None

    def coordinates(self, data: Data) -> Mapping[str, Mapping[str, list[Any]]]:
        classes = {"class": list(data["classes"])}
        both = classes | {"feature": list(data["features"])}
        if self.features == "gaussian":
            return {"weights": classes, "mean": both, "variance": both}
        if self.features == "bernoulli":
            return {"weights": classes, "probability": both}
        named = {
            f"probability_{name}": classes | {f"category_{name}": list(range(count))}
            for name, count in zip(data["features"], data["categories"], strict=True)
        }
        return {"weights": classes, **named}

    # -- prediction ------------------------------------------------------------------------------

    def predict_proba(self, draws: Params, x: Any) -> Tensor:
        """P(y = k | x, data) for new rows x (N, D), from ``fit.posterior.draws``: (N, K).

        It is E[p(x, y = k | theta)] over the draws of theta, normalised: of exact draws the
        posterior predictive probability. A point stands for itself alone.
        """
        log_weights = draws["weights"].log()
        lead, classes = log_weights.shape[:-1], log_weights.shape[-1]
        count = lead.numel()
        sites = {k: v.reshape(count, *v.shape[len(lead) :]) for k, v in draws.items()}
        rows = self._rows(x, self._known(sites)).to(self._kind(log_weights))
        step = max(1, _CHUNK // (len(rows) * classes))
        total = rows.new_full((len(rows), classes), -torch.inf, dtype=log_weights.dtype)
        for begin in range(0, count, step):
            part = {name: value[begin : begin + step] for name, value in sites.items()}
            joint = part["weights"].log()[:, None] + self._log_density(part, rows)  # (S, N, K)
            total = torch.logaddexp(total, joint.logsumexp(0))
        return torch.softmax(total, -1)

    def exact_proba(self, data: Any, x: Any) -> Tensor:
        """P(y = k | x, data) for new rows x (N, D), in closed form: (N, K).

        Probabilities have their posterior means, gaussian features Student's t distributions.
        """
        prepared = self.prepare(data)
        sums = self._sums(prepared, dtype=torch.float64)
        weights = sums.classes + self.class_alpha
        log_weights = (weights / weights.sum()).log()
        if sums.normal is None:
            means = {
                site: (counts + self.alpha) / (counts + self.alpha).sum(-1, keepdim=True)
                for site, counts in sums.counts.items()
            }
            values = {
                name: value[..., 1] if self.features == "bernoulli" else value
                for name, value in means.items()
            }
            known = self._known({k: v[None] for k, v in values.items()})
            rows = self._rows(x, known).to(self._kind(log_weights))
            logs = self._log_density({k: v[None] for k, v in values.items()}, rows)[0]
            return torch.softmax(log_weights + logs, -1)
        rows = self._rows(x, len(prepared["features"])).to(log_weights)
        law = _DIAGONAL.standard(_DIAGONAL.natural(self._prior(prepared), sums.normal))
        degrees = law.degrees[0, :, None]  # (K, 1)
        width = law.scale[0] / degrees * (1 + 1 / law.shrinkage[0, :, None])
        student = dist.StudentT(degrees, prepared["centre"] + law.mean[0], width.sqrt())
        return torch.softmax(log_weights + student.log_prob(rows[:, None]).sum(-1), -1)

    def _rows(self, x: Any, known: int | list[int]) -> Tensor:
        """New rows (N, D), checked against the number of columns or of each one's categories."""
        return prepared_rows(x, self.features, known)

    def _kind(self, like: Tensor) -> Any:
        return torch.int64 if self.features == "categorical" else like.dtype

    def _known(self, sites: Params) -> int | list[int]:
        if self.features == "categorical":
            return [v.shape[-1] for k, v in sites.items() if k.startswith("probability_")]
        return sites["mean" if self.features == "gaussian" else "probability"].shape[-1]

    def _log_density(self, sites: Params, rows: Tensor) -> Tensor:
        """The log density of rows given each class, for draws S: (S, N, K)."""
        if self.features == "gaussian":
            mean, precision = sites["mean"], 1 / sites["variance"]  # (S, K, D)
            centre = mean.mean((0, 1))
            x, mean = rows - centre, mean - centre
            square = x.square() @ precision.mT - 2 * x @ (precision * mean).mT
            constant = precision * mean.square() - precision.log() + LOG_2PI
            return -(square + constant.sum(-1)[:, None]) / 2
        if self.features == "bernoulli":
            p = sites["probability"]
            return _times(rows, p.log()) + _times(1 - rows, (-p).log1p())
        each = [v for k, v in sites.items() if k.startswith("probability_")]
        logs = [p.log()[:, :, column] for p, column in zip(each, rows.unbind(-1), strict=True)]
        return torch.stack(logs).sum(0).mT

    # -- sums over rows --------------------------------------------------------------------------

    def _sums(
        self, data: Data, rows: Tensor | None = None, dtype: torch.dtype | None = None
    ) -> Sums:
        """The sufficient statistics of rows, each standing for as many as are left out.

        Counts of categories are of ``dtype``, by default that of the fit.
        """
        x, y, k = data["x"], data["y"], len(data["classes"])
        if y is None:
            raise DataError("y: missing; the classes of the rows are what is learned from")
        share = 1.0
        if rows is not None:
            x, y, share = x[rows], y[rows], len(x) / len(rows)
        dtype = x.dtype if x.is_floating_point() else dtype or torch.get_default_dtype()
        member = torch.nn.functional.one_hot(y, k).to(dtype).mT * share  # (K, N)
        classes = member.sum(-1)
        if self.features == "gaussian":
            away = x - data["centre"]
            moments = Moments(classes[None], (member @ away)[None], (member @ away.square())[None])
            return Sums(classes, {}, moments)
        if self.features == "bernoulli":
            ones = member @ x
            return Sums(classes, {"probability": torch.stack([classes[:, None] - ones, ones], -1)})
        counts = {}
        for name, size, column in zip(
            data["features"], data["categories"], x.unbind(-1), strict=True
        ):
            number = torch.bincount(y * size + column, minlength=k * size).reshape(k, size)
            counts[f"probability_{name}"] = share * number.to(dtype)
        return Sums(classes, counts)

    def _prior(self, data: Data) -> Prior:
        return Prior(SHRINKAGE, DEGREES, SCALE * data["spread"].square())

    @staticmethod
    def _within(data: Data) -> tuple[Tensor, Tensor]:
        """The means and variances of gaussian features in each class, with divisor n: (K, D)."""
        x, y = data["x"], data["y"]
        member = torch.nn.functional.one_hot(y, len(data["classes"])).to(x.dtype).mT
        share = member / member.sum(-1, keepdim=True)
        mean = share @ (x - data["centre"]) + data["centre"]
        return mean, share @ (x - mean[y]).square()

    # -- EM --------------------------------------------------------------------------------------

    def start(self, data: Data, restarts: int, noise: Noise) -> Params:
        """The estimate given the rows and one more of each kind; there are no latent variables."""
        sums = self._sums(data)
        return self._repeated(self._estimate(data, sums, 2.0, "joint"), restarts)

    def e_step(self, data: Data, params: Params) -> tuple[Sums, int]:
        """The sums over rows, and the number of restarts."""
        return self._sums(data), len(params["weights"])

    def m_step(self, data: Data, expectations: tuple[Sums, int], objective: Objective) -> Params:
        """The mode of the joint, or the maximum-likelihood estimate, whatever came before."""
        sums, restarts = expectations
        return self._repeated(self._estimate(data, sums, 0.0, objective), restarts)

    def _estimate(self, data: Data, sums: Sums, more: float, objective: Objective) -> Params:
        joint = objective == "joint"
        found = {"weights": _shares(sums.classes + more + (self.class_alpha - 1 if joint else 0))}
        for site, counts in sums.counts.items():
            share = _shares(counts + more + (self.alpha - 1 if joint else 0))
            found[site] = share[..., 1] if self.features == "bernoulli" else share
        if sums.normal is not None:
            if joint:
                law = _DIAGONAL.standard(_DIAGONAL.natural(self._prior(data), sums.normal))
                mean, variance = data["centre"] + law.mean[0], _DIAGONAL.mode(law)[0]
            else:
                mean, variance = self._within(data)
            found |= {"variance": variance, "mean": mean}
        return found

    @staticmethod
    def _repeated(values: Params, count: int) -> Params:
        return {name: value.expand(count, *value.shape) for name, value in values.items()}

    # -- the exact posterior -----------------------------------------------------------------

    def rows(self, data: Data) -> int:
        return len(data["x"])

    def initial_factors(self, data: Data, restarts: int, noise: Noise) -> Params:
        """The prior."""
        return self._factors(data, self._sums(data).scaled(0.0), restarts)

    def coordinate_step(
        self, data: Data, factors: Params, rows: Tensor | None
    ) -> tuple[Params, Tensor]:
        """The posterior given the rows, and the ELBO of ``factors``.

        There are no local factors; at the posterior the ELBO is the log evidence.
        """
        sums = self._sums(data, rows)
        elbo = _dirichlet_bound(factors["weights"], self.class_alpha, sums.classes)
        for site, counts in sums.counts.items():
            elbo = elbo + _dirichlet_bound(factors[site], self.alpha, counts)
        if sums.normal is not None:
            law = _DIAGONAL.standard(_natural(factors))
            precision, logs = _DIAGONAL.precision(law)  # (R, K, D), (R, K)
            size = law.mean.shape[-1]
            count, first, second = sums.normal
            square = second - 2 * law.mean * first + count[..., None] * law.mean.square()
            inner = count * (logs - size / law.shrinkage - size * LOG_2PI)
            expected = (inner - (precision * square).sum(-1)).sum(-1) / 2
            elbo = elbo + expected - _DIAGONAL.divergence(law, self._prior(data))
        return self._factors(data, sums, len(factors["weights"])), elbo

    def factor_draws(self, data: Data, factors: Params, noise: Noise, draws: int) -> Params:
        values = {}
        for position, (site, concentration) in enumerate(self._dirichlets(factors).items()):
            many = concentration[:, None].expand(-1, draws, *concentration.shape[1:])
            value = noise.fold(position).dirichlet(many)
            values[site] = value[..., 1] if site == "probability" else value
        if self.features == "gaussian":
            law = _DIAGONAL.standard(_natural(factors))
            mean, variance = _DIAGONAL.draws(law, noise.fold(-2), draws)
            values |= {"variance": variance, "mean": data["centre"] + mean}
        return values

    def factor_log_density(self, data: Data, factors: Params, draws: Params) -> Tensor:
        total = torch.zeros_like(draws["weights"][..., 0])
        for site, concentration in self._dirichlets(factors).items():
            value = draws[site]
            if site == "probability":
                value = torch.stack([1 - value, value], -1)
            law = dist.Dirichlet(concentration[:, None], validate_args=False)
            total = total + law.log_prob(value).reshape(*total.shape, -1).sum(-1)
        if self.features == "gaussian":
            law = _DIAGONAL.standard(_natural(factors))
            away = draws["mean"] - data["centre"]
            total = total + _DIAGONAL.log_density(law, away, draws["variance"])
        return total

    def conditionals(self, data: Data) -> Mapping[str, Callable[[Params, Noise], Params]]:
        """One block: all parameters from their posterior."""
        factors = self._factors(data, self._sums(data), 1)

        def parameters(params: Params, noise: Noise) -> Params:
            many = {k: v.expand(noise.chains, *v.shape[1:]) for k, v in factors.items()}
            drawn = self.factor_draws(data, many, noise, 1)
            return {name: value[:, 0] for name, value in drawn.items()}

        return {"parameters": parameters}

    def _factors(self, data: Data, sums: Sums, restarts: int) -> Params:
        factors = {"weights": sums.classes + self.class_alpha}
        factors |= {site: counts + self.alpha for site, counts in sums.counts.items()}
        if sums.normal is not None:
            law = _DIAGONAL.natural(self._prior(data), sums.normal)
            factors |= {f"normal {k}": v[0] for k, v in law._asdict().items()}
        return self._repeated(factors, restarts)

    @staticmethod
    def _dirichlets(factors: Params) -> Params:
        return {name: value for name, value in factors.items() if not name.startswith("normal ")}


class Sums(NamedTuple):
    """The sufficient statistics of labelled rows."""

    classes: Tensor  # rows of each class: (K,)
    counts: Params  # of the categories of each site: (K, D, 2) or (K, categories)
    normal: Moments | None = None  # of gaussian features about the centre, batch 1

    def scaled(self, by: float) -> Sums:
        normal = self.normal and Moments(*(by * part for part in self.normal))
        counts = {site: by * value for site, value in self.counts.items()}
        return Sums(by * self.classes, counts, normal)


def _natural(factors: Params) -> Natural:
    return Natural(*(factors[f"normal {name}"] for name in Natural._fields))


def _dirichlet_bound(concentration: Tensor, prior: float, counts: Tensor) -> Tensor:
    """E[log p(counts | p)] - KL(q || prior), q = Dirichlet(concentration (R, ..., C)): (R,)."""
    law = dist.Dirichlet(concentration, validate_args=False)
    before = dist.Dirichlet(torch.full_like(concentration, prior), validate_args=False)
    logs = concentration.digamma() - concentration.sum(-1, keepdim=True).digamma()
    each = (counts * logs).sum(-1) - torch.distributions.kl_divergence(law, before)
    return each.reshape(len(concentration), -1).sum(-1)


def _shares(counts: Tensor) -> Tensor:
    """Counts over the last dimension as shares; equal shares where there are none."""
    counts = counts.clamp(min=torch.finfo(counts.dtype).tiny)
    return counts / counts.sum(-1, keepdim=True)


def _times(rows: Tensor, logs: Tensor) -> Tensor:
    """Rows (N, D) of zeros and ones times logs (S, K, D), where 0 times -inf is 0: (S, N, K)."""
    finite = logs.clamp(min=-1e300 if logs.dtype == torch.float64 else -1e30)
    return rows @ finite.mT


def _padded(each: list[Tensor]) -> Tensor:
    """Probabilities (..., K, C_d) of the features as one tensor (..., K, D, C), zero beyond C_d."""
    most = max(p.shape[-1] for p in each)
    wide = [torch.nn.functional.pad(p, (0, most - p.shape[-1])) for p in each]
    return torch.stack(wide, -2)
