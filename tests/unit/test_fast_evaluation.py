"""RecBole's metrics from ranks against RecBole's own evaluation, and PAD's vectors in blocks against whole tables."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recbole.evaluator.collector import Collector
from recbole.trainer import Trainer
from recbole.utils import get_model
from torch.utils.data.distributed import DistributedSampler

from recbole_pad.backbones import BACKBONES
from recbole_pad.distributed import Processes
from recbole_pad.evaluation import collector
from recbole_pad.evaluation.collector import RankCollector, _dealt_out
from recbole_pad.evaluation.evaluate import ItemGroups, split_ranks
from recbole_pad.fast_evaluation import evaluate_with_ranks, hits_at_places, ranks_suffice
from recbole_pad.model.pad import PAD
from recbole_pad.quick_start import run_recbole
from tests.reference import ranks_loops

SIX = ["Hit", "NDCG", "MRR", "Recall", "Precision", "MAP"]
MODELS: dict[str, dict[str, Any]] = {
    "SASRec": {"model": "SASRec"},
    "GRU4Rec": {"model": "GRU4Rec"},
    "PAD pretrain": {"phases": ["pretrain"], "unseen_items": "raw"},  # never-seen items would tie
    "PAD": {"unseen_items": "raw"},
}
Build = Callable[..., tuple[Any, Any, Any, Any]]


@pytest.fixture
def build(prepared: Callable[..., Any]) -> Build:
    """``build(**changes)``: a trainer of a model with random weights, the whole dataset, valid and test loader."""

    def make(**changes: Any) -> tuple[Any, Any, Any, Any]:
        given = {"eval_batch_size": 9, "metrics": SIX, "topk": [1, 5, 10], **changes}
        config, whole, train, valid, test = prepared(**given)
        model = get_model(config["model"])(config, train._dataset)
        torch.manual_seed(1)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        return Trainer(config, model), whole, valid, test

    return make


def by_recbole(trainer: Any, loader: Any) -> dict[str, float]:
    """RecBole's own result: its collector sorts the scores."""
    trainer.config["fast_evaluation"] = False
    result = trainer.evaluate(loader, load_best_model=False)
    trainer.config["fast_evaluation"] = True
    return dict(result)


@pytest.mark.parametrize("memory_mb", [512, 1e-4], ids=["whole batches", "row by row"])
@pytest.mark.parametrize("protocol", ["pad", "recbole"])
@pytest.mark.parametrize("name", MODELS)
def test_all_six_metrics_equal_recboles(
    build: Build, monkeypatch: pytest.MonkeyPatch, name: str, protocol: str, memory_mb: float
):
    trainer, _, valid, test = build(protocol=protocol, **MODELS[name])
    expected = [by_recbole(trainer, loader) for loader in (valid, test)]
    assert all(0 < result["hit@10"] < 1 for result in expected)
    trainer.config["score_memory_mb"] = memory_mb
    monkeypatch.setattr(Collector, "eval_batch_collect", None)  # RecBole's sorting would fail
    assert [dict(trainer.evaluate(loader, load_best_model=False)) for loader in (valid, test)] == expected
    assert "_full_sort_batch_eval" not in vars(trainer)
    assert "_map_reduce" not in vars(trainer)
    assert type(trainer.eval_collector) is Collector


@pytest.mark.parametrize("protocol", ["pad", "recbole"])
@pytest.mark.parametrize("name", MODELS)
def test_ranks_equal_counting_in_recboles_scores(build: Build, name: str, protocol: str):
    """Each user's ranks under both protocols, from the scores of a batch of one and the history by hand."""
    trainer, whole, valid, test = build(protocol=protocol, **MODELS[name])
    groups = ItemGroups.of(whole, valid, test, 4)
    split = trainer.config["eval_args"]["split"]
    for phase, loader, n_left_out in (("valid", valid, 2), ("test", test, 1)):
        ranks = split_ranks(trainer, loader, groups.pairs(split, phase))
        assert len(ranks.user) == len(loader._dataset)
        for row in range(0, len(ranks.user), 5):
            interaction = loader._dataset[row : row + 1]
            user, target = int(interaction["user_id"][0]), int(interaction["item_id"][0])
            scores = trainer.model.full_sort_predict(interaction)[0].tolist()
            own = groups.histories.items[groups.histories.offsets[user] : groups.histories.offsets[user + 1]]
            history = set(own[: len(own) - n_left_out].tolist())
            assert (ranks.user[row], ranks.target[row]) == (user, target)
            assert ranks.unmasked[row] == ranks_loops.rank(scores, target, set())
            assert ranks.masked[row] == ranks_loops.rank(scores, target, history)


