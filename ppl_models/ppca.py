"""Probabilistic principal component analysis (Tipping & Bishop 1999, JRSS B 61:611-622).

With standard normal z (q,) a row is x = W z + mean + noise; z is summed out of the program:

    x ~ N(mean, C),    C = W W' + variance I,    M = W'W + variance I (q x q),
    z | x ~ N(M^-1 W' (x - mean), variance M^-1).

Given z a row of (mean, W) is the vector of coefficients of a linear regression on (1, z), which
both the M step and the Gibbs blocks solve from the same sums over rows (``Sums``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_models.base import Data, HasConditionals, HasEM, Objective, Params
from ppl_models.errors import DataError, ModelError
from ppl_models.inverse_wishart import Placed, ScaledInverseChiSquared
from ppl_models.low_rank import LowRankNormal
from ppl_models.noise import Noise
from ppl_models.quadratic import Quadratic
from ppl_models.table import scaled, table, varying

MEAN_SD = 3.0  # of a mean, in units of the data's scale
SHAPE, RATE = 2.0, 0.1  # of a noise variance: inverse gamma, in units of the squared scale


class PPCA(HasEM, HasConditionals):
    """Rows x = W z + mean + noise, with z ~ N(0, I) of ``latent`` dimensions summed out.

    Sites: ``loadings`` W (D, q), ``mean`` (D,), ``variance`` of the noise, a scalar; ``x`` (N, D),
    observed, in the plate ``rows``. With s^2 the average variance of the columns, which are taken
    to be in one unit as their noise is, the priors are

        W_dk ~ N(0, s^2),   mean_d ~ N(centre_d, (3 s)^2),   variance ~ InverseGamma(2, s^2 / 10).

    They weigh about as much as a few rows. W is known up to rotations of z only; ``canonical``
    turns draws to one orientation, and ``invariants`` do not depend on it.

    EM ascends the likelihood, or the joint by conditional maximisation: coefficients given the
    noise, then the noise (Meng & Rubin 1993). Its steps cost O(D^2 q) whatever the number of rows.
    Gibbs sampling draws z, the coefficients and the noise in turn. Where noise is small it would
    crawl; so z, once drawn, is shifted against the mean and rescaled against W.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(50, 3)) @ np.diag([3.0, 1.0, 0.5])
    >>> best = PPCA(1).maximum_likelihood(x)
    >>> best["loadings"].shape, PPCA(1).transform(best, x).shape
    (torch.Size([3, 1]), torch.Size([50, 1]))
    """

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.latent = whole("latent", latent)

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        centre: Tensor | None = None,
        scale: Tensor | None = None,
        scatter: Tensor | None = None,
        features: list[str] | None = None,
    ) -> None:
        """The Pyro program for rows ``x`` (N, D).

        ``centre`` (D,) and ``scale`` () place the priors, by default those of x. ``scatter``
        (D, D), of x about the centre, serves EM, and ``features`` names columns: neither enters.
        """
        if centre is None or scale is None:
            own = scaled(x, {})
            centre, scale = own["centre"], own["scale"]
        shape = (x.shape[-1], self.latent)
        loadings = pyro.sample("loadings", loadings_prior(scale, shape))
        mean = pyro.sample("mean", mean_prior(centre, scale))
        variance = pyro.sample("variance", variance_prior(scale))
        with pyro.plate("rows", len(x), dim=-1):
            pyro.sample("x", LowRankNormal(mean, loadings, variance), obs=x)

    def prepare(self, data: Any) -> Data:
        """Check the data, and turn them into the arguments of ``forward``.

        ``data`` is an array (N, D), a DataFrame, or a mapping with ``x``; ``centre`` and ``scale``
        may be given beside x. x keeps its floating dtype, integers become float64.

        Raises ``DataError`` for missing, infinite, non-numeric or constant columns, and for rows
        that lie in a plane of ``latent`` dimensions, as nothing is left to be noise.
        """
        x, features, given = table(data, "centre", "scale", "scatter")
        check_latent(self.latent, x, features)
        placed = scaled(x, given)
        centred = x - placed["centre"]
        spectrum = torch.linalg.svdvals((x - x.mean(0)).double())
        if not bool(spectrum[self.latent :].sum() > 1e-10 * spectrum.sum()):
            raise DataError(
                f"x: the rows lie in a plane of {self.latent} dimensions or fewer, so that no "
                "noise is left and the likelihood has no maximum; use a smaller latent, more "
                "rows, or drop columns that are sums of others"
            )
        return {"x": x, **placed, "scatter": centred.mT @ centred, "features": features}

    def coordinates(self, data: Data) -> Mapping[str, Mapping[str, list[Any]]]:
        features = list(data["features"])
        axes = {"feature": features, "component": list(range(self.latent))}
        return {"loadings": axes, "mean": {"feature": features}}

    def canonical(self, draws: Params) -> Params:
        """Draws with their loadings turned to one orientation: see ``oriented``."""
        return {**draws, "loadings": oriented(draws["loadings"])}

    def invariants(self, data: Data, draws: Params) -> Params:
        """The q largest eigenvalues of C, descending, and the noise variance, the others."""
        return {
            "eigenvalues": eigenvalues(draws["loadings"], draws["variance"]),
            "variance": draws["variance"],
        }

    # -- closed forms ----------------------------------------------------------------------------

    def maximum_likelihood(self, data: Any) -> Params:
        """The maximum-likelihood estimate, by the eigenvectors of the covariance of the rows.

        With its eigenvalues l_1 >= ... >= l_D (divisor N) and eigenvectors u_k the noise variance
        is the average of l_{q+1}, ..., l_D and W_k = u_k sqrt(l_k - variance), up to rotation.
        """
        x = self.prepare(data)["x"]
        centred = x - x.mean(0)
        values, vectors = torch.linalg.eigh(centred.mT @ centred / len(x))
        values, vectors = values.flip(-1), vectors.flip(-1)
        variance = values[self.latent :].mean()
        lengths = (values[: self.latent] - variance).clamp(min=0).sqrt()
        loadings = oriented(vectors[:, : self.latent] * lengths)
        return {"loadings": loadings, "mean": x.mean(0), "variance": variance}

    def transform(self, params: Params, x: Any) -> Tensor:
        """E[z | x, params] for rows x (N, D): (..., N, q), by the leading dimensions of params."""
        rows = self._rows(params, x)
        return latent_mean(rows, params["mean"], params["loadings"], params["variance"])

    def reconstruct(self, params: Params, x: Any) -> Tensor:
        """E[W z + mean | x, params], the rows without their noise: (..., N, D)."""
        return self.transform(params, x) @ params["loadings"].mT + params["mean"][..., None, :]

    def _rows(self, params: Params, x: Any) -> Tensor:
        rows, _, _ = table(x, "centre", "scale", "scatter")
        size = params["mean"].shape[-1]
        if rows.shape[1] != size:
            raise DataError(f"x: has {rows.shape[1]} columns; the parameters are of {size}")
        return rows.to(params["mean"])

    # -- EM --------------------------------------------------------------------------------------

    def start(self, data: Data, restarts: int, noise: Noise) -> Params:
        """Random loadings of the data's scale, the centre of the data, and their whole variance."""
        centre, scale = data["centre"], data["scale"]
        size = len(centre)
        return {
            "loadings": noise.normal(size, self.latent).to(centre) * scale / self.latent**0.5,
            "mean": centre.expand(restarts, size),
            "variance": scale.square().expand(restarts),
        }

    def e_step(self, data: Data, params: Params) -> tuple[Sums, Tensor]:
        """The expected sums of the regression of x - centre on (1, z), and the noise variance."""
        centre, scatter, count = data["centre"], data["scatter"], len(data["x"])
        total = data["x"].sum(0) - count * centre
        mean = params["mean"] - centre  # (R, D)
        back, spread = latent_map(params["loadings"], params["variance"])
        cross = scatter - total[:, None] * mean[:, None, :]  # sum_n x_n (x_n - mean)': (R, D, D)
        about = cross - mean[:, :, None] * (total - count * mean)[:, None, :]
        xz = cross @ back.mT  # (R, D, q)
        z = ((total - count * mean)[:, None, :] @ back.mT)[:, 0]  # (R, q)
        zz = back @ about @ back.mT + count * spread
        number = torch.full_like(params["variance"], count)
        square = scatter.trace().expand_as(number)
        return Sums.of(number, total.expand_as(mean), square, z, zz, xz), params["variance"]

    def m_step(self, data: Data, expectations: tuple[Sums, Tensor], objective: Objective) -> Params:
        """Loadings and mean given the noise, in closed form; then the noise given these."""
        sums, variance = expectations
        return sums.maximiser(variance, data["centre"], data["scale"], objective)

    # -- Gibbs -----------------------------------------------------------------------------------

    def initial(self, data: Data, chains: int, noise: Noise) -> Params:
        return self.start(data, chains, noise)

    def conditionals(self, data: Data) -> Mapping[str, Callable[[Params, Noise], Params]]:
        """Three blocks: z, with its shift and scale; loadings and mean given z; the noise."""
        centre, scale = data["centre"], data["scale"]
        rows = data["x"] - centre  # (N, D)
        number = len(rows)
        total, square = rows.sum(0), rows.square().sum()

        def latent(params: Params, noise: Noise) -> Params:
            z = latent_draw(data["x"], params, noise.fold(0))
            mean, z = shifted(params["mean"] - centre, params["loadings"], z, scale, noise.fold(1))
            loadings, z = rescaled(params["loadings"], z, scale, noise.fold(2))
            one = torch.ones_like(params["variance"])
            sums = Sums.of(
                number * one,
                total.expand(len(one), -1),
                square * one,
                z.sum(1),
                z.mT @ z,
                rows.mT @ z,
            )
            moved: Any = {"mean": mean + centre, "loadings": loadings, "sums": sums}
            return {**params, **moved}

        def coefficients(params: Params, noise: Noise) -> Params:
            sums: Any = params["sums"]
            drawn = sums.coefficients(params["variance"], scale, noise)
            return {**params, "mean": drawn[..., 0] + centre, "loadings": drawn[..., 1:]}

        def variance(params: Params, noise: Noise) -> Params:
            sums: Any = params["sums"]
            offset = (params["mean"] - centre)[..., None]
            drawn = sums.variance(torch.cat([offset, params["loadings"]], -1), scale, noise)
            return {k: v for k, v in params.items() if k != "sums"} | {"variance": drawn}

        return {"latent": latent, "coefficients": coefficients, "variance": variance}


