"""SparseVLM (arXiv 2410.04417) as pure functions on arrays; imports nothing of the rest of the library but
its checks of arguments.

In the order a prefill uses them: `select_raters` once, then at each pruning layer `rater_attention`, `score`,
`attention_rank` (if counts adapt), `select`, `recycle`, `compact`. `decide` and `apply` compose one stage.
"""

from .amount import Amount, Share, parse_amount
from .budget import (
    AdaptiveBudget,
    Budget,
    CountInputs,
    FixedBudget,
    KeptTokens,
    PerImage,
    RankDeficit,
    RankScale,
    TokenBudget,
    Tokens,
    parse_budget,
)
from .config import SparsityConfig, StagePlan
from .diversity import Determinantal, MaxMin, Spread, cosine_similarity, greedy, in_turn
from .needs import Need, Sizes, needing
from .rank import attention_rank
from .raters import Raters, question_mask, select_raters
from .recycle import Recycle, Recycled, RecycleInputs, Recycler, recycle
from .schedule import (
    Anchors,
    Bucket,
    Geometric,
    Geometry,
    Shrinking,
    default_layers,
    mean_after_layers,
    mean_entering_layers,
    simulate,
)
from .scorer import Ahead, Attention, RaterScore, Scorer, Scores, StageInputs
from .scores import (
    correct_gravity,
    gravity_weights,
    mean_over_heads,
    onto_visual,
    priority_heads,
    rater_attention,
    score,
)
from .select import Selection, Selector, TopK, keep_first, select
from .stage import Decision, apply, decide, needed
from .stream import TokenStream, at_slots, compact, slots_of, to_slots
from .tower import ImageContext, MergedTokens, TowerMerging, TowerOutput, TowerReduction

__all__ = [
    "AdaptiveBudget",
    "Ahead",
    "Amount",
    "Anchors",
    "Attention",
    "Bucket",
    "Budget",
    "CountInputs",
    "Decision",
    "Determinantal",
    "FixedBudget",
    "Geometric",
    "Geometry",
    "ImageContext",
    "KeptTokens",
    "MaxMin",
    "MergedTokens",
    "Need",
    "PerImage",
    "RankDeficit",
    "RankScale",
    "RaterScore",
    "Raters",
    "Recycle",
    "RecycleInputs",
    "Recycled",
    "Recycler",
    "Scorer",
    "Scores",
    "Selection",
    "Selector",
    "Share",
    "Shrinking",
    "Sizes",
    "SparsityConfig",
    "Spread",
    "StageInputs",
    "StagePlan",
    "TokenBudget",
    "TokenStream",
    "Tokens",
    "TopK",
    "TowerMerging",
    "TowerOutput",
    "TowerReduction",
    "apply",
    "at_slots",
    "attention_rank",
    "compact",
    "correct_gravity",
    "cosine_similarity",
    "decide",
    "default_layers",
    "gravity_weights",
    "greedy",
    "in_turn",
    "keep_first",
    "mean_after_layers",
    "mean_entering_layers",
    "mean_over_heads",
    "needed",
    "needing",
    "onto_visual",
    "parse_amount",
    "parse_budget",
    "priority_heads",
    "question_mask",
    "rater_attention",
    "recycle",
    "score",
    "select",
    "select_raters",
    "simulate",
    "slots_of",
    "to_slots",
]
