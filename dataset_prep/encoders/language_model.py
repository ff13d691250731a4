"""Decoder language models as text encoders, on transformers and peft: LLM2Vec, and causal last-token pooling.

The `llm2vec` package needs transformers 4.44; what it does for a text is done here with the models of the installed
transformers. They take a mask of four dimensions as it is, so attention is decided here, and a check at loading shows
that it is. Code that ships with a model is never run.

Source: BehnamGhader et al. 2024, "LLM2Vec: Large Language Models Are Secretly Powerful Text Encoders", COLM, arXiv
2404.05961; package llm2vec 0.2.3, `llm2vec/llm2vec.py`. Last-token pooling: Zhang et al. 2025, "Qwen3 Embedding", arXiv
2506.05176.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .base import Vectors, compute_type, folder_revision

__all__ = ["FAMILIES", "LanguageModelEncoder", "Recipe", "last_token", "llm2vec", "paper_llm2vec"]

# Architectures (`model_type`) whose layers read nothing of order but the mask and the positions, with the
# implementation of attention that computes them in full: sdpa leaves out the soft cap of Gemma 2.
FAMILIES = {
    "llama": "sdpa",
    "mistral": "sdpa",
    "qwen2": "sdpa",
    "qwen3": "sdpa",
    "gemma": "sdpa",
    "gemma2": "eager",
}
PAPER_MODEL = (
    "meta-llama/Meta-Llama-3-8B-Instruct,McGill-NLP/LLM2Vec-Meta-Llama-3-8B-Instruct-mntp,"
    "McGill-NLP/LLM2Vec-Meta-Llama-3-8B-Instruct-mntp-supervised"
)
# What LLM2Vec puts around a text for chat models, `LLM2Vec.prepare_for_tokenization`.
_INST = ("[INST] ", " [/INST]")
_IM = ("<|im_start|>user\n", "<|im_end|>")
WRAPPERS = {
    "meta-llama/Meta-Llama-3-8B-Instruct": ("<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"),
    "mistralai/Mistral-7B-Instruct-v0.2": _INST,
    "meta-llama/Llama-2-7b-chat-hf": _INST,
    "google/gemma-2-9b-it": ("<bos><start_of_turn>user\n", "<end_of_turn>"),
    "Qwen/Qwen2-1.5B-Instruct": _IM,
    "Qwen/Qwen2-7B-Instruct": _IM,
}
MAX_TOKENS = 400  # of the text itself, LLM2Vec's `doc_max_length`
ROOM = 112  # for what stands around it: LLM2Vec's `max_length` is 512


@dataclass(frozen=True)
class Recipe:
    """How token states become one vector.

    Attributes:
        word: the config word.
        both_ways: every token sees every other one; else those up to itself.
        pooling: what the manifest says.
        wrapped: whether a chat model's texts are wrapped as LLM2Vec does.
        ends: whether the end-of-sequence token stands behind each text.
    """

    word: str
    both_ways: bool
    pooling: str
    wrapped: bool
    ends: bool


LLM2VEC = Recipe("llm2vec", True, "mean of the text's own tokens", True, False)
LAST_TOKEN = Recipe("last_token", False, "last token", False, True)


@dataclass(frozen=True)
class Tokens:
    """The input of the model for one text: token ids, and how many of the last ones are the text's own."""

    ids: list[int]
    own: int


