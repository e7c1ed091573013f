"""Prefill with pruning: the layers in segments, a stage between each two, and a cache as long as each segment was.

    embed -> raters -> layers 0..2 -> stage -> layers 3..6 -> stage -> ... -> norm -> logits of the last token

`prefill` is one pure function, one program. `segments`, `start` and `run_segment` are its pieces, for callers that want
the host to look at the counts in between.

B batch · L tokens · I images · V visual tokens · S stages · D model dim · W vocabulary
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..models.decoders.llama import CausalLM
from ..models.families import llava
from ..models.families.llava import LlavaConfig
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
    question_mask,
    select_raters,
)
from .segment import DecodeState, Stage, join, last_logits, run_segment


class PrefillInputs(NamedTuple):
    """A batch: ids with image tokens expanded, left-aligned; the valid length of each row; the visual embeddings of all
    its images, in the order of their marks (row-major); and what the tower says of them, for methods that ask."""

    input_ids: Int[Array, "B L"]
    length: Int[Array, " B"]
    image_features: Float[Array, "I V D"]
    image_context: ImageContext | None = None


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
    config: LlavaConfig,
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
    lm = llava.language_model(params, config)
    stream, raters = start(lm, inputs, config=config, sparsity=sparsity, bucket=bucket)
    visual_total = stream.is_visual.sum(axis=1)
    states, stages, counts, wanted = [], [], [], []
    for layers, plan in segments(config.text.num_hidden_layers, sparsity, bucket):
        stage = None
        if plan is not None and sparsity is not None:
            images = None if counts else context_of_rows(inputs.image_context, stream.is_visual, plan.visual)
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
    lm: CausalLM, inputs: PrefillInputs, *, config: LlavaConfig, sparsity: SparsityConfig | None, bucket: Bucket
) -> tuple[TokenStream, Raters]:
    """Embeddings with the images filled in, and the raters chosen on them (none where nothing is pruned)."""
    slot = jnp.arange(inputs.input_ids.shape[1])
    is_valid = slot < inputs.length[:, None]
    is_visual = (inputs.input_ids == config.image_token_id) & is_valid
    hidden = llava.embed(lm, inputs.input_ids, is_visual, inputs.image_features)
    if sparsity is None or bucket.visual == 0:
        nothing = jnp.zeros_like(is_visual)
        raters = Raters(nothing, nothing.astype(jnp.float32))
    else:
        raters = select_raters(
            hidden,
            is_visual,
            question_mask(is_visual, is_valid),
            question_capacity=bucket.text,
            rule=sparsity.raters,
        )
    position_ids = jnp.broadcast_to(slot, is_visual.shape)
    return TokenStream(hidden, position_ids, is_visual, raters.is_rater, inputs.length), raters


def context_of_rows(context: ImageContext | None, is_visual: Bool[Array, "B L"], capacity: int) -> ImageContext | None:
    """What the tower says of each row's visual tokens, [B, V, ...], from [I, V, ...]: numbered as in
    `models.families.llava.embed`."""
    if context is None:
        return None
    count = is_visual.sum(axis=1)
    token = (jnp.cumsum(count) - count)[:, None] + jnp.arange(capacity)

    def gather(field):
        tokens = field.reshape(-1, *field.shape[2:])
        return tokens[jnp.minimum(token, tokens.shape[0] - 1)]

    return jax.tree.map(gather, context)


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
