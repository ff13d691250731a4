"""The cold-item protocol (key `cold_split`): a share of the items is withheld from training, for every model alike.

A withheld item may be a test target and nothing else. It stays in the catalogue, so it is ranked, with train frequency
0. What is removed, with an example: docs/protocols.md. Source: ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from recbole.utils import ModelType

from recbole_pad.data.augmentation import sort_by_user_and_time
from recbole_pad.data.rows import take_rows
from recbole_pad.errors import InputError

SPLIT = {"LS": "valid_and_test"}
_SHORTEST = 3  # interactions of a user with a test row: RecBole keeps the only row of a shorter one for training


def without_withheld(original: Callable[[Any], None], dataset: Any) -> None:
    """`Dataset._change_feat_format`; then the interactions with withheld items go, before rows are made of them.

    The dataset gets `withheld_items`, True for withheld items, shape (n_items,); its splits share it.

    Raises:
        InputError: for a share out of range or one that withholds none or all of the items, another model than a
            sequential one, another split than leave-one-out, ready-made splits, and where no test target is left.
    """
    share, seed = _checked(dataset.config)
    original(dataset)
    dataset._check_field("uid_field", "iid_field", "time_field")
    sort_by_user_and_time(dataset.inter_feat, dataset.uid_field, dataset.time_field)
    users, items = (dataset.inter_feat[field].numpy() for field in (dataset.uid_field, dataset.iid_field))
    dataset.withheld_items = withheld_items(items, dataset.field2id_token[dataset.iid_field], share, seed)
    kept = kept_interactions(users, dataset.withheld_items[items])
    _log(dataset, users, items, kept)
    dataset.inter_feat = take_rows(dataset.inter_feat, np.flatnonzero(kept))


def _checked(config: Any) -> tuple[float, int]:
    share, seed, split = config["cold_split"], config["cold_split_seed"] or 0, config["eval_args"]["split"]
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share < 1:
        raise InputError(f"cold_split: {share!r} is not a number in [0, 1), the share of items to withhold")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"cold_split_seed: {seed!r} is not a whole number >= 0")
    if config["MODEL_TYPE"] != ModelType.SEQUENTIAL:
        raise InputError(f"cold_split: is for sequential models, and {config['model']} is none; set cold_split: 0")
    if config["benchmark_filename"]:
        raise InputError("cold_split: files of benchmark_filename are split already; set cold_split: 0")
    if split != SPLIT:
        raise InputError(
            f"cold_split: needs leave-one-out, but eval_args.split is {split}; set split: {SPLIT}, or cold_split: 0"
        )
    return float(share), seed


def withheld_items(items: NDArray[np.int64], tokens: Any, share: float, seed: int) -> NDArray[np.bool_]:
    """Draw the items: the first `share` of a random order of those that have interactions.

    The order is one of tokens, so it does not depend on the order of the file, nor on items that only features name;
    a smaller share of the same seed withholds some of the same items.

    Args:
        items: item ids of all interactions.
        tokens: of all items by id, shape (n_items,); 0 is padding.
        share: of the items, in (0, 1).
        seed: of the draw.

    Returns:
        True for withheld items, shape (n_items,).

    Raises:
        InputError: if that is none of them, or all.
    """
    names = np.asarray(tokens).astype(str)
    present = np.flatnonzero(np.bincount(items, minlength=len(names)))
    n_withheld = round(share * len(present))
    if not 0 < n_withheld < len(present):
        which = "all" if n_withheld else "none"
        raise InputError(f"cold_split: {share} of {len(present)} items is {which} of them; set another share")
    by_token = present[np.argsort(names[present], kind="stable")]
    withheld = np.zeros(len(names), dtype=bool)
    withheld[np.random.default_rng(seed).permutation(by_token)[:n_withheld]] = True
    return withheld


def kept_interactions(users: NDArray[np.int64], is_withheld: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which interactions stay: those with other items, and a withheld last one that becomes a test target.

    RecBole's leave-one-out trains on the last interaction of a user of two, so a withheld one goes there too.

    Args:
        users: of the interactions, sorted by user and time, shape (n,).
        is_withheld: whether the interaction's item is, shape (n,).

    Returns:
        Shape (n,).
    """
    is_last = np.append(users[1:] != users[:-1], True)[: len(users)]
    kept = ~is_withheld | is_last
    n_left = np.bincount(users[kept], minlength=int(users.max(initial=0)) + 1)
    return kept & ~(is_withheld & (n_left[users] < _SHORTEST))


def _log(dataset: Any, users: NDArray[np.int64], items: NDArray[np.int64], kept: NDArray[np.bool_]) -> None:
    """Say what is withheld and what is left of it.

    Raises:
        InputError: if no user is left with a test target.
    """
    withheld = dataset.withheld_items
    n_before = np.bincount(users, minlength=dataset.user_num)
    n_left = np.bincount(users[kept], minlength=dataset.user_num)
    n_targets = int((n_left >= _SHORTEST).sum())
    n_cold = int(withheld[items[kept]].sum())
    dataset.logger.info(
        f"cold_split: {int(withheld.sum())} of {np.count_nonzero(np.bincount(items))} items withheld; "
        f"{int((~kept).sum())} of {len(kept)} interactions removed; users without a training row: "
        f"{int(((n_before > 0) & (n_left < 2)).sum())} (before: {int((n_before == 1).sum())}); test targets: {n_cold} "
        f"cold, {n_targets - n_cold} in-set (users with one before: {int((n_before >= _SHORTEST).sum())})"
    )
    if not n_targets:
        raise InputError(f"cold_split: {dataset.config['cold_split']} leaves no user with a test target; set less")


def withheld_of(dataset: Any) -> NDArray[np.bool_] | None:
    """The withheld items of a built dataset or of a split, shape (n_items,); None without `cold_split`."""
    withheld: NDArray[np.bool_] | None = getattr(dataset, "withheld_items", None)
    return withheld
