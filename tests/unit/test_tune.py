"""Search spaces, pruning by phase, seeds, storages and abandoned trials: without training."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from optuna.pruners import MedianPruner
from optuna.samplers import RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from recbole_pad.errors import InputError
from recbole_pad.phases import PHASES
from recbole_pad.preflight import settled_config
from recbole_pad.property_files import property_names
from recbole_pad.tune import engine, outcome, tune, workers
from recbole_pad.tune.engine import PRUNERS, SAMPLERS, SeededByTrial, open_storage
from recbole_pad.tune.phase_pruner import PhasePruner, epoch_of, step_of
from recbole_pad.tune.search import _check_config, _check_space, _open_study
from recbole_pad.tune.space import Choice, Interval, Space, read_space
from recbole_pad.tune.trial import SETTINGS

BASE = {"loss": "ce", "backbone": "SASRec", "learning_rate": 0.001, "hidden_size": 64, "experts": ["rec", "llm"]}


def space_of(tmp_path: Path, text: str) -> Space:
    (tmp_path / "space.yaml").write_text(text)
    return read_space("space.yaml", "PAD")


class Base(dict[str, Any]):
    """As RecBole's config: None for an unknown key."""

    def __missing__(self, key: str) -> None:
        return None


# --- reading --------------------------------------------------------------------------------------


def test_a_space_is_read_as_it_is_written(tmp_path: Path):
    space = space_of(
        tmp_path,
        "learning_rate: {float: [1e-4, 1], log: true}\n"  # PyYAML alone reads 1e-4 as a string
        "finetune.epochs: {int: [2, 10], step: 4}\n"
        "loss: {choice: [ce, bce]}\n"
        "n_negatives: {int: [1, 64], log: true, when: {loss: bce, backbone: [SASRec, GRU4Rec]}}\n"
        "experts: {choice: [[rec], [rec, llm]]}\n",
    )
    assert [(entry.key, entry.range) for entry in space.parameters] == [
        ("learning_rate", Interval("float", 0.0001, 1.0, log=True)),
        ("finetune.epochs", Interval("int", 2, 10, step=4)),
        ("loss", Choice(("ce", "bce"))),
        ("n_negatives", Interval("int", 1, 64, log=True)),
        ("experts", Choice((["rec"], ["rec", "llm"]))),
    ]
    assert [dict(entry.when) for entry in space.parameters] == [
        {}, {}, {}, {"loss": ("bce",), "backbone": ("SASRec", "GRU4Rec")}, {},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["is empty", "learning_rate: {float:"]),
        ("[1, 2]", ["no mapping"]),
        ("a: {choice: [1, 2", ["is not YAML"]),
        ("a: {choice: [1, 2]}\na: {choice: [3, 4]}", ["'a' comes twice"]),
        ("a: 3", ["a: 3 must be one of {choice"]),
        ("a: {uniform: [0, 1]}", ["a: {'uniform': [0, 1]} must be one of"]),
        ("a: {float: [0, 1], int: [0, 1]}", ["must be one of"]),
        ("a: {float: [0, 1], lgo: true}", ["a: 'lgo' is not understood", "did you mean 'log'?"]),
        ("a: {choice: [1, 2], log: true}", ["a: 'log' is not understood", "choice takes when"]),
        ("a: {choice: []}", ["a: choice: [] must be a list of two values or more"]),
        ("a: {choice: [1]}", ["two values or more"]),
        ("a: {choice: [[1], [1]]}", ["[1] stands there twice"]),
        ("a: {choice: [1, true]}", ["1 stands there twice (True equals 1)"]),
        ("a: {float: [1]}", ["a: float: [1] must be two numbers"]),
        ("a: {float: [x, 1]}", ["must be two numbers"]),
        ("a: {float: [0, .inf]}", ["must be two numbers"]),
        ("a: {float: [.nan, 1]}", ["must be two numbers"]),
        ("a: {float: [false, 1]}", ["must be two numbers"]),
        ("a: {int: [0.5, 1]}", ["a: int: [0.5, 1] must be two whole numbers"]),
        ("a: {float: [1, 1]}", ["a: float: [1, 1]: low must be below high"]),
        ("a: {int: [3, 2]}", ["low must be below high"]),
        ("a: {float: [0, 1], log: true}", ["a: float: [0, 1]: low must be above 0"]),
        ("a: {float: [0, 1], log: 1}", ["log: 1 is neither true nor false"]),
        ("a: {int: [0, 5], step: 2}", ["a: step: 2 must be a number above 0 of which high - low is a multiple"]),
        ("a: {int: [0, 4], step: 0.5}", ["step: 0.5"]),
        ("a: {float: [1, 2], log: true, step: 0.5}", ["without log"]),
        ("a: {float: [0, 1], when: bce}", ["a: when: 'bce' must be {key: value}"]),
        ("a: {float: [0, 1], when: {b: 1}}\nb: {choice: [1, 2]}", ["a: when: b is decided later", "write b above a"]),
        ("a: {float: [0, 1], when: {a: 1}}", ["write a above a"]),
    ],
)
def test_a_wrong_space_is_refused_by_name(text: str, parts: list[str], tmp_path: Path):
    with pytest.raises(InputError) as info:
        space_of(tmp_path, text)
    for part in ["space.yaml", *parts]:
        assert part in str(info.value)


