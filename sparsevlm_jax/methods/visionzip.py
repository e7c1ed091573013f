"""VisionZip (arXiv 2412.04467): the tokens the class token looks at, and the others merged by their keys' likeness.

B batch · V visual tokens · C dropped tokens · M contextual tokens · N heads · H head dim · D model dim
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..checks import settle, whole
from ..sparsify import (
    Geometric,
    ImageContext,
    Recycled,
    Scores,
    SparsityConfig,
    StageInputs,
    Tokens,
    cosine_similarity,
    parse_amount,
    slots_of,
)
from .registry import Amount, method


def tower_of(inputs: StageInputs) -> ImageContext:
    """The stage's tower context.

    Raises:
        ValueError: the caller encoded the images without it.
    """
    if inputs.images is None:
        raise ValueError("this method scores by the vision tower: pass the context of `llava.encode` to the prefill")
    return inputs.images


@dataclass(frozen=True)
class ClassAttention:
    """The class token's attention, mean over heads; tokens are compared by their keys, mean over heads."""

    needs_attention = False
    needs_images = True

    def macs(self, text, visual, dim):
        return 0

    def __call__(self, inputs: StageInputs) -> Scores:
        tower = tower_of(inputs)
        assert tower.cls_attention is not None and tower.keys is not None
        return Scores(tower.cls_attention, features=tower.keys.astype(jnp.float32).mean(axis=2))


@dataclass(frozen=True)
class Contextual:
    """The dropped, merged into `contextual` tokens for every `dominant` that are kept (rounded up).

    Every n-th of the dropped, in the order of the image, is a target; each other joins the target with the most similar
    features, and a target becomes the mean of its group.
    """

    dominant: int = 54
    contextual: int = 10

    def __post_init__(self):
        settle(self, dominant=whole(1), contextual=whole(1))

    def candidate_count(self, dropped):
        """All of them are merged."""
        return dropped

    def merged_count(self, dropped, kept):
        """As many as the split asks for, and no more than there are."""
        count = -(-kept * self.contextual // self.dominant)
        return count - (count > dropped) * (count - dropped)

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
        del noise, size
        features = hidden if scores is None or scores.features is None else scores.features
        is_visual = jnp.arange(hidden.shape[1]) < visual_count[:, None]
        dropped, is_dropped = slots_of(is_visual & ~selection.is_kept, candidate_capacity)
        count = visual_count - selection.count
        merged_count = self.merged_count(count, selection.count)

        every = jnp.maximum(count // jnp.maximum(merged_count, 1), 1)
        target = jnp.minimum(jnp.arange(merged_capacity) * every[:, None], candidate_capacity - 1)
        is_target = jnp.arange(merged_capacity) < merged_count[:, None]
        centers = jnp.take_along_axis(dropped, target, axis=1)

        similarity = cosine_similarity(_rows(features, dropped), _rows(features, centers))
        # One more column, of -inf: argmax of no target at all is 0, and nobody reads it.
        similarity = jnp.where(is_target[:, None], similarity, -jnp.inf)
        group = jnp.argmax(jnp.pad(similarity, ((0, 0), (0, 0), (0, 1)), constant_values=-jnp.inf), axis=2)
        rows = jnp.arange(hidden.shape[0])[:, None]
        own = jnp.where(is_target, target, candidate_capacity)
        group = group.at[rows, own].set(jnp.arange(merged_capacity), mode="drop")

        member = ((group[..., None] == jnp.arange(merged_capacity)) & is_dropped[..., None]).astype(jnp.float32)
        size = member.sum(axis=1)
        total = jnp.einsum(
            "BCM,BCD->BMD", member, _rows(hidden, dropped).astype(jnp.float32), precision=jax.lax.Precision.HIGHEST
        )
        return Recycled(
            merged=(total / jnp.maximum(size, 1)[..., None]).astype(hidden.dtype),
            merged_count=merged_count,
            candidates=dropped,
            candidate_count=count,
            centers=centers,
            cluster=group,
            size=size,
        )


def _rows(x: Float[Array, "B V D"], index) -> Float[Array, "B C D"]:
    return jnp.take_along_axis(x, index[..., None], axis=1)


@method
def visionzip(tokens: Amount = 192, *, dominant: int = 54, contextual: int = 10) -> SparsityConfig:
    """VisionZip (arXiv 2412.04467): before the language model, by class attention, the rest merged.

    Split 54 : 10 as in the paper. Tokens are merged behind the projector rather than before it, and the class token,
    which LLaVA drops, is not among the dominant ones. With several images in a row they compete for one budget.
    """
    return SparsityConfig(
        budget=Tokens(parse_amount(tokens), Geometric()),
        layers=(-1,),
        score=ClassAttention(),
        recycle=Contextual(dominant, contextual),
        name="visionzip",
    )
