"""Settings: what is refused and how, what a phase sees, and that every key is documented and read."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recbole
import yaml
from recbole.config import Config
from recbole.utils import argument_list

import recbole_pad
from recbole_pad import config as config_module
from recbole_pad.backbones import BACKBONES
from recbole_pad.compat import _NUMPY_ALIASES
from recbole_pad.config import PADConfig, phase_view
from recbole_pad.errors import InputError
from recbole_pad.keys import FIRST_READ_IN, PHASE_KEYS
from recbole_pad.phases import PHASES
from recbole_pad.preflight import check_dataset
from recbole_pad.property_files import property_file, shipped_settings

VALUES = {"split": {"RS": [8, 1, 1]}, "mode": "labeled"}

ROOT = Path(recbole_pad.__file__).parent
PROPERTIES = property_file("model", "PAD.yaml")
PROTOCOLS = PROPERTIES.parent.parent / "protocol"
RECBOLE = Path(recbole.__file__).parent


def defaults() -> dict[str, Any]:
    return yaml.safe_load(PROPERTIES.read_text())


def refusal(make: Any, **changes: Any) -> str:
    """The message with which a setting is refused, while the config is made or when it is read."""
    with pytest.raises(InputError) as error:
        PADConfig.read(make(**changes))
    return str(error.value)


def backbone_defaults(name: str) -> dict[str, Any]:
    return yaml.safe_load((RECBOLE / "properties" / "model" / f"{name}.yaml").read_text())


# --- unknown keys ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("mmd_wieght", "mmd_weight"),
        ("backbnoe", "backbone"),
        ("learning_rates", "learning_rate"),
        ("align.mmd_wieght", "align.mmd_weight"),
        ("n_head", "n_heads"),
        ("mask_histroy", "mask_history"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(config, typo: str, meant: str):
    assert f"unknown config key {typo!r} (did you mean {meant!r}?)" in refusal(config, **{typo: 1})


def test_a_key_like_no_other_is_refused_without_a_guess(config):
    message = refusal(config, zzzzzzzz=1)
    assert "unknown config key 'zzzzzzzz'" in message
    assert "did you mean" not in message


@pytest.mark.parametrize("program", ["run_recbole", "/usr/bin/recbole-pad", "/x/recbole_pad/__main__.py"])
def test_our_commands_refuse_an_unknown_argument(config, monkeypatch, program: str):
    monkeypatch.setattr(sys, "argv", [program, "--align.learning_rat=0.1"])
    message = refusal(config)
    assert "'align.learning_rat' (did you mean 'align.learning_rate'?)" in message


def test_arguments_of_other_programs_are_not_ours_to_refuse(config, monkeypatch):
    """RecBole reads sys.argv for every config, --cov=x of pytest too. A near miss of ours is refused."""
    monkeypatch.setattr(sys, "argv", ["pytest", "--cov=somewhere", "--junitxml=x.xml"])
    assert config()["cov"] == "somewhere"
    monkeypatch.setattr(sys, "argv", ["script.py", "--mmd_weihgt=0.1"])
    assert "did you mean 'mmd_weight'" in refusal(config)


def test_arguments_win_over_the_dict_and_are_typed(config, monkeypatch):
    arguments = ["--mmd_weight=0.5", "--align.epochs=3", "--experts=['rec','llm']"]
    monkeypatch.setattr(sys, "argv", ["run_recbole", *arguments])
    settings = config(mmd_weight=0.1)
    assert PADConfig.read(settings).mmd_weight == 0.5
    assert PADConfig.read(settings).experts == ["rec", "llm"]
    assert PADConfig.read(phase_view(settings, "align")).epochs == 3


def test_a_stock_model_keeps_unknown_keys_but_not_a_misspelt_protocol_key(config):
    stock = {"model": "SASRec", "train_neg_sample_args": None}
    assert config(**stock, mine_alone=3)["mine_alone"] == 3
    assert config(**stock, backbone="GRU4Rec")["backbone"] == "GRU4Rec"  # settings shared with PAD
    with pytest.raises(InputError, match="did you mean 'mask_history'"):
        config(**stock, mask_histroy=False)


@pytest.mark.parametrize("key", [f"{phase}.{key}" for phase in PHASES for key in PHASE_KEYS])
def test_every_phase_key_is_accepted_and_is_a_known_setting(config, key: str):
    settings = config()
    assert key.split(".")[1] in settings.final_config_dict
    assert config(**{key: settings[key.split(".")[1]]})


def test_keys_that_no_phase_reads_have_no_override(config):
    assert "'align.n_bins'" in refusal(config, **{"align.n_bins": 3})


def test_loss_type_is_refused_and_names_our_key(config):
    assert "loss_type: PAD's loss is set by the key `loss`" in refusal(config, loss_type="BPR")


# --- values ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", config_module._WORDS)
def test_an_unknown_word_is_refused_naming_the_key_and_the_words(config, key: str):
    wrong = ["nothing"] if isinstance(defaults()[key], list) else "nothing"
    message = refusal(config, **{key: wrong})
    assert message.startswith(f"{key}: 'nothing' is not known")
    assert str(defaults()[key][0] if isinstance(wrong, list) else defaults()[key]) in message


@pytest.mark.parametrize("key", config_module._RANGES)
def test_a_number_out_of_range_is_refused_naming_the_key_and_the_range(config, key: str):
    low, high = config_module._RANGES[key]
    for wrong in (low - 1, high * 2 + 1, "'many'", True, float("nan"), [1]):
        assert re.search(rf"^{key}: .*\[{low}, {high}\]", refusal(config, **{key: wrong})), wrong
    for right in (low, high):
        assert getattr(PADConfig.read(config(**{key: right})), key) == right


@pytest.mark.parametrize(
    "key",
    [
        field.name
        for field in fields(PADConfig)
        if field.type == "int" and isinstance(yaml.safe_load(PROPERTIES.read_text()).get(field.name), int)
    ],
)
def test_a_count_must_be_a_whole_number(config, key: str):
    assert refusal(config, **{key: 2.5}).startswith(f"{key}: 2.5")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"phases": ["align", "pretrain"]}, r"phases: .* must keep the order \['pretrain', 'align'\]"),
        ({"phases": ["finetune", "pretrain", "align"]}, "phases: .* must keep the order"),
        ({"phases": []}, "phases: .* at least one"),
        ({"phases": ["align", "align"]}, "phases: .* each once"),
        ({"experts": []}, "experts: .* at least one"),
        ({"experts": ["rec", "rec"]}, "experts: .* each once"),
        ({"backbone": "BPR"}, "backbone: 'BPR' is not known"),
        ({"protocol": "rebcole"}, r"protocol: 'rebcole' .*\(did you mean 'recbole'\?\)"),
        ({"mmd_kernel": "gausian"}, r"mmd_kernel: 'gausian' .*\(did you mean 'gaussian'\?\)"),
        ({"n_bins": None}, "missing or null: n_bins"),
        ({"mmd_bandwidths": [0.5, 0]}, r"mmd_bandwidths: \[0.5, 0\] must be numbers > 0"),
        ({"bucket_by_length": "no"}, "bucket_by_length: 'no' is neither True nor False"),
        ({"retrain_experts": 1}, "retrain_experts: 1 is neither True nor False"),
        ({"gate_start": {"rec": 1}}, r"gate_start: \{'rec': 1\} is neither 'equal' nor"),
        ({"gate_start": {"rec": [1, "x"]}}, "gate_start: .* is neither"),
        ({"gate_start": "eqaul"}, "gate_start: 'eqaul' is neither"),
        ({"mmd_bandwidths": []}, "mmd_bandwidths: .* at least one"),
        ({"expert_loss": "joint"}, "experts: markov has no vectors.* joint loss .*leave markov out"),
        ({"experts": ["rec", "markov"], "expert_loss": "joint"}, "experts: markov has no vectors"),
        ({"experts": ["markov"]}, "experts: markov has no vectors, so it cannot be alone"),
        ({"gate_users": "newst"}, r"gate_users: 'newst' .*\(did you mean 'newest'\?\)"),
        ({"align_start": "pretrian"}, r"align_start: 'pretrian' .*\(did you mean 'pretrain'\?\)"),
        ({"weight_average": 1}, r"weight_average: 1 is not a number in \[0, 0.999999\]"),
        ({"markov_decay": 1.1}, r"markov_decay: 1.1 is not a number in \[0, 1\]"),
    ],
)
def test_what_cannot_run_is_refused_before_it_starts(config, changes: dict[str, Any], message: str):
    assert re.search(message, refusal(config, **changes))


def test_the_markov_expert_beside_one_with_vectors_and_the_joint_loss_without_it_are_allowed(config):
    assert PADConfig.read(config(experts=["rec", "markov"])).experts == ["rec", "markov"]
    assert PADConfig.read(config(experts=["rec", "match"], expert_loss="joint")).expert_loss == "joint"


@pytest.mark.parametrize(
    "changes", [{"expert_loss": "joint"}, {"experts": ["markov"]}, {"gate_fit": "train", "expert_loss": "separate"}]
)
def test_experts_that_no_phase_uses_are_not_refused(config, changes: dict[str, Any]):
    """The same settings are, once there is a phase with a gate."""
    assert PADConfig.read(config(phases=["pretrain", "align"], **changes)).phases == ["pretrain", "align"]
    assert refusal(config, phases=["pretrain", "finetune"], **changes)


def test_a_bad_value_of_one_phase_is_refused_naming_the_key(config):
    settings = config(**{"align.learning_rate": -1})
    PADConfig.read(settings)
    with pytest.raises(InputError, match=r"learning_rate: -1"):
        PADConfig.read(phase_view(settings, "align"))


def test_gate_start_values_are_taken_as_given(config):
    start = {"rec": [1, 0], "align": [-4, -5], "llm": (0, 1.5)}
    assert PADConfig.read(config(gate_start=start)).gate_start == start


def test_one_word_stands_for_a_list_of_one(config):
    settings = PADConfig.read(config(phases="pretrain", experts="rec", text_fields="title", mmd_bandwidths=1.0))
    assert (settings.phases, settings.experts) == (["pretrain"], ["rec"])
    assert (settings.text_fields, settings.mmd_bandwidths) == (["title"], [1.0])


# --- phases ------------------------------------------------------------------------------------------------


def test_a_phase_sees_its_own_value_and_nobody_else_does(config):
    settings = config(**{"learning_rate": 0.5, "align.learning_rate": 0.25, "finetune.epochs": 9})
    rates = {phase: PADConfig.read(phase_view(settings, phase)).learning_rate for phase in PHASES}
    assert rates == {"pretrain": 0.5, "align": 0.25, "finetune": 0.5}
    assert phase_view(settings, "finetune")["epochs"] == 9
    assert (settings["learning_rate"], settings["epochs"]) == (0.5, 2)


def test_a_change_of_a_phase_view_stays_in_it(config):
    settings = config()
    view = phase_view(settings, "align")
    view["epochs"] = 77
    assert settings["epochs"] == 2


# --- protocols and defaults --------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["PAD", "SASRec"])
@pytest.mark.parametrize(("protocol", "masked"), [("pad", True), ("recbole", False)])
def test_a_protocol_sets_the_same_evaluation_for_every_sequential_model(config, model, protocol, masked):
    settings = config(model, protocol=protocol, train_neg_sample_args=None, eval_batch_size=64)
    assert settings["mask_history"] is masked
    expected = yaml.safe_load((PROTOCOLS / f"{protocol}.yaml").read_text())
    assert {key: settings[key] for key in expected if key != "eval_batch_size"} == {
        key: value for key, value in expected.items() if key != "eval_batch_size"
    }


def test_a_stock_model_without_a_protocol_is_said_to_have_another_one(settings, caplog):
    def made(model: str, **changes: Any) -> str:
        caplog.clear()
        Config(model=model, dataset="tiny", config_dict=settings(model, train_neg_sample_args=None, **changes))
        return caplog.text

    assert "SASRec runs under RecBole's own protocol (history not masked, best epoch by" in made("SASRec")
    for model, asked in (
        ("SASRec", {"protocol": "pad"}),
        ("SASRec", {"protocol": "recbole"}),
        ("PAD", {}),
        ("BPR", {}),
    ):
        assert "protocol" not in made(model, **asked)


@pytest.mark.parametrize("given", ["pretrain,finetune", "[pretrain,finetune]", ["pretrain", "finetune"]])
def test_phases_and_experts_may_be_a_text(config, given):
    """As an unquoted list comes out of a shell."""
    found = PADConfig.read(config(phases=given, experts="rec,markov"))
    assert (found.phases, found.experts) == (["pretrain", "finetune"], ["rec", "markov"])


def test_the_user_wins_over_protocol_and_property_files(config):
    settings = config(mask_history=False, topk=[3, 10], learner="sgd", n_layers=7)
    values = [settings[key] for key in ("mask_history", "topk", "learner", "n_layers")]
    assert values == [False, [3, 10], "sgd", 7]


@pytest.mark.parametrize("backbone", ["GRU4Rec", "BERT4Rec", "NARM"])
def test_defaults_of_the_backbone_arrive_below_ours(config, backbone: str):
    theirs = backbone_defaults(backbone)
    settings = config(backbone=backbone)
    ours = {*defaults(), *settings.external_config_dict}
    rest = {key: value for key, value in theirs.items() if key not in ours}
    assert rest
    assert all(settings[key] == value for key, value in rest.items() if not isinstance(value, str))
    assert settings["transform"] is None  # BERT4Rec's own would mask our rows


def test_the_time_column_of_an_unknown_dataset_is_loaded(config):
    assert config()["load_col"]["inter"] == ["user_id", "item_id", "timestamp"]
    own = {"inter": ["user_id", "item_id"], "item": ["item_id"]}
    assert config(load_col=own)["load_col"] == own


@pytest.mark.parametrize(
    "given", ["title,kind", "[title, kind]", "['title','kind']", ["title", "kind"], '["title", kind]']
)
def test_columns_of_text_are_read_in_every_form_of_a_command_line(config, given: Any):
    assert PADConfig.read(config(text_fields=given)).text_fields == ["title", "kind"]
    assert PADConfig.read(config(text_fields="title")).text_fields == ["title"]


def test_models_of_item_features_get_their_columns_loaded(config):
    inter = ["user_id", "item_id", "timestamp"]
    found = config("SASRecF", protocol="pad", selected_features=["kind"])
    assert found["load_col"] == {"inter": inter, "item": ["item_id", "kind"]}
    own = {"inter": inter, "item": ["item_id", "title", "kind"]}
    assert config("SASRecF", protocol="pad", selected_features=["kind"], load_col=own)["load_col"] == own
    assert config("FDSA", "amazon_toys", protocol="pad")["load_col"]["item"] == ["item_id", "categories"]
    for other in (config("SASRec", "amazon_toys", protocol="pad"), config("PAD", "amazon_toys")):
        assert "item" not in other["load_col"]
        assert other["selected_features"] is None


def test_a_key_of_item_features_means_nothing_to_other_models(config):
    for model in ("SASRec", "BPR"):
        check_dataset(config(model, selected_features=["no_such_column"]))
    assert config("SASRecF", selected_features="kind")["selected_features"] == ["kind"]


def test_item_features_change_the_cells_of_those_who_read_them_only():
    assert "selected_features" not in shipped_settings("PAD", "amazon_toys")
    assert "selected_features" not in shipped_settings("SASRec", "amazon_toys")
    assert shipped_settings("FDSA", "amazon_toys")["selected_features"] == ["categories"]


def test_shipped_settings_of_a_rival_hold_no_key_that_it_does_not_read():
    """So that a new default of PAD's alone leaves finished cells of rivals as they are."""
    of_pad, of_rival = shipped_settings("PAD", "amazon_toys"), shipped_settings("MoRec", "amazon_toys")
    assert {"gate_fit", "mmd_weight", "finetune.epochs", "id_dropout"} <= of_pad.keys() - of_rival.keys()
    assert {"train_windows", "text_encoder", "adapter_layers", "n_bins", "repeat_term"} <= of_rival.keys()


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("SASRec", {"topk": 20, "eval_step": 0}),  # never validated
        ("PAD", {"seed": np.int64(3), "train_batch_size": np.int64(64)}),
        ("PAD", {"valid_metric": "recall@20", "metrics": "Recall", "topk": 20}),
        ("BPR", {"valid_metric": "AUC", "metrics": ["AUC", "LogLoss"], "eval_args": VALUES}),
    ],
)
def test_settings_that_can_run_are_taken(config, model: str, changes: dict[str, Any]):
    assert config(model, **changes)["model"] == model


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("valid_metric", "Hit"), ("valid_metric", "Hit@x"), ("valid_metric", "Hit@7"), ("valid_metric", "AUC@10"),
        ("metrics", ["NDCG", "ItemCoverage"]), ("metrics", ["NDCG", "averagepopularity"]),
        ("backbone", None), ("backbone", 3), ("seed", -1), ("seed", 1.5), ("train_batch_size", True),
    ],
)  # fmt: skip
def test_settings_that_would_fail_later_are_refused(config, key: str, value: Any):
    with pytest.raises(InputError, match=key):
        config(**{key: value})


