"""Both engines against loops over a list, and against each other to the byte."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_pad.dataset_prep import prepare as prepare_module
from recbole_pad.dataset_prep.engines import LARGE, Storage, choose, open_engine
from recbole_pad.dataset_prep.errors import InputError
from recbole_pad.dataset_prep.prepare import prepare
from recbole_pad.dataset_prep.recipe import PRESETS, Recipe
from recbole_pad.dataset_prep.sources.source import Interaction, Item, Source
from tests.reference import kcore_loops

duckdb = pytest.importorskip("duckdb")
ENGINES = ["pandas", "duckdb"]
DAY = 86_400_000


def source_of(rows: Sequence[kcore_loops.Row], items: Sequence[Item] = (), **changes: Any) -> Source:
    """A source that gives these rows, whatever file is named."""

    def interactions(paths: Sequence[Path]) -> Iterator[Interaction]:
        return (Interaction(*row) for row in rows)

    def read_items(paths: Sequence[Path]) -> Iterator[Item]:
        return iter(items)

    settings_: dict[str, Any] = {"item_columns": {"title": "token_seq"}, **changes}
    return Source("made", "", "none", "all", interactions, read_items, **settings_)


def made(source: Source, folder: Path, recipe: Recipe, has_items: bool = True, **flags: Any) -> dict[str, Any]:
    raw = folder / "raw"
    raw.write_text("")
    flags["storage"] = Storage(**{key: flags.pop(key) for key in ("engine", "memory_limit") if key in flags})
    return prepare(source, [raw], [raw] if has_items else [], folder, "d", recipe, **flags)


def lines(folder: Path, ending: str) -> list[list[str]]:
    return [line.split("\t") for line in (folder / f"d.{ending}").read_text(encoding="utf-8").split("\n")[1:-1]]


RATINGS: list[float | None] = [None, 1.0, 3.0, 4.0, 5.0]
rows_strategy = st.lists(
    st.tuples(
        st.sampled_from("abcdé"),
        st.sampled_from("vwxyzÄ"),
        st.sampled_from([0, DAY, 2 * DAY]),
        st.sampled_from(RATINGS),
    ),
    min_size=1,
    max_size=40,
)
recipes = st.builds(
    lambda cut, **others: Recipe(longest=cut[0], kept=cut[1], **others),
    cut=st.sampled_from([(None, 0), (3, 1), (3, 3), (5, 2)]),
    duplicates=st.sampled_from(["keep", "exact", "pair"]),
    min_rating=st.sampled_from([None, 4]),
    user_core=st.integers(1, 4),
    item_core=st.integers(1, 4),
)
EQUAL = {"keep": [], "exact": [(0, 1, 2)], "pair": [(0, 1)]}


def check_against_the_loops(rows: list[kcore_loops.Row], known: set[str], recipe: Recipe, engine: str) -> int:
    """Compare files and counts of one run with the loops; returns how many rows are left."""
    items = [{"item": item, "title": f"film {item}"} for item in sorted(known)]
    expected = kcore_loops.prepared(
        rows, known, EQUAL[recipe.duplicates], recipe.min_rating, recipe.user_core, recipe.item_core, recipe.longest,
        recipe.kept,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = source_of(rows, items)
        if not expected:
            with pytest.raises(InputError, match="no interaction is left"):
                made(source, folder, recipe, engine=engine)
            assert [path.name for path in folder.iterdir()] == ["raw"]
            return 0
        manifest = made(source, folder, recipe, engine=engine)
        got = [
            (user, item, int(time) * 1000, float(rating) if rating else None)
            for user, item, time, rating in lines(folder, "inter")
        ]
        assert got == [row for history in expected.values() for row in history]
        assert lines(folder, "item") == [[item, f"film {item}"] for item in sorted({row[1] for row in got})]
    removed = sum(step["removed"] for step in manifest["filters"] if step.get("of") != "items")
    assert removed == len(rows) - len(got)
    of_loops = kcore_loops.by_train_frequency(expected).values()
    table = manifest["by_train_frequency"]
    for place, key in enumerate(("items", "valid", "test")):
        assert sum(line[key] for line in table) == sum(counts[place] for counts in of_loops)
    return len(got)


@settings(max_examples=15, deadline=None)
@given(rows=rows_strategy, known=st.sets(st.sampled_from("vwxyzÄq"), min_size=1), recipe=recipes)
def test_both_engines_keep_what_the_loops_keep_in_the_same_order(
    rows: list[kcore_loops.Row], known: set[str], recipe: Recipe
):
    for engine in ENGINES:
        check_against_the_loops(rows, known, recipe, engine)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "recipe",
    [
        Recipe("keep"),
        Recipe("exact"),
        Recipe("pair"),
        Recipe("keep", min_rating=4),
        Recipe("keep", user_core=6),
        Recipe("keep", item_core=4),
        Recipe("exact", user_core=4, item_core=4),
        Recipe("keep", longest=8, kept=8),
        Recipe("keep", longest=9, kept=3),
        Recipe("pair", min_rating=3, user_core=2, item_core=2, longest=4, kept=4),
    ],
    ids=str,
)
def test_each_rule_on_a_few_hundred_rows(recipe: Recipe, engine: str):
    rng = np.random.default_rng(11)
    rows = [
        (
            f"u{int(40 * rng.random() ** 2)}",
            f"i{rng.integers(60)}",
            int(rng.integers(4)) * DAY,
            RATINGS[rng.integers(5)],
        )
        for _ in range(300)
    ]
    rows += rows[:40]  # again, as reviews are in the dumps
    rng.shuffle(rows)  # type: ignore[arg-type]
    rows = [(str(user), str(item), int(time), rating) for user, item, time, rating in rows]
    left = check_against_the_loops(rows, {f"i{n}" for n in range(50)}, recipe, engine)
    assert 40 < left < 340


@settings(max_examples=10, deadline=None)
@given(rows=rows_strategy, seed=st.integers(0, 3), chunk=st.sampled_from([1, 3, 1000]))
def test_engines_give_the_same_bytes_whatever_the_chunks_and_ties(rows: list[kcore_loops.Row], seed: int, chunk: int):
    before = prepare_module.CHUNK_ROWS
    outputs = []
    for engine, chunk_rows in (("pandas", 1000), ("duckdb", chunk)):
        with tempfile.TemporaryDirectory() as name:
            prepare_module.CHUNK_ROWS = chunk_rows
            try:
                manifest = made(
                    source_of(rows), Path(name), Recipe("keep"), False, engine=engine, ties="shuffle", seed=seed
                )
            finally:
                prepare_module.CHUNK_ROWS = before
            del manifest["engine"], manifest["versions"]
            outputs.append((Path(name, "d.inter").read_bytes(), json.dumps(manifest)))
    assert outputs[0] == outputs[1]


@settings(max_examples=12, deadline=None)
@given(rows=rows_strategy)
def test_the_table_of_targets_is_that_of_the_loops(rows: list[kcore_loops.Row]):
    histories = kcore_loops.prepared(rows, None, [], None, 1, 1, None, 0)
    for engine in ENGINES:
        with tempfile.TemporaryDirectory() as name, open_engine(engine, [], Path(name), "1GB") as tables:
            tables.add_interactions(prepare_module._frame([Interaction(*row) for row in rows], 0, True, Counter())
                                    .assign(tie=range(len(rows))))  # fmt: skip
            tables.cut_histories(None, 0)
            table = tables.by_train_frequency()
        got = {line[0]: tuple(line[1:]) for line in table.to_numpy().tolist()}
        assert got == kcore_loops.by_train_frequency(histories)


def test_the_core_is_iterated_until_it_stands():
    """u3 goes for want of rows; only then has item c too few, only then u2: two rounds, and one that finds nothing."""
    pairs = "u1a u1b u1d u2a u2b u2c u3c u4a u4b u4d".split()
    rows = [(pair[:2], pair[2], DAY * place, None) for place, pair in enumerate(pairs)]
    recipe = Recipe(user_core=3, item_core=2)
    for engine in ENGINES:
        with tempfile.TemporaryDirectory() as name:
            manifest = made(source_of(rows), Path(name), recipe, False, engine=engine)
            assert {user for user, *_ in lines(Path(name), "inter")} == {"u1", "u4"}
        (step,) = [step for step in manifest["filters"] if "rounds" in step]
        assert (step["removed"], step["of_users"], step["of_items"], step["rounds"]) == (4, 3, 1, 3)


@pytest.mark.parametrize("engine", ENGINES)
def test_of_several_lines_of_an_item_the_last_stays_with_its_place(engine: str, tmp_path: Path):
    items = [{"item": name, "title": f"{name}{n}"} for n, name in enumerate(["b", "a", "b", "", "a", "c"])]
    manifest = made(
        source_of([("u", "a", 0, None), ("u", "b", 1, None)], items), tmp_path, PRESETS["all"], engine=engine
    )
    assert lines(tmp_path, "item") == [["b", "b2"], ["a", "a4"]]
    of_items = [step["removed"] for step in manifest["filters"] if step.get("of") == "items"]
    assert of_items == [1, 2, 1]  # without id, but the last, without interactions


@pytest.mark.parametrize("engine", ENGINES)
def test_rows_without_user_item_or_time_are_counted_by_reason(engine: str, tmp_path: Path):
    rows: list[Any] = [("", "a", 0, 5), ("u", "", 0, 5), ("u", "a", None, 5), ("u", "b", None, 5), ("u", "a", 0, None)]
    step = made(source_of(rows), tmp_path, PRESETS["all"], False, engine=engine)["filters"][0]
    assert (step["removed"], step["left"]) == (4, 1)
    assert (step["no user"], step["no item"], step["no readable time"]) == (1, 1, 2)


def test_a_shuffle_of_ties_is_drawn_by_the_seed_and_leaves_times_in_order(tmp_path: Path):
    rows = [("u", f"i{n:03d}", DAY * (n // 50), None) for n in range(200)]
    orders = {}
    for seed in (0, 1):
        made(source_of(rows), tmp_path, PRESETS["all"], False, ties="shuffle", seed=seed)
        written = lines(tmp_path, "inter")
        assert [int(time) for _, _, time, _ in written] == sorted(int(time) for _, _, time, _ in written)
        orders[seed] = [item for _, item, *_ in written]
        up = sum(a < b for a, b in zip(orders[seed], orders[seed][1:], strict=False))
        assert 70 < up < 130  # 199 neighbours, half of them by chance: 5 standard deviations are 35
    assert orders[0] != orders[1]
    made(source_of(rows), tmp_path, PRESETS["all"], False, ties="keep")
    assert [item for _, item, *_ in lines(tmp_path, "inter")] == [item for _, item, *_ in rows]


def test_without_files_of_items_there_is_no_item_file_and_none_of_an_earlier_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    source = source_of([("u", "a", 0, None)], [{"item": "a", "title": "A"}])
    made(source, tmp_path, PRESETS["all"])
    assert (tmp_path / "d.item").exists()
    made(source, tmp_path, PRESETS["all"], False)
    assert not (tmp_path / "d.item").exists()
    assert "no files of items are named" in caplog.text
    with pytest.raises(InputError, match="seed must be a whole number from 0"):
        made(source, tmp_path, PRESETS["all"], ties="shuffle", seed=-1)


def test_auto_takes_duckdb_for_large_files_and_pandas_where_it_is_missing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    assert [choose("auto", LARGE - 1), choose("auto", LARGE), choose("pandas", LARGE)] == ["pandas", "duckdb", "pandas"]
    monkeypatch.setattr("recbole_pad.dataset_prep.engines.find_spec", lambda name: None)
    assert choose("auto", LARGE) == "pandas"
    assert 'pip install -e ".[prepare]"' in caplog.text
    with pytest.raises(InputError, match="engine: 'spark' is not known"):
        choose("spark", 0)


def test_a_memory_limit_that_is_none_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="memory_limit: 'much'"):
        made(source_of([("u", "a", 0, None)]), tmp_path, PRESETS["all"], False, engine="duckdb", memory_limit="much")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"duplicates": "pairs"}, "did you mean 'pair'"),
        ({"user_core": 0}, "user_core must be at least 1"),
        ({"longest": 5, "kept": 6}, "kept must be from 1 to longest"),
        ({"longest": 5}, "kept must be from 1 to longest"),
        ({"kept": 5}, "kept: 5 is of users with more rows than longest; set longest, too"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(changes: dict[str, Any], words: str):
    with pytest.raises(InputError, match=words):
        Recipe(**changes)
