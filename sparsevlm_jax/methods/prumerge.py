"""LLaVA-PruMerge+ (arXiv 2403.15388): outliers of the class token's attention and an even sample of the image, each
kept token with those most like it added, and one token for all that is dropped.

I images · V patches · K kept · D width
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..checks import instance, settle, whole
from ..sparsify import MergedTokens, PerImage, SparsityConfig, TowerOutput, cosine_similarity, needing
from .registry import TokenBudget, method
from .tower import in_the_tower


@dataclass(frozen=True)
class OutliersAndGrid:
    """Outliers of class attention, by attention; then a grid, every n-th patch; then one token of the others' sum.

    Attention is one softmax over all tokens of the tower, on keys of the full width, in the layer after the one that
    the features come from (in that one, if it is the last). Each kept token is itself plus the `neighbours` tokens with
    the most similar keys, each times its attention.
    """

    budget: PerImage
    neighbours: int = 32
    needs = needing("class_token")

    def __post_init__(self):
        settle(self, budget=instance(PerImage, "a PerImage"), neighbours=whole(1))

    def count(self, visual: int) -> int:
        return self.budget.of(visual)

    def reduce(self, tower: TowerOutput, count: int) -> MergedTokens:
        exact = dict(preferred_element_type=jnp.float32, precision=_HIGHEST)
        assert tower.cls_query is not None
        logits = jnp.einsum("ID,ITD->IT", tower.cls_query, tower.full_keys, **exact)
        attention = jax.nn.softmax(logits * tower.cls_query.shape[-1] ** -0.5, axis=-1)[:, 1:]
        hidden = tower.hidden[:, 1:].astype(jnp.float32)
        kept = jax.vmap(lambda row: outliers_and_grid(row, count - 1))(attention)

        similarity = cosine_similarity(tower.full_keys[:, 1:], tower.full_keys[:, 1:])
        patches, images = similarity.shape[1], jnp.arange(similarity.shape[0])[:, None]
        similarity = jnp.where(jnp.eye(patches, dtype=bool), -jnp.inf, similarity)[images, kept]
        _, nearest = jax.lax.top_k(similarity, min(self.neighbours, patches - 1))
        near = jax.nn.one_hot(nearest, patches).sum(axis=2)
        is_dropped = jnp.ones(attention.shape, bool).at[images, kept].set(False)
        weights = jnp.concatenate([near, is_dropped[:, None].astype(jnp.float32)], axis=1) * attention[:, None]
        added = jnp.einsum("IKV,IVD->IKD", weights, hidden, precision=_HIGHEST)
        own = jnp.pad(hidden[images, kept], ((0, 0), (0, 1), (0, 0)))
        # The last token is of many patches: it has the place of the one among them that is attended to most.
        last = jnp.argmax(jnp.where(is_dropped, attention, -1), axis=1)[:, None]
        return MergedTokens(
            hidden=(own + added).astype(tower.hidden.dtype),
            size=jnp.concatenate([jnp.ones(kept.shape), is_dropped.sum(axis=1, keepdims=True)], axis=1),
            origin=1 + jnp.concatenate([kept, last], axis=1),
        )

    def cost(self, patches: int, count: int, dim: int, head_dim: int, *, class_tokens: int) -> int:
        return patches * dim + patches * patches * dim + patches * count * dim


_HIGHEST = jax.lax.Precision.HIGHEST


def outliers_and_grid(attention: Float[Array, " V"], count: int) -> Int[Array, " {count}"]:
    """`count` patches of an image: those with attention above Q3 + 1.5 (Q3 - Q1), the most attended first, and then of
    the others every n-th from the first on, in order.

    The published code takes n = V / (3 x outliers), and as many patches as that gives. Here the count is given, so n is
    the stride that gives enough patches with the fewest to spare, of these the nearest to the published one; the spare
    ones are left out evenly. Where the published count is asked for, this is the published choice.
    """
    visual, place = attention.shape[0], jnp.arange(attention.shape[0])
    low, high = jnp.quantile(attention, jnp.array([0.25, 0.75]))
    is_outlier = attention > high + 1.5 * (high - low)
    outliers = jnp.minimum(is_outlier.sum(), count)
    by_attention = jnp.argsort(jnp.where(is_outlier, -attention, jnp.inf), stable=True)
    is_first = jnp.zeros(visual, bool).at[by_attention].set(place < outliers)

    wanted = count - outliers
    strides = np.arange(1, visual + 1)
    on_grid = (np.arange(visual) % strides[:, None] == 0) & (np.arange(visual) < max(visual - 1, 1))  # the code's range
    on_grid[0] = True  # every patch, the last one too: enough for any count
    there = (on_grid & ~is_first).sum(axis=1)
    published = jnp.maximum(visual // jnp.maximum(3 * outliers, 1), 1)
    spare = jnp.where(there >= wanted, there - wanted, visual)
    stride = jnp.argmin(spare * visual + jnp.abs(strides - published))
    grid = jnp.argsort(~(jnp.asarray(on_grid)[stride] & ~is_first), stable=True)

    turn = jnp.arange(count)
    evenly = (turn - outliers) * there[stride] // jnp.maximum(wanted, 1)
    return jnp.where(turn < outliers, by_attention[turn], grid[jnp.maximum(evenly, 0)])


@method
def prumerge_plus(tokens: TokenBudget = 192, *, neighbours: int = 32) -> SparsityConfig:
    """PruMerge+ (arXiv 2403.15388): outliers of class attention and an even sample, others merged in.

    The published count is that of the outliers, of a grid as fine as they are many, and one, and differs from image to
    image; here the budget is the count (of each image): outliers first, then the grid that fills it, one token for the
    rest. Tokens are merged before the projector.
    """
    budget = PerImage.parse(tokens)
    return in_the_tower("prumerge-plus", budget, OutliersAndGrid(budget, neighbours))
