"""Variants, cells, rows, tests of significance, tables and experiments, on runs whose numbers are made up."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import yaml

from recbole_pad.__main__ import main
from recbole_pad.config import PADConfig
from recbole_pad.data.frequency import FREQUENCY_GROUPS
from recbole_pad.errors import InputError
from recbole_pad.evaluation.collector import Ranks
from recbole_pad.evaluation.metrics import grouped_metrics, merged, metrics
from recbole_pad.evaluation.rank_files import write_ranks
from recbole_pad.evaluation.significance import paired_bootstrap
from recbole_pad.experiments import cells
from recbole_pad.experiments.cells import Cell, Grid, result_of
from recbole_pad.experiments.definition import experiment_names, parse_experiment, read_experiment
from recbole_pad.experiments.experiment import run_experiment
from recbole_pad.experiments.measures import Measure, measures_of, rows_of
from recbole_pad.experiments.pages import grouped, in_words, protocol_text
from recbole_pad.experiments.paired_tests import against_best_other, against_reference
from recbole_pad.experiments.tables import COLUMNS, csv_text, groups_table, latex_table, markdown_table
from recbole_pad.experiments.variants import parse_settings, parse_variants, shared_settings
from recbole_pad.preflight import settled_config
from recbole_pad.property_files import properties
from recbole_pad.registration import MODELS

N_USERS = 60
TARGETS = np.arange(1, N_USERS + 1)
COUNTS = np.concatenate([[0], np.tile([0, 3, 8, 15, 30, 200], N_USERS // 6)])  # train frequency of item i


def a_run(
    folder: Path, ranks: dict[str, np.ndarray], valid: float = 0.1, seconds: float = 10.0, metric: str = "NDCG@10"
) -> None:
    """Write a run folder with result.json and ranks.npz; the unmasked ranks are one worse."""
    folder.mkdir(parents=True)
    groups = np.searchsorted([0, 5, 10, 20, 50, 100], COUNTS[TARGETS])

    def entry(own: np.ndarray) -> dict[str, Any]:
        bins = grouped_metrics(own, np.where(COUNTS[TARGETS] > 10, 0, 1), ["1", "2"])
        return {
            "all": {"n": N_USERS, **metrics(own)},
            "frequency": grouped_metrics(own, groups, FREQUENCY_GROUPS),
            "bins": bins,
        }

    def phase(own: np.ndarray) -> dict[str, Any]:
        test = {"masked": entry(own), "unmasked": entry(own + 1)}
        chosen = {"masked": {"all": {"n": 1, "ndcg@10": valid}, "frequency": {}, "bins": {}}}
        for name in FREQUENCY_GROUPS:
            chosen["masked"]["frequency"][name] = {"n": 0}
        return {
            "seconds": seconds,
            "epochs": 4,
            "valid": chosen,
            "test": test,
            "diagnostics": {"kept": {"overlap": valid}},
        }

    report = {
        "phases": {name: phase(own) for name, own in ranks.items()},
        "protocol": {"split": {"LS": "valid_and_test"}, "mask_history": True, "valid_metric": metric},
        "machine": {"platform": "test", "cpus": 2, "device": "cpu"},
        "versions": {"recbole-pad": "1", "torch": "2", "recbole": "3", "python": "4"},
    }
    (folder / "result.json").write_text(json.dumps(report))
    write_ranks(
        {name: Ranks(TARGETS, TARGETS, own + 1.0, own) for name, own in ranks.items()}, COUNTS, folder / "ranks.npz"
    )


def ranks_of(seed: int, shift: float = 0.0) -> np.ndarray:
    return np.maximum(1.0, np.random.default_rng(seed).integers(1, 30, N_USERS) - shift)


def results(root: Path, cells: list[Cell]) -> dict[int, Any]:
    return {cell.seed: result_of(cell, root) for cell in cells}


def a_cell(seed: int = 1, label: str = "A", **settings: Any) -> Cell:
    return Cell("d", label, "PAD", settings, seed)


# --- variants


def test_variants_are_split_at_commas_outside_brackets():
    found = parse_variants(["PAD,SASRec", "PAD:backbone=GRU4Rec:experts=[rec,llm]:learning_rate=1e-3"])
    assert [variant.label for variant in found][:2] == ["PAD", "SASRec"]
    assert found[2].model == "PAD"
    assert found[2].settings == {"backbone": "GRU4Rec", "experts": ["rec", "llm"], "learning_rate": 0.001}


def test_a_colon_may_stand_in_a_value():
    pad, knn = parse_variants(["PAD:text_encoder=file:a/b.npy:loss=ce,TextKNN:text_encoder=tfidf:64"])
    assert pad.settings == {"text_encoder": "file:a/b.npy", "loss": "ce"}
    assert knn.settings == {"text_encoder": "tfidf:64"}


@pytest.mark.parametrize("key", ["seed", "config_files", "nproc", "model", "checkpoint_dir"])
def test_what_each_run_has_of_its_own_is_no_shared_setting(key: str):
    assert shared_settings(["epochs=3"]) == {"epochs": 3}
    with pytest.raises(InputError, match=f"{key}: cannot be set for all runs"):
        shared_settings(["epochs=3", f"{key}=1"])


def test_options_that_come_twice_add_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    asked: list[Any] = []

    def compare(*arguments: Any) -> Any:
        asked.append(arguments)
        raise InputError("enough")

    monkeypatch.setattr("recbole_pad.experiments.compare.compare", compare)
    words = "--models PAD --models SASRec --datasets d --datasets e --seeds 1 --seeds 2 --set a=1 --set b=2 --name n"
    assert main(["compare", *words.split()]) == 2
    variants, datasets, seeds, shared, *_, name = asked[0]
    assert [variant.label for variant in variants] == ["PAD", "SASRec"]
    assert (datasets, seeds, shared, name) == (["d", "e"], [1, 2], {"a": 1, "b": 2}, "n")
    assert main("compare --models PAD --datasets d".split()) == 2
    assert asked[1][2] == [1]


def test_a_model_with_nothing_to_train_has_one_cell():
    pad, knn = parse_variants(["PAD,TextKNN"])
    assert [cell.seed for cell in pad.cells("d", {"x": 1}, [3, 4])] == [3, 4]
    assert [cell.seed for cell in knn.cells("d", {}, [3, 4])] == [3]
    assert pad.cells("d", {"x": 1}, [3])[0].settings == {"x": 1}


def test_a_model_with_nothing_to_train_gets_the_shared_settings_that_it_knows():
    (knn,) = parse_variants(["TextKNN:match_decay=0.5"])
    shared = {"hidden_size": 3, "text_encoder": "tfidf", "epochs": 2, "data_path": "d", "train_seconds": 5}
    assert knn.ignored(shared) == ["hidden_size"]
    assert knn.cells("d", shared, [1])[0].settings == {
        "text_encoder": "tfidf", "epochs": 2, "data_path": "d", "train_seconds": 5, "match_decay": 0.5,
    }  # fmt: skip


def test_a_variants_own_settings_win_over_the_shared_ones():
    (variant,) = parse_variants(["PAD:x=2"])
    assert variant.cells("d", {"x": 1, "y": 3}, [1])[0].settings == {"x": 2, "y": 3}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["PADD"], "did you mean 'PAD'"),
        (["PAD,PAD"], "'PAD' stands there twice"),
        (["PAD:backbone"], "setting 'backbone' is not understood"),
        (["PAD:x=1:x=2"], "setting 'x' comes twice"),
        (["PAD:seed=5"], "PAD:seed=5: seed cannot be set for one model"),
        (["PAD:x=[1"], "'PAD:x=\\[1'|is not YAML"),
        ([","], "name at least one"),
    ],
)
def test_bad_variants_are_refused(words: list[str], message: str):
    with pytest.raises(InputError, match=message):
        parse_variants(words)


def test_a_file_of_variants_stands_for_all_of_them(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text("IDRec: {}\nwide: {model: MoRec, hidden_size: 128}\n")
    found = parse_variants([f"PAD,@{path}"])
    assert [(each.label, each.model, each.settings) for each in found] == [
        ("PAD", "PAD", {}), ("IDRec", "IDRec", {}), ("wide", "MoRec", {"hidden_size": 128}),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file"),
        ("IDRec: {", "is not YAML"),
        ("IDRec: 3", "is no mapping from labels to settings"),
        ("- IDRec", "is no mapping from labels to settings"),
        ("IDRecc: {}", "did you mean 'IDRec'"),
        ("PAD: {}", "'PAD' stands there twice"),
    ],
)
def test_a_bad_file_of_variants_is_refused(content: str | None, message: str, tmp_path: Path):
    path = tmp_path / "mine.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message):
        parse_variants([f"PAD,@{path}"])


def test_an_unknown_name_of_a_file_of_variants_is_refused():
    with pytest.raises(InputError, match=r"'tuned_rival' is not known \(did you mean 'tuned_rivals'"):
        parse_variants(["@tuned_rivals", "@tuned_rival"])


def test_the_tuned_rivals_are_models_with_keys_that_their_search_space_has():
    found = parse_variants(["@tuned_rivals"])
    assert len(found) > 1
    for variant in found:
        space = properties("space", f"{variant.model}-few.yaml")
        assert space
        assert set(variant.settings) <= set(space)


def test_the_training_free_models_settle_and_train_nothing():
    found = parse_variants(["@training_free"])
    assert len({str(variant.settings) + variant.model for variant in found}) == len(found) > 4
    for variant in found:
        config = settled_config(variant.model, "ml-100k", None, dict(variant.settings))
        if variant.model == "PAD":
            assert set(config["experts"]) == {"match", "markov"}
        else:
            assert not MODELS[variant.model].is_trained


def test_settings_are_read_as_yaml():
    found = parse_settings(["--a=1", "b=0.5", "c=[1, 2]", "d=1e-4", "e=SASRec", "f=~", "g={x: [1, 0]}", "h=e1"])
    assert found == {"a": 1, "b": 0.5, "c": [1, 2], "d": 1e-4, "e": "SASRec", "f": None, "g": {"x": [1, 0]}, "h": "e1"}


# --- cells


def test_a_cells_folder_depends_on_what_it_computes_and_on_nothing_else(tmp_path: Path):
    one = a_cell(learning_rate=0.1)
    assert one.folder(tmp_path) == a_cell(label="B", learning_rate=0.1, data_path="elsewhere").folder(tmp_path)
    started = Cell("d", "A", "PAD", {"learning_rate": 0.1}, 1, a_cell(), ("rec",))
    others = [
        a_cell(learning_rate=0.2),
        a_cell(seed=2, learning_rate=0.1),
        Cell("e", "A", "PAD", {"learning_rate": 0.1}, 1),
        Cell("d", "A", "SASRec", {"learning_rate": 0.1}, 1),
        started,
        Cell("d", "A", "PAD", {"learning_rate": 0.1}, 1, a_cell(), ("llm",)),
        Cell("d", "A", "PAD", {"learning_rate": 0.1}, 1, a_cell(x=1), ("rec",)),
    ]
    assert len({cell.folder(tmp_path) for cell in [one, *others]}) == 8


def test_a_cells_folder_depends_on_the_data_the_defaults_and_the_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A run of older defaults, of other interactions or texts is none of today's."""
    (tmp_path / "d").mkdir()
    own = tmp_path / "own.npy"
    settings = {"data_path": str(tmp_path), "text_encoder": f"file:{own}+tfidf"}
    found = [a_cell(**settings).digest]
    for file in (tmp_path / "d" / "d.inter", tmp_path / "d" / "d.item", own):
        for content in ("one", "another"):
            file.write_text(content)
            found.append(a_cell(**settings).digest)
    monkeypatch.setattr(cells, "shipped_settings", lambda model, dataset: {"loss": model + dataset})
    found.append(a_cell(**settings).digest)
    monkeypatch.setattr("recbole_pad.__version__", "0.0.1")
    found.append(a_cell(**settings).digest)
    assert len(set(found)) == 9
    assert a_cell(**settings).digest == found[-1]