def test_a_space_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(InputError, match=r"GRURec is neither .*did you mean 'GRU4Rec'.*BERT4Rec, GRU4Rec, .*PAD"):
        read_space("GRURec", "PAD")
    with pytest.raises(InputError, match="space: NARM is neither"):
        read_space(None, "NARM")
    assert read_space(None, "SASRec") == read_space("SASRec", "PAD")


# --- checks against the config --------------------------------------------------------------------


@pytest.fixture
def refused(tmp_path: Path, settings: Callable[..., dict[str, Any]]) -> Callable[..., str]:
    """``refused(text, model="PAD")``: the message with which the space is refused, or an empty string."""

    def check(text: str, model: str = "PAD", **changes: Any) -> str:
        base = settled_config(model, "tiny", None, settings(model, **changes))
        try:
            _check_space(
                space_of(tmp_path, text),
                base,
                lambda chosen: settled_config(model, "tiny", None, {**settings(model, **changes), **chosen}),
            )
        except InputError as error:
            return str(error)
        return ""

    return check


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rte: {float: [0.1, 1]}", "unknown config key 'learning_rte' (did you mean 'learning_rate'?)"),
        ("aling.epochs: {int: [1, 2]}", "unknown config key 'aling.epochs' (did you mean 'align.epochs'?)"),
        ("epochs: {int: [1, 2], when: {los: ce}}", "unknown config key 'los' (did you mean 'loss'?)"),
        ("adapter_dropout: {float: [0, 1.5]}", "adapter_dropout: 1.5 is never possible: adapter_dropout: 1.5 is not"),
        ("loss: {choice: [ce, bec]}", "loss: 'bec' is never possible: loss: 'bec' is not known (did you mean 'bce'?)"),
        ("align.mmd_weight: {float: [-1, 1]}", "align.mmd_weight: -1.0 is never possible: mmd_weight: -1.0 is not"),
        ("seed: {int: [1, 9]}", "seed cannot be searched: the best of several seeds is luck"),
        ("topk: {choice: [5, 10]}", "topk cannot be searched: trials would be scored in different ways"),
        ("num_layers: {int: [1, 2]}", "num_layers: 1 is never possible: unknown config key 'num_layers'"),
    ],
)
def test_keys_and_values_that_no_run_takes_are_refused(text: str, message: str, refused: Callable[..., str]):
    assert refused(text).startswith(f"space.yaml: {message}")


