"""The training-free models against literal loops, and what they refuse."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recbole.data.dataset
import recbole.trainer
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from recbole_pad.baselines import models
from recbole_pad.baselines.counts import popularity_ties, transition_probabilities
from recbole_pad.baselines.trainer import TrainingFreeTrainer
from recbole_pad.data.dataset import PADDataset
from recbole_pad.data.histories import Histories, decayed_history
from recbole_pad.errors import InputError
from recbole_pad.preflight import model_names, settled_config
from recbole_pad.property_files import property_file
from recbole_pad.registration import MODELS
from tests.reference import baselines_loops as loops

NAMES = ["Popularity", "MarkovChain", "SLIT", "TextKNN", "MarkovTextKNN"]
DECAYS = {"SLIT": 0.6}  # others 0.7
ROUNDING = {"SLIT": 3e-7}  # float32, but for ties, which are up to 1e-6; others float64
WITH_TEXT = ["TextKNN", "MarkovTextKNN"]
PROPERTIES = property_file("model")
NEWEST = 4  # shorter than many histories of `tiny`

Make = Callable[..., Any]


@pytest.fixture
def config(data_path: Path) -> Make:
    """``config(model, dataset="tiny", **changes)``: a RecBole Config."""

    def make(model: str, dataset: str = "tiny", **changes: Any) -> Any:
        base = {"data_path": str(data_path), "state": "ERROR", "show_progress": False, "eval_batch_size": 64}
        return settled_config(model, dataset, None, {**base, "MAX_ITEM_LIST_LENGTH": NEWEST, **changes})

    return make


@pytest.fixture
def built(config: Make) -> Make:
    """``built(model, **changes)``: (the model, whole dataset, train, valid and test loader)."""

    def make(model: str, dataset: str = "tiny", **changes: Any) -> Any:
        settings = config(model, dataset, **changes)
        whole = create_dataset(settings)
        loaders = data_preparation(settings, whole)
        return get_model(model)(settings, loaders[0]._dataset), whole, *loaders

    return make


class Tiny:
    """`tiny` as its files say, in RecBole's item numbers: train histories, histories at test time, texts."""

    def __init__(self, folder: Path, whole: Any) -> None:
        number = {token: n for n, token in enumerate(whole.field2id_token["item_id"])}
        everything: dict[str, list[int]] = {}
        for line in (folder / "tiny.inter").read_text().splitlines()[1:]:
            user, item, _ = line.split("\t")
            everything.setdefault(user, []).append(number[item])
        usable = [items for items in everything.values() if len(items) > 1]
        self.train = [items[: max(2, len(items) - 2)] for items in usable]
        tokens = whole.field2id_token["user_id"]
        self.before_target = [everything.get(token, [])[:-1] for token in tokens]
        self.n_items = len(number)
        rows = [line.split("\t") for line in (folder / "tiny.item").read_text().splitlines()[1:]]
        vectors = loops.tfidf([title for _, title, _ in rows], ENGLISH_STOP_WORDS)
        self.texts = self.in_item_order(whole, [token for token, _, _ in rows], vectors)

    def linear_transitions(self, decay: float, ridge: float) -> list[list[float]]:
        return loops.linear_transitions(self.train, self.n_items, NEWEST, decay, ridge)

    def in_item_order(self, whole: Any, tokens: list[str], vectors: list[loops.Vector]) -> list[loops.Vector]:
        """Item i22 has a text, but no interaction: RecBole does not number it."""
        vector_of = dict(zip(tokens, vectors, strict=True))
        return [vector_of.get(token, {}) for token in whole.field2id_token["item_id"]]

    def scores(
        self,
        name: str,
        history: list[int],
        decay: float | None = None,
        text_weight: float = 0.5,
        ridge: float = 100.0,
    ) -> list[float]:
        decay = DECAYS.get(name, 0.7) if decay is None else decay
        counts = loops.popularity(self.train, self.n_items)
        added = loops.ties(counts)
        markov = loops.markov(history, loops.followers(self.train), decay, NEWEST, added)
        text = loops.text_knn(history, self.texts, decay, NEWEST, added)
        return {
            "Popularity": counts,
            "MarkovChain": markov,
            "SLIT": loops.slit(history, self.linear_transitions(decay, ridge), decay, NEWEST, added),
            "TextKNN": text,
            "MarkovTextKNN": loops.hybrid(markov, text, text_weight),
        }[name]


