"""The page about runs: what it says against result.json, what it escapes, what it refuses."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects
import pytest

from recbole_pad.__main__ import main
from recbole_pad.errors import InputError
from recbole_pad.report import page as page_module
from recbole_pad.report.figures import planes
from recbole_pad.report.markup import embed, number, percent, with_best, word
from recbole_pad.report.page import page, write_report
from recbole_pad.report.runs import Run, Stat, group_runs, read_runs

EVIL = '</script><script>alert(1)</script> <b>& "quoted"</b> it\'s'
GROUPS = ("0", "1-5", "6-10", "11-20", "21-50", "51-100", ">100")


def metrics(n: int, value: float) -> dict[str, Any]:
    names = [f"{name}@{k}" for k in (5, 10, 20) for name in ("hit", "ndcg", "mrr")]
    return {"n": n, **({name: value + place / 1000 for place, name in enumerate(names)} if n else {})}


def split(value: float) -> dict[str, Any]:
    return {
        protocol: {
            "all": metrics(8, value + shift),
            "frequency": {name: metrics(0 if name == "0" else 2, value + shift) for name in GROUPS},
            "bins": {str(number): metrics(4, value + shift) for number in (1, 2)},
        }
        for protocol, shift in (("masked", 0.0), ("unmasked", 0.1))
    }


def space(width: int) -> dict[str, Any]:
    return {"width": width, "anisotropy": 0.25, "effective_rank": 1.5, "spectrum": [0.75, 0.25]}


def report(model: str = "PAD", seed: int = 1, value: float = 0.2, **changes: Any) -> dict[str, Any]:
    """A result.json as a run writes it, with all parts."""
    phases = ("pretrain", "align", "finetune") if model == "PAD" else ("train",)
    entries = {
        phase: {
            "seconds": 10.0,
            "peak_memory_mb": 100.0,
            "epochs": 2,
            "best_epoch": 1,
            "train_loss": [3.0, 2.5],
            "valid_curve": [[0, 0.1], [1, 0.125]],
            "reused_from": "",
            "valid": split(value + 0.01 * place),
            "test": split(value + 0.02 * place),
        }
        for place, phase in enumerate(phases)
    }
    if model == "PAD":
        entries["finetune"]["diagnostics"] = {
            "n_items": 3,
            "spaces": {"id": space(4), "text": space(8), "aligned": space(4)},
            "mmd": {"n_items": 3, "before": {"gaussian": 0.5, "linear": None}, "after": {"gaussian": 0.125}},
            "kept": {"overlap": 0.625, "tau_target": 0.875, "tau_random": None},
            "text_overlap": {"id_text": 0.375},
            "gate": {
                "experts": ["rec", "match"],
                "bins": {"1": [2.0, 0.5], "2": [1.0, 3.0]},
                "shares": {"1": [0.8, 0.2], "2": [0.25, 0.75]},
            },
        }
    item = {"item": "i7", "n": 5, "frequency": 3, "hit@10": 0.5, "ndcg@10": 0.25}
    return {
        "format": 1,
        "model": model,
        "backbone": "SASRec" if model == "PAD" else None,
        "dataset": "tiny",
        "seed": seed,
        "protocol": {
            "split": {"LS": "valid_and_test"},
            "ranking": {"valid": "full", "test": "full"},
            "mask_history": True,
            "valid_metric": "NDCG@10",
            "max_history": 20,
        },
        "n_parameters": 1234,
        "machine": {"platform": "Linux-6", "cpus": 2, "device": "cpu"},
        "test_result": {"hit@10": 0.4321},
        "phases": entries,
        "items": {"at_least": 5, "best": [{**item, "title": EVIL}], "hardest": [{**item, "title": ""}]},
        "versions": {"python": "3.11.7", "recbole": "1.2.1"},
        **changes,
    }


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Path]:
    """Write a run folder."""

    def write(name: str, content: dict[str, Any], spaces: bool = True, **settings: Any) -> Path:
        folder = tmp_path / f"{content['model']}-tiny-2026112{content['seed']}T045318-{name}"
        folder.mkdir()
        (folder / "result.json").write_text(json.dumps(content))
        (folder / "config.yaml").write_text(
            json.dumps({"model": content["model"], "seed": content["seed"], **settings})
        )
        (folder / "all_settings.yaml").write_text("hidden_size: 64\n")
        if spaces:
            points = np.arange(6, dtype=np.float32).reshape(3, 2)
            columns = {"id": points, "text": points, "aligned": points}
            np.savez(folder / "spaces.npz", item=[1, 2, 3], count=[9, 1, 99], bin=[1, 2, 1], **columns)
        return folder

    return write


class Reader(HTMLParser):
    """Tables by caption, ids, headings, scripts and text, read by the standard library's parser."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.bold: list[str] = []
        self.ids: list[str] = []
        self.headings: list[tuple[str, str]] = []
        self.scripts: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self._open: list[str] = []
        self._rows: list[list[str]] = []
        self._caption = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.add(tag)
        if "id" in given:
            self.ids.append(str(given["id"]))
        if tag in ("meta", "link", "br"):
            return
        self._open.append(tag)
        if tag == "table":
            self._rows, self._caption = [], ""
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")
        elif tag in ("h1", "h2", "h3"):
            self.headings.append((tag, ""))
        elif tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag  # every element is closed in its place
        if tag == "table":
            assert self._caption not in self.tables, "two tables of one caption"
            self.tables[self._caption] = self._rows

    def handle_data(self, data: str) -> None:
        if "script" in self._open:
            self.scripts[-1] += data
            return
        if "style" in self._open:
            return
        self.text += data
        if "caption" in self._open:
            self._caption += data
        elif "td" in self._open or "th" in self._open:
            self._rows[-1][-1] += data
            if "strong" in self._open:
                self.bold.append(data)
        elif self._open and self._open[-1] in ("h1", "h2", "h3"):
            self.headings[-1] = (self.headings[-1][0], data)

    @property
    def figures(self) -> dict[str, Any]:
        return json.loads(self.scripts[0])


