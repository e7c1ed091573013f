"""A sparsification method as one value: where it acts, how it scores, how many it keeps, what becomes of the rest.

Presets name the published versions; every difference between them is a field, so any mixture can be studied:

    SparsityConfig.sparsevlm(tokens=192)
    dataclasses.replace(SparsityConfig.sparsevlm(tokens="1/3"), recycle=None, positions="keep")
"""

import math
from dataclasses import dataclass
from fractions import Fraction

from .budget import Budget, KeptTokens, RankDeficit, RankScale, Tokens, parse_amount
from .raters import Threshold
from .recycle import Recycle
from .schedule import PLUS_ANCHORS, V15_ANCHORS, Geometry, check_layers, default_layers, simulate
from .stream import Positions

_FRACTIONS = {
    n: tuple(Fraction(layer, 32) for layer in layers) for n, layers in {3: (2, 6, 15), 4: (2, 6, 15, 19)}.items()
}


@dataclass(frozen=True)
class RaterScore:
    """How raters score image tokens.

    Attributes:
        threshold: question tokens are raters if their relevance is "greater" than the mean (the code) or
            "greater_equal" (the paper).
        heads: heads that count: None all, an int that many, a Fraction that share (rounded half up, at least one),
            those with the most attention on the image (SparseVLM+).
        gravity: divide attention by what RoPE alone makes of the distance (SparseVLM+).
        gravity_floor: keep that divisor at least this far from zero; 0 reproduces the official code.
    """

    threshold: Threshold = "greater"
    heads: int | Fraction | None = None
    gravity: bool = False
    gravity_floor: float = 0.0

    def __post_init__(self):
        if self.heads is not None and self.heads <= 0:
            raise ValueError(f"heads must be a positive number or share, got {self.heads}")

    def head_count(self, heads: int) -> int | None:
        """Of a layer's `heads`; None for all of them.

        Raises:
            ValueError: if more heads are asked for than there are.
        """
        if self.heads is None:
            return None
        if isinstance(self.heads, int) and self.heads > heads:
            raise ValueError(f"expected at most {heads} scoring heads, got {self.heads}")
        return self.heads if isinstance(self.heads, int) else max(1, math.floor(self.heads * heads + Fraction(1, 2)))


@dataclass(frozen=True)
class StagePlan:
    """One stage's static shapes.

    Attributes:
        layer: the stage acts on the output of this layer.
        visual: the most visual tokens entering, V.
        kept, candidates, merged: the most kept, clustered and merged.
        capacity: slots of the stream that leaves.
        table: kept tokens for rows of 0, step, 2 step, ... visual tokens; None where the image decides.
    """

    layer: int
    visual: int
    kept: int
    candidates: int
    merged: int
    capacity: int
    table: tuple[int, ...] | None
    visual_step: int = 1

    @property
    def leaving(self) -> int:
        """The most visual tokens leaving."""
        return min(self.visual, self.kept + self.merged)


@dataclass(frozen=True)
class Bucket:
    """Static shape of a batch.

    Attributes:
        text: the most non-visual tokens in a row.
        visual: the most visual tokens in a row, a multiple of visual_step.
        visual_step: visual tokens of one image.
    """

    text: int
    visual: int
    visual_step: int = 1

    @property
    def capacity(self) -> int:
        return self.text + self.visual


