"""Hyper-parameter search on Optuna: the command `recbole-pad tune`. How to use it: docs/tuning.md."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from recbole_pad.errors import InputError


def tune(model: str, dataset: str, trials: int, **options: Any) -> dict[str, Any]:
    """Search the settings of a model; see `recbole_pad.tune.search.search`, which gets all arguments.

    Raises:
        InputError: if Optuna is not installed, and as `search`.
    """
    if find_spec("optuna") is None:
        raise InputError('tune: needs optuna, which is not installed: pip install -e ".[tune]" in the clone')
    from recbole_pad.tune.search import search

    return search(model, dataset, trials, **options)
