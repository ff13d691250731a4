"""Hit, NDCG and MRR of real scores against another program: ir_measures, on trec_eval's own code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ir_measures
import pytest
import torch
from ir_measures import RR, Success, nDCG
from recbole.utils import get_model, get_trainer

from recbole_pad.evaluation.evaluate import ItemGroups, split_ranks
from recbole_pad.evaluation.metrics import metrics

KS = (5, 10, 20)
THEIRS = {f"{ours}@{k}": theirs @ k for k in KS for ours, theirs in (("hit", Success), ("ndcg", nDCG), ("mrr", RR))}


@pytest.mark.parametrize("protocol", ["masked", "unmasked"])
@pytest.mark.parametrize("model", ["PAD", "SASRec", "GRU4Rec"])
@pytest.mark.parametrize("dataset", ["tiny", "chain"])
def test_metrics_of_full_ranking_are_those_of_another_program(
    dataset: str, model: str, protocol: str, prepared: Callable[..., Any]
):
    knows_the_ring = model == "PAD" and dataset == "chain"  # then every target would be first
    changes = {"experts": ["rec", "align", "llm", "match"]} if knows_the_ring else {}
    config, whole, train, valid, test = prepared(model, dataset, **changes)
    network = get_model(model)(config, train._dataset).eval()
    trainer = get_trainer(config["MODEL_TYPE"], model)(config, network)
    split = config["eval_args"]["split"]
    groups = ItemGroups.of(whole, valid, test, 10)
    ours = metrics(getattr(split_ranks(trainer, test, groups.pairs(split, "test")), protocol), KS)

    relevant: dict[str, dict[str, int]] = {}
    scored: dict[str, dict[str, float]] = {}
    for interaction, _, _, targets in test:
        with torch.no_grad():
            scores = network.full_sort_predict(interaction).view(len(targets), -1)
        for user, row, target in zip(
            interaction[whole.uid_field].tolist(), scores.tolist(), targets.tolist(), strict=True
        ):
            bought = groups.histories.items[
                groups.histories.offsets[user] : groups.histories.offsets[user + 1]
            ].tolist()
            history = set(bought[:-1]) if protocol == "masked" else set()
            listed = {str(item): score for item, score in enumerate(row) if item > 0 and item not in history}
            assert len(set(listed.values())) == len(listed), (
                "ties are listed by item id there, by their mean place here"
            )
            relevant[str(user)], scored[str(user)] = {str(target): 1}, listed
    theirs = ir_measures.calc_aggregate(list(THEIRS.values()), relevant, scored)
    assert len(relevant) == len(test._dataset)
    assert ours == pytest.approx({name: theirs[measure] for name, measure in THEIRS.items()}, abs=1e-9)
    assert 0 < ours["ndcg@20"] < ours["hit@20"] <= 1
