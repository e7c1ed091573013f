"""Prefill with pruning: the layers in segments, a stage between each two, and a cache as long as each segment was.

    embed -> raters -> layers 0..2 -> stage -> layers 3..6 -> stage -> ... -> norm -> logits of the last token

`prefill` is one pure function, one program. `segments`, `start` and `run_segment` are its pieces, for callers that want
the host to look at the counts in between.

B batch · L tokens · A position axes · V visual tokens · S stages · D model dim · W vocabulary
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..models.decoders.llama import CausalLM
from ..models.families.family import Encoded, ModelConfig, language_model
from ..models.nn.attention import Implementation
from ..sparsify import (
    Bucket,
    Decision,
    ImageContext,
    Raters,
    Recycled,
    SparsityConfig,
    StagePlan,
    TokenStream,
    apply,
    at_slots,
    question_mask,
    select_raters,
    slots_of,
)
from .segment import DecodeState, Stage, join, last_logits, run_segment


class PrefillInputs(NamedTuple):
    """A batch, left-aligned: token ids, and how many of each row are valid; the visual token that stands in each slot,
    as a row of `encoded`, -1 for words; RoPE positions, and that of the token which follows; which words may rate; and
    the visual tokens of all pictures, which rows may share."""

    input_ids: Int[Array, "B L"]
    length: Int[Array, " B"]
    visual_index: Int[Array, "B L"]
    position_ids: Int[Array, "B L *A"]
    next_position: Int[Array, " B"]
    is_question: Bool[Array, "B L"]
    encoded: Encoded

    @classmethod
    def of(
        cls,
        input_ids: Int[Array, "B L"],
        length: Int[Array, " B"],
        features: Float[Array, "I V D"],
        image_token_id: int,
        context: ImageContext | None = None,
    ) -> "PrefillInputs":
        """Of ids with the image token as often as pictures have tokens, and these in row-major order; positions count
        from 0, and the words after the last picture may rate."""
        slot = jnp.arange(input_ids.shape[1])
        is_valid = slot < length[:, None]
        is_visual = (input_ids == image_token_id) & is_valid
        order = jnp.cumsum(is_visual.reshape(-1)).reshape(is_visual.shape) - 1
        return cls(
            input_ids,
            length,
            jnp.where(is_visual, order, -1),
            jnp.broadcast_to(slot, is_visual.shape),
            length,
            question_mask(is_visual, is_valid),
            Encoded(features.reshape(-1, features.shape[-1]), context),
        )


class StageTrace(NamedTuple):
    """Every decision of one stage, and the stream before and after it (without hidden states)."""

    decision: Decision
    recycled: Recycled | None
    position_ids_in: Int[Array, "B L"]
    position_ids_out: Int[Array, "B C"]
    length_in: Int[Array, " B"]
    length_out: Int[Array, " B"]
    hidden_in: Float[Array, "B L D"]
    hidden_out: Float[Array, "B C D"]


class Trace(NamedTuple):
    """What `prefill(..., trace=True)` saw."""

    raters: Raters
    stages: tuple[StageTrace, ...]


class PrefillResult(NamedTuple):
    """Logits of each row's last token, float32; the state to decode from; per stage and row the visual tokens that left
    it and those its budget wanted to keep (more than the stage's capacity: an overflow)."""

    logits: Float[Array, "B W"]
    state: DecodeState
    visual_count: Int[Array, "S B"]
    wanted: Int[Array, "S B"]
    trace: Trace | None


def prefill(
    params: dict,
    inputs: PrefillInputs,
    *,
    config: ModelConfig,
    sparsity: SparsityConfig | None,
    bucket: Bucket,
    implementation: Implementation,
    new_tokens: int = 0,
    trace: bool = False,
    noise: Mapping[int, Float[Array, "B V"]] | None = None,
) -> PrefillResult:
    """Runs the prompt through the decoder, pruning visual tokens on the way. All after `*` but `noise` is static.

    Args:
        sparsity: the method; None runs dense.
        bucket: bounds of the rows; `inputs` must fit it (checked by the caller on the host, not here).
        new_tokens: room in the cache behind the prompt.
        noise: per pruning layer, the random numbers of the official clustering; see `recycle`.
    """
    lm = language_model(params, config)
    stream, raters = start(lm, inputs, sparsity=sparsity, bucket=bucket)
    visual_total = stream.is_visual.sum(axis=1)
    states, stages, counts, wanted = [], [], [], []
    for layers, plan in segments(config.text.num_hidden_layers, sparsity, bucket):
        stage = None
        if plan is not None and sparsity is not None:
            images = None if counts else context_of_rows(inputs, plan.visual)
            stage = Stage(plan, sparsity, visual_total, images)
        whole = trace and stage is not None
        run = run_segment(lm, stream, layers, stage, implementation=implementation, new_tokens=new_tokens, whole=whole)
        stream = run.stream
        states.append(run.state)
        if stage is None or run.decision is None:
            continue
        pruned, recycled = apply(
            stream, run.decision, stage.plan, stage.sparsity, noise=(noise or {}).get(stage.plan.layer)
        )
        counts.append(pruned.is_visual.sum(axis=1))
        wanted.append(run.decision.wanted)
        if trace:
            stages.append(_trace(stream, pruned, run.decision, recycled))
        stream = pruned
    empty = jnp.zeros((0, inputs.length.shape[0]), jnp.int32)
    return PrefillResult(
        logits=last_logits(lm, stream),
        state=join(states),
        visual_count=jnp.stack(counts) if counts else empty,
        wanted=jnp.stack(wanted) if wanted else empty,
        trace=Trace(raters, tuple(stages)) if trace else None,
    )


def segments(num_layers: int, sparsity: SparsityConfig | None, bucket: Bucket) -> list[tuple[range, StagePlan | None]]:
    """Layers that run on the same tokens, and the stage behind each segment (None: no stage)."""
    plans = sparsity.plan(num_layers, bucket) if sparsity else ()
    ends = [plan.layer + 1 for plan in plans]
    starts = [0, *ends]
    result: list[tuple[range, StagePlan | None]] = [
        (range(first, end), plan) for first, end, plan in zip(starts, ends, plans, strict=False)
    ]
    return [*result, (range(starts[-1], num_layers), None)]


def start(
    lm: CausalLM, inputs: PrefillInputs, *, sparsity: SparsityConfig | None, bucket: Bucket
) -> tuple[TokenStream, Raters]:
    """Embeddings with the pictures filled in, and the raters chosen on them (none where nothing is pruned)."""
    is_visual = inputs.visual_index >= 0
    hidden = lm.language_model.embed(jnp.where(is_visual, 0, inputs.input_ids))
    hidden = _fill(hidden, inputs.visual_index, inputs.encoded.tokens)
    deepstack = tuple(_fill(jnp.zeros_like(hidden), inputs.visual_index, each) for each in inputs.encoded.deepstack)
    if sparsity is None or bucket.visual == 0:
        nothing = jnp.zeros_like(is_visual)
        raters = Raters(nothing, nothing.astype(jnp.float32))
    else:
        raters = select_raters(
            hidden,
            is_visual,
            inputs.is_question,
            question_capacity=bucket.text,
            rule=sparsity.raters,
        )
    stream = TokenStream(
        hidden=hidden,
        position_ids=inputs.position_ids,
        is_visual=is_visual,
        is_rater=raters.is_rater,
        length=inputs.length,
        next_position=inputs.next_position,
        deepstack=deepstack,
    )
    return stream, raters


def _fill(
    words: Float[Array, "B L D"], visual_index: Int[Array, "B L"], tokens: Float[Array, "V D"]
) -> Float[Array, "B L D"]:
    """`words`, and in the slots of visual tokens these."""
    if tokens.shape[0] == 0:
        return words
    return jnp.where(visual_index[..., None] >= 0, tokens.astype(words.dtype)[jnp.maximum(visual_index, 0)], words)


def context_of_rows(inputs: PrefillInputs, capacity: int) -> ImageContext | None:
    """What is known of each row's visual tokens, [B, V, ...]; `media` numbers the pictures as the row shows them."""
    context = inputs.encoded.context
    if context is None:
        return None
    slot, is_visual = slots_of(inputs.visual_index >= 0, capacity)
    token = jnp.where(is_visual, at_slots(inputs.visual_index, slot), 0)
    rows = jax.tree.map(lambda field: field[token], context)
    if rows.media is None:
        return rows
    # A picture that stands there twice begins anew, so its number alone does not tell where it ends.
    is_first = (token[:, 1:] != token[:, :-1] + 1) | (rows.media[:, 1:] != rows.media[:, :-1])
    return rows._replace(media=jnp.pad(jnp.cumsum(is_first, axis=1), ((0, 0), (1, 0))))


def _trace(stream: TokenStream, pruned: TokenStream, decision: Decision, recycled: Recycled | None) -> StageTrace:
    return StageTrace(
        decision=decision,
        recycled=recycled,
        position_ids_in=stream.position_ids,
        position_ids_out=pruned.position_ids,
        length_in=stream.length,
        length_out=pruned.length,
        hidden_in=stream.hidden,
        hidden_out=pruned.hidden,
    )