@pytest.mark.parametrize("name", ["SASRec", "PAD pretrain"])
def test_the_result_and_both_protocols_ranks_come_from_one_pass(build: Build, name: str):
    """A loader that masks nothing: RecBole's result is unmasked, the ranks of the report are both."""
    trainer, whole, valid, test = build(protocol="recbole", **MODELS[name])
    groups = ItemGroups.of(whole, valid, test, 4)
    pairs = groups.pairs(trainer.config["eval_args"]["split"], "test")
    expected, separately = by_recbole(trainer, test), split_ranks(trainer, test, pairs)
    result, ranks = evaluate_with_ranks(trainer, test, pairs, load_best_model=False)
    assert dict(result) == expected
    assert ranks is not None
    for column in ("user", "target", "unmasked", "masked"):
        assert np.array_equal(getattr(ranks, column), getattr(separately, column))
    assert not np.array_equal(ranks.masked, ranks.unmasked)


RATIO = {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "TO", "group_by": "user", "mode": "full"}


@pytest.mark.parametrize("name", ["SASRec", "PAD pretrain"])
def test_other_splits_with_several_rows_per_user_are_ranked_too(build: Build, name: str):
    trainer, _, valid, test = build(eval_args=RATIO, mask_history=False, **MODELS[name])
    assert ranks_suffice(trainer, test)
    for loader in (valid, test):
        assert dict(trainer.evaluate(loader, load_best_model=False)) == by_recbole(trainer, loader)


UNIFORM = {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "uni10"}


@pytest.mark.parametrize(
    "changes",
    [
        {"metrics": ["Hit", "GAUC"], "valid_metric": "Hit@10"},
        {"metrics": ["NDCG", "ShannonEntropy"], "valid_metric": "NDCG@10"},
        {"eval_args": UNIFORM, "mask_history": False},
        {"fast_evaluation": False},
        {"fast_evaluation": None},
    ],
    ids=["GAUC", "recommended items", "uni10", "off", "no key"],
)
def test_everything_else_is_left_to_recbole(build: Build, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]):
    trainer, _, _, test = build(model="SASRec", **changes)
    assert not ranks_suffice(trainer, test)
    monkeypatch.setattr(RankCollector, "add", None)
    result, ranks = evaluate_with_ranks(trainer, test, None, load_best_model=False)
    assert ranks is None
    assert set(result) >= {"hit@10"} or set(result) >= {"ndcg@10"}


def test_models_that_are_not_sequential_are_left_to_recbole(build: Build, monkeypatch: pytest.MonkeyPatch):
    changes = {"MAX_ITEM_LIST_LENGTH": None, "metrics": ["Hit"], "valid_metric": "Hit@10", "protocol": None}
    trainer, _, _, test = build(model="BPR", fast_evaluation=True, **changes)
    monkeypatch.setattr(RankCollector, "add", None)
    assert trainer.evaluate(test, load_best_model=False).keys() == {"hit@1", "hit@5", "hit@10"}


def test_weights_are_loaded_and_the_result_is_logged_as_by_recbole(build: Build, tmp_path: Path, monkeypatch):
    trainer, _, _, test = build(model="SASRec")
    expected = by_recbole(trainer, test)
    file = str(tmp_path / "weights.pth")
    trainer._save_checkpoint(0, verbose=False, saved_model_file=file)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.zero_()
    logged: list[Any] = []
    monkeypatch.setattr(
        trainer.wandblogger, "log_eval_metrics", lambda result, head: logged.append((head, dict(result)))
    )
    assert dict(trainer.evaluate(test, True, file, True)) == expected
    trainer.saved_model_file = file
    assert dict(trainer.evaluate(eval_data=test, show_progress=True)) == expected
    assert logged == [("eval", expected)] * 2


def test_a_diverged_model_is_refused_and_the_trainer_is_put_back(build: Build):
    trainer, _, _, test = build(model="SASRec")
    with torch.no_grad():
        trainer.model.item_embedding.weight[3] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        trainer.evaluate(test, load_best_model=False)
    assert "_full_sort_batch_eval" not in vars(trainer)
    assert type(trainer.eval_collector) is Collector


