"""LLM2Vec one text at a time: a Llama forward pass written out in loops, without padding and without a mask."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def states(model: Any, ids: list[int], causal: bool = False) -> Tensor:
    """Last hidden states of one sequence, shape (N, D), by the weights of a transformers `LlamaModel`."""
    config = model.config
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    width = config.hidden_size // heads
    weights = {name: weight.double() for name, weight in model.state_dict().items()}
    theta = config.rope_parameters["rope_theta"] if hasattr(config, "rope_parameters") else config.rope_theta
    x = weights["embed_tokens.weight"][ids]
    for layer in range(config.num_hidden_layers):
        prefix = f"layers.{layer}."
        h = _norm(x, weights[prefix + "input_layernorm.weight"], config.rms_norm_eps)
        q, k, v = (h @ weights[f"{prefix}self_attn.{name}_proj.weight"].T for name in "qkv")
        out = torch.zeros(len(ids), heads * width, dtype=torch.float64)
        for head in range(heads):
            own = slice(head * width, (head + 1) * width)
            shared = slice(head // (heads // groups) * width, (head // (heads // groups) + 1) * width)
            for i in range(len(ids)):
                seen = range(i + 1) if causal else range(len(ids))
                scores = torch.stack(
                    [_turned(q[i, own], i, theta) @ _turned(k[j, shared], j, theta) / width**0.5 for j in seen]
                )
                for j, share in zip(seen, torch.softmax(scores, dim=0), strict=True):
                    out[i, own] += share * v[j, shared]
        x = x + out @ weights[prefix + "self_attn.o_proj.weight"].T
        h = _norm(x, weights[prefix + "post_attention_layernorm.weight"], config.rms_norm_eps)
        gate, up, down = (weights[f"{prefix}mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
        x = x + (torch.nn.functional.silu(h @ gate.T) * (h @ up.T)) @ down.T
    return _norm(x, weights["norm.weight"], config.rms_norm_eps)


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt((x * x).mean(dim=-1, keepdim=True) + eps) * weight


def _turned(vector: Tensor, position: int, theta: float) -> Tensor:
    """Rotary position: pairs (n, n + half) turned by position / theta^(n / half)."""
    half = len(vector) // 2
    out = vector.clone()
    for n in range(half):
        angle = torch.tensor(position / theta ** (n / half), dtype=torch.float64)
        a, b = vector[n], vector[n + half]
        out[n] = a * angle.cos() - b * angle.sin()
        out[n + half] = b * angle.cos() + a * angle.sin()
    return out


MARK = "!@#$%^&*()"  # what the package puts between instruction and text


def inputs(tokenizer: Any, before: str, behind: str, instruction: str, text: str) -> tuple[list[int], int]:
    """Token ids of a text, and how many of the last ones enter the mean, by the steps of llm2vec 0.2.3.

    `_convert_to_str`, `prepare_for_tokenization` (before, behind), `tokenize`; max_length 512, doc_max_length 400.
    """

    def ids_of(words: str, special: bool) -> list[int]:
        return list(tokenizer(words, add_special_tokens=special, truncation=True, max_length=512)["input_ids"])

    n_tokens = len(ids_of(text, False))
    while n_tokens > 400:
        kept = int(len(text.split()) * (400 / n_tokens))
        text = " ".join(text.split()[:kept])
        n_tokens = len(ids_of(text, False))
    both = f"{instruction.strip()} {MARK}{text}" if instruction else f"{MARK}{text}"
    prepared = before + both.strip() + behind if before or behind else both
    parts = prepared.split(MARK)
    ids = ids_of("".join(parts), True)
    mask = [0] * len(ids)
    own = len(ids_of(parts[1], False))
    mask[-own:] = [1] * own
    return ids, sum(mask)