@pytest.fixture(autouse=True)
def _short_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "_plotly", lambda: "/* plotly */")


def read(*folders: Path) -> Reader:
    return Reader(page(read_runs(folders)))


# --- contents -------------------------------------------------------------------------------------


def test_results_are_those_of_result_json(run: Callable[..., Path]):
    shown = read(run("a", report()), run("b", report("SASRec", value=0.1)))
    for protocol, title in (("masked", "history masked"), ("unmasked", "history not masked")):
        head, *rows = shown.tables[f"Test, {title}, in %"]
        assert [row[:2] for row in rows] == [
            ["PAD (SASRec)", "pretrain"],
            ["PAD (SASRec)", "align"],
            ["PAD (SASRec)", "finetune"],
            ["SASRec", "train"],
        ]
        measured = report()["phases"]["align"]["test"][protocol]["all"]
        names = [name.lower().replace("hr@", "hit@") for name in head[2:]]
        assert rows[1][2:] == [f"{100 * measured[name]:.2f}" for name in names]
        assert len(names) == 9
        assert set(rows[2][2:]) <= set(shown.bold)  # the last phase is best in every column
        assert not set(rows[3][2:]) & set(shown.bold)
    assert "NDCG@10 24.40 %" in shown.text  # 0.2 + 2 * 0.02 and four thousandths: the headline


def test_one_run_has_no_best_where_it_has_one_row(run: Callable[..., Path]):
    assert not read(run("a", report("SASRec"))).bold


def test_seeds_are_put_together_as_mean_and_standard_deviation(run: Callable[..., Path]):
    values = (0.1, 0.2, 0.4)
    folders = [
        run(str(seed), report(seed=seed, value=value), checkpoint_dir=f"seed{seed}")
        for seed, value in enumerate(values, start=1)
    ]
    shown = read(*folders)
    _, *rows = shown.tables["Test, history masked, in %; mean ± standard deviation over seeds"]
    assert len(rows) == 3  # one for each phase
    mean, deviation = statistics.mean(values), statistics.stdev(values)
    assert rows[0][2] == f"{100 * mean:.2f} ± {100 * deviation:.2f}"
    assert "1; 2; 3" in shown.text
    bars = next(spec["data"] for spec in shown.figures.values() if spec["data"][0]["type"] == "bar")
    assert len(bars) == 1
    assert bars[0]["y"][0] == pytest.approx(100 * (mean + 0.04 + 0.003), rel=1e-4)  # hit@10 after finetune
    assert bars[0]["error_y"]["array"][0] == pytest.approx(100 * deviation, rel=1e-4)