class Sums(NamedTuple):
    """Sums over rows of the regression of centred x on u = (1, z), for any batch B = (...)."""

    number: Tensor  # of rows: B
    square: Tensor  # sum_n |x_n|^2: B
    gram: Tensor  # sum_n u_n u_n': (*B, q + 1, q + 1)
    cross: Tensor  # sum_n x_n u_n': (*B, D, q + 1)

    @classmethod
    def of(
        cls, number: Tensor, total: Tensor, square: Tensor, z: Tensor, zz: Tensor, xz: Tensor
    ) -> Sums:
        """Of the number of rows, sum x (D,), sum |x|^2, sum z (q,), sum z z', sum x z'."""
        top = torch.cat([number[..., None], z], -1)[..., None, :]
        gram = torch.cat([top, torch.cat([z[..., None], zz], -1)], -2)
        return cls(number, square, gram, torch.cat([total[..., None], xz], -1))

    def residual(self, coefficients: Tensor) -> Tensor:
        """The sum of squared residuals of the coefficients (*B, D, q + 1): B."""
        explained = coefficients @ self.gram - 2 * self.cross
        return self.square + (coefficients * explained).sum((-2, -1))

    def maximiser(
        self, variance: Tensor, centre: Tensor, scale: Tensor, objective: Objective
    ) -> Params:
        """Coefficients given the noise ``variance`` (*B,), then the noise: one M step."""
        gram = self.gram
        if objective == "joint":
            gram = gram + torch.diag_embed(variance[..., None] * _precision(self.gram, scale))
        coefficients = torch.cholesky_solve(self.cross.mT, torch.linalg.cholesky(gram)).mT
        values = self.number * self.cross.shape[-2] / 2
        half = self.residual(coefficients).clamp(min=0) / 2
        if objective == "joint":
            # the mode of an inverse gamma of shape a and rate b is b / (a + 1)
            values, half = values + SHAPE + 1, half + RATE * scale.square()
        return {
            "loadings": coefficients[..., 1:],
            "mean": coefficients[..., 0] + centre,
            "variance": half / values,
        }

    def coefficients(self, variance: Tensor, scale: Tensor, noise: Noise) -> Tensor:
        """A draw of (mean - centre, W) given the noise variance (*B,): (*B, D, q + 1)."""
        precision = self.gram / variance[..., None, None]
        precision = precision + torch.diag_embed(_precision(self.gram, scale))
        factor = torch.linalg.cholesky(precision)
        white = noise.normal(*self.cross.mT.shape[1:]).to(self.cross)
        forward = torch.linalg.solve_triangular(
            factor, self.cross.mT / variance[..., None, None], upper=False
        )
        return torch.linalg.solve_triangular(factor.mT, forward + white, upper=True).mT

    def variance(self, coefficients: Tensor, scale: Tensor, noise: Noise) -> Tensor:
        """A draw of the noise variance given the coefficients: B."""
        shape = SHAPE + self.number * self.cross.shape[-2] / 2
        half = self.residual(coefficients).clamp(min=0) / 2
        return (RATE * scale.square() + half) / noise.gamma(shape)