def test_a_general_model_is_left_alone(config):
    settings = config("BPR")
    assert settings["mask_history"] is None
    assert settings["load_col"]["inter"] == ["user_id", "item_id"]


_STOCK_CONFIGS = """
import json, sys
import numpy as np
for old, new in {aliases}.items():
    if not hasattr(np, old):
        setattr(np, old, getattr(np, new))
from recbole.config import Config
configs = [Config(model, name, config_dict=changes).final_config_dict for model, name, changes in {cases}]
assert not [name for name in sys.modules if name.startswith("recbole_pad")]
print("RESULT" + json.dumps(configs, default=str))
"""


@pytest.mark.slow
def test_without_a_protocol_a_stock_config_is_as_without_the_plugin(tmp_path: Path):
    """Against a process that never imports the plugin, where RecBole gets the names that numpy 2 lacks."""
    cases = [
        ("SASRec", "ml-100k", {"train_neg_sample_args": None}),
        ("SASRec", "x", {"loss_type": "BPR", "epochs": 3}),
        ("BPR", "x", {}),
    ]
    code = _STOCK_CONFIGS.format(aliases=_NUMPY_ALIASES, cases=cases)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ours = [Config(model, dataset, config_dict=dict(changes)) for model, dataset, changes in cases]
    expected = json.loads(done.stdout.split("RESULT")[1])
    assert json.loads(json.dumps([config.final_config_dict for config in ours], default=str)) == expected