def test_other_settings_make_another_model_and_name_it(run: Callable[..., Path]):
    folders = [
        run("a", report(seed=1), mmd_kernel="gaussian", mmd_weight=0.2),
        run("b", report(seed=1), mmd_kernel="laplacian", mmd_weight=0.2),
        run("c", report(seed=2), mmd_kernel="laplacian", mmd_weight=0.2),
    ]
    models = group_runs(read_runs(folders))
    assert [(model.label, model.seeds) for model in models] == [
        ("PAD (SASRec): mmd_kernel=gaussian", "1"),
        ("PAD (SASRec): mmd_kernel=laplacian", "1, 2"),
    ]


def test_runs_under_another_protocol_and_second_runs_of_a_seed_are_not_averaged(run: Callable[..., Path]):
    other = report(seed=2)
    other["protocol"] = {**other["protocol"], "mask_history": False}
    folders = [run("a", report(seed=1)), run("b", other), run("c", report(seed=1)), run("d", report(seed=2))]
    models = group_runs(read_runs(folders))
    assert [(model.label, model.seeds) for model in models] == [
        ("PAD (SASRec): mask_history=True", "1, 2"),
        ("PAD (SASRec): mask_history=False", "2"),
        ("PAD (SASRec): mask_history=True #2", "1"),
    ]


def test_models_that_differ_by_a_missing_setting_have_different_names(run: Callable[..., Path]):
    models = group_runs(read_runs([run("a", report()), run("b", report(), fusion="sum")]))
    assert [model.label for model in models] == ["PAD (SASRec)", "PAD (SASRec): fusion=sum"]


def test_figures_hold_the_numbers_of_result_json(run: Callable[..., Path]):
    shown = read(run("a", report()))
    drawn = [trace for spec in shown.figures.values() for trace in spec["data"]]
    by_name = {trace["name"]: trace for trace in drawn if "name" in trace}
    assert by_name["before"]["x"] == ["gaussian", "linear"]
    assert by_name["before"]["y"] == [0.5, None]
    assert by_name["after"]["y"] == [0.125, None]
    weights = [trace["y"] for trace in drawn if trace.get("name") == "match"]
    assert weights == [[0.5, 3.0], [20.0, 75.0]]  # weights, and shares in %
    assert by_name["ID"]["y"] == [0.75, 0.25]
    curves = [spec["data"][0] for spec in shown.figures.values() if spec["layout"]["xaxis"]["title"]["text"] == "epoch"]
    assert [curve["y"] for curve in curves] == [[3.0, 2.5], [10.0, 12.5]] * 3
    assert all(curve["x"] == [1, 2] for curve in curves)
    assert [curve["marker"]["size"] for curve in curves[1::2]] == [[3, 9]] * 3  # the kept epoch is large
    bars = next(spec["data"][0] for spec in shown.figures.values() if spec["data"][0]["type"] == "bar")
    assert [tick.split("<")[0] for tick in bars["x"]] == ["1-5", "6-10", "11-20", "21-50", "51-100", "&gt;100"]


def test_every_figure_is_valid_for_plotly(run: Callable[..., Path]):
    shown = read(run("a", report()), *[run(str(n), report(seed=n), n_layers=n) for n in range(2, 12 - 2)])
    for spec in shown.figures.values():
        plotly.graph_objects.Figure(spec)  # refuses an unknown property or a bad value


def test_every_figure_has_its_place_and_ids_are_not_repeated(run: Callable[..., Path]):
    shown = read(run("a", report()), run("b", report("SASRec")))
    assert len(shown.ids) == len(set(shown.ids))
    assert set(shown.figures) == {identity for identity in shown.ids if re.fullmatch(r"figure-\d+", identity)}
    assert len(shown.figures) > 10


def test_planes_draw_frequent_items_last_and_colour_by_the_logarithm():
    points = np.array([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]])
    figure = planes(Run("r", {}, {}, {}, {"count": np.array([100, 1, 10]), "id": points}), ["id"])[0]
    (trace,) = figure.spec["data"]
    assert trace["x"] == [2.0, 4.0, 0.0]
    assert trace["marker"]["color"] == [0.0, 1.0, 2.0]
    assert trace["marker"]["cmax"] == 2


