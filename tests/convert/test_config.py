"""The original LLaVA's config becomes the one of its llava-hf conversion, or is refused by name."""

import json

import pytest

from sparsevlm_jax.convert import read_config
from sparsevlm_jax.convert.config import CLIP_L_336, original_to_hf
from sparsevlm_jax.errors import CheckpointError
from sparsevlm_jax.models import LlavaConfig, UnsupportedConfig

# As published with llava-v1.5-7b.
ORIGINAL_7B = {
    "_name_or_path": "llava-v1.5-7b",
    "architectures": ["LlavaLlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "freeze_mm_mlp_adapter": False,
    "freeze_mm_vision_resampler": False,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "image_aspect_ratio": "pad",
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_length": 4096,
    "max_position_embeddings": 4096,
    "mm_hidden_size": 1024,
    "mm_projector_type": "mlp2x_gelu",
    "mm_resampler_type": None,
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "model_type": "llava",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "pad_token_id": 0,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.31.0",
    "tune_mm_mlp_adapter": False,
    "tune_mm_vision_resampler": False,
    "unfreeze_mm_vision_tower": False,
    "use_cache": True,
    "vocab_size": 32000,
}


def read(tmp_path, config) -> LlavaConfig:
    (tmp_path / "config.json").write_text(json.dumps(config))
    return read_config(tmp_path)


def test_the_published_7b_config_is_the_llava_hf_one_but_for_its_vocabulary(tmp_path):
    text = {"max_position_embeddings": 4096, "model_type": "llama", "rms_norm_eps": 1e-05, "vocab_size": 32000}
    hf = {"model_type": "llava", "image_token_index": 32000, "text_config": text, "vision_config": CLIP_L_336}
    assert read(tmp_path, ORIGINAL_7B) == LlavaConfig.from_hf(hf)


def test_the_class_token_is_kept_where_the_config_says(tmp_path):
    config = read(tmp_path, ORIGINAL_7B | {"mm_vision_select_feature": "cls_patch"})
    assert (config.vision_feature_select_strategy, config.tokens_per_image) == ("full", 577)


@pytest.mark.parametrize(
    "field, value",
    [
        ("mm_projector_type", "linear"),
        ("mm_projector_type", None),
        ("mm_resampler_type", "qformer"),
        ("mm_use_im_start_end", True),
        ("mm_use_im_patch_token", True),
        ("mm_patch_merge_type", "spatial_unpad"),
        ("mm_vision_select_feature", "cls"),
        ("image_aspect_ratio", "anyres"),
        ("mm_new_idea", 1),
        ("mm_hidden_size", 512),
        ("model_type", "llava_mpt"),
        ("hidden_act", "gelu"),
        ("rope_scaling", {"type": "linear", "factor": 2.0}),
        ("some_new_field", 1),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(tmp_path, field, value):
    with pytest.raises(UnsupportedConfig, match=f"{field} = "):
        read(tmp_path, ORIGINAL_7B | {field: value})


def test_all_refusals_come_together():
    config = ORIGINAL_7B | {"mm_projector_type": "linear", "image_aspect_ratio": "anyres"}
    with pytest.raises(UnsupportedConfig, match=r"mm_projector_type = 'linear', .*image_aspect_ratio = 'anyres'"):
        original_to_hf(config, vision_config=CLIP_L_336)


@pytest.mark.parametrize("content", ["", "[1]", "{", "null", '"x"', "[" * 100_000])
def test_a_config_that_is_no_table_is_refused_by_file(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_config(tmp_path)
