"""A published LLaVA as it stands: every small file of llava-hf/llava-1.5-7b-hf, and weights of the same names, but few.

Nothing is left out of the config and nothing but sizes is changed. It answers as `transformers` does, is converted, is
found again by a relative path, and goes back to `transformers`.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import sparsevlm_jax as sv
from sparsevlm_jax.checkpoints.sources import convert_checkpoint, export_checkpoint
from tests import tiny

REAL = os.environ.get("SPARSEVLM_REAL")
pytestmark = pytest.mark.skipif(REAL is None, reason="SPARSEVLM_REAL does not name the folder of published small files")

SIZES = {
    "text_config": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4},
    "vision_config": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2},
}
QUESTION = "What is written on the blue sign?"
NEW_TOKENS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = shutil.copytree(
        Path(REAL or "") / "llava-1.5-7b-hf",
        tmp_path_factory.mktemp("published") / "llava-1.5-7b-hf",
        ignore=shutil.ignore_patterns("*.index.json"),
        copy_function=shutil.copyfile,
    )
    config = json.loads((folder / "config.json").read_text())
    small = {name: value | SIZES.get(name, {}) if isinstance(value, dict) else value for name, value in config.items()}
    (folder / "config.json").write_text(json.dumps(small))
    torch.manual_seed(0)
    model: Any = transformers.LlavaForConditionalGeneration(transformers.LlavaConfig.from_pretrained(folder))
    tiny.write_shards(folder, tiny.layout(model.half().state_dict(), "A"), shards=3)
    return folder


@pytest.fixture(scope="module")
def theirs(folder):
    auto: Any = transformers.LlavaForConditionalGeneration
    return auto.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def picture():
    return Image.fromarray(tiny.random_image(height=480, width=640))


@pytest.fixture(scope="module", params=["a picture", "words alone"])
def asked(request, folder, picture) -> tuple[Any, dict[str, torch.Tensor]]:
    """The picture or None, and what the published processor makes of it and the question."""
    image = picture if request.param == "a picture" else None
    content = [{"type": "image"}] * (image is not None) + [{"type": "text", "text": QUESTION}]
    processor: Any = transformers.AutoProcessor.from_pretrained(folder)
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return image, processor(text=text, images=image, return_tensors="pt")


def their_answer(model: Any, inputs: dict[str, torch.Tensor]) -> np.ndarray:
    with torch.no_grad():
        whole = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
    return whole[0, inputs["input_ids"].shape[1] :].numpy()


def answer(vlm: sv.VLM, image: Any) -> np.ndarray:
    return sv.generate(vlm, QUESTION, image, sparsity=None, max_new_tokens=NEW_TOKENS).tokens


def test_it_answers_as_transformers_does(folder, theirs, asked):
    image, inputs = asked
    np.testing.assert_array_equal(answer(sv.load(folder), image), their_answer(theirs, inputs))


def test_converted_it_answers_the_same_from_a_relative_path(folder, theirs, asked, tmp_path, monkeypatch):
    image, inputs = asked
    monkeypatch.chdir(tmp_path)
    convert_checkpoint(folder, "out/")
    np.testing.assert_array_equal(answer(sv.load("out/"), image), their_answer(theirs, inputs))


def test_exported_again_it_gives_transformers_the_same_logits(folder, theirs, asked, tmp_path):
    _, inputs = asked
    convert_checkpoint(folder, tmp_path / "converted")
    export_checkpoint(tmp_path / "converted", tmp_path / "exported")
    back, told = tiny.load_in_transformers(tmp_path / "exported")
    assert not told["missing_keys"] and not told["unexpected_keys"]
    with torch.no_grad():
        first, second = (model.float().eval()(**inputs).logits for model in (theirs, back))
    assert torch.equal(first, second)