def test_an_unknown_key_of_a_stock_model_is_refused_too(refused: Callable[..., str]):
    """RecBole itself would ignore it, and every trial would be the same."""
    assert "'hidden_sise' (did you mean 'hidden_size'?)" in refused("hidden_sise: {choice: [8, 16]}", "SASRec")


def test_values_that_only_some_combinations_take_are_kept(refused: Callable[..., str]):
    """gate_fit: train needs expert_loss: joint; such trials fail one by one."""
    text = "gate_fit: {choice: [train, valid]}\nexpert_loss: {choice: [joint, separate]}\n"
    four = ["rec", "align", "llm", "match"]  # the joint loss cannot contain markov
    assert refused(text, experts=four) == ""
    for changes in ({}, {"experts": four}):
        assert "'train' is never possible" in refused("gate_fit: {choice: [train, valid]}", **changes)


def test_keys_of_the_searched_backbone_are_known(refused: Callable[..., str]):
    text = (
        "backbone: {choice: [SASRec, GRU4Rec]}\n"
        "num_layers: {int: [1, 2], when: {backbone: GRU4Rec}}\n"
        "n_layers: {int: [1, 2], when: {backbone: SASRec}}\n"
    )
    assert refused(text, backbone="GRU4Rec") == ""


def test_a_key_of_the_command_line_cannot_be_searched(
    monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str], settings: Callable[..., dict[str, Any]]
):
    """RecBole lets the command line win over the settings of a trial."""
    monkeypatch.setattr("sys.argv", ["recbole-pad", "--learning_rate=0.1"])
    message = refused("learning_rate: {float: [0.1, 1]}")
    assert message == "space.yaml: learning_rate is searched, but the command line fixes it; remove one of the two"
    assert refused("align.learning_rate: {float: [0.1, 1]}") == ""


@pytest.mark.parametrize("name", property_names("space"))
def test_every_value_of_a_shipped_space_is_accepted(name: str, data_path: Path):
    model = name.split("-")[0]
    given = {"data_path": str(data_path)}
    space = read_space(name, model)
    losses = ["ce", "bce"] if model == "PAD" else [None]
    for loss in losses:
        fixed = {**given, "loss": loss} if loss else given
        base = settled_config(model, "tiny", None, fixed)
        _check_space(space, base, lambda chosen, fixed=fixed: settled_config(model, "tiny", None, {**fixed, **chosen}))
        active = space.settings(lambda entry: entry.range.draw(random.Random(0)), base)
        assert ("n_negatives" in active) == (loss == "bce" and name == "PAD")
    defaults = space.defaults(settled_config(model, "tiny", None, given))
    assert list(defaults) == [entry.key for entry in space.parameters], "the config's own values lie in the space"


# --- drawing --------------------------------------------------------------------------------------

RANGES = st.one_of(
    st.tuples(st.floats(1e-6, 1.0), st.floats(0.5, 9.0), st.booleans()).map(
        lambda drawn: Interval("float", drawn[0], drawn[0] + drawn[1], drawn[2])
    ),
    st.tuples(st.integers(1, 9), st.integers(1, 9), st.booleans()).map(
        lambda drawn: Interval("int", drawn[0], drawn[0] + drawn[1], drawn[2])
    ),
    st.tuples(st.integers(-9, 9), st.integers(1, 9), st.integers(1, 4)).map(
        lambda drawn: Interval("int", drawn[0], drawn[0] + drawn[1] * drawn[2], step=drawn[2])
    ),
    st.lists(st.one_of(st.integers(2, 9), st.text(max_size=3), st.lists(st.integers(), max_size=2)), min_size=2,
             max_size=4, unique_by=repr).map(lambda drawn: Choice(tuple(drawn))),
)  # fmt: skip


