"""RecBole's own slow paths replaced by faster ones with equal results, each behind a key (`properties/protocol/`).

Three more keys put a protocol of ours in RecBole's place: `exact_times`, `cold_split`, `global_time_cuts`
(docs/protocols.md).

For every sequential model, PAD or stock. A config without the key keeps RecBole's code.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from operator import attrgetter
from typing import Any

from recbole.data.dataset import Dataset, SequentialDataset
from recbole.sampler import RepeatableSampler
from recbole.trainer import Trainer

from recbole_pad.patching import replace

Method = Callable[..., Any]


def install() -> None:
    """Put the replacements into RecBole's classes. Idempotent."""
    for owner, name, make in _REPLACEMENTS:
        replace(owner, name, make)


def _ours(key: str, module: str, function: str, config: str = "config") -> Callable[[Method], Method]:
    """Let a function of ours stand in for a method of RecBole's where a key is set.

    Args:
        key: the config key.
        module: our module, imported when the method is first called with the key set.
        function: its function; it gets RecBole's own method, then what the method is called with.
        config: where the object has its config.
    """
    config_of = attrgetter(config)

    def make(original: Method) -> Method:
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            if not config_of(self)[key]:
                return original(self, *args, **kwargs)
            return getattr(import_module(f"recbole_pad.{module}"), function)(original, self, *args, **kwargs)

        return method

    return make


_REPLACEMENTS: tuple[tuple[type, str, Callable[[Method], Method]], ...] = (
    (Dataset, "_load_feat", _ours("fast_data", "data.reading", "load_feat")),
    (Dataset, "_filter_by_inter_num", _ours("fast_data", "data.filtering", "filter_by_inter_num")),
    (Dataset, "_fill_nan", _ours("exact_times", "data.time_order", "with_missing_times_counted")),
    (Dataset, "_change_feat_format", _ours("exact_times", "data.time_order", "in_exact_order")),
    (Dataset, "_change_feat_format", _ours("cold_split", "data.cold_split", "without_withheld")),
    (Dataset, "_change_feat_format", _ours("global_time_cuts", "data.time_cuts", "with_cuts")),
    (Dataset, "time_based_split", _ours("global_time_cuts", "data.time_cuts", "split_at_cuts")),
    (Dataset, "leave_one_out", _ours("fast_data", "data.splitting", "leave_one_out")),
    (Dataset, "split_by_ratio", _ours("fast_data", "data.splitting", "split_by_ratio")),
    (SequentialDataset, "data_augmentation", _ours("fast_data", "data.augmentation", "data_augmentation")),
    (RepeatableSampler, "get_used_ids", _ours("fast_data", "data.sampling", "used_ids", "dataset.config")),
    (Trainer, "evaluate", _ours("fast_evaluation", "fast_evaluation", "evaluate_by_ranks")),
)
