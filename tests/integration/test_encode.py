"""The command `encode`: templates, storage, processes of torchrun; and what a run makes of its files."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recbole_pad.__main__ import main
from recbole_pad.config import PADConfig
from recbole_pad.dataset_prep.text_encoders import text_encoder
from recbole_pad.errors import InputError
from tests.unit.test_encode_text import tiny_model  # noqa: F401 - a fixture


@pytest.fixture
def encode(data_path: Path, tmp_path: Path) -> Callable[..., list[Path]]:
    """``encode(*words)``: run the command on `tiny`; the files of vectors, in the order of their names."""

    def run(*words: str) -> list[Path]:
        folder = tmp_path / "text_vectors"
        assert (
            main(["encode", "--dataset=tiny", f"--data_path={data_path}", f"--text_vectors_dir={folder}", *words]) == 0
        )
        return sorted(folder.glob("*.npy"))

    return run


def test_a_template_makes_other_vectors_that_a_run_with_the_same_template_finds(
    encode: Callable[..., list[Path]], prepared: Callable[..., Any], caplog: pytest.LogCaptureFixture
):
    template = "{kind}: {title}"
    (npy,) = encode("--text_encoder=tfidf", f"--text_template={template}")
    manifest = json.loads(npy.with_suffix(".json").read_text())
    assert manifest["text_fields"] == [template]
    expected = text_encoder("tfidf").encode(
        [f"{shape}: {colour} {shape} box" for shape in ("round", "square", "long", "flat", "small")
         for colour in ("red", "blue", "green", "white", "black")],
    )  # fmt: skip
    np.testing.assert_array_equal(np.load(npy), expected)
    config, whole, *_ = prepared(text_template=template)
    assert PADConfig.read(config).text_columns == [template]
    assert whole.text_table.path.resolve() == npy.resolve()
    changed = npy.with_suffix(".json").read_text().replace(manifest["text_digest"], "0" * 64)
    npy.with_suffix(".json").write_text(changed)
    del whole.text_table
    with pytest.raises(InputError, match=r"'--text_template=\{kind\}: \{title\}'"):
        _ = whole.text_table


def test_half_precision_files_are_read_like_others(encode: Callable[..., list[Path]], prepared: Callable[..., Any]):
    (npy,) = encode("--text_encoder=tfidf", "--stored_as=float16", "--text_fields=['title']")
    assert np.load(npy).dtype == np.float16
    _, whole, *_ = prepared()
    assert whole.text_table.path.resolve() == npy.resolve()
    assert whole.text_table.manifest["dtype"] == "float16"


@pytest.mark.parametrize("transform", ["whiten+unit", "[whiten,unit]", "['whiten', 'unit']"])
def test_joint_vectors_are_named_on_the_command_line(data_path: Path, tmp_path: Path, transform: str):
    words = [
        "run", "--dataset=tiny", f"--data_path={data_path}", "--text_encoder=tfidf+tfidf:3", "--epochs=1",
        f"--text_transform={transform}", "--phases=['align']", "--hidden_size=16", "--state=ERROR",
        "--show_progress=False", "--diagnostics=False", "--text_template={title}",
    ]  # fmt: skip
    assert main(words) == 0
    assert len(list((tmp_path / "text_vectors").glob("*.npy"))) == 2
    (result,) = tmp_path.rglob("result.json")
    fingerprints = [json.loads(path.read_text())["vectors_sha256"] for path in sorted(
        (tmp_path / "text_vectors").glob("*.json"), key=lambda path: "tfidf_3" in path.name
    )]  # fmt: skip
    assert json.loads(result.read_text())["text"]["sha256"] == sha256(" ".join(fingerprints).encode()).hexdigest()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return int(listener.getsockname()[1])


@pytest.mark.slow
def test_processes_of_torchrun_encode_a_share_each(
    data_path: Path,
    tmp_path: Path,
    tiny_model: Path,  # noqa: F811
    encode: Callable[..., list[Path]],
):
    words = [
        "encode", "--dataset=tiny", f"--data_path={data_path}", f"--text_encoder={tiny_model}", "--batch_size=1",
        "--text_fields=title", f"--text_vectors_dir={tmp_path / 'two'}",
    ]  # fmt: skip
    together = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
    root = Path(__file__).resolve().parents[2]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "recbole_pad", *words],
            cwd=root,
            env={**os.environ, **together, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    printed = [process.communicate() for process in started]
    assert [process.returncode for process in started] == [0, 0], printed
    assert "text vectors:" in printed[0][0]
    assert printed[1][0] == ""
    assert "16/16" in printed[0][1], "the first process has encoded 16 of 25 texts"
    (npy,) = (tmp_path / "two").glob("*.npy")
    (alone,) = encode(f"--text_encoder={tiny_model}", "--text_fields=title", "--batch_size=1")
    np.testing.assert_allclose(np.load(npy), np.load(alone), atol=1e-6)
    assert {path.suffix for path in npy.parent.iterdir()} == {".npy", ".json"}
