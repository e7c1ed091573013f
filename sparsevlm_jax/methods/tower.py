"""What methods share that act in the vision tower, or between it and the projector.

B batch · V visual tokens
"""

from dataclasses import dataclass

import jax.numpy as jnp

from ..checks import flag, settle
from ..sparsify import (
    PerImage,
    Scores,
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

    Attributes:
        reorder: the language model reads the tokens in the method's order, not in that of their places.
    """

    reorder: bool = True
    needs = needing("tower", "cells")

    def __post_init__(self):
        settle(self, reorder=flag)

    def cost(self, sizes: Sizes) -> int:
        return 0

    def __call__(self, inputs: StageInputs) -> Scores:
        images = inputs.known_images()
        assert images.size is not None and images.order is not None and images.media is not None
        order = images.media * jnp.int32(images.order.shape[1]) + images.order  # picture after picture
        return Scores(jnp.where(inputs.is_visual, images.size, 0), order=order if self.reorder else None)


def in_the_tower(
    name: str, budget: PerImage, merging: TowerMerging | TowerReduction, *, reorder: bool = True
) -> SparsityConfig:
    """A method whose tokens are made by the tower: the one stage drops the places that are left empty."""
    score = Present(reorder)
    return SparsityConfig(
        budget=budget, layers=(-1,), score=score, recycle=None, merging=merging, adaptive="padded", name=name
    )
