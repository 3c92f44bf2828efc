"""Corpora from files: lda-c, UCI bags of words, and folders of texts."""

from __future__ import annotations

from importlib import resources
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from ppl_models.counts import corpus
from ppl_models.errors import DataError


def read_corpus(path: str | PathLike[str], vocabulary: str | PathLike[str] | None = None) -> Any:
    """The corpus at ``path``, whose form is told from its first lines; for ``counts.corpus``.

    A folder is read by ``read_texts``; a file whose first three lines are one number each by
    ``read_uci``; any other file by ``read_lda_c``. ``vocabulary`` is a file of one word per line.

    Raises ``DataError`` where there is nothing to read, or a line cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        return read_texts(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file or folder")
    with path.open(encoding="utf-8") as file:
        head = [file.readline().split() for _ in range(3)]
    uci = all(len(line) == 1 and line[0].isdigit() for line in head)
    data = read_uci(path) if uci else read_lda_c(path)
    if vocabulary is not None:
        data["vocabulary"] = Path(vocabulary).read_text(encoding="utf-8").split("\n")
        if data["vocabulary"][-1] == "":
            data["vocabulary"].pop()
    return data


def read_lda_c(path: str | PathLike[str]) -> dict[str, Any]:
    """A file of Blei's lda-c: a document per line, ``N word:count word:count ...``, from 0.

    Empty documents are left out, as there. Raises ``DataError`` naming a line that is not so.
    """
    doc, word, count = [], [], []
    documents = 0
    with Path(path).open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            parts = line.split()
            try:
                pairs = [tuple(map(int, part.split(":"))) for part in parts[1:]]
                if parts and len(pairs) != int(parts[0]):
                    raise ValueError("the number of pairs")
                word += [w for w, _ in pairs]
                count += [c for _, c in pairs]
            except ValueError as error:
                raise DataError(
                    f"{path}, line {number}: not of the form 'N word:count word:count ...'"
                ) from error
            doc += [documents] * len(pairs)
            documents += bool(pairs)
    return {"doc": np.array(doc), "word": np.array(word), "count": np.array(count)}


def read_uci(path: str | PathLike[str]) -> dict[str, Any]:
    """A UCI bag of words: lines D, V and NNZ, then ``document word count``, both from 1.

    Documents without words are left out. Raises ``DataError`` where the lines are not so.
    """
    try:
        with Path(path).open(encoding="utf-8") as file:
            _, words, entries = (int(file.readline()) for _ in range(3))
            table = np.loadtxt(file, dtype=np.int64, ndmin=2)
    except ValueError as error:
        raise DataError(f"{path}: not lines of 'document word count': {error}") from error
    if table.shape != (entries, 3):
        raise DataError(f"{path}: {len(table)} lines where the third says {entries}; is it whole?")
    doc = np.unique(table[:, 0], return_inverse=True)[1]
    return {"doc": doc, "word": table[:, 1] - 1, "count": table[:, 2], "words": words}


def read_texts(folder: str | PathLike[str], **settings: Any) -> dict[str, Any]:
    """Text files below a folder, tokenised by scikit-learn's ``CountVectorizer``.

    Its ``settings`` are by default English stop words left out and words of two files or more.
    Files in which no word is left are left out. Raises ``DataError`` where no file has any.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    files = sorted(path for path in Path(folder).rglob("*.txt") if path.is_file())
    vectorizer = CountVectorizer(
        input="filename",
        decode_error="replace",
        **{"stop_words": "english", "min_df": 2, **settings},
    )
    try:
        counts: Any = vectorizer.fit_transform([str(path) for path in files])
    except ValueError as error:
        raise DataError(f"{folder}: {len(files)} files *.txt: {error}") from error
    filled = np.asarray(counts.sum(1)).ravel() > 0
    return {"counts": counts[filled], "vocabulary": vectorizer.get_feature_names_out().tolist()}


def held_out(data: Any, every: int = 10) -> tuple[dict[str, Any], dict[str, Any]]:
    """A corpus in two, for training and to be judged by: every ``every``-th document is held out.

    Both have the words of the whole. Raises ``DataError`` as ``counts.corpus`` does.
    """
    fields = corpus(data)
    triples = fields["count"].numpy(), (fields["doc"].numpy(), fields["word"].numpy())
    counts = sparse.csr_array(triples, shape=(fields["documents"], fields["words"]))
    held = np.arange(fields["documents"]) % every == every - 1
    names = {"vocabulary": fields["vocabulary"]}
    return {"counts": counts[~held], **names}, {"counts": counts[held], **names}


def reuters() -> Any:
    """The 395 Reuters stories that the package ``lda`` carries, 4,258 words.

    Raises ``DataError`` where it is not installed.
    """
    try:
        folder = Path(str(resources.files("lda"))) / "tests"
    except ModuleNotFoundError as error:
        raise DataError("the Reuters stories come with the package lda: pip install lda") from error
    return read_corpus(folder / "reuters.ldac", folder / "reuters.tokens")