@given(RANGES, st.integers(0, 10_000))
def test_what_is_drawn_lies_in_the_range_and_can_be_enqueued(values: Any, seed: int):
    study = optuna.create_study(sampler=RandomSampler(seed=seed))
    drawn = values.draw(random.Random(seed))
    if values.label(drawn) is not None:
        study.enqueue_trial({"key": values.label(drawn)})
    trial = study.ask()
    suggested = values.suggest(trial, "key")
    for value in (drawn, suggested, *values.ends()):
        if isinstance(values, Choice):
            assert value in values.values
        else:
            assert values.low <= value <= values.high
            assert isinstance(value, int) == (values.kind == "int")
            assert not values.step or (value - values.low) % values.step == 0
        assert values.label(value) is not None
    assert suggested == drawn


def test_values_outside_the_range_have_no_label():
    assert [Interval("int", 0, 8, step=4).label(value) for value in (-4, 0, 3, 4, 4.0, 8, 12, True, "4", None)] == [
        None, 0, None, 4, None, 8, None, None, None, None,
    ]  # fmt: skip
    assert Interval("float", 0.0, 1.0).label(1) == 1
    assert Choice((1, [2])).label([2]) == "[2]"
    assert Choice((1, [2])).label(2) is None


def test_conditions_follow_the_trial_first_and_the_config_else(tmp_path: Path):
    space = space_of(
        tmp_path,
        "a: {choice: [yea, nay]}\n"
        "b: {choice: [yea, nay], when: {a: yea}}\n"
        "c: {int: [1, 2], when: {b: yea, d: [x, y]}}\n",
    )

    def active(base: dict[str, Any], **chosen: str) -> list[str]:
        return list(space.settings(lambda entry: chosen.get(entry.key, 1), Base(base)))

    assert active({"d": "x"}, a="yea", b="yea") == ["a", "b", "c"]
    assert active({"d": "z"}, a="yea", b="yea") == ["a", "b"]
    assert active({"d": "y"}, a="yea", b="nay") == ["a", "b"]
    assert active({"d": "y"}, a="nay", b="yea") == ["a"]
    assert active({"d": "y", "b": "yea"}, a="nay") == ["a", "c"], "b is not searched here, so the config's b counts"


def test_the_configs_own_values_are_kept_where_the_space_holds_them(tmp_path: Path):
    space = space_of(
        tmp_path,
        "learning_rate: {float: [0.0001, 0.01]}\n"
        "hidden_size: {choice: [32, 128]}\n"
        "experts: {choice: [[rec], [rec, llm]]}\n"
        "align.learning_rate: {float: [0.0001, 0.01]}\n"
        "finetune.learning_rate: {float: [0.1, 1]}\n",
    )
    base = Base({**BASE, "align.learning_rate": 0.002})
    assert space.defaults(base) == {
        "learning_rate": 0.001, "experts": '["rec", "llm"]', "align.learning_rate": 0.002,
    }  # fmt: skip


def test_a_grid_is_every_combination(tmp_path: Path):
    space = space_of(tmp_path, "a: {choice: [x, [1]]}\nb: {int: [2, 6], step: 2}\n")
    study = optuna.create_study(sampler=SAMPLERS["grid"](space, 3))
    seen = []
    while not study.sampler.is_exhausted(study):  # type: ignore[attr-defined]
        trial = study.ask()
        seen.append(tuple(map(str, space.suggest(trial, Base()).values())))
        study.tell(trial, 0.0)
    assert sorted(seen) == [(a, b) for a in ("[1]", "x") for b in ("2", "4", "6")]
    for text, why in (("a: {float: [0, 1]}", "no end of values"), ("a: {choice: [1, 2], when: {b: 1}}", "(when)")):
        with pytest.raises(InputError, match=r"space.yaml: a: .*--sampler=tpe") as info:
            SAMPLERS["grid"](space_of(tmp_path, text), 3)
        assert why in str(info.value)


