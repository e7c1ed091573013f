"""A folder that cannot be read is refused as the kind that it is."""

import json

import pytest

from sparsevlm_jax.checkpoints.sources import convert_checkpoint, inspect_checkpoint, load_checkpoint
from sparsevlm_jax.convert import read_config
from sparsevlm_jax.errors import CheckpointError
from sparsevlm_jax.models import UnsupportedConfig

SUPPORTED = "; supported: LLaVA with a decoder like Llama and a CLIP or SigLIP tower, as transformers saves it"


@pytest.mark.parametrize(
    "config, message",
    [
        ({"model_type": "qwen2_vl"}, r"model_type 'qwen2_vl' \(Qwen2-VL\) is not supported" + SUPPORTED),
        ({"model_type": "video_llava", "text_config": {}}, r"\(Video-LLaVA\) is not supported" + SUPPORTED),
        ({"model_type": "frobnicate"}, "model_type 'frobnicate' is not supported" + SUPPORTED),
        ({"model_type": "clip"}, "this is a vision tower .*a part of a model" + SUPPORTED),
        ({"model_type": "llama"}, "this is a language model without vision .*" + SUPPORTED),
        ({}, "model_type None says no kind of model" + SUPPORTED),
        (
            {"model_type": "llava", "text_config": {}, "quantization_config": {"quant_method": "awq", "bits": 4}},
            r"weights are quantised \(quantization_config of method 'awq'\), expected float32, bfloat16 or float16",
        ),
        (
            {"model_type": "llava", "text_config": {"model_type": "gemma2", "use_sliding_window": False}},
            "text_config.model_type = 'gemma2', implemented: 'llama', 'vicuna', 'mistral', 'qwen2', 'qwen3'",
        ),
    ],
)
def test_a_model_of_another_kind_is_named_with_what_is_supported(tmp_path, config, message):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedConfig, match=message):
        read_config(tmp_path)


def every_way_in(folder):
    return [
        lambda: read_config(folder),
        lambda: load_checkpoint(folder),
        lambda: inspect_checkpoint(folder),
        lambda: convert_checkpoint(folder, folder.parent / "out"),
    ]


@pytest.mark.parametrize("with_config", [False, True])
def test_an_adapter_names_the_model_to_merge_it_into(tmp_path, with_config):
    folder = tmp_path / "adapter"
    folder.mkdir()
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "llava-hf/llava-1.5-7b-hf"}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    (folder / "adapter_model.safetensors").write_bytes(b"")
    if with_config:
        (folder / "config.json").write_text(json.dumps({"model_type": "llava"}))
    for enter in every_way_in(folder):
        with pytest.raises(CheckpointError, match="is a LoRA adapter for 'llava-hf/llava-1.5-7b-hf', not a"):
            enter()


@pytest.mark.parametrize(
    "file, message",
    [
        ("tokenizer_config.json", r"holds tokenizer and processor files alone \(tokenizer_config.json\)"),
        ("model.safetensors.index.json", "holds weights, but no config.json"),
        ("README.md", "is not the folder of a checkpoint: there is no config.json in it"),
    ],
)
def test_a_folder_without_a_config_says_what_it_holds(tmp_path, file, message):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / file).write_text("{}")
    for enter in every_way_in(folder):
        with pytest.raises(CheckpointError, match=message):
            enter()
