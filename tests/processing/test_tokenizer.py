"""A tokenizer read without transformers gives the ids and texts of `AutoTokenizer`, from every form of its files."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from transformers import AutoTokenizer

from sparsevlm_jax.demo import CHECKPOINT
from sparsevlm_jax.errors import CheckpointError
from sparsevlm_jax.processing.tokenizer import Tokenizer, read_tokenizer
from tests.tiny import CORPUS, tiny_tokenizer

REAL = os.environ.get("SPARSEVLM_REAL")
TEXTS = [
    *(
        "",
        " ",
        "  leading",
        "trailing  ",
        "a",
        "<s>",
        "<s><s>x",
        "</s>",
        "<image>",
        "<pad> a <unk>",
        "x<image>y <image> z",
    ),
    *(
        "USER: <image>\nWhat is on the sign? ASSISTANT:",
        "\t\n\r ",
        "\u00e9\u4e2d\U0001f600\u200b",
        "e\u0301",
        "\x00\x01",
    ),
    *(
        "\uff26\uff35\uff2c\uff2c \ufb01 \u00bd",
        "Hello , world . It 's n't ok ?",
        "<extra> b<extra>",
        "ab " * 3000,
        "a" * 9000,
    ),
]


@pytest.fixture
def folder(tmp_path) -> Path:
    """A LLaVA checkpoint's tokenizer files as transformers 5 writes them."""
    tiny_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava"}))
    return tmp_path


def change(path: Path, **changes: Any) -> None:
    content = {**(json.loads(path.read_text()) if path.is_file() else {}), **changes}
    path.write_text(json.dumps({name: value for name, value in content.items() if value != "removed"}))


def assert_equal_to_transformers(folder: Path) -> None:
    ours, theirs = read_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    assert isinstance(ours, Tokenizer)
    for text in TEXTS:
        for add in (True, False):
            ids = theirs(text, add_special_tokens=add)["input_ids"]
            assert ours(text, add_special_tokens=add)["input_ids"] == ids, text
        for skip in (True, False):
            assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip), text
    assert ours.get_vocab() == theirs.get_vocab() and len(ours) == len(theirs)
    for name in ("special_tokens_map", "all_special_tokens", "all_special_ids", "bos_token", "bos_token_id"):
        assert getattr(ours, name) == getattr(theirs, name), name
    some = [0, 1, 5, len(ours) - 1]
    assert ours.convert_ids_to_tokens(some) == theirs.convert_ids_to_tokens(some)
    assert ours.convert_tokens_to_ids("no such token") == theirs.convert_tokens_to_ids("no such token")


@pytest.mark.skipif(not REAL, reason="SPARSEVLM_REAL names no folder of published files")
def test_the_published_llava_tokenizer_is_read_alike():
    assert_equal_to_transformers(Path(REAL or "") / "llava-1.5-7b-hf")


def test_the_bundled_tokenizer_is_read_alike():
    assert_equal_to_transformers(CHECKPOINT)


TOKEN = {"lstrip": True, "rstrip": False, "normalized": False, "single_word": False}
SETTINGS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "another class": {"tokenizer_class": "LlamaTokenizerFast"},
    "no bos wanted": {"add_bos_token": False},
    "cleaned up": {"clean_up_tokenization_spaces": True},
    "specials are split": {"split_special_tokens": True},
    "listed specials": {"extra_special_tokens": ["<extra>", "<image>"]},
    "additional specials": {"additional_special_tokens": ["<extra>"], "extra_special_tokens": "removed"},
    "named specials": {"extra_special_tokens": {"video_token": "<video>"}, "image_token": "<image>"},
    "no unknown token": {"unk_token": "removed"},
    "another pad": {"pad_token": "<newpad>"},
    "no pad": {"pad_token": None},
    "a bos of the old kind": {"bos_token": {"__type": "AddedToken", "content": "<s>", **TOKEN}},
    "added tokens": {
        "added_tokens_decoder": {
            "0": {"content": "<unk>", "special": True, **TOKEN},
            "400": {"content": "<image>", "special": False, **TOKEN},
            "402": {"content": "<extra>", "special": False, **TOKEN},
        }
    },
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_settings_of_the_tokenizer_have_their_effect(folder, settings):
    change(folder / "tokenizer_config.json", **settings)
    assert_equal_to_transformers(folder)


