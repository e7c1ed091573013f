"""Model sizes by name, with their source, and timing that a noisy machine can stand."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from sparsevlm_jax.models import (
    ClipVisionConfig,
    LlamaConfig,
    LlavaConfig,
    ModelConfig,
    SiglipVisionConfig,
    init_params,
)
from sparsevlm_jax.models.families.llava_next import LlavaNextConfig
from sparsevlm_jax.models.families.llava_onevision import LlavaOnevisionConfig
from sparsevlm_jax.processing import Layout

_CLIP_L_336 = ClipVisionConfig(1024, 4096, 24, 16, 336, 14)  # openai/clip-vit-large-patch14-336
_CLIP_L_224 = ClipVisionConfig(1024, 4096, 24, 16, 224, 14)  # the tower that Video-LLaVA's is made like
_CLIP_B_224 = ClipVisionConfig(768, 3072, 12, 12, 224, 16)  # openai/clip-vit-base-patch16


Name = TypeVar("Name")
#: (height, width) of the pictures that families cut into tiles: two by two of them in each.
TILED = (672, 672)


def _llava(
    vision: ClipVisionConfig, width: int, ffn: int, layers: int, heads: int, kv_heads: int, **options: Any
) -> LlavaConfig:
    text = LlamaConfig(32064, width, ffn, layers, heads, kv_heads, width // heads, 1e-5, 1e4, 4096)
    return LlavaConfig(vision, text, image_token_id=32000, **options)


def _next(width: int, ffn: int, layers: int, heads: int, kv_heads: int) -> LlavaNextConfig:
    parts = _llava(_CLIP_L_336, width, ffn, layers, heads, kv_heads)
    return LlavaNextConfig(vision=parts.vision, text=parts.text, image_token_id=parts.image_token_id)


_QWEN_05B = LlamaConfig(
    152000, 896, 4864, 24, 14, 2, 64, 1e-6, 1e6, 32768, tie_word_embeddings=True, qkv_bias=True
)  # Qwen2-0.5B
_SIGLIP_384 = SiglipVisionConfig(1152, 4304, 26, 16, image_size=384, patch_size=14)
MODELS: dict[str, Any] = {
    "7b": _llava(_CLIP_L_336, 4096, 11008, 32, 32, 32),  # llava-hf/llava-1.5-7b-hf
    "13b": _llava(_CLIP_L_336, 5120, 13824, 40, 40, 40),  # llava-hf/llava-1.5-13b-hf
    # LanguageBind/Video-LLaVA-7B-hf: eight frames of 257 tokens, class token included
    "7b-video": _llava(_CLIP_L_224, 4096, 11008, 32, 32, 32, vision_feature_select_strategy="full"),
    "1b": _llava(_CLIP_L_336, 2048, 5632, 22, 32, 4),  # the decoder of TinyLlama-1.1B
    # llava-hf/llava-v1.6-vicuna-7b-hf, and its tower before the decoder of TinyLlama-1.1B
    "next-7b": _next(4096, 11008, 32, 32, 32),
    "next-1b": _next(2048, 5632, 22, 32, 4),
    # llava-hf/llava-onevision-qwen2-0.5b-ov-hf
    "onevision-0.5b": LlavaOnevisionConfig(vision=_SIGLIP_384, text=_QWEN_05B, image_token_id=151646),
    "0.1b": _llava(_CLIP_B_224, 768, 2048, 12, 12, 12),  # a decoder of GPT-2's size
}


def tokens_of(config: Any) -> int:
    """Visual tokens of a picture, of `TILED` where it is cut."""
    return config.tokens_per_image or len(config.cut(TILED)[1].source)


def random_pictures(config: Any, count: int, dtype: Any) -> tuple[Any, Layout]:
    """What `encode` takes of random pictures, and where their visual tokens are; those that are cut are `TILED`."""
    edge = config.image_size
    if not isinstance(config, LlavaNextConfig):
        pixels = jax.random.normal(jax.random.key(1), (count, 3, edge, edge), dtype)
        return pixels, Layout.of([config.picture] * count)
    _, cut = config.cut(TILED)
    each = cut.picture.tiles * config.tokens_per_tile
    sources = [np.where(cut.source < 0, -1, cut.source + each * index) for index in range(count)]
    tiles = jax.random.normal(jax.random.key(1), (count * cut.picture.tiles, 3, edge, edge), dtype)
    values = {"tiles": tiles, "source": jnp.asarray(np.concatenate(sources), jnp.int32)}
    if cut.is_scaled:
        values["weight"] = jnp.asarray(np.concatenate([cut.weight] * count))
    return values, Layout.of([cut.picture] * count)


def random_params(config: ModelConfig, dtype: Any) -> dict:
    """Random parameters in `dtype`; each array's float32 goes as it is cast, for a 13B in both would fill an H100."""
    leaves, tree = jax.tree.flatten(init_params(config))
    for index, leaf in enumerate(leaves):
        leaves[index] = leaf.astype(dtype)
        del leaf
    return jax.tree.unflatten(tree, leaves)


def alternate(variants: Mapping[Name, Callable[[], object]], *, repeats: int) -> dict[Name, list[float]]:
    """Milliseconds of each variant, `repeats` times, taken in turns so that drift hits all alike; one warm-up each."""
    for run in variants.values():
        jax.block_until_ready(run())
    times: dict[Name, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, run in variants.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            times[name].append((time.perf_counter() - start) * 1e3)
    return times


def median(times: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in times.items()}
