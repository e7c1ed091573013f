"""Rotary position embedding, rotate-half form (Su et al., arXiv 2104.09864; the layout of HF's Llama).

Tables are float32 whatever the model's dtype: at position 4,096 a bfloat16 angle would be off by whole turns.

B batch · T queries · N heads · H head dim
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int


class Rotary(NamedTuple):
    """Cosines and sines of one set of positions, [B, T, H/2], float32."""

    cos: Float[Array, "B T half"]
    sin: Float[Array, "B T half"]


@dataclass(frozen=True)
class LinearScaling:
    """Positions divided by `factor` (Chen et al., arXiv 2306.15595): HF's rope type "linear"."""

    factor: float

    def __call__(self, frequencies: Float32[np.ndarray, " half"]) -> Float32[np.ndarray, " half"]:
        return frequencies / np.float32(self.factor)

    def to_hf(self) -> dict:
        """In the one spelling that `transformers` 4.36 takes, too."""
        return {"type": "linear", "factor": self.factor}


@dataclass(frozen=True)
class Llama3Scaling:
    """Long waves divided by `factor`, short ones kept, those between interpolated: HF's rope type "llama3".

    A wave is short where `original_max_position_embeddings` holds more than `high_freq_factor` of it, and long where it
    holds fewer than `low_freq_factor`.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def __call__(self, frequencies: Float32[np.ndarray, " half"]) -> Float32[np.ndarray, " half"]:
        waves = self.original_max_position_embeddings * frequencies / np.float32(2 * math.pi)
        kept = (waves - self.low_freq_factor) / np.float32(self.high_freq_factor - self.low_freq_factor)
        kept = np.clip(kept, 0, 1)
        return ((1 - kept) * frequencies / np.float32(self.factor) + kept * frequencies).astype(np.float32)

    def to_hf(self) -> dict:
        return {"rope_type": "llama3", **vars(self)}


RopeScaling: TypeAlias = LinearScaling | Llama3Scaling


def inverse_frequencies(
    head_dim: int, theta: float, scaling: RopeScaling | None = None
) -> Float32[np.ndarray, " half"]:
    """Radians per position of each pair: theta^(-2i / head_dim), then scaled."""
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies = 1 / np.float32(theta) ** exponent
    return frequencies if scaling is None else scaling(frequencies)


def rotary(position_ids: Int[Array, "B T"], frequencies: Float[Array, " half"] | np.ndarray) -> Rotary:
    """Tables for `position_ids`."""
    angle = position_ids[..., None].astype(jnp.float32) * frequencies
    return Rotary(jnp.cos(angle), jnp.sin(angle))


def rotate(x: Float[Array, "B T N H"], table: Rotary) -> Float[Array, "B T N H"]:
    """Turns each pair (i, i + H/2) of `x` by its position's angle; computed in float32, returned in x's dtype."""
    cos, sin = table.cos[:, :, None, :], table.sin[:, :, None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
