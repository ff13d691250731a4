"""The copy of a dataset without the order of its training histories (benchmarks/shuffled_histories.py)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest


@pytest.fixture
def script() -> ModuleType:
    file = Path(__file__).resolve().parents[2] / "benchmarks" / "shuffled_histories.py"
    spec = importlib.util.spec_from_file_location("shuffled_histories", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_last_two_stay_and_what_is_before_them_is_in_any_order(script: ModuleType):
    lengths = [1, 2, 3, 4, 40]
    users = np.repeat([f"u{number}" for number in range(5)], lengths)
    items = np.concatenate([np.arange(length) for length in lengths])
    rows = pd.DataFrame({"user": users, "item": items, "time": items * 10.0})
    rows = rows.sample(frac=1, random_state=1)  # a file in any order
    ups = []
    for seed in range(20):
        found = script.shuffled(rows, "user", "time", seed)
        for number, length in enumerate(lengths):
            own = found[found["user"] == f"u{number}"]
            assert own["time"].tolist() == list(range(length))
            assert sorted(own["item"]) == list(range(length))
            assert own["item"].tolist()[-2:] == list(range(length))[-2:]
        ups.append(np.mean(np.diff(found[found["user"] == "u4"]["item"].to_numpy()[:-2]) > 0))
    assert np.mean(ups) == pytest.approx(0.5, abs=0.1)
    assert script.shuffled(rows, "user", "time", 3).equals(script.shuffled(rows, "user", "time", 3))
