"""The rank of the raters' attention, by which `budget` counts the tokens to keep (SparseVLM, section 3.2, eq. 7).

Three measures with one interface. The numerical rank is what the paper and the official code use; on real attention it
is nearly always the number of raters. The stable rank and the entropy rank are smooth, and vary from image to image.

B batch · R raters · V visual tokens
"""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Measure = Literal["numerical", "stable", "entropy"]


def attention_rank(
    attention_map: Float[Array, "B R V"],
    rater_count: Int[Array, " B"],
    visual_count: Int[Array, " B"],
    *,
    measure: Measure = "numerical",
) -> Float[Array, " B"]:
    """The rank of each row's map, by `measure`; padding must be 0. At least 0, at most min(R, V).

    numerical: singular values above sigma_max * max(R, V) * eps_float32, with the row's *true* R and V (the
        default of `numpy.linalg.matrix_rank` and `torch.linalg.matrix_rank`), not those of the padded buffer.
    stable: ||P||_F^2 / sigma_max^2.
    entropy: exp of the entropy of the normalised singular values (Roy & Vetterli, "The effective rank", 2007).
    """
    singular = jnp.linalg.svd(attention_map.astype(jnp.float32), compute_uv=False)
    largest = singular.max(axis=1, keepdims=True)
    safe = jnp.where(largest > 0, largest, 1)
    if measure == "numerical":
        size = jnp.maximum(rater_count, visual_count)[:, None]
        return (singular > largest * size * jnp.finfo(jnp.float32).eps).sum(axis=1).astype(jnp.float32)
    if measure == "stable":
        return ((singular / safe) ** 2).sum(axis=1)
    share = singular / jnp.where(largest > 0, singular.sum(axis=1, keepdims=True), 1)
    entropy = -jnp.where(share > 0, share * jnp.log(jnp.where(share > 0, share, 1)), 0).sum(axis=1)
    return jnp.where(largest[:, 0] > 0, jnp.exp(entropy), 0)
