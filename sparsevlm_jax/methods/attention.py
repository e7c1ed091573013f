"""Methods that score by the attention of the last token of the prompt: FastV and PyramidDrop.

Both papers count layers from 1 and prune between two of them; here a stage follows the layer of index l, counted from
0, so their "after layer K" is `layers=(K - 1,)`. FastV looks at the attention of the layer just run, PyramidDrop
at that which the next one would pay.
"""

from collections.abc import Sequence
from fractions import Fraction

from ..checks import whole
from ..sparsify import Amount, Geometric, KeptTokens, RaterScore, SparsityConfig, parse_budget
from .registry import TokenBudget, method


@method
def fastv(tokens: TokenBudget = 192, *, layer: int = 2) -> SparsityConfig:
    """FastV (arXiv 2403.06764): once, after layer K = 2, by the last token's attention.

    The score is the attention that the last token of the prompt pays in layer K, mean over heads. The paper's ratio R
    of dropped tokens follows from the budget. Positions are kept.

    Args:
        layer: K, counted from 1 as the paper does.
    """
    return SparsityConfig(
        budget=parse_budget(tokens, Geometric()),
        layers=(whole(1)("layer", layer) - 1,),
        raters="last",
        recycle=None,
        positions="keep",
        name="fastv",
    )


@method
def pyramiddrop(tokens: TokenBudget = 192, *, ratios: Sequence[Amount] | None = None) -> SparsityConfig:
    """PyramidDrop (arXiv 2410.17247): after 1/4, 1/2 and 3/4 of the layers, by the last token's attention.

    Stages end after 8, 16 and 24 of 32 layers and keep a like share; each ranks by the next layer's query and key
    projections of its tokens; positions are renumbered. The first quarter of the layers sees all tokens, so a budget
    below a quarter of them cannot be met.

    Args:
        ratios: the paper's, in place of `tokens`: the share of the image that each stage keeps. (1/2, 1/4, 1/8), its
            own, are 288, 144 and 72 of 576 tokens; the paper counts them as 270, the mean that enters a layer.
    """
    return SparsityConfig(
        budget=parse_budget(tokens, Geometric()) if ratios is None else KeptTokens.parse(ratios),
        depths=(Fraction(1, 4), Fraction(1, 2), Fraction(3, 4)),
        at_depth="before",
        raters="last",
        score=RaterScore(layer="next"),
        recycle=None,
        name="pyramiddrop",
    )