@pytest.mark.parametrize("make", [lambda seed: RandomSampler(seed=seed), lambda seed: TPESampler(seed=seed)])
def test_a_trials_numbers_depend_on_the_seed_and_its_number_only(make: Callable[[int], Any]):
    def drawn(study: optuna.Study, seed: int, n: int) -> list[float]:
        found = []
        for _ in range(n):
            study.sampler = SeededByTrial(make, seed)  # a new process
            trial = study.ask()
            found.append(trial.suggest_float("x", 0, 1))
            study.tell(trial, found[-1])
        return found

    def at_once(seed: int) -> list[float]:
        study = optuna.create_study(sampler=SeededByTrial(make, seed))
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=12)
        return [trial.params["x"] for trial in study.trials]

    study = optuna.create_study()
    assert drawn(study, 5, 7) + drawn(study, 5, 5) == at_once(5)
    assert len(set(at_once(5))) == 12
    assert at_once(5) != at_once(6)


# --- pruning --------------------------------------------------------------------------------------


@given(st.sampled_from(list(PHASES)), st.integers(0, 999_999))
def test_steps_name_phase_and_epoch_and_grow_with_both(phase: str, epoch: int):
    step = step_of(phase, epoch)
    assert epoch_of(step) == (list(PHASES).index(phase), epoch)
    assert step < step_of(phase, epoch + 1) <= step_of(list(PHASES)[-1], 1_000_000)
    later = list(PHASES)[list(PHASES).index(phase) + 1 :]
    assert all(step < step_of(name, 0) for name in later)
    assert step_of("train", epoch) == epoch


CURVES = st.lists(
    st.lists(st.lists(st.integers(0, 20), max_size=4), min_size=3, max_size=3), min_size=2, max_size=7
)  # trials x phases x epochs


@given(CURVES, st.booleans())
def test_a_trial_is_stopped_by_the_median_of_its_own_phase(curves: list[list[list[int]]], maximize: bool):
    """Against the rule spelled out: best so far of this phase, worse than the median of the others at this epoch."""
    *others, mine = curves
    phases = [index for index, curve in enumerate(mine) if curve]
    if not phases:
        return
    study = optuna.create_study(direction="maximize" if maximize else "minimize")
    for curve in others:
        study.add_trial(create_trial(value=0.0, intermediate_values=steps(curve)))
    study.add_trial(create_trial(state=TrialState.RUNNING, intermediate_values=steps(mine)))
    pruner = PhasePruner(MedianPruner(n_startup_trials=2, n_warmup_steps=1))
    found = pruner.prune(study, study.get_trials()[-1])

    phase = phases[-1]
    epoch = len(mine[phase]) - 1
    same_phase = [curve[phase] for curve in others if curve[phase]]
    there = [curve[epoch] for curve in same_phase if len(curve) > epoch]
    sign = 1 if maximize else -1
    best = max(sign * value for value in mine[phase])
    enough = len(same_phase) >= 2 and there and epoch >= 1
    assert found == bool(enough and best < sign * statistics.median(there))


def steps(curve: list[list[int]]) -> dict[int, float]:
    names = list(PHASES)
    return {step_of(names[at], epoch): value for at, phase in enumerate(curve) for epoch, value in enumerate(phase)}


def test_a_good_earlier_phase_does_not_save_a_bad_later_one():
    """What the wrapper is for: the plain pruner takes the best of all phases."""
    study = optuna.create_study(direction="maximize")
    for _ in range(3):
        study.add_trial(create_trial(value=0.5, intermediate_values=steps([[9, 9], [5, 5], []])))
    study.add_trial(create_trial(state=TrialState.RUNNING, intermediate_values=steps([[9, 9], [1, 1], []])))
    trial = study.get_trials()[-1]
    assert not MedianPruner(n_startup_trials=1).prune(study, trial)
    assert PhasePruner(MedianPruner(n_startup_trials=1)).prune(study, trial)