class Runner:
    """Stands for the process of a cell: writes a run, or fails."""

    def __init__(self, fails: tuple[int, ...] = ()) -> None:
        self.fails, self.ran, self.settings = fails, [], {}

    def __call__(self, cell: Cell, settings: Path, log: IO[bytes], lock: int) -> int:
        self.ran.append(cell)
        self.settings[cell] = yaml.safe_load(settings.read_text())
        if cell.seed in self.fails:
            log.write(b"first line\nerror: out of memory\n")
            return 1
        a_run(settings.parent / "PAD-d-1", {"pretrain": ranks_of(cell.seed), "finetune": ranks_of(cell.seed, 3)})
        return 0


def test_finished_cells_are_kept_and_failed_ones_tried_again(tmp_path: Path):
    cells, said = [a_cell(1), a_cell(2), a_cell(3)], []
    runner = Runner(fails=(2,))
    grid = Grid(tmp_path, say=said.append, run=runner)
    found = grid.results(cells)
    assert set(found) == {cells[0], cells[2]}
    assert "exit code 1" in grid.failures[str(cells[1])]
    assert "error: out of memory" in grid.failures[str(cells[1])]
    assert any("FAILED" in line for line in said)
    again = Runner()
    grid = Grid(tmp_path, say=said.append, run=again)
    assert set(grid.results(cells)) == set(cells)
    assert again.ran == [cells[1]]
    assert grid.failures == {}


