"""Diagnostics of whole runs: which measures a run has, and that they are of the weights that they say they are of."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau

from recbole_pad import checkpoint, diagnose
from recbole_pad.data.histories import n_left_out
from recbole_pad.evaluation.rank_files import read_ranks
from recbole_pad.model.experts import build_expert
from recbole_pad.model.items import Catalogue
from recbole_pad.model.pad import PAD
from recbole_pad.nn.mmd import mk_mmd
from recbole_pad.quick_start import run_recbole
from recbole_pad.trainer import PADTrainer

SPACES = {
    "pretrain": {"id", "text"},
    "align": {"id", "text", "text_adapted", "aligned"},
    "finetune": {"id", "text", "text_adapted", "aligned", "llm"},
}
Settings = Callable[..., dict[str, Any]]


@pytest.fixture
def finished(settings: Settings) -> Callable[..., tuple[dict[str, Any], Path]]:
    """``finished(model="PAD", **changes)``: the content of result.json of a run, and its folder."""

    def make(model: str = "PAD", **changes: Any) -> tuple[dict[str, Any], Path]:
        folder = Path(run_recbole(model, "tiny", None, settings(model, **changes))["run_folder"])
        return json.loads((folder / "result.json").read_text()), folder

    return make


def diagnostics_of(report: dict[str, Any]) -> dict[str, Any]:
    return {phase: entry["diagnostics"] for phase, entry in report["phases"].items()}


def weights(folder: Path, phase: str, expert: str) -> dict[str, torch.Tensor]:
    return checkpoint.load(folder / f"{phase}.pth")["modules"][f"experts.{expert}"]


def mean_cosine(vectors: torch.Tensor) -> float:
    cosines = torch.nn.functional.cosine_similarity(vectors[:, None], vectors[None], dim=2)
    return float(cosines[~torch.eye(len(vectors), dtype=torch.bool)].mean())


def test_each_phase_has_the_spaces_of_its_experts(finished: Callable[..., Any]):
    report, _ = finished()
    found = diagnostics_of(report)
    assert {phase: set(entry["spaces"]) for phase, entry in found.items()} == SPACES
    for phase, entry in found.items():
        assert entry["n_items"] == 22  # of 25, three are never seen in training
        assert ("mmd" in entry, "kept" in entry, "gate" in entry) == (
            phase != "pretrain",
            phase != "pretrain",
            phase == "finetune",
        )
        for space in entry["spaces"].values():
            assert len(space["spectrum"]) <= 64
            assert sum(space["spectrum"]) == pytest.approx(1, abs=1e-4)
            assert -1 <= space["anisotropy"] <= 1
            assert 1 <= space["effective_rank"] <= min(space["width"], 22)
    assert set(found["pretrain"]["text_overlap"]) == {"id_text"}
    assert set(found["align"]["text_overlap"]) == {"id_text", "aligned_text", "aligned_id"}
    assert all(-1 <= found["align"]["kept"][name] <= 1 for name in ("overlap", "tau_target", "tau_random"))


def test_the_numbers_are_those_of_the_weights_in_the_phases_files(finished: Callable[..., Any], prepared: Any):
    """Three measures worked out again from the checkpoints: ID space, own ID table, tau to the validation target."""
    report, folder = finished(epochs=3, **{"align.learning_rate": 0.05})
    found = diagnostics_of(report)
    _, _, train, valid, _ = prepared(epochs=3)
    seen = torch.from_numpy(np.flatnonzero(train._dataset.train_counts))
    first = weights(folder, "pretrain", "rec")["items.weight"]
    own = weights(folder, "align", "align")["items.ids.weight"]
    for phase, table in (("pretrain", first), ("align", first)):
        assert found[phase]["spaces"]["id"]["anisotropy"] == pytest.approx(mean_cosine(table[seen]), abs=1e-5)

    near = [
        [
            set(torch.cosine_similarity(table[item][None], table[seen]).argsort(descending=True)[1:11].tolist())
            for item in seen
        ]
        for table in (first, own)
    ]
    shared = [len(one & other) / 10 for one, other in zip(*near, strict=True)]
    assert found["align"]["kept"]["overlap"] == pytest.approx(np.mean(shared))

    histories = valid._dataset.histories
    feat = valid._dataset.inter_feat
    pairs = []
    for user, target in zip(feat["user_id"].tolist(), feat["item_id"].tolist(), strict=True):
        items = histories.items[histories.offsets[user] : histories.offsets[user + 1]]
        items = items[: len(items) - n_left_out({"LS": "valid_and_test"}, "valid")]
        if target in seen.tolist():
            pairs += [(int(item), target) for item in items if item != target]
    distances = [
        [1 - torch.cosine_similarity(table[item], table[target], dim=0).item() for item, target in pairs]
        for table in (first, own)
    ]
    assert found["align"]["kept"]["tau_target"] == pytest.approx(kendalltau(*distances)[0], abs=1e-3)  # float32 ties
    assert found["align"]["kept"]["tau_target"] < 0.99


def test_histories_end_before_the_validation_item(prepared: Any):
    """No user of `chain` meets an item twice before the ring is closed: 8 to 12 items, the last two held out."""
    config, whole, _, valid, test = prepared(dataset="chain")
    groups = diagnose.ItemGroups.of(whole, valid, test, 10)
    histories, targets = diagnose._held_out(groups, valid, config["eval_args"]["split"])
    assert len(histories) == len(targets) == 90
    names = whole.field2id_token["item_id"]
    for items, target in zip(histories, targets, strict=True):
        numbers = [int(names[item][1:]) for item in [*items, target]]
        assert numbers == [(numbers[0] + step) % 30 for step in range(len(numbers))]
    assert sorted({len(items) for items in histories}) == [6, 7, 8, 9, 10]


@pytest.mark.parametrize("changes", [{}, {"adapter_layers": 1, "adapter_dropout": 0.5, "adapter_activation": "gelu"}])
def test_before_alignment_is_the_state_that_alignment_starts_from(
    changes: dict[str, Any], finished: Callable[..., Any], prepared: Any
):
    """The aligned expert of a fresh build, started from phase 1's file, gives the same MMD as the run noted."""
    changes = {"align_start": "pretrain", **changes}
    report, folder = finished(**changes)
    config, _, train, *_ = prepared(**changes)
    model = PAD(config, train._dataset)
    model.experts["rec"].load_state_dict(weights(folder, "pretrain", "rec"))
    fresh = build_expert("align", config, train._dataset, model.settings, model.catalogue)
    fresh.start_from(model.experts["rec"])
    model.phase = "align"
    model.start_experts({"rec"})
    started = model.experts["align"].state_dict()
    assert all(torch.equal(value, started[name]) for name, value in fresh.state_dict().items())
    seen = torch.from_numpy(np.flatnonzero(train._dataset.train_counts))
    with torch.no_grad():
        text = fresh.eval().items.text.adapter(model.catalogue.text(seen))
    for kernel, value in diagnostics_of(report)["align"]["mmd"]["before"].items():
        assert value == pytest.approx(float(mk_mmd(text, fresh.items.ids.weight[seen], kernel)), rel=1e-3, abs=1e-5)


