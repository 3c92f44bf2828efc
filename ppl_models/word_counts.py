"""The counts of a topic model as one distribution over their entries."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from ppl_models.errors import ModelError

_CHUNK = 1 << 20  # elements of entries x topics that are made at once


class WordCounts(dist.TorchDistribution):
    """Counts of entries (document, word), log p = count log sum_k proportions_dk topics_kw.

    Draws are what a multinomial document of the same length has at the entries, so that they and
    the words that it had no entry for add up to the document's length.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}  # pyright: ignore
    support = constraints.nonnegative_integer  # pyright: ignore
    has_rsample = False

    def __init__(
        self, proportions: Tensor, topics: Tensor, doc: Tensor, word: Tensor, count: Tensor
    ) -> None:
        self.proportions, self.topics = proportions, topics  # (M, K), (K, V)
        self.doc, self.word, self.count = doc, word, count  # (E,) each
        super().__init__(batch_shape=doc.shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> WordCounts:
        if torch.Size(batch_shape) != self.batch_shape:
            raise ModelError("counts have one distribution for each entry; they do not expand")
        return self

    def probabilities(self) -> Tensor:
        """p_dw of every entry: (E,). Entries x topics are made in chunks."""
        size = max(1, _CHUNK // self.proportions.shape[-1])
        by_word = self.topics.T
        parts = [
            (self.proportions[doc] * by_word[word]).sum(-1)
            for doc, word in zip(self.doc.split(size), self.word.split(size), strict=True)
        ]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def log_prob(self, value: Tensor) -> Tensor:
        tiny = torch.finfo(value.dtype).tiny
        return value * self.probabilities().clamp(min=tiny).log()

    def sample(self, sample_shape: Any = ()) -> Tensor:
        if len(sample_shape):
            raise ModelError("counts are drawn one set at a time; draw in a loop")
        # each token's uniform number picks an entry of its document, or none
        cumulative = self.probabilities().cumsum(0)
        tokens = self.doc.repeat_interleave(self.count.long())
        begins = torch.searchsorted(self.doc, torch.unique_consecutive(self.doc))
        before = torch.cat([cumulative.new_zeros(1), cumulative])[begins]
        ends = torch.cat([begins[1:], begins.new_tensor([len(self.doc)])])
        rank = torch.searchsorted(torch.unique_consecutive(self.doc), tokens)
        like = {"dtype": cumulative.dtype, "device": cumulative.device}
        place = before[rank] + torch.rand(tokens.shape, **like)
        entry = torch.searchsorted(cumulative, place, right=True)
        drawn = torch.where(entry < ends[rank], entry, len(self.doc))
        ones = torch.ones_like(place)
        return place.new_zeros(len(self.doc) + 1).index_add(0, drawn, ones)[:-1]