def test_a_cell_gets_its_settings_seed_and_folders(tmp_path: Path):
    runner, cell = Runner(), a_cell(5, learning_rate=0.1)
    Grid(tmp_path, say=lambda line: None, run=runner).results([cell])
    settings = runner.settings[cell]
    assert (settings["learning_rate"], settings["seed"]) == (0.1, 5)
    assert settings["checkpoint_dir"] == str(cell.folder(tmp_path))
    assert settings["phase_cache"] == str(tmp_path / "phases")


def test_a_cell_with_a_budget_takes_no_phase_for_nothing(tmp_path: Path):
    """A phase of another cell, or of a killed run, would not be counted."""
    cell, runner = a_cell(train_seconds=9), Runner()
    left = cell.folder(tmp_path) / "PAD-d-0"
    left.mkdir(parents=True)
    (left / "last.pth").write_bytes(b"")
    Grid(tmp_path, say=lambda line: None, run=runner).results([cell])
    assert not {"phase_cache", "resume"} & set(runner.settings[cell])


def test_a_killed_cell_of_pad_is_continued(tmp_path: Path):
    cell, runner = a_cell(), Runner()
    left = cell.folder(tmp_path) / "PAD-d-0"
    left.mkdir(parents=True)
    (left / "last.pth").write_bytes(b"")
    Grid(tmp_path, say=lambda line: None, run=runner).results([cell])
    assert runner.settings[cell]["resume"] is True


