"""DART, duplication-aware reduction of tokens (arXiv 2502.11494): keep what duplicates the pivots least.

B batch · V visual tokens · Q text tokens · P pivots · K kv heads · H head dim · D model dim
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ..checks import choice, part, settle, whole
from ..sparsify import (
    Geometric,
    Geometry,
    KeptTokens,
    Recycler,
    Scores,
    Sizes,
    SparsityConfig,
    StageInputs,
    Tokens,
    cosine_similarity,
    greedy,
    in_turn,
    needing,
    parse_budget,
)
from .registry import TokenBudget, method


@dataclass(frozen=True)
class PivotSimilarity:
    """Scores are the L1 norms of the keys; features the cosines of each token to the pivots, both as the model's final
    norm leaves them: to the `image` visual tokens and the `text` question tokens with the largest keys, in this order.
    A pivot that is not there is +inf."""

    image: int = 4
    text: int = 4
    needs = needing("raters", "attention", "hidden")

    def __post_init__(self):
        settle(self, image=whole(1), text=whole(0))

    def cost(self, sizes: Sizes) -> int:
        return sizes.visual * (self.image + self.text) * sizes.dim

    def __call__(self, inputs: StageInputs) -> Scores:
        assert inputs.attention is not None  # the config has refused a stage before layer 0
        k = inputs.attention.k
        norm = jnp.abs(k.astype(jnp.float32)).sum(axis=(2, 3))
        visual = jnp.take_along_axis(norm, inputs.visual_slot, axis=1)
        text = jnp.take_along_axis(norm, inputs.rater_slot, axis=1)
        final = inputs.decoder_ahead().norm
        visual_hidden, text_hidden = final(inputs.visual_hidden), final(inputs.rater_hidden)
        pivots = [
            _largest(visual, visual_hidden, inputs.is_visual, self.image),
            _largest(text, text_hidden, inputs.is_rater, self.text),
        ]
        hidden, is_pivot = (jnp.concatenate(parts, axis=1) for parts in zip(*pivots, strict=True))
        cosine = cosine_similarity(visual_hidden, hidden)
        return Scores(visual, features=jnp.where(is_pivot[:, None], cosine, jnp.inf))


def _largest(
    norm: Float[Array, "B Q"], hidden: Float[Array, "B Q D"], valid: Bool[Array, "B Q"], size: int
) -> tuple[Float[Array, "B P D"], Bool[Array, "B P"]]:
    """Hidden states of the `size` largest norms, and which of them are real."""
    best, index = jax.lax.top_k(jnp.where(valid, norm, -1), min(size, norm.shape[1]))
    return jnp.take_along_axis(hidden, index[..., None], axis=1), best >= 0


@dataclass(frozen=True)
class LeastDuplicated:
    """The `image` tokens of the highest score, then for each pivot in turn an equal part of the count, rounded up while
    there is any: the tokens least similar to it that nobody has taken. Features are the similarities to the pivots,
    +inf for no pivot."""

    image: int = 4
    needs = needing()

    def __post_init__(self):
        settle(self, image=whole(1))

    def cost(self, sizes: Sizes) -> int:
        return 0

    def __call__(self, scores, features, is_valid, count, *, capacity):
        is_pivot = jnp.isfinite(features[:, 0])  # the first token of a row that has any is real
        pivots = jnp.maximum(is_pivot.sum(axis=1), 1)
        columns = jnp.argsort(~is_pivot, axis=1, stable=True)
        first = jnp.minimum(self.image, count)
        quota = jnp.maximum(-(-(count - first) // pivots), 1)

        def gain(step, state):
            turn = jnp.clip((step - first) // quota, 0, pivots - 1)
            column = jnp.take_along_axis(columns, turn[:, None], axis=1)
            similarity = jnp.take_along_axis(features, column[:, None], axis=2)[..., 0]
            return jnp.where((step < first)[:, None], scores, -similarity)

        turn = greedy(gain, lambda step, state, chosen: state, (), is_valid, capacity=capacity)
        return in_turn(turn, scores, is_valid, count)


@dataclass(frozen=True)
class WholeParts:
    """A budget as the paper's code rounds it: each of the `pivots` gets a whole number of tokens, and the `image` ones
    among them come on top: 4 + 8 floor(n / 8) for n."""

    budget: Tokens | KeptTokens
    image: int = 4
    pivots: int = 8

    def __post_init__(self):
        settle(self, budget=part("a FixedBudget", "table", "check", "number"), image=whole(1), pivots=whole(1))

    def number(self, images: int) -> int | None:
        """How many tokens it asks of a row; None for a share."""
        return self.budget.number(images)

    def check(self, geometry: Geometry) -> None:
        self.budget.check(geometry)

    def table(self, geometry: Geometry, recycle: Recycler | None) -> np.ndarray:
        counts = self.budget.table(geometry, recycle)
        return np.minimum(self.image + counts // self.pivots * self.pivots, geometry.row_counts)


Count = Literal["exact", "published"]


@method
def dart(
    tokens: TokenBudget = 192, *, layer: int = 2, image_pivots: int = 4, text_pivots: int = 4, count: Count = "exact"
) -> SparsityConfig:
    """DART (arXiv 2502.11494): after layer 2, the tokens that duplicate a few pivots least.

    Pivots are the visual and the question tokens with the largest keys (L1 norm), each group in the order of the norms;
    the paper's code visits them in the order of a Python set of their indices. Positions are kept.

    Args:
        layer: counted from 1, as the paper does.
        count: "exact" keeps what the budget says; "published" as many for each pivot as fit whole, and the image's
            pivots on top: 196 for 192, 132 for 128, 68 for 64.
    """
    image_pivots, text_pivots = whole(1)("image_pivots", image_pivots), whole(0)("text_pivots", text_pivots)
    budget = parse_budget(tokens, Geometric())
    if choice(Count)("count", count) == "published":
        budget = WholeParts(budget, image_pivots, image_pivots + text_pivots)
    return SparsityConfig(
        budget=budget,
        layers=(whole(1)("layer", layer) - 1,),
        raters="all",
        score=PivotSimilarity(image_pivots, text_pivots),
        select=LeastDuplicated(image_pivots),
        recycle=None,
        positions="keep",
        name="dart",
    )