@dataclass(frozen=True)
class SparsityConfig:
    """Everything that defines a pruned prefill; frozen and hashable, so it is a static argument of jit.

    Attributes:
        budget: how many tokens stay.
        layers: pruning acts on the outputs of these layers; None takes 2, 6, 15 of 32 (and 19 with
            `rank_layers`), at the same fractions of other depths.
        score: how tokens are scored.
        recycle: what becomes of the dropped; None drops them.
        positions: "repack" renumbers what is left, "keep" lets it keep its RoPE positions.
        stages: number of stages where `layers` is None, 3 or 4.
    """

    budget: Budget
    layers: tuple[int, ...] | None = None
    score: RaterScore = RaterScore()
    recycle: Recycle | None = Recycle()
    positions: Positions = "repack"
    stages: int = 3

    @classmethod
    def sparsevlm(cls, tokens: int | float | str | Fraction = 192) -> "SparsityConfig":
        """SparseVLM v1.5: fixed budgets, recycling, repacked positions.

        Args:
            tokens: mean number of visual tokens left after a layer (192) or a share ("1/3").
        """
        return cls(budget=Tokens.parse(tokens))

    @classmethod
    def sparsevlm_plus(cls, tokens: int | float | str | Fraction = 192) -> "SparsityConfig":
        """SparseVLM+ (the code's v2.0): gravity correction, 14 of 32 heads, kept positions, no recycling."""
        score = RaterScore(heads=Fraction(14, 32), gravity=True)
        return cls(budget=Tokens(parse_amount(tokens), PLUS_ANCHORS), score=score, recycle=None, positions="keep")

    @classmethod
    def sparsevlm_v1(cls, scale: float = 13.5, bias: float = 0.0, capacity: int | None = None) -> "SparsityConfig":
        """SparseVLM v1.0, rank-adaptive; (13.5, 0), (9, 6) and (0.8, 0) are the published 192, 128 and 64."""
        return cls(budget=RankScale(scale, bias, capacity=capacity), stages=4)

    @classmethod
    def sparsevlm_video(cls, capacity: int | None = None) -> "SparsityConfig":
        """The video branch: as many tokens as the attention's rank, once, after layer 1."""
        return cls(budget=RankScale(1.0, 0.0, capacity=capacity), layers=(1,))

    @classmethod
    def paper(cls, scale: float = 0.8, capacity: int | None = None) -> "SparsityConfig":
        """As the paper's text has it: eq. 7 with lambda = `scale`, >= raters, cosine assignment, clusters summed."""
        return cls(
            budget=RankDeficit(scale, capacity=capacity),
            score=RaterScore(threshold="greater_equal"),
            recycle=Recycle(assign="cosine", merge="sum"),
        )

    @classmethod
    def kept(cls, *kept: int, layers: tuple[int, ...] | None = None) -> "SparsityConfig":
        """SparseVLM v1.5 with its own schedule: `kept` tokens after each pruning layer."""
        return cls(budget=KeptTokens(kept), layers=layers)

    def pruning_layers(self, num_layers: int) -> tuple[int, ...]:
        """Raises ValueError if they do not fit a model of `num_layers`."""
        if self.layers is None:
            return default_layers(num_layers, _FRACTIONS[self.stages])
        check_layers(self.layers, num_layers)
        return self.layers

    def geometry(self, num_layers: int, bucket: Bucket) -> Geometry:
        return Geometry(num_layers, self.pruning_layers(num_layers), bucket.visual, bucket.visual_step)

    def plan(self, num_layers: int, bucket: Bucket) -> tuple[StagePlan, ...]:
        """Static shapes of every stage; none for a batch without images.

        Raises:
            ValueError: if layers or budget do not fit the model.
        """
        geometry = self.geometry(num_layers, bucket)
        if bucket.visual == 0:
            return ()
        table = self.budget.table(geometry, self.recycle)
        flow = None if table is None else simulate(table, geometry.row_counts, self.recycle)
        plans, visual, capacity = [], bucket.visual, bucket.capacity
        for stage, layer in enumerate(geometry.layers):
            if flow is None:
                kept, row = self.budget.bound(visual, bucket.text), None
                candidates = self.recycle.candidate_count(visual) if self.recycle else 0
                merged = self.recycle.merged_count(visual) if self.recycle else 0
                leaving = min(visual, kept + merged)
            else:
                kept, candidates, merged, leaving = (
                    int(field[stage].max()) for field in (flow.kept, flow.candidates, flow.merged, flow.leaving)
                )
                row = tuple(int(count) for count in flow.kept[stage])
            capacity = min(capacity, bucket.text + leaving)
            plans.append(StagePlan(layer, visual, kept, candidates, merged, capacity, row, bucket.visual_step))
            visual = leaving
        return tuple(plans)


__all__ = [
    "Bucket",
    "KeptTokens",
    "RankDeficit",
    "RankScale",
    "RaterScore",
    "SparsityConfig",
    "StagePlan",
    "Tokens",
    "V15_ANCHORS",
]
