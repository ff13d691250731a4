"""Diagnostics of a run: the geometry of the item spaces after each phase, and the items ranked best and worst.

What is measured, and on which sample: docs/method.md section 7. Only the first process measures; nothing here
waits for the others.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recbole_pad.data.item_file import titles
from recbole_pad.distributed import Processes
from recbole_pad.evaluation.collector import Ranks
from recbole_pad.evaluation.diagnostics import (
    anisotropy,
    effective_rank,
    mmd_by_kernel,
    nearest_neighbours,
    neighbour_overlap,
    preserved_geometry,
    principal_plane,
    spectrum,
    unseen_of_same_bin,
)
from recbole_pad.evaluation.evaluate import ItemGroups
from recbole_pad.evaluation.item_lists import best_and_hardest
from recbole_pad.model.experts import Expert
from recbole_pad.model.pad import PAD
from recbole_pad.phases import PHASES
from recbole_pad.trainer import PADTrainer

SPACES_FILE = "spaces.npz"
_SEED = 2025  # of the samples: equal for all runs on a dataset, so that their numbers compare
_MAX_ITEMS, _MAX_USERS = 5000, 2000
_MMD_ITEMS = _PLANE_ITEMS = 2000
_SHARES = 64  # of a spectrum that are kept
_K = 10  # nearest neighbours
_OVERLAPS = {"id_text": ("id", "text"), "aligned_text": ("aligned", "text"), "aligned_id": ("aligned", "id")}


def follow(trainer: Any, groups: ItemGroups | None, valid_data: Any) -> Diagnostics | None:
    """Diagnostics of a run that is about to start, where there are any.

    There are none with ``diagnostics: False``, in other processes than the first, without `groups`, for fewer than two
    trained items, and for a model without item vectors.

    Args:
        trainer: before its `fit`; a `PADTrainer` tells when a phase begins, from then on.
        groups: item frequencies and histories.
        valid_data: the validation loader.
    """
    if groups is None or not Processes.of(trainer.config).is_first or (groups.counts > 0).sum() < 2:
        return None
    if not isinstance(trainer, PADTrainer):
        has_space = _id_table(trainer.model, len(groups.counts)) is not None
        wanted = trainer.config["diagnostics"] is not False  # a stock model has the key only where the user sets it
        return Diagnostics(trainer.model, groups) if has_space and wanted else None
    if not trainer.settings.diagnostics:
        return None
    diagnostics = PADDiagnostics(trainer.model, groups, valid_data, trainer.config["eval_args"]["split"])
    trainer.phase_begins = diagnostics.begin
    return diagnostics


class Diagnostics:
    """The ID space of a stock model.

    Attributes:
        items: sampled item ids, seen in training, in random order, shape (n,).
    """

    def __init__(self, model: Any, groups: ItemGroups) -> None:
        self._model, self._groups = model, groups
        seen = np.flatnonzero(groups.counts > 0)
        self.items = np.random.default_rng(_SEED).permutation(seen)[:_MAX_ITEMS]
        self._plane: dict[str, Tensor] = {}

    @torch.no_grad()
    def report(self) -> dict[str, Any]:
        """Measures of the model as it is now, for result.json; numbers that are not defined are None."""
        spaces = self._spaces()
        self._keep(spaces)
        return {"n_items": len(self.items), "spaces": {name: _measures(space) for name, space in spaces.items()}}

    def write(self, path: Path) -> None:
        """Write the sampled items and their places in the plane of each space, a numpy archive without pickles.

        ``item`` (n,), ``count`` (train frequency), ``bin``, and float32 (n, 2) of each space of the last phase that has
        an aligned expert; of the last phase, if none has.
        """
        items = self.items[:_PLANE_ITEMS]
        planes = {name: principal_plane(vectors) for name, vectors in self._plane.items()}
        columns = {"item": items, "count": self._groups.counts[items], "bin": self._groups.bins[items], **planes}
        with path.open("wb") as file:
            np.savez_compressed(file, **columns)

    def _spaces(self) -> dict[str, Tensor]:
        table = _id_table(self._model, len(self._groups.counts))
        return {} if table is None else {"id": _at(table, self.items)}

    def _keep(self, spaces: dict[str, Tensor]) -> None:
        if "aligned" in spaces or "aligned" not in self._plane:
            self._plane = {
                name: spaces[name][:_PLANE_ITEMS].clone() for name in ("id", "text", "aligned") if name in spaces
            }


class PADDiagnostics(Diagnostics):
    """All item spaces of a PAD model, and how they change from phase to phase."""

    _model: PAD

    def __init__(self, model: PAD, groups: ItemGroups, valid_data: Any, split: dict[str, Any]) -> None:
        super().__init__(model, groups)
        self._ids = torch.from_numpy(self.items).to(model.catalogue.counts.device)
        histories, targets = _held_out(groups, valid_data, split)
        trained_bins = np.where(groups.counts > 0, groups.bins, 0)
        drawn = unseen_of_same_bin(histories, targets, trained_bins, _SEED)
        # Of the ID tables only these rows are looked at; place 0 is padding.
        self._needed = np.unique(np.concatenate([[0], self.items, targets, drawn, *histories]))
        self._histories = [np.searchsorted(self._needed, items) for items in histories]
        self._others = {
            f"tau_{name}": np.searchsorted(self._needed, others)
            for name, others in (("target", targets), ("random", drawn))
        }
        self._first_ids: Tensor | None = None
        self._mmd_before: dict[str, float | None] | None = None
        self._text: tuple[dict[str, Any], Tensor | None] | None = None

    @torch.no_grad()
    def begin(self, phase: str) -> None:
        """Before the first phase with an aligned expert: what it starts from. Called when start values are in place."""
        if "align" not in PHASES[phase].members(self._model.settings.experts) or self._mmd_before is not None:
            return
        self._mmd_before = self._mmd()
        if "rec" in self._model.trained_before:
            self._first_ids = _own_rows(_vectors_of(self._model, "rec"), self._needed)

    @torch.no_grad()
    def report(self) -> dict[str, Any]:
        """As of a stock model; with MMD, kept geometry, overlaps and the gate where the present phase has them."""
        spaces = self._spaces()
        self._keep(spaces)
        measured = {name: self._measured(name, space) for name, space in spaces.items()}
        near = {name: neighbours for name, (_, neighbours) in measured.items() if neighbours is not None}
        measures = {name: own for name, (own, _) in measured.items()}
        report: dict[str, Any] = {"n_items": len(self.items), "spaces": measures}
        if "aligned" in spaces and self._mmd_before is not None:
            report["mmd"] = {
                "n_items": len(self.items[:_MMD_ITEMS]),
                "before": self._mmd_before,
                "after": self._mmd(),
            }
        if "aligned" in spaces and self._first_ids is not None:
            report["kept"] = self._kept(self._first_ids)
        report["text_overlap"] = {
            name: neighbour_overlap(near[one], near[two])
            for name, (one, two) in _OVERLAPS.items()
            if one in near and two in near
        }
        if "gate" in self._model.phase_modules() and len(self._model.settings.experts) > 1:
            report["gate"] = self._gate()
        return report

    def _members(self) -> tuple[str, ...]:
        return PHASES[self._model.phase].members(self._model.settings.experts)

    def _spaces(self) -> dict[str, Tensor]:
        """Vectors of the sampled items in each space of the present phase, shape (n, d) each.

        A phase that scores without the ID expert has the ID space of phase 1, if there was one.
        """
        model, ids, members = self._model, self._ids, self._members()
        spaces: dict[str, Tensor] = {}
        if "rec" in members:
            spaces["id"] = _vectors_of(model, "rec")(ids)
        elif self._first_ids is not None:
            spaces["id"] = self._first_ids[np.searchsorted(self._needed, self.items)]
        if model.text_fingerprint is not None:
            spaces["text"] = model.catalogue.text(ids)
        if "align" in members:
            spaces["text_adapted"] = _adapted(model, ids)
            spaces["aligned"] = _vectors_of(model, "align")(ids)
        if "llm" in members:
            spaces["llm"] = _vectors_of(model, "llm")(ids)
        return {name: space.float().cpu() for name, space in spaces.items()}

    def _measured(self, name: str, space: Tensor) -> tuple[dict[str, Any], Tensor | None]:
        """Measures of a space, and its neighbours if they are compared; of the frozen text vectors computed once."""
        if name == "text" and self._text is not None:
            return self._text
        is_compared = len(space) > _K and any(name in pair for pair in _OVERLAPS.values())
        measured = _measures(space), nearest_neighbours(space, _K) if is_compared else None
        if name == "text":
            self._text = measured
        return measured

    def _mmd(self) -> dict[str, float | None]:
        """Between the adapted text vectors and the ID rows of the aligned expert, of the first sampled items."""
        ids = _own_rows(_vectors_of(self._model, "align").ids, self.items[:_MMD_ITEMS])
        text = _adapted(self._model, self._ids[:_MMD_ITEMS]).float().cpu()
        return {kernel: _defined(value) for kernel, value in mmd_by_kernel(text, ids).items()}

    def _kept(self, first: Tensor) -> dict[str, float | None]:
        """How much of phase 1's ID space is left in the aligned expert's own ID table."""
        now = _own_rows(_vectors_of(self._model, "align").ids, self._needed)
        sample = np.searchsorted(self._needed, self.items)
        overlap = None
        if len(sample) > _K:
            overlap = neighbour_overlap(*(nearest_neighbours(table[sample], _K) for table in (first, now)))
        taus = {
            name: _defined(preserved_geometry(first, now, self._histories, others))
            for name, others in self._others.items()
        }
        return {"overlap": overlap, **taus}

    def _gate(self) -> dict[str, Any]:
        """Mean weight of each expert over the items of a frequency bin, and mean share of the item's weights."""
        weights = self._model.gate_weights().float().cpu().numpy()[1:]
        bins = self._model.catalogue.bins.cpu().numpy()[1:]
        shares = weights / weights.sum(axis=1, keepdims=True)
        numbers = [int(number) for number in np.unique(bins)]
        return {
            "experts": list(self._model.settings.experts),
            **{
                name: {str(number): [float(mean) for mean in table[bins == number].mean(axis=0)] for number in numbers}
                for name, table in (("bins", weights), ("shares", shares))
            },
        }


