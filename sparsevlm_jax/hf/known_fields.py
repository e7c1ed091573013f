"""What the config classes of `transformers` know: names and defaults, as data.

A field of a checkpoint's config is read, or fixed at its default, or without effect, or refused by name. Only what
stands nowhere here is a leftover that no model code reads. `tests/models/test_known_fields.py` holds these tables
against the installed `transformers`.
"""

from collections.abc import Mapping
from typing import Any

# The fields of each class but those of `PreTrainedConfig`, with their defaults: what an absent field means.
LLAVA: Mapping[str, Any] = {
    "vision_config": None,
    "text_config": None,
    "image_token_index": 32000,
    "image_seq_length": 576,
    "projector_hidden_act": "gelu",
    "vision_feature_select_strategy": "default",
    "vision_feature_layer": -2,
    "multimodal_projector_bias": True,
    "tie_word_embeddings": False,
}
_OF_LLAVA_ALONE = ("vision_feature_select_strategy", "multimodal_projector_bias")
VIPLLAVA: Mapping[str, Any] = {
    **{name: value for name, value in LLAVA.items() if name not in _OF_LLAVA_ALONE},
    "projector_layernorm_eps": 1e-5,
    "vision_feature_layer": (-2, -5, -8, -11, 6),
}
LLAVA_NEXT: Mapping[str, Any] = {**LLAVA, "image_grid_pinpoints": None}
LLAVA_ONEVISION: Mapping[str, Any] = {
    **{name: value for name, value in LLAVA_NEXT.items() if name != "image_seq_length"},
    "image_token_index": 151646,
    "video_token_index": 151647,
    "vision_feature_select_strategy": "full",
    "vision_feature_layer": -1,
    "vision_aspect_ratio": "anyres_max_9",
}
CLIP_VISION: Mapping[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "projection_dim": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "initializer_factor": 1.0,
}
SIGLIP_VISION: Mapping[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 16,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "attention_dropout": 0.0,
    "vision_use_head": True,
}
LLAMA: Mapping[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "use_cache": True,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pretraining_tp": 1,
    "tie_word_embeddings": False,
    "rope_parameters": None,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
}
MISTRAL: Mapping[str, Any] = {
    **{name: value for name, value in LLAMA.items() if name not in ("pretraining_tp", "attention_bias", "mlp_bias")},
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
}
QWEN2: Mapping[str, Any] = {
    **{name: value for name, value in MISTRAL.items() if name not in ("head_dim",)},
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "max_window_layers": 28,
    "layer_types": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
QWEN3: Mapping[str, Any] = {**QWEN2, "head_dim": 128, "attention_bias": False}
PHI3: Mapping[str, Any] = {
    **{name: value for name, value in MISTRAL.items() if name != "head_dim"},
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_key_value_heads": None,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "eos_token_id": 32000,
    "pad_token_id": 32000,
    "sliding_window": None,
}
# What `LlavaConfig`, `VipLlavaConfig` and `LlavaNextConfig` give their tower where `vision_config` is absent.
LLAVA_VISION: Mapping[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
    "vocab_size": 32000,
}
ONEVISION_VISION: Mapping[str, Any] = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
    "vision_use_head": False,
}
# (height, width) of the pictures that `LlavaNextConfig` and `LlavaOnevisionConfig` cut into tiles, where they say none.
NEXT_PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
ONEVISION_PINPOINTS = tuple((384 * rows, 384 * columns) for rows in range(1, 7) for columns in range(1, 7))

# Names that the constructors convert, and what they mean where absent: not fields, yet read.
LLAVA_SPELLINGS: Mapping[str, Any] = {
    "image_token_id": None,  # of `image_token_index`
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
ONEVISION_SPELLINGS: Mapping[str, Any] = {
    **LLAVA_SPELLINGS,
    "video_token_id": None,  # of `video_token_index`
}
VIPLLAVA_SPELLINGS: Mapping[str, Any] = {
    **LLAVA_SPELLINGS,
    "vision_feature_layers": None,  # of `vision_feature_layer`: version 4 has this one alone, and it counts before it
}
ROPE_SPELLINGS: Mapping[str, Any] = {
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "partial_rotary_factor": 1.0,
    "original_max_position_embeddings": None,
}

# Of every class; another value than the default (or null) is another computation.
FIXED: Mapping[str, Any] = {
    "is_encoder_decoder": False,
    "pruned_heads": {},
    "per_layer_config": None,
    "tie_last_hidden_states": None,
}
# Of every class; no value changes what inference computes here: bookkeeping, training, said by the caller, or what
# version 4 wrote for towers, too (ids, tied embeddings).
INERT = frozenset(
    """_name_or_path name_or_path _commit_hash architectures auto_map transformers_version model_type dtype torch_dtype
    attn_implementation _attn_implementation _attn_implementation_internal _attn_implementation_autoset
    experts_implementation _experts_implementation output_attentions output_hidden_states return_dict use_cache
    initializer_range initializer_factor attention_dropout dropout resid_pdrop embd_pdrop pretraining_tp
    projection_dim image_seq_length ignore_index chunk_size_feed_forward id2label label2id num_labels problem_type
    finetuning_task tokenizer_class prefix task_specific_params torchscript tf_legacy_loss use_bfloat16 is_decoder
    add_cross_attention cross_attention_hidden_size tie_encoder_decoder pad_token_id bos_token_id eos_token_id
    sep_token_id decoder_start_token_id tie_word_embeddings max_length output_scores return_dict_in_generate""".split()
)
# Dropped by transformers 5, whatever they say: worth a word unless they stand at the default that version 4 wrote.
DROPPED: Mapping[str, Any] = {
    "vocab_size": LLAVA_VISION["vocab_size"],  # of a tower: llava-hf's configs have it, no CLIP does
    "min_length": 0,
    "do_sample": False,
    "early_stopping": False,
    "num_beams": 1,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "num_return_sequences": 1,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "remove_invalid_values": False,
    "exponential_decay_length_penalty": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "encoder_repetition_penalty": 1.0,
    "num_assistant_tokens": 20,
    "num_assistant_tokens_schedule": "constant",
    "assistant_confidence_threshold": 0.4,
    "assistant_lookbehind": 10,
    "target_lookbehind": 10,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
}
QUANTISED = ("quantization_config", "compression_config")
