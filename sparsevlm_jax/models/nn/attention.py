"""Attention outputs, with the implementation chosen by name and never falling back in silence.

The score maps that pruning needs are *not* taken from here: fused kernels do not return them. `sparsify.scores`
computes the few rows it needs itself.

B batch · T queries · S keys · N heads · K kv heads (N is a multiple of K) · H head dim
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Implementation = Literal["xla", "cudnn"]

# XLA materialises scores. Those of this many queries (in long prompts four times as many) stay in a core's cache; a
# causal block ends at the key of its last query; and no buffer grows with the square of the tokens.
QUERY_BLOCK = 128


def choose_implementation(dtype: jnp.dtype, *, head_dim: int, platform: str | None = None) -> Implementation:
    """cuDNN's fused attention where it can run (GPU, half precision, head dim a multiple of 8 up to 128), else XLA."""
    platform = platform or jax.default_backend()
    half = jnp.dtype(dtype) in (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16))
    return "cudnn" if platform in ("gpu", "cuda") and half and head_dim % 8 == 0 and head_dim <= 128 else "xla"


def causal_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    length: Int[Array, " B"],
    *,
    implementation: Implementation,
    key_bias: Float[Array, "B T"] | None = None,
) -> Float[Array, "B T N H"]:
    """Each valid token sees itself and the tokens before it. Rows at or past `length` return garbage, never NaN.

    Left-aligned streams make this mask `is_causal` plus key lengths, for T = 3 and length 2:

        1 0 0
        1 1 0
        1 1 0   <- padding

    Args:
        key_bias: added to each key's logits.

    Raises:
        ValueError: `key_bias` with "cudnn".
    """
    bias = _per_key(key_bias, implementation)
    if implementation == "xla":  # padding comes after all valid tokens: causality hides it
        return _blockwise_attention(q, k, v, bias, is_causal=True)
    return jax.nn.dot_product_attention(
        q, k, v, is_causal=True, key_value_seq_lengths=length, implementation=implementation
    )


def full_attention(
    q, k, v, *, implementation: Implementation, key_bias: Float[Array, "B T"] | None = None
) -> Float[Array, "B T N H"]:
    """Every query sees every key: the vision tower. `key_bias` as in `causal_attention`."""
    bias = _per_key(key_bias, implementation)
    if implementation == "xla":
        return _blockwise_attention(q, k, v, bias, is_causal=False)
    return jax.nn.dot_product_attention(q, k, v, implementation=implementation)


def decode_attention(
    q: Float[Array, "B 1 N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    length: Int[Array, " B"],
    *,
    implementation: Implementation,
    key_bias: Float[Array, "B S"] | None = None,
) -> Float[Array, "B 1 N H"]:
    """One query per row over the first `length` keys of its cache. `key_bias` as in `causal_attention`."""
    bias = _per_key(key_bias, implementation)
    return jax.nn.dot_product_attention(q, k, v, bias=bias, key_value_seq_lengths=length, implementation=implementation)


def _per_key(key_bias: Array | None, implementation: Implementation) -> Float[Array, "B 1 1 S"] | None:
    if key_bias is None:
        return None
    if implementation != "xla":
        raise ValueError(f"a bias per key (tokens that count their size) needs 'xla' attention, got {implementation!r}")
    return key_bias[:, None, None]


def _blockwise_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    bias: Float[Array, "B 1 1 T"] | None,
    *,
    is_causal: bool,
) -> Float[Array, "B T N H"]:
    """QUERY_BLOCK queries at a time; softmax in float32, divided by its sum behind the second product.

    Unrolled, since each causal block has its own number of keys. On CPU a quarter faster than `dot_product_attention`
    over the same blocks: queries that share a key head are one product, and heads are moved in front once.
    """
    batch, tokens, heads, dim = q.shape
    size = QUERY_BLOCK if tokens <= 8 * QUERY_BLOCK else 4 * QUERY_BLOCK
    k, v = (jnp.moveaxis(array, 2, 1) for array in (k, v))  # [B, K, T, H]
    grouped = jnp.moveaxis(q, 1, 2).reshape(batch, k.shape[1], heads // k.shape[1], tokens, dim)
    blocks = []
    for first in range(0, tokens, size):
        end = min(first + size, tokens)
        keys = end if is_causal else tokens
        block = (grouped[:, :, :, first:end], k[:, :, :keys])
        logits = jnp.einsum("BKGTH,BKSH->BKGTS", *block, preferred_element_type=jnp.float32) * dim**-0.5
        if bias is not None:
            logits += bias[:, None, :, :, :keys]
        if is_causal:
            logits = jnp.where(jnp.tri(end - first, keys, first, dtype=bool), logits, jnp.finfo(jnp.float32).min)
        weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
        total = weights.sum(axis=-1, keepdims=True)
        sums = jnp.einsum(
            "BKGTS,BKSH->BKGTH", weights.astype(v.dtype), v[:, :, :keys], preferred_element_type=jnp.float32
        )
        blocks.append((sums / total).astype(v.dtype))
    out = jnp.concatenate(blocks, axis=3).reshape(batch, heads, tokens, dim)
    return jnp.moveaxis(out, 1, 2)
