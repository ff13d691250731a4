"""From text vectors to item embeddings: the adapter, and the fusion of its output with the ID embedding."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from recbole_pad.errors import InputError
from recbole_pad.registry import pick

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "linear": nn.Identity,
    "tanh": nn.Tanh,
}


class TextAdapter(nn.Module):
    """Linear(D -> d), activation, then `n_layers` times [Dropout, Linear(d -> d), activation].

    The heads of other models have no activation after the last layer, or wider layers before it.

    Args:
        text_width: D, width of the text vectors.
        hidden_size: d.
        n_layers: how many hidden layers follow the projection, >= 0; published: 4.
        activation: a word of `ACTIVATIONS`; published: gelu.
        dropout: probability in [0, 1).
        ends_linear: no activation after the last layer.
        inner_width: width of all layers but the last; None: d.

    Raises:
        InputError: unknown activation or negative `n_layers`.

    Source: PAD, alignment phase. Weights Xavier normal, biases zero.
    """

    def __init__(
        self,
        text_width: int,
        hidden_size: int,
        n_layers: int,
        activation: str,
        dropout: float,
        ends_linear: bool = False,
        inner_width: int | None = None,
    ) -> None:
        super().__init__()
        if n_layers < 0:
            raise InputError(f"adapter_layers: {n_layers} is negative; give 0 (projection only) or more")
        make_activation = pick(ACTIVATIONS, activation, what="adapter_activation")
        widths = [text_width, *[inner_width or hidden_size] * n_layers, hidden_size]
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(widths):
            layers += [nn.Dropout(dropout), _xavier_linear(n_in, n_out), make_activation()]
        self.layers = nn.Sequential(*layers[1 : -1 if ends_linear else None])

    def forward(self, text_vectors: Tensor) -> Tensor:
        """(..., D) -> (..., d)."""
        text_emb: Tensor = self.layers(text_vectors)
        return text_emb

    @torch.no_grad()
    def match_scale(self, text_vectors: Tensor, std: float) -> None:
        """Rescale the LAST linear layer in place, so that the output's standard deviation equals `std`.

        The step is exact for linear and relu; for the others it is repeated, up to 10 times, until within
        0.1 %; within 5 % is good enough.

        Args:
            text_vectors: the rows to measure on (no padding row), shape (m, D). Dropout is off meanwhile.
            std: wanted standard deviation over all entries of the (m, d) output, > 0.

        Raises:
            InputError: if `std` is not positive, the output is constant, or no scale gets within 5 % (tanh
                stays below 1); the weights are then as before.
        """
        last = [layer for layer in self.layers if isinstance(layer, nn.Linear)][-1]
        weight, bias = last.weight.clone(), last.bias.clone()
        was_training = self.training
        self.eval()
        reached = self(text_vectors).std(correction=0).item()
        scale = 1.0
        for _ in range(10):
            if not (reached > 0 and std > 0) or abs(reached - std) <= 0.001 * std:
                break
            scale *= std / reached
            last.weight.copy_(weight * scale)
            last.bias.copy_(bias * scale)
            reached = self(text_vectors).std(correction=0).item()
        self.train(was_training)
        if not abs(reached - std) <= 0.05 * std or std <= 0:
            last.weight.copy_(weight)
            last.bias.copy_(bias)
            raise InputError(
                f"the adapter's output cannot be scaled to standard deviation {std} (reached {reached:.3g}); "
                f"give a positive one that the activation can produce, and text vectors that differ"
            )


class ConcatFusion(nn.Module):
    """v = act(W [e' ; t] + c), dropout on the input; W: 2d -> d.

    Args:
        hidden_size: d.
        activation: a word of `ACTIVATIONS`; published: gelu.
        dropout: probability in [0, 1) on the concatenated input.
        init: `xavier` (published), or `sum`: two identity blocks, so that it starts as act(e' + t).

    Raises:
        InputError: unknown activation or init.

    Source: PAD, alignment phase.
    """

    def __init__(self, hidden_size: int, activation: str, dropout: float, init: str = "xavier") -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = _xavier_linear(2 * hidden_size, hidden_size)
        self.activation = pick(ACTIVATIONS, activation, what="fusion_activation")()
        pick(FUSION_INITS, init, what="fusion_init")(self.linear)

    def forward(self, id_emb: Tensor, text_emb: Tensor) -> Tensor:
        """Two times (n, d) -> (n, d)."""
        fused: Tensor = self.activation(self.linear(self.dropout(torch.cat([id_emb, text_emb], dim=-1))))
        return fused


class AddFusion(nn.Module):
    """v = e' + t. Takes `ConcatFusion`'s arguments and needs none of them; it has no parameters."""

    def __init__(self, hidden_size: int, activation: str, dropout: float, init: str = "xavier") -> None:
        super().__init__()

    def forward(self, id_emb: Tensor, text_emb: Tensor) -> Tensor:
        """Two times (n, d) -> (n, d)."""
        return id_emb + text_emb


def _xavier_linear(n_in: int, n_out: int) -> nn.Linear:
    layer = nn.Linear(n_in, n_out)
    _xavier(layer)
    return layer


def _xavier(layer: nn.Linear) -> None:
    nn.init.xavier_normal_(layer.weight)
    nn.init.zeros_(layer.bias)


@torch.no_grad()
def _identity_blocks(layer: nn.Linear) -> None:
    identity = torch.eye(layer.out_features)
    layer.weight.copy_(torch.cat([identity, identity], dim=1))
    nn.init.zeros_(layer.bias)


FUSION_INITS: dict[str, Callable[[nn.Linear], None]] = {"xavier": _xavier, "sum": _identity_blocks}
FUSIONS: dict[str, type[ConcatFusion] | type[AddFusion]] = {"concat": ConcatFusion, "add": AddFusion}