def expected(tiny: Tiny, name: str, interaction: Any, **numbers: float) -> torch.Tensor:
    rows = [tiny.scores(name, tiny.before_target[user], **numbers) for user in interaction["user_id"].tolist()]
    return torch.tensor(rows, dtype=torch.float64)


def test_batches(loader: Any) -> list[Any]:
    return [batch[0] for batch in loader]


test_batches.__test__ = False  # type: ignore[attr-defined]


# --- counts ------------------------------------------------------------------------------------------------

HISTORIES = st.lists(st.lists(st.integers(1, 6), max_size=5), min_size=1, max_size=6)


@given(HISTORIES.filter(lambda rows: any(rows)), st.sampled_from([0.0, 0.3, 0.7, 1.0]))
def test_the_weight_of_an_item_is_the_sum_over_its_places(rows: list[list[int]], decay: float):
    rows = [row for row in rows if row]
    item_seq = torch.tensor([row + [0] * (5 - len(row)) for row in rows])
    found = decayed_history(item_seq, torch.tensor([len(row) for row in rows]), decay, 7).toarray()
    wanted = np.zeros((len(rows), 7))
    for r, row in enumerate(rows):
        for j, item in enumerate(reversed(row)):
            wanted[r, item] += decay**j
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


@given(HISTORIES)
def test_transitions_stay_within_a_user_and_sum_to_one(rows: list[list[int]]):
    offsets = np.cumsum([0, *map(len, rows)])
    train = Histories(offsets, np.array([item for row in rows for item in row], dtype=np.int64))
    found = transition_probabilities(train, 7).toarray()
    counts = loops.followers(rows)
    for before in range(7):
        following = counts.get(before, {})
        total = sum(following.values())
        for after in range(7):
            assert found[before, after] == pytest.approx(following.get(after, 0) / total if total else 0.0)


def test_no_train_interaction_at_all_is_no_division_by_zero():
    assert popularity_ties(np.zeros(3, dtype=np.int64)).tolist() == [0.0, 0.0, 0.0]


def test_texts_are_split_like_the_interactions(built: Make, with_commas: dict[str, Any]):
    (tabs, *_, rows), (commas, *_) = built("TextKNN"), built("TextKNN", **with_commas)
    for interaction in test_batches(rows):
        assert torch.equal(tabs.full_sort_predict(interaction), commas.full_sort_predict(interaction))


# --- scores ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_those_of_the_loops(name: str, built: Make, data_path: Path):
    model, whole, _, _, test = built(name)
    tiny = Tiny(data_path / "tiny", whole)
    for interaction in test_batches(test):
        found = model.full_sort_predict(interaction)
        wanted = expected(tiny, name, interaction)
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=ROUNDING.get(name, 1e-14))
    assert max(map(len, tiny.before_target)) > NEWEST, "no history is cut"


@pytest.mark.parametrize("name", NAMES[1:])
def test_own_keys_are_read(name: str, built: Make, data_path: Path):
    numbers = {"decay": 0.25, "text_weight": 2.0, "ridge": 0.5}
    own = {"MarkovTextKNN": ["text_weight"], "SLIT": ["ridge"]}.get(name, [])
    known = {key: numbers[key] for key in ("decay", *own)}
    model, whole, _, _, test = built(name, **known)
    tiny = Tiny(data_path / "tiny", whole)
    interaction = test_batches(test)[0]
    torch.testing.assert_close(
        model.full_sort_predict(interaction),
        expected(tiny, name, interaction, **numbers),
        rtol=1e-12,
        atol=ROUNDING.get(name, 1e-14),
    )


def test_ties_go_to_the_more_popular_item(built: Make):
    model, _, train, _, test = built("MarkovChain")
    counts = train._dataset.train_counts
    scores = model.full_sort_predict(test_batches(test)[0])
    n_compared = 0
    for row in scores[:, 1:]:
        items = 1 + (row < 1e-5).nonzero().squeeze(1)  # never after an item of the history: only the tie-break speaks
        found = counts[items[row[items - 1].argsort()]]
        assert (np.diff(found) >= 0).all()
        n_compared += len(set(found)) > 2
    assert n_compared > 10


