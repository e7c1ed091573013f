"""The original LLaVA's config becomes the one of its llava-hf conversion, or is refused by name."""

import dataclasses
import json
import re

import pytest

from sparsevlm_jax.checkpoints.sources import convert_checkpoint, inspect_checkpoint, load_checkpoint
from sparsevlm_jax.convert import read_config
from sparsevlm_jax.convert.config import CLIP_L_336, original_to_hf
from sparsevlm_jax.errors import CheckpointError, CheckpointWarning
from sparsevlm_jax.models import LlavaConfig, UnsupportedConfig
from tests.tiny import save_tiny_checkpoint

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
TEXT_7B = {"max_position_embeddings": 4096, "model_type": "llama", "rms_norm_eps": 1e-05, "vocab_size": 32000}
HF_7B = {"model_type": "llava", "image_token_index": 32000, "text_config": TEXT_7B, "vision_config": CLIP_L_336}


def read(tmp_path, config) -> LlavaConfig:
    (tmp_path / "config.json").write_text(json.dumps(config))
    return read_config(tmp_path)


def test_the_published_7b_config_is_the_llava_hf_one_but_for_its_vocabulary(tmp_path):
    assert read(tmp_path, ORIGINAL_7B) == LlavaConfig.from_hf(HF_7B)


def test_the_class_token_is_kept_where_the_config_says(tmp_path):
    config = read(tmp_path, ORIGINAL_7B | {"mm_vision_select_feature": "cls_patch"})
    assert (config.vision_feature_select_strategy, config.tokens_per_image) == ("full", 577)


@pytest.mark.parametrize("kind, layers", [("linear", 1), ("mlp1x_gelu", 1), ("mlp2x_gelu", 2), ("mlp3x_gelu", 3)])
def test_a_projector_has_the_layers_that_its_type_says(tmp_path, kind, layers):
    config = read(tmp_path, ORIGINAL_7B | {"mm_projector_type": kind})
    assert config == dataclasses.replace(LlavaConfig.from_hf(HF_7B), projector_layers=layers)
    assert LlavaConfig.from_hf(config.to_hf()) == config


def test_a_config_of_version_1_that_names_no_projector_has_a_linear_one_and_a_smaller_picture(tmp_path):
    config = {name: value for name, value in ORIGINAL_7B.items() if name not in ("mm_projector_type", "pad_token_id")}
    config |= {"mm_vision_tower": "openai/clip-vit-large-patch14", "sep_image_conv_front": False, "use_mm_proj": True}
    ours = read(tmp_path, config)
    assert (ours.projector_sizes, ours.vision.image_size, ours.tokens_per_image) == ((1024, 4096), 224, 256)


@pytest.mark.parametrize(
    "field, value",
    [
        ("mm_projector_type", "identity"),
        ("mm_projector_type", "ldpnetv2"),
        ("mm_projector_type", "mlp5x_gelu"),
        ("mm_projector_type", None),
        ("mm_resampler_type", "qformer"),
        ("mm_use_im_start_end", True),
        ("mm_use_im_patch_token", True),
        ("mm_patch_merge_type", "unheard of"),
        ("mm_vision_select_feature", "cls"),
        ("image_aspect_ratio", "highres"),
        ("s2", True),
        ("sep_image_conv_front", True),
        ("mm_new_idea", 1),
        ("mm_hidden_size", 512),
        ("hidden_act", "gelu"),
        ("rope_scaling", {"type": "yarn", "factor": 2.0}),
        ("mm_vision_select_layer", 99),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(tmp_path, field, value):
    name = {"rope_scaling": r"rope_scaling\.rope_type", "mm_vision_select_layer": "vision_feature_layer"}
    with pytest.raises(UnsupportedConfig, match=rf"[ :;]{name.get(field, field)} = "):
        read(tmp_path, ORIGINAL_7B | {field: value})


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "flat"},
            "mm_patch_merge_type = 'flat', implemented: 'spatial_unpad'",
        ),
        (
            {"image_aspect_ratio": "anyres_max_9", "mm_patch_merge_type": "spatial_unpad"},
            "image_aspect_ratio = 'anyres_max_9', implemented: 'anyres'",
        ),
        ({"model_type": "llava_mpt"}, "model_type 'llava_mpt' is not supported; supported: LLaVA with "),
        ({"model_type": ["llava"]}, r"model_type \['llava'\] says no kind of model"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "its weights are quantised .*'bitsandbytes'"),
    ],
)
def test_another_model_in_the_original_layout_is_refused_as_what_it_is(tmp_path, changes, message):
    with pytest.raises(UnsupportedConfig, match=message):
        read(tmp_path, ORIGINAL_7B | changes)


def test_leftovers_are_ignored_with_one_warning_under_the_names_of_the_file(tmp_path):
    leftovers = {"unk_token_id": 0, "group_by_modality_length": True, "resume_path": None, "mm_future": None}
    with pytest.warns(CheckpointWarning) as warned:
        assert read(tmp_path, ORIGINAL_7B | leftovers) == LlavaConfig.from_hf(HF_7B)
    assert [str(warning.message) for warning in warned] == [
        f"{tmp_path / 'config.json'}: ignored, since they are not the model's: "
        "group_by_modality_length, mm_future, resume_path, unk_token_id"
    ]


def test_a_mistral_in_the_original_layout_has_mistrals_defaults(tmp_path):
    config = ORIGINAL_7B | {"model_type": "llava_mistral", "num_key_value_heads": 8}
    assert read(tmp_path, config).text.sliding_window == 4096
    assert read(tmp_path, config | {"sliding_window": None}).text.sliding_window is None


def test_all_refusals_come_together():
    config = ORIGINAL_7B | {"mm_projector_type": "identity", "image_aspect_ratio": "anyres"}
    with pytest.raises(UnsupportedConfig, match=r"mm_projector_type = 'identity', .*mm_patch_merge_type = None"):
        original_to_hf(config, vision_config=CLIP_L_336)


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "line 1, column 1: Expecting value"),
        ("[1]", "holds no table, but a list"),
        ('{\n  "model_type": "llava"\n  "vocab_size": 32000}', "line 3, column 3: "),
        ("{", "line 1, column 2: "),
        ("null", "holds no table, but a NoneType"),
        ("[" * 100_000, "too deeply nested"),
        (b'{"model_type": "ll\xff"}', "'utf-8' codec can't decode byte 0xff in position 18"),
    ],
)
def test_a_config_that_is_no_table_is_refused_by_file_and_place(tmp_path, content, message):
    (tmp_path / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CheckpointError, match=rf"config\.json .*{re.escape(message)}"):
        read_config(tmp_path)


def test_loading_converting_and_inspecting_say_once_what_is_left_over(tmp_path):
    folder = save_tiny_checkpoint(tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"resume_path": "x"}))
    for read_all in (
        lambda: load_checkpoint(folder),
        lambda: inspect_checkpoint(folder),
        lambda: convert_checkpoint(folder, tmp_path / "converted"),
    ):
        with pytest.warns(CheckpointWarning, match="not the model's: resume_path$") as warned:
            read_all()
        assert len(warned) == 1
    inspect_checkpoint(tmp_path / "converted")  # silently: what was left over has not been written
