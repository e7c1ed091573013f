"""A pruning stage: score, count, select, recycle, compact.

Two halves, so that a host may look at the counts in between and choose how long the next segment's program is:
`decide` says what stays, `apply` makes the shorter stream.

B batch · L slots · R raters · V visual tokens · N heads · K kv heads · H head dim · D model dim
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .budget import AdaptiveBudget, CountInputs
from .config import SparsityConfig, StagePlan
from .recycle import Recycled, RecycleInputs
from .scorer import Ahead, Attention, Scores, StageInputs
from .select import Selection, keep_first
from .stream import TokenStream, at_slots, compact, slots_of, to_slots
from .tower import ImageContext

_HIGHEST = jax.lax.Precision.HIGHEST


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
    images: ImageContext | None = None,
    ahead: Ahead | None = None,
) -> Decision:
    """Scores the visual tokens of `stream`, which has passed `plan.layer` (for a method that does not need "hidden",
    that layer's attention at least), and selects those that stay.

    Args:
        attention: that layer's queries and keys; None before layer 0.
        visual_total: visual tokens of each row's prompt, before any pruning.
        images: what is known of each visual token, at the first stage.
        ahead: what comes after the stage, for scorers that ask.
    """
    visual_slot, is_visual = slots_of(stream.is_visual, plan.visual)
    rater_slot, is_rater = slots_of(stream.is_rater, plan.bucket.text)
    visual_count, rater_count = is_visual.sum(axis=1), is_rater.sum(axis=1)
    asked = stream if "hidden" in config.score.needs else stream._replace(hidden=None)
    inputs = StageInputs(asked, attention, visual_slot, is_visual, rater_slot, is_rater, images=images, ahead=ahead)
    scores = config.score(inputs)
    if plan.table is not None:
        wanted = plan.kept_of(visual_total)
    else:
        assert isinstance(config.budget, AdaptiveBudget)
        wanted = config.budget.count(CountInputs(visual_count, rater_count, scores.attention_map, scores.values))
    bounded = jnp.minimum(wanted, plan.kept)
    features = scores.features
    if features is None and "hidden" in config.select.needs:
        features = at_slots(stream.hidden, visual_slot)
    selection = config.select(scores.values, features, is_visual, bounded, capacity=plan.kept)
    return Decision(visual_slot, visual_count, rater_slot, rater_count, scores, wanted, selection)


def needed(stream: TokenStream, decision: Decision, plan: StagePlan) -> Bool[Array, "B L"]:
    """The slots whose hidden states `apply` looks at, for a method that does not need "hidden": text, kept tokens and
    candidates, at most `plan.needed` of each row."""
    is_visual = jnp.arange(decision.visual_slot.shape[1]) < decision.visual_count[:, None]
    best = keep_first(decision.selection.order, is_visual, decision.selection.count + plan.candidates)
    is_valid = jnp.arange(stream.is_visual.shape[1]) < stream.length[:, None]
    return (is_valid & ~stream.is_visual) | to_slots(best.is_kept, stream.is_visual)


def reordered(stream: TokenStream, decision: Decision) -> TokenStream:
    """`stream` whose kept visual tokens stand in the order that the scores say. A token's position goes with it."""
    is_kept, turn = decision.selection.is_kept, decision.scores.order
    assert turn is not None
    visual = jnp.arange(is_kept.shape[1])
    wanted = jnp.argsort(jnp.where(is_kept, turn, jnp.iinfo(jnp.int32).max), axis=1, stable=True)
    standing = jnp.argsort(~is_kept, axis=1, stable=True)
    rows = jnp.arange(is_kept.shape[0])[:, None]
    source = jnp.broadcast_to(visual, is_kept.shape).at[rows, standing].set(wanted, unique_indices=True)
    # The dropped stand last in both orders, so each of them is its own source.
    slot = at_slots(decision.visual_slot, source)
    slot = jnp.where(stream.is_visual, to_slots(slot, stream.is_visual), jnp.arange(stream.is_visual.shape[1]))
    fields = {name: getattr(stream, name) for name in ("hidden", "position_ids", "deepstack", "size")}
    return stream._replace(**jax.tree.map(lambda field: at_slots(field, slot), fields))


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
    if decision.scores.order is not None:
        stream = reordered(stream, decision)
    is_kept = ~stream.is_visual | to_slots(selection.is_kept, stream.is_visual)
    shorten = partial(compact, capacity=plan.capacity, positions=config.positions)
    if config.recycle is None or plan.candidates == 0:
        batch, _, dim = stream.hidden.shape
        nothing = jnp.zeros((batch, 0, *stream.position_ids.shape[2:]), jnp.int32)
        merged, count = jnp.zeros((batch, 0, dim), stream.hidden.dtype), jnp.zeros(batch, jnp.int32)
        deepstack = jax.tree.map(lambda _: merged, stream.deepstack)
        size = jnp.zeros((batch, 0))
        return shorten(stream, is_kept, merged, nothing, count, merged_size=size, merged_deepstack=deepstack), None
    if "sizes" in config.recycle.needs and stream.size is None:
        stream = stream._replace(size=jnp.ones(stream.is_visual.shape))
    inputs = RecycleInputs(
        hidden=at_slots(stream.hidden, slot),
        selection=selection,
        visual_count=decision.visual_count,
        candidate_capacity=plan.candidates,
        merged_capacity=plan.merged,
        scores=decision.scores,
        size=None if stream.size is None else at_slots(stream.size, slot),
        noise=noise,
    )
    recycled = config.recycle(inputs)
    # No version defines kept positions together with recycling: a merged token takes its center's position.
    position = at_slots(stream.position_ids, at_slots(slot, recycled.centers))
    candidate_slot = at_slots(slot, recycled.candidates)
    deepstack = jax.tree.map(
        lambda field: jnp.einsum("BMC,BCD->BMD", recycled.weights, at_slots(field, candidate_slot), precision=_HIGHEST),
        stream.deepstack,
    )
    merged, count = recycled.merged, recycled.merged_count
    left = shorten(stream, is_kept, merged, position, count, merged_size=recycled.size, merged_deepstack=deepstack)
    return left, recycled