def test_an_alignment_of_no_epochs_changes_nothing(finished: Callable[..., Any]):
    entry = diagnostics_of(finished(**{"align.epochs": 0, "align_start": "pretrain"})[0])["align"]
    assert entry["mmd"]["before"] == entry["mmd"]["after"]
    assert entry["kept"] == pytest.approx({"overlap": 1.0, "tau_target": 1.0, "tau_random": 1.0})


def test_alignment_brings_the_distributions_together(finished: Callable[..., Any]):
    """The weights of the last epoch: by validation, which alignment alone does not serve, an early one may be best."""
    changes = {"align.mmd_weight": 50.0, "align.anchor_weight": 0.0, "align.epochs": 20, "align.eval_step": 0}
    mmd = diagnostics_of(finished(phases=["pretrain", "align"], **changes)[0])["align"]["mmd"]
    assert mmd["after"]["gaussian"] < mmd["before"]["gaussian"]


def test_the_gate_by_bins_is_the_gates_own(finished: Callable[..., Any], prepared: Any):
    report, folder = finished(gate_form="bins", gate_norm="softmax")
    gate = diagnostics_of(report)["finetune"]["gate"]
    logits = checkpoint.load(folder / "finetune.pth")["modules"]["gate"]["items.logits"]
    assert gate["experts"] == ["rec", "align", "llm", "match", "markov"]
    for number, mean in gate["bins"].items():
        assert mean == pytest.approx(logits[int(number)].softmax(0).tolist(), abs=1e-6)
        assert gate["shares"][number] == pytest.approx(mean, abs=1e-6)
    _, _, train, *_ = prepared()
    assert set(gate["bins"]) == {str(number) for number in np.unique(train._dataset.bins[1:])}


