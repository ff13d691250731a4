"""LLMInit: text enters through the start values of the ID table, and nowhere else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from recbole_pad.model.backbone import Backbone
from recbole_pad.model.experts import id_vectors
from recbole_pad.model_keys import word
from recbole_pad.nn.text_transforms import transform_text
from recbole_pad.rivals.tower import Tower

INIT_AXES = ("pca", "whiten")
_LEAST_SPREAD = 1e-3  # of the largest standard deviation


@torch.no_grad()
def start_from_text(initial: Tensor, dataset: Any, axes: str) -> None:
    """Overwrite the start values of an ID table by the text vectors' leading principal components, in place.

    They are scaled so that the standard deviation over all items and components is that of the start values. Columns
    for which there is no component, or none with a variance, stay as they are.

    Args:
        initial: start values, shape (V, d), row 0 padding.
        dataset: a split of `PADDataset`, for its text vectors.
        axes: a word of `INIT_AXES`: the components as they are, or each of equal variance.

    Raises:
        InputError: as `transform_text`.
    """
    table = dataset.text_table
    components = transform_text(table.read(), f"{axes}:{min(initial.size(1), table.width)}")[1:].to(initial)
    spread = components.std(dim=0)
    components = components[:, spread > _LEAST_SPREAD * spread.max()]  # the others are rounding: the last ones
    initial[1:, : components.size(1)] = components * (initial[1:].std() / components.std())


class LLMInit(Tower):
    """v_i = e_i, with e_i starting from the text vector of i; the table is then trained freely.

    An item never seen in training keeps its start vector, which its text has made (``unseen_items: raw``).

    Source: Harte et al. 2023, "Leveraging Large Language Models for Sequential Recommendation" (LLM2BERT4Rec,
    LLM2SASRec), RecSys, arXiv 2309.09261: PCA to the hidden size. Zhang et al. 2025, LLMInit, arXiv 2503.01814, choose
    columns by variance instead, for collaborative filtering. The scaling to the usual start values is ours: MiniLM's
    vectors are ten times as large, and PCA's components shrink fast. To be doubted: whether Harte et al. scale.
    """

    def read_keys(self, config: Any) -> None:
        """As of `Tower`."""
        self.init_axes = word(config, "init_axes", INIT_AXES)

    def catalogue_text(self, dataset: Any) -> None:
        """None: text is read once, in `make_items`."""

    def make_items(self, backbone: Backbone, dataset: Any) -> nn.Module:
        """ID vectors that start from text."""
        start_from_text(backbone.initial_items, dataset, self.init_axes)
        return id_vectors(backbone, self.settings, self.catalogue)
