"""SparseVLM's stage in a decoder of your own: none of this library's models, only `sparsevlm_jax.sparsify`.

python examples/compose.py
"""

import jax
import jax.numpy as jnp
from flax import nnx

from sparsevlm_jax import sparsify

TEXT, VISUAL, DIM, HEADS, KEEP = 6, 64, 32, 4, 16
RULE = sparsify.Recycle()
CANDIDATES, MERGED = RULE.candidate_count(VISUAL - KEEP), RULE.merged_count(VISUAL - KEEP, KEEP)


class Block(nnx.Module):
    """Any block will do that lets its queries and keys be seen."""

    def __init__(self, rngs: nnx.Rngs):
        self.qkv, self.out = nnx.Linear(DIM, 3 * DIM, rngs=rngs), nnx.Linear(DIM, DIM, rngs=rngs)

    def __call__(self, x, length):
        q, k, v = jnp.split(self.qkv(x).reshape(*x.shape[:2], 3 * HEADS, -1), 3, axis=2)
        attended = jax.nn.dot_product_attention(q, k, v, is_causal=True, key_value_seq_lengths=length)
        return x + self.out(attended.reshape(x.shape)), q, k


def prune(stream: sparsify.TokenStream, q: jax.Array, k: jax.Array) -> sparsify.TokenStream:
    """Score by the raters' attention, keep the best, merge the best of the rest."""
    visual, is_visual = sparsify.slots_of(stream.is_visual, VISUAL)
    raters, is_rater = sparsify.slots_of(stream.is_rater, TEXT)
    attention = sparsify.rater_attention(
        jnp.take_along_axis(q, raters[..., None, None], axis=1), k, raters, stream.length
    )
    onto_image = sparsify.mean_over_heads(sparsify.onto_visual(attention, visual, is_visual, is_rater))
    best = sparsify.select(sparsify.score(onto_image, is_rater), is_visual, jnp.full(len(visual), KEEP))
    tokens = jnp.take_along_axis(stream.hidden, visual[..., None], axis=1)
    count = is_visual.sum(axis=1)
    rest = sparsify.recycle(tokens, best, count, RULE, candidate_capacity=CANDIDATES, merged_capacity=MERGED)
    stays = ~stream.is_visual | sparsify.to_slots(best.is_kept, stream.is_visual)
    at = jnp.zeros_like(rest.centers)  # where merged tokens would sit, were positions kept and not repacked
    size = TEXT + KEEP + MERGED
    return sparsify.compact(stream, stays, rest.merged, at, rest.merged_count, capacity=size, positions="repack")


def main() -> None:
    x = jax.random.normal(jax.random.key(0), (2, VISUAL + TEXT, DIM))
    position_ids, length = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2]), jnp.full(2, x.shape[1])
    raters = sparsify.select_raters(x, position_ids < VISUAL, position_ids >= VISUAL, question_capacity=TEXT)
    hidden, q, k = Block(nnx.Rngs(0))(x, length)
    pruned = prune(sparsify.TokenStream(hidden, position_ids, position_ids < VISUAL, raters.is_rater, length), q, k)
    Block(nnx.Rngs(1))(pruned.hidden, pruned.length)
    print(f"{x.shape[1]} tokens enter, {pruned.length[0]} go on: {TEXT} text, {KEEP} kept, {MERGED} merged")


if __name__ == "__main__":
    main()
