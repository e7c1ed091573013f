"""A sparsification method as one value: where it acts, how it scores, how many it keeps, what becomes of the rest.

Presets name the published versions; every difference between them is a field, so any mixture can be studied:

    SparsityConfig.sparsevlm(tokens=192)
    dataclasses.replace(SparsityConfig.sparsevlm(tokens="1/3"), recycle=None, positions="keep")
"""

import functools
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Int

from ..checks import choice, each, fraction, optional, part, settle, text, whole
from .amount import Share
from .budget import (
    AdaptiveBudget,
    Budget,
    FixedBudget,
    KeptTokens,
    RankDeficit,
    RankScale,
    TokenBudget,
    parse_budget,
)
from .needs import Need, needs_of
from .raters import Rule
from .recycle import Recycle, Recycler
from .schedule import PLUS, Bucket, Geometry, check_layers, default_layers, of_32, simulate
from .scorer import RaterScore, Scorer
from .select import Selector, TopK
from .stream import Positions
from .tower import TowerMerging, TowerReduction

Adaptive = Literal["padded", "bucketed"]
AtDepth = Literal["after", "before"]


@dataclass(frozen=True)
class StagePlan:
    """One stage's static shapes.

    Attributes:
        layer: the stage acts on the output of this layer; -1 before the first.
        visual: the most visual tokens entering, V.
        kept, candidates, merged, leaving: the most kept, clustered, merged, and leaving in all.
        table: kept tokens of a row without visual tokens in the prompt, then of rows of `bucket.fewest` to
            `bucket.visual`; None where the image decides.
    """

    layer: int
    visual: int
    kept: int
    candidates: int
    merged: int
    leaving: int
    table: tuple[int, ...] | None
    bucket: Bucket

    def kept_of(self, visual_total: Int[Array, " B"]) -> Int[Array, " B"]:
        """Kept tokens of rows with so many visual tokens in the prompt, by the table."""
        return jnp.asarray(self.table)[jnp.maximum(visual_total - self.bucket.fewest + 1, 0)]

    @property
    def capacity(self) -> int:
        """Slots of the stream that leaves."""
        return self.bucket.text + self.leaving

    @property
    def needed(self) -> int:
        """The most tokens that are kept, candidates or text."""
        return self.bucket.text + min(self.kept + self.candidates, self.visual)

    @property
    def skips(self) -> bool:
        """Whether some of the tokens that enter are none of these."""
        return self.layer >= 0 and self.kept + self.candidates < self.visual


def _merging(name: str, value: Any) -> TowerMerging | TowerReduction:
    """Either of two kinds; who has neither's attributes is refused as neither."""
    try:
        return part("a TowerMerging", "needs", "schedule", "merge", "cost")(name, value)
    except ValueError:
        kinds = "a TowerMerging (with schedule, merge) or a TowerReduction"
        return part(kinds, "needs", "count", "reduce", "cost")(name, value)


def _budget(name: str, value: Any) -> Budget:
    """Either of two kinds, as in `_merging`."""
    try:
        return part("a FixedBudget", "table", "check", "number")(name, value)
    except ValueError:
        kinds = "a FixedBudget (with table, check, number) or an AdaptiveBudget"
        return part(kinds, "needs", "bound", "count", "number", "cost")(name, value)


