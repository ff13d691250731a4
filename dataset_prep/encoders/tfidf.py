"""Tf-idf weights of words and word pairs, reduced by a truncated SVD: no weights, no network, no GPU."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import InputError
from .base import Vectors, fill_zero_rows, package_version

__all__ = ["TfidfEncoder", "tfidf"]


class TfidfEncoder:
    """Words and word pairs, weighted by tf-idf, reduced by a truncated SVD ("latent semantic analysis").

    Needs no weights, no network and no GPU. A word is any run of letters and digits, one character included;
    stop words and rare words stay, so that hardly any title comes out empty. Vectors are not normalised.

    Args:
        max_width: directions that are kept, at most.
    """

    pooling = "none"
    prompt = ""
    details: dict[str, Any] = {}  # noqa: RUF012 - read only
    packages: tuple[str, ...] = ("scikit-learn", "scipy")
    settings: dict[str, Any] = {  # noqa: RUF012 - read only
        "ngram_range": (1, 2),
        "sublinear_tf": True,
        "min_df": 1,
        "token_pattern": r"(?u)\b\w+\b",
    }
    max_width = 256

    def __init__(self, max_width: int | None = None) -> None:
        self.name = "tfidf" if max_width is None else f"tfidf:{max_width}"
        self.max_width = max_width or self.max_width
        settings = {
            **self.settings,
            "max_width": self.max_width,
            "scikit-learn": package_version("scikit-learn"),
        }
        self.revision = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Fit on `texts` and return their vectors; the same texts in the same order give the same bits.

        Args:
            texts: n texts, all there are: weights and axes are learnt from them.

        Returns:
            Vectors, shape (n, D), float32, D = min(max_width, n, number of distinct n-grams).

        Raises:
            InputError: if no text holds a single word.

        Source: Deerwester et al. 1990, "Indexing by latent semantic analysis", JASIS 41.
        """
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer

        try:
            weights = TfidfVectorizer(**self.settings).fit_transform(texts)
        except ValueError as error:  # scikit-learn: "empty vocabulary"
            raise InputError(f"text_encoder 'tfidf': none of the {len(texts)} texts holds a word") from error
        width = min(self.max_width, *weights.shape)
        if width == 1:  # one text or one n-gram: nothing to reduce, and scikit-learn refuses to
            reduced = np.asarray(weights.sum(axis=1))
        else:
            reduced = TruncatedSVD(n_components=width, random_state=0).fit_transform(weights)
        # Rows had norm 1, or 0 without any word; below 1e-6 the SVD left nothing but rounding of either.
        reduced[np.linalg.norm(reduced, axis=1) < 1e-6] = 0.0
        return fill_zero_rows(np.asarray(reduced, dtype=np.float32), texts)


def tfidf(width: str) -> TfidfEncoder:
    """``tfidf:K``: `TfidfEncoder` with up to K directions.

    Raises:
        InputError: if K is no whole number from 1.
    """
    if not (width.isascii() and width.isdigit() and int(width) > 0):
        raise InputError(f"text_encoder: 'tfidf:{width}' must name a whole number of directions, such as tfidf:512")
    return TfidfEncoder(int(width))
