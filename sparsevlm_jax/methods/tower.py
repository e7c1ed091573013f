"""What methods share that act in the vision tower, or between it and the projector.

B batch · V visual tokens
"""

from dataclasses import dataclass

from ..checks import flag, settle
from ..sparsify import ImageContext, PerImage, Scores, SparsityConfig, StageInputs, TowerMerging, TowerReduction


def tower_of(inputs: StageInputs) -> ImageContext:
    """The stage's tower context.

    Raises:
        ValueError: the caller encoded the images without it.
    """
    if inputs.images is None:
        raise ValueError("this method scores by the vision tower: pass the context of `encode` to the prefill")
    return inputs.images


@dataclass(frozen=True)
class Present:
    """The places that the tower has filled; a token's score is how many patches it stands for.

    Attributes:
        reorder: the language model reads the tokens in the method's order, not in that of their places.
    """

    reorder: bool = True
    needs_attention = False
    needs_images = True

    def __post_init__(self):
        settle(self, reorder=flag)

    def macs(self, text, visual, dim):
        return 0

    def __call__(self, inputs: StageInputs) -> Scores:
        tower = tower_of(inputs)
        assert tower.size is not None
        return Scores(tower.size, order=tower.order if self.reorder else None)


def in_the_tower(
    name: str, budget: PerImage, merging: TowerMerging | TowerReduction, *, reorder: bool = True
) -> SparsityConfig:
    """A method whose tokens are made by the tower: the one stage drops the places that are left empty."""
    score = Present(reorder)
    return SparsityConfig(budget=budget, layers=(-1,), score=score, recycle=None, merging=merging, name=name)