@dataclass(frozen=True, kw_only=True)
class SparsityConfig:
    """Everything that defines a pruned prefill; frozen and hashable, so it is a static argument of jit.

    Attributes:
        budget: how many tokens stay at each stage.
        layers: a stage acts on the output of each of these layers; -1 is before the first. None takes those at
            `depths`.
        depths: fractions of the depth where `layers` is None.
        at_depth: whether a stage comes "after" the layer at such a depth, as SparseVLM's do, or "before" it, as
            PyramidDrop's.
        raters: which question tokens score, where the scorer asks them.
        score: how visual tokens are scored.
        select: how scores become a choice.
        recycle: what becomes of the dropped; None drops them.
        positions: "repack" renumbers what is left, "keep" lets it keep its RoPE positions.
        adaptive: for budgets that depend on the image. "padded": one program, each stage bounded by the budget's
            capacity. "bucketed": the host reads the counts and picks the smallest program that holds them.
        merging: what merges tokens already in the vision tower, or between it and the projector; the stage then drops
            the places left empty.
        name: for reports.
    """

    budget: Budget
    layers: tuple[int, ...] | None = None
    depths: tuple[Fraction, ...] = of_32(2, 6, 15)
    at_depth: AtDepth = "after"
    raters: Rule = "greater"
    score: Scorer = RaterScore()
    select: Selector = TopK()
    recycle: Recycler | None = Recycle()
    positions: Positions = "repack"
    adaptive: Adaptive = "bucketed"
    merging: TowerMerging | TowerReduction | None = None
    name: str = "custom"

    def __post_init__(self):
        settle(
            self,
            budget=_budget,
            layers=optional(each(whole(-1))),
            depths=each(fraction("a fraction of the depth from -1 to 1", lambda depth: -1 <= depth <= 1)),
            at_depth=choice(AtDepth),
            raters=choice(Rule),
            score=part("a Scorer", "needs", "cost", "__call__"),
            select=part("a Selector", "needs", "cost", "__call__"),
            recycle=optional(part("a Recycler", "needs", "candidate_count", "merged_count", "cost", "__call__")),
            positions=choice(Positions),
            adaptive=choice(Adaptive),
            merging=optional(_merging),
            name=text,
        )

    @classmethod
    def sparsevlm(cls, tokens: TokenBudget = 192) -> "SparsityConfig":
        """SparseVLM v1.5: fixed budgets, recycling, repacked positions.

        Args:
            tokens: mean number of visual tokens left after a layer (192) or a share ("1/3").
        """
        return cls(budget=parse_budget(tokens), name="sparsevlm")

    @classmethod
    def sparsevlm_plus(cls, tokens: TokenBudget = 192) -> "SparsityConfig":
        """SparseVLM+ (the code's v2.0): gravity correction, 14 of 32 heads, kept positions, no recycling."""
        return cls(
            budget=parse_budget(tokens, PLUS),
            score=RaterScore(heads=Share(Fraction(14, 32)), gravity=True),
            recycle=None,
            positions="keep",
            name="sparsevlm-plus",
        )

    @classmethod
    def sparsevlm_v1(cls, scale: float = 13.5, bias: float = 0.0, capacity: int | None = None) -> "SparsityConfig":
        """SparseVLM v1.0, rank-adaptive; (13.5, 0), (9, 6) and (0.8, 0) are the published 192, 128 and 64."""
        budget = RankScale(scale, bias, capacity=capacity)
        return cls(budget=budget, depths=of_32(2, 6, 15, 19), name="sparsevlm-v1")

    @classmethod
    def sparsevlm_video(cls, capacity: int | None = None) -> "SparsityConfig":
        """The video branch: as many tokens as the attention's rank, once, after layer 1."""
        return cls(budget=RankScale(1.0, 0.0, capacity=capacity), layers=(1,), name="sparsevlm-video")

    @classmethod
    def paper(cls, scale: float = 0.8, capacity: int | None = None) -> "SparsityConfig":
        """As the paper's text has it: eq. 7 with lambda = `scale`, >= raters, cosine assignment, clusters summed. What
        it leaves open as the code: floor(tau N) + 1 candidates, and squared distances over D in eq. 8."""
        return cls(
            budget=RankDeficit(scale, capacity=capacity),
            raters="greater_equal",
            recycle=Recycle(assign="cosine", merge="sum"),
            name="sparsevlm-paper",
        )

    @classmethod
    def kept(cls, *kept: int, layers: tuple[int, ...] | None = None) -> "SparsityConfig":
        """SparseVLM v1.5 with its own schedule: `kept` tokens after each pruning layer."""
        return cls(budget=KeptTokens(kept), layers=layers, name="sparsevlm")

    def pruning_layers(self, num_layers: int) -> tuple[int, ...]:
        """Raises ValueError if they do not fit a model of `num_layers`."""
        layers = self.layers
        if layers is None:
            layers = default_layers(num_layers, self.depths, before=self.at_depth == "before")
        check_layers(layers, num_layers)
        needs = self.needs
        if layers and layers[-1] == num_layers - 1 and "next_layer" in needs:
            raise ValueError(
                f"{type(self.score).__name__} scores by the layer after a stage, and there is none after the last of "
                f"{num_layers} layers, got {layers}"
            )
        if layers and layers[0] < 0 and "attention" in needs:
            raise ValueError(f"{type(self.score).__name__} scores by attention, and there is none before layer 0")
        if needs & {"tower", "cells"} and len(layers) > 1:
            raise ValueError(
                f"{self.name} goes by what the vision tower says or by tokens' places, which the first stage alone "
                f"knows: expected to choose in one stage, got {layers}"
            )
        return layers

    @functools.cached_property
    def needs(self) -> frozenset[Need]:
        """What the parts look at; see `Need`."""
        budget = self.budget if isinstance(self.budget, AdaptiveBudget) else None
        return needs_of((budget, self.score, self.select, self.recycle, self.merging))

    def geometry(self, num_layers: int, bucket: Bucket) -> Geometry:
        return Geometry(num_layers, self.pruning_layers(num_layers), bucket.visual, bucket.fewest)

    def check(self, num_layers: int, visual: int) -> None:
        """Raises ValueError if a row of so many visual tokens cannot be brought down to a fixed budget: the layers
        before the first stage see them all. Such a row is planned for all the same, and gets the least there is."""
        if visual and isinstance(self.budget, FixedBudget):
            self.budget.check(Geometry(num_layers, self.pruning_layers(num_layers), visual, visual))

    def plan(self, num_layers: int, bucket: Bucket) -> tuple[StagePlan, ...]:
        """Static shapes of every stage; none for a batch without images.

        Raises:
            ValueError: if the layers do not fit the model.
        """
        return _plan(self, num_layers, bucket)

    def bound(self, layer: int, visual: int, bucket: Bucket) -> StagePlan:
        """A stage after `layer` that at most `visual` tokens enter and whose counts depend on the image."""
        assert isinstance(self.budget, AdaptiveBudget)
        kept = self.budget.bound(visual, bucket)
        candidates = int(self.recycle.candidate_count(visual)) if self.recycle else 0
        merged = int(self.recycle.merged_count(visual, kept)) if self.recycle else 0
        return StagePlan(layer, visual, kept, candidates, merged, min(visual, kept + merged), None, bucket)


@functools.lru_cache(maxsize=64)
def _plan(config: SparsityConfig, num_layers: int, bucket: Bucket) -> tuple[StagePlan, ...]:
    """`SparsityConfig.plan`, which every prompt asks for: of the same bucket, mostly."""
    geometry = config.geometry(num_layers, bucket)
    if bucket.visual == 0:
        return ()
    flow = None
    if isinstance(config.budget, FixedBudget):
        table = config.budget.table(geometry, config.recycle)
        flow = simulate(table, geometry.row_counts, config.recycle)
    plans, visual = [], bucket.visual
    for stage, layer in enumerate(geometry.layers):
        if flow is None:
            plan = config.bound(layer, visual, bucket)
        else:
            plan = StagePlan(
                layer,
                visual,
                kept=int(flow.kept[stage].max()),
                candidates=int(flow.candidates[stage].max()),
                merged=int(flow.merged[stage].max()),
                leaving=int(flow.leaving[stage].max()),
                table=tuple(flow.kept[stage].tolist()),
                bucket=bucket,
            )
        visual = plan.leaving
        plans.append(plan)
    return tuple(plans)