def _precision(gram: Tensor, scale: Tensor) -> Tensor:
    """The prior precision of a row of (mean - centre, W): (q + 1,)."""
    unit = torch.ones_like(gram[(0,) * (gram.dim() - 1)])
    unit[0] = MEAN_SD**-2
    return unit / scale.square()


# -- the program's parts -------------------------------------------------------------------------


def loadings_prior(scale: Tensor, shape: tuple[int, int]) -> Placed:
    """N(0, scale^2) elementwise, of event shape (D, q)."""
    zero = scale.new_zeros(shape)
    return Placed(dist.Normal(zero, scale).to_event(2), zero, scale.expand(shape))


def mean_prior(centre: Tensor, scale: Tensor) -> Placed:
    """N(centre, (3 scale)^2) elementwise, of event shape (D,)."""
    normal = dist.Normal(centre, MEAN_SD * scale).to_event(1)
    return Placed(normal, centre, scale.expand_as(centre))


def variance_prior(scale: Tensor) -> ScaledInverseChiSquared:
    """InverseGamma(2, scale^2 / 10)."""
    return ScaledInverseChiSquared(2 * SHAPE, 2 * RATE * scale.square())


def whole(name: str, value: Any) -> int:
    """A positive integer setting, else ``ModelError``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ModelError(f"{name}={value!r}: give a whole number of at least 1")
    return value


def check_latent(latent: int, x: Tensor, features: list[str]) -> None:
    """Refuse constant columns, and a latent space as large as the data's."""
    varying(x, features)
    if latent >= x.shape[1]:
        raise DataError(
            f"x: has {x.shape[1]} columns, so {latent} latent dimensions would leave none for the "
            f"noise; use latent={x.shape[1] - 1} at most, or give more columns"
        )
    if len(x) < latent + 2:
        raise DataError(
            f"x: has {len(x)} rows, too few for {latent} latent dimensions; give at least "
            f"{latent + 2} rows or use a smaller latent"
        )


