"""The tensors inside towers and decoders: PyTorch's names and this library's, wherever the part stands in a model."""

import math

import numpy as np

from .rows import Names, Row, Transform, embedding, layer_norm, linear, rms_norm


def conv_to_matmul(stored: np.ndarray) -> np.ndarray:
    """Conv (D, 3, p, p) over non-overlapping patches -> kernel (D, 3*p*p) on patches flattened in (C, pH, pW) order."""
    return stored.reshape(stored.shape[0], -1)


def matmul_to_conv(kernel: np.ndarray) -> np.ndarray:
    """Kernel (D, 3*p*p) -> Conv (D, 3, p, p)."""
    patch = math.isqrt(kernel.shape[1] // 3)
    return kernel.reshape(-1, 3, patch, patch)


# CLIP and SigLIP. No feature of a LLaVA passes through the last norm: a tower that is stored without it gets the
# identity. SigLIP's head pools all patches and is not read; `position_ids` is a buffer that old versions saved.
VISION_TRANSFORMER = Names(
    rows=(
        Row("embeddings.class_embedding", "embeddings.class_embedding"),
        *linear("embeddings.patch_embedding", transform=Transform(conv_to_matmul, matmul_to_conv)),
        embedding("embeddings.position_embedding"),
        *layer_norm("pre_layrnorm"),
        *layer_norm("encoder.layers.#.layer_norm{1|2}"),
        *linear("encoder.layers.#.self_attn.{q|k|v|out}_proj"),
        *linear("encoder.layers.#.mlp.fc{1|2}"),
        Row("post_layernorm.weight", "post_layernorm.scale", absent=np.ones),
        Row("post_layernorm.bias", "post_layernorm.bias", absent=np.zeros),
    ),
    ignored=(r"embeddings\.position_ids", r"head\..*"),
)

# Llama and those that differ from it by a field: Mistral, Qwen2, Qwen3, and Phi-3 once its matrices are taken apart
# (see `fused`). Old versions saved RoPE's tables, which the config says.
LLAMA = Names(
    rows=(
        embedding("embed_tokens"),
        *linear("layers.#.self_attn.{q|k|v|o}_proj"),
        *linear("layers.#.mlp.{gate|up|down}_proj"),
        rms_norm("layers.#.{input|post_attention}_layernorm"),
        rms_norm("layers.#.self_attn.{q|k}_norm"),
        rms_norm("norm"),
    ),
    ignored=(r"(?:.*\.)?rotary_emb\.(?:inv_freq|cos_cached|sin_cached)",),
)

HEAD = Names(rows=(Row("lm_head.weight", "lm_head.kernel"),))
