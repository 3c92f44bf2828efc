"""Corpora as counts of words in documents: checked, sorted by document, only what is not zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch import Tensor

from ppl_models.base import Data
from ppl_models.data import as_tensor, same_length
from ppl_models.errors import DataError

_NAMES = {"doc", "word", "count", "counts", "documents", "words", "vocabulary"}


def corpus(data: Any, words: int | None = None) -> Data:
    """Counts as triples: ``doc``, ``word`` (E,) int64 and ``count`` (E,) float64, all positive.

    They are sorted by document, then word, each pair once. ``documents`` and ``words`` say how many
    there are; ``vocabulary`` is the list of the words, or None. Words that no document uses are no
    mistake: the matrix, ``words`` or ``vocabulary`` tell of them.

    Args:
        data: a matrix (documents, words) of counts, dense or of ``scipy.sparse``; a DataFrame of
            these with the words as columns; or a mapping or DataFrame with ``doc``, ``word`` and
            ``count``, numbered from 0. A mapping may hold ``counts``, the matrix, instead; and
            ``vocabulary``, ``documents`` and ``words`` beside either.
        words: the number of words that a model knows: any other word is an error.

    Raises ``DataError`` for counts that are negative, fractional, missing or infinite, for
    documents without words, and for words unknown to the model.

    >>> corpus([[2, 0, 1], [0, 3, 0]])["word"]
    tensor([0, 2, 1])
    """
    named: Any = data
    if isinstance(data, pd.DataFrame) and not {"doc", "word", "count"} <= set(data.columns):
        named = {"counts": data, "vocabulary": list(data.columns)}
    elif not isinstance(data, Mapping | pd.DataFrame):
        named = {"counts": data}
    given = {str(name): value for name, value in named.items()}
    unknown = given.keys() - _NAMES
    if unknown:
        raise DataError(f"{min(unknown)}: unknown; the data may hold {', '.join(sorted(_NAMES))}")
    vocabulary = given.get("vocabulary")
    vocabulary = None if vocabulary is None else [str(word) for word in vocabulary]
    if given.get("counts") is not None:
        doc, word, count, shape = _from_matrix(given["counts"], vocabulary)
    else:
        doc, word, count, shape = _from_triples(given, vocabulary)
    _check_counts(doc, word, count, vocabulary)
    _check_words(doc, word, shape, vocabulary, words, matrix=given.get("counts") is not None)
    matrix: Any = sparse.coo_array(
        (count, (doc, word)), shape=shape
    ).tocsr()  # sums what comes twice
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    empty = np.flatnonzero(np.diff(matrix.indptr) == 0)
    if len(empty) or matrix.shape[0] == 0:
        which = f"document {empty[0]} has" if len(empty) else "the corpus has"
        more = f", and {len(empty) - 1} more have none" if len(empty) > 1 else ""
        raise DataError(f"{which} no words{more}; drop documents that are empty")
    triples = matrix.tocoo()
    return {
        "doc": torch.from_numpy(triples.coords[0].astype(np.int64)),
        "word": torch.from_numpy(triples.coords[1].astype(np.int64)),
        "count": torch.from_numpy(triples.data.astype(np.float64)),
        "documents": int(shape[0]),
        "words": int(shape[1] if words is None else words),
        "vocabulary": vocabulary,
    }


def starts(doc: Tensor | np.ndarray, documents: int) -> np.ndarray:
    """Where each document begins in entries sorted by document, and the end: (documents + 1,)."""
    lengths = np.bincount(np.asarray(doc), minlength=documents)
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


Triples = tuple[np.ndarray, np.ndarray, np.ndarray, tuple[int, int]]


def _from_matrix(counts: Any, vocabulary: list[str] | None) -> Triples:
    if sparse.issparse(counts):
        matrix: Any = counts.tocoo()
        if matrix.data.dtype.kind not in "biuf":
            raise DataError(f"counts: holds {matrix.data.dtype} values, not numbers; give counts")
    else:
        dense = as_tensor("counts", counts)
        if not isinstance(dense, Tensor) or dense.dim() != 2:
            what = tuple(dense.shape) if isinstance(dense, Tensor) else type(counts).__name__
            raise DataError(f"counts: is {what}; give a matrix (documents, words)")
        matrix = sparse.coo_array(dense.detach().cpu().numpy())
    if vocabulary is not None and len(vocabulary) != matrix.shape[1]:
        raise DataError(
            f"vocabulary: {len(vocabulary)} words for {matrix.shape[1]} columns; name each column"
        )
    doc, word = matrix.coords if hasattr(matrix, "coords") else (matrix.row, matrix.col)
    return doc, word, matrix.data.astype(np.float64), matrix.shape


def _from_triples(given: Mapping[str, Any], vocabulary: list[str] | None) -> Triples:
    missing = [name for name in ("doc", "word", "count") if name not in given]
    if missing:
        raise DataError(
            f"{missing[0]}: missing; give a matrix of counts (documents, words), or doc, word and "
            "count for each pair that occurs"
        )
    fields = {name: as_tensor(name, given[name]) for name in ("doc", "word", "count")}
    for name, value in fields.items():
        if not isinstance(value, Tensor) or value.dim() != 1:
            raise DataError(f"{name}: give one number for each pair of document and word")
    same_length(**fields)
    doc, word = (_numbers(name, fields[name]) for name in ("doc", "word"))
    shape = (
        _size("documents", given.get("documents"), doc),
        _size("words", given.get("words") or (len(vocabulary) if vocabulary else None), word),
    )
    return doc, word, fields["count"].double().cpu().numpy(), shape


def _numbers(name: str, value: Tensor) -> np.ndarray:
    """Whole numbers from 0, else ``DataError``."""
    array = value.detach().cpu().numpy()
    bad = ~((array >= 0) & (array == np.floor(array)))
    if bad.any():
        row = int(bad.argmax())
        raise DataError(f"{name}: row {row} is {array[row]}; number {name}s 0, 1, 2, ...")
    return array.astype(np.int64)


def _size(name: str, given: Any, used: np.ndarray) -> int:
    least = int(used.max()) + 1
    if given is not None and int(given) < least:
        raise DataError(f"{name}={given}: the data number them up to {least - 1}; raise {name}")
    return least if given is None else int(given)


def _check_counts(
    doc: np.ndarray, word: np.ndarray, count: np.ndarray, vocabulary: list[str] | None
) -> None:
    with np.errstate(invalid="ignore"):
        bad = ~(np.isfinite(count) & (count >= 0) & (count == np.floor(count)))
    if not bad.any():
        return
    row = int(bad.argmax())
    value, name = count[row], f"word {word[row]}"
    if vocabulary is not None:
        name += f" ('{vocabulary[word[row]]}')"
    remedy = (
        "fill in the count or drop the document"
        if not np.isfinite(value)
        else "give counts, not differences or centred values"
        if value < 0
        else "give counts, not weights such as tf-idf"
    )
    raise DataError(f"counts: document {doc[row]}, {name} has the count {value:g}; {remedy}")


def _check_words(
    doc: np.ndarray,
    word: np.ndarray,
    shape: tuple[int, int],
    vocabulary: list[str] | None,
    known: int | None,
    *,
    matrix: bool,
) -> None:
    """Refuse words that a model of ``known`` words has not seen."""
    if known is None:
        return
    remedy = "drop unseen words, with the vocabulary of the fit, or fit again with them"
    if (word >= known).any():
        row = int((word >= known).argmax())
        name = f"word {word[row]}" + (f" ('{vocabulary[word[row]]}')" if vocabulary else "")
        raise DataError(
            f"document {doc[row]} holds the unseen {name}: the model knows {known} words; {remedy}"
        )
    if matrix and shape[1] != known:
        raise DataError(f"counts: {shape[1]} columns for a model of {known} words; {remedy}")
