"""Shared fixtures: a clean process state for every test, tiny datasets, and short ways to build things from them."""

from __future__ import annotations

import logging
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import recbole_pad  # noqa: F401 - registers PAD before any RecBole import of a test
from recbole_pad.backbone_classes import is_own
from recbole_pad.backbones import BACKBONES
from recbole_pad.model.pad import PAD
from recbole_pad.preflight import settled_config
from recbole_pad.property_files import own_backbone_settings, recbole_keys

TINY_SETTINGS: dict[str, Any] = {
    "state": "ERROR",
    "show_progress": False,
    "MAX_ITEM_LIST_LENGTH": 8,
    "epochs": 2,
    "stopping_step": 1,
    "train_batch_size": 16,
    "eval_batch_size": 64,
    "text_encoder": "tfidf",
    "hidden_size": 16,
    "inner_size": 32,
    "embedding_size": 16,
    "hidden_dropout_prob": 0.1,
    "attn_dropout_prob": 0.1,
    "learning_rate": 0.01,
    "seed": 7,
}
_STOCK_KEYS = {
    "state", "show_progress", "MAX_ITEM_LIST_LENGTH", "epochs", "stopping_step", "train_batch_size", "eval_batch_size",
    "hidden_size", "inner_size", "embedding_size", "hidden_dropout_prob", "attn_dropout_prob", "learning_rate", "seed",
}  # fmt: skip
_BACKBONE_KEYS = {
    "hidden_size",
    "inner_size",
    "hidden_dropout_prob",
    "attn_dropout_prob",
}  # not every backbone has them


@pytest.fixture(scope="session", autouse=True)
def no_command_line() -> Iterator[None]:
    """RecBole reads sys.argv: pytest's own flags, such as --maxfail=2, are no settings, in no fixture either."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["pytest"])
        yield


@pytest.fixture(autouse=True)
def clean_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test runs in its own folder, with an empty command line (our commands write to it) and no log handlers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["pytest"])
    handlers, level = logging.getLogger().handlers[:], logging.getLogger().level
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    yield
    logging.getLogger().handlers[:] = handlers
    logging.getLogger().setLevel(level)


@pytest.fixture(scope="session")
def data_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with `tiny` (40 users, 25 items with titles) and `chain` (item k is always followed by k + 1)."""
    folder = tmp_path_factory.mktemp("data")
    _write_tiny(folder / "tiny")
    _write_chain(folder / "chain")
    return folder


def _write_tiny(folder: Path) -> None:
    """Users of 1 to 14 interactions, items of unequal frequency; items i24 and i25 occur as test targets only."""
    rng = np.random.default_rng(3)
    lines, weights = [], 1 / np.arange(1, 24)
    for user in range(40):
        length = [1, 2, 3, 4][user] if user < 4 else int(rng.integers(5, 15))
        items = list(rng.choice(23, size=length, p=weights / weights.sum()) + 1)
        if user in (20, 21):
            items[-1] = 24 + user - 20
        lines += [f"u{user:02d}\ti{item:02d}\t{step * 10 + user}" for step, item in enumerate(items)]
    shapes, colours = ["round", "square", "long", "flat", "small"], ["red", "blue", "green", "white", "black"]
    items = [f"i{n + 1:02d}\t{colours[n % 5]} {shapes[n // 5]} box\t{shapes[n // 5]}" for n in range(25)]
    _write(folder, "user_id:token\titem_id:token\ttimestamp:float", lines, items)


def _write_chain(folder: Path) -> None:
    """30 items in a ring; every user walks the ring from a start of its own, 8 to 12 steps."""
    lines = []
    for user in range(90):
        for step in range(8 + user % 5):
            lines.append(f"u{user:02d}\ti{(user + step) % 30:02d}\t{step}")
    items = [f"i{n:02d}\tnumber {n} of the ring\tx" for n in range(30)]
    _write(folder, "user_id:token\titem_id:token\ttimestamp:float", lines, items)


def _write(folder: Path, header: str, lines: list[str], items: list[str]) -> None:
    folder.mkdir()
    (folder / f"{folder.name}.inter").write_text("\n".join([header, *lines]) + "\n")
    item_header = "item_id:token\ttitle:token_seq\tkind:token_seq"
    (folder / f"{folder.name}.item").write_text("\n".join([item_header, *items]) + "\n")


@pytest.fixture
def with_commas(data_path: Path, tmp_path: Path) -> dict[str, Any]:
    """Settings of `tiny` with commas between the columns of both files."""
    folder = tmp_path / "commas" / "tiny"
    folder.mkdir(parents=True)
    for name in ("tiny.inter", "tiny.item"):
        (folder / name).write_text((data_path / "tiny" / name).read_text().replace("\t", ","))
    return {"data_path": str(folder.parent), "field_separator": ","}


@pytest.fixture
def settings(data_path: Path) -> Callable[..., dict[str, Any]]:
    """``settings(model="PAD", **changes)``: a small config dict for a model."""

    def make(model: str = "PAD", **changes: Any) -> dict[str, Any]:
        base = TINY_SETTINGS if model == "PAD" else {key: TINY_SETTINGS[key] for key in _STOCK_KEYS}
        backbone = str(changes.get("backbone", "SASRec"))
        if model == "PAD" and (backbone in BACKBONES or is_own(backbone)):
            own = {*recbole_keys(backbone), *own_backbone_settings(backbone)}
            base = {key: value for key, value in base.items() if key in own or key not in _BACKBONE_KEYS}
        return {**base, "data_path": str(data_path), **changes}

    return make


@pytest.fixture
def config(settings: Callable[..., dict[str, Any]]) -> Callable[..., Any]:
    """``config(model="PAD", dataset="tiny", **changes)``: a RecBole Config."""

    def make(model: str = "PAD", dataset: str = "tiny", **changes: Any) -> Any:
        return settled_config(model, dataset, None, settings(model, **changes))

    return make


@pytest.fixture
def prepared(config: Callable[..., Any]) -> Callable[..., Any]:
    """``prepared(model="PAD", dataset="tiny", **changes)``: (config, whole dataset, train, valid and test loader)."""
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import init_seed

    def make(model: str = "PAD", dataset: str = "tiny", **changes: Any) -> Any:
        settings = config(model, dataset, **changes)
        init_seed(settings["seed"], True)
        whole = create_dataset(settings)
        return settings, whole, *data_preparation(settings, whole)

    return make


@pytest.fixture
def build(prepared: Callable[..., Any]) -> Callable[..., SimpleNamespace]:
    """``build(**changes)``: config, whole dataset, a fresh PAD model, and train, valid and test loader."""

    def make(**changes: Any) -> SimpleNamespace:
        config, whole, train, valid, test = prepared(**changes)
        model = PAD(config, train._dataset)
        return SimpleNamespace(config=config, whole=whole, model=model, train=train, valid=valid, test=test)

    return make


def with_noise(model: PAD) -> PAD:
    """The model as it scores, its weights away from their start."""
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=1.0 if name.startswith("gate") else 0.3)
    return model.eval()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real datasets; tests that need it are skipped, with the reason, where it is not given."""
    folder = os.environ.get("RECBOLE_PAD_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("RECBOLE_PAD_DATA does not name the folder of real datasets")
    return Path(folder)
