"""WhitenRec: text vectors alone, whitened in full and group by group, through one head."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from recbole_pad.data.text_cache import MappedVectors
from recbole_pad.model.backbone import Backbone
from recbole_pad.model.items import SCALE_ROWS, Catalogue, TextVectors, text_vectors_of
from recbole_pad.model_keys import whole
from recbole_pad.nn.adapter import TextAdapter
from recbole_pad.rivals.tower import Tower


class SummedVectors(nn.Module):
    """The sum of the vectors that several modules give."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, item_ids: Tensor | None) -> Tensor:
        """Vectors of the items, or of all; (n, d)."""
        return torch.stack([part(item_ids) for part in self.parts]).sum(dim=0)


class WhitenRec(Tower):
    """v_i = head(z_i) + head(z'_i): z whitened in full, z' within G groups of columns; one head for both (WhitenRec+).

    Full whitening makes items as different as it can; relaxed whitening keeps what the groups of columns have in
    common, and with it more of the text's own similarities. ``relaxed_groups: 1`` leaves the second term out
    (WhitenRec).

    Source: Zhang et al. 2024, "Are ID Embeddings Necessary? Whitening Pre-trained Text Embeddings for Effective
    Sequential Recommendation", ICDE; ZCA whitening, see `recbole_pad.nn.text_transforms.group_whiten`. To be doubted:
    the size of the head (there an MLP, here one hidden layer of d units) and G, for the authors' code was not at hand.
    """

    starts_as = "llm"

    def read_keys(self, config: Any) -> None:
        """As of `Tower`."""
        self.relaxed_groups = whole(config, "relaxed_groups", 1, 100_000)

    def catalogue_text(self, dataset: Any) -> Tensor | MappedVectors:
        """Fully whitened text vectors."""
        return self._whitened(dataset, 1)

    def _whitened(self, dataset: Any, n_groups: int) -> Tensor | MappedVectors:
        return text_vectors_of(
            dataset, replace(self.settings, text_transform=f"group_whiten:{n_groups}"), self.processes
        )

    def make_items(self, backbone: Backbone, dataset: Any) -> nn.Module:
        """The head on both whitened vectors of an item."""
        settings, catalogues = self.settings, [self.catalogue]
        if self.relaxed_groups > 1:
            self.relaxed = Catalogue.of(dataset, self._whitened(dataset, self.relaxed_groups))
            catalogues.append(self.relaxed)
        head = TextAdapter(
            self.catalogue.text_width,
            backbone.width,
            settings.adapter_layers,
            settings.adapter_activation,
            settings.adapter_dropout,
            ends_linear=True,
        )
        if settings.adapter_init == "matched":
            sample = torch.cat([catalogue.text_sample(SCALE_ROWS) for catalogue in catalogues])
            head.match_scale(sample, float(backbone.initial_items[1:].std()))
        return SummedVectors(*(TextVectors(head, catalogue) for catalogue in catalogues))
