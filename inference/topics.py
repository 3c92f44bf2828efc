"""How good topics are: one measure for all engines, and for other libraries' answers.

Everything here takes bare topics, word probabilities (K, V) or draws of them (..., K, V), whatever
made them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from ppl_models import lda_gibbs
from ppl_models import lda_kernels as kernels
from ppl_models.base import Data
from ppl_models.counts import corpus, starts
from ppl_models.errors import DataError
from ppl_models.threads import each

_STEPS, _TOL = 100, 1e-3


def perplexity(topics: Any, alpha: float, counts: Any, *, seed: int = 0) -> float:
    """Document-completion perplexity of held-out documents, exp(-sum log p / tokens scored).

    Of each document's n tokens, floor(n / 2) chosen at random by ``seed`` are seen, the others
    scored. For every draw of the topics, a document's proportions are the mean of the mean-field
    approximation of p(proportions | tokens seen, topics, alpha) (``fold_in``), and

        p(token w of document d) = mean over draws of sum_k proportions_dk topics_kw.

    The estimation by half of the tokens is document completion (Wallach, Murray, Salakhutdinov &
    Mimno 2009, "Evaluation methods for topic models"); the same fold-in for every engine makes
    their figures comparable. Labels may switch between draws.

    Args:
        topics: word probabilities (K, V), or draws (..., K, V).
        alpha: the concentration of proportions.
        counts: held-out documents, whatever ``ppl_models.counts.corpus`` takes.
        seed: of the split.

    Raises ``DataError`` for topics that are no probabilities, and for unseen words.
    """
    draws = _probabilities(topics)
    data = corpus(counts, words=draws.shape[-1])
    seen, scored = halves(data, seed)
    doc, word = data["doc"].numpy(), data["word"].numpy()
    chosen = np.flatnonzero(scored)
    doc, word, scored = doc[chosen], word[chosen], scored[chosen]

    def probability(draw: int) -> np.ndarray:
        theta = _folded(draws[draw], alpha, data, seen)
        p = np.empty(len(doc))
        kernels.mixed(doc, word, theta, np.ascontiguousarray(draws[draw].T), p)
        return p

    p = sum(each(probability, len(draws))) / len(draws)
    return math.exp(-float(scored @ np.log(p)) / float(scored.sum()))


def fold_in(topics: Any, alpha: float, counts: Any) -> Tensor:
    """Proportions of new documents given topics (..., K, V): (..., M, K).

    The mean of the mean-field approximation of p(proportions | tokens, topics, alpha) (Blei, Ng &
    Jordan 2003), iterated from equal proportions until no document's expected counts move by more
    than 1e-3 on average, at most 100 times. Raises ``DataError`` as ``perplexity`` does.
    """
    draws = _probabilities(topics)
    data = corpus(counts, words=draws.shape[-1])
    count = data["count"].numpy()
    folded = each(lambda i: _folded(draws[i], alpha, data, count), len(draws))
    lead = np.shape(topics)[:-2]
    return torch.from_numpy(np.stack(folded)).reshape(*lead, data["documents"], -1)


def halves(data: Data, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts (E,) of the tokens seen, floor(n / 2) of each document's, and of the others."""
    count = data["count"].numpy().astype(np.int64)
    entry = np.repeat(np.arange(len(count)), count)
    doc = data["doc"].numpy()[entry]
    order = np.lexsort((np.random.default_rng(seed).random(len(entry)), doc))
    first = starts(doc, data["documents"])
    rank = np.arange(len(entry)) - first[doc]  # of the shuffled tokens, which stay by document
    taken = entry[order][rank < np.diff(first)[doc] // 2]
    seen = np.bincount(taken, minlength=len(count)).astype(np.float64)
    return seen, count - seen


def left_to_right(
    topics: Any, alpha: float, counts: Any, *, particles: int = 20, seed: int = 0
) -> np.ndarray:
    """Log probability of each document's tokens given topics (K, V): (M,).

    The left-to-right algorithm of Wallach, Murray, Salakhutdinov & Mimno (2009), log p(w) =
    sum_n log p(w_n | w_<n): before each token, particles redraw the topics of those before. As in a
    particle filter, they are resampled in proportion to the probability that each gave to the
    token, which makes the estimate of p(w), not of its logarithm, unbiased. Work grows with the
    square of a document's length.

    Raises ``DataError`` for topics that are no probabilities, and for unseen words.
    """
    draws = _probabilities(topics)
    if len(draws) != 1:
        raise DataError(f"topics: {len(draws)} draws; give one matrix (K, V)")
    data = corpus(counts, words=draws.shape[-1])
    count = data["count"].numpy().astype(np.int64)
    word = np.repeat(data["word"].numpy(), count)
    first = starts(np.repeat(data["doc"].numpy(), count), data["documents"])
    by_word = np.ascontiguousarray(draws[0].T)
    seeds = np.random.SeedSequence(seed).generate_state(data["documents"], np.uint64)
    # tokens of a word lie together; in another order the particles meet more of a document early
    rng = np.random.default_rng(seed)
    for d in range(data["documents"]):
        rng.shuffle(word[first[d] : first[d + 1]])

    def document(d: int) -> float:
        tokens = word[first[d] : first[d + 1]]
        return lda_gibbs.left_to_right(tokens, by_word, float(alpha), particles, seeds[d])

    return np.array(each(document, data["documents"]))


def coherence(topics: Any, counts: Any, *, words: int = 10) -> np.ndarray:
    """Normalised pointwise mutual information of each topic's top words: (K,), from -1 to 1.

    The mean over pairs of NPMI = log(p_ij / (p_i p_j)) / -log p_ij (Bouma 2009; Aletras & Stevenson
    2013), where p are shares of the documents of ``counts`` that hold a word, or both. A pair that
    never meets has -1, one that is in every document 1. Draws (..., K, V) are averaged first.
    """
    phi = _probabilities(topics).mean(0)
    data = corpus(counts, words=phi.shape[-1])
    top = _top(phi, words)
    used, column = np.unique(top, return_inverse=True)
    column = column.reshape(top.shape)
    triples = (np.ones(len(data["doc"])), (data["doc"].numpy(), data["word"].numpy()))
    shape = (data["documents"], phi.shape[-1])
    holds = sparse.csr_array(triples, shape=shape)[:, used]
    both = (holds.T @ holds).toarray() / data["documents"]
    alone = both.diagonal()
    result = []
    for columns in column:
        i, j = (columns[index] for index in np.triu_indices(len(columns), 1))
        p, expected = both[i, j], alone[i] * alone[j]
        met = (p > 0) & (p < 1)
        score = np.where(p > 0, 1.0, -1.0)
        score[met] = np.log(p[met] / expected[met]) / -np.log(p[met])
        result.append(score.mean())
    return np.array(result)


def top_words(topics: Any, vocabulary: Sequence[str], number: int = 10) -> list[list[str]]:
    """The most probable words of each topic, the first first. Draws are averaged first.

    >>> top_words([[0.1, 0.6, 0.3], [0.8, 0.1, 0.1]], ["bank", "oil", "gas"], 2)
    [['oil', 'gas'], ['bank', 'oil']]
    """
    phi = _probabilities(topics).mean(0)
    if len(vocabulary) != phi.shape[-1]:
        raise DataError(f"vocabulary: {len(vocabulary)} words for {phi.shape[-1]}; name each")
    return [[str(vocabulary[int(word)]) for word in row] for row in _top(phi, number)]


def _top(phi: np.ndarray, number: int) -> np.ndarray:
    return np.argsort(-phi, axis=1, kind="stable")[:, :number]


def _folded(topics: np.ndarray, alpha: float, data: Data, count: np.ndarray) -> np.ndarray:
    """Proportions (M, K) given topics (K, V) and counts of the entries of ``data``."""
    chosen = np.arange(data["documents"])
    gamma = np.empty((len(chosen), len(topics)))
    by_word = np.ascontiguousarray(topics.T)
    first = starts(data["doc"], data["documents"])
    kernels.local_factors(
        first, data["word"].numpy(), count, chosen, by_word, float(alpha),
        _STEPS, _TOL, gamma, by_word[:0],
    )  # fmt: skip
    return gamma / gamma.sum(1, keepdims=True)


def _probabilities(topics: Any) -> np.ndarray:
    """Draws of topics, (S, K, V), each row a probability vector."""
    array = topics.detach().cpu().numpy() if isinstance(topics, Tensor) else np.asarray(topics)
    if array.ndim < 2 or array.dtype.kind != "f":
        raise DataError(f"topics: shape {array.shape}; give real numbers (..., topics, words)")
    sums = array.sum(-1)
    if not (np.isfinite(sums).all() and (array >= 0).all() and np.allclose(sums, 1, atol=1e-4)):
        raise DataError("topics: rows are no probabilities; divide each by its sum")
    return np.ascontiguousarray(array.reshape(-1, *array.shape[-2:]), dtype=np.float64)