@pytest.mark.parametrize("name", NAMES)
def test_the_score_of_a_candidate_is_that_of_the_full_ranking(name: str, built: Make):
    """Rows repeat, as in an evaluation with sampled negatives."""
    model, *_, test = built(name)
    interaction = test_batches(test)[0]
    full = model.full_sort_predict(interaction)
    rows = torch.tensor([0, 3, 0, 1, 3])
    asked = interaction[rows]
    candidates = torch.tensor([1, 7, 9, 2, 7])
    asked.update(type(interaction)({"item_id": candidates}))
    assert torch.equal(model.predict(asked), full[rows, candidates].float())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n_rows", [1, 3])
def test_chunks_of_rows_change_nothing(name: str, n_rows: int, built: Make, monkeypatch: pytest.MonkeyPatch):
    model, *_, test = built(name)
    interaction = test_batches(test)[0]
    whole = model.full_sort_predict(interaction)
    sizes = []
    score = type(model).score
    monkeypatch.setattr(models, "_CHUNK_BYTES", 8 * model.n_items * n_rows)
    monkeypatch.setattr(
        type(model), "score", lambda self, history: sizes.append(history.shape[0]) or score(self, history)
    )
    torch.testing.assert_close(model.full_sort_predict(interaction), whole, rtol=1e-12, atol=1e-14)
    assert max(sizes) == n_rows
    assert sum(sizes) == len(interaction)


@pytest.mark.parametrize("name", NAMES)
def test_what_recbole_writes_into_the_scores_stays_out_of_the_model(name: str, built: Make):
    model, *_, test = built(name)
    interaction = test_batches(test)[0]
    scores = model.full_sort_predict(interaction)
    before = scores.clone()
    scores[:] = -torch.inf
    assert torch.equal(model.full_sort_predict(interaction), before)


def test_dense_vectors_are_transformed_and_their_cosines_added(built: Make, data_path: Path, tmp_path: Path):
    """Negative cosines stay negative in the hybrid, and a vector's length does not matter."""
    rng = np.random.default_rng(5)
    vectors = rng.normal(loc=[1.0, 0.0, 0.0], size=(25, 3))
    tokens = [f"i{n + 1:02d}" for n in range(25)]
    np.save(tmp_path / "own.npy", (vectors * rng.uniform(0.5, 2, size=(25, 1))).astype(np.float32))
    (tmp_path / "own.json").write_text(json.dumps({"items": tokens}))
    asked = {"text_encoder": f"file:{tmp_path / 'own.npy'}", "text_transform": "center"}
    model, whole, _, _, test = built("TextKNN", **asked)
    tiny = Tiny(data_path / "tiny", whole)
    stored = np.load(tmp_path / "own.npy").astype(np.float64)
    centred = stored - np.delete(stored, 21, axis=0).mean(axis=0)  # without i22
    tiny.texts = tiny.in_item_order(whole, tokens, [dict(enumerate(vector)) for vector in centred])
    interaction = test_batches(test)[0]
    wanted = expected(tiny, "TextKNN", interaction)
    assert (wanted < -0.1).any()
    torch.testing.assert_close(model.full_sort_predict(interaction), wanted, rtol=1e-4, atol=1e-5)
    assert model.text_fingerprint == whole.text_table.fingerprint

    hybrid = built("MarkovTextKNN", **asked)[0]
    text = model.full_sort_predict(interaction)
    markov = built("MarkovChain")[0].full_sort_predict(interaction)
    parts = [score / score.abs().amax(dim=1, keepdim=True) for score in (markov, text)]
    torch.testing.assert_close(hybrid.full_sort_predict(interaction), parts[0] + 0.5 * parts[1], rtol=1e-4, atol=1e-5)


def test_texts_are_compared_in_the_space_of_pairs(built: Make):
    """`text_metric: plda` is that of PAD's match expert: 16 times less, and ties by popularity."""
    asked = {"text_encoder": "tfidf+tfidf", "text_transform": "whiten+center", "text_metric": "plda", "decay": 0.6}
    model, _, _, _, test = built("TextKNN", **asked)
    keys = {key: asked[key] for key in ("text_encoder", "text_transform")}
    expert = built("PAD", phases=["finetune"], experts=["match"], match_metric="plda", match_decay=0.6, **keys)[0]
    interaction = test_batches(test)[0]
    found = model.full_sort_predict(interaction) - torch.from_numpy(model.ties)
    torch.testing.assert_close(16 * found.float(), expert.full_sort_predict(interaction), rtol=1e-4, atol=1e-3)
    cosine = built("TextKNN", **asked | {"text_metric": "cosine"})[0].full_sort_predict(interaction)
    assert not torch.allclose(cosine, model.full_sort_predict(interaction), atol=0.05)


