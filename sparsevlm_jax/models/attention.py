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

# XLA materialises [B, N, T, S]. Above this many queries it is done in chunks of this many rows instead, so the buffer
# grows with S, not with S squared: 2,880 visual tokens and 32 heads in float32 would take 1 GB a layer.
QUERY_CHUNK = 1024


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
    if implementation == "xla" and q.shape[1] > QUERY_CHUNK:
        return _chunked_causal_attention(q, k, v, length, bias)
    return jax.nn.dot_product_attention(
        q, k, v, bias=bias, is_causal=True, key_value_seq_lengths=length, implementation=implementation
    )


def full_attention(
    q, k, v, *, implementation: Implementation, key_bias: Float[Array, "B T"] | None = None
) -> Float[Array, "B T N H"]:
    """Every query sees every key: the vision tower. `key_bias` as in `causal_attention`."""
    bias = _per_key(key_bias, implementation)
    return jax.nn.dot_product_attention(q, k, v, bias=bias, implementation=implementation)


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


def _chunked_causal_attention(q, k, v, length, bias):
    """`causal_attention` over QUERY_CHUNK rows at a time: the largest buffer is [B, N, QUERY_CHUNK, T]."""
    tokens = q.shape[1]
    padded = -tokens % QUERY_CHUNK
    chunks = jnp.pad(q, ((0, 0), (0, padded), (0, 0), (0, 0))).reshape(q.shape[0], -1, QUERY_CHUNK, *q.shape[2:])
    slot = jnp.arange(tokens)

    def attend(chunk, first_row):
        row = first_row + jnp.arange(QUERY_CHUNK)
        mask = (slot <= row[:, None]) & (slot < length[:, None, None])
        return jax.nn.dot_product_attention(chunk, k, v, bias=bias, mask=mask[:, None], implementation="xla")

    first_rows = jnp.arange(chunks.shape[1]) * QUERY_CHUNK
    out = jax.lax.map(lambda xs: attend(*xs), (jnp.moveaxis(chunks, 1, 0), first_rows))
    return jnp.moveaxis(out, 0, 1).reshape(q.shape[0], tokens + padded, *q.shape[2:])[:, :tokens]
