"""The token stream: what a pruning stage takes and gives back.

Rows are left-aligned: the first `length` slots are valid tokens in causal order, the rest is padding. Dropping tokens
therefore moves the survivors forward, and a causal mask with key lengths stays the whole truth about who sees whom:

    before   p p V V V V q q . .      p prompt, V visual, q question, . padding; length 8
    keep 2, merge 1
    after    p p V V M q q . .        M merged; length 7, in a buffer of the stage's capacity

B batch · L slots · C capacity · V visual tokens · M merged tokens · A position axes · D model dim
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

Positions = Literal["repack", "keep"]


class TokenStream(NamedTuple):
    """Hidden states [B, L, D], their RoPE positions, which slots hold image tokens and which hold raters, [B, L], and
    how many slots of each row are valid, [B].

    `size`: how many tokens each stands for; None where that does not count. `next_position`: that of the token which
    decoding appends; None where nothing is decoded. `deepstack`: what is yet to be added to the hidden states after
    layers 0, 1, ... (Meng et al., arXiv 2406.04334), 0 for words; None for a layer that has had it.
    """

    hidden: Float[Array, "B L D"]
    position_ids: Int[Array, "B L *A"]
    is_visual: Bool[Array, "B L"]
    is_rater: Bool[Array, "B L"]
    length: Int[Array, " B"]
    size: Float[Array, "B L"] | None = None
    next_position: Int[Array, " B"] | None = None
    deepstack: tuple[Float[Array, "B L D"] | None, ...] = ()


def at_slots(field: Shaped[Array, "B L ..."], slot: Int[Array, "B S"]) -> Shaped[Array, "B S ..."]:
    """What stands in those slots of each row."""
    return jnp.take_along_axis(field, slot.reshape(*slot.shape, *(1,) * (field.ndim - 2)), axis=1)


def slots_of(mask: Bool[Array, "B L"], size: int) -> tuple[Int[Array, "B size"], Bool[Array, "B size"]]:
    """The first `size` slots where `mask` holds, in order, and which of them are real.

    [0 1 0 1 1], size 4 -> slots [1 3 4 0], valid [1 1 1 0]

    Found by bisection of the running count: a kernel or two on a GPU, where `jnp.flatnonzero`, which scatters, is six.
    """
    rank = jnp.cumsum(mask, axis=1)
    index = jnp.arange(size)
    valid = index < rank[:, -1:]
    find = partial(jnp.searchsorted, side="right", method="scan_unrolled")
    return jnp.where(valid, jax.vmap(find, in_axes=(0, None))(rank, index), 0), valid


def to_slots(values: Shaped[Array, "B size ..."], mask: Bool[Array, "B L"]) -> Shaped[Array, "B L ..."]:
    """The way back of `slots_of`: the values in order in the slots where `mask` holds, 0 or False elsewhere.

    [a b c -] into [0 1 0 1 1] -> [0 a 0 b c]
    """
    index = jnp.cumsum(mask, axis=1) - 1
    trailing = (1,) * (values.ndim - 2)
    there = (mask & (index < values.shape[1])).reshape(*mask.shape, *trailing)
    index = jnp.clip(index, 0, values.shape[1] - 1).reshape(*mask.shape, *trailing)
    return jnp.where(there, jnp.take_along_axis(values, index, axis=1), jnp.zeros((), values.dtype))


def compact(
    stream: TokenStream,
    is_kept: Bool[Array, "B L"],
    merged: Float[Array, "B M D"],
    merged_position: Int[Array, "B M *A"],
    merged_count: Int[Array, " B"],
    *,
    capacity: int,
    positions: Positions,
    merged_size: Float[Array, "B M"] | None = None,
    merged_deepstack: Sequence[Float[Array, "B M D"] | None] = (),
) -> TokenStream:
    """Survivors in order, merged tokens directly behind the last kept visual token, then padding.

    Args:
        is_kept: slots that survive; every non-visual one should.
        merged: the first `merged_count` rows are tokens, the rest is ignored. M may be 0.
        merged_position: RoPE positions of the merged tokens, used by "keep" only.
        capacity: slots of the result, C. A row that needs more loses its tail: the caller chooses C large enough.
        positions: "repack" renumbers 0, 1, 2, ... (SparseVLM v1 and v1.5), "keep" lets survivors keep their positions
            (SparseVLM+). Positions of several axes say where in a picture a token is: they cannot be renumbered.
        merged_size: what the merged tokens stand for, for a stream that has sizes.
        merged_deepstack: what is to be added to them later, for a stream that has `deepstack`.

    Where a row keeps no visual token the merged ones take the place of the last dropped one.

    Raises:
        ValueError: "repack" of positions that have several axes.
    """
    axes = stream.position_ids.shape[2:]
    if positions == "repack" and axes:
        raise ValueError(f"positions 'repack' number one axis, and this model's have {axes[0]}: use positions 'keep'")
    valid = jnp.arange(stream.is_visual.shape[1]) < stream.length[:, None]
    is_kept &= valid
    kept_visual = is_kept & stream.is_visual
    anchors = jnp.where(kept_visual.any(axis=1, keepdims=True), kept_visual, stream.is_visual & valid)
    anchor = _last_true(anchors)
    # Source slots: survivors up to the anchor, merged tokens (numbered behind the stream's slots), the other survivors.
    survivors, _ = slots_of(is_kept, capacity)
    before_merged = (is_kept & (jnp.arange(is_kept.shape[1]) <= anchor[:, None])).sum(axis=1, keepdims=True)
    index, count = jnp.arange(capacity), merged_count[:, None]
    behind = index - before_merged
    survivor = at_slots(survivors, jnp.where(behind < 0, index, jnp.maximum(index - count, 0)))
    source = jnp.where((behind >= 0) & (behind < count), is_kept.shape[1] + behind, survivor)

    length = jnp.minimum(is_kept.sum(axis=1) + merged_count, capacity).astype(stream.length.dtype)
    real = jnp.arange(capacity) < length[:, None]

    def gather(field, merged_value, padding):
        """Field of the tokens that are left, of the merged ones among them; `padding` behind these."""
        merged_value = jnp.broadcast_to(merged_value, (*merged.shape[:2], *field.shape[2:])).astype(field.dtype)
        left = at_slots(jnp.concatenate([field, merged_value], axis=1), source)
        return jnp.where(real.reshape(*real.shape, *(1,) * (field.ndim - 2)), left, padding)

    position_ids = jnp.where(real, index, 0).astype(stream.position_ids.dtype)
    if positions == "keep":
        position_ids = gather(stream.position_ids, merged_position, 0)
    return TokenStream(
        hidden=gather(stream.hidden, merged, 0),
        position_ids=position_ids,
        is_visual=gather(stream.is_visual, True, False),
        is_rater=gather(stream.is_rater, False, False),
        length=length,
        size=None if stream.size is None else gather(stream.size, merged_size, 1),
        next_position=length if positions == "repack" and stream.next_position is not None else stream.next_position,
        deepstack=tuple(
            None if field is None else gather(field, of_merged, 0)
            for field, of_merged in zip(stream.deepstack, merged_deepstack, strict=True)
        ),
    )


def _last_true(mask: Bool[Array, "B L"]) -> Int[Array, " B"]:
    """Index of the last True of each row, -1 where there is none."""
    return jnp.max(jnp.where(mask, jnp.arange(mask.shape[1]), -1), axis=1)