class LanguageModelEncoder:
    """A decoder language model with LoRA adapters merged into it, in their order.

    Runs on the GPU if there is one. A text without any token gets a zero row.

    Args:
        base: folder or hub name of the base model.
        adapters: folders or hub names of LoRA adapters.
        recipe: attention and pooling.
        instruction: put before each text; its tokens are read, but are no part of a mean.
        max_tokens: of the text itself; longer ones are cut, at a blank.
        dtype: as of `compute_type`.

    Raises:
        InputError: if transformers (or peft, for adapters) is missing, something does not load, the architecture is not
            one of `FAMILIES`, an adapter does not fit the base model, or its attention turns out not to be as asked.
    """

    def __init__(
        self,
        base: str,
        adapters: Sequence[str],
        recipe: Recipe,
        *,
        instruction: str = "",
        max_tokens: int | None = None,
        dtype: str | None = None,
    ) -> None:
        self.name = f"{recipe.word}:{','.join((base, *adapters))}"
        self.packages: tuple[str, ...] = ("transformers", "torch", *(("peft",) if adapters else ()))
        self._recipe = recipe
        self._max_tokens = max_tokens or MAX_TOKENS
        computed_in = compute_type(dtype)
        self._model, self._tokenizer = _load(self.name, base, computed_in)
        if recipe.ends and self._tokenizer.eos_token_id is None:
            raise InputError(f"text_encoder {self.name!r}: the tokenizer of {base} has no end-of-sequence token")
        names = [base, _original_name(base, self._model)]
        for adapter in adapters:
            self._model, trained_on = _merged(self._model, self.name, adapter)
            names.append(trained_on)
        self._model.eval()
        self._wrapper = next((WRAPPERS[name] for name in names if name in WRAPPERS), ("", ""))
        if not recipe.wrapped:
            self._wrapper = ("", "")
        self._check_attention()
        self.revision = _revision((base, *adapters), self._model)
        self.pooling = recipe.pooling
        self.prompt = self._wrapper[0] + (f"{instruction.strip()} " if instruction.strip() else "")
        self.details: dict[str, Any] = {
            "behind_text": self._wrapper[1] + (str(self._tokenizer.eos_token) if recipe.ends else ""),
            "attention": "bidirectional" if recipe.both_ways else "causal",
            "adapters": list(adapters),
            "max_tokens": self._max_tokens,
            "computed_in": computed_in,
        }

    def encode_each(self, texts: Sequence[str], batch_size: int) -> Vectors:
        """Encode the texts as they come; shape (n, D), float32; zero rows stay zero."""
        vectors = np.zeros((len(texts), int(self._model.config.hidden_size)), dtype=np.float32)
        tokens = self.tokens(texts)
        order = sorted((r for r in range(len(texts)) if tokens[r].own), key=lambda r: -len(tokens[r].ids))
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            vectors[rows] = self._pooled([tokens[r] for r in rows])
        return vectors

    def n_cut(self, texts: Sequence[str]) -> int:
        """How many of the texts have more than `max_tokens` tokens."""
        return sum(len(own) > self._max_tokens for own in self._own_tokens(texts))

    def tokens(self, texts: Sequence[str]) -> list[Tokens]:
        """The model's input for each text.

        The own tokens are counted in the text by itself, as LLM2Vec counts them, and are the last ones of the input:
        no special token in front, and no token of the wrapper's beginning or the instruction, is one of them.
        """
        if not len(texts):
            return []
        before, behind = self.prompt, self._wrapper[1]
        limit = self._max_tokens + ROOM
        plain = [text.strip() for text in texts]
        short = [self._shortened(text, len(own)) for text, own in zip(plain, self._own_tokens(plain), strict=True)]
        wholes = self._tokenize([before + text + behind for text in short], limit, special=True)
        owns = self._tokenize([text + behind for text in short], limit, special=False)
        end = self._tokenizer.eos_token_id
        found = []
        for whole, own, text in zip(wholes, owns, short, strict=True):
            ids = [*whole, end] if self._recipe.ends and whole[-1:] != [end] else whole
            found.append(Tokens(ids, min(len(own), len(ids)) if text else 0))
        return found

    def _tokenize(self, texts: list[str], limit: int, special: bool) -> list[list[int]]:
        rows: list[list[int]] = self._tokenizer(
            texts, add_special_tokens=special, truncation=True, max_length=limit, padding=False
        )["input_ids"]
        return rows

    def _own_tokens(self, texts: Sequence[str]) -> list[list[int]]:
        rows: list[list[int]] = self._tokenizer(
            list(texts), add_special_tokens=False, truncation=False, padding=False, verbose=False
        )["input_ids"]
        return rows

    def _shortened(self, text: str, n_tokens: int) -> str:
        """The text without its last words, so that `max_tokens` are left; `LLM2Vec._convert_to_str`."""
        while n_tokens > self._max_tokens:
            words = text.split()
            kept = int(len(words) * self._max_tokens / n_tokens)
            if kept == 0:  # one word of too many tokens: the tokenizer's truncation cuts it
                return text
            text = " ".join(words[:kept])
            n_tokens = len(self._own_tokens([text])[0])
        return text

    def _pooled(self, tokens: Sequence[Tokens]) -> Vectors:
        states, lengths = self.states([each.ids for each in tokens])
        rows = []
        for state, length, each in zip(states, lengths, tokens, strict=True):
            first = length - (each.own if self._recipe.both_ways else 1)
            rows.append(state[first:length].mean(dim=0))
        pooled: Vectors = np.stack([row.cpu().numpy() for row in rows])
        return pooled

    def states(self, rows: Sequence[Sequence[int]]) -> tuple[Any, list[int]]:
        """Last hidden states of token ids, each row seen by itself whatever it is batched with.

        Args:
            rows: token ids of each text.

        Returns:
            Tensor (B, N, D), float32, of which the first so many positions of each row are its tokens; and the
            lengths of the rows.
        """
        import torch

        lengths = [len(row) for row in rows]
        longest = max(lengths)
        device = self._model.device
        ids = torch.zeros(len(rows), longest, dtype=torch.long, device=device)
        is_token = torch.zeros(len(rows), longest, dtype=torch.bool, device=device)
        for r, row in enumerate(rows):
            ids[r, : len(row)] = torch.tensor(row, device=device)
            is_token[r, : len(row)] = True
        seen = is_token[:, None, None, :].expand(-1, 1, longest, -1)
        if not self._recipe.both_ways:
            seen = seen & torch.ones(longest, longest, dtype=torch.bool, device=device).tril()
        dtype = self._model.dtype
        mask = torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill(~seen, torch.finfo(dtype).min)
        positions = (is_token.long().cumsum(dim=1) - 1).clamp(min=0)
        with torch.inference_mode():
            out = self._model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
        return out.last_hidden_state.float(), lengths

    def _check_attention(self) -> None:
        """Whether the first token sees the last one: as asked for, or InputError."""
        states, _ = self.states([[1, 2, 3, 4], [1, 2, 3, 5]])
        sees_last = not bool((states[0, 0] == states[1, 0]).all())
        if sees_last != self._recipe.both_ways:
            raise InputError(
                f"text_encoder {self.name!r}: asked for {'bidirectional' if self._recipe.both_ways else 'causal'} "
                "attention, but the model of this version of transformers does not do it; use another version"
            )


