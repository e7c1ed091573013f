"""The KV cache of a pruned model: layers of different lengths, and rows of different lengths within a layer.

A layer's cache holds what entered that layer, so layers behind a pruning stage are short. Every row is left-aligned:
a decode step writes at the row's own length and attends to `length + 1` keys, so padding is overwritten and no mask
is ever needed.

B batch · S slots · K kv heads · H head dim · L layers
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class KVCache(NamedTuple):
    """Keys and values per layer (RoPE applied), each [B, S_layer, K, H]; `length` counts valid slots, [L, B].

    `bias` is what a layer adds to its keys' logits, [B, S_layer]: the log of the tokens' sizes, so 0 for every token
    that decode appends. None, as a whole or for a layer: nothing.
    """

    k: tuple[Float[Array, "B S K H"], ...]
    v: tuple[Float[Array, "B S K H"], ...]
    length: Int[Array, "L B"]
    bias: tuple[Float[Array, "B S"] | None, ...] | None = None

    @property
    def nbytes(self) -> int:
        return sum(array.size * array.dtype.itemsize for array in (*self.k, *self.v))


def with_room(array: Float[Array, "B S ..."], new_tokens: int) -> Float[Array, "B S_new ..."]:
    """Room for `new_tokens` more slots behind the ones of prefill."""
    return jnp.pad(array, ((0, 0), (0, new_tokens), *((0, 0) for _ in array.shape[2:])))


def append(
    cache: Float[Array, "B S K H"], new: Float[Array, "B 1 K H"], length: Int[Array, " B"]
) -> Float[Array, "B S K H"]:
    """Writes row b's new entry at slot `length[b]`; in place where the cache is donated."""
    if cache.shape[0] == 1:  # a plain slice update is faster than a scatter of one row
        return jax.lax.dynamic_update_slice(cache, new, (0, length[0], 0, 0))
    rows = jnp.arange(cache.shape[0])
    return cache.at[rows, length].set(new[:, 0], unique_indices=True, indices_are_sorted=True)
