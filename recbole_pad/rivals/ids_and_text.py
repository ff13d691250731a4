"""Item vectors from IDs, from text, or from both: the models that differ in nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from recbole_pad.model.backbone import Backbone
from recbole_pad.model.experts import aligned_vectors, id_vectors, text_vectors
from recbole_pad.model.items import AlignedVectors, IDVectors, TextVectors
from recbole_pad.model_keys import number, word
from recbole_pad.nn.mmd import info_nce
from recbole_pad.rivals.tower import Tower, TrainedBatch


class IDRec(Tower):
    """v_i = e_i: RecBole's backbone, trained at all positions.

    With SASRec and ``loss: ce`` this is the strong SASRec of the studies that trained it like BERT4Rec. From one seed
    it starts as PAD's ID expert, and its loss is that of PAD's phase ``pretrain``.

    Source: the name, Yuan et al. 2023, "Where to Go Next for Recommender Systems? ID- vs. Modality-based Recommender
    Models Revisited", SIGIR, arXiv 2303.13835. The training, Klenitskiy and Vasilev 2023, "Turning Dross Into Gold
    Loss: is BERT4Rec really better than SASRec?", RecSys, arXiv 2309.07602; Petrov and Macdonald 2023, gSASRec, RecSys.
    """

    reads_text = False

    def make_items(self, backbone: Backbone, dataset: Any) -> nn.Module:
        """ID vectors."""
        return id_vectors(backbone, self.settings, self.catalogue)


class MoRec(Tower):
    """v_i = adapter(text vector of i): no ID, and a frozen text encoder.

    From one seed it starts as PAD's text expert, `llm`.

    Source: Yuan et al. 2023, SIGIR, arXiv 2303.13835, the variant with frozen item representations. Their main variant
    trains the text encoder as well, which is out of reach here: text vectors are frozen for every model.
    """

    starts_as = "llm"

    def make_items(self, backbone: Backbone, dataset: Any) -> nn.Module:
        """Adapted text vectors."""
        return text_vectors(backbone, self.settings, self.catalogue)


class IDTextSum(Tower):
    """v_i = e_i + adapter(text vector of i).

    Source: the usual fusion of text-aware models (UniSRec's transductive setting, for one); no single paper.
    """

    starts_as = "align"
    fusion = "add"

    def make_items(self, backbone: Backbone, dataset: Any) -> nn.Module:
        """Fused vectors."""
        return aligned_vectors(backbone, replace(self.settings, fusion=self.fusion), self.catalogue)


class IDTextConcat(IDTextSum):
    """v_i = W [e_i ; adapter(text vector of i)] + c.

    Source: the other usual fusion; no single paper. PAD's aligned expert without its alignment loss and first phase.
    """

    fusion = "concat"


class ShadowedIDs(nn.Module):
    """ID vectors alone; the adapted text vectors stand beside them, for a loss that compares the two."""

    def __init__(self, ids: IDVectors, text: TextVectors) -> None:
        super().__init__()
        self.ids, self.text = ids, text

    def forward(self, item_ids: Tensor | None) -> Tensor:
        """ID vectors of the items, or of all; (n, d)."""
        vectors: Tensor = self.ids(item_ids)
        return vectors


class InfoNCEAligned(Tower):
    """ID vectors, each pulled towards the adapted text vector of its item by InfoNCE over the batch's distinct items.

    Scored are the ID vectors alone (``aligned_items: id``), as in the sources: there, text is a signal of training.
    ``aligned_items: fused`` scores both halves, fused as in PAD's aligned expert; this is PAD's phase ``align`` with
    ``align_loss: infonce``, from untrained ID vectors.

    Source: Ren et al. 2024, RLMRec-Con, WWW, arXiv 2310.15950, and the authors' ``lightgcn_plus.py``: there from ID to
    text only, on graph-convolved vectors of users and items, over batches with repeats, through an MLP. Li et al. 2023,
    CTRL, arXiv 2306.02841: symmetric, as here. The default weight is ten times RLMRec's, whose BPR loss is about ten
    times smaller than a full softmax.
    """

    starts_as = "align"
    items: ShadowedIDs | AlignedVectors

    def read_keys(self, config: Any) -> None:
        """As of `Tower`."""
        self.is_fused = word(config, "aligned_items", ("id", "fused")) == "fused"
        self.weight = number(config, "infonce_weight", 0, 1e6)

    def make_items(self, backbone: Backbone, dataset: Any) -> nn.Module:
        """ID vectors beside text vectors, or both fused."""
        if self.is_fused:
            return aligned_vectors(backbone, self.settings, self.catalogue)
        ids = id_vectors(backbone, self.settings, self.catalogue)
        return ShadowedIDs(ids, text_vectors(backbone, self.settings, self.catalogue))

    def extra_loss(self, batch: TrainedBatch) -> Tensor | None:
        """InfoNCE between the two vectors of each distinct item in the batch's histories and targets.

        It is no mean over rows: with several processes each takes the items of all of them.
        """
        if self.weight == 0:
            return None
        positions = batch.items.positions
        own = torch.unique(torch.cat([positions.item_seq.flatten(), positions.target]))
        item_ids = torch.unique(self.processes.concatenated(own if batch.rows else own[:0]))
        item_ids = item_ids[item_ids > 0]
        ids = self.items.ids.own_rows(item_ids)
        if len(item_ids) < 2:
            return ids.sum() * 0.0
        text = self.items.text.adapter(self.catalogue.text(item_ids))
        return self.weight * info_nce(text, ids, self.settings.infonce_temperature)
