"""Latent Dirichlet allocation (Blei, Ng & Jordan 2003): documents as mixtures of topics.

Data are counts of words in documents. The topic of every token is summed out of the program, and
its distribution recomputed where an engine needs it, so memory grows with the counts that are not
zero, never with tokens x topics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_models import lda_gibbs
from ppl_models import lda_kernels as kernels
from ppl_models.base import (
    Data,
    HasConditionals,
    HasEM,
    HasMeanField,
    Objective,
    Params,
    Use,
)
from ppl_models.counts import corpus, starts
from ppl_models.errors import DataError, ModelError
from ppl_models.noise import Noise
from ppl_models.relabel import assigned, permuted
from ppl_models.threads import each
from ppl_models.word_counts import WordCounts

_WALKED = 5000  # coordinates beyond which chains on topics and proportions get nowhere


class LatentDirichletAllocation(HasEM, HasMeanField, HasConditionals):
    """Topics (K, V) and each document's proportions (M, K) of them.

    topics_k ~ Dirichlet(eta), proportions_d ~ Dirichlet(alpha); a token of document d is the word w
    with probability p_dw = sum_k proportions_dk topics_kw. The log likelihood of counts c is
    sum_dw c_dw log p_dw, that of the tokens in their order.

    Data: whatever ``ppl_models.counts.corpus`` takes: a sparse or dense matrix of counts, a
    DataFrame of these, or triples ``doc``, ``word``, ``count``.

    - ``EM`` finds the mode of the joint density of topics and proportions, or with
      ``objective="likelihood"`` their maximum-likelihood estimate (Hofmann's PLSA). With alpha or
      eta below 1 the joint density is unbounded at the simplex's edge, so ``EM`` refuses to seek a
      mode.
    - ``CAVI`` fits q(topics) q(proportions) q(z); with ``batch_size`` documents, by Hoffman, Blei,
      Wang & Paisley's (2013) stochastic steps.
    - ``Gibbs`` draws the topic of each token with topics and proportions integrated out (Griffiths
      & Steyvers 2004), and these two where a draw is kept. The statistic ``log_joint`` is
      log p(w, z).
    - ``SVI``, ``MH``, ``HMC`` and ``NUTS`` use the program; chains on topics and proportions are
      refused above 5,000 coordinates. ``SVI(batch_size=...)`` samples entries (document, word).

    A draw holds K V + M K numbers: keep few draws of large corpora.

    Args:
        topics: K.
        alpha: concentration of a document's proportions.
        eta: concentration of a topic's words.
        inner_steps: CAVI's most steps on a document's own factors, at each round from the same
            start.
        inner_tol: they end where a document's expected counts by topic move by less on average.

    Raises ``ModelError`` for settings out of range.
    """

    def __init__(
        self,
        topics: int,
        alpha: float = 0.1,
        eta: float = 0.01,
        *,
        inner_steps: int = 100,
        inner_tol: float = 1e-3,
    ) -> None:
        super().__init__()
        for name, value in (("topics", topics), ("inner_steps", inner_steps)):
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
                raise ModelError(f"{name}={value!r}: give a whole number of at least 1")
        for name, value in (("alpha", alpha), ("eta", eta), ("inner_tol", inner_tol)):
            if not isinstance(value, int | float | np.floating) or not 0 < value < math.inf:
                raise ModelError(f"{name}={value!r}: give a positive number")
        if topics == 1 or topics > 32767:
            raise ModelError(f"topics={topics}: give 2 to 32,767; one topic is the words' shares")
        self.topics = int(topics)
        self.alpha = float(alpha)
        self.eta = float(eta)
        self.inner_steps = int(inner_steps)
        self.inner_tol = float(inner_tol)

    ascends: ClassVar[bool] = False  # a document's factor may end at another optimum

    # -- the program -----------------------------------------------------------------------------

    def prepare(self, data: Any) -> Data:
        return corpus(data)

    def renewed(self, data: Data, new: Data) -> Data:
        """Other counts of the same documents, in the words of the fit."""
        names, known = new["vocabulary"], data["vocabulary"]
        if names and known and names[: len(known)] != known[: len(names)]:
            word = next(a for a, b in zip(names, known, strict=False) if a != b)
            raise DataError(f"vocabulary: '{word}' is not in its place; give that of the fit")
        new = corpus(new, words=data["words"])
        if new["documents"] != data["documents"]:
            raise DataError(
                f"proportions are those of the {data['documents']} documents of the fit, the new "
                f"data have {new['documents']}; estimate theirs by inference.topics.fold_in"
            )
        return new | {"vocabulary": known}

    def forward(  # type: ignore[override]
        self,
        doc: Tensor,
        word: Tensor,
        count: Tensor,
        documents: int,
        words: int,
        vocabulary: list[str] | None = None,
    ) -> None:
        with pyro.plate("topic", self.topics):
            topics = pyro.sample("topics", dist.Dirichlet(count.new_full((words,), self.eta)))
        with pyro.plate("documents", documents):
            prior = dist.Dirichlet(count.new_full((self.topics,), self.alpha))
            proportions = pyro.sample("proportions", prior)
        with pyro.plate("entries", len(count)):
            pyro.sample("count", WordCounts(proportions, topics, doc, word, count), obs=count)

    def coordinates(self, data: Data) -> Mapping[str, Mapping[str, list[Any]]]:
        topic = list(range(self.topics))
        return {
            "topics": {"topic": topic, "word": data["vocabulary"] or list(range(data["words"]))},
            "proportions": {"document": list(range(data["documents"])), "topic": topic},
            "topic_shares": {"rank": topic},
        }

    def canonical(self, draws: Params) -> Params:
        """Topics of all draws numbered like those of the last draw of the first chain.

        Each draw's topics are matched to these by the assignment that maximises the sum of
        sum_w sqrt(topic_w topic'_w), the affinity of Bhattacharyya.
        """
        topics, proportions = draws["topics"], draws["proportions"]
        if topics.dim() == 2:  # a point
            return draws
        pivot = topics[0, -1].sqrt()
        affinity = torch.stack([pivot @ one.sqrt().T for one in topics.flatten(0, 1)])
        order = assigned(-affinity).reshape(*topics.shape[:2], -1)
        by_document = order[:, :, None].expand_as(proportions)
        return draws | {
            "topics": permuted(topics, order, 1),
            "proportions": proportions.gather(-1, by_document),
        }

    def invariants(self, data: Data, draws: Params) -> Params:
        """``topic_shares``: the topics' shares of all tokens, the largest first."""
        lengths = torch.zeros_like(data["count"][:1]).expand(data["documents"]).clone()
        lengths.index_add_(0, data["doc"], data["count"])
        shares = torch.einsum("csdk,d->csk", draws["proportions"], lengths / lengths.sum())
        return {"topic_shares": shares.sort(-1, descending=True).values}

    def obstacle(self, data: Data, use: Use) -> str | None:
        low = [name for name in ("alpha", "eta") if getattr(self, name) < 1]
        if use == "joint" and low:
            text = " and ".join(f"{name}={getattr(self, name):g}" for name in low)
            return (
                f"with {text} below 1 the joint density is unbounded at the edge of the simplex, "
                "so it has no mode inside; use alpha and eta of at least 1 (1.1 and 1.01, say), "
                'EM(objective="likelihood"), or CAVI or Gibbs, which need no mode (in the softmax '
                "basis there is one, of another density)"
            )
        size = self.topics * (data["words"] - 1) + data["documents"] * (self.topics - 1)
        if use == "chains" and size > _WALKED:
            return (
                f"topics and proportions have {size:,} coordinates with these data, above "
                f"{_WALKED:,}, beyond which chains that move all of them mix too slowly to be of "
                "use; use Gibbs, which integrates them out, or CAVI, or fewer words and documents"
            )
        return None

    # -- expectation-maximisation ----------------------------------------------------------------

    def start(self, data: Data, restarts: int, noise: Noise) -> Params:
        shape = (self.topics, data["words"])
        topics = 1 + 0.5 * noise.fold(0).uniform(*shape)
        proportions = 1 + 0.5 * noise.fold(1).uniform(data["documents"], self.topics)
        return {"topics": _shares(topics), "proportions": _shares(proportions)}

    def e_step(self, data: Data, params: Params) -> tuple[Tensor, Tensor]:
        """Expected tokens by document and topic (R, M, K), and by topic and word (R, K, V)."""
        proportions = _array(params["proportions"])
        topics = np.ascontiguousarray(_array(params["topics"]).swapaxes(1, 2))  # (R, V, K)
        by_doc, by_word = np.empty_like(proportions), np.empty_like(topics)
        first, word, count = _entries(data)

        def pass_over(r: int) -> None:
            kernels.expected_counts(
                first, word, count, proportions[r], topics[r], by_doc[r], by_word[r]
            )

        each(pass_over, len(topics))
        like = params["topics"]
        return _tensor(by_doc, like), _tensor(by_word.swapaxes(1, 2), like)

    def m_step(
        self, data: Data, expectations: tuple[Tensor, Tensor], objective: Objective
    ) -> Params:
        by_doc, by_word = expectations
        alpha, eta = (self.alpha, self.eta) if objective == "joint" else (1.0, 1.0)
        return {"topics": _shares(by_word + eta - 1), "proportions": _shares(by_doc + alpha - 1)}

    # -- mean field ------------------------------------------------------------------------------

    def rows(self, data: Data) -> int:
        return data["documents"]

    def initial_factors(self, data: Data, restarts: int, noise: Noise) -> Params:
        """``weights`` (R, V, K): q(topics_k) is Dirichlet(weights[:, k])."""
        like = torch.full_like(data["count"][:1], 100.0)
        shape = (restarts, data["words"], self.topics)
        return {"weights": noise.gamma(like.expand(shape)) / 100}

    def coordinate_step(
        self, data: Data, factors: Params, rows: Tensor | None
    ) -> tuple[Params, Tensor]:
        """Documents' factors from the same start, to the inner tolerance; then the topics'."""
        weights, chosen = _array(factors["weights"]), _chosen(data, rows)
        scale = data["documents"] / len(chosen)
        new = np.zeros_like(weights)
        first, word, count = _entries(data)

        def restart(r: int) -> float:
            expected = np.empty_like(weights[r])
            divergence = kernels.expected_topics(weights[r], self.eta, expected)
            gamma = np.empty((len(chosen), self.topics), weights.dtype)
            local = kernels.local_factors(
                first, word, count, chosen, expected, self.alpha,
                self.inner_steps, self.inner_tol, gamma, new[r],
            )  # fmt: skip
            np.multiply(new[r], expected, out=new[r])
            new[r] *= scale
            new[r] += self.eta
            return scale * local - divergence

        elbo = np.array(each(restart, len(weights)))
        like = factors["weights"]
        return {"weights": _tensor(new, like)}, _tensor(elbo, like)

    def document_factors(self, data: Data, factors: Params) -> Tensor:
        """Gamma (R, M, K): q(proportions_d) is Dirichlet(gamma_d), optimal given the topics'."""
        weights, chosen = _array(factors["weights"]), _chosen(data, None)
        gamma = np.empty((len(weights), len(chosen), self.topics), weights.dtype)
        first, word, count = _entries(data)

        def restart(r: int) -> None:
            expected = np.empty_like(weights[r])
            kernels.expected_topics(weights[r], self.eta, expected)
            kernels.local_factors(
                first, word, count, chosen, expected, self.alpha,
                self.inner_steps, self.inner_tol, gamma[r], expected[:0],
            )  # fmt: skip

        each(restart, len(weights))
        return _tensor(gamma, factors["weights"])

    def factor_draws(self, data: Data, factors: Params, noise: Noise, draws: int) -> Params:
        def drawn(concentration: Tensor, stream: Noise) -> Tensor:  # one by one, for memory
            each = [_inside(stream.fold(s).dirichlet(concentration)) for s in range(draws)]
            return torch.stack(each, 1)

        gamma = self.document_factors(data, factors)
        return {
            "topics": drawn(factors["weights"].transpose(1, 2), noise.fold(0)),
            "proportions": drawn(gamma, noise.fold(1)),
        }

    def factor_log_density(self, data: Data, factors: Params, draws: Params) -> Tensor:
        def log_density(concentration: Tensor, value: Tensor) -> Tensor:  # draw by draw, for memory
            q = dist.Dirichlet(concentration, validate_args=False)
            return torch.stack([q.log_prob(one).sum(-1) for one in value.unbind(1)], 1)

        topics = log_density(factors["weights"].transpose(1, 2), draws["topics"])
        gamma = self.document_factors(data, factors)
        return topics + log_density(gamma, draws["proportions"])

    # -- collapsed Gibbs -------------------------------------------------------------------------

    def initial(self, data: Data, chains: int, noise: Noise) -> Params:
        """``z`` (C, tokens), topics at random; ``by_word`` (C, V, K), how often each word has each.

        Both are changed in place by the sweeps, and lie on the CPU.
        """
        _, word = _tokens(data)
        kind = torch.uint8 if self.topics <= 256 else torch.int16
        z = torch.empty(chains, len(word), dtype=kind)
        by_word = torch.zeros(chains, data["words"], self.topics, dtype=torch.int32)
        for chain in range(chains):
            unit = Noise(noise.key[chain : chain + 1], noise.dtype).uniform(len(word))[0]
            z[chain] = (unit * self.topics).clamp(max=self.topics - 1).to(kind)
            np.add.at(by_word[chain].numpy(), (word, z[chain].numpy()), 1)
        return {"z": z, "by_word": by_word}

    def conditionals(self, data: Data) -> Mapping[str, Callable[[Params, Noise], Params]]:
        first, word = _tokens(data)

        def z(params: Params, noise: Noise) -> Params:
            topic, by_word = params["z"].numpy(), params["by_word"].numpy()
            seeds = np.array(noise.integers(), dtype=np.uint64)

            def chain(c: int) -> None:
                lda_gibbs.sweep(first, word, topic[c], by_word[c], self.alpha, self.eta, seeds[c])

            each(chain, len(topic))
            return params

        return {"z": z}

    def complete(self, data: Data, params: Params, noise: Noise) -> Params:
        """Topics and proportions given z, from their Dirichlet conditionals; and ``log_joint``."""
        first, _ = _tokens(data)
        by_word = params["by_word"].numpy()
        chains = len(by_word)
        by_doc = np.zeros((chains, data["documents"], self.topics), np.int32)
        doc = np.repeat(np.arange(data["documents"]), np.diff(first))
        for chain in range(chains):
            np.add.at(by_doc[chain], (doc, params["z"][chain].numpy()), 1)
        joint = [
            lda_gibbs.log_joint(by_doc[c], by_word[c], self.alpha, self.eta) for c in range(chains)
        ]
        like = data["count"]
        topics = _tensor(by_word.swapaxes(1, 2), like) + self.eta
        proportions = _tensor(by_doc, like) + self.alpha
        return {
            "topics": _inside(noise.fold(0).dirichlet(topics)),
            "proportions": _inside(noise.fold(1).dirichlet(proportions)),
            "log_joint": _tensor(np.array(joint), like),
        }


def _shares(x: Tensor) -> Tensor:
    return _inside(x / x.sum(-1, keepdim=True))


def _inside(x: Tensor) -> Tensor:
    """Shares kept off zero, where logarithms end."""
    return x.clamp(min=torch.finfo(x.dtype).tiny)


def _entries(data: Data) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where documents begin, and the entries' words and counts."""
    doc, word, count = (_array(data[name]) for name in ("doc", "word", "count"))
    return starts(doc, data["documents"]), word, count


def _tokens(data: Data) -> tuple[np.ndarray, np.ndarray]:
    """Where documents begin among the tokens, and the word of every token."""
    count = _array(data["count"]).astype(np.int64)
    doc = np.repeat(_array(data["doc"]), count)
    return starts(doc, data["documents"]), np.repeat(_array(data["word"]), count).astype(np.int32)


def _chosen(data: Data, rows: Tensor | None) -> np.ndarray:
    return np.arange(data["documents"]) if rows is None else _array(rows)


def _array(x: Tensor) -> np.ndarray:
    return np.ascontiguousarray(x.detach().cpu().numpy())


def _tensor(x: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(x)).to(like.device, like.dtype)
