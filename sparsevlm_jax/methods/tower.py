"""What methods share that act in the vision tower, or between it and the projector.

B batch · V visual tokens
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..checks import flag, instance, settle
from ..sparsify import (
    PerImage,
    Scores,
    Share,
    Sizes,
    SparsityConfig,
    StageInputs,
    TowerMerging,
    TowerReduction,
    needing,
)


@dataclass(frozen=True)
class Present:
    """The places that the tower has filled; a token's score is how many patches it stands for.

    Of pictures in tiles, a share of each tile can be more than that share of the tokens that are left without what is
    around the picture. Of tokens that stand for the fewest patches some are left out then, evenly.

    Attributes:
        budget: of each image.
        reorder: the language model reads the tokens in the method's order, not in that of their places.
    """

    budget: PerImage
    reorder: bool = True
    needs = needing("tower", "cells")

    def __post_init__(self):
        settle(self, budget=instance(PerImage, "a PerImage"), reorder=flag)

    def cost(self, sizes: Sizes) -> int:
        return 0

    def __call__(self, inputs: StageInputs) -> Scores:
        images = inputs.known_images()
        assert images.size is not None and images.order is not None and images.media is not None
        order = (images.media << _ORDERS) + images.order  # picture after picture
        size = jnp.where(inputs.is_visual, images.size, 0)
        return Scores(self._within(size, inputs.is_visual, images.media), order=order if self.reorder else None)

    def _within(self, size: Float[Array, "B V"], is_visual: Bool[Array, "B V"], media: Int[Array, "B V"]) -> jax.Array:
        """Sizes, 0 for those that are more than the budget's share of a row."""
        if not isinstance(self.budget.amount, Share):
            return size
        images = jnp.max(jnp.where(is_visual, media, -1), axis=1) + 1
        most = self.budget.most(is_visual.sum(axis=1), images, size.shape[1])
        turn = jnp.cumsum(size > 0, axis=1) * _GOLDEN % 1  # neighbours are far apart in it
        best = jnp.argsort(jnp.argsort(-(size + turn / 2), axis=1), axis=1)
        return jnp.where(best < most[:, None], size, 0)


_ORDERS, _GOLDEN = 20, 0.618034  # bits of a number in an order: more than a picture's tiles have tokens


def in_the_tower(
    name: str, budget: PerImage, merging: TowerMerging | TowerReduction, *, reorder: bool = True
) -> SparsityConfig:
    """A method whose tokens are made by the tower: the one stage drops the places that are left empty."""
    score = Present(budget, reorder)
    return SparsityConfig(
        budget=budget, layers=(-1,), score=score, recycle=None, merging=merging, adaptive="padded", name=name
    )
