"""A HF config is read as `transformers` reads it: defaults, spellings, leftovers; what is not computed is refused."""

import dataclasses
import json
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import GenerationConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from sparsevlm_jax.errors import CheckpointWarning
from sparsevlm_jax.models import ClipVisionConfig, LlamaConfig, LlavaConfig, UnsupportedConfig
from tests.parity import assert_same_sizes

# As llava-hf publishes its 7B: nested configs nearly empty, and a vocabulary for the tower.
LLAVA_7B = {
    "architectures": ["LlavaForConditionalGeneration"],
    "ignore_index": -100,
    "image_token_index": 32000,
    "model_type": "llava",
    "pad_token_id": 32001,
    "projector_hidden_act": "gelu",
    "text_config": {
        "_name_or_path": "lmsys/vicuna-7b-v1.5",
        "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "rms_norm_eps": 1e-05,
        "torch_dtype": "float16",
        "vocab_size": 32064,
    },
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.36.0.dev0",
    "vision_config": {
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "model_type": "clip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
        "vocab_size": 32000,
    },
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "vocab_size": 32064,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def with_text(**fields) -> dict:
    return {**LLAVA_7B, "text_config": {**LLAVA_7B["text_config"], **fields}}


def with_vision(**fields) -> dict:
    return {**LLAVA_7B, "vision_config": {**LLAVA_7B["vision_config"], **fields}}


def hf(config: dict) -> Any:
    """The same in `transformers`, which writes into what it is given."""
    return transformers.LlavaConfig.from_dict(json.loads(json.dumps(config)))


@pytest.mark.parametrize(
    "config",
    [
        LLAVA_7B,
        {"model_type": "llava"},
        {"model_type": "llava", "text_config": {}, "vision_config": {}},
        {"model_type": "llava", "text_config": {"model_type": "mistral"}},
        with_text(model_type="mistral", sliding_window=None),
        with_text(num_key_value_heads=None, head_dim=None),
        with_text(num_key_value_heads=8, head_dim=64),
        {**LLAVA_7B, "image_token_id": 7},
        {"model_type": "llava", "image_token_id": 0},
    ],
    ids=["7b", "nothing", "empty parts", "mistral", "no window", "nulls of llama", "given", "both ids", "id 0"],
)
def test_sizes_given_absent_and_null_are_those_of_transformers(config):
    assert_same_sizes(LlavaConfig.from_hf(config), hf(config))


@pytest.mark.parametrize("text", [None, {}, {"eos_token_id": None}, {"eos_token_id": 8}])
@pytest.mark.parametrize("top", [{}, {"eos_token_id": None}, {"eos_token_id": 5}, {"eos_token_id": [6, 7]}])
def test_the_ids_that_end_an_answer_are_those_of_transformers(top, text):
    config = {"model_type": "llava", **top, "text_config": text}
    expected = GenerationConfig.from_model_config(hf(config)).eos_token_id
    expected = expected if isinstance(expected, list) else [] if expected is None else [expected]
    ours = LlavaConfig.from_hf(config)
    assert ours.eos_token_ids == tuple(expected)
    assert LlavaConfig.from_hf(ours.to_hf()) == ours


@pytest.mark.parametrize("pad", [-1, 32064, None, [-1]])
def test_a_pad_token_outside_the_vocabulary_is_none(pad):
    assert LlavaConfig.from_hf({**LLAVA_7B, "pad_token_id": pad}).pad_token_id == 0


def test_a_pad_token_given_by_hand_must_have_an_embedding():
    config = LlavaConfig.from_hf(LLAVA_7B)
    with pytest.raises(ValueError, match="pad_token_id = 32064, expected one of 32064 token ids"):
        LlavaConfig(config.vision, config.text, image_token_id=32000, pad_token_id=32064)


def test_leftovers_are_ignored_and_named_in_one_warning():
    config = with_text(unk_token_id=0, unsloth_version="2024.9", _flash_attn_2_enabled=True)
    config |= {"group_by_modality_length": True, "hidden_size": 4096, "image_grid_pinpoints": None}
    config["vision_config"] = {**config["vision_config"], "resume_path": "x"}
    with pytest.warns(CheckpointWarning) as warned:
        assert LlavaConfig.from_hf(config) == LlavaConfig.from_hf(LLAVA_7B)
    assert [str(warning.message) for warning in warned] == [
        "config.json: ignored, since they are not the model's: group_by_modality_length, hidden_size, "
        "image_grid_pinpoints, text_config._flash_attn_2_enabled, text_config.unk_token_id, "
        "text_config.unsloth_version, vision_config.resume_path"
    ]


def test_generation_settings_are_named_unless_they_are_the_default():
    with pytest.warns(CheckpointWarning, match="not the model's: text_config.repetition_penalty$"):
        LlavaConfig.from_hf(with_text(repetition_penalty=1.2, no_repeat_ngram_size=0, max_length=4096, top_k=50))


@pytest.mark.parametrize(
    "config",
    [
        LLAVA_7B,
        json.loads(transformers.LlavaConfig().to_json_string(use_diff=False)),
        with_text(model_type="mistral", sliding_window=2048),
        with_text(rope_scaling={"type": "linear", "factor": 2.0}),
        with_text(rope_scaling={"rope_type": "llama3", **LLAMA3}),
        with_vision(hidden_act="gelu"),
        {**LLAVA_7B, "vision_feature_layer": [-2, 3]},
        {**LLAVA_7B, "projector_layers": 3},
    ],
    ids=["7b", "all of hf", "window", "linear", "llama3", "gelu", "layers", "projector"],
)
def test_a_config_written_and_read_back_is_the_same_and_nothing_is_left_over(config):
    ours = LlavaConfig.from_hf(config)
    assert LlavaConfig.from_hf(json.loads(json.dumps(ours.to_hf()))) == ours
    assert hash(ours)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers has its own say on some
        assert_same_sizes(ours, hf(ours.to_hf()))


@pytest.mark.parametrize(
    "config, message",
    [
        (with_text(hidden_act="gelu"), "text_config.hidden_act = 'gelu', implemented: 'silu'"),
        (with_text(attention_bias=1), "text_config.attention_bias = 1, expected bool"),
        (with_text(model_type="qwen2", use_sliding_window=True), "text_config.use_sliding_window = True"),
        (with_text(partial_rotary_factor=0.5), "text_config.partial_rotary_factor = 0.5, implemented: 1.0"),
        (
            with_text(rope_scaling={"type": "yarn", "factor": 2.0}),
            r"rope_scaling.rope_type = 'yarn', implemented: 'default'",
        ),
        (with_text(rope_scaling={"type": "dynamic", "factor": 2.0}), "rope_scaling.rope_type = 'dynamic'"),
        (with_text(rope_parameters={"full_attention": {"rope_theta": 1e4}}), "expected one table for all layers"),
        (with_text(rope_parameters={"rope_theta": 0}), "rope_parameters.rope_theta = 0, expected a positive number"),
        (with_text(rope_scaling={"type": "linear"}), "rope_scaling.factor = None, expected a positive number"),
        (with_text(layer_types=["sliding_attention"] * 32), "text_config.layer_types = "),
        (with_text(model_type="mistral", sliding_window=0), "text_config.sliding_window = 0, expected a positive"),
        (with_text(model_type="gemma2"), "text_config.model_type = 'gemma2', implemented: 'llama', 'vicuna', 'mis"),
        (with_text(per_layer_config={"1": {"hidden_size": 2}}), "text_config.per_layer_config = "),
        (with_text(quantization_config={"quant_method": "awq"}), "text_config.quantization_config of method 'awq'"),
        (
            {**LLAVA_7B, "quantization_config": {"quant_method": "gptq"}},
            "is not supported: quantization_config of method 'gptq'",
        ),
        (
            {**LLAVA_7B, "vision_config": {"model_type": "dinov2"}},
            "vision_config.model_type = 'dinov2', implemented: 'clip_vision_model', 'siglip_vision_model'",
        ),
        ({**LLAVA_7B, "multimodal_projector_bias": "no"}, "multimodal_projector_bias = 'no', expected bool"),
        ({**LLAVA_7B, "projector_hidden_act": "relu"}, "projector_hidden_act = 'relu', implemented: .*'gelu'"),
        ({**LLAVA_7B, "vision_feature_layer": []}, r"vision_feature_layer = \[\], expected one or more of -25 to 24"),
        ({**LLAVA_7B, "vision_feature_layer": [-2, 25]}, r"vision_feature_layer = \[-2, 25\]"),
        ({**LLAVA_7B, "image_token_index": -200}, "image_token_index = -200, expected a token id"),
        ({**LLAVA_7B, "eos_token_id": "</s>"}, "eos_token_id = '</s>', expected token ids"),
        (with_vision(hidden_act="relu"), "vision_config.hidden_act = 'relu', implemented: 'quick_gelu', 'gelu'"),
        (with_vision(num_channels=4), "vision_config.num_channels = 4, implemented: 3"),
        (with_vision(pruned_heads={"1": [0]}), "vision_config.pruned_heads = "),
        (with_vision(tie_last_hidden_states=True), "vision_config.tie_last_hidden_states = True"),
        (with_vision(hidden_size=10**400), "vision_config.hidden_size = 1"),
        (with_vision(layer_norm_eps=10**400), "vision_config.layer_norm_eps = 1"),
    ],
)
def test_what_would_compute_something_else_is_refused_by_name(config, message):
    with pytest.raises(UnsupportedConfig, match=message):
        LlavaConfig.from_hf(config)


VIPLLAVA = {**LLAVA_7B, "model_type": "vipllava", "architectures": ["VipLlavaForConditionalGeneration"]}
del VIPLLAVA["vision_feature_layer"], VIPLLAVA["vision_feature_select_strategy"]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"vision_feature_layer": [-3, 1]},
        {"vision_feature_layers": [-3, 1]},
        {"vision_feature_layers": -3},
        {"vision_feature_layer": 5, "vision_feature_layers": [-3, 1]},
    ],
    ids=str,
)
@pytest.mark.parametrize("eps", [{}, {"projector_layernorm_eps": 1e-3}], ids=str)
def test_a_vipllava_is_read_as_transformers_reads_it_and_written_for_every_version(fields, eps):
    config = {**VIPLLAVA, **fields, **eps}
    ours, theirs = LlavaConfig.from_hf(config), transformers.VipLlavaConfig.from_dict(json.loads(json.dumps(config)))
    layers = theirs.vision_feature_layer
    assert ours.vision_feature_layer == (layers if isinstance(layers, int) else tuple(layers))
    assert (ours.projector_layernorm_eps, ours.model_type) == (theirs.projector_layernorm_eps, "vipllava")
    assert ours.tokens_per_image == theirs.image_seq_length
    written = json.loads(json.dumps(ours.to_hf()))
    assert LlavaConfig.from_hf(written) == ours and "vision_feature_layer" not in written
    again = transformers.VipLlavaConfig.from_dict(written)
    assert again.vision_feature_layer == (layers if isinstance(layers, int) else list(layers))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"vision_config": {"model_type": "siglip_vision_model"}}, "implemented: 'clip_vision_model'$"),
        ({"vision_feature_layers": [-2, 25]}, r"vision_feature_layers = \[-2, 25\], expected one or more of -25 to 24"),
        ({"vision_feature_layer": []}, r"vision_feature_layer = \[\], expected one or more"),
        ({"projector_layernorm_eps": 0}, "projector_layernorm_eps = 0.0, expected a positive number"),
        ({"projector_layers": 5}, "projector_layers = 5, expected 1 to 4"),
    ],
)
def test_a_vipllava_that_is_none_is_refused_by_name(fields, message):
    with pytest.raises(UnsupportedConfig, match=message):
        LlavaConfig.from_hf({**VIPLLAVA, **fields})