def llm2vec(
    argument: str, *, instruction: str = "", max_tokens: int | None = None, dtype: str | None = None
) -> LanguageModelEncoder:
    """``llm2vec:BASE,ADAPTER,...``: bidirectional attention, mean over the text's own tokens.

    Raises:
        InputError: as `LanguageModelEncoder`.
    """
    base, adapters = _names(argument, "llm2vec")
    return LanguageModelEncoder(base, adapters, LLM2VEC, instruction=instruction, max_tokens=max_tokens, dtype=dtype)


def paper_llm2vec(
    *, instruction: str = "", max_tokens: int | None = None, dtype: str | None = None
) -> LanguageModelEncoder:
    """``llm2vec``: the encoder of the PAD paper, LLM2Vec on Llama 3 8B Instruct, MNTP and then supervised adapters.

    Raises:
        InputError: as `LanguageModelEncoder`.
    """
    return llm2vec(PAPER_MODEL, instruction=instruction, max_tokens=max_tokens, dtype=dtype)


def last_token(
    argument: str, *, instruction: str = "", max_tokens: int | None = None, dtype: str | None = None
) -> LanguageModelEncoder:
    """``last_token:BASE,ADAPTER,...``: causal attention, the state of the end-of-sequence token behind the text.

    Raises:
        InputError: as `LanguageModelEncoder`.
    """
    base, adapters = _names(argument, "last_token")
    return LanguageModelEncoder(base, adapters, LAST_TOKEN, instruction=instruction, max_tokens=max_tokens, dtype=dtype)


