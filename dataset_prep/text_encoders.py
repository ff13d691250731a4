"""One config word selects the frozen model that turns item texts into vectors: ``NAME`` or ``NAME?option:value&...``.

`TEXT_ENCODERS` holds the plain words, `WITH_ARGUMENT` those of the form ``word:argument``. Any sentence-transformers
model, by name or local folder, works as well. To add a word: write a class as of `CorpusEncoder` or `PerTextEncoder` in
`encoders`, and add one line to a table. Options are the keyword-only parameters of what the table names.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from .encoders.base import (
    COMPUTE_TYPES,
    PerTextEncoder,
    TextEncoder,
    Vectors,
    fill_zero_rows,
    package_version,
)
from .encoders.language_model import last_token, llm2vec, paper_llm2vec
from .encoders.sentence import SentenceEncoder, minilm, sentence_encoder, wordllama
from .encoders.tfidf import TfidfEncoder, tfidf
from .errors import InputError
from .pick import nearest

__all__ = [
    "TEXT_ENCODERS",
    "WITH_ARGUMENT",
    "PerTextEncoder",
    "SentenceEncoder",
    "TextEncoder",
    "TfidfEncoder",
    "Vectors",
    "encoder_parts",
    "fill_zero_rows",
    "package_version",
    "text_encoder",
]

TEXT_ENCODERS: dict[str, Callable[..., TextEncoder]] = {
    "minilm": minilm,
    "tfidf": TfidfEncoder,
    "wordllama": wordllama,
    "llm2vec": paper_llm2vec,
}
WITH_ARGUMENT: dict[str, Callable[..., TextEncoder]] = {"tfidf": tfidf, "llm2vec": llm2vec, "last_token": last_token}


def text_encoder(name: str) -> TextEncoder:
    """Return the text encoder that `name` selects, loaded.

    Args:
        name: a word of `TEXT_ENCODERS`; or one of `WITH_ARGUMENT` with its argument (``tfidf:512``); or a local folder;
            or a sentence-transformers name, with a "/". Options follow behind a "?" (with ":", for RecBole's command
            line knows no second "="): ``org/model?truncate_dim:256&prompt:passage: ``. Within a value "&", "+", "?" and
            "%" are written %26, %2B, %3F and %25.

    Raises:
        InputError: if `name` is none of these, or does not load, or an option is not one of its own.
    """
    plain, mark, query = name.partition("?")
    make, arguments = _maker(plain)
    return make(*arguments, **_options(name, query, make) if mark else {})


def _maker(name: str) -> tuple[Callable[..., TextEncoder], tuple[str, ...]]:
    """What makes the encoder, and its argument."""
    if name in TEXT_ENCODERS:
        return TEXT_ENCODERS[name], ()
    word, colon, argument = name.partition(":")
    if colon and word in WITH_ARGUMENT:
        return WITH_ARGUMENT[word], (argument,)
    if word == "file":
        raise InputError(f"text_encoder {name!r} names finished vectors: they are read, there is nothing to encode")
    if "/" in name or Path(name).is_dir():
        return sentence_encoder, (name,)
    raise InputError(
        f"text_encoder: {name!r} is not known{nearest(name, list(TEXT_ENCODERS))}; choose one of "
        f"{', '.join(TEXT_ENCODERS)}, tfidf:WIDTH, "
        "llm2vec:BASE,ADAPTERS, last_token:BASE, a sentence-transformers model by its full name (org/model), a local "
        "folder, or file:PATH.npy"
    )


def _options(name: str, query: str, make: Callable[..., TextEncoder]) -> dict[str, Any]:
    parameters = inspect.signature(make).parameters.values()
    known = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    options: dict[str, Any] = {}
    for option in query.split("&"):
        key, colon, value = option.partition(":")
        if not colon:
            raise InputError(f"text_encoder {name!r}: {option!r} is no option; write NAME?key:value&key:value")
        if key not in known or key in options:
            raise InputError(
                f"text_encoder {name!r}: option {key!r} is {'given twice' if key in options else 'not known'}; "
                f"{'options: ' + ', '.join(known) if known else 'this encoder has none'}"
            )
        options[key] = OPTION_READERS[key](name, key, unquote(value))
    return options


def _text(name: str, key: str, value: str) -> str:
    return value


def _whole(name: str, key: str, value: str) -> int:
    if not (value.isascii() and value.isdigit() and int(value) > 0):
        raise InputError(f"text_encoder {name!r}: {key} must be a whole number from 1, not {value!r}")
    return int(value)


def _compute_type(name: str, key: str, value: str) -> str:
    if value not in COMPUTE_TYPES:
        raise InputError(f"text_encoder {name!r}: {key} must be one of {', '.join(COMPUTE_TYPES)}, not {value!r}")
    return value


OPTION_READERS: Mapping[str, Callable[[str, str, str], Any]] = {
    "prompt": _text,
    "instruction": _text,
    "truncate_dim": _whole,
    "max_tokens": _whole,
    "dtype": _compute_type,
}


def encoder_parts(name: str) -> list[str]:
    """Split ``minilm+tfidf``, the name of joint vectors, into the names of its parts; other names are one part.

    The "+" of a folder or file that is there (``models/a+b``, ``file:a+b.npy``) separates nothing.

    Raises:
        InputError: if a part is empty, or names no file.
    """
    if Path(name.removeprefix("file:")).expanduser().exists():
        return [name]
    parts = [part.strip() for part in name.split("+")]
    if not all(parts):
        raise InputError(f"text_encoder: {name!r} has an empty part; write names joined by +, such as minilm+tfidf")
    if "file:" in parts:
        raise InputError(f"text_encoder: {name!r} names no file; write file:PATH.npy")
    return parts