def test_a_negative_largest_score_does_not_turn_the_order_round():
    scores = np.array([[-3.0, -1.0, -2.0], [0.0, 0.0, 0.0], [1.0, -4.0, 2.0]])
    found = models._by_largest(scores)
    np.testing.assert_allclose(found, [[-1, -1 / 3, -2 / 3], [0, 0, 0], [0.25, -1, 0.5]], atol=1e-8)


def test_ties_alone_are_no_evidence():
    scores = np.array([[1e-6, 5e-7, 0.0], [0.5, 1e-6, 0.0]])
    np.testing.assert_allclose(models._by_largest(scores), [[1e-6, 5e-7, 0], [1, 2e-6, 0]], rtol=1e-7)


def test_held_out_interactions_do_not_count(built: Make, data_path: Path, tmp_path: Path):
    """Other last two items, same scores for the same history."""
    model, _, _, valid, _ = built("MarkovChain")
    (tmp_path / "other").mkdir()
    lines = (data_path / "tiny" / "tiny.inter").read_text().splitlines()
    rows = [line.split("\t") for line in lines[1:]]
    by_user: dict[str, list[list[str]]] = {}
    for row in rows:
        by_user.setdefault(row[0], []).append(row)
    changed = 0
    for own in by_user.values():
        for row in own[-2:] if len(own) > 3 else []:
            row[1] = "i03" if row[1] != "i03" else "i04"
            changed += 1
    assert changed > 60
    text = "\n".join([lines[0], *("\t".join(row) for own in by_user.values() for row in own)])
    (tmp_path / "other" / "other.inter").write_text(text + "\n")
    other, whole, *_ = built("MarkovChain", "other", data_path=str(tmp_path))
    assert set(whole.field2id_token["item_id"]) <= {"[PAD]", *(f"i{n:02d}" for n in range(1, 26))}
    number = {token: n for n, token in enumerate(whole.field2id_token["item_id"])}
    tokens = valid._dataset.field2id_token["item_id"]
    kept = [n for n, token in enumerate(tokens) if token in number and n > 0]
    there = [number[tokens[n]] for n in kept]
    assert len(kept) > 20
    found, wanted = other.transitions.toarray(), model.transitions.toarray()
    np.testing.assert_array_equal(found[np.ix_(there, there)], wanted[np.ix_(kept, kept)])
    np.testing.assert_array_equal(other.ties[there], model.ties[kept])


# --- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("MarkovChain", {"decay": 1.5}, r"decay: 1.5 is not a number in \[0.0, 1.0\]"),
        ("SLIT", {"ridge": 0}, r"ridge: 0 is not a number in \[1e-06"),
        ("TextKNN", {"decay": "'much'"}, "decay: 'much' is not a number"),
        ("MarkovTextKNN", {"text_weight": -1}, "text_weight: -1 is not a number"),
        ("TextKNN", {"text_transform": "whiten"}, "text_transform: 'whiten' needs dense vectors.*text_transform: none"),
        ("MarkovTextKNN", {"text_metric": "plda"}, "text_metric: 'plda' needs dense vectors.*text_metric: cosine"),
        ("TextKNN", {"text_metric": "euclid"}, "text_metric: 'euclid' is not known"),
        ("MarkovTextKNN", {"text_fields": ["tilte"]}, "no column 'tilte'"),
        ("TextKNN", {"text_encoder": "tfdif"}, "text_encoder: 'tfdif' is not known"),
    ],
)
def test_what_cannot_run_is_refused_naming_the_key(name: str, changes: dict[str, Any], message: str, built: Make):
    with pytest.raises(InputError, match=message):
        built(name, **changes)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (
            ["i01\tred box", "i02\tblue box"],
            "22 of 24 items .* have no line; .* such as 'i01', 'i02'",
        ),
        ([f"i{n:02d}\tword{chr(96 + n)}" for n in range(1, 26)], "no word occurs in two of the 25 texts"),
    ],
)
def test_texts_that_do_not_serve_are_refused(
    items: list[str], message: str, built: Make, data_path: Path, tmp_path: Path
):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "tiny.inter").write_text((data_path / "tiny" / "tiny.inter").read_text())
    (tmp_path / "tiny" / "tiny.item").write_text("\n".join(["item_id:token\ttitle:token_seq", *items]) + "\n")
    with pytest.raises(InputError, match=message):
        built("TextKNN", data_path=str(tmp_path))