def item_report(dataset: Any, groups: ItemGroups, ranks: Ranks) -> dict[str, Any]:
    """The items that are ranked best and worst when they are targets, history masked, with their texts.

    Args:
        dataset: RecBole's dataset.
        groups: item frequencies.
        ranks: of the test targets.

    Returns:
        As `best_and_hardest`, with the item's token, ``title`` and train ``frequency``.
    """
    lists = best_and_hardest(ranks.masked, ranks.target)
    tokens = dataset.field2id_token[dataset.iid_field]
    entries = [entry for name in ("best", "hardest") for entry in lists[name]]
    texts = titles(dataset, {str(tokens[entry["item"]]) for entry in entries})

    def named(entry: dict[str, Any]) -> dict[str, Any]:
        token, frequency = str(tokens[entry["item"]]), int(groups.counts[entry["item"]])
        return {**entry, "item": token, "title": texts[token], "frequency": frequency}

    return {
        "at_least": lists["at_least"],
        **{name: [named(entry) for entry in lists[name]] for name in ("best", "hardest")},
    }


def _held_out(
    groups: ItemGroups, valid_data: Any, split: dict[str, Any]
) -> tuple[list[NDArray[np.int64]], NDArray[np.int64]]:
    """Histories and validation targets of sampled users whose target was seen in training."""
    dataset = valid_data._dataset
    users = dataset.inter_feat[dataset.uid_field].numpy()
    targets = dataset.inter_feat[dataset.iid_field].numpy()
    usable = np.flatnonzero(groups.counts[targets] > 0)
    rows = np.random.default_rng(_SEED).permutation(usable)[:_MAX_USERS]
    pairs = groups.pairs(split, "valid")
    place, items = (column.numpy() for column in pairs(torch.from_numpy(users[rows]), torch.from_numpy(rows)))
    histories = np.split(items, np.cumsum(np.bincount(place, minlength=len(rows)))[:-1])
    return histories if len(rows) else [], targets[rows]