# --- the property files ------------------------------------------------------------------------------------


def documented_keys(file: Path) -> dict[str, str]:
    """Each key of a property file, with its comment."""
    return dict(re.findall(r"^([\w.]+):.*?\s#\s*(.*)$", file.read_text(), flags=re.MULTILINE))


@pytest.mark.parametrize("file", [PROPERTIES, *sorted(PROTOCOLS.glob("*.yaml"))], ids=lambda file: file.name)
def test_every_key_has_a_comment_that_begins_with_its_type(file: Path):
    comments = documented_keys(file)
    keys = yaml.safe_load(file.read_text())
    assert set(comments) == set(keys)
    fixed = {"train_neg_sample_args", "transform"}  # not to be set: the comment says why
    without_type = [key for key, comment in comments.items() if not re.match(r"\(.+?\)", comment)]
    assert set(without_type) <= fixed
    assert all(keys[key] is None for key in without_type)


def test_every_key_is_a_setting_of_pad_or_of_recbole_or_read_by_name():
    recbole_keys = {
        *yaml.safe_load((RECBOLE / "properties" / "overall.yaml").read_text()),
        *yaml.safe_load((RECBOLE / "properties" / "dataset" / "sample.yaml").read_text()),
        *argument_list.training_arguments,
        *argument_list.evaluation_arguments,
        *(key for name in BACKBONES for key in backbone_defaults(name)),
    }
    source = "\n".join(path.read_text() for path in ROOT.rglob("*.py"))
    read_by_name = set(re.findall(r"config\[\"([\w.]+)\"\]", source)) | set(re.findall(r"_ours\(\"(\w+)\"", source))
    keys = {
        *defaults(),
        *(key for file in PROTOCOLS.glob("*.yaml") for key in yaml.safe_load(file.read_text())),
    }
    for_one_phase = {f"{phase}.{key}" for phase in PHASES for key in PHASE_KEYS}
    assert keys - {field.name for field in fields(PADConfig)} - recbole_keys - read_by_name - for_one_phase == set()