def test_the_file_of_planes(finished: Callable[..., Any], prepared: Any):
    _, folder = finished()
    _, _, train, *_ = prepared()
    with np.load(folder / "spaces.npz", allow_pickle=False) as content:
        columns = dict(content)
    assert set(columns) == {"item", "count", "bin", "id", "text", "aligned"}
    assert set(columns["item"]) == set(np.flatnonzero(train._dataset.train_counts))
    assert (columns["count"] == train._dataset.train_counts[columns["item"]]).all()
    assert (columns["bin"] == train._dataset.bins[columns["item"]]).all()
    table = weights(folder, "finetune", "rec")["items.weight"][columns["item"]].double()
    unit = torch.nn.functional.normalize(table, dim=1)
    left, values, _ = torch.linalg.svd(unit - unit.mean(dim=0), full_matrices=False)
    assert columns["id"].dtype == np.float32
    assert np.abs(columns["id"]) == pytest.approx((left * values)[:, :2].abs().numpy(), abs=1e-5)
    assert columns["aligned"].shape == columns["text"].shape == (22, 2)


@pytest.mark.parametrize(
    ("phases", "spaces"), [(["pretrain"], {"id"}), (["pretrain", "align"], {"id", "text", "aligned"})]
)
def test_fewer_phases_have_fewer_planes(phases: list[str], spaces: set[str], finished: Callable[..., Any]):
    _, folder = finished(phases=phases)
    with np.load(folder / "spaces.npz", allow_pickle=False) as content:
        assert set(content.files) == {"item", "count", "bin"} | spaces


def test_without_an_aligned_expert_at_the_end_the_planes_are_those_of_alignment(finished: Callable[..., Any]):
    report, folder = finished(experts=["rec", "llm"])
    assert set(diagnostics_of(report)["finetune"]["spaces"]) == {"id", "text", "llm"}
    with np.load(folder / "spaces.npz", allow_pickle=False) as content:
        assert "aligned" in content.files


def test_without_diagnostics_the_rest_is_the_same(finished: Callable[..., Any]):
    with_them, _ = finished()
    without, folder = finished(diagnostics=False)
    assert not (folder / "spaces.npz").exists()
    assert not any("diagnostics" in entry for entry in without["phases"].values())
    for phase, entry in without["phases"].items():
        assert entry["test"] == with_them["phases"][phase]["test"]
        assert entry["train_loss"] == with_them["phases"][phase]["train_loss"]


def test_a_resumed_run_has_the_same_numbers(finished: Callable[..., Any]):
    """Nothing is evaluated before alignment there, so the model is still in training mode: dropout must not count."""
    adapter = {"adapter_layers": 1, "adapter_dropout": 0.5}
    first, folder = finished(**adapter)
    (folder / "finetune.pth").unlink()
    again, same_folder = finished(**adapter, resume=str(folder))
    assert same_folder == folder
    assert again["phases"]["align"]["reused_from"]
    assert diagnostics_of(again) == diagnostics_of(first)


