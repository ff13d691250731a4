"""Training batches of similar length, evaluation batches with histories, and RecBole's evaluator on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from recbole.data.dataloader import FullSortEvalDataLoader, TrainDataLoader
from recbole.trainer import Trainer
from recbole.utils import get_model

from recbole_pad.data.loader import HistoryEvalDataLoader, LengthBucketDataLoader
from recbole_pad.errors import InputError
from recbole_pad.evaluation.evaluate import ItemGroups, evaluate_split
from tests.reference import rows_loops

STOCK = {"model": "SASRec", "train_neg_sample_args": None}
RATIO = {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "TO", "group_by": "user", "mode": "full"}


def epoch_of(loader: Any, epoch: int) -> list[list[tuple[int, int]]]:
    """The batches of an epoch as (user, length) of their rows; a user has rows of different lengths."""
    loader.set_epoch(epoch)
    return [list(zip(batch["user_id"].tolist(), batch["item_length"].tolist(), strict=True)) for batch in loader]


def flat(batches: list[list[tuple[int, int]]]) -> list[tuple[int, int]]:
    return [row for batch in batches for row in batch]


# --- training ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bucketed", [True, False])
def test_an_epoch_holds_every_row_once_in_full_batches_but_one(prepared, bucketed: bool):
    train = prepared(train_rows="prefixes", bucket_by_length=bucketed, MAX_ITEM_LIST_LENGTH=50)[2]
    assert isinstance(train, LengthBucketDataLoader)
    feat = train._dataset.inter_feat
    expected = sorted(zip(feat["user_id"].tolist(), feat["item_length"].tolist(), strict=True))
    for epoch in range(3):
        batches = epoch_of(train, epoch)
        assert sorted(flat(batches)) == expected
        sizes = sorted(map(len, batches))
        assert sizes[1:] == [16] * (len(batches) - 1)
        assert len(batches) == len(train) == -(-len(expected) // 16)


@pytest.mark.parametrize("bucketed", [True, False])
def test_the_order_is_a_function_of_seed_and_epoch(prepared, bucketed: bool):
    changes = {"train_rows": "prefixes", "bucket_by_length": bucketed}
    train = prepared(**changes)[2]
    orders = [epoch_of(train, epoch) for epoch in range(3)]
    torch.manual_seed(99)
    torch.rand(7)
    assert [epoch_of(train, epoch) for epoch in (2, 0, 1)] == [orders[2], orders[0], orders[1]]
    assert [epoch_of(prepared(**changes)[2], epoch) for epoch in range(3)] == orders
    assert all(flat(a) != flat(b) for a, b in [(orders[0], orders[1]), (orders[1], orders[2])])
    assert epoch_of(prepared(seed=8, **changes)[2], 0) != orders[0]


def test_lengths_within_a_bucketed_batch_are_closer(prepared):
    def spread(bucketed: bool) -> float:
        train = prepared(train_rows="prefixes", bucket_by_length=bucketed, MAX_ITEM_LIST_LENGTH=50)[2]
        lengths = [[length for _, length in batch] for batch in epoch_of(train, 0)]
        return sum(max(batch) - min(batch) for batch in lengths) / len(lengths)

    assert spread(bucketed=True) < spread(bucketed=False) / 4


def test_short_batches_come_anywhere_in_an_epoch(prepared):
    """Sorting by length must not make every epoch run from short to long."""
    train = prepared(train_rows="prefixes", MAX_ITEM_LIST_LENGTH=50)[2]
    means = [sum(length for _, length in batch) / len(batch) for batch in epoch_of(train, 0)]
    assert means != sorted(means)
    assert means != sorted(means, reverse=True)


def test_shuffle_off_gives_the_order_of_the_rows(prepared):
    train = prepared(train_rows="prefixes", shuffle=False)[2]
    feat = train._dataset.inter_feat
    expected = list(zip(feat["user_id"].tolist(), feat["item_length"].tolist(), strict=True))
    assert flat(epoch_of(train, 0)) == flat(epoch_of(train, 1)) == expected


def test_a_batch_size_set_later_is_used(prepared):
    train = prepared(train_rows="prefixes")[2]
    train.set_batch_size(7)
    assert sorted(map(len, epoch_of(train, 0)))[1:] == [7] * (len(train) - 1)


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_each_batch_without_overlap(prepared, world: int):
    """As under DDP; every process has a row of every batch, so that none waits for another forever."""
    settings, _, train, *_ = prepared(train_rows="prefixes", train_batch_size=15)
    alone = epoch_of(train, 4)
    shares = []
    for rank in range(world):
        settings.final_config_dict.update(single_spec=False, local_rank=rank, offset=0, world_size=world)
        shares.append(epoch_of(train, 4))
    assert {len(share) for share in shares} == {len(alone)}
    for number, batch in enumerate(alone):
        parts = [share[number] for share in shares]
        assert min(map(len, parts)) >= 1
        if len(batch) >= world:
            assert sorted(flat(parts)) == sorted(batch)


# --- evaluation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [{}, {"train_rows": "prefixes"}, STOCK, {**STOCK, "fast_data": False}],
    ids=["PAD", "prefixes", "SASRec", "SASRec with RecBole's rows"],
)
def test_evaluation_batches_carry_the_whole_history(prepared, data_path, changes: dict[str, Any]):
    """Also what is older than MAX_ITEM_LIST_LENGTH; for test, the validation item too."""
    _, whole, _, valid, test = prepared(MAX_ITEM_LIST_LENGTH=3, eval_batch_size=10, **changes)
    expected = rows_loops.histories(data_path / "tiny" / "tiny.inter")
    for loader, left_out in ((valid, 2), (test, 1)):
        assert type(loader) is HistoryEvalDataLoader
        n_rows = n_long = 0
        for interaction, (rows, items), positive_u, positive_i in loader:
            users = whole.id2token("user_id", interaction["user_id"].numpy())
            assert positive_u.tolist() == list(range(len(users)))
            for row, user in enumerate(users):
                tokens = [item for item, _ in expected[user]]
                assert whole.id2token("item_id", items[rows == row].numpy()).tolist() == tokens[:-left_out]
                assert whole.id2token("item_id", int(positive_i[row])) == tokens[-left_out]
                n_long += len(tokens) - left_out > 3
            n_rows += len(users)
        assert n_rows == sum(rows_loops.held_out(history, 2) >= left_out for history in expected.values())
        assert n_long > 20


@pytest.mark.parametrize("changes", [{}, STOCK], ids=["PAD", "SASRec"])
def test_without_the_mask_recboles_own_loaders_evaluate(prepared, changes: dict[str, Any]):
    _, _, train, valid, test = prepared(protocol="recbole", **changes)
    assert type(valid) is type(test) is FullSortEvalDataLoader
    assert next(iter(test))[1] is None
    assert type(train) is (LengthBucketDataLoader if changes == {} else TrainDataLoader)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval_args": RATIO}, r"mask_history.*leave-one-out.*mask_history: False"),
        (
            {"eval_args": {**RATIO, "split": {"LS": "valid_and_test"}, "mode": "uni10"}},
            "mask_history.*full ranking",
        ),
        ({"benchmark_filename": ["a", "b", "c"]}, "mask_history.*benchmark_filename"),
    ],
)
def test_the_mask_is_refused_where_the_history_is_not_defined(config, changes, message: str):
    from recbole.data.utils import get_dataloader

    settings = config(mask_history=True, **changes)
    with pytest.raises(InputError, match=message):
        get_dataloader(settings, "test")


@pytest.mark.parametrize("changes", [{}, STOCK], ids=["PAD", "SASRec"])
def test_other_splits_run_without_the_mask(prepared, changes: dict[str, Any]):
    uniform = {**RATIO, "split": {"LS": "valid_and_test"}, "mode": "uni10"}
    for eval_args in (RATIO, uniform):
        settings, _, train, _, test = prepared(eval_args=eval_args, mask_history=False, **changes)
        model = get_model(settings["model"])(settings, train._dataset)
        result = Trainer(settings, model).evaluate(test, load_best_model=False)
        assert 0 < result["hit@20"] <= 1


@pytest.mark.parametrize("protocol", ["pad", "recbole"])
@pytest.mark.parametrize("changes", [{"phases": ["pretrain"]}, {}, STOCK], ids=["pretrain", "PAD", "SASRec"])
def test_recboles_evaluator_and_ours_agree(prepared: Callable[..., Any], changes: dict[str, Any], protocol: str):
    """Masked numbers are RecBole's with our loader, unmasked ones its own; both to its 4 decimals.

    Not at 20: with 25 items, RecBole counts masked ones (score -inf) into a list of 20.
    """
    settings, whole, train, valid, test = prepared(
        protocol=protocol, topk=[5, 10], eval_batch_size=9, fast_evaluation=False, **changes
    )
    torch.manual_seed(1)
    model = get_model(settings["model"])(settings, train._dataset)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    trainer = Trainer(settings, model)
    groups = ItemGroups.of(whole, valid, test, 4)
    for phase, loader in (("valid", valid), ("test", test)):
        expected = trainer.evaluate(loader, load_best_model=False)
        assert 0 < expected["hit@10"] < 1
        report = evaluate_split(trainer, loader, groups, settings["eval_args"]["split"], phase)
        ours = report["masked" if protocol == "pad" else "unmasked"]["all"]
        other = report["unmasked" if protocol == "pad" else "masked"]["all"]
        assert ours["n"] == len(loader._dataset)
        # to 4 digits: ties (never-seen items score alike) share their rank in ours, and have an order in RecBole's
        assert {name: ours[name] for name in expected} == pytest.approx(dict(expected), abs=5e-5)
        assert ours != other