def test_what_a_cell_starts_from_runs_first_and_gives_its_weights(tmp_path: Path):
    first = a_cell(1, "first", x=1)
    second = Cell("d", "second", "PAD", {}, 1, first, ("llm",))
    runner = Runner()
    found = Grid(tmp_path, say=lambda line: None, run=runner).results([second])
    assert runner.ran == [first, second]
    assert list(found) == [second]
    assert runner.settings[second]["init_checkpoint"] == str(first.folder(tmp_path) / "PAD-d-1" / "finetune.pth")
    assert runner.settings[second]["init_experts"] == ["llm"]


def test_a_cell_whose_start_failed_is_not_run(tmp_path: Path):
    second = Cell("d", "second", "PAD", {}, 1, a_cell(1, "first"), ("llm",))
    runner = Runner(fails=(1,))
    grid = Grid(tmp_path, say=lambda line: None, run=runner)
    assert grid.results([second]) == {}
    assert runner.ran == [a_cell(1, "first")]
    assert "starts from first on d, seed 1, which failed" in grid.failures[str(second)]


def test_several_jobs_run_every_cell_once(tmp_path: Path):
    runner, cells = Runner(), [a_cell(seed) for seed in range(1, 9)]
    found = Grid(tmp_path, jobs=3, say=lambda line: None, run=runner).results(cells)
    assert set(found) == set(cells)
    assert sorted(cell.seed for cell in runner.ran) == list(range(1, 9))


def test_a_cell_that_another_process_runs_is_waited_for(tmp_path: Path):
    """The other process holds the lock, writes the result and lets go; this one must not run the cell too."""
    cell = a_cell()
    folder = cell.folder(tmp_path)
    folder.mkdir(parents=True)
    hold = "import fcntl,sys; f=open(sys.argv[1],'w'); fcntl.flock(f, 2); print('locked', flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", hold, str(folder / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "locked\n"
    runner = Runner()
    with pytest.MonkeyPatch.context() as patch:
        from recbole_pad.experiments import cells as module

        def sleep(seconds: float) -> None:
            a_run(folder / "PAD-d-1", {"finetune": ranks_of(1)})
            other.communicate("\n")

        patch.setattr(module.time, "sleep", sleep)
        found = Grid(tmp_path, say=lambda line: None, run=runner).results([cell])
    assert list(found) == [cell]
    assert runner.ran == []


def test_a_folder_with_a_space_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="holds a space"):
        Grid(tmp_path / "my cells").results([a_cell()])


# --- rows


def test_cold_is_the_mean_over_the_rows_of_both_groups():
    groups = [{"n": 3, "hit@10": 0.5, "ndcg@10": 0.2}, {"n": 1, "hit@10": 0.0, "ndcg@10": 1.0}, {"n": 0}]
    assert merged(groups) == {"n": 4, "hit@10": 0.375, "ndcg@10": pytest.approx(0.4)}
    assert merged([{"n": 0}]) == {"n": 0}


