"""DART, duplication-aware reduction of tokens (arXiv 2502.11494): keep what duplicates the pivots least.

B batch · V visual tokens · Q text tokens · P pivots · K kv heads · H head dim · D model dim
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ..checks import settle, whole
from ..sparsify import (
    Geometric,
    Scores,
    SparsityConfig,
    StageInputs,
    Tokens,
    cosine_similarity,
    greedy,
    in_turn,
    parse_amount,
)
from .registry import Amount, method


@dataclass(frozen=True)
class PivotSimilarity:
    """Scores are the L1 norms of the keys; features the cosines of each token's hidden state to the pivots: the `image`
    visual tokens and the `text` question tokens with the largest norms. A pivot that is not there is +inf."""

    image: int = 4
    text: int = 4
    needs_attention = True

    def __post_init__(self):
        settle(self, image=whole(1), text=whole(0))

    def macs(self, text, visual, dim):
        return visual * (self.image + self.text) * dim

    def __call__(self, inputs: StageInputs) -> Scores:
        assert inputs.attention is not None  # the config has refused a stage before layer 0
        k = inputs.attention.k
        norm = jnp.abs(k.astype(jnp.float32)).sum(axis=(2, 3))
        visual = jnp.take_along_axis(norm, inputs.visual_slot, axis=1)
        text = jnp.take_along_axis(norm, inputs.rater_slot, axis=1)
        pivots = [
            _largest(visual, inputs.visual_hidden, inputs.is_visual, self.image),
            _largest(text, inputs.rater_hidden, inputs.is_rater, self.text),
        ]
        hidden, is_pivot = (jnp.concatenate(parts, axis=1) for parts in zip(*pivots, strict=True))
        cosine = cosine_similarity(inputs.visual_hidden, hidden)
        return Scores(visual, features=jnp.where(is_pivot[:, None], cosine, jnp.inf))


def _largest(
    norm: Float[Array, "B Q"], hidden: Float[Array, "B Q D"], valid: Bool[Array, "B Q"], size: int
) -> tuple[Float[Array, "B P D"], Bool[Array, "B P"]]:
    """Hidden states of the `size` largest norms, and which of them are real."""
    best, index = jax.lax.top_k(jnp.where(valid, norm, -1), min(size, norm.shape[1]))
    return jnp.take_along_axis(hidden, index[..., None], axis=1), best >= 0


@dataclass(frozen=True)
class LeastDuplicated:
    """The `image` tokens of the highest score, then for each pivot in turn an equal part of the count: the tokens least
    similar to it that nobody has taken. Features are the similarities to the pivots, +inf for no pivot."""

    image: int = 4

    def __post_init__(self):
        settle(self, image=whole(1))

    def __call__(self, scores, features, is_valid, count, *, capacity):
        is_pivot = jnp.isfinite(features[:, 0])  # the first token of a row that has any is real
        pivots = jnp.maximum(is_pivot.sum(axis=1), 1)
        columns = jnp.argsort(~is_pivot, axis=1, stable=True)
        first = jnp.minimum(self.image, count)
        others = jnp.maximum(count - first, 1)

        def gain(step, state):
            turn = jnp.clip((step - first) * pivots // others, 0, pivots - 1)
            column = jnp.take_along_axis(columns, turn[:, None], axis=1)
            similarity = jnp.take_along_axis(features, column[:, None], axis=2)[..., 0]
            return jnp.where((step < first)[:, None], scores, -similarity)

        turn = greedy(gain, lambda step, state, chosen: state, (), is_valid, capacity=capacity)
        return in_turn(turn, scores, is_valid, count)


@method
def dart(tokens: Amount = 192, *, layer: int = 2, image_pivots: int = 4, text_pivots: int = 4) -> SparsityConfig:
    """DART (arXiv 2502.11494): after layer 2, the tokens that duplicate a few pivots least.

    Pivots are the visual and the question tokens with the largest keys (L1 norm); positions are kept. The paper's code
    compares hidden states behind the model's final norm, here they are compared as they are, and the count is exact
    (the paper's rounds up for each pivot).

    Args:
        layer: counted from 1, as the paper does.
    """
    image_pivots, text_pivots = whole(1)("image_pivots", image_pivots), whole(0)("text_pivots", text_pivots)
    return SparsityConfig(
        budget=Tokens(parse_amount(tokens), Geometric()),
        layers=(whole(1)("layer", layer) - 1,),
        raters="all",
        score=PivotSimilarity(image_pivots, text_pivots),
        select=LeastDuplicated(image_pivots),
        recycle=None,
        positions="keep",
        name="dart",
    )
