"""Unit text vectors of the items: sparse tf-idf as it is, or the dense vectors of any text encoder."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from recbole_pad.config import PADConfig
from recbole_pad.data.followers import plda_of_followers
from recbole_pad.data.item_file import item_file_of
from recbole_pad.dataset_prep.item_texts import items_without_line, read_item_texts, text_columns
from recbole_pad.errors import InputError
from recbole_pad.model_keys import word
from recbole_pad.nn.plda import TEXT_METRICS
from recbole_pad.nn.text_transforms import shortest_of, unit_rows

TFIDF = {"min_df": 2, "ngram_range": (1, 2), "sublinear_tf": True, "stop_words": "english"}


@dataclass(frozen=True)
class ItemTexts:
    """Unit text vectors; the inner product of two rows is their cosine.

    Attributes:
        vectors: shape (V, D), sparse float64 or dense float32, with `text_metric: plda` (V, K); row 0, padding, is
            zero, and so are items without text.
        fingerprint: names the vectors.
    """

    vectors: Any
    fingerprint: str


def item_texts(config: Any, dataset: Any) -> ItemTexts:
    """The text vectors that `text_encoder`, `text_fields`, `text_transform` and `text_metric` ask for.

    ``text_encoder: tfidf`` gives the sparse tf-idf vectors themselves here, not PAD's projection of them on 256
    directions, which loses much of what a nearest-neighbour search lives on (docs/baselines.md).

    Args:
        config: RecBole's config.
        dataset: a split of `PADDataset`.

    Raises:
        InputError: for a sparse encoder with a transform or a metric, most items without a line in the .item file,
            texts without a word that occurs twice, or as `find_text_table` and `TextTable.transformed`.
    """
    settings = PADConfig.read(config)
    metric = word(config, "text_metric", TEXT_METRICS)
    sparse = SPARSE_ENCODERS.get(settings.text_encoder)
    if sparse is None:
        return _dense_texts(settings, metric, dataset)
    for key, value, usual in (
        ("text_transform", settings.text_transform, "none"),
        ("text_metric", metric, "cosine"),
    ):
        if value != usual:
            raise InputError(
                f"{key}: {value!r} needs dense vectors, but the training-free models use text_encoder "
                f"{settings.text_encoder!r} as a sparse matrix; set {key}: {usual}, or name dense vectors, such as "
                "PAD's (text_encoder: minilm+tfidf, text_transform: whiten)"
            )
    return _sparse_texts(sparse, settings, dataset)


def _dense_texts(settings: PADConfig, metric: str, dataset: Any) -> ItemTexts:
    table = dataset.text_table
    vectors = table.transformed(settings.text_transform, memory_mb=math.inf)
    vectors = unit_rows(vectors, shortest_of(vectors[1:]))
    if metric == "plda":
        plda = plda_of_followers(lambda items: vectors[items], dataset.train_histories, len(vectors))
        vectors = vectors if plda is None else plda(vectors)
    return ItemTexts(vectors.numpy(), table.fingerprint)


def _sparse_texts(encode: Callable[[Sequence[str]], sp.csr_matrix], settings: PADConfig, dataset: Any) -> ItemTexts:
    file = item_file_of(dataset)
    texts = read_item_texts(file, text_columns(file, settings.text_columns))
    tokens = [str(token) for token in dataset.field2id_token[dataset.iid_field][1:]]
    texts |= dict.fromkeys(items_without_line(file, texts, tokens), "")
    place = {token: row for row, token in enumerate(texts)}
    vectors = encode(list(texts.values()))[[place[token] for token in tokens]]
    vectors = sp.vstack([sp.csr_matrix((1, vectors.shape[1])), vectors], format="csr")
    digest = hashlib.sha256()
    for part in (vectors.indptr, vectors.indices, vectors.data):
        digest.update(np.ascontiguousarray(part).tobytes())
    return ItemTexts(vectors, digest.hexdigest())


def _tfidf(texts: Sequence[str]) -> sp.csr_matrix:
    """Tf-idf of words and word pairs that at least two texts hold, without English stop words; unit rows or zero."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    try:
        return TfidfVectorizer(**TFIDF).fit_transform(texts)
    except ValueError as error:  # scikit-learn: "empty vocabulary", "no terms remain"
        raise InputError(
            f"text_encoder 'tfidf': no word occurs in two of the {len(texts)} texts; use other text_fields or minilm"
        ) from error


SPARSE_ENCODERS: dict[str, Callable[[Sequence[str]], sp.csr_matrix]] = {"tfidf": _tfidf}