def test_every_setting_of_pad_is_read_somewhere():
    """A field that only `PADConfig` itself mentions does nothing."""
    source = "\n".join(path.read_text() for path in ROOT.rglob("*.py") if path.name != "config.py")
    source += Path(config_module.__file__).read_text().split("def read(")[1].split("_WORDS:")[0]
    through_recbole = {
        "learner",
        "learning_rate",
        "weight_decay",
        "epochs",
        "stopping_step",
        "bucket_by_length",
    }
    for field in fields(PADConfig):
        if field.name not in through_recbole:
            assert re.search(rf"(ettings|self|\])\.{field.name}\b", source), field.name
    assert 'config["bucket_by_length"]' in source


def test_every_setting_of_pad_has_a_default():
    assert {field.name for field in fields(PADConfig)} - set(defaults()) == {"seed"}  # RecBole's, with its default
    assert all(defaults()[field.name] is not None for field in fields(PADConfig) if field.name != "seed")


def test_the_defaults_are_allowed(config):
    settings = {field.name: getattr(PADConfig.read(config()), field.name) for field in fields(PADConfig)}
    untouched = set(defaults()) & set(settings) - set(config().external_config_dict)
    assert len(untouched) > 30
    written = {**defaults(), "n_negatives": 1024, "text_fields": ["auto"]}  # of auto, what it is read as
    assert {key: settings[key] for key in untouched} == {key: written[key] for key in untouched}


