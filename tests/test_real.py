"""Small files of published checkpoints, as they are: each folder loads, or is refused as the kind that it is.

SPARSEVLM_REAL names the folder that holds them; none of them is kept here. `OUTCOMES` says what must come of each: a
family that is added turns its refusals into loads.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from sparsevlm_jax.checkpoints.sources import inspect_checkpoint, load_checkpoint
from sparsevlm_jax.convert import read_config
from sparsevlm_jax.models import LlavaConfig
from tests.parity import Pair, assert_close, assert_same_sizes, last_logits, one_row, shake, their_logits
from tests.tiny import layout, write_shards

REAL = Path(os.environ.get("SPARSEVLM_REAL", "unset"))
pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason="SPARSEVLM_REAL names no folder of published configs")

LOADS, LOADS_ORIGINAL = "loads", "loads from the original layout"
FAMILY = r"model_type '{}' \({}.*\) is not supported; supported: LLaVA with"
OTHER = r"model_type '{}' is not supported; supported: LLaVA with"
ADAPTER = "is a LoRA adapter for '{}', not a whole model: merge it into that model first"
TOWER = r"this is a vision tower \(model_type 'clip'\), a part of a model; supported: LLaVA with"
PROCESSOR = "holds tokenizer and processor files alone .*: there is no config.json in it"
NO_CONFIG = "holds weights, but no config.json that says of which model"
OUTCOMES = {
    "aeon-smolvlm-256m": FAMILY.format("idefics3", "Idefics3 and SmolVLM"),
    "clip-vit-large-patch14-224": TOWER,
    "clip-vit-large-patch14-336": TOWER,
    "gemma-3-27b-it": FAMILY.format("gemma3", "Gemma 3"),
    "gemma-3-4b-it": FAMILY.format("gemma3", "Gemma 3"),
    "hayato-llava-v1.5-7b-pretrain": LOADS_ORIGINAL,
    "hayato-llava-v1.5-7b-pretrain-step250": LOADS_ORIGINAL,
    "internvl2-8b": FAMILY.format("internvl_chat", "InternVL"),
    "internvl3": PROCESSOR,
    "llava-1.5-7b-hf": LOADS,
    "llava-1.5-7b-hf-config-copy": LOADS,
    "llava-1.5-7b-stock-lora": ADAPTER.format("llava-1.5-7b-hf"),
    "llava-ipex-1layer": LOADS_ORIGINAL,
    "llava-onevision-qwen2-0.5b-lora": ADAPTER.format("llava-hf/llava-onevision-qwen2-0.5b-ov-hf"),
    "llava-v1.5-13b-quoted": LOADS_ORIGINAL,
    "llava-v1.5-7b": LOADS_ORIGINAL,
    "llava-v1.6-mistral-7b-hf-trtllm-2vitlayers": LOADS,
    "llava-v1.6-mistral-7b-scienceqa-lora": ADAPTER.format("llava-hf/llava-v1.6-mistral-7b-hf"),
    "mm-det-llava-1.5-7b-rfrd": NO_CONFIG,
    "olmocr-2-7b-1025": FAMILY.format("qwen2_5_vl", "Qwen2.5-VL"),
    "other-eagle-block2a-2b": OTHER.format("eagle_3_vl"),
    "other-mineru2-qwen": OTHER.format("mineru2_qwen"),
    "other-videollama3-cogstream": OTHER.format("videollama3_qwen2"),
    "photon-qwen2.5-vl-3b": FAMILY.format("qwen2_5_vl", "Qwen2.5-VL"),
    "qwen2-vl-2b-instruct": FAMILY.format("qwen2_vl", "Qwen2-VL"),
    "qwen2-vl-7b-instruct": FAMILY.format("qwen2_vl", "Qwen2-VL"),
    "qwen2.5-vl-3b-instruct": FAMILY.format("qwen2_5_vl", "Qwen2.5-VL"),
    "qwen2.5-vl-3b-sophgo-edit": FAMILY.format("qwen2_5_vl", "Qwen2.5-VL"),
    "qwen2.5-vl-3b-techshoww-edit": FAMILY.format("qwen2_5_vl", "Qwen2.5-VL"),
    "qwen2.5-vl-7b-instruct": FAMILY.format("qwen2_5_vl", "Qwen2.5-VL"),
    "qwen2.5-vl-7b-instruct-ropetype-edit": FAMILY.format("qwen2_5_vl", "Qwen2.5-VL"),
    "qwen2.5-vl-7b-instruct-ttmetal": FAMILY.format("qwen2_5_vl", "Qwen2.5-VL"),
    "qwen3-vl-2b-aiconfigurator": FAMILY.format("qwen3_vl", "Qwen3-VL"),
    "qwen3-vl-2b-instruct": FAMILY.format("qwen3_vl", "Qwen3-VL"),
    "qwen3-vl-30b-a3b-instruct": FAMILY.format("qwen3_vl_moe", "Qwen3-VL, mixture of experts"),
    "qwen3-vl-32b-aiconfigurator": FAMILY.format("qwen3_vl", "Qwen3-VL"),
    "qwen3-vl-4b-instruct": FAMILY.format("qwen3_vl", "Qwen3-VL"),
    "qwen3-vl-8b-aiconfigurator": FAMILY.format("qwen3_vl", "Qwen3-VL"),
    "qwen3.5-0.8b": FAMILY.format("qwen3_5", "Qwen3.5"),
    "qwen3.5-27b": FAMILY.format("qwen3_5", "Qwen3.5"),
    "qwen3.8-27b-mtplx": NO_CONFIG,
    "robust-gui-grounding-qwen2-vl": PROCESSOR,
    "vk-vlm-qwen2.5-vl-7b-lora": ADAPTER.format("Qwen/Qwen2.5-VL-7B-Instruct"),
}


def load_json(*parts: str) -> Any:
    return json.loads(REAL.joinpath(*parts).read_text("utf-8"))


def from_original(config: dict) -> Any:
    """What an original config means, as `transformers` would have it: its decoder is a Llama, its tower CLIP's own."""
    theirs: Any = transformers.LlavaConfig(image_token_index=config["vocab_size"])
    theirs.text_config = transformers.LlamaConfig.from_dict(config)
    theirs.vision_config = transformers.CLIPVisionConfig.from_dict(
        load_json("clip-vit-large-patch14-336", "config.json")["vision_config"]
    )
    return theirs


