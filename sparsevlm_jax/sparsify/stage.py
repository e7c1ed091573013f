"""A pruning stage: score, count, select, recycle, compact.

Two halves, so that a host may look at the counts in between and choose how long the next segment's program is:
`decide` says what stays, `apply` makes the shorter stream.

B batch · L slots · R raters · V visual tokens · N heads · K kv heads · H head dim · D model dim
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .budget import CountInputs
from .config import SparsityConfig, StagePlan
from .recycle import Recycled
from .scorer import Attention, Scores, StageInputs
from .select import Selection
from .stream import TokenStream, compact, slots_of, to_slots


class Decision(NamedTuple):
    """What a stage found. Visual tokens are numbered 0, 1, ... as they stand in the stream that enters.

    `visual_slot` and `rater_slot` say where each sits, `wanted` how many tokens should stay before `plan.kept` bounds
    it.
    """

    visual_slot: Int[Array, "B V"]
    visual_count: Int[Array, " B"]
    rater_slot: Int[Array, "B R"]
    rater_count: Int[Array, " B"]
    scores: Scores
    wanted: Int[Array, " B"]
    selection: Selection


def decide(
    stream: TokenStream,
    attention: Attention | None,
    visual_total: Int[Array, " B"],
    plan: StagePlan,
    config: SparsityConfig,
) -> Decision:
    """Scores the visual tokens of `stream`, which has passed `plan.layer`, and selects those that stay.

    Args:
        attention: that layer's queries and keys; None before layer 0.
        visual_total: visual tokens of each row's prompt, before any pruning.
    """
    visual_slot, is_visual = slots_of(stream.is_visual, plan.visual)
    rater_slot, is_rater = slots_of(stream.is_rater, plan.bucket.text)
    visual_count, rater_count = is_visual.sum(axis=1), is_rater.sum(axis=1)
    inputs = StageInputs(stream, attention, visual_slot, is_visual, rater_slot, is_rater)
    scores = config.score(inputs)
    if plan.table is not None:
        wanted = jnp.asarray(plan.table)[visual_total // plan.bucket.visual_step]
    else:
        if scores.attention_map is None:
            raise ValueError(f"{config.budget} counts by attention, which {type(config.score).__name__} does not give")
        wanted = config.budget.count(CountInputs(visual_count, rater_count, scores.attention_map))
    bounded = jnp.minimum(wanted, plan.kept)
    selection = config.select(scores.values, inputs.visual_hidden, is_visual, bounded, capacity=plan.kept)
    return Decision(visual_slot, visual_count, rater_slot, rater_count, scores, wanted, selection)


def apply(
    stream: TokenStream,
    decision: Decision,
    plan: StagePlan,
    config: SparsityConfig,
    *,
    noise: Float[Array, "B V"] | None = None,
) -> tuple[TokenStream, Recycled | None]:
    """The stream of `plan.capacity` slots that `decision` leaves, and how the dropped were recycled."""
    selection, slot = decision.selection, decision.visual_slot
    is_visual = jnp.arange(slot.shape[1]) < decision.visual_count[:, None]
    is_kept = ~stream.is_visual | to_slots(selection.is_kept, slot, is_visual, stream.is_visual.shape[1])
    if config.recycle is None or plan.merged == 0:
        batch, _, dim = stream.hidden.shape
        nothing = jnp.zeros((batch, 0), jnp.int32)
        merged, position, count = jnp.zeros((batch, 0, dim), stream.hidden.dtype), nothing, jnp.zeros(batch, jnp.int32)
        recycled = None
    else:
        recycled = config.recycle(
            jnp.take_along_axis(stream.hidden, slot[..., None], axis=1),
            selection,
            decision.visual_count,
            candidate_capacity=plan.candidates,
            merged_capacity=plan.merged,
            noise=noise,
        )
        merged, count = recycled.merged, recycled.merged_count
        # No version defines kept positions together with recycling: a merged token takes its center's position.
        center_slot = jnp.take_along_axis(slot, recycled.centers, axis=1)
        position = jnp.take_along_axis(stream.position_ids, center_slot, axis=1)
    pruned = compact(stream, is_kept, merged, position, count, capacity=plan.capacity, positions=config.positions)
    return pruned, recycled
