"""Polya-Gamma variables: what makes a logistic likelihood Gaussian in its coefficients.

With omega ~ PG(n, psi) and kappa = y - n/2, the binomial likelihood of a logit psi is

    e^(y psi) / (1 + e^psi)^n = 2^-n e^(kappa psi) E[exp(-omega psi^2 / 2)],  omega ~ PG(n, 0),

a Gaussian in psi given omega (Polson, Scott & Windle 2013, "Bayesian inference for logistic models
using Polya-Gamma latent variables", JASA 108:1339-1349).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ppl_models.errors import DataError
from ppl_models.noise import Noise

_CUT = 0.64  # where the two series of the Jacobi density meet: either's second term is below 0.6 %
_LEFT = math.log(4.0) + math.log(0.5 * math.erfc(1 / math.sqrt(2 * _CUT)))  # log 4 Phi(-1/sqrt(t))
_TAIL = 0.5 * math.erfc(1 / math.sqrt(2 * _CUT))  # Phi(-1/sqrt(t))
_ATTEMPTS = 8  # per element in every round after the first


def pg_mean(trials: Tensor | int, z: Tensor) -> Tensor:
    """The mean of PG(n, z): n tanh(z/2) / (2z), and n/4 at z = 0; ``trials`` broadcasts with ``z``.

    Source: Polson, Scott & Windle (2013), section 2.3.
    """
    half = z.abs().clamp_min(1e-9) / 2  # at 1e-9 the ratio is 1/4 to the last bit
    return trials * half.tanh() / (4 * half)


def polya_gamma(trials: Tensor | int, z: Tensor, noise: Noise) -> Tensor:
    """Exact draws of PG(n, z), one per element of ``z``: (C, *shape), in the dtype of ``z``.

    ``trials`` is a whole number n >= 0, or a tensor of them that broadcasts to ``shape``: common to
    the chains. PG(n, z) is the sum of n independent PG(1, z), so time and memory grow with the sum
    of n. A chain's draws depend on its own stream and its own z alone.

    Raises ``DataError`` for a negative or fractional n.
    Source: Polson, Scott & Windle (2013), sections 4.1 and 4.2.
    """
    shape = z.shape[1:]
    flat = z.reshape(len(z), -1)
    count = torch.as_tensor(trials, device=z.device)
    if bool(((count < 0) | (count != count.round())).any()):
        raise DataError("trials: holds a negative or fractional number; give whole numbers >= 0")
    count = count.long().broadcast_to(shape).reshape(-1)
    if bool((count == 1).all()):
        return _unit(flat, noise).reshape(z.shape)
    owner = torch.arange(len(count), device=z.device).repeat_interleave(count)
    draws = _unit(flat[:, owner], noise)
    return torch.zeros_like(flat).index_add(-1, owner, draws).reshape(z.shape)


def _unit(z: Tensor, noise: Noise) -> Tensor:
    """PG(1, z) for z of shape (C, M) by rejection, in rounds, among the elements still to come.

    Element number k of a chain's remaining ones takes the k-th group of four uniforms of the
    round's stream. ``Noise.uniform`` gives the same first numbers however many are asked for, so
    that the chain with the most left to do sets the size of the call, and nobody's numbers.
    """
    draws = z.clone()
    waiting = ~z.isnan()  # NaN gives NaN, not an endless loop
    size = z.shape[1]
    rounds = 0
    while size:
        attempts = _ATTEMPTS if rounds else 1
        chain, element = waiting.nonzero(as_tuple=True)
        place = waiting.cumsum(-1)[chain, element] - 1
        unit = noise.fold(rounds).uniform(size, attempts, 4)[chain, place]
        tilt = z[chain, element, None].to(noise.dtype).abs() / 2
        proposal, accepted = _attempt(tilt, unit)
        first = accepted.int().argmax(-1, keepdim=True)
        done = accepted.any(-1)
        draws[chain[done], element[done]] = proposal.gather(-1, first)[done, 0].to(z.dtype) / 4
        waiting[chain, element] = ~done
        size = int(waiting.sum(-1).max())
        rounds += 1
    return draws


def _attempt(tilt: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
    """One proposal x for J*(1, z), z = ``tilt`` >= 0 (A, 1), and whether it is accepted: (A, K).

    The density is proportional to exp(-x z^2 / 2) sum_n (-1)^n a_n(x), where (equation 14)

        a_n(x) = pi (n + 1/2) (2 / (pi x))^(3/2) exp(-2 (n + 1/2)^2 / x),     x <= t,
        a_n(x) = pi (n + 1/2) exp(-(n + 1/2)^2 pi^2 x / 2),                   x > t.

    The envelope is exp(-x z^2 / 2) a_0(x): an exponential right of t, of mass
    pi exp(-k t) / (2 k) with k = pi^2/8 + z^2/2; left of t, whichever has the smaller mass of
    1/N^2 with |N| > t^(-1/2), mass 4 Phi(-t^(-1/2)), thinned by exp(-x z^2 / 2), or an inverse
    Gaussian of mean 1/z, mass 2 e^-z, whose values beyond t are refused. Refusing starts afresh
    with the choice of the side, so that each attempt takes four uniforms: ``unit`` (A, K, 4).
    """
    side, main, root, accept = unit.unbind(-1)
    rate = math.pi**2 / 8 + tilt.square() / 2
    narrow = tilt > math.log(2.0) - _LEFT  # where 2 e^-z is the smaller mass
    log_left = torch.where(narrow, math.log(2.0) - tilt, torch.full_like(tilt, _LEFT))
    log_right = (math.pi / (2 * rate)).log() - rate * _CUT
    right = side < torch.sigmoid(log_right - log_left)

    beyond = _CUT - main.log() / rate
    chi = torch.special.ndtri(_TAIL * main).square().reciprocal()
    mean = tilt.clamp_min(1.0).reciprocal()  # the clamp is idle where this proposal is used
    half = mean * torch.special.ndtri(main).square() / 2
    # the smaller root of Michael, Schucany & Haas (1976), free of cancellation; the larger one
    low = mean / (1 + half + (half * (half + 2)).sqrt())
    inverse_gaussian = torch.where(root * (mean + low) <= mean, low, mean.square() / low)
    x = torch.where(right, beyond, torch.where(narrow, inverse_gaussian, chi))

    thinning = torch.where(right | narrow, torch.ones_like(x), (-x * tilt.square() / 2).exp())
    inside = right | (x <= _CUT)
    h = torch.where(x > _CUT, math.pi**2 / 2 * x, 2 / x)
    # a_n / a_0 = (2n + 1) exp(-n (n + 1) h) with h > 3.1: below 1e-15 from n = 3 on, so that these
    # terms decide as the whole alternating series would
    series = 1 - 3 * (-2 * h).exp() + 5 * (-6 * h).exp() - 7 * (-12 * h).exp()
    return x, inside & (accept < thinning * series)