@pytest.mark.parametrize("settings", [SETTINGS["cleaned up"], SETTINGS["listed specials"]], ids=["clean", "listed"])
def test_settings_have_their_effect_on_a_word_level_tokenizer(folder, settings):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((CHECKPOINT / name).read_bytes())
    change(folder / "tokenizer_config.json", **settings)
    assert_equal_to_transformers(folder)


@pytest.mark.parametrize("bos", ["<s>", {"content": "<s>", **TOKEN}], ids=["text", "table"])
def test_the_older_files_of_special_and_added_tokens_are_read(folder, bos):
    change(folder / "special_tokens_map.json", bos_token=bos, pad_token="</s>", extra_special_tokens=["<extra>"])
    change(folder / "added_tokens.json", **{"<extra>": 402, "<image>": 400})
    assert_equal_to_transformers(folder)


def test_a_tokenizer_without_any_config_is_read(folder):
    (folder / "tokenizer_config.json").unlink()
    assert_equal_to_transformers(folder)


@pytest.mark.parametrize(
    "part",
    [
        {"truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}},
        {
            "padding": {"strategy": {"Fixed": 20}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}
            | {"pad_type_id": 0, "pad_token": "<unk>"}
        },
        {"post_processor": None},
    ],
    ids=lambda part: next(iter(part)),
)
def test_what_a_file_says_of_batches_does_not_touch_a_text(folder, part):
    change(folder / "tokenizer.json", **part)
    assert_equal_to_transformers(folder)


ORIGINAL = ("llava", "llava_llama", "llava_mistral")


@pytest.mark.parametrize("kind", ORIGINAL)
def test_an_original_folder_is_read_as_plainly_as_what_it_is_converted_to(folder, kind, caplog):
    """transformers 5 would build a LlamaTokenizer, which swallows the space that a text begins with."""
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    normalizer = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, spaces]}
    change(folder / "tokenizer.json", normalizer=normalizer, pre_tokenizer=None)  # as llava-hf has it
    change(folder / "tokenizer_config.json", tokenizer_class="LlamaTokenizer")
    expected = AutoTokenizer.from_pretrained(folder)(" two dogs")["input_ids"]
    change(folder / "config.json", model_type=kind, mm_vision_tower="openai/clip")
    caplog.clear()
    tokenizer = read_tokenizer(folder)
    assert tokenizer(" two dogs")["input_ids"] == expected != tokenizer("two dogs")["input_ids"]
    assert not caplog.records  # no "model of type llava_llama"


@pytest.mark.parametrize("kind", ORIGINAL)
@pytest.mark.skipif(not REAL, reason="SPARSEVLM_REAL names no folder of published files")
def test_the_published_tokenizer_of_an_original_folder_keeps_the_space_that_a_text_begins_with(tmp_path, kind):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((Path(REAL or "") / "llava-1.5-7b-hf" / name).read_bytes())
    change(tmp_path / "config.json", model_type=kind, mm_vision_tower="openai/clip")
    ids = read_tokenizer(tmp_path)(" What is it?")["input_ids"]
    assert ids == [1, 29871, 1724, 338, 372, 29973]  # of Llama's SentencePiece model


def test_a_folder_of_another_kind_is_left_to_transformers(folder):
    change(folder / "config.json", model_type="llama")
    change(folder / "tokenizer_config.json", tokenizer_class="LlamaTokenizer")
    assert type(read_tokenizer(folder)).__name__ == "LlamaTokenizer"


