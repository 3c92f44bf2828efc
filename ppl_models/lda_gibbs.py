"""Latent Dirichlet allocation token by token: collapsed Gibbs, and a particle filter; by numba.

The random numbers of a call are counted from its seed, so that a chain's draws depend on its seeds
alone.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from ppl_models.lda_kernels import FAST


@njit(cache=True, inline="always")
def _uniform(seed: np.uint64, index: int) -> float:
    """Uniform on [0, 1) at a counter, by SplitMix64 (Steele, Lea & Flood 2014)."""
    z = seed + np.uint64(0x9E3779B97F4A7C15) * np.uint64(index + 1)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)) * 2.0**-53


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def sweep(
    starts: Any, word: Any, z: Any, by_word: Any, alpha: float, eta: float, seed: np.uint64
) -> None:
    """Draw the topic of every token in turn given all others (Griffiths & Steyvers 2004).

    With the token itself taken away, topic k has probability proportional to
    (n_dk + alpha) (n_wk + eta) / (n_k + V eta). ``starts``, ``word`` and ``z`` (tokens,) are of
    tokens; ``z`` and ``by_word`` (V, K), the counts n_wk, are changed in place.

    The token's own topic comes first in the cumulative sum, so that a token that stays, as most do,
    costs one vectorised sum and changes nothing.
    """
    words, topics = by_word.shape
    totals = np.zeros(topics)
    reciprocal = np.empty(topics)
    local = np.empty(topics)  # n_dk + alpha
    weight = np.empty(topics)  # (n_dk + alpha) / (n_k + V eta)
    p = np.empty(topics)
    prior = words * eta
    for w in range(words):
        for k in range(topics):
            totals[k] += by_word[w, k]
    for k in range(topics):
        reciprocal[k] = 1.0 / (totals[k] + prior)
    for d in range(len(starts) - 1):
        local[:] = alpha
        for i in range(starts[d], starts[d + 1]):
            local[z[i]] += 1.0
        for k in range(topics):
            weight[k] = local[k] * reciprocal[k]
        for i in range(starts[d], starts[d + 1]):
            old = z[i]
            row = by_word[word[i]]
            total = 0.0
            for k in range(topics):
                value = weight[k] * (row[k] + eta)
                p[k] = value
                total += value
            stay = (local[old] - 1.0) * (row[old] - 1 + eta) / (totals[old] - 1.0 + prior)
            left = _uniform(seed, i) * (total - p[old] + stay) - stay
            if left < 0.0:
                continue
            p[old] = 0.0
            new = -1
            for k in range(topics):
                if p[k] > 0.0:
                    new = k
                    left -= p[k]
                    if left < 0.0:
                        break
            if new < 0:  # one topic alone
                continue
            row[old] -= 1
            row[new] += 1
            totals[old] -= 1.0
            totals[new] += 1.0
            local[old] -= 1.0
            local[new] += 1.0
            reciprocal[old] = 1.0 / (totals[old] + prior)
            reciprocal[new] = 1.0 / (totals[new] + prior)
            weight[old] = local[old] * reciprocal[old]
            weight[new] = local[new] * reciprocal[new]
            z[i] = new


@njit(cache=True, nogil=True, error_model="numpy")
def log_joint(by_doc: Any, by_word: Any, alpha: float, eta: float) -> float:
    """Log p(w, z), topics and proportions integrated out, from the counts (M, K) and (V, K)."""
    return _log_dirichlet_multinomial(by_doc.T, alpha) + _log_dirichlet_multinomial(by_word, eta)


@njit(cache=True, nogil=True, error_model="numpy")
def _log_dirichlet_multinomial(counts: Any, prior: float) -> float:
    """Sum over columns of log [Gamma(R a) / Gamma(n + R a) prod_r Gamma(n_r + a) / Gamma(a)]."""
    rows, columns = counts.shape
    totals = np.zeros(columns)
    result = 0.0
    base = math.lgamma(prior)
    for r in range(rows):
        for c in range(columns):
            n = counts[r, c]
            if n > 0:
                totals[c] += n
                result += math.lgamma(n + prior) - base
    for c in range(columns):
        result += math.lgamma(rows * prior) - math.lgamma(totals[c] + rows * prior)
    return result


@njit(cache=True, nogil=True, error_model="numpy")
def left_to_right(word: Any, topics: Any, alpha: float, particles: int, seed: np.uint64) -> float:
    """Log of an unbiased estimate of p(tokens | topics (V, K)) by a particle filter.

    Before token n, each particle redraws the topics of the tokens before it, each given the others,
    and predicts p(w_n | z_<n) = sum_k topics[w_n, k] (n_k + alpha) / (n + K alpha). The mean of
    these is the factor of token n, by which particles are then resampled, systematically.
    """
    tokens, size = len(word), topics.shape[1]
    z = np.zeros((particles, tokens), np.int64)
    counts = np.full((particles, size), alpha)
    p = np.empty(size)
    predicted = np.empty(particles)
    used = 0  # random numbers
    result = 0.0
    for n in range(tokens):
        for r in range(particles):
            for i in range(n):
                counts[r, z[r, i]] -= 1.0
                for k in range(size):
                    p[k] = topics[word[i], k] * counts[r, k]
                z[r, i] = _draw(p, _uniform(seed, used))
                counts[r, z[r, i]] += 1.0
                used += 1
            total = 0.0
            for k in range(size):
                total += topics[word[n], k] * counts[r, k]
            predicted[r] = total / (n + size * alpha)
        mean = predicted.mean()
        if mean <= 0.0:
            return -np.inf
        result += math.log(mean)
        z_before, counts_before = z.copy(), counts.copy()
        point = _uniform(seed, used) * mean
        used += 1
        chosen, reached = 0, predicted[0]
        for r in range(particles):
            while reached <= point + r * mean and chosen < particles - 1:
                chosen += 1
                reached += predicted[chosen]
            z[r, :n] = z_before[chosen, :n]
            counts[r] = counts_before[chosen]
            for k in range(size):
                p[k] = topics[word[n], k] * counts[r, k]
            z[r, n] = _draw(p, _uniform(seed, used))
            counts[r, z[r, n]] += 1.0
            used += 1
    return result


@njit(cache=True, inline="always")
def _draw(p: Any, unit: float) -> int:
    """An index in proportion to p."""
    left = unit * p.sum()
    chosen = 0
    for k in range(len(p)):
        if p[k] > 0.0:
            chosen = k
            left -= p[k]
            if left < 0.0:
                break
    return chosen
