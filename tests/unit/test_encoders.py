"""Families of text encoders: sentence-transformers with options, static vectors, and language models (LLM2Vec)."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from recbole_pad.dataset_prep.encode_text import encode_items
from recbole_pad.dataset_prep.encoders import language_model
from recbole_pad.dataset_prep.encoders.language_model import (
    FAMILIES,
    LAST_TOKEN,
    LLM2VEC,
    WRAPPERS,
    LanguageModelEncoder,
)
from recbole_pad.dataset_prep.encoders.sentence import static_embedding
from recbole_pad.dataset_prep.errors import InputError
from recbole_pad.dataset_prep.item_texts import ItemFile, read_item_texts
from recbole_pad.dataset_prep.text_encoders import SentenceEncoder, text_encoder
from tests.reference import llm2vec_loops
from tests.unit.test_encode_text import item_file, tiny_model  # noqa: F401 - a fixture

WORDS = "red green apple car engine oil paint a for the".split()
TEXTS = ["red apple", "car", "oil for the car engine", "green apple", "a red car for a green apple"]


# --- sentence-transformers ---------------------------------------------------------------------------------


def test_options_of_a_sentence_model_are_used_and_recorded(tiny_model: Path):  # noqa: F811
    plain = text_encoder(f"{tiny_model}")
    asked = text_encoder(f"{tiny_model}?prompt:red %26 &truncate_dim:5&max_tokens:4")
    assert isinstance(asked, SentenceEncoder)
    assert (plain.prompt, asked.prompt) == ("a ", "red & ")
    assert asked.details == {"max_tokens": 4, "truncate_dim": 5, "computed_in": "float32"}
    vectors = asked.encode_each(TEXTS, 2)
    assert vectors.shape == (5, 5)
    whole = text_encoder(f"{tiny_model}?prompt:&max_tokens:4")
    assert whole.prompt == ""
    # [CLS], two words and [SEP]: what is behind them is not read
    first = whole.encode_each([" ".join((asked.prompt + text).replace("&", "[UNK]").split()[:2]) for text in TEXTS], 2)
    np.testing.assert_allclose(vectors, first[:, :5], atol=1e-6)
    assert asked.n_cut(TEXTS) == 5
    assert plain.n_cut(TEXTS) == 0  # type: ignore[attr-defined]
    assert text_encoder(f"{tiny_model}?prompt:&max_tokens:5").n_cut(TEXTS) == 2  # type: ignore[attr-defined]


def test_a_model_computes_in_the_type_that_is_asked_for(tiny_model: Path):  # noqa: F811
    low = text_encoder(f"{tiny_model}?dtype:bfloat16")
    assert low.details["computed_in"] == "bfloat16"
    vectors, exact = low.encode_each(TEXTS, 2), text_encoder(str(tiny_model)).encode_each(TEXTS, 2)
    assert vectors.dtype == np.float32
    assert not np.array_equal(vectors, exact)
    np.testing.assert_allclose(vectors, exact, atol=0.1)


def test_options_tell_files_apart_and_the_manifest_says_them(tmp_path: Path, tiny_model: Path):  # noqa: F811
    items = item_file(tmp_path, [f"i{number}\t{text}" for number, text in enumerate(TEXTS)])
    names = [str(tiny_model), f"{tiny_model}?truncate_dim:5"]
    files = [encode_items(ItemFile(items), tmp_path, "toy", text_encoder=name, show_progress=False) for name in names]
    assert [np.load(file).shape[1] for file in files] == [16, 5]
    manifest = json.loads(files[1].with_suffix(".json").read_text())
    assert manifest["text_encoder"] == names[1]
    assert (manifest["truncate_dim"], manifest["max_tokens"], manifest["n_cut"]) == (5, 32, 0)
    np.testing.assert_allclose(np.load(files[1]), np.load(files[0])[:, :5], atol=1e-6)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("?size:3", "option 'size' is not known; options: prompt, truncate_dim, max_tokens, dtype"),
        ("?truncate_dim:0", "truncate_dim must be a whole number from 1, not '0'"),
        ("?truncate_dim:17", "truncate_dim=17, but its vectors have 16 numbers"),
        ("?dtype:int8", "dtype must be one of float32, bfloat16, float16, not 'int8'"),
        ("?prompt:a&prompt:b", "option 'prompt' is given twice"),
        ("?", "'' is no option; write NAME?key:value"),
        ("?prompt", "'prompt' is no option; write NAME?key:value"),
    ],
)
def test_bad_options_are_refused(tiny_model: Path, query: str, words: str):  # noqa: F811
    with pytest.raises(InputError) as error:
        text_encoder(f"{tiny_model}{query}")
    assert words in str(error.value)


def test_static_vectors_have_no_token_limit(tmp_path: Path):
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"red": 0, "car": 1, "?": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    rows = torch.tensor([[1.0, 2.0], [3.0, 6.0], [0.0, 9.0]])
    SentenceTransformer(modules=[static_embedding()(tokenizer, rows)], device="cpu").save(str(tmp_path / "static"))
    model = text_encoder(str(tmp_path / "static"))
    assert model.encode_each(["red car", "car"], 2).tolist() == [[2.0, 4.0], [3.0, 6.0]]
    assert model.details["max_tokens"] is None
    assert model.n_cut(["red car " * 5000]) == 0  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="reads texts of any length: leave out max_tokens"):
        text_encoder(f"{tmp_path / 'static'}?max_tokens:3")


def test_an_encoder_without_options_says_so():
    with pytest.raises(InputError, match=r"option 'dtype' is not known; this encoder has none"):
        text_encoder("tfidf:5?dtype:float32")


# --- wordllama ---------------------------------------------------------------------------------------------


def test_wordllama_is_the_mean_of_the_rows_of_its_tokens():
    package = importlib.util.find_spec("wordllama")
    if package is None or not package.submodule_search_locations:
        pytest.skip("wordllama is not installed")
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    folder = Path(package.submodule_search_locations[0])
    (rows,) = load_file(folder / "weights" / "l2_supercat_256.safetensors").values()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizers" / "l2_supercat_tokenizer_config.json"))
    texts = ["Organic green tea, 20 bags", "crème brûlée", "x" * 300]
    model = text_encoder("wordllama")
    vectors = model.encode_each(texts, 2)
    for text, vector in zip(texts, vectors, strict=True):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        np.testing.assert_allclose(vector, rows[ids].astype(np.float64).mean(axis=0), atol=1e-6)
    assert (model.pooling, model.prompt, vectors.shape) == ("mean", "", (3, 256))
    assert "wordllama" in model.revision
    np.testing.assert_array_equal(text_encoder("wordllama?truncate_dim:64").encode_each(texts, 2), vectors[:, :64])


def test_wordllama_without_its_package_names_the_install_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'pip install -e "\.\[wordllama\]"'):
        text_encoder("wordllama")


# --- language models ---------------------------------------------------------------------------------------

Make = Callable[..., Path]


def tokenizer_of(folder: Path) -> None:
    """Words, a beginning and an end token; as Llama's, it puts the beginning in front and nothing behind."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(["<unk>", "<s>", "</s>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)