def some_rows(tmp_path: Path, shifts: dict[str, float], seeds: tuple[int, ...] = (1, 2, 3)) -> list[Any]:
    rows = []
    for label, shift in shifts.items():
        cells = [a_cell(seed, label, shift=shift) for seed in seeds]
        for cell in cells:
            own = {"pretrain": ranks_of(cell.seed), "finetune": ranks_of(cell.seed, shift)}
            a_run(cell.folder(tmp_path) / "PAD-d-1", own, seconds=cell.seed)
        rows += rows_of("d", label, results(tmp_path, cells))
    return rows


def test_rows_hold_the_mean_and_the_deviation_over_seeds(tmp_path: Path):
    rows = some_rows(tmp_path, {"A": 4})
    assert [(row.phase, row.is_last, row.name) for row in rows] == [
        ("pretrain", False, "A, pretrain"),
        ("finetune", True, "A"),
    ]
    values = [float(np.mean(ranks_of(seed, 4) <= 10)) for seed in (1, 2, 3)]
    measure = Measure("masked", "all", "hit@10")
    assert rows[1].values[measure] == pytest.approx(values)
    assert rows[1].mean(measure) == pytest.approx(np.mean(values))
    assert rows[1].deviation(measure) == pytest.approx(np.std(values, ddof=1))
    cold = COUNTS[TARGETS] <= 5
    expected = np.mean([np.mean(ranks_of(seed, 4)[cold] <= 10) for seed in (1, 2, 3)])
    assert rows[1].mean(Measure("masked", "cold", "hit@10")) == pytest.approx(expected)
    assert rows[1].mean(Measure("masked", "bin 3", "hit@10")) is None
    assert rows[1].seconds == [2, 4, 6]  # both phases
    assert rows[0].seconds == [1, 2, 3]
    expected_gains = np.mean([ranks_of(seed, 4) <= 10 for seed in (1, 2, 3)], axis=0)
    np.testing.assert_allclose(rows[1].user_gains("masked", "hit@10"), expected_gains)


def test_one_seed_has_no_deviation(tmp_path: Path):
    row = some_rows(tmp_path, {"A": 4}, (1,))[-1]
    assert row.deviation(Measure("masked", "all", "hit@10")) is None


def test_withheld_items_are_a_group_of_their_own():
    entry = {
        "masked": {
            "all": {"n": 0},
            "frequency": {name: {"n": 0} for name in FREQUENCY_GROUPS},
            "bins": {},
            "cold_split": {"in_set": {"n": 1, "hit@10": 0.5}, "cold": {"n": 1, "hit@10": 0.25}},
        }
    }
    found = measures_of(entry)
    assert found == {("masked", "in_set", "hit@10"): 0.5, ("masked", "withheld", "hit@10"): 0.25}


# --- tests of significance


def test_the_reference_is_tested_against_the_best_other_row(tmp_path: Path):
    rows = some_rows(tmp_path, {"PAD": 12, "weak": 0, "good": 4})
    found = against_best_other(rows, "PAD", n_resamples=2000)
    assert len(found) == 6
    test = next(test for test in found if test.measure == ("masked", "cold", "ndcg@10"))
    assert (test.first, test.second) == ("PAD", "good")
    cold = COUNTS[TARGETS] <= 5

    def by_hand(shift: float) -> np.ndarray:
        each = [np.where(ranks_of(s, shift) <= 10, 1 / np.log2(ranks_of(s, shift) + 1), 0) for s in (1, 2, 3)]
        return np.mean(each, axis=0)[cold]

    expected = paired_bootstrap(by_hand(12), by_hand(4), n_resamples=2000)
    assert (test.difference, test.low, test.high, test.p_users) == pytest.approx(
        (expected["difference"], expected["low"], expected["high"], expected["p"])
    )
    assert test.p_users <= test.p_users_corrected <= 1
    assert test.p_seeds is not None
    assert test.p_seeds <= test.p_seeds_corrected


def test_a_row_of_one_seed_has_no_test_over_seeds(tmp_path: Path):
    rows = some_rows(tmp_path, {"PAD": 12}) + some_rows(tmp_path, {"knn": 3}, (1,))
    found = against_best_other(rows, "PAD", n_resamples=100)
    assert {test.p_seeds for test in found} == {None}
    all_seeds = np.mean([ranks_of(seed, 12) <= 10 for seed in (1, 2, 3)], axis=0)
    assert rows[1].user_gains("masked", "hit@10").tolist() == pytest.approx(all_seeds.tolist())


def test_rows_of_other_users_are_refused(tmp_path: Path):
    rows = some_rows(tmp_path, {"PAD": 12, "other": 3}, (1,))
    file = rows[-1].results[1].folder / "ranks.npz"
    own = ranks_of(1)
    write_ranks(
        {"pretrain": Ranks(TARGETS + 1, TARGETS, own, own), "finetune": Ranks(TARGETS + 1, TARGETS, own, own)},
        COUNTS,
        file,
    )
    with pytest.raises(InputError, match="other users or targets of d"):
        against_best_other(rows, "PAD", n_resamples=100)


