"""The shipped property file of the paper's choices runs, and says what the paper says."""

from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml

from recbole_pad.errors import InputError
from recbole_pad.preflight import settled_config
from recbole_pad.property_files import properties
from recbole_pad.quick_start import run_recbole

FILE = Path(str(resources.files("recbole_pad.properties").joinpath("settings", "pad_published.yaml")))


@pytest.mark.slow
def test_the_published_choices_run_through_all_phases(settings: Callable[..., dict[str, Any]]):
    small = {"hidden_size": 16, "inner_size": 32, "n_layers": 2, "epochs": 2, "train_batch_size": 16}
    data = {key: value for key, value in settings().items() if key in ("data_path", "state", "show_progress")}
    result = run_recbole("PAD", "tiny", [str(FILE)], {**data, **small, "text_encoder": "tfidf"})
    report = result["report"]
    assert list(report["phases"]) == ["pretrain", "align", "finetune"]
    assert [report["phases"][phase]["epochs"] for phase in report["phases"]] == [2, 2, 2]
    assert "hit@10" in report["phases"]["finetune"]["test"]["masked"]["all"]


def test_the_file_is_known_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    by_name, by_path = (settled_config("PAD", "ml-100k", [file], {}) for file in ("pad_published", str(FILE)))
    assert by_name["experts"] == ["rec", "align", "llm"]
    assert by_name.final_config_dict == by_path.final_config_dict
    Path("pad_published").write_text("n_layers: 7\n")  # a file of one's own wins
    assert settled_config("PAD", "ml-100k", ["pad_published"], {})["n_layers"] == 7
    with pytest.raises(InputError, match="config_files: pad_publisht does not exist"):
        settled_config("PAD", "ml-100k", ["pad_publisht"], {})


def test_pad_without_training_counts_fits_its_gate_and_trains_nothing(settings: Callable[..., dict[str, Any]]):
    data = {key: value for key, value in settings().items() if key in ("data_path", "state", "show_progress")}
    report = run_recbole("PAD", "tiny", ["pad_training_free"], {**data, "text_encoder": "tfidf"})["report"]
    assert settled_config("PAD", "tiny", ["pad_training_free"], data)["match_metric"] == "plda"
    assert list(report["phases"]) == ["finetune"]
    assert report["phases"]["finetune"]["epochs"] == 0
    assert report["phases"]["finetune"]["diagnostics"]["gate"]["experts"] == ["match", "markov"]


def test_every_key_that_pad_yaml_marks_with_a_published_value_is_in_the_file():
    published = yaml.safe_load(FILE.read_text())
    ours = properties("model", "PAD.yaml")
    marked = set()
    for line in resources.files("recbole_pad.properties").joinpath("model", "PAD.yaml").read_text().splitlines():
        key = line.split(":")[0]
        if "[code]" in line and key in ours:
            marked.add(key)
    not_about_training = {"text_fields", "phases"}
    assert marked - not_about_training <= set(published)
