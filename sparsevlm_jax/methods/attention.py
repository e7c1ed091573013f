"""Methods that score by the attention of the last token of the prompt: FastV and PyramidDrop.

Both papers count layers from 1 and prune between two of them; here a stage follows the layer of index l, counted from
0, so their "after layer K" is `layers=(K - 1,)`.
"""

from ..checks import whole
from ..sparsify import Geometric, SparsityConfig, Tokens, parse_amount
from ..sparsify.schedule import of_32
from .registry import Amount, method


@method
def fastv(tokens: Amount = 192, *, layer: int = 2) -> SparsityConfig:
    """FastV (arXiv 2403.06764): once, after layer K = 2, by the last token's attention.

    The score is the attention that the last token of the prompt pays in layer K, mean over heads. The paper's ratio R
    of dropped tokens follows from the budget. Positions are kept.

    Args:
        layer: K, counted from 1 as the paper does.
    """
    return SparsityConfig(
        budget=Tokens(parse_amount(tokens), Geometric()),
        layers=(whole(1)("layer", layer) - 1,),
        raters="last",
        recycle=None,
        positions="keep",
        name="fastv",
    )


@method
def pyramiddrop(tokens: Amount = 192) -> SparsityConfig:
    """PyramidDrop (arXiv 2410.17247): a like share after 1/4, 1/2 and 3/4 of the layers, as FastV scores.

    Stages end after 8, 16 and 24 of 32 layers; positions are renumbered. The paper ranks by the *next* layer's query
    and key projections of the stage's output, here it is the attention of the layer just run. The first quarter of the
    layers sees all tokens, so a budget below a quarter of them cannot be met.
    """
    return SparsityConfig(
        budget=Tokens(parse_amount(tokens), Geometric()),
        depths=of_32(7, 15, 23),
        raters="last",
        recycle=None,
        name="pyramiddrop",
    )