def test_every_row_is_tested_against_a_reference(tmp_path: Path):
    rows = [row for row in some_rows(tmp_path, {"A": 12, "B": 4, "C": 0}) if row.is_last]
    found = against_reference(rows, rows[0], n_resamples=100)
    assert [(test.first, test.measure.group) for test in found] == [
        (label, group) for label in ("B", "C") for group in ("all", "cold", "over 100")
    ]


# --- tables


def test_the_best_of_each_column_is_bold_and_has_its_deviation(tmp_path: Path):
    rows = [row for row in some_rows(tmp_path, {"A": 4, "B_1": 12}) if row.is_last]
    lines = markdown_table(rows, {"tau": ["0.5", "0.7"]}).splitlines()
    heads = [cell.strip() for cell in lines[0].strip("|").split("|")]
    assert heads == ["model", "seeds", *COLUMNS, "tau", "epochs", "seconds"]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    measure = Measure("masked", "all", "hit@10")
    assert cells[1][2] == f"**{100 * rows[1].mean(measure):.2f}** ± {100 * rows[1].deviation(measure):.2f}"
    assert cells[0][2] == f"{100 * rows[0].mean(measure):.2f} ± {100 * rows[0].deviation(measure):.2f}"
    assert [line[-3:] for line in cells] == [["0.5", "4", "4"], ["0.7", "4", "4"]]
    latex = latex_table(rows, "100 % of a_b")
    assert r"\caption{100 \% of a\_b}" in latex
    assert rf"\textbf{{{100 * rows[1].mean(measure):.2f}}} $\pm$" in latex
    assert r"B\_1 & 3 &" in latex


def test_groups_are_shown_with_both_protocols(tmp_path: Path):
    rows = [row for row in some_rows(tmp_path, {"A": 4}) if row.is_last]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in groups_table(rows, "bin").splitlines()]
    assert lines[0] == ["model", "1", "2"]
    masked, unmasked = (rows[0].mean(Measure(protocol, "bin 2", "hit@10")) for protocol in ("masked", "unmasked"))
    assert lines[2] == ["A", lines[2][1], f"{100 * masked:.2f} / {100 * unmasked:.2f}"]
    assert "51-100" not in groups_table(rows, "frequency")


def test_csv_holds_every_value(tmp_path: Path):
    rows = some_rows(tmp_path, {"A": 4})
    lines = list(csv.DictReader(io.StringIO(csv_text(rows))))
    assert len(lines) == sum(len(values) for row in rows for values in row.values.values())
    found = [
        float(line["value"])
        for line in lines
        if (line["phase"], line["protocol"], line["group"], line["metric"]) == ("finetune", "unmasked", "all", "mrr@5")
    ]
    assert found == rows[1].values[Measure("unmasked", "all", "mrr@5")]


# --- experiments


def small(**changes: Any) -> dict[str, Any]:
    return {
        "title": "T",
        "question": "Q?",
        "variants": {"A": {"x": 1}, "B": {"x": 2, "tune": {"w": [1, 2]}}, "C": {"start": "A", "phases": ["finetune"]}},
        **changes,
    }


