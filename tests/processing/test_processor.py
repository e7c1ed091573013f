"""The processor gives the ids and pixels of Hugging Face's `LlavaProcessor`, from every generation of its files."""

import dataclasses
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

import sparsevlm_jax
from sparsevlm_jax.errors import CheckpointError
from sparsevlm_jax.models.families.llava import LlavaConfig
from sparsevlm_jax.processing import LLAVA_1_5, VICUNA_V1, ImageError, PixelConfig, Processor
from tests.tiny import CORPUS, IMAGE_ID, IMAGE_SIZE, random_image, tiny_config, tiny_processor, tiny_tokenizer

REAL = os.environ.get("SPARSEVLM_REAL")
PACKAGE = Path(sparsevlm_jax.__file__).parent
CONFIG = LlavaConfig.from_hf(tiny_config().to_dict())
HF: Any = tiny_processor()
PHOTOS = [random_image(seed, height, width) for seed, (height, width) in enumerate([(60, 90), (130, 70), (11, 7)])]
WORDS = st.text(st.characters(codec="utf-8", exclude_characters="<"), min_size=1).filter(str.strip)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder as transformers 5 writes it."""
    HF.save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor(tiny_tokenizer(), CONFIG, pixels=PixelConfig.square(IMAGE_SIZE))


def reference(text: str, images: list) -> Any:
    return HF(text=text, images=images or None, return_tensors="np")


@pytest.mark.parametrize("images", [[], PHOTOS[:1], PHOTOS], ids=len)
def test_ids_and_pixels_equal_the_hf_processor(folder, images):
    ours = Processor.from_folder(folder, CONFIG)(["What is on the blue sign?"], [images])
    marks = "<image>\n" * len(images)
    theirs = reference(f"USER: {marks}What is on the blue sign? ASSISTANT:", images)
    np.testing.assert_array_equal(ours.input_ids[0], theirs["input_ids"][0])
    assert ours.input_ids[0].dtype == np.int32 and ours.images_per_row == (len(images),)
    if images:
        np.testing.assert_array_equal(ours.pixel_values, theirs["pixel_values"])
    else:
        assert ours.pixel_values.shape == (0, 3, IMAGE_SIZE, IMAGE_SIZE)


@given(
    st.lists(st.sampled_from([*CORPUS, "<image>", "\n", " ", "\u00e9\u4e2d\U0001f600"]) | WORDS, min_size=1, max_size=5)
)
def test_ids_of_any_text_equal_the_hf_tokenizers(processor, parts):
    text = "".join(parts)
    expanded = text.replace("<image>", "<image>" * CONFIG.tokens_per_image)
    np.testing.assert_array_equal(processor.encode(text), HF.tokenizer(expanded)["input_ids"])


def test_a_chat_equals_the_hf_processors_chat_template(folder):
    chat = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A street."}]},
        {"role": "user", "content": [{"type": "text", "text": "And there?"}, {"type": "image"}]},
    ]
    text = HF.apply_chat_template(chat, add_generation_prompt=True)
    ours = Processor.from_folder(folder, CONFIG)([chat], [PHOTOS[:2]])
    np.testing.assert_array_equal(ours.input_ids[0], reference(text, PHOTOS[:2])["input_ids"][0])


@pytest.mark.slow
@pytest.mark.skipif(not REAL, reason="SPARSEVLM_REAL names no folder of published files")
def test_the_published_processor_files_give_the_ids_and_pixels_of_hugging_face():
    real = Path(REAL or "") / "llava-1.5-7b-hf"
    config = LlavaConfig.from_hf(json.loads((real / "config.json").read_text()))
    hf: Any = transformers.AutoProcessor.from_pretrained(real, backend="pil")
    chat = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is \u00e9 on <s> it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A street."}]},
        {"role": "user", "content": [{"type": "text", "text": "And there?"}, {"type": "image"}]},
    ]
    text = hf.apply_chat_template(chat, add_generation_prompt=True)
    theirs = hf(text=text, images=PHOTOS[:2], return_tensors="np")
    ours = Processor.from_folder(real, config)([chat], [PHOTOS[:2]])
    np.testing.assert_array_equal(ours.input_ids[0], theirs["input_ids"][0])
    np.testing.assert_array_equal(ours.pixel_values, theirs["pixel_values"])


def test_rows_of_a_batch_are_those_of_single_calls_and_own_their_images_in_order(processor):
    prompts, images = ["What?", "Where do they stand?", "Who <image> is <image> that?"], [PHOTOS[:1], [], PHOTOS[1:]]
    batch = processor(prompts, images)
    assert batch.images_per_row == (1, 0, 2)
    singles = [processor([prompt], [row]) for prompt, row in zip(prompts, images, strict=True)]
    for row, single in zip(batch.input_ids, singles, strict=True):
        np.testing.assert_array_equal(row, single.input_ids[0])
    np.testing.assert_array_equal(batch.pixel_values, np.concatenate([single.pixel_values for single in singles]))


def test_a_raw_prompt_is_tokenised_as_it_stands(processor):
    text = "USER: <image>\nWhat? ASSISTANT:"
    np.testing.assert_array_equal(
        processor([text], [PHOTOS[:1]], raw=True).input_ids[0], processor(["What?"], [PHOTOS[:1]]).input_ids[0]
    )


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("start", ["", "<s>", "<s><s>"])
def test_a_bos_is_there_as_in_the_chat_template_of_the_hf_processor(adds_bos, start):
    """Whoever writes it, it is not written twice; a tokenizer that adds none gets none."""
    hf: Any = tiny_processor()
    hf.tokenizer.add_bos_token = adds_bos
    chat = [{"role": "user", "content": [{"type": "text", "text": "What?"}]}]
    template = start + "USER: {{ messages[0]['content'][0]['text'] }} ASSISTANT:"
    theirs = hf.apply_chat_template(chat, chat_template=template, tokenize=True, return_dict=True)["input_ids"]
    processor = Processor(hf.tokenizer, CONFIG, pixels=PixelConfig.square(IMAGE_SIZE), template=template)
    ours = processor([chat])
    np.testing.assert_array_equal(ours.input_ids[0], np.ravel(theirs))
    assert (ours.input_ids[0] == hf.tokenizer.bos_token_id).sum() == (start.count("<s>") or adds_bos)


def test_a_tokenizer_without_the_mark_has_its_chunks_tokenised_apart_as_the_original_does():
    tokenizer = tiny_tokenizer()
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] != "<image>"]
    tokenizer._tokenizer = tokenizer.backend_tokenizer.from_str(json.dumps(state))
    assert "<image>" not in tokenizer.get_vocab()
    ids = Processor(tokenizer, CONFIG, pixels=PixelConfig.square(IMAGE_SIZE)).encode("USER: <image>\nWhat?<image>")
    before, after = (tokenizer(part)["input_ids"] for part in ("USER: ", "\nWhat?"))
    image = [IMAGE_ID] * CONFIG.tokens_per_image
    np.testing.assert_array_equal(ids, [*before, *image, *after[1:], *image])


def test_answers_decode_without_special_tokens_and_unknown_ids(processor):
    ids = processor.tokenizer("two dogs", add_special_tokens=False)["input_ids"]
    assert processor.decode(np.array([*ids, 2])) == "two dogs"
    assert processor.decode([-200, *ids, IMAGE_ID, 2, 447, 10**12]) == "two dogs"
    assert processor.decode([*ids, 2], skip_special_tokens=False) == "two dogs</s>"


@given(st.lists(st.integers(0, 401), max_size=12))
def test_settled_text_only_grows_towards_the_whole(processor, ids):
    settled = [processor.decode_settled(ids[:count]) for count in range(len(ids) + 1)]
    for before, after in zip(settled, [*settled[1:], processor.decode(ids)], strict=True):
        assert after.startswith(before)


def test_plain_words_settle_at_once(processor):
    ids = processor.tokenizer("two dogs", add_special_tokens=False)["input_ids"]
    assert processor.decode_settled(ids) == "two dogs"


def test_without_a_template_of_its_own_a_checkpoint_speaks_llava(folder):
    assert Processor.from_folder(folder, CONFIG).template == HF.chat_template
    (folder / "chat_template.jinja").unlink()
    assert Processor.from_folder(folder, CONFIG).template == LLAVA_1_5
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": "{# tokenizer #}"}))
    assert Processor.from_folder(folder, CONFIG).template == "{# tokenizer #}"


def test_a_template_that_is_no_jinja_is_refused_when_a_folder_is_read(folder):
    (folder / "chat_template.jinja").write_text("{% for")
    with pytest.raises(CheckpointError, match="the chat template of .* cannot be read"):
        Processor.from_folder(folder, CONFIG)


def test_pixel_settings_are_found_in_both_files(folder):
    whole = json.loads((folder / "processor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(whole.pop("image_processor")))
    (folder / "processor_config.json").write_text(json.dumps(whole))
    assert Processor.from_folder(folder, CONFIG).pixels == PixelConfig.square(IMAGE_SIZE)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match="no preprocessor_config.json"):
        Processor.from_folder(folder, CONFIG)


def test_an_original_folder_pads_to_a_square_and_speaks_vicuna(folder):
    for name in ("processor_config.json", "chat_template.jinja"):
        (folder / name).unlink()
    (folder / "config.json").write_text(json.dumps({"mm_vision_tower": "clip", "image_aspect_ratio": "pad"}))
    processor = Processor.from_folder(folder, CONFIG)
    assert processor.pixels == PixelConfig.square(IMAGE_SIZE, do_pad=True) and processor.template == VICUNA_V1


def test_padding_to_a_square_can_be_chosen(folder):
    assert not Processor.from_folder(folder, CONFIG).pixels.do_pad
    assert Processor.from_folder(folder, CONFIG, pad_to_square=True).pixels.do_pad


@pytest.mark.parametrize(("value", "expected"), [(7, (7,)), ([7, 8], (7, 8)), (None, (2,)), ([], (2,))])
def test_generation_config_says_what_ends_an_answer(folder, value, expected):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    assert Processor.from_folder(folder, CONFIG).eos_token_ids == expected


def test_parts_that_do_not_belong_together_are_refused(folder):
    with pytest.raises(ValueError, match=r"tower sees 56 x 56 pixels, preprocessing gives \(28, 28\)"):
        Processor(tiny_tokenizer(), CONFIG, pixels=PixelConfig.square(28))
    other = LlavaConfig.from_hf({**tiny_config().to_dict(), "image_token_index": 399, "image_token_id": 399})
    with pytest.raises(ValueError, match="<image> is token 400 to the tokenizer, 399 to the model"):
        Processor.from_folder(folder, other)


@pytest.mark.parametrize("damage", ["missing", "cut", "not json", "wrong json"])
def test_a_damaged_tokenizer_is_named(folder, damage):
    path = folder / "tokenizer.json"
    if damage == "missing":
        path.unlink()
    else:
        path.write_text({"cut": path.read_text()[:999], "not json": "<html>", "wrong json": "[1]"}[damage])
    with pytest.raises(CheckpointError, match=r"tokenizer"):
        Processor.from_folder(folder, CONFIG)


WRONG = [
    None,
    True,
    3,
    -1,
    2.5,
    "x",
    [],
    [3],
    [None],
    {},
    {"a": 3},
    {"shortest_edge": "x"},
    {"height": 1, "width": None},
]
FILES = {
    "preprocessor_config.json": "size crop_size image_mean image_std resample rescale_factor do_pad do_resize "
    "do_normalize do_center_crop default_to_square image_processor_type feature_extractor_type pad_size",
    "processor_config.json": "image_processor image_token chat_template patch_size",
    "generation_config.json": "eos_token_id do_sample num_beams temperature bad_words_ids",
    "chat_template.json": "chat_template",
    "config.json": "mm_vision_tower image_aspect_ratio repetition_penalty model_type",
}


@pytest.mark.filterwarnings("ignore::sparsevlm_jax.errors.CheckpointWarning")
@pytest.mark.parametrize("name", FILES)
def test_files_of_the_wrong_types_are_read_or_this_librarys_error(folder, name):
    whole = json.loads((folder / "processor_config.json").read_text())["image_processor"]
    (folder / "preprocessor_config.json").write_text(json.dumps(whole))
    (folder / "processor_config.json").unlink()
    base = json.loads((folder / name).read_text()) if (folder / name).is_file() else {}
    contents = [*WRONG, *({**base, field: value} for field in FILES[name].split() for value in WRONG)]
    for content in contents:
        (folder / name).write_text(json.dumps(content))
        try:
            Processor.from_folder(folder, CONFIG)
        except ValueError as error:
            origin = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
            assert origin.is_relative_to(PACKAGE) and len(str(error)) < 1000, content


def test_prompts_and_images_must_be_as_many_lists(processor):
    with pytest.raises(ValueError, match="got 2 prompts and 1"):
        processor(["a", "b"], [[]])
    with pytest.raises(ValueError, match="expected a list of prompts .* got one text"):
        processor("ab", [[], []])


def test_a_picture_that_cannot_be_read_stops_the_batch_by_name(processor, tmp_path):
    (tmp_path / "words.png").write_text("words")
    with pytest.raises(ImageError, match=r"words\.png: not an image"):
        processor(["What?"], [[tmp_path / "words.png"]])


def test_the_bound_on_pixels_is_the_processors(folder):
    photo = PHOTOS[0]
    few = Processor.from_folder(folder, CONFIG, max_pixels=60 * 90 - 1)
    with pytest.raises(ImageError, match=f"more than the {few.max_pixels} pixels that are read"):
        few(["What?"], [[photo]])
    enough = Processor.from_folder(folder, CONFIG, max_pixels=60 * 90)
    assert len(enough(["What?"], [[photo]]).pixel_values) == 1


def test_the_size_that_is_shown_is_that_which_the_tower_sees(processor):
    """SigLIP's preprocessing resizes, and names a crop that it does not do."""
    pixels = dataclasses.replace(PixelConfig.square(IMAGE_SIZE), do_center_crop=False, crop_size=(28, 28))
    shown = Processor(processor.tokenizer, CONFIG, pixels=dataclasses.replace(pixels, size=(IMAGE_SIZE, IMAGE_SIZE)))
    assert f"images of {IMAGE_SIZE} x {IMAGE_SIZE} pixels" in repr(shown)


def test_nothing_here_needs_torch_or_says_a_word(folder):
    (folder / "config.json").write_text(json.dumps(tiny_config().to_dict(), default=str))
    script = (
        "import sys, json, numpy; sys.modules['torch'] = None\n"
        "from sparsevlm_jax.processing import Processor; from sparsevlm_jax.models.families.llava import LlavaConfig\n"
        f"config = LlavaConfig.from_hf(json.load(open({str(folder / 'config.json')!r})))\n"
        f"processor = Processor.from_folder({str(folder)!r}, config)\n"
        "out = processor(['What?'], [[numpy.zeros((9, 9, 3), 'uint8')]]); processor.decode(out.input_ids[0])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=folder, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
