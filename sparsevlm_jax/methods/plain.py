"""What every method has to beat: a random choice, an even one, and a smaller picture. All before the language model.

I images · T tokens of the tower, class token first · B batch · V visual tokens · K kept
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64, Int64

from ..checks import LARGEST_SEED, instance, settle, whole
from ..sparsify import (
    Geometric,
    MergedTokens,
    PerImage,
    Scorer,
    Scores,
    Selector,
    Sizes,
    SparsityConfig,
    Spread,
    StageInputs,
    TopK,
    TowerOutput,
    needing,
    parse_budget,
)
from .registry import TokenBudget, method
from .tower import in_the_tower


@dataclass(frozen=True)
class RandomScore:
    """A number per visual token, drawn from the seed and the token's place alone: the same in every row and batch."""

    seed: int = 0
    needs = needing()

    def __post_init__(self):
        settle(self, seed=whole(0, LARGEST_SEED))

    def cost(self, sizes: Sizes) -> int:
        return 0

    def __call__(self, inputs: StageInputs) -> Scores:
        def draw(index):
            return jax.random.uniform(jax.random.fold_in(jax.random.key(self.seed), index))

        values = jax.vmap(draw)(jnp.arange(inputs.is_visual.shape[1]))
        return Scores(jnp.broadcast_to(values, inputs.is_visual.shape))


@dataclass(frozen=True)
class CellPlaces:
    """All tokens alike; features are the picture, grid, time, row and column of each, for `Spread`."""

    needs = needing("cells")

    def cost(self, sizes: Sizes) -> int:
        return 0

    def __call__(self, inputs: StageInputs) -> Scores:
        images = inputs.known_images()
        assert images.media is not None and images.cell is not None
        features = jnp.concatenate([images.media[..., None], images.cell], axis=-1)
        return Scores(jnp.zeros(inputs.is_visual.shape), features=features.astype(jnp.float32))


@method
def random(tokens: TokenBudget = 192, *, seed: int = 0) -> SparsityConfig:
    """A random choice before the language model, the same for the same seed."""
    return _before(tokens, RandomScore(seed), TopK(), "random")


@method
def uniform(tokens: TokenBudget = 192) -> SparsityConfig:
    """Tokens spread evenly over the image, before the language model."""
    return _before(tokens, CellPlaces(), Spread(), "uniform")


@dataclass(frozen=True)
class CellMeans:
    """The mean of the tower's features over each cell of a coarser grid; the class token plays no part."""

    budget: PerImage
    needs = needing()

    def __post_init__(self):
        settle(self, budget=instance(PerImage, "a PerImage"))

    def count(self, visual: int) -> int:
        return self.budget.of(visual)

    def reduce(self, tower: TowerOutput, count: int) -> MergedTokens:
        hidden = tower.hidden[:, tower.first_patch :].astype(jnp.float32)
        images, patches, _ = hidden.shape
        areas, place = cells(math.isqrt(patches), count)
        size = areas.sum(axis=1)
        weights = np.float32(areas / size[:, None])
        means = jnp.einsum("KV,IVD->IKD", weights, hidden, precision=jax.lax.Precision.HIGHEST)
        return MergedTokens(
            hidden=means.astype(tower.hidden.dtype),
            size=jnp.broadcast_to(np.float32(size), (images, count)),
            origin=jnp.broadcast_to(tower.first_patch + place, (images, count)),
        )

    def cost(self, patches: int, count: int, dim: int, head_dim: int, *, class_tokens: int) -> int:
        return patches * count * dim


def cells(side: int, count: int) -> tuple[Float64[np.ndarray, "K V"], Int64[np.ndarray, " K"]]:
    """A grid of `side` x `side` patches cut into `count` cells: how much of each patch lies in each cell, and the patch
    at the cell's centre. The cells stand in about the square root of `count` rows of equal height, in each of them as
    many, give or take one; those of a row are equal.
    """
    rows = max(1, math.floor(math.sqrt(count) + 0.5))
    ends = [count * row // rows for row in range(rows + 1)]
    areas, places = [], []
    for row, columns in enumerate(np.diff(ends).tolist()):
        across, down = _overlap(side, columns), _overlap(side, rows)[row]
        areas += [np.outer(down, cell).reshape(-1) for cell in across]
        middle = math.floor((row + 0.5) * side / rows) * side
        places += [middle + math.floor((column + 0.5) * side / columns) for column in range(columns)]
    return np.array(areas), np.array(places)


def _overlap(side: int, parts: int) -> np.ndarray:
    """A line of `side` patches in equal `parts`: how much of each patch lies in each of them, [parts, side]."""
    edges, patch = np.arange(parts + 1) * side / parts, np.arange(side)
    inside = np.minimum(edges[1:, None], patch + 1) - np.maximum(edges[:-1, None], patch)
    return np.maximum(inside, 0)


@method
def resize(tokens: TokenBudget = 192) -> SparsityConfig:
    """A smaller picture: the tower's features averaged over as many cells as tokens are wanted.

    What users do without any of this. CLIP's towers take pictures of one size, so it is the features that are made
    fewer, before the projector. A number of tokens is meant per image.
    """
    budget = PerImage.parse(tokens)
    return in_the_tower("resize", budget, CellMeans(budget), reorder=False)


def _before(tokens: TokenBudget, score: Scorer, select: Selector, name: str) -> SparsityConfig:
    budget = parse_budget(tokens, Geometric())
    return SparsityConfig(budget=budget, layers=(-1,), score=score, select=select, recycle=None, name=name)
