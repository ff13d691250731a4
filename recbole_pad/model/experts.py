"""One expert: item vectors and the user encoder that reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from recbole_pad.backbone_classes import is_own
from recbole_pad.config import PADConfig
from recbole_pad.model.backbone import Backbone
from recbole_pad.model.backbone_laws import check_laws
from recbole_pad.model.compiling import compile_in_place
from recbole_pad.model.decayed_history import DecayedHistory
from recbole_pad.model.items import SCALE_ROWS, AlignedVectors, Catalogue, IDVectors, TextVectors, UnitTextVectors
from recbole_pad.model.transitions import Transitions
from recbole_pad.nn.adapter import FUSIONS, TextAdapter
from recbole_pad.nn.fast_layers import use_fast_layers
from recbole_pad.phases import EXPERTS
from recbole_pad.seeding import seeded

_MATCH_LENGTH = 4.0  # a cosine of 1 scores 16: of the size of the trained experts' scores, so that the gate starts fair


class Expert(nn.Module):
    """Item vectors v_k and a user encoder U_k; its score is h_k(u) . v_k(i).

    Args:
        items: maps item ids (n,) or None (all) to vectors (n, d).
        backbone: the user encoder.
    """

    def __init__(self, items: nn.Module, backbone: Backbone | DecayedHistory) -> None:
        super().__init__()
        self.items = items
        self.backbone = backbone

    @property
    def is_trained(self) -> bool:
        """Whether the expert has parameters at all."""
        return any(True for _ in self.parameters())

    @torch.no_grad()
    def start_from(self, trained: Expert) -> None:
        """Copy the ID vectors and the encoder of a trained ID expert into this aligned one (e -> e', U -> U_2)."""
        assert isinstance(self.items, AlignedVectors)
        assert isinstance(trained.items, IDVectors)
        self.items.ids.weight.copy_(trained.items.weight)
        self.backbone.load_state_dict(trained.backbone.state_dict())


def build_experts(
    names: Iterable[str], config: Any, dataset: Any, settings: PADConfig, catalogue: Catalogue
) -> nn.ModuleDict:
    """Build the experts, in alphabetical order of their names; arguments as of `build_expert`.

    An expert without ID vectors needs its backbone's own item table for a moment, as the source of start values: it is
    built first, while the tables of the others are not there yet.
    """
    order = sorted(names, key=lambda name: (name in _WITH_ID_TABLE, name))
    built = {name: build_expert(name, config, dataset, settings, catalogue) for name in order}
    return nn.ModuleDict({name: built[name] for name in sorted(built)})


def build_expert(
    name: str, config: Any, dataset: Any, settings: PADConfig, catalogue: Catalogue
) -> Expert | Transitions:
    """Build an expert; its start values depend on the seed and on its name alone.

    Args:
        name: ``rec``, ``align``, ``llm``, ``match`` or ``markov``.
        config: RecBole's config, for the backbone.
        dataset: RecBole's dataset, for the backbone.
        settings: PAD's settings.
        catalogue: counts, bins and text vectors of the items.
    """
    with seeded(start_seed(name, settings.seed)):
        if name in _UNTRAINED:
            return _UNTRAINED[name](dataset, settings, catalogue)
        make_items = _TRAINED_ITEMS[name]
        return trained_expert(lambda backbone: make_items(backbone, settings, catalogue), config, dataset, settings)


def start_seed(name: str, seed: int) -> int:
    """The seed of an expert's start values, from its name and the run's seed."""
    return seed * len(EXPERTS) + EXPERTS.index(name)


def trained_expert(
    make_items: Callable[[Backbone], nn.Module], config: Any, dataset: Any, settings: PADConfig
) -> Expert:
    """An expert with a backbone; its start values come from the global generators.

    Args:
        make_items: gives the item vectors, for the backbone whose start values of the item table are still there.
        config: RecBole's config, for the backbone.
        dataset: RecBole's dataset, for the backbone.
        settings: `backbone`, `positions` and `compile`.

    Raises:
        InputError: if the backbone is a user's own class that PAD cannot rely on.
    """
    backbone = Backbone(settings.backbone, config, dataset, settings.positions)
    if is_own(settings.backbone):
        check_laws(settings.backbone, backbone.to(config["device"]), int(config["MAX_ITEM_LIST_LENGTH"]))
    items = make_items(backbone)
    del backbone.initial_items
    use_fast_layers(items)
    if settings.compile:
        compile_in_place(backbone.core)
    return Expert(items, backbone)


def id_vectors(backbone: Backbone, settings: PADConfig, catalogue: Catalogue) -> IDVectors:
    """Item vectors of the ID expert."""
    return IDVectors(backbone.initial_items, catalogue, settings.unseen_items)


def text_vectors(backbone: Backbone, settings: PADConfig, catalogue: Catalogue) -> TextVectors:
    """Item vectors of the text expert."""
    adapter = TextAdapter(
        catalogue.text_width,
        backbone.width,
        settings.adapter_layers,
        settings.adapter_activation,
        settings.adapter_dropout,
    )
    if settings.adapter_init == "matched":
        adapter.match_scale(catalogue.text_sample(SCALE_ROWS), float(backbone.initial_items[1:].std()))
    return TextVectors(adapter, catalogue)


def aligned_vectors(backbone: Backbone, settings: PADConfig, catalogue: Catalogue) -> AlignedVectors:
    """Item vectors of the aligned expert."""
    ids = IDVectors(backbone.initial_items, catalogue, settings.unseen_items, settings.id_dropout)
    fusion = FUSIONS[settings.fusion](
        backbone.width, settings.fusion_activation, settings.fusion_dropout, settings.fusion_init
    )
    return AlignedVectors(ids, text_vectors(backbone, settings, catalogue), fusion)


def _match(dataset: Any, settings: PADConfig, catalogue: Catalogue) -> Expert:
    train = dataset.train_histories if settings.match_metric == "plda" else None
    return Expert(UnitTextVectors(catalogue, _MATCH_LENGTH, train), DecayedHistory(settings.match_decay))


def _markov(dataset: Any, settings: PADConfig, catalogue: Catalogue) -> Transitions:
    return Transitions(dataset.train_histories, len(catalogue.counts), settings.markov_decay)


_UNTRAINED: dict[str, Callable[[Any, PADConfig, Catalogue], Expert | Transitions]] = {
    "match": _match,
    "markov": _markov,
}
_TRAINED_ITEMS: dict[str, Callable[[Backbone, PADConfig, Catalogue], nn.Module]] = {
    "rec": id_vectors,
    "align": aligned_vectors,
    "llm": text_vectors,
}
_WITH_ID_TABLE = {"rec", "align"}
