"""A llava of other parts as its users meet it: SigLIP before Qwen2, as llava-interleave-qwen has them, small.

The folder has what transformers writes for such a model: a byte-level tokenizer without a first token, ChatML, pictures
of 60 pixels in patches of 14, of which four pixels are in no patch.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers.convert_slow_tokenizer import bytes_to_unicode

import sparsevlm_jax as sv
from sparsevlm_jax import methods
from sparsevlm_jax.checkpoints.sources import convert_checkpoint
from tests import tiny
from tests.marks import sampled
from tests.parity import shake

QUESTION, NEW_TOKENS = "What is written on the blue sign?", 6
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ '\n' + content['text'] }}"
    "{% endfor %}{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"]
WIDTH = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}


def tokenizer() -> Any:
    letters = bytes_to_unicode().values()
    vocab = {letter: i for i, letter in enumerate(letters)} | {"th": 256, "is": 257}
    merges: Any = [("t", "h"), ("i", "s")]
    made = transformers.Qwen2Tokenizer(vocab=vocab, merges=merges, eos_token="<|im_end|>")
    made.add_special_tokens({"additional_special_tokens": SPECIAL})
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder, words = tmp_path_factory.mktemp("published"), tokenizer()
    ids = {name: words.convert_tokens_to_ids(name) for name in SPECIAL}
    config = transformers.LlavaConfig(
        vision_config={"model_type": "siglip_vision_model", "image_size": 60, "patch_size": 14, **WIDTH},
        text_config={"model_type": "qwen2", "vocab_size": 300, "num_key_value_heads": 2, **WIDTH},
        image_token_index=ids["<image>"],
        image_seq_length=16,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    config.pad_token_id, config.eos_token_id = ids["<|endoftext|>"], ids["<|im_end|>"]
    torch.manual_seed(0)
    model: Any = transformers.LlavaForConditionalGeneration(config)
    tiny.save_llava(folder, shake(model.eval(), 1))
    transformers.LlavaProcessor(
        image_processor=transformers.SiglipImageProcessorPil(size={"height": 60, "width": 60}),
        tokenizer=words,
        patch_size=14,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def vlm(folder) -> sv.VLM:
    return sv.load(folder)


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.fromarray(tiny.random_image(height=48, width=64))


@pytest.fixture(scope="module")
def their_tokens(folder, picture) -> np.ndarray:
    model, told = tiny.load_in_transformers(folder)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    processor: Any = transformers.AutoProcessor.from_pretrained(folder)
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=text, images=picture, return_tensors="pt")
    with torch.no_grad():
        whole = model.eval().generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
    return whole[0, inputs["input_ids"].shape[1] :].numpy()


def test_it_answers_as_transformers_does(vlm, picture, their_tokens):
    ours = sv.generate(vlm, QUESTION, picture, sparsity=None, max_new_tokens=NEW_TOKENS)
    assert len(their_tokens) > 2
    np.testing.assert_array_equal(ours.tokens, their_tokens)


def test_converted_it_answers_the_same(folder, picture, their_tokens, tmp_path):
    convert_checkpoint(folder, tmp_path / "out")
    ours = sv.generate(sv.load(tmp_path / "out"), QUESTION, picture, sparsity=None, max_new_tokens=NEW_TOKENS)
    np.testing.assert_array_equal(ours.tokens, their_tokens)


@pytest.mark.parametrize("name", sampled(sorted(methods.METHODS), {"divprune", "fastv", "resize", "tome", "visionzip"}))
def test_every_method_runs_or_is_refused_for_want_of_a_class_token(vlm, picture, name):
    sparsity = methods.create(name) if name == "dense" else methods.create(name, "1/2")
    if sparsity and "class_token" in sparsity.needs:
        with pytest.raises(ValueError, match="needs the class token of the vision tower, and a siglip_vision_model"):
            sv.generate(vlm, QUESTION, picture, sparsity=sparsity)
        return
    report = sv.generate(vlm, QUESTION, picture, sparsity=sparsity, max_new_tokens=2).report
    assert report.visual_tokens[0] <= 16 and (name == "dense") == (min(report.visual_tokens) == 16)


@pytest.mark.slow
def test_a_trace_shows_the_pixels_that_lie_in_patches(vlm, picture):
    trace = sv.trace_prefill(vlm, QUESTION, picture, sparsity="1/2")
    assert trace.images[0].shape == (60, 60, 3) and trace.box.max() * 60 == pytest.approx(56)


def test_a_strategy_that_drops_the_class_token_is_refused(folder):
    config = transformers.LlavaConfig.from_pretrained(folder).to_dict() | {"vision_feature_select_strategy": "default"}
    with pytest.raises(ValueError, match="strategy = 'default', this tower has no class token to drop"):
        sv.models.LlavaConfig.from_hf(config)
