"""The quick start: PAD, its own phase 1 (SASRec on all positions) and RecBole's SASRec on ml-100k, in one table."""

from __future__ import annotations

from typing import Any

from recbole_pad.evaluation.table import result_table
from recbole_pad.quick_start import run_recbole

_DATASET = "ml-100k"
_COMMON: dict[str, Any] = {"state": "WARNING", "MAX_ITEM_LIST_LENGTH": 50}
_SASREC: dict[str, Any] = {"epochs": 1, "train_neg_sample_args": None}


def quickstart() -> int:
    """Train PAD and, for comparison, RecBole's SASRec, and print the table; returns the exit code."""
    print(f"1/2  PAD on {_DATASET}: three phases; text = title, release year and genres", flush=True)
    pad = run_recbole("PAD", _DATASET, config_dict=_COMMON)
    print(
        "2/2  RecBole's SASRec for one epoch: its prefix augmentation makes 103 rows of each user's one",
        flush=True,
    )
    sasrec = run_recbole("SASRec", _DATASET, config_dict={**_COMMON, **_SASREC})
    print()
    print(result_table([pad["report"], sasrec["report"]]))
    print(_READING.format(folder=pad["run_folder"]))
    return 0


_READING = """
pretrain = RecBole's SASRec trained on all positions with sampled softmax: PAD's ID expert. align and finetune are
PAD's next phases. SASRec, train = RecBole's own training for one epoch; more epochs would help it, at the seconds per
epoch shown. ml-100k has no cold items to speak of, and titles say little about films: a smoke test, not evidence.
Everything about the PAD run: {folder}/result.json"""