def test_trials_that_took_the_phase_from_the_cache_do_not_count_for_its_start():
    study = optuna.create_study(direction="maximize")
    for curve in ([[9], [5, 5], []], [[], [], [7, 7]], [[9], [], [7, 7]]):
        study.add_trial(create_trial(value=0.5, intermediate_values=steps(curve)))
    study.add_trial(create_trial(state=TrialState.RUNNING, intermediate_values=steps([[9], [1, 1], []])))
    pruned = [PhasePruner(MedianPruner(n_startup_trials=n)).prune(study, study.get_trials()[-1]) for n in (1, 2, 3)]
    assert pruned == [True, False, False]


def test_hyperband_sees_the_last_phase_alone():
    assert PRUNERS["hyperband"].step("finetune", 3, "finetune") == 3
    assert PRUNERS["hyperband"].step("align", 3, "finetune") is None
    assert PRUNERS["hyperband"].step("train", 3, "train") == 3
    assert PRUNERS["median"].step("align", 3, "finetune") == step_of("align", 3)


# --- workers --------------------------------------------------------------------------------------


def running(study: optuna.Study, worker: dict[str, Any] | None, alive: float = 0.0, **attributes: Any) -> int:
    """A running trial of another process; its number."""
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    for key, value in attributes.items():
        trial.set_user_attr(key, value)
    if worker is not None:
        trial.set_user_attr("worker", worker)
        trial.set_user_attr("alive", alive)
    return trial.number


def test_trials_of_processes_that_are_gone_are_failed_and_queued_once():
    study, here = optuna.create_study(), workers.this_process()
    now = time.time()
    elsewhere = {**here, "machine": "another machine", "pid": 1}
    kept = [
        running(study, here),  # no sign of life for ages, but the process is there
        running(study, elsewhere, now - 300),
        running(study, None),  # has just begun
    ]
    left = [
        running(study, {**here, "pid": 2**22 + 1}),
        running(study, {**here, "started": here["started"] - 100}),  # the number was given to another process
        running(study, elsewhere, now - 700),
    ]
    twice = running(study, {**here, "pid": 2**22 + 1}, retry_of=0)
    params = {trial.number: trial.params for trial in study.trials}

    assert workers.fail_abandoned(study) == [*left, twice]
    assert workers.fail_abandoned(study) == []
    states = {trial.number: trial.state for trial in study.trials}
    assert all(states[number] == TrialState.RUNNING for number in kept)
    assert all(states[number] == TrialState.FAIL for number in [*left, twice])
    queued = study.get_trials(states=(TrialState.WAITING,))
    assert [(trial.user_attrs["retry_of"], trial.params) for trial in queued] == [
        (number, params[number]) for number in left
    ]
    again = study.ask()
    assert again.suggest_float("x", 0, 1) == params[left[0]]["x"]


def test_a_trial_that_another_worker_failed_meanwhile_is_left_to_it(monkeypatch: pytest.MonkeyPatch):
    study = optuna.create_study()
    number = running(study, {**workers.this_process(), "pid": 2**22 + 1})

    def quicker(trial: Any) -> bool:
        study.tell(number, state=TrialState.FAIL)
        return True

    monkeypatch.setattr(workers, "is_abandoned", quicker)
    assert workers.fail_abandoned(study) == []
    assert len(study.trials) == 1


