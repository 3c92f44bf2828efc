"""Passes over a corpus for latent Dirichlet allocation, compiled by numba.

Entries are sorted by document: document d has those from starts[d] to starts[d + 1], each a word
and its count. Topics lie innermost, (words, topics). One call is one chain or restart, and does not
hold Python's lock, so that ``threads.each`` runs several at once.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

# sums may be reordered, which lets them be vectorised; infinities and NaN keep their meaning
FAST: Any = {"reassoc", "contract", "nsz", "arcp"}
_TINY = 1e-300


# -- special functions -----------------------------------------------------------------------------


@njit(inline="always")
def _shift(x: float) -> tuple[float, float]:
    """The sum of 1 / (x + i), i < 8, and the product of x + i, taken in pairs about x + 7/2."""
    s = x * (x + 7.0)
    a, b, c, d = s, s + 6.0, s + 10.0, s + 12.0
    product = a * b * c * d
    total = (2.0 * x + 7.0) * (b * c * d + a * c * d + a * b * d + a * b * c)
    return total / product, product


@njit(inline="always")
def _tail(y: float) -> float:
    """Log y - digamma(y) for y >= 8, by the asymptotic series: to 1e-14."""
    f = 1.0 / (y * y)
    series = f * (
        1 / 12 - f * (1 / 120 - f * (1 / 252 - f * (1 / 240 - f * (1 / 132 - f * 691 / 32760))))
    )
    return 0.5 / y + series


@njit(cache=True, inline="always")
def _exp(v: float) -> float:
    """exp(v) for v <= 1 as exp(v / 1024)^1024, to 1e-12: unlike math.exp it is vectorised."""
    r = max(v, -700.0) * 2.0**-10
    e = 1 + r / 6 * (1 + r / 7 * (1 + r / 8 * (1 + r / 9 * (1 + r / 10))))
    e = 1 + r * (1 + r / 2 * (1 + r / 3 * (1 + r / 4 * (1 + r / 5 * e))))
    for _ in range(10):
        e *= e
    return e


@njit(cache=True, inline="always")
def exp_digamma(x: float) -> float:
    """exp(digamma(x)) for x > 0: digamma(x) = digamma(x + 8) - sum_i 1 / (x + i)."""
    y = x + 8.0
    return y * _exp(-_tail(y) - _shift(x)[0])


@njit(cache=True, inline="always")
def digamma(x: float) -> float:
    """The derivative of log Gamma, for x > 0."""
    y = x + 8.0
    return math.log(y) - _tail(y) - _shift(x)[0]


# -- expectation-maximisation ----------------------------------------------------------------------


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def expected_counts(
    starts: Any, word: Any, count: Any, proportions: Any, topics: Any, by_doc: Any, by_word: Any
) -> None:
    """Tokens of each topic expected given the parameters, by document and by word.

    An entry's responsibilities are proportional to proportions[d, k] topics[w, k]; they are used
    where they are made. Fills ``by_doc`` (M, K) and ``by_word`` (V, K).
    """
    documents, topic_count = proportions.shape
    by_doc[:] = 0.0
    by_word[:] = 0.0
    for d in range(documents):
        theta = proportions[d]
        for e in range(starts[d], starts[d + 1]):
            phi = topics[word[e]]
            into = by_word[word[e]]
            total = _TINY
            for k in range(topic_count):
                total += theta[k] * phi[k]
            ratio = count[e] / total
            for k in range(topic_count):
                r = ratio * theta[k] * phi[k]
                by_doc[d, k] += r
                into[k] += r


# -- mean field ------------------------------------------------------------------------------------


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def expected_topics(weights: Any, eta: float, out: Any) -> float:
    """Fill ``out`` (V, K) with exp E log topics under Dirichlet(weights[:, k]); KL from the prior.

    The divergence is that of all topics from their priors Dirichlet(eta).
    """
    words, topics = weights.shape
    totals = np.zeros(topics)
    sums = np.zeros(topics)  # of (weight - eta) digamma(weight) - log Gamma(weight), by topic
    for w in range(words):
        for k in range(topics):
            x = weights[w, k]
            totals[k] += x
            y = x + 8.0
            reciprocals, product = _shift(x)
            log_y = math.log(y)
            psi = log_y - _tail(y) - reciprocals
            out[w, k] = math.exp(psi)
            sums[k] += (x - eta) * psi - (_log_gamma_above(y, log_y) - math.log(product))
    divergence = 0.0
    for k in range(topics):
        psi = digamma(totals[k])
        scale = math.exp(-psi)
        for w in range(words):
            out[w, k] *= scale
        divergence += sums[k] - (totals[k] - words * eta) * psi + math.lgamma(totals[k])
        divergence += words * math.lgamma(eta) - math.lgamma(words * eta)
    return divergence


@njit(inline="always")
def _log_gamma_above(y: float, log_y: float) -> float:
    """Log Gamma(y) for y >= 8, by Stirling's series: to 1e-14."""
    f = 1.0 / (y * y)
    series = 1 / 12 - f * (1 / 360 - f * (1 / 1260 - f * (1 / 1680 - f * (1 / 1188))))
    return (y - 0.5) * log_y - y + 0.9189385332046727 + series / y


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def local_factors(
    starts: Any, word: Any, count: Any, chosen: Any, expected: Any, alpha: float,
    steps: int, tol: float, gamma: Any, statistics: Any,
) -> float:  # fmt: skip
    """Fit q(proportions_d) = Dirichlet(gamma[i]) to each document d = chosen[i], from gamma = 1.

    gamma_k = alpha + sum over entries of count r_k, with responsibilities r_k proportional to
    exp(E log proportions_k + E log topics_kw), is iterated until gamma moves by less than ``tol``
    on average, at most ``steps`` times (Blei, Ng & Jordan 2003, figure 6). ``expected`` (V, K) is
    exp E log topics. Adds the entries' count r_k / expected to ``statistics`` (V, K), if it has
    rows.

    Returns the documents' part of the ELBO: E log p(w, z | proportions, topics) - E log q(z) less
    the divergence of q(proportions) from Dirichlet(alpha).
    """
    topics = expected.shape[1]
    longest = 0
    for i in range(len(chosen)):
        longest = max(longest, starts[chosen[i] + 1] - starts[chosen[i]])
    rows = np.empty((longest, topics))
    old = np.empty(topics)
    a = np.empty(topics)
    elbo = 0.0
    for i in range(len(chosen)):
        d = chosen[i]
        first, size = starts[d], starts[d + 1] - starts[d]
        for n in range(size):
            rows[n] = expected[word[first + n]]
        g = gamma[i]
        g[:] = 1.0
        for _ in range(steps):
            for k in range(topics):
                old[k] = g[k]
                a[k] = exp_digamma(g[k])  # up to a factor that cancels
                g[k] = 0.0
            for n in range(size):
                total = _TINY
                for k in range(topics):
                    total += a[k] * rows[n, k]
                ratio = count[first + n] / total
                for k in range(topics):
                    g[k] += ratio * rows[n, k]
            change = 0.0
            for k in range(topics):
                g[k] = alpha + a[k] * g[k]
                change += abs(g[k] - old[k])
            if change < tol * topics:
                break
        total_gamma = 0.0
        for k in range(topics):
            total_gamma += g[k]
        psi = digamma(total_gamma)
        elbo -= math.lgamma(total_gamma)
        for k in range(topics):
            expectation = digamma(g[k]) - psi
            a[k] = math.exp(expectation)
            elbo += math.lgamma(g[k]) - (g[k] - alpha) * expectation
        for n in range(size):
            total = _TINY
            for k in range(topics):
                total += a[k] * rows[n, k]
            elbo += count[first + n] * math.log(total)
            if len(statistics):
                ratio = count[first + n] / total
                into = statistics[word[first + n]]
                for k in range(topics):
                    into[k] += ratio * a[k]
    return elbo + len(chosen) * (math.lgamma(topics * alpha) - topics * math.lgamma(alpha))


# -- evaluation ------------------------------------------------------------------------------------


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def mixed(doc: Any, word: Any, proportions: Any, topics: Any, out: Any) -> None:
    """Fill ``out`` (E,) with sum_k proportions[d, k] topics[w, k] of each entry."""
    for e in range(len(doc)):
        theta, phi = proportions[doc[e]], topics[word[e]]
        total = 0.0
        for k in range(len(theta)):
            total += theta[k] * phi[k]
        out[e] = total
