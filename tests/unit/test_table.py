import json
from pathlib import Path
from typing import Any

import pytest

from recbole_pad.errors import InputError
from recbole_pad.evaluation.table import read_reports, result_table


def entry(n: int, hit: float = 0.0, ndcg: float = 0.0) -> dict[str, Any]:
    return {"n": n, "hit@10": hit, "ndcg@10": ndcg} if n else {"n": 0}


def phase(masked: dict[str, Any], unmasked: dict[str, Any], **frequency: dict[str, Any]) -> dict[str, Any]:
    groups = {name: {"n": 0} for name in ("0", "1-5", "6-10", "11-20", "21-50", "51-100", ">100")} | frequency
    return {
        "seconds": 12.6,
        "test": {
            "masked": {"all": masked, "frequency": groups},
            "unmasked": {"all": unmasked, "frequency": groups},
        },
    }


PAD_REPORT = {
    "model": "PAD",
    "backbone": "GRU4Rec",
    "dataset": "tiny",
    "test_result": {"hit@10": 0.5},
    "protocol": {"split": {"LS": "valid_and_test"}, "ranking": {"valid": "full", "test": "full"}},
    "phases": {
        "pretrain": phase(entry(8, 0.25, 0.125), entry(8, 0.125, 0.0625)),
        "finetune": phase(
            entry(8, 0.5, 0.2),
            entry(8, 0.5, 0.1),
            **{"0": entry(1, 1.0, 0.4), "1-5": entry(3, 1 / 3, 0.0), ">100": entry(4, 0.75, 0.5)},
        ),
    },
}
STOCK = {
    **PAD_REPORT,
    "model": "SASRec",
    "backbone": None,
    "phases": {"train": phase(entry(8, 1.0, 1.0), entry(0))},
}


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_one_line_for_each_model_and_phase_in_order():
    lines = result_table([PAD_REPORT, STOCK]).splitlines()
    assert lines[0] == "tiny, test, full ranking, leave-one-out; Hit@10 / NDCG@10 in %"
    assert [cells(line)[:2] for line in lines[4:]] == [
        ["PAD (GRU4Rec)", "pretrain"],
        ["PAD (GRU4Rec)", "finetune"],
        ["SASRec", "train"],
    ]
    assert {len(cells(line)) for line in lines[2:]} == {7}


def test_numbers_are_percent_with_two_digits():
    line = result_table([PAD_REPORT]).splitlines()[5]
    assert cells(line)[2:4] == ["50.00 / 20.00", "50.00 / 10.00"]
    assert cells(line)[5:] == ["75.00 / 50.00", "13"]


def test_cold_targets_are_averaged_over_rows_not_over_groups():
    """1 row with hit 1 and 3 rows with hit 1/3: 2 of 4 hit; ndcg 0.4 / 4."""
    assert cells(result_table([PAD_REPORT]).splitlines()[5])[4] == "50.00 / 10.00"


def test_a_group_without_targets_shows_no_number():
    assert cells(result_table([PAD_REPORT]).splitlines()[4])[4:6] == ["no targets", "no targets"]
    assert cells(result_table([STOCK]).splitlines()[4])[3] == "no targets"


def test_a_run_that_is_not_reported_by_groups_shows_recboles_own_results():
    bare = {"seconds": 1.0, "best_valid_result": {"hit@10": 0.25, "ndcg@10": 0.125, "mrr@10": 1.0}}
    report = {**PAD_REPORT, "phases": {"pretrain": bare, "finetune": bare}}
    assert [cells(line)[2] for line in result_table([report]).splitlines()[4:]] == ["-", "Hit@10 50.00"]
    of_valid = [cells(line)[2] for line in result_table([report], split="valid").splitlines()[4:]]
    assert of_valid == ["Hit@10 25.00, NDCG@10 12.50"] * 2


def test_the_first_line_says_how_targets_were_chosen_and_ranked():
    by_time = {"split": {"TS": [0.8, 0.1, 0.1]}, "ranking": {"valid": "uni100", "test": "full"}, "cold_split": 0.1}
    report = {**STOCK, "protocol": by_time}
    line = result_table([report]).splitlines()[0]
    assert line.startswith("tiny, test, full ranking, split {'TS': [0.8, 0.1, 0.1]}, 0.1 of the items withheld;")
    assert result_table([{**report, "phases": {"train": {"seconds": 1.0}}}], split="valid").startswith(
        "tiny, valid, ranking among uni100, split"
    )
    with pytest.raises(InputError, match="different protocols cannot share a table: full ranking, leave-one-out; full"):
        result_table([STOCK, report])


def test_the_split_can_be_chosen():
    report = {**STOCK, "phases": {"train": {"seconds": 1.0, "valid": STOCK["phases"]["train"]["test"]}}}
    table = result_table([report], split="valid")
    assert table.splitlines()[0].startswith("tiny, valid")
    assert cells(table.splitlines()[4])[2] == "100.00 / 100.00"


def test_reports_are_read_from_folders_and_files_and_printed_in_order(tmp_path: Path):
    for name, report in (("one", PAD_REPORT), ("two", STOCK)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(json.dumps(report))
    read = read_reports([tmp_path / "two", tmp_path / "one" / "result.json"])
    assert [report["model"] for report in read] == ["SASRec", "PAD"]
    assert result_table(read) == result_table([STOCK, PAD_REPORT])


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "no such result"), ("{", "is not a result.json"), ("[]", "is not a result.json"), ("{}", "'phases'")],
)
def test_a_folder_without_a_whole_result_is_named(tmp_path: Path, content: str | None, words: str):
    if content is not None:
        (tmp_path / "result.json").write_text(content)
    with pytest.raises(InputError, match=words) as caught:
        read_reports([tmp_path])
    assert str(tmp_path / "result.json") in str(caught.value)


def test_runs_on_two_datasets_do_not_share_a_table(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(json.dumps({**STOCK, "dataset": name}))
    with pytest.raises(InputError, match="different datasets"):
        read_reports([tmp_path / "a.json", tmp_path / "b.json"])