def test_no_data_gives_no_result(build: Build):
    trainer, *_ = build(model="SASRec")
    assert trainer.evaluate(None, load_best_model=False) is None


def test_ties_and_misses_have_their_place_in_recboles_matrix():
    """A tie over places 2 and 3 counts as 3; a rank past the end, or infinite, is a miss."""
    ranks = np.array([1.0, 2.5, 3.0, 3.5, math.inf])
    assert hits_at_places(ranks, 3).tolist() == [[1, 0, 0, 1], [0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1], [0, 0, 0, 1]]


def test_a_model_without_an_opinion_puts_the_target_in_the_middle(build: Build):
    trainer, _, _, test = build(model="SASRec", protocol="recbole", topk=[12, 13], valid_metric="NDCG@12")
    with torch.no_grad():
        trainer.model.item_embedding.weight.zero_()
    result = trainer.evaluate(test, load_best_model=False)  # 25 items: place 13
    assert (result["hit@12"], result["hit@13"], result["mrr@13"]) == (0, 1, round(1 / 13, 6))


# --- several processes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_shares_of_pytorchs_sampler_join_to_every_row_once(world: int):
    for n_rows in range(1, 14):
        rows = np.arange(n_rows) * 10
        shares = [list(DistributedSampler(rows, world, rank, shuffle=False)) for rank in range(world)]
        assert _dealt_out(tuple(rows[share] for share in shares), n_rows).tolist() == rows.tolist()


def test_every_process_has_the_result_of_all_rows(build: Build, monkeypatch: pytest.MonkeyPatch):
    """Three processes played one after the other: 38 rows, so that one of them is repeated."""
    trainer, whole, valid, test = build(model="SASRec")
    pairs = ItemGroups.of(whole, valid, test, 4).pairs(trainer.config["eval_args"]["split"], "test")
    expected = split_ranks(trainer, test, pairs)
    rows = np.arange(len(test._dataset))
    assert len(rows) % 3
    shares: list[Any] = []
    monkeypatch.setattr(Processes, "objects", lambda self, value: shares.append(value) or shares)
    for rank in range(3):
        ranked = RankCollector(trainer, test)
        index = list(DistributedSampler(rows, 3, rank, shuffle=False))
        for part in (index[:7], index[7:]):
            ranked.add(test.collate_fn(part))
        joined = ranked.ranks()  # what the last process sees: all three shares
    for column in ("user", "target", "unmasked", "masked"):
        assert np.array_equal(getattr(joined, column), getattr(expected, column))


# --- a whole run ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{"model": "SASRec"}, {"phases": ["pretrain", "align"]}], ids=["SASRec", "PAD"])
@pytest.mark.parametrize("protocol", ["pad", "recbole"])
def test_the_report_of_a_run_scores_no_split_twice_for_the_same_weights(
    settings: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], protocol: str
):
    scored: list[str] = []
    ranks = RankCollector.ranks

    def counted(self: RankCollector) -> Any:
        if self._joined is None:
            scorer = self._scorer
            model = scorer._model if hasattr(scorer, "_model") else scorer._scores_of.__self__.model
            weights = [float(value.double().sum()) for value in model.state_dict().values()]
            rows = torch.stack([torch.cat(self._users), torch.cat(self._targets)])
            scored.append(f"{getattr(model, 'phase', 'train')} {weights} {rows.tolist()}")
        return ranks(self)

    monkeypatch.setattr(RankCollector, "ranks", counted)
    model = changes.get("model", "PAD")
    given = settings(epochs=0, protocol=protocol, topk=[5, 10], **changes)  # no validation while training
    result = run_recbole(model, "tiny", config_dict=given)
    phases = changes.get("phases", ["train"])
    assert len(scored) == len(set(scored)) == 2 * len(phases)
    last = result["report"]["phases"][phases[-1]]["test"]["masked" if protocol == "pad" else "unmasked"]["all"]
    saved = json.loads((Path(result["run_folder"]) / "result.json").read_text())
    assert saved["test_result"] == {key: float(value) for key, value in result["test_result"].items()}
    assert last["hit@10"] == pytest.approx(saved["test_result"]["hit@10"], abs=1e-6)