def _measures(space: Tensor) -> dict[str, Any]:
    shares = spectrum(space)
    return {
        "width": space.size(1),
        "anisotropy": _defined(anisotropy(space)),
        "effective_rank": _defined(effective_rank(shares)),
        "spectrum": [round(share, 6) for share in shares[:_SHARES]],
    }


def _id_table(model: Any, n_items: int) -> Tensor | None:
    """The ID embeddings of a stock model, shape (>= V, d), if it keeps them where RecBole's models do."""
    embedding = getattr(model, "item_embedding", None)
    return embedding.weight if isinstance(embedding, nn.Embedding) and len(embedding.weight) >= n_items else None


def _vectors_of(model: PAD, expert: str) -> Any:
    """The module of an expert's item vectors."""
    return cast(Expert, model.experts[expert]).items


def _own_rows(table: Any, items: NDArray[np.integer]) -> Tensor:
    return _at(table.weight, items)


def _at(table: Tensor, items: NDArray[np.integer]) -> Tensor:
    """Copies of some rows of a table on the CPU."""
    return table.detach()[torch.from_numpy(items).to(table.device)].float().cpu()


def _adapted(model: PAD, item_ids: Tensor) -> Tensor:
    """The aligned expert's text half, dropout off."""
    adapter = _vectors_of(model, "align").text.adapter
    training = adapter.training
    adapter.eval()
    try:
        adapted: Tensor = adapter(model.catalogue.text(item_ids))
    finally:
        adapter.train(training)
    return adapted


def _defined(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