# -- the latent variables ------------------------------------------------------------------------


def latent_map(loadings: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """(M^-1 W', variance M^-1): E[z | x] of x - mean, and the covariance of z: (..., q, D or q)."""
    small = loadings.mT @ loadings + variance[..., None, None] * torch.eye(
        loadings.shape[-1], dtype=loadings.dtype, device=loadings.device
    )
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(small))
    return inverse @ loadings.mT, variance[..., None, None] * inverse


def latent_mean(x: Tensor, mean: Tensor, loadings: Tensor, variance: Tensor) -> Tensor:
    """E[z | x] of rows x (N, D): (..., N, q)."""
    back, _ = latent_map(loadings, variance)
    return (x - mean[..., None, :]) @ back.mT


def latent_draw(x: Tensor, params: Params, noise: Noise) -> Tensor:
    """A draw of z given x (N, D) and the values of each chain: (C, N, q)."""
    back, spread = latent_map(params["loadings"], params["variance"])
    factor = torch.linalg.cholesky(spread)
    white = noise.normal(len(x), back.shape[-2]).to(x)
    return (x - params["mean"][:, None, :]) @ back.mT + white @ factor.mT


def shifted(
    offset: Tensor, loadings: Tensor, z: Tensor, scale: Tensor, noise: Noise
) -> tuple[Tensor, Tensor]:
    """Draw t where (mean, z_n) -> (mean + W t, z_n - t), and do so: rows x stay as likely.

    ``offset`` is mean - centre. Under the priors t is normal, with the precision
    N I + W'W / (3 scale)^2 and the linear term sum_n z_n - W' offset / (3 scale)^2.
    """
    weight = (MEAN_SD * scale) ** -2
    eye = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
    precision = z.shape[-2] * eye + weight * loadings.mT @ loadings
    linear = z.sum(-2) - weight * (offset[..., None, :] @ loadings)[..., 0, :]
    t = Quadratic(precision, linear).draw(noise)
    return offset + (loadings @ t[..., None])[..., 0], z - t[..., None, :]