def test_a_stock_model_has_its_id_space(finished: Callable[..., Any], prepared: Any):
    report, folder = finished("SASRec")
    entry = report["phases"]["train"]["diagnostics"]
    assert set(entry) == {"n_items", "spaces"}
    assert set(entry["spaces"]) == {"id"}
    _, _, train, *_ = prepared()
    seen = np.flatnonzero(train._dataset.train_counts)
    table = torch.load(folder / "model.pth", weights_only=False)["state_dict"]["item_embedding.weight"]
    assert entry["spaces"]["id"]["anisotropy"] == pytest.approx(mean_cosine(table[torch.from_numpy(seen)]), abs=1e-5)
    assert (folder / "spaces.npz").is_file()
    assert "diagnostics" not in finished("SASRec", diagnostics=False)[0]["phases"]["train"]


def test_a_model_without_item_vectors_has_none(data_path: Path):
    settings = {"data_path": str(data_path), "state": "ERROR", "show_progress": False}
    result = run_recbole("Popularity", "tiny", None, settings)
    assert not any("diagnostics" in entry for entry in result["report"]["phases"].values())
    assert not (Path(result["run_folder"]) / "spaces.npz").exists()
    assert result["report"]["items"]["best"]


def test_best_and_hardest_items_are_those_of_the_ranks(finished: Callable[..., Any], prepared: Any):
    report, folder = finished()
    ranks = list(read_ranks(folder / "ranks.npz").values())[-1]
    _, whole, train, *_ = prepared()
    items = report["items"]
    assert items["at_least"] == 1
    by_token = {}
    for target in np.unique(ranks.target):
        own = ranks.masked[ranks.target == target]
        gains = [1 / np.log2(rank + 1) if rank <= 10 else 0.0 for rank in own]
        by_token[str(whole.field2id_token["item_id"][target])] = (np.mean(gains), len(own), int(target))
    expected = sorted(
        by_token, key=lambda token: (by_token[token][0].round(9), -by_token[token][1], by_token[token][2])
    )
    assert [entry["item"] for entry in items["hardest"]] == expected[:15]
    for entry in items["best"]:
        score, n, target = by_token[entry["item"]]
        assert (entry["n"], entry["frequency"]) == (n, train._dataset.train_counts[target])
        assert entry["ndcg@10"] == pytest.approx(score)
        assert entry["title"].endswith(" box")
    scores = [entry["ndcg@10"] for entry in items["best"]]
    assert scores == sorted((score for score, *_ in by_token.values()), reverse=True)[:15]


def test_a_large_catalogue_is_sampled_and_never_computed_whole(prepared: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(diagnose, "_MAX_ITEMS", 14)
    monkeypatch.setattr(diagnose, "_MMD_ITEMS", 6)
    monkeypatch.setattr(diagnose, "_MAX_USERS", 3)
    monkeypatch.setattr(diagnose, "_PLANE_ITEMS", 5)
    asked: list[Any] = []
    text = Catalogue.text
    config, whole, train, valid, test = prepared(epochs=1)
    trainer = PADTrainer(config, PAD(config, train._dataset))
    groups = diagnose.ItemGroups.of(whole, valid, test, 10)
    diagnostics = diagnose.follow(trainer, groups, valid)
    assert diagnostics is not None
    trainer.fit(train, valid, saved=False)
    monkeypatch.setattr(Catalogue, "text", lambda self, item_ids: (asked.append(item_ids), text(self, item_ids))[1])
    report = diagnostics.report()
    assert (report["n_items"], report["mmd"]["n_items"]) == (14, 6)
    assert asked
    assert all(item_ids is not None and len(item_ids) <= 14 for item_ids in asked)
    diagnostics.write(Path("spaces.npz"))
    with np.load("spaces.npz") as content:
        assert {column.shape[0] for column in content.values()} == {5}
