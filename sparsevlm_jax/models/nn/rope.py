"""Rotary position embedding, rotate-half form (Su et al., arXiv 2104.09864; the layout of HF's Llama).

Tables are float32 whatever the model's dtype: at position 4,096 a bfloat16 angle would be off by whole turns.

B batch · T queries · A position axes · N heads · H head dim
"""

import math
from collections.abc import Sequence
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


def of_axes(frequencies: Float32[np.ndarray, " half"], axes: Sequence[int]) -> Float32[np.ndarray, "A half"]:
    """Frequencies of several position axes, as a row each: `axes[i]` is the axis whose position turns pair i (M-RoPE,
    Wang et al., arXiv 2409.12191). The other entries are 0, so the rows add up to `frequencies`."""
    return np.where(np.arange(max(axes) + 1)[:, None] == np.array(axes), frequencies, np.float32(0))


def angles(
    position_ids: Int[Array, "B T *A"], frequencies: Float[Array | np.ndarray, "*A half"]
) -> Float[Array, "B T half"]:
    """Radians by which each pair turns, float32. With several axes each position is a vector [A]; a plain number, as
    text has it, is the same on all of them."""
    position = position_ids.astype(jnp.float32)
    if position.ndim == 2:
        return position[..., None] * (frequencies if frequencies.ndim == 1 else frequencies.sum(axis=0))
    return jnp.stack([position[..., axis, None] * row for axis, row in enumerate(frequencies)]).sum(axis=0)


def rotary(position_ids: Int[Array, "B T *A"], frequencies: Float[Array | np.ndarray, "*A half"]) -> Rotary:
    """Tables for `position_ids`."""
    angle = angles(position_ids, frequencies)
    return Rotary(jnp.cos(angle), jnp.sin(angle))


def rotate(x: Float[Array, "B T N H"], table: Rotary) -> Float[Array, "B T N H"]:
    """Turns each pair (i, i + H/2) of `x` by its position's angle; computed in float32, returned in x's dtype."""
    cos, sin = table.cos[:, :, None, :], table.sin[:, :, None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
