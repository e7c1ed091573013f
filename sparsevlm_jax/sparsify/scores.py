"""Significance of image tokens: the attention raters pay them (SparseVLM, section 3.2, eqs. 2-3).

Raters are rows, and few. Their attention is one skinny product, raters x keys, so nothing of size [B, N, L, L] is ever
built and the attention layer itself is free to use a fused kernel.

B batch · R raters · S keys · V visual tokens · N heads · K kv heads · H head dim
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .select import select


def rater_attention(
    q: Float[Array, "B R N H"],
    k: Float[Array, "B S K H"],
    rater_slot: Int[Array, "B R"],
    length: Int[Array, " B"],
    *,
    key_bias: Float[Array, "B S"] | None = None,
) -> Float[Array, "B N R S"]:
    """Post-softmax attention of rater rows over every key they may see; float32.

    Args:
        q, k: queries of the raters and keys of the whole stream, RoPE applied.
        rater_slot: the slot each rater sits in: it sees the slots up to its own, if they are below `length`.
        key_bias: what the layer adds to each key's logits (the log of a merged token's size).
    """
    batch, raters, heads, head_dim = q.shape
    grouped = q.reshape(batch, raters, k.shape[2], -1, head_dim)
    logits = jnp.einsum(
        "BRKGH,BSKH->BKGRS", grouped, k, preferred_element_type=jnp.float32, precision=jax.lax.Precision.HIGHEST
    )
    slot = jnp.arange(k.shape[1])
    visible = (slot <= rater_slot[..., None]) & (slot < length[:, None, None])
    logits = logits / math.sqrt(head_dim)
    if key_bias is not None:
        logits = logits + key_bias[:, None, None, None]
    logits = jnp.where(visible[:, None, None], logits, jnp.finfo(jnp.float32).min)
    return jax.nn.softmax(logits, axis=-1).reshape(batch, heads, raters, -1)


def onto_visual(
    attention: Float[Array, "B N R S"],
    visual_slot: Int[Array, "B V"],
    is_visual: Bool[Array, "B V"],
    is_rater: Bool[Array, "B R"],
) -> Float[Array, "B N R V"]:
    """The visual columns of `attention`; padded raters and padded visual tokens are 0."""
    columns = jnp.take_along_axis(attention, visual_slot[:, None, None, :], axis=-1)
    return jnp.where(is_rater[:, None, :, None] & is_visual[:, None, None, :], columns, 0)


def gravity_weights(
    rater_position: Int[Array, "B R *A"],
    visual_position: Int[Array, "B V *A"],
    frequencies: Float[Array | np.ndarray, "*A half"],
) -> Float[Array, "B R V"]:
    """How much RoPE alone favours a distance: W_ij = 2 / sqrt(H) * sum_k cos((p_i - p_j) theta_k); float32.

    theta_k are the decoder's `frequencies`, theta^(-2k / H) where nothing scales them; of several position axes a row
    each, the other entries 0.

    SparseVLM+ divides attention by it, so that far tokens are not punished for being far. It is the score that
    all-ones queries and keys would get. It changes sign at large distances (first at 1,707 for H = 128, theta = 1e4).
    """
    rows = jnp.atleast_2d(frequencies)

    def table(position):
        position = position.reshape(*position.shape[:2], -1, 1).astype(jnp.float32)
        angle = (position * rows).sum(axis=2)
        return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)

    rater, visual = table(rater_position), table(visual_position)
    product = jnp.einsum("BRH,BVH->BRV", rater, visual, precision=jax.lax.Precision.HIGHEST)
    return product * (2 / math.sqrt(rater.shape[-1]))


def correct_gravity(
    attention: Float[Array, "B N R V"], weights: Float[Array, "B R V"], *, floor: float = 0.0
) -> Float[Array, "B N R V"]:
    """attention / weights, the same for all heads. With `floor` > 0, |weights| is kept at least that large."""
    if floor:
        weights = jnp.where(weights < 0, -1.0, 1.0) * jnp.maximum(jnp.abs(weights), floor)
    return attention / weights[:, None]


def priority_heads(attention: Float[Array, "B N R V"], count: int) -> Bool[Array, "B N"]:
    """The `count` heads that pay the image most attention, summed over raters and visual tokens (SparseVLM+)."""
    total = attention.sum(axis=(2, 3))
    return select(total, jnp.ones_like(total, bool), jnp.full(total.shape[0], count)).is_kept


def mean_over_heads(
    attention: Float[Array, "B N R V"], heads: Bool[Array, "B N"] | None = None
) -> Float[Array, "B R V"]:
    """The map whose rank sets adaptive budgets, and whose column means are the scores."""
    if heads is None:
        return attention.mean(axis=1)
    return jnp.einsum("BNRV,BN->BRV", attention, heads.astype(attention.dtype)) / heads.sum(axis=1)[:, None, None]


def score(attention_map: Float[Array, "B R V"], is_rater: Bool[Array, "B R"]) -> Float[Array, "B V"]:
    """Mean over raters of the head-mean attention each visual token receives (eq. 3). 0 where a row has no rater."""
    total = jnp.where(is_rater[..., None], attention_map, 0).sum(axis=1)
    return total / jnp.maximum(is_rater.sum(axis=1), 1)[:, None]
