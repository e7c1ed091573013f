"""Token merging inside the vision tower (ToMe, Bolya et al., arXiv 2210.09461): r tokens fewer in every layer.

I images · T tokens of the tower, class token first · A, B its two halves · N heads · H head dim · D model dim
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..checks import instance, settle
from ..sparsify import Amount, MergedTokens, Scores, Share, SparsityConfig, StageInputs, cosine_similarity, parse_amount
from ..sparsify.amount import number_or_share
from ..sparsify.schedule import Geometry
from .registry import method
from .visionzip import tower_of


@dataclass(frozen=True)
class PerImage:
    """The same number of tokens, or share of the tokens, of every image, whatever the prompt holds besides."""

    amount: Amount

    def __post_init__(self):
        settle(self, amount=number_or_share("tokens"))

    def number(self, images: int) -> int | None:
        """How many tokens it asks of a row; None for a share."""
        return self.amount * images if isinstance(self.amount, int) else None

    def of(self, visual: int) -> int:
        """Of an image with `visual` tokens: a share is rounded, a number bounded by what there is; at least 1."""
        if isinstance(self.amount, Share):
            return self.amount.of(visual)
        return min(int(self.amount), visual)

    def table(self, geometry: Geometry, rest) -> np.ndarray:
        images = geometry.row_counts // geometry.visual_step
        return np.repeat(images[None] * self.of(geometry.visual_step), len(geometry.layers), axis=0)

    def bound(self, visual: int, text: int) -> int:
        raise NotImplementedError("this budget has a table")

    def count(self, inputs):
        raise NotImplementedError("this budget has a table")


@dataclass(frozen=True)
class TokenMerging:
    """Bipartite soft matching on keys, down to `budget` tokens of each image."""

    budget: PerImage

    def __post_init__(self):
        settle(self, budget=instance(PerImage, "a PerImage"))

    def schedule(self, tokens: int, layers: int, visual: int) -> tuple[int, ...]:
        """Tokens leaving each layer: r fewer each time, r the least that suffices, the last layers what remains.

        A layer can merge at most all but the class token of every second token.

        Raises:
            ValueError: if the layers cannot merge that far.
        """
        target = tokens - visual + self.budget.of(visual)
        for r in range(tokens - target + 1):
            counts, now = [], tokens
            for _ in range(layers):
                now -= min(r, (now - 1) // 2, now - target)
                counts.append(now)
            if now == target:
                return tuple(counts)
        least = tokens
        for _ in range(layers):
            least -= (least - 1) // 2
        raise ValueError(
            f"a tower of {layers} layers and {visual} tokens can merge down to {visual - tokens + least} tokens of an "
            f"image, the budget is {self.budget.of(visual)}"
        )

    def merge(self, tokens: MergedTokens, keys: Float[Array, "I T N H"], count: int) -> MergedTokens:
        """Merges the most similar pairs; see `merge_pairs`."""
        if count == tokens.hidden.shape[1]:
            return tokens
        return merge_pairs(tokens, keys.astype(jnp.float32).mean(axis=2), count)


def merge_pairs(tokens: MergedTokens, metric: Float[Array, "I T H"], count: int) -> MergedTokens:
    """`tokens` with the most similar pairs merged until `count` are left (section 3, "bipartite soft matching").

    Tokens alternate between two sets, A (even places) and B. Each of A is matched to the one of B with the most similar
    metric; the best-matched of A go into their partners, means weighted by size. The class token, the first of A,
    stays. The paper puts what is left of A before B; here every token keeps its place among the others, since a
    language model reads them in order.
    """
    similarity = cosine_similarity(metric[:, 0::2], metric[:, 1::2]).at[:, 0].set(-jnp.inf)
    partner = 2 * jnp.argmax(similarity, axis=2) + 1
    best = jnp.argsort(-similarity.max(axis=2), axis=1, stable=True)[:, : tokens.hidden.shape[1] - count]

    def merge(hidden, size, origin, best, partner):
        into = jnp.arange(hidden.shape[0]).at[2 * best].set(partner[best])
        total = jnp.zeros(hidden.shape).at[into].add(hidden.astype(jnp.float32) * size[:, None])
        sizes = jnp.zeros_like(size).at[into].add(size)
        stays = jnp.flatnonzero(jnp.ones(size.shape, bool).at[2 * best].set(False), size=count)
        return (total[stays] / sizes[stays, None]).astype(hidden.dtype), sizes[stays], origin[stays]

    return MergedTokens(*jax.vmap(merge)(*tokens, best, partner))


@dataclass(frozen=True)
class Present:
    """The places the tower has filled; a token's score is how many patches it stands for."""

    needs_attention = False
    needs_images = True

    def macs(self, text, visual, dim):
        return 0

    def __call__(self, inputs: StageInputs) -> Scores:
        size = tower_of(inputs).size
        assert size is not None
        return Scores(size)


@method
def tome(tokens: Amount = 192) -> SparsityConfig:
    """ToMe (arXiv 2210.09461): inside the vision tower, similar tokens merge in every layer.

    A number of tokens is meant per image, since the tower does not know how many images share a prompt. The r of the
    paper follows from the budget, and the count is exact. Attention in the tower is proportional to sizes, so XLA
    computes it. The class token is never merged. Each merged token has the place of one of its patches.
    """
    budget = PerImage(parse_amount(tokens))
    return SparsityConfig(
        budget=budget, layers=(-1,), score=Present(), recycle=None, merging=TokenMerging(budget), name="tome"
    )