# --- PAD's vectors -------------------------------------------------------------------------------------------------


@pytest.fixture
def without_kept_vectors(monkeypatch: pytest.MonkeyPatch) -> Callable[[PAD], None]:
    """``without_kept_vectors(model)``: item vectors take more than the memory, and are made where they are needed."""

    def drop(model: PAD) -> None:
        monkeypatch.setattr(PAD, "_memory", 1000)
        model.eval()

    return drop


@torch.no_grad()
@pytest.mark.parametrize("backbone", BACKBONES)
def test_vectors_of_the_rows_own_items_give_the_same_states_and_scores(build, without_kept_vectors, backbone: str):
    trainer, _, _, test = build(backbone=backbone)
    model = trainer.model.eval()
    interaction = next(iter(test))[0]
    interaction["item_id"] = torch.arange(len(interaction)) % 3 + 20
    users, items, scores = model.user_vectors(interaction), model.item_vectors(), model.full_sort_predict(interaction)
    own, vectors = model.predict(interaction), model.expert_vectors()
    ids = torch.tensor([7, 3, 7])
    rows = model.expert_vectors(ids)
    assert model._kept.experts
    without_kept_vectors(model)
    close = torch.testing.assert_close
    tolerance = {"rtol": 1e-4, "atol": 1e-5 * scores.abs().max().item()}
    close(model.user_vectors(interaction), users, **tolerance)
    close(model.item_vectors(), items)
    close(model.item_vectors(ids), items[ids])
    close(model.full_sort_predict(interaction), scores, **tolerance)
    close(model.predict(interaction), own, **tolerance)
    close(own, scores[torch.arange(len(scores)), interaction["item_id"]], **tolerance)
    for made, kept, expected in zip(model.expert_vectors(ids), rows, vectors, strict=True):
        close(made, expected[ids])
        close(kept, expected[ids])
    assert not model._kept.experts


def test_without_kept_vectors_no_table_of_all_items_is_made(build, without_kept_vectors, monkeypatch):
    trainer, _, _, test = build(phases=["pretrain"], unseen_items="raw")
    expected = by_recbole(trainer, test)
    without_kept_vectors(trainer.model)
    items = trainer.model.experts["rec"].items
    asked: list[Any] = []
    forward = items.forward
    monkeypatch.setattr(items, "forward", lambda item_ids: asked.append(item_ids) or forward(item_ids))
    assert dict(trainer.evaluate(test, load_best_model=False)) == expected
    assert asked
    assert all(item_ids is not None for item_ids in asked)


@pytest.mark.parametrize("memory_mb", [512, 0.008])
def test_users_wait_until_they_fill_the_memory(build: Build, monkeypatch, memory_mb: float):
    trainer, _, _, test = build(phases=["pretrain"])
    waiting, n_bytes = [0], 0
    for _, history, _, target in test:  # a row has 16 numbers; an item of a history counts 80 bytes
        waiting[-1] += len(target)
        n_bytes += 4 * 16 * len(target) + 80 * len(history[0])
        if n_bytes > memory_mb * 2**20:
            waiting, n_bytes = [*waiting, 0], 0
    expected = [n for n in waiting if n]
    assert len(expected) > 2 or memory_mb == 512
    trainer.config["score_memory_mb"] = memory_mb
    numbers: list[int] = []
    rank_targets = collector.rank_targets
    monkeypatch.setattr(
        collector, "rank_targets", lambda users, *rest: numbers.append(len(users)) or rank_targets(users, *rest)
    )
    trainer.evaluate(test, load_best_model=False)
    assert numbers == expected
    assert sum(numbers) == len(test._dataset)


@torch.no_grad()
def test_kept_vectors_are_those_of_the_phase(build: Build):
    model = build()[0].model.eval()
    widths = []
    for phase in ("finetune", "pretrain", "align", "finetune"):
        model.phase = phase
        widths.append(model.item_vectors().size(1))
    text = model.catalogue.text(None).size(1)
    assert widths == [3 * 16 + text, 16, 16, 3 * 16 + text]


def test_kept_vectors_follow_the_weights(build: Build):
    trainer, _, _, test = build(unseen_items="raw")
    before = by_recbole(trainer, test)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.copy_(parameter.flip(0))
    after = dict(trainer.evaluate(test, load_best_model=False))
    assert after == by_recbole(trainer, test) != before
