"""Rotary position embedding, rotate-half form (Su et al., arXiv 2104.09864; the layout of HF's Llama).

Tables are float32 whatever the model's dtype: at position 4,096 a bfloat16 angle would be off by whole turns.

B batch · T queries · N heads · H head dim
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Rotary(NamedTuple):
    """Cosines and sines of one set of positions, [B, T, H/2], float32."""

    cos: Float[Array, "B T half"]
    sin: Float[Array, "B T half"]


def rotary(position_ids: Int[Array, "B T"], *, head_dim: int, theta: float) -> Rotary:
    """Tables for `position_ids`; frequency i is theta^(-2i / head_dim)."""
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angle = position_ids[..., None].astype(jnp.float32) * frequency
    return Rotary(jnp.cos(angle), jnp.sin(angle))


def rotate(x: Float[Array, "B T N H"], table: Rotary) -> Float[Array, "B T N H"]:
    """Turns each pair (i, i + H/2) of `x` by its position's angle; computed in float32, returned in x's dtype."""
    cos, sin = table.cos[:, :, None, :], table.sin[:, :, None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