def test_the_fields_of_one_kind_are_leftovers_of_the_other():
    with pytest.warns(CheckpointWarning, match="not the model's: vision_feature_select_strategy$"):
        assert LlavaConfig.from_hf({**VIPLLAVA, "vision_feature_select_strategy": "full"}).skipped_tokens == 1
    with pytest.warns(CheckpointWarning, match="not the model's: projector_layernorm_eps, vision_feature_layers$"):
        llava = LlavaConfig.from_hf({**LLAVA_7B, "projector_layernorm_eps": 1e-3, "vision_feature_layers": [1, 2]})
    assert llava == LlavaConfig.from_hf(LLAVA_7B)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"projector_layers": 0}, "projector_layers = 0, expected 1 to 4"),
        ({"projector_layernorm_eps": 1e-5, "projector_bias": False}, "projector_bias = False, expected True in a Vip"),
        (
            {"projector_layernorm_eps": 1e-5, "vision_feature_select_strategy": "full"},
            "vision_feature_select_strategy = 'full', expected 'default' in a VipLLaVA",
        ),
    ],
)
def test_a_projector_given_by_hand_must_be_one_that_can_be_saved(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(LlavaConfig.from_hf(LLAVA_7B), **fields)


@pytest.mark.parametrize("name", ["attention_dropout", "initializer_range", "initializer_factor", "projection_dim"])
def test_what_only_training_reads_may_be_anything(name):
    config = LLAVA_7B["vision_config"]
    assert ClipVisionConfig.from_hf({**config, name: 0.5}) == ClipVisionConfig.from_hf(config)


# One config in several spellings, and what version 5 of transformers makes of it.
ROPES = {
    "nothing": {},
    "theta of version 4": {"rope_theta": 5e5},
    "theta of version 5": {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    "default, old": {"rope_scaling": {"type": "default"}, "rope_theta": 5e5},
    "linear, first spelling": {"rope_scaling": {"type": "linear", "factor": 4}},
    "linear, second spelling": {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2.5}},
    "linear, third spelling": {"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 5e5}},
    "both types": {"rope_scaling": {"type": "default", "rope_type": "linear", "factor": 2.0}},
    "both tables": {
        "rope_scaling": {"type": "linear", "factor": 2.0},
        "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5},
    },
    "theta twice": {"rope_theta": 1e6, "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}},
    "llama3": {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
    "llama3 in parameters": {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}},
    "llama3, original length outside": {
        "rope_scaling": {"rope_type": "llama3", **LLAMA3},
        "original_max_position_embeddings": 2048,
    },
    "llama3, original length absent": {
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    },
}


@pytest.mark.parametrize("kind", ["llama", "mistral"])
@pytest.mark.parametrize("spelling", ROPES)
def test_ropes_frequencies_are_those_of_transformers_in_every_spelling(spelling, kind):
    config = {"model_type": kind, "hidden_size": 256, "num_attention_heads": 2, "num_key_value_heads": 2}
    config |= {"max_position_embeddings": 131072} | json.loads(json.dumps(ROPES[spelling]))
    ours = LlamaConfig.from_hf(json.loads(json.dumps(config)))
    theirs: Any = transformers.AutoConfig.for_model(**config)
    expected = LlamaRotaryEmbedding(theirs).inv_freq
    assert expected.dtype == torch.float32 and ours.inverse_frequencies().dtype == np.float32
    # Powers of float32 differ between processors: PyTorch's are up to 6 units in the last place off on some.
    np.testing.assert_allclose(ours.inverse_frequencies(), expected.numpy(), rtol=8e-7)
    assert LlamaConfig.from_hf(ours.to_hf()) == ours


def test_keys_of_rope_that_its_type_does_not_read_are_leftovers():
    with pytest.warns(CheckpointWarning, match="not the model's: rope_scaling.factor, rope_scaling.mrope_section"):
        LlamaConfig.from_hf({"rope_scaling": {"type": "default", "factor": 2.0, "mrope_section": [16, 24, 24]}})
