"""VisionZip (arXiv 2412.04467): the tokens the class token looks at, and the others merged by their keys' likeness.

I images · T tokens of the tower, a class token first where there is one · V patches · R not dominant · M contextual
N heads · D width
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..checks import instance, settle, whole
from ..sparsify import MergedTokens, PerImage, SparsityConfig, TowerOutput, cosine_similarity, needing
from .registry import TokenBudget, method
from .tower import in_the_tower


@dataclass(frozen=True)
class DominantAndContextual:
    """The class token, the patches it attends to most, and `contextual` tokens for every `dominant` of these. Where the
    tower has no class token, the patches to which all attend most, as the paper has it for such towers.

    Every n-th of the remaining patches, in the order of the image, is a target; each other one joins the target with
    the most similar keys, mean over heads, and a contextual token is its target plus the *mean* of those that joined.
    """

    budget: PerImage
    dominant: int = 54
    contextual: int = 10
    needs = needing()

    def __post_init__(self):
        settle(self, budget=instance(PerImage, "a PerImage"), dominant=whole(1), contextual=whole(0))

    def count(self, visual: int) -> int:
        return self.budget.of(visual)

    def split(self, count: int) -> tuple[int, int]:
        """How many of `count` tokens are dominant, a class token among them, and how many contextual (rounded); one
        is dominant at least."""
        whole = self.dominant + self.contextual
        contextual = min((2 * count * self.contextual + whole) // (2 * whole), count - 1)
        return count - contextual, contextual

    def reduce(self, tower: TowerOutput, count: int) -> MergedTokens:
        metric = tower.k.astype(jnp.float32).mean(axis=2)
        return self.choose(tower.hidden, attention_received(tower), metric, count, first=tower.first_patch)

    def cost(self, patches: int, count: int, dim: int, head_dim: int, *, class_tokens: int) -> int:
        dominant, contextual = self.split(count)
        joining = patches - (dominant - class_tokens) - contextual
        return (1 if class_tokens else patches) * patches * dim + joining * contextual * (head_dim + dim)

    def choose(
        self,
        hidden: Float[Array, "I T D"],
        attention: Float[Array, "I T"],
        metric: Float[Array, "I T H"],
        count: int,
        *,
        first: int = 1,
    ) -> MergedTokens:
        """`reduce`, given the attention that tokens receive, what they are compared by, and the number of the first
        patch."""
        dominant, contextual = self.split(count)
        attention, patches = attention[:, first:], dominant - first
        best = jnp.argsort(-attention, axis=1, stable=True)
        kept, rest = first + jnp.sort(best[:, :patches], axis=1), first + jnp.sort(best[:, patches:], axis=1)

        step = max(rest.shape[1] // max(contextual, 1), 1)
        targets = rest[:, : step * contextual : step]
        joining = jnp.delete(rest, jnp.arange(contextual) * step, axis=1, assume_unique_indices=True)
        merged, size = _rows(hidden, targets), jnp.ones(targets.shape)
        if contextual and joining.shape[1]:
            group = jnp.argmax(cosine_similarity(_rows(metric, joining), _rows(metric, targets)), axis=2)
            member = jax.nn.one_hot(group, contextual)
            joined = _rows(hidden, joining).astype(jnp.float32)
            total = jnp.einsum("IRM,IRD->IMD", member, joined, precision=jax.lax.Precision.HIGHEST)
            size = member.sum(axis=1)
            merged = (merged + total / jnp.maximum(size, 1)[..., None]).astype(hidden.dtype)
            size = 1 + size
        # The class token has no place in the picture: that of the most attended patch that has lost its own.
        at = jnp.take_along_axis(joining, jnp.argmax(_rows(attention, joining - first), axis=1)[:, None], axis=1)
        return MergedTokens(
            hidden=jnp.concatenate([hidden[:, :first], _rows(hidden, kept), merged], axis=1),
            size=jnp.concatenate([jnp.ones((hidden.shape[0], dominant)), size], axis=1),
            origin=jnp.concatenate([at[:, :first], kept, targets], axis=1),
        )


def attention_received(tower: TowerOutput) -> Float[Array, "I T"]:
    """The class token's attention in the layer before, or that of all tokens on average where there is none; mean over
    heads, float32."""
    exact = dict(preferred_element_type=jnp.float32, precision=jax.lax.Precision.HIGHEST)
    looking = tower.q[:, : tower.first_patch or None]
    logits = jnp.einsum("IQNH,ITNH->INQT", looking, tower.k, **exact) * tower.q.shape[-1] ** -0.5
    return jax.nn.softmax(logits, axis=-1).mean(axis=(1, 2))


def _rows(x: jax.Array, index: jax.Array) -> jax.Array:
    """Of [I, T, D], or [I, T], the tokens of `index` [I, R]."""
    return jnp.take_along_axis(x, index.reshape(*index.shape, *(1,) * (x.ndim - 2)), axis=1)


@method
def visionzip(tokens: TokenBudget = 192, *, dominant: int = 54, contextual: int = 10) -> SparsityConfig:
    """VisionZip (arXiv 2412.04467): after the tower, by class attention, the rest merged.

    Split 54 : 10 as in the paper, the class token among the dominant ones, and merged before the projector. Towers
    without a class token have the attention of all tokens in its place. A number of tokens is meant per image.
    """
    budget = PerImage.parse(tokens)
    return in_the_tower("visionzip", budget, DominantAndContextual(budget, dominant, contextual))
