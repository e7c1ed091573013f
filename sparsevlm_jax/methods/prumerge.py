"""LLaVA-PruMerge+ (arXiv 2403.15388): outliers of the class token's attention and an even sample of the image, each
kept token enriched by the dropped ones most like it.

B batch · V visual tokens · N heads · H head dim · D model dim
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from ..checks import settle, whole
from ..sparsify import (
    Geometric,
    Recycled,
    Scores,
    SparsityConfig,
    StageInputs,
    Tokens,
    cosine_similarity,
    parse_amount,
    spread_rank,
)
from .registry import Amount, method
from .visionzip import tower_of


@dataclass(frozen=True)
class OutliersThenGrid:
    """First the outliers of each image, those with attention above Q3 + 1.5 (Q3 - Q1), by attention; then the others in
    an order that covers the image evenly. Tokens are compared by their keys and weigh their attention."""

    needs_attention = False
    needs_images = True

    def macs(self, text, visual, dim):
        return 0

    def __call__(self, inputs: StageInputs) -> Scores:
        tower = tower_of(inputs)
        assert tower.cls_attention is not None and tower.keys is not None
        attention, step = tower.cls_attention, inputs.visual_step
        images = attention.reshape(attention.shape[0], -1, step)
        low, high = jnp.quantile(images, jnp.array([0.25, 0.75]), axis=2)
        is_outlier = (images > (high + 1.5 * (high - low))[..., None]).reshape(attention.shape)
        rank = spread_rank(step)[np.arange(attention.shape[1]) % step]
        values = jnp.where(is_outlier, 1 + attention, -rank / step)
        keys = tower.keys.reshape(*attention.shape, -1)
        return Scores(values, features=keys, weights=attention)


@dataclass(frozen=True)
class MergeIntoKept:
    """Each kept token becomes the weighted mean of itself and the `neighbours` dropped ones with the most similar
    features. No token is added."""

    neighbours: int = 32

    def __post_init__(self):
        settle(self, neighbours=whole(1))

    def candidate_count(self, dropped):
        return dropped

    def merged_count(self, dropped, kept):
        return 0 * dropped

    def __call__(
        self,
        hidden,
        selection,
        visual_count,
        *,
        candidate_capacity,
        merged_capacity,
        noise=None,
        scores=None,
        size=None,
    ) -> Recycled:
        del candidate_capacity, noise, size
        batch, visual, dim = hidden.shape
        features = hidden if scores is None or scores.features is None else scores.features
        weights = jnp.ones((batch, visual)) if scores is None or scores.weights is None else scores.weights
        is_dropped = (jnp.arange(visual) < visual_count[:, None]) & ~selection.is_kept

        similarity = jnp.where(is_dropped[:, None], cosine_similarity(features, features), -jnp.inf)
        nearest, index = jax.lax.top_k(similarity, min(self.neighbours, visual))
        rows, own = jnp.arange(batch)[:, None, None], jnp.arange(visual)[:, None]
        share = jnp.zeros((batch, visual, visual)).at[rows, own, index].set(nearest > -jnp.inf) + jnp.eye(visual)
        share = share * weights[:, None]
        share = share / jnp.maximum(share.sum(axis=2, keepdims=True), 1e-30)
        merged = jnp.einsum(
            "BVW,BWD->BVD", share, hidden.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST
        ).astype(hidden.dtype)
        is_changed = selection.is_kept & is_dropped.any(axis=1, keepdims=True)
        nothing = jnp.zeros((batch, 0), jnp.int32)
        return Recycled(
            merged=jnp.zeros((batch, merged_capacity, dim), hidden.dtype),
            merged_count=jnp.zeros(batch, jnp.int32),
            candidates=nothing,
            candidate_count=jnp.zeros(batch, jnp.int32),
            centers=jnp.zeros((batch, merged_capacity), jnp.int32),
            cluster=nothing,
            size=jnp.zeros((batch, merged_capacity)),
            hidden=jnp.where(is_changed[..., None], merged, hidden),
        )


@method
def prumerge_plus(tokens: Amount = 192, *, neighbours: int = 32) -> SparsityConfig:
    """PruMerge+ (arXiv 2403.15388): outliers of class attention and an even sample, others merged in.

    The paper lets the number of outliers set the count; here the budget does: outliers by attention first, then the
    even sample until the budget is full. The k nearest dropped tokens are merged into each kept one by a mean weighted
    with the class token's attention, behind the projector rather than before it; attention and keys are those of the
    last layer that LLaVA runs (the paper's code takes them one layer later, which LLaVA does not otherwise need).
    """
    return SparsityConfig(
        budget=Tokens(parse_amount(tokens), Geometric()),
        layers=(-1,),
        score=OutliersThenGrid(),
        recycle=MergeIntoKept(neighbours),
        name="prumerge-plus",
    )