def test_an_experiment_runs_chooses_on_validation_and_writes_its_files(tmp_path: Path):
    pytest.importorskip("matplotlib")
    valid = {1: 0.2, 2: 0.3}
    ran: list[Cell] = []

    def run(cell: Cell, settings: Path, log: IO[bytes], lock: int) -> int:
        ran.append(cell)
        own = {"pretrain": ranks_of(cell.seed), "finetune": ranks_of(cell.seed, 3 * cell.settings.get("x", 3))}
        a_run(settings.parent / "PAD-d-1", own, valid=valid.get(cell.settings.get("w"), 0.1))
        return 0

    experiment = parse_experiment("small", small(extra={"overlap": "diagnostics.kept.overlap"}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("recbole_pad.experiments.cells._run_process", run)
        arguments = (experiment, "d", [1, 2], {"epochs": 3, "x": 9}, tmp_path / "out", tmp_path / "cells")
        found = run_experiment(*arguments, command="recbole-pad experiment small", say=lambda line: None)
        n_ran = len(ran)
        again = run_experiment(*arguments, command="recbole-pad experiment small", say=lambda line: None)
    assert len(ran) == n_ran == 2 + 2 + 1 + 2  # A; w = 1 and 2 with the first seed, 2 with the second; C
    assert [choice.chosen for choice in found.choices] == [2]
    assert found.choices[0].scores == {"1": 0.2, "2": 0.3}
    assert [row.label for row in found.rows] == ["A", "B", "C"]
    assert {cell.settings["epochs"] for cell in ran} == {3}
    assert {cell.settings["x"] for cell in ran if cell.label == "A"} == {1}, "a variant's own setting was lost"
    assert {cell.settings["x"] for cell in ran if cell.label == "C"} == {9}
    files = {path.suffix: path for path in found.files}
    assert set(files) == {".md", ".json", ".csv", ".png", ".svg"}
    page = files[".md"].read_text()
    for text in (
        "# T (d)",
        "Q?",
        "recbole-pad experiment small",
        "small-d.svg",
        "| overlap |",
        "All variants: epochs: 3, x: 9.",
        "0.300 ± 0.000",
        "chosen",
    ):
        assert text in page
    assert json.loads(files[".json"].read_text())["choices"][0]["chosen"] == 2
    assert files[".png"].read_bytes()[:4] == b"\x89PNG"
    assert files[".svg"].read_bytes() == again.files[-1].read_bytes()
    starts = {cell.start.label for cell in ran if cell.start}
    assert starts == {"A"}


def test_the_words_name_what_differs_from_the_reference(tmp_path: Path):
    experiment = parse_experiment("small", small(variants={"A": {}, "B": {}, "C": {}}))
    rows = [row for row in some_rows(tmp_path, {"A": 2, "B": 25, "C": 2.0}) if row.is_last]
    text = in_words(experiment, rows, against_reference(rows, rows[0], n_resamples=2000))
    assert "on all targets (NDCG@10 in points; users, 5 %, corrected): better: `B` (+" in text
    assert "`C`" not in text
    assert "The highest NDCG@10 has `B`" in text


def test_the_page_says_which_variants_stop_on_another_metric(tmp_path: Path):
    rows = []
    for label, metric in (("A", "NDCG@10"), ("B", "Hit@10"), ("C", "Hit@10")):
        cell = a_cell(1, label, x=label)
        a_run(cell.folder(tmp_path) / "PAD-d-1", {"pretrain": ranks_of(1), "finetune": ranks_of(2)}, metric=metric)
        rows += rows_of("d", label, results(tmp_path, [cell]))
    assert "Early stopping on NDCG@10 (B, C: Hit@10), history masked." in protocol_text(rows)
    assert "Early stopping on Hit@10, history masked." in protocol_text(rows[2:])


def test_rows_of_different_last_phases_are_compared_unless_phases_are_shown_apart(tmp_path: Path):
    rows = some_rows(tmp_path, {"A": 2, "B": 25})
    last = [row for row in rows if row.label == "B" and row.phase == "pretrain"] + [row for row in rows if row.is_last]
    whole = parse_experiment("small", small(variants={"A": {}, "B": {}}))
    apart = parse_experiment("small", small(variants={"A": {}, "B": {}}, show=["pretrain", "finetune"]))
    assert [len(own) for own in grouped(whole, last).values()] == [3]
    assert {phase: [row.name for row in own] for phase, own in grouped(apart, last).items()} == {
        "pretrain": ["B, pretrain"],
        "finetune": ["A", "B"],
    }


def test_a_model_without_the_phases_that_are_shown_stands_with_the_last_of_them(tmp_path: Path):
    pytest.importorskip("matplotlib")

    def run(cell: Cell, settings: Path, log: IO[bytes], lock: int) -> int:
        phases = ["pretrain", "align", "finetune"] if cell.model == "PAD" else ["train"]
        a_run(settings.parent / "run-1", {phase: ranks_of(cell.seed) for phase in phases})
        return 0

    variants = {"PAD": {}, "stock": {"model": "SASRec"}}
    experiment = parse_experiment("small", small(variants=variants, show=["align", "finetune"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("recbole_pad.experiments.cells._run_process", run)
        found = run_experiment(experiment, "d", [1], {}, tmp_path / "out", tmp_path / "cells", say=lambda line: None)
    assert [row.name for row in found.rows] == ["PAD, align", "PAD", "stock"]
    assert {(test.first, test.second) for test in found.tests} == {("stock", "PAD")}


def test_an_experiment_without_matplotlib_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("recbole_pad.experiments.figures.find_spec", lambda name: None)
    with pytest.raises(InputError, match="figures need matplotlib: pip install"):
        run_experiment(parse_experiment("small", small()), "d", [1], {}, tmp_path / "out", tmp_path / "cells")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "needs a mapping"),
        (small(titel="x"), "'titel' is not understood \\(did you mean 'title'\\?\\)"),
        (small(reference="D"), "reference: 'D' is no variant"),
        ({"variants": {"A": {"include": "nothing"}}}, "A: include: properties/settings/nothing.yaml does not exist"),
        ({"variants": {"A": {"start": "B"}}}, "A: start: 'B' is no variant"),
        ({"variants": {"A": {"tune": {"x": []}}}}, "A: tune:"),
        ({"variants": {"A": [1]}}, "must be a mapping"),
        ({"variants": {"A": {"start": "B"}, "B": {"start": "A"}}}, "A: start: A from B from A goes in a circle"),
        (small(show=["alignn"]), "small: show: 'alignn' is not known"),
        (small(tuning={"seed": 3}), "tuning: 'seed' is not understood"),
    ],
)
def test_bad_experiments_are_refused(content: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        parse_experiment("small", content)


def test_a_variant_includes_a_file_of_settings_below_its_own():
    shipped = properties("settings", "pad_published.yaml")
    found = parse_experiment("small", {"variants": {"A": {}, "B": {"include": "pad_published", "learning_rate": 0.5}}})
    assert found.variants["A"].settings == {}
    assert found.variants["B"].settings == {**shipped, "learning_rate": 0.5}


def test_an_unknown_experiment_is_refused():
    with pytest.raises(InputError, match=r"did you mean 'kernels'.*forgetting"):
        read_experiment("kernel")
    with pytest.raises(InputError, match=r"none\.yaml does not exist"):
        read_experiment("none.yaml")


@pytest.mark.parametrize("name", experiment_names())
def test_every_variant_of_the_shipped_experiments_has_settings_that_are_known(
    name: str, settings: Any, data_path: Path
):
    experiment = read_experiment(name)
    assert experiment.title
    assert experiment.question
    for variant in experiment.variants.values():
        tuned = [{key: value} for key, values in variant.tune.items() for value in values] or [{}]
        for values in tuned:
            asked = {**experiment.settings, **variant.settings, **values, "data_path": str(data_path)}
            config = settled_config(variant.model, "tiny", None, asked)
            PADConfig.read(config)
    trial = experiment.tuning.get("settings", {})
    assert set(experiment.tuning) <= {"seeds", "settings"}
    PADConfig.read(settled_config("PAD", "tiny", None, {**experiment.settings, **trial, "data_path": str(data_path)}))


def test_published_settings_are_the_seed_papers():
    shipped = properties("settings", "pad_published.yaml")
    assert read_experiment("seed-paper").variants["published"].settings == shipped
    _, published = read_experiment("published").variants.values()
    differing = {key for key, value in published.settings.items() if shipped.get(key) != value}
    assert differing == {"learning_rate", "finetune.learning_rate", "stopping_step"}


# --- the real thing, small


@pytest.mark.slow
def test_compare_and_experiment_from_the_command_line(settings: Any, data_path: Path, tmp_path: Path):
    keys = ("epochs", "hidden_size", "inner_size", "MAX_ITEM_LIST_LENGTH", "train_batch_size")
    given = [f"--{key}={value}" for key, value in settings("PAD").items() if key in keys]
    common = ["--cells", "runs", f"--data_path={data_path}", "--text_encoder=tfidf", *given]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}

    def command(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "recbole_pad", *words, *common], capture_output=True, text=True, env=env, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    compared = ["compare", "--models", "PAD,SASRec,TextKNN", "--datasets", "tiny", "--seeds", "1,2", "--jobs", "2"]
    out = command(*compared)
    assert "TextKNN does not know hidden_size, inner_size" in out
    assert "[5/5]" in out
    report = json.loads((tmp_path / "comparison" / "comparison.json").read_text())
    last = {row["model"]: row for row in report["rows"] if row["is_last"]}
    assert {model: row["seeds"] for model, row in last.items()} == {"PAD": [1, 2], "SASRec": [1, 2], "TextKNN": [1]}
    assert all(math.isfinite(test["difference"]) for test in report["tests"])
    assert "[1/" not in command(*compared)  # nothing runs again
    file = tmp_path / "own.yaml"
    file.write_text("title: own\nvariants:\n  PAD: {}\n  uniform: {start: PAD, phases: [finetune], gate_fit: none}\n")
    out = command("experiment", str(file), "--dataset", "tiny", "--seeds", "1")
    assert "[1/1] uniform on tiny, seed 1" in out  # PAD is the run of the comparison
    assert (tmp_path / "experiment" / "own-tiny.md").is_file()