def test_every_folder_has_an_expected_outcome():
    assert {path.name for path in REAL.iterdir() if path.is_dir()} == OUTCOMES.keys()


@pytest.mark.parametrize("name", [name for name, outcome in OUTCOMES.items() if outcome in (LOADS, LOADS_ORIGINAL)])
def test_a_config_that_loads_says_to_us_what_it_says_to_transformers(name):
    """And without a warning, for no field of these is a leftover."""
    config = load_json(name, "config.json")
    theirs = transformers.AutoConfig.from_pretrained(REAL / name) if OUTCOMES[name] == LOADS else from_original(config)
    assert_same_sizes(read_config(REAL / name), theirs)
    with pytest.raises(ValueError, match=f"{name}.* (holds no weights|names shards that are not there)"):
        inspect_checkpoint(REAL / name)


@pytest.mark.parametrize("name", [name for name, outcome in OUTCOMES.items() if outcome not in (LOADS, LOADS_ORIGINAL)])
def test_what_cannot_be_read_is_refused_as_what_it_is(name):
    for enter in (inspect_checkpoint, load_checkpoint):
        with pytest.raises(ValueError, match=f"{name}.*{OUTCOMES[name]}"):
            enter(REAL / name)


# Sizes that make a published config tiny; every other field stays as it is.
TEXT = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 42,
}


def shrunk(config: dict) -> dict:
    text, vision = config["text_config"] | TEXT, config["vision_config"] | VISION
    if "num_key_value_heads" in text:
        text["num_key_value_heads"] = 2
    return config | {"text_config": text, "vision_config": vision}


def random_model(config: dict) -> Any:
    hf = transformers.LlavaConfig.from_dict(json.loads(json.dumps(config)))
    torch.manual_seed(0)
    return shake(transformers.LlavaForConditionalGeneration(hf).float().eval(), 1)


def assert_same_logits(theirs: Any, ours: Any) -> None:
    pair = Pair(theirs, ours.config, ours.params)
    rows = one_row(pair.config, images=1, words=12)
    assert_close(last_logits(pair, rows), their_logits(pair, rows))


@pytest.mark.parametrize("decoder", ["llava-1.5-7b-hf", "llava-v1.6-mistral-7b-hf-trtllm-2vitlayers"])
def test_a_llava_hf_config_made_small_computes_the_logits_of_transformers(decoder, tmp_path):
    config = shrunk(
        load_json("llava-1.5-7b-hf", "config.json") | {"text_config": load_json(decoder, "config.json")["text_config"]}
    )
    model = random_model(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    write_shards(tmp_path, layout(model.state_dict(), "A"))
    assert_same_logits(model, load_checkpoint(tmp_path))


def test_an_original_config_made_small_computes_the_logits_of_transformers(tmp_path):
    """Its tower lies in a folder of its own; its image token outside the vocabulary, for transformers inside."""
    original = load_json("llava-v1.5-7b", "config.json") | TEXT | {"num_key_value_heads": 4, "mm_hidden_size": 32}
    clip = load_json("clip-vit-large-patch14-336", "config.json")
    clip["vision_config"] |= VISION
    model = random_model({"text_config": original | {"model_type": "llama"}, "vision_config": clip["vision_config"]})
    model.config.image_token_index = 31999
    state = layout(model.state_dict(), "original")
    in_tower = "model.vision_tower.vision_tower."
    parts = {"model": {}, "clip": {}}
    for name, tensor in state.items():
        parts["clip" if name.startswith(in_tower) else "model"][name.removeprefix(in_tower)] = tensor
    for folder, table in (("model", original), ("clip", clip)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text(json.dumps(table))
        write_shards(tmp_path / folder, parts[folder])
    ours = load_checkpoint(tmp_path / "model", vision_tower=tmp_path / "clip")
    assert ours.config.image_token_id == 32000
    pair = Pair(model, ours.config, ours.params)
    rows = one_row(ours.config, images=1, words=12)
    inside = rows._replace(rows=[row._replace(input_ids=row.input_ids.clip(max=31999)) for row in rows.rows])
    assert_close(last_logits(pair, rows), their_logits(pair, inside))


def test_the_published_config_written_by_us_is_read_alike(tmp_path):
    ours = read_config(REAL / "llava-1.5-7b-hf")
    (tmp_path / "config.json").write_text(json.dumps(ours.to_hf()))
    assert read_config(tmp_path) == LlavaConfig.from_hf(ours.to_hf()) == ours
    assert_same_sizes(ours, transformers.AutoConfig.from_pretrained(tmp_path))