@pytest.mark.parametrize(
    ("loss", "given", "read"),
    [("bce", "auto", 1), ("sampled_softmax", "auto", 1024), ("bce", 7, 7), ("sampled_softmax", 7, 7)],
)
def test_n_negatives_are_those_of_the_loss_unless_given(config, loss: str, given: object, read: int):
    assert PADConfig.read(config(loss=loss, n_negatives=given)).n_negatives == read


def test_a_misspelt_n_negatives_is_refused(config):
    with pytest.raises(InputError, match="n_negatives: 'atuo'"):
        PADConfig.read(config(n_negatives="atuo"))


def test_keys_named_for_phases_are_settings():
    names = {field.name for field in fields(PADConfig)}
    assert set(PHASE_KEYS) - names == {"eval_step", "clip_grad_norm", "train_batch_size", "enable_amp"}
    for keys in FIRST_READ_IN.values():
        assert set(keys) <= names


def test_a_plain_key_of_the_user_beats_our_own_default_for_one_phase(config):
    assert phase_view(config(), "finetune")["stopping_step"] == 1  # the fixture's
    bare = config(stopping_step=9)
    assert [phase_view(bare, phase)["stopping_step"] for phase in PHASES] == [9, 9, 9]
    both = config(**{"stopping_step": 9, "finetune.stopping_step": 4})
    assert [phase_view(both, phase)["stopping_step"] for phase in PHASES] == [9, 9, 4]


def test_a_gate_learned_in_training_needs_the_joint_loss(config):
    with pytest.raises(InputError, match="gate_fit: train"):
        PADConfig.read(config(gate_fit="train", expert_loss="separate"))
