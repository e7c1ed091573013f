"""SparseVLM as published (arXiv 2410.04417), no pruning at all, and four variants.

`sparsevlm-simple` is what ablations on the bundled model come to: every word rates, nothing is renumbered or merged.
At small budgets the published selection loses to diversity-aware ones: the best-scored tokens repeat each other.
`sparsevlm-diverse` keeps SparseVLM's stages, raters and recycling and chooses by score and coverage together;
`sparsevlm-sized` lets a merged token count as many as it stands for. `sparsevlm-early` drops most tokens before the
first layer, where a budget is not yet spent, and asks the raters once they have found what they look for.
"""

import dataclasses
from dataclasses import dataclass
from fractions import Fraction

from ..sparsify import (
    Determinantal,
    RaterScore,
    Recycle,
    Scores,
    Shrinking,
    Sizes,
    SparsityConfig,
    StageInputs,
    needing,
    parse_budget,
)
from .diversity import QuestionSimilarity
from .registry import TokenBudget, method


@dataclass(frozen=True)
class SimilarityThenAttention:
    """The cosine to the question before layer 0, where nothing has attended to anything yet; then raters' attention."""

    needs = needing("raters", "hidden")

    def cost(self, sizes: Sizes) -> int:
        return QuestionSimilarity().cost(sizes)

    def __call__(self, inputs: StageInputs) -> Scores:
        return QuestionSimilarity()(inputs) if inputs.attention is None else RaterScore()(inputs)


@method
def dense(tokens: TokenBudget = 192) -> None:
    """Every token in every layer; the budget is ignored."""
    parse_budget(tokens)


@method
def sparsevlm(tokens: TokenBudget = 192) -> SparsityConfig:
    """SparseVLM v1.5: raters' attention after layers 2, 6 and 15 of 32, the dropped recycled."""
    return SparsityConfig.sparsevlm(tokens)


@method
def sparsevlm_plus(tokens: TokenBudget = 192) -> SparsityConfig:
    """SparseVLM+: gravity-corrected attention of the heads that look at the image, kept positions."""
    return SparsityConfig.sparsevlm_plus(tokens)


@method
def sparsevlm_diverse(
    tokens: TokenBudget = 192, *, power: float = 1.0, ridge: float = 0.05, size_aware: bool = False
) -> SparsityConfig:
    """SparseVLM's raters and stages, choosing by score and coverage together.

    At each stage the kept set has the largest determinant, greedily, of the kernel score_i^power cos_ij score_j^power
    over the centred hidden states (the MAP of a determinantal point process): a token must be looked at by the question
    and must not repeat a kept one. What it stands for comes back in the recycled tokens.

    Args:
        power: of the score against diversity; 0 is diversity alone.
        ridge: share of a token that no other can stand for; it bounds how much a repetition loses.
        size_aware: recycled tokens count as many as they stand for; see `sparsevlm-sized`.
    """
    return dataclasses.replace(
        SparsityConfig.sparsevlm(tokens),
        select=Determinantal(power=power, centred=True, ridge=ridge),
        recycle=Recycle(size_aware=size_aware),
        name="sparsevlm-diverse",
    )


@method
def sparsevlm_sized(tokens: TokenBudget = 192) -> SparsityConfig:
    """SparseVLM v1.5 whose recycled tokens count as many as they stand for; XLA attention only."""
    return dataclasses.replace(
        SparsityConfig.sparsevlm(tokens), recycle=Recycle(size_aware=True), name="sparsevlm-sized"
    )


@method
def sparsevlm_simple(tokens: TokenBudget = 192) -> SparsityConfig:
    """SparseVLM's stages with every word of the question a rater, kept positions and no recycling."""
    return dataclasses.replace(
        SparsityConfig.sparsevlm(tokens), raters="all", recycle=None, positions="keep", name="sparsevlm-simple"
    )


@method
def sparsevlm_early(tokens: TokenBudget = 192) -> SparsityConfig:
    """Diverse tokens near the question before layer 1, the raters' half of them a third on.

    What the layers before a first stage see is most of a small budget. Here nearly all of it is left for tokens that
    matter: the first stage is CDPruner's, the second asks every word, and both choose by score and coverage together.
    """
    return SparsityConfig(
        budget=parse_budget(tokens, Shrinking(later=0.5)),
        depths=(Fraction(-1), Fraction(1, 3)),
        raters="all",
        score=SimilarityThenAttention(),
        select=Determinantal(),
        recycle=None,
        positions="keep",
        name="sparsevlm-early",
    )