def _names(argument: str, word: str) -> tuple[str, list[str]]:
    base, *adapters = (name.strip() for name in argument.split(","))
    if not all((base, *adapters)):
        raise InputError(f"text_encoder '{word}:{argument}' must be {word}:BASE or {word}:BASE,ADAPTER,...")
    return base, adapters


def _loaded(name: str, what: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except InputError:
        raise
    except Exception as error:  # the hub, the file system and each library raise their own types
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"text_encoder {name!r}: {what} does not load: {type(error).__name__}: {reason}; give a folder that holds "
            "it, or a hub name that is spelt right, with a network or a filled cache (and a login for a gated model)"
        ) from error


def _load(name: str, base: str, dtype: str) -> tuple[Any, Any]:
    """The base model and its tokenizer."""
    try:
        import torch
        from transformers import AutoConfig, AutoModel, AutoTokenizer
    except ImportError as error:
        raise InputError(
            f"text_encoder {name!r}: transformers does not import ({error}); run `pip install transformers`"
        ) from error
    config = _loaded(name, base, lambda: AutoConfig.from_pretrained(base, trust_remote_code=False))
    if config.model_type not in FAMILIES:
        raise InputError(
            f"text_encoder {name!r}: architecture {config.model_type!r} is not known here, and might run with another "
            f"attention than asked for; known: {', '.join(FAMILIES)}"
        )
    if (Path(base) / "adapter_config.json").is_file():
        raise InputError(
            f"text_encoder {name!r}: {base} holds an adapter; name its base model first, then this folder as an adapter"
        )
    tokenizer = _loaded(
        name, f"the tokenizer of {base}", lambda: AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    )
    model = _loaded(
        name,
        base,
        lambda: AutoModel.from_pretrained(
            base,
            config=config,
            dtype=getattr(torch, dtype),
            attn_implementation=FAMILIES[config.model_type],
            trust_remote_code=False,
        ),
    )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise InputError(f"text_encoder {name!r}: {base} is an adapter; name its base model first, then the adapter")
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


def _merged(model: Any, name: str, adapter: str) -> tuple[Any, str]:
    """The model with a LoRA adapter merged into its weights, and the base model that the adapter names."""
    try:
        from peft import PeftConfig, PeftModel
    except ImportError as error:
        raise InputError(
            f"text_encoder {name!r}: adapters need peft, which does not import ({error}); "
            'run `pip install -e ".[llm]"` in the clone'
        ) from error
    config = _loaded(name, adapter, lambda: PeftConfig.from_pretrained(adapter))
    if str(getattr(config.peft_type, "value", config.peft_type)) != "LORA":
        raise InputError(
            f"text_encoder {name!r}: {adapter} is no LoRA adapter but {config.peft_type}; only LoRA is merged"
        )

    def load() -> Any:
        wrapped = PeftModel(model, config)
        return wrapped, wrapped.load_adapter(adapter, "default")

    wrapped, result = _loaded(name, adapter, load)
    astray = [*result.missing_keys, *result.unexpected_keys]
    if astray:
        raise InputError(
            f"text_encoder {name!r}: {adapter} does not fit the base model: {len(astray)} weights have no counterpart, "
            f"for example {astray[0]}; name the model that it was trained on"
        )
    return wrapped.merge_and_unload(), str(config.base_model_name_or_path)


def _original_name(base: str, model: Any) -> str:
    """The name under which a saved model was published, if its config says so."""
    file = Path(base) / "config.json"
    if file.is_file():
        return str(json.loads(file.read_text(encoding="utf-8")).get("_name_or_path", ""))
    return str(model.config._name_or_path)


def _revision(names: Sequence[str], model: Any) -> str:
    """Weights of folders by their content, others by name, the base by its commit."""
    parts = [
        folder_revision(Path(name)) if Path(name).is_dir() else f"{name}@{getattr(model.config, '_commit_hash', None)}"
        for name in names
    ]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]