def test_a_model_that_does_not_train_has_one_large_dot(run: Callable[..., Path]):
    content = report("Popularity")
    content["phases"]["train"].update(train_loss=[], valid_curve=[[0, 0.1]], best_epoch=-1, epochs=0)
    shown = read(run("a", content, spaces=False))
    (curve,) = [trace for spec in shown.figures.values() for trace in spec["data"] if trace["type"] == "scatter"]
    assert (curve["x"], curve["y"], curve["marker"]["size"]) == ([1], [10.0], [9])
    assert next(row for row in shown.tables["Training"] if row[0] == "Popularity")[3] == "\u2013"  # no best epoch


def test_diagnostics_and_items_are_in_tables(run: Callable[..., Path]):
    tables = read(run("a", report())).tables
    assert tables["What PAD (SASRec) keeps of its ID space"][1][:5] == ["finetune", "0.625", "0.875", "\u2013", "0.375"]
    assert tables["Item spaces of PAD (SASRec)"][1] == ["finetune", "ID", "4", "0.250", "1.5"]
    assert tables["Ranked best by PAD (SASRec)"][1] == [EVIL, "3", "5", "50.00", "25.00"]
    assert tables["Ranked worst by PAD (SASRec)"][1][0] == "i7"  # an item without a title: its token
    assert tables["Versions"] == [["runs", "python", "recbole"], ["1", "3.11.7", "1.2.1"]]


def test_a_cold_split_has_a_table(run: Callable[..., Path]):
    content = report("SASRec")
    content["phases"]["train"]["test"]["masked"]["cold_split"] = {"in_set": metrics(6, 0.3), "cold": metrics(2, 0.05)}
    content["protocol"].update(cold_split=0.1, cold_split_seed=5)
    shown = read(run("a", content))
    _, *rows = shown.tables["Items in training and items withheld from it, history masked, in %"]
    assert [row[2:5] for row in rows] == [["in training", "6", "30.30"], ["withheld", "2", "5.30"]]
    assert "10 % of the items, drawn with seed 5" in shown.text


def test_headings_go_down_one_step_at_a_time(run: Callable[..., Path]):
    levels = [int(tag[1]) for tag, _ in read(run("a", report())).headings]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_settings_and_the_command_are_shown(run: Callable[..., Path]):
    shown = read(run("a", report(seed=3), phases=["pretrain"]))
    assert ["phases", "['pretrain']"] in shown.tables["Set for PAD (SASRec), seed 3 (config.yaml)"]
    assert ["hidden_size", "64"] in shown.tables["All other keys of PAD (SASRec), seed 3 (all_settings.yaml)"]
    assert "--model=PAD" in shown.text
    assert "--seed=3" in shown.text
    assert """'--phases=['"'"'pretrain'"'"']'""" in shown.text  # quoted for a shell


def test_a_value_with_an_equals_sign_is_left_to_the_file(run: Callable[..., Path]):
    shown = read(run("a", report(), data_path="a=b"))
    assert "recbole-pad run --model=PAD --dataset=tiny --config_files=config.yaml" in shown.text


def test_runs_of_several_protocols_carry_a_warning(run: Callable[..., Path]):
    other = report("SASRec")
    other["protocol"] = {**other["protocol"], "mask_history": False}
    first, second = run("a", report()), run("b", other)
    assert "do not share one protocol" in read(first, second).text
    assert "do not share one protocol" not in read(first).text


# --- parts that are not there ---------------------------------------------------------------------


def test_a_run_of_an_earlier_version_has_its_results_and_a_line_for_what_it_lacks(run: Callable[..., Path]):
    content = report()
    del content["items"]
    for entry in content["phases"].values():
        entry.pop("valid_curve")
        entry.pop("diagnostics", None)
    folder = run("a", content, spaces=False)
    (folder / "config.yaml").unlink()
    (folder / "all_settings.yaml").unlink()
    shown = read(folder)
    assert "Test, history masked, in %" in shown.tables
    for sentence in (
        "These runs keep no validation result of each epoch.",
        "These runs keep no diagnostics of their item spaces.",
        "These runs keep no list of items.",
        "The folder holds no settings.",
    ):
        assert sentence in shown.text