def test_the_bundled_tokenizer_is_read_without_transformers():
    script = (
        "import sys, pathlib; from sparsevlm_jax.processing.tokenizer import read_tokenizer\n"
        f"read_tokenizer(pathlib.Path({str(CHECKPOINT)!r}))('What?')\n"
        "assert not {'transformers', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.fixture(scope="module")
def pieces(tmp_path_factory) -> Path:
    """An original LLaVA folder: a SentencePiece model is all that it has of a tokenizer."""
    folder = tmp_path_factory.mktemp("pieces")
    options: dict[str, Any] = dict(
        model_type="bpe", byte_fallback=True, vocab_size=300, hard_vocab_limit=False, minloglevel=2
    )
    options |= dict(unk_id=0, bos_id=1, eos_id=2, pad_id=-1, normalization_rule_name="identity", minloglevel=2)
    with (folder / "tokenizer.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(  # pyright: ignore[reportAttributeAccessIssue]
            sentence_iterator=iter(CORPUS * 50), model_writer=file, remove_extra_whitespaces=False, **options
        )
    (folder / "config.json").write_text(json.dumps({"model_type": "llava", "mm_vision_tower": "openai/clip"}))
    return folder


@pytest.mark.parametrize("kind", ORIGINAL)
@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("legacy", [True, False])
def test_ids_of_a_sentencepiece_model_are_those_of_the_sentencepiece_library(pieces, adds_bos, legacy, kind):
    change(pieces / "config.json", model_type=kind)
    change(pieces / "tokenizer_config.json", tokenizer_class="LlamaTokenizer", add_bos_token=adds_bos, legacy=legacy)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(pieces / "tokenizer.model"))
    tokenizer = read_tokenizer(pieces)
    for words in (
        "USER: What is on the blue sign?",
        "two dogs",
        " two dogs",
        "  a b",
        "a  b",
        "\u00e9\u4e2d\U0001f600",
        "\nWhat? ASSISTANT:",
    ):
        ids = reference.encode(words)  # pyright: ignore[reportAttributeAccessIssue]
        assert tokenizer(words)["input_ids"] == [1] * adds_bos + ids
    assert tokenizer.decode(tokenizer("two dogs")["input_ids"], skip_special_tokens=True) == "two dogs"


@pytest.mark.parametrize(("legacy", "spaced"), [(True, True), (False, False)])
def test_behind_a_special_token_a_word_of_a_sentencepiece_model_gets_a_space_in_the_legacy_form_alone(
    pieces, legacy, spaced
):
    """As in LlamaTokenizer since https://github.com/huggingface/transformers/pull/24565."""
    change(pieces / "config.json", model_type="llava_llama")
    change(pieces / "tokenizer_config.json", tokenizer_class="LlamaTokenizer", legacy=legacy)
    tokenizer = read_tokenizer(pieces)
    first = tokenizer.convert_ids_to_tokens(tokenizer("</s>What", add_special_tokens=False)["input_ids"][1])
    assert first.startswith("\u2581") == spaced


@pytest.mark.parametrize("library", ["sentencepiece", "google.protobuf"])
def test_a_library_that_a_sentencepiece_model_needs_is_named(tmp_path, monkeypatch, library):
    (tmp_path / "tokenizer.model").write_bytes(b"anything")
    monkeypatch.setattr("sparsevlm_jax.processing.tokenizer._is_installed", lambda name: name != library)
    with pytest.raises(
        CheckpointError, match=rf"tokenizer\.model and no .*pip install {library.removeprefix('google.')}"
    ):
        read_tokenizer(tmp_path)


def test_a_folder_without_tokenizer_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json or tokenizer\.model"):
        read_tokenizer(tmp_path)


WRONG = [
    None,
    True,
    3,
    2.5,
    "x",
    [],
    [3],
    [None],
    {},
    {"a": 3},
    {"content": 3},
    [{"content": None}],
    {"__type": "AddedToken"},
]


@pytest.mark.parametrize(
    "name",
    [
        *("added_tokens_decoder", "bos_token", "pad_token", "extra_special_tokens", "additional_special_tokens"),
        *("image_token", "chat_template", "clean_up_tokenization_spaces", "split_special_tokens", "tokenizer_class"),
        *("fast_tokenizer_files", "model_max_length", "padding_side", "auto_map"),
    ],
)
def test_a_setting_of_the_wrong_type_is_ignored_or_this_librarys_error(folder, name):
    for value in WRONG:
        change(folder / "tokenizer_config.json", **{name: value})
        only_this_librarys_error(folder)


@pytest.mark.parametrize(
    "file", ["special_tokens_map.json", "added_tokens.json", "tokenizer_config.json", "config.json"]
)
def test_a_file_of_the_wrong_kind_is_this_librarys_error(folder, file):
    for value in WRONG:
        (folder / file).write_text(json.dumps(value))
        only_this_librarys_error(folder)
        (folder / file).write_text(json.dumps({"<extra>": value, "bos_token": value}))
        only_this_librarys_error(folder)


@pytest.mark.parametrize("part", ["added_tokens", "model", "normalizer", "pre_tokenizer", "post_processor", "decoder"])
def test_a_tokenizer_of_the_wrong_form_is_this_librarys_error(folder, part):
    for value in WRONG:
        change(folder / "tokenizer.json", **{part: value})
        only_this_librarys_error(folder)


def only_this_librarys_error(folder: Path) -> None:
    try:
        read_tokenizer(folder)("What is it?")
    except CheckpointError as error:
        assert len(str(error)) < 600
