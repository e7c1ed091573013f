"""The token stream: what a pruning stage takes and gives back.

Rows are left-aligned: the first `length` slots are valid tokens in causal order, the rest is padding. Dropping tokens
therefore moves the survivors forward, and a causal mask with key lengths stays the whole truth about who sees whom:

    before   p p V V V V q q . .      p prompt, V visual, q question, . padding; length 8
    keep 2, merge 1
    after    p p V V M q q . .        M merged; length 7, in a buffer of the stage's capacity

B batch · L slots · C capacity · V visual tokens · M merged tokens · D model dim
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

Positions = Literal["repack", "keep"]


class TokenStream(NamedTuple):
    """Hidden states [B, L, D], their RoPE positions, which slots hold image tokens and which hold raters, [B, L], and
    how many slots of each row are valid, [B]. `size`: how many tokens each stands for; None where that does not count.
    """

    hidden: Float[Array, "B L D"]
    position_ids: Int[Array, "B L"]
    is_visual: Bool[Array, "B L"]
    is_rater: Bool[Array, "B L"]
    length: Int[Array, " B"]
    size: Float[Array, "B L"] | None = None


def slots_of(mask: Bool[Array, "B L"], size: int) -> tuple[Int[Array, "B size"], Bool[Array, "B size"]]:
    """The first `size` slots where `mask` holds, in order, and which of them are real.

    [0 1 0 1 1], size 4 -> slots [1 3 4 0], valid [1 1 1 0]
    """
    slots = jax.vmap(lambda row: jnp.flatnonzero(row, size=size, fill_value=0))(mask)
    return slots, jnp.arange(size) < mask.sum(axis=1, keepdims=True)


def to_slots(
    values: Shaped[Array, "B size ..."], slots: Int[Array, "B size"], valid: Bool[Array, "B size"], length: int
) -> Shaped[Array, "B L ..."]:
    """The way back of `slots_of`: each valid value in its slot of `length`, 0 or False elsewhere."""
    rows = jnp.arange(slots.shape[0])[:, None]
    empty = jnp.zeros((slots.shape[0], length, *values.shape[2:]), values.dtype)
    return empty.at[rows, jnp.where(valid, slots, length)].set(values, mode="drop")


def compact(
    stream: TokenStream,
    is_kept: Bool[Array, "B L"],
    merged: Float[Array, "B M D"],
    merged_position: Int[Array, "B M"],
    merged_count: Int[Array, " B"],
    *,
    capacity: int,
    positions: Positions,
    merged_size: Float[Array, "B M"] | None = None,
) -> TokenStream:
    """Survivors in order, merged tokens directly behind the last kept visual token, then padding.

    Args:
        is_kept: slots that survive; every non-visual one should.
        merged: the first `merged_count` rows are tokens, the rest is ignored. M may be 0.
        merged_position: RoPE positions of the merged tokens, used by "keep" only.
        capacity: slots of the result, C. A row that needs more loses its tail: the caller chooses C large enough.
        positions: "repack" renumbers 0, 1, 2, ... (SparseVLM v1 and v1.5), "keep" lets survivors keep their positions
            (SparseVLM+).
        merged_size: what the merged tokens stand for, for a stream that has sizes.

    Where a row keeps no visual token the merged ones take the place of the last dropped one.
    """
    valid = jnp.arange(stream.is_visual.shape[1]) < stream.length[:, None]
    is_kept &= valid
    kept_visual = is_kept & stream.is_visual
    anchors = jnp.where(kept_visual.any(axis=1, keepdims=True), kept_visual, stream.is_visual & valid)
    anchor = _last_true(anchors)
    rank = jnp.cumsum(is_kept, axis=1)
    slot = jnp.arange(is_kept.shape[1])
    destination = rank - 1 + jnp.where(slot > anchor[:, None], merged_count[:, None], 0)
    before_merged = jnp.take_along_axis(rank, jnp.maximum(anchor, 0)[:, None], axis=1) * (anchor >= 0)[:, None]
    merged_index = jnp.arange(merged.shape[1])
    merged_destination = before_merged + merged_index
    # Slots that move nowhere are sent past the end, where a scatter in "drop" mode leaves them out.
    destination = jnp.where(is_kept, destination, capacity)
    merged_destination = jnp.where(merged_index < merged_count[:, None], merged_destination, capacity)
    source = _invert(jnp.concatenate([destination, merged_destination], axis=1), capacity)

    length = jnp.minimum(is_kept.sum(axis=1) + merged_count, capacity).astype(stream.length.dtype)
    real = jnp.arange(capacity) < length[:, None]
    tokens = jnp.concatenate([stream.hidden, merged.astype(stream.hidden.dtype)], axis=1)

    def gather(field, merged_value):
        merged_value = jnp.broadcast_to(merged_value, merged_destination.shape).astype(field.dtype)
        return jnp.take_along_axis(jnp.concatenate([field, merged_value], axis=1), source, axis=1)

    position_ids = jnp.broadcast_to(jnp.arange(capacity), real.shape).astype(stream.position_ids.dtype)
    if positions == "keep":
        position_ids = gather(stream.position_ids, merged_position)
    return TokenStream(
        hidden=jnp.where(real[..., None], jnp.take_along_axis(tokens, source[..., None], axis=1), 0),
        position_ids=jnp.where(real, position_ids, 0),
        is_visual=gather(stream.is_visual, True) & real,
        is_rater=gather(stream.is_rater, False) & real,
        length=length,
        size=None if stream.size is None else jnp.where(real, gather(stream.size, merged_size), 1),
    )


def _last_true(mask: Bool[Array, "B L"]) -> Int[Array, " B"]:
    """Index of the last True of each row, -1 where there is none."""
    return jnp.max(jnp.where(mask, jnp.arange(mask.shape[1]), -1), axis=1)


def _invert(destination: Int[Array, "B L"], size: int) -> Int[Array, "B size"]:
    """source[destination[i]] = i, destinations >= size dropped; slots nobody goes to point at 0."""
    rows = jnp.arange(destination.shape[0])[:, None]
    index = jnp.broadcast_to(jnp.arange(destination.shape[1]), destination.shape)
    return jnp.zeros((destination.shape[0], size), index.dtype).at[rows, destination].set(index, mode="drop")