@pytest.fixture(scope="session")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """``decoder(family)``: folder of a random decoder of two layers, width 16, with grouped heads."""
    made: dict[str, Path] = {}

    def make(family: str = "llama") -> Path:
        from transformers import AutoConfig, AutoModel

        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            torch.manual_seed(1)
            config = AutoConfig.for_model(
                family,
                vocab_size=3 + len(WORDS),
                hidden_size=16,
                intermediate_size=24,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=4,
                max_position_embeddings=64,
                initializer_range=0.5,
                pad_token_id=None,
                bos_token_id=1,
                eos_token_id=2,
            )
            AutoModel.from_config(config).save_pretrained(folder)
            tokenizer_of(folder)
            made[family] = folder
        return made[family]

    return make


def encoder(folder: Path, *adapters: Path, recipe: Any = LLM2VEC, **options: Any) -> LanguageModelEncoder:
    return LanguageModelEncoder(str(folder), [str(adapter) for adapter in adapters], recipe, **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_token_moves_the_first_state_both_ways_and_not_causally(decoder: Make, family: str):
    rows = [[1, 5, 6, 7], [1, 5, 6, 8]]
    both, _ = encoder(decoder(family)).states(rows)
    causal, _ = encoder(decoder(family), recipe=LAST_TOKEN).states(rows)
    assert (both[0, 0] - both[1, 0]).abs().max() > 1e-3
    assert torch.equal(causal[0, :3], causal[1, :3])
    assert (causal[0, 3] - causal[1, 3]).abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("recipe", [LLM2VEC, LAST_TOKEN])
def test_the_batch_does_not_matter(decoder: Make, family: str, recipe: Any):
    model = encoder(decoder(family), recipe=recipe)
    rows = [[1, 5], [1, 5, 6, 7, 8, 9], [1, 4, 4]]
    states, lengths = model.states(rows)
    for number, row in enumerate(rows):
        alone, _ = model.states([row])
        torch.testing.assert_close(states[number, : lengths[number]], alone[0], atol=1e-5, rtol=1e-4)
    many = model.encode_each(TEXTS, 5)
    np.testing.assert_allclose(model.encode_each(TEXTS, 1), many, atol=1e-5, rtol=1e-4)
    np.testing.assert_allclose(model.encode_each(TEXTS[::-1], 2)[::-1], many, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("causal", [False, True])
def test_states_are_those_of_a_forward_pass_written_in_loops(decoder: Make, causal: bool):
    model = encoder(decoder(), recipe=LAST_TOKEN if causal else LLM2VEC)
    rows = [[1, 5, 6, 7, 3], [1, 4]]
    states, lengths = model.states(rows)
    for state, length, row in zip(states, lengths, rows, strict=True):
        expected = llm2vec_loops.states(model._model, row, causal)
        torch.testing.assert_close(state[:length].double(), expected, atol=1e-4, rtol=1e-4)


def test_the_vector_is_the_mean_over_the_texts_own_tokens(decoder: Make):
    """Neither the beginning token nor the instruction is part of the mean, though both are read."""
    model = encoder(decoder(), instruction="for the ")
    assert model.prompt == "for the "
    for text, vector in zip(TEXTS, model.encode_each(TEXTS, 2), strict=True):
        own = [3 + WORDS.index(word) for word in text.split()]
        ids = [1, 3 + WORDS.index("for"), 3 + WORDS.index("the"), *own]
        expected = llm2vec_loops.states(model._model, ids)[3:].mean(dim=0)
        np.testing.assert_allclose(vector, expected.numpy(), atol=1e-4)
        bare = encoder(decoder()).encode_each([text], 1)[0]
        assert np.abs(vector - bare).max() > 1e-3


@hypothesis_settings(deadline=None, max_examples=40)
@given(
    words=st.lists(st.sampled_from([*WORDS, "unknown"]), min_size=1, max_size=450),
    wrapper=st.sampled_from([("", ""), ("the ", " oil"), ("for a", "car")]),
    instruction=st.sampled_from(["", "green paint", " for the "]),
)
@example(words=["red"] * 450, wrapper=("the ", " oil"), instruction="green")
@example(words=["red"] * 401, wrapper=("", ""), instruction="")
def test_tokens_and_those_of_the_mean_are_those_of_the_package(
    decoder: Make, words: list[str], wrapper: tuple[str, str], instruction: str
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(WRAPPERS, str(decoder()), wrapper)
        model = encoder(decoder(), instruction=instruction)
    text = " ".join(words)
    (tokens,) = model.tokens([text])
    assert (tokens.ids, tokens.own) == llm2vec_loops.inputs(model._tokenizer, *wrapper, instruction, text)


def test_the_causal_vector_is_the_state_of_the_end_token(decoder: Make):
    model = encoder(decoder(), recipe=LAST_TOKEN)
    for text, vector in zip(TEXTS, model.encode_each(TEXTS, 2), strict=True):
        ids = [1, *(3 + WORDS.index(word) for word in text.split()), 2]
        np.testing.assert_allclose(vector, llm2vec_loops.states(model._model, ids, True)[-1].numpy(), atol=1e-4)
    assert (model.pooling, model.details["attention"], model.details["behind_text"]) == ("last token", "causal", "</s>")


def test_a_text_without_tokens_has_a_row_of_zeros(decoder: Make):
    vectors = encoder(decoder()).encode_each(["red", "", "car"], 2)
    assert vectors.any(axis=1).tolist() == [True, False, True]


def test_long_texts_are_cut_at_a_blank_and_counted(decoder: Make):
    model = encoder(decoder(), max_tokens=3)
    long, short = model.encode_each(["red car for the apple", "red car for"], 2)
    np.testing.assert_allclose(long, short, atol=1e-6)
    assert model.n_cut(TEXTS) == 2
    assert model.details["max_tokens"] == 3


def test_texts_of_a_chat_model_are_wrapped_as_by_llm2vec(decoder: Make, monkeypatch: pytest.MonkeyPatch):
    """The mean is over the text and what stands behind it."""
    monkeypatch.setitem(WRAPPERS, str(decoder()), ("the ", " oil paint"))
    model = encoder(decoder())
    number = {word: 3 + at for at, word in enumerate(WORDS)}
    ids = [1, number["the"], number["red"], number["car"], number["oil"], number["paint"]]
    expected = llm2vec_loops.states(model._model, ids)[2:].mean(dim=0)
    np.testing.assert_allclose(model.encode_each(["red car"], 1)[0], expected.numpy(), atol=1e-4)
    assert (model.prompt, model.details["behind_text"]) == ("the ", " oil paint")


# --- adapters


@pytest.fixture
def adapters(decoder: Make, tmp_path: Path) -> list[Path]:
    """Two random LoRA adapters of the llama decoder, of other ranks and layers."""
    peft = pytest.importorskip("peft")
    from transformers import AutoModel

    folders = []
    for number, (rank, targets) in enumerate([(2, ["q_proj", "v_proj"]), (3, ["k_proj", "down_proj"])]):
        torch.manual_seed(number)
        config = peft.LoraConfig(r=rank, lora_alpha=4, target_modules=targets, init_lora_weights=False)
        model = peft.get_peft_model(AutoModel.from_pretrained(decoder()), config)
        model.peft_config["default"].base_model_name_or_path = "org/base"
        model.save_pretrained(tmp_path / f"adapter{number}")
        folders.append(tmp_path / f"adapter{number}")
    return folders


def test_merged_adapters_are_the_base_weights_plus_their_products(decoder: Make, adapters: list[Path]):
    from safetensors.torch import load_file

    base, merged = encoder(decoder()), encoder(decoder(), *adapters)
    weights = {name: weight.clone() for name, weight in base._model.state_dict().items()}
    for folder in adapters:
        config = json.loads((folder / "adapter_config.json").read_text())
        lora = load_file(folder / "adapter_model.safetensors")
        for key in [key for key in lora if "lora_A" in key]:
            name = key.removeprefix("base_model.model.").replace("lora_A.", "")
            product = lora[key.replace("lora_A", "lora_B")] @ lora[key]
            weights[name] += config["lora_alpha"] / config["r"] * product
    found = merged._model.state_dict()
    assert found.keys() == weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(found[name], weight, atol=1e-6, rtol=1e-6)
    assert np.abs(merged.encode_each(TEXTS, 2) - base.encode_each(TEXTS, 2)).max() > 1e-2


def test_a_merged_model_computes_what_the_adapter_computes_beside_it(decoder: Make, adapters: list[Path]):
    from peft import PeftModel
    from transformers import AutoModel

    merged = encoder(decoder(), adapters[0])
    beside = encoder(decoder())
    beside._model = PeftModel.from_pretrained(AutoModel.from_pretrained(decoder()), adapters[0]).eval()
    np.testing.assert_allclose(merged.encode_each(TEXTS, 2), beside.encode_each(TEXTS, 2), atol=1e-4)


def test_the_words_of_the_config_name_base_and_adapters(decoder: Make, adapters: list[Path]):
    name = f"llm2vec:{decoder()},{adapters[0]},{adapters[1]}"
    model = text_encoder(f"{name}?instruction:for the&max_tokens:9")
    expected = encoder(decoder(), *adapters, instruction="for the")
    np.testing.assert_allclose(model.encode_each(TEXTS, 2), expected.encode_each(TEXTS, 2), atol=1e-6)
    assert model.name == name
    assert model.details["adapters"] == [str(adapter) for adapter in adapters]
    assert "peft" in model.packages
    others = [f"llm2vec:{decoder()}", f"llm2vec:{decoder()},{adapters[0]}", f"last_token:{decoder()}"]
    assert len({text_encoder(other).revision for other in [name, *others[:2]]}) == 3
    assert text_encoder(others[2]).pooling == "last token"


def test_the_wrapper_is_that_of_the_model_that_an_adapter_names(
    decoder: Make, adapters: list[Path], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(WRAPPERS, "org/base", ("the ", " oil"))
    assert encoder(decoder(), adapters[0]).prompt == "the "
    assert encoder(decoder()).prompt == ""


def test_the_encoder_of_the_paper_is_named_in_full(monkeypatch: pytest.MonkeyPatch):
    asked: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(
        language_model, "LanguageModelEncoder", lambda base, adapters, recipe, **_: asked.append((base, adapters))
    )
    text_encoder("llm2vec")
    stem = "McGill-NLP/LLM2Vec-Meta-Llama-3-8B-Instruct-mntp"
    assert asked == [("meta-llama/Meta-Llama-3-8B-Instruct", [stem, f"{stem}-supervised"])]


# --- refusals


def test_what_is_no_known_language_model_is_refused(
    decoder: Make,
    adapters: list[Path],
    tmp_path: Path,
    tiny_model: Path,  # noqa: F811
):
    def message(name: str) -> str:
        with pytest.raises(InputError) as error:
            text_encoder(name)
        return str(error.value)

    assert "architecture 'bert' is not known here" in message(f"llm2vec:{tiny_model}")
    assert "known: llama, mistral" in message(f"llm2vec:{tiny_model}")
    assert "does not load" in message(f"llm2vec:{tmp_path / 'nothing'}")
    assert "must be llm2vec:BASE or" in message("llm2vec:a,,b")
    assert "does not load" in message(f"llm2vec:{decoder()},{tmp_path}")
    assert "does not fit the base model" in message(
        f"llm2vec:{decoder('qwen3')},{with_other_layers(adapters[0], tmp_path)}"
    )


def with_other_layers(adapter: Path, tmp_path: Path) -> Path:
    """An adapter whose weights name layers that the model lacks."""
    import shutil

    from safetensors.torch import load_file, save_file

    copy = Path(shutil.copytree(adapter, tmp_path / "other"))
    lora = load_file(copy / "adapter_model.safetensors")
    save_file(
        {key.replace("layers.1", "layers.7"): value for key, value in lora.items()}, copy / "adapter_model.safetensors"
    )
    return copy


def test_attention_that_is_not_as_asked_for_is_refused(decoder: Make, monkeypatch: pytest.MonkeyPatch):
    """As in a version of transformers whose model makes a causal mask of its own whatever it is given."""
    from transformers import LlamaModel

    forward = LlamaModel.forward
    monkeypatch.setattr(
        LlamaModel, "forward", lambda self, *, attention_mask, **kwargs: forward(self, attention_mask=None, **kwargs)
    )
    with pytest.raises(InputError, match="asked for bidirectional attention, but the model of this version"):
        encoder(decoder())


def test_adapters_without_peft_name_the_install_command(
    decoder: Make, adapters: list[Path], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r'pip install -e "\.\[llm\]"'):
        encoder(decoder(), adapters[0])


def test_items_are_encoded_by_a_language_model(decoder: Make, tmp_path: Path):
    items = item_file(tmp_path, [f"i{number}\t{text}" for number, text in enumerate(TEXTS)])
    npy = encode_items(ItemFile(items), tmp_path / "v", "toy", text_encoder=f"llm2vec:{decoder()}", show_progress=False)
    np.testing.assert_allclose(np.load(npy), encoder(decoder()).encode_each(TEXTS, 5), atol=1e-5)
    manifest = json.loads(npy.with_suffix(".json").read_text())
    assert manifest["attention"] == "bidirectional"
    assert manifest["pooling"] == "mean of the text's own tokens"
    assert manifest["versions"]["transformers"]


# --- templates ---------------------------------------------------------------------------------------------


@pytest.fixture
def described(tmp_path: Path) -> Path:
    header = "item_id:token\ttitle:token_seq\tcategories:token_seq\tbrand:token"
    return item_file(
        tmp_path, ["a\tTea\tFood, Drinks\tAcme", "b\tTea\t\tAcme", "c\t\tFood\t", "d\t\t\t", "e\tTea"], header
    )


@pytest.mark.parametrize(
    ("template", "texts"),
    [
        ("{title}. {categories}. {brand}", ["Tea. Food, Drinks. Acme", "Tea. Acme", "Food", "", "Tea"]),
        ("Title: {title}; by {brand}", ["Title: Tea; by Acme", "Title: Tea; by Acme", "", "", "Title: Tea"]),
        ("{categories} | of {brand}", ["Food, Drinks | of Acme", "of Acme", "Food", "", ""]),
        ("{title}", ["Tea", "Tea", "", "", "Tea"]),
    ],
)
def test_a_template_makes_the_text_of_the_columns_that_are_filled(described: Path, template: str, texts: list[str]):
    assert list(read_item_texts(ItemFile(described), [template]).values()) == texts


def test_a_plain_template_is_the_list_of_its_columns(described: Path):
    fields = ["title", "categories", "brand"]
    assert read_item_texts(ItemFile(described), ["{title}. {categories}. {brand}"]) == read_item_texts(
        ItemFile(described), fields
    )


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{titel}. {brand}", "no column 'titel' (did you mean 'title'?)"),
        ("{title", "expected '}' before end of string"),
        ("{title}!", "end with a column"),
        ("{}", "columns in braces"),
        ("{title:>30}", "columns in braces"),
        ("{title!r}", "columns in braces"),
    ],
)
def test_a_template_that_is_not_understood_is_refused(described: Path, template: str, words: str):
    with pytest.raises(InputError) as error:
        read_item_texts(ItemFile(described), [template])
    assert words in str(error.value)