def test_a_running_trial_says_who_runs_it_and_that_it_lives(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(workers, "BEAT_SECONDS", 0.01)
    study = optuna.create_study()
    trial = study.ask()
    with workers.SignOfLife(trial) as sign:
        began = study.trials[0].user_attrs["alive"]
        for _ in range(500):
            if study.trials[0].user_attrs["alive"] > began:
                break
            time.sleep(0.01)
        assert study.trials[0].user_attrs["alive"] > began
        assert study.trials[0].user_attrs["worker"] == workers.this_process()
        assert not workers.is_abandoned(study.trials[0])
    assert not sign._thread.is_alive()


# --- storages -------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", [None, "elsewhere/shared.log", "sqlite:///studies.db"])
def test_a_study_is_there_for_the_next_process(word: str | None, tmp_path: Path):
    for expected in (0, 1, 2):
        study = optuna.create_study(
            study_name="s", storage=open_storage(word, tmp_path / "folder"), load_if_exists=True
        )
        assert len(study.trials) == expected
        study.tell(study.ask(), 0.5)
    place = {None: "folder/study.log", "sqlite:///studies.db": "studies.db"}.get(word, word)
    assert (tmp_path / str(place)).is_file()


def test_storage_none_leaves_nothing(tmp_path: Path):
    study = optuna.create_study(storage=open_storage("none", tmp_path / "folder"))
    study.tell(study.ask(), 0.5)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("study.db", r"'study.db' is not a journal file \(NAME.log\), a database \(sqlite:///FILE.db"),
        ("nothing://me:secret@host/db", r"nothing://host/db cannot be opened: .*check the URL"),
        ("sqlite:///no/such/folder/s.db", r"sqlite:///no/such/folder/s.db cannot be opened"),
        ("damaged.log", r"damaged.log is no journal of Optuna or is damaged"),
        ("foreign.log", r"foreign.log is no journal of Optuna or is damaged"),
    ],
)
def test_a_storage_that_cannot_be_opened_is_named(word: str, message: str, tmp_path: Path):
    study = optuna.create_study(storage=open_storage("damaged.log", tmp_path))
    with (tmp_path / "damaged.log").open("a") as file:
        file.write('{"op_code": 4, "worker')  # as a full disk leaves it
    assert len(study.trials) == 0
    with (tmp_path / "damaged.log").open("a") as file:
        file.write('{"op_code": 4}\n{"op_code": 4}\n')
    (tmp_path / "foreign.log").write_text('{"level": "INFO"}\n')
    with pytest.raises(InputError, match=message) as info:
        open_storage(word, tmp_path)
    assert "secret" not in str(info.value)


# --- the rest -------------------------------------------------------------------------------------


def test_without_optuna_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(InputError, match=r'not installed: pip install -e "\.\[tune\]"'):
        tune("PAD", "tiny", 3)


def test_the_best_trial_is_first_in_both_directions():
    for direction, order in (("maximize", [1, 3, 0]), ("minimize", [0, 1, 3])):
        study = optuna.create_study(direction=direction)
        for value in (0.1, 0.5, None, 0.5):
            trial = study.ask()
            study.tell(trial, value, state=None if value else TrialState.FAIL)
        assert [trial.number for trial in outcome.ranked(study)] == order


def test_a_metric_that_is_better_when_smaller_is_minimised():
    for bigger, direction in ((True, StudyDirection.MAXIMIZE), (False, StudyDirection.MINIMIZE)):
        study = _open_study(open_storage("none", Path()), "name", {"valid_metric_bigger": bigger})
        assert (study.direction, study.study_name) == (direction, "name")


def test_best_yaml_holds_exact_numbers(tmp_path: Path):
    exact = {"learning_rate": 0.1 + 0.2, "align.learning_rate": 1e-05, "experts": ["rec"], "id_dropout": 1 / 3}
    best = create_trial(value=0.3, user_attrs={SETTINGS: exact})
    path = outcome.write_best(tmp_path, best, {"model": "PAD", "learning_rate": 1, "text_fields": ["title"]})
    assert yaml.safe_load(path.read_text()) == {"model": "PAD", "text_fields": ["title"], **exact}
    assert [path.name for path in tmp_path.iterdir()] == ["best.yaml"]


def test_the_tables_of_words_are_those_of_the_help():
    assert list(engine.SAMPLERS) == ["tpe", "random", "grid"]
    assert list(engine.PRUNERS) == ["median", "hyperband", "none"]


def test_check_config_reads_every_phase(config: Callable[..., Any]):
    with pytest.raises(InputError, match="learning_rate: -1"):
        _check_config(config(**{"align.learning_rate": -1}))
    _check_config(config(**{"align.learning_rate": -1, "phases": ["pretrain"]}))