def rescaled(loadings: Tensor, z: Tensor, scale: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
    """Turn the axes of z at random, then scale each: (W_k, z_k) -> (W_k / c, z_k c).

    W z, and with it the likelihood, stays. Under the priors log c has the log density

        (N - D) log c - c^2 |z_k|^2 / 2 - |W_k|^2 / (2 c^2 scale^2),

    which is concave, with the second derivative -2 ((N - D)^2 + 4 |z_k|^2 |W_k|^2 / scale^2)^(1/2)
    at its top. Metropolis steps of this width, the same for any c on the way, leave the posterior
    as it is (Liu & Wu 1999, "Parameter expansion for data augmentation").
    """
    rows, size = z.shape[-2], loadings.shape[-2]
    turn, _ = torch.linalg.qr(noise.fold(0).normal(*z.shape[-1:] * 2).to(z))
    loadings, z = loadings @ turn, z @ turn
    length, weight = z.square().sum(-2), loadings.square().sum(-2) / scale.square()  # (C, q)
    curvature = 2 * ((rows - size) ** 2 + 4 * length * weight).sqrt()
    log_c = torch.zeros_like(length)

    def log_density(value: Tensor) -> Tensor:
        square = (2 * value).exp()
        return (rows - size) * value - square * length / 2 - weight / (2 * square)

    current = log_density(log_c)
    for step in range(1, 4):
        stream = noise.fold(step)
        move = 2.4 * curvature.rsqrt() * stream.fold(0).normal(z.shape[-1]).to(z)
        proposed = log_density(log_c + move)
        accept = stream.fold(1).uniform(z.shape[-1]).to(z).log() < proposed - current
        log_c = torch.where(accept, log_c + move, log_c)
        current = torch.where(accept, proposed, current)
    c = log_c.exp()[..., None, :]
    return loadings / c, z * c


# -- rotations -----------------------------------------------------------------------------------


def oriented(loadings: Tensor) -> Tensor:
    """Loadings (..., D, q) of many draws, turned as near as can be to one pivot (Procrustes).

    The pivot is made of the average of W W' over all draws, which no rotation changes: its q
    leading eigenvectors, each as long as the root of its eigenvalue, with its largest element
    positive. A single W becomes the pivot itself, with orthogonal columns of decreasing length.
    """
    flat = loadings.reshape(-1, *loadings.shape[-2:])
    latent = flat.shape[-1]
    side = flat.transpose(0, 1).reshape(flat.shape[1], -1)  # (D, S q)
    values, vectors = torch.linalg.eigh(side @ side.mT / len(flat))
    pivot = vectors.flip(-1)[:, :latent] * values.flip(-1)[:latent].clamp(min=0).sqrt()
    largest = pivot.gather(0, pivot.abs().argmax(0, keepdim=True))
    pivot = pivot * torch.where(largest < 0, -1.0, 1.0).to(pivot)
    left, _, right = torch.linalg.svd(loadings.mT @ pivot)
    return loadings @ (left @ right)


def eigenvalues(loadings: Tensor, variance: Tensor) -> Tensor:
    """The q largest eigenvalues of W W' + variance I, descending: (..., q)."""
    return torch.linalg.eigvalsh(loadings.mT @ loadings).flip(-1) + variance[..., None]
