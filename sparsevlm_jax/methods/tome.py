"""Token merging inside the vision tower (ToMe, Bolya et al., arXiv 2210.09461): r tokens fewer in every layer.

I images · T tokens of the tower, class token first · A, B its two halves · N heads · H head dim · D model dim
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..checks import choice, instance, settle
from ..sparsify import MergedTokens, PerImage, SparsityConfig, cosine_similarity, needing
from .registry import TokenBudget, method
from .tower import in_the_tower

Order = Literal["published", "image"]


@dataclass(frozen=True)
class TokenMerging:
    """Bipartite soft matching on keys, down to `budget` tokens of each image."""

    budget: PerImage
    needs = needing()

    def __post_init__(self):
        settle(self, budget=instance(PerImage, "a PerImage"))

    def schedule(self, tokens: int, layers: int, visual: int, *, class_tokens: int) -> tuple[int, ...]:
        """Tokens leaving each layer: r fewer each time, r the least that suffices, the last layers what remains.

        A layer can merge at most every second token, but not the class token.

        Raises:
            ValueError: if the layers cannot merge that far.
        """

        def most(now: int) -> int:
            return (now - class_tokens) // 2

        target = tokens - visual + self.budget.of(visual)
        for r in range(tokens - target + 1):
            counts, now = [], tokens
            for _ in range(layers):
                now -= min(r, most(now), now - target)
                counts.append(now)
            if now == target:
                return tuple(counts)
        least = tokens
        for _ in range(layers):
            least -= most(least)
        raise ValueError(
            f"a tower of {layers} layers and {visual} tokens can merge down to {visual - tokens + least} tokens of an "
            f"image, the budget is {self.budget.of(visual)}"
        )

    def merge(
        self, tokens: MergedTokens, keys: Float[Array, "I T N H"], count: int, *, class_tokens: int
    ) -> MergedTokens:
        """Merges the most similar pairs; see `merge_pairs`."""
        if count == tokens.hidden.shape[1]:
            return tokens
        return merge_pairs(tokens, keys.astype(jnp.float32).mean(axis=2), count, class_tokens=class_tokens)

    def cost(self, tokens: int, count: int, head_dim: int) -> int:
        """Half of the tokens are matched to the other half."""
        return (tokens // 2) * (tokens - tokens // 2) * head_dim if count < tokens else 0


def merge_pairs(
    tokens: MergedTokens, metric: Float[Array, "I T H"], count: int, *, class_tokens: int = 1
) -> MergedTokens:
    """`tokens` with the most similar pairs merged until `count` are left (section 3, "bipartite soft matching").

    Tokens alternate between two sets, A (even places) and B. Each of A is matched to the one of B with the most similar
    metric; the best-matched of A go into their partners, means weighted by size. The class token, the first of A,
    stays, where there is one. What is left of A comes first, then B, as in the published code: the next layer halves
    that order.
    """
    similarity = cosine_similarity(metric[:, 0::2], metric[:, 1::2]).at[:, :class_tokens].set(-jnp.inf)
    partner = 2 * jnp.argmax(similarity, axis=2) + 1
    best = jnp.argsort(-similarity.max(axis=2), axis=1, stable=True)[:, : tokens.hidden.shape[1] - count]

    def merge(hidden, size, origin, best, partner):
        into = jnp.arange(hidden.shape[0]).at[2 * best].set(partner[best])
        total = jnp.zeros(hidden.shape).at[into].add(hidden.astype(jnp.float32) * size[:, None])
        sizes = jnp.zeros_like(size).at[into].add(size)
        is_left = jnp.ones(partner.shape, bool).at[best].set(False)
        of_a = 2 * jnp.flatnonzero(is_left, size=partner.shape[0] - best.shape[0])
        stays = jnp.concatenate([of_a, jnp.arange(1, hidden.shape[0], 2)])
        return (total[stays] / sizes[stays, None]).astype(hidden.dtype), sizes[stays], origin[stays]

    return MergedTokens(*jax.vmap(merge)(*tokens, best, partner))


@method
def tome(tokens: TokenBudget = 192, *, order: Order = "published") -> SparsityConfig:
    """ToMe (arXiv 2210.09461): inside the vision tower, similar tokens merge in every layer.

    A number of tokens is meant per image, since the tower does not know how many images share a prompt. The r of the
    paper follows from the budget, and the count is exact. Attention in the tower is proportional to sizes, so XLA
    computes it. A class token is never merged.

    Args:
        order: in which the language model reads the tokens. "published": as the tower leaves them, unmerged tokens and
            partners apart (the paper has no language model); "image": each at the place of one of its patches.
    """
    order = choice(Order)("order", order)
    budget = PerImage.parse(tokens)
    return in_the_tower("tome", budget, TokenMerging(budget), reorder=order == "published")