def test_a_general_recommender_shows_recboles_own_result(run: Callable[..., Path]):
    content = report("BPR")
    content["phases"] = {"train": {"seconds": 1.0, "epochs": 0, "best_epoch": -1, "train_loss": []}}
    shown = read(run("a", content, spaces=False))
    assert shown.tables["Test, as RecBole reports it"] == [["model", "hit@10"], ["BPR", "0.4321"]]
    assert "no results by frequency" in shown.text


def test_a_result_with_the_least_that_one_can_have(tmp_path: Path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps({"model": "X", "dataset": "tiny", "phases": {}}))
    shown = read(folder)
    assert ("h1", "tiny") in shown.headings
    assert shown.figures == {}


# --- escape, bytes, refusals ----------------------------------------------------------------------


def test_nothing_from_data_becomes_markup(run: Callable[..., Path]):
    content = report(
        dataset=EVIL, model=EVIL.replace("/", "|"), machine={"platform": EVIL, "cpus": EVIL, "device": EVIL}
    )
    folder = run("a", {**content, "model": "PAD"}, key=EVIL)
    (folder / "result.json").write_text(json.dumps(content))
    text = page(read_runs([folder]))
    assert "<script>alert" not in text
    assert "<b>" not in text
    shown = Reader(text)
    assert len(shown.scripts) == 3
    assert ("h1", EVIL) in shown.headings
    assert not any("<" in str(trace.get("name")) for spec in shown.figures.values() for trace in spec["data"])


def test_embedded_json_is_the_same_json_and_cannot_end_its_element():
    content = {"a": EVIL, "b": "<!-- \u2028 é"}
    assert json.loads(embed(content)) == content
    assert not set(embed(content)) & set("<>&\u2028")


def test_the_same_runs_give_the_same_bytes_from_anywhere(
    run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folders = [run("a", report()), run("b", report("SASRec"))]
    one = write_report(folders, tmp_path / "one.html").read_bytes()
    monkeypatch.chdir(tmp_path)
    near = [Path(folders[0].name), Path(folders[1].name) / "result.json"]
    assert write_report(near, Path("two.html")).read_bytes() == one
    assert not list(tmp_path.glob(".*.tmp"))


def test_the_page_names_no_other_place(run: Callable[..., Path], tmp_path: Path):
    text = page(read_runs([run("a", report())]))
    assert "http:" not in text
    assert "https:" not in text
    assert "default-src 'none'" in text


def test_refusals_name_the_place_and_the_remedy(run: Callable[..., Path], tmp_path: Path):
    first, other = run("a", report()), run("b", report("SASRec", dataset="large"))
    with pytest.raises(InputError, match="different datasets"):
        read_runs([first, other])
    with pytest.raises(InputError, match="given twice"):
        read_runs([first, first / "result.json"])
    with pytest.raises(InputError, match="no such result"):
        read_runs([tmp_path / "nothing"])
    with pytest.raises(InputError, match=r"name a file"):
        write_report([first], tmp_path)
    (first / "spaces.npz").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(InputError, match=r"spaces\.npz: is not a file of spaces"):
        read_runs([first])
    (first / "config.yaml").write_text("a: [")
    with pytest.raises(InputError, match=r"config\.yaml: is not a yaml file"):
        read_runs([first])


def test_the_command_writes_the_page(run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    output = tmp_path / "new" / "page.html"
    assert main(["report", str(run("a", report())), "--output", str(output)]) == 0
    assert output.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert str(output) in capsys.readouterr().out
    assert main(["report", str(tmp_path / "nothing"), "--output", str(output)]) == 2
    assert main(["report", str(tmp_path), "--split=valid"]) == 2


# --- small pieces ---------------------------------------------------------------------------------


def test_numbers_are_written_with_their_deviation_and_without_a_minus_before_zero():
    assert number(-0.0001, 3).text == "0.000"
    assert number(-0.5, 1).text == "\u22120.5"
    cell = percent(Stat.of([0.1, 0.2]))
    assert (cell.text, cell.after) == ("15.00", "± 7.07")  # sqrt(2 * 5^2 / 1)
    assert number(None).value is None


def test_equal_best_cells_are_all_marked_and_text_is_not():
    rows = with_best([[word("a"), number(1.0), number(None)], [word("b"), number(1.0), number(2.0)]])
    assert [[cell.best for cell in row] for row in rows] == [[False, True, False], [False, True, True]]