def test_a_catalogue_that_is_too_large_for_a_square_matrix_is_refused(built: Make, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(models, "_MOST_ITEMS", 24)
    with pytest.raises(InputError, match=r"SLIT holds .* for 25 items; it is for 24 at most: use MarkovChain"):
        built("SLIT")


def test_an_item_without_a_line_is_like_nothing(built: Make, data_path: Path, tmp_path: Path):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "tiny.inter").write_text((data_path / "tiny" / "tiny.inter").read_text())
    lines = (data_path / "tiny" / "tiny.item").read_text().splitlines()
    (tmp_path / "tiny" / "tiny.item").write_text("\n".join(line for line in lines if not line.startswith("i05")) + "\n")
    model, dataset, *_ = built("TextKNN", data_path=str(tmp_path))
    place = dataset.token2id("item_id", "i05")
    assert not model.text_vectors[place].sum()
    assert model.text_vectors.sum(axis=1).astype(bool).sum() == dataset.item_num - 2  # all but padding and i05


@pytest.mark.parametrize("name", NAMES)
def test_there_is_no_loss_and_the_message_says_why(name: str, built: Make):
    model, *_, test = built(name)
    with pytest.raises(NotImplementedError, match=f"{name} is training-free"):
        model.calculate_loss(test_batches(test)[0])


def test_several_processes_are_refused(config: Make, built: Make):
    settings = config("Popularity")
    model = built("Popularity")[0]
    settings["single_spec"] = False
    with pytest.raises(InputError, match="nproc: Popularity"):
        TrainingFreeTrainer(settings, model)


# --- settings and registration -----------------------------------------------------------------------------


def test_the_registered_models_are_the_classes_that_there_are():
    classes = {cls.__name__ for cls in models.TrainingFree.__subclasses__()}
    assert {name for name, model in MODELS.items() if not model.is_trained} == classes == set(NAMES)
    assert set(MODELS) <= set(model_names())


@pytest.mark.parametrize("name", NAMES)
def test_recbole_finds_model_trainer_and_dataset_by_name(name: str):
    assert get_model(name) is getattr(models, name)
    assert getattr(recbole.trainer, f"{name}Trainer") is TrainingFreeTrainer
    assert getattr(recbole.data.dataset, f"{name}Dataset") is PADDataset


@pytest.mark.parametrize("name", NAMES)
def test_defaults_are_those_of_the_simple_baselines_and_documented(name: str, config: Make):
    content = (PROPERTIES / f"{name}.yaml").read_text()
    defaults = yaml.safe_load(content)
    comments = dict(re.findall(r"^([\w.]+):.*?\s#\s*(.*)$", content, flags=re.MULTILINE))
    assert set(comments) == set(defaults)
    assert all(re.match(r"\(.+?\)", comment) for comment in comments.values())
    tool = {"MAX_ITEM_LIST_LENGTH": 20, "decay": DECAYS.get(name, 0.7), "text_weight": 0.5, "ridge": 100.0}
    tool |= {"text_encoder": "tfidf", "text_transform": "none", "text_metric": "cosine"}
    assert defaults.items() <= tool.items()
    settings = config(name)
    assert {key: settings[key] for key in defaults if key != "MAX_ITEM_LIST_LENGTH"} == {
        key: value for key, value in defaults.items() if key != "MAX_ITEM_LIST_LENGTH"
    }
    assert settings["mask_history"] is True  # protocol: pad, as for PAD
    assert config(name, protocol="recbole")["mask_history"] is False


def test_a_misspelt_key_is_refused_with_the_file_that_describes_it(config: Make):
    with pytest.raises(InputError, match=r"'decya' \(did you mean 'decay'\?\).*properties/model/MarkovChain.yaml"):
        config("MarkovChain", decya=0.5)


def test_keys_of_pad_may_stand_in_shared_settings(config: Make):
    shared = {"backbone": "GRU4Rec", "mmd_weight": 0.5, "align.epochs": 3, "epochs": 7}
    assert config("Popularity", **shared)["epochs"] == 7
