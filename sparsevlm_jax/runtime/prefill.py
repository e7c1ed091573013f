"""Prefill with pruning: the layers in segments, a stage between each two, and a cache as long as each segment was.

    embed -> raters -> layers 0..2 -> stage -> layers 3..6 -> stage -> ... -> norm -> logits of the last token

`prefill` is one pure function, one program. `segments`, `start`, `run_layers` and `finish_and_decide` are its pieces,
for callers that want the host to look at the counts in between.

A layer is two halves, attention and feed-forward. The keys and values that a cache needs come from the first; the
second, the larger, runs on the tokens that somebody reads: in the last layer that is one, and in a pruning layer, where
the method decides without hidden states, those that stay and those that are recycled.

B batch · L tokens · I images · V visual tokens · S stages · D model dim · W vocabulary
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..models.decoders.llama import CausalLM
from ..models.families import llava
from ..models.families.llava import LlavaConfig
from ..models.nn.attention import Implementation, causal_attention
from ..models.nn.cache import KVCache, with_room
from ..sparsify import (
    Ahead,
    Attention,
    Bucket,
    Decision,
    ImageContext,
    Raters,
    Recycled,
    SparsityConfig,
    StagePlan,
    TokenStream,
    apply,
    decide,
    needed,
    question_mask,
    select_raters,
    slots_of,
    to_slots,
)


class PrefillInputs(NamedTuple):
    """A batch: ids with image tokens expanded, left-aligned; the valid length of each row; the visual embeddings of all
    its images, in the order of their marks (row-major); and what the tower says of them, for methods that ask."""

    input_ids: Int[Array, "B L"]
    length: Int[Array, " B"]
    image_features: Float[Array, "I V D"]
    image_context: ImageContext | None = None


class DecodeState(NamedTuple):
    """What decoding continues from: the cache, and the position of each layer's next token, [layers, B] (layers differ
    where a stage has repacked positions)."""

    cache: KVCache
    next_position: Int[Array, "L B"]


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


class LayerOutputs(NamedTuple):
    """A segment's keys and values, layer by layer, and the last layer's queries and keys, to score with (None for an
    empty segment: a stage before layer 0)."""

    k: list[Array]
    v: list[Array]
    attention: Attention | None


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
        half, outputs = run_layers(lm, stream, layers, implementation=implementation)
        states.append(segment_state(stream, outputs, new_tokens))
        if plan is None or sparsity is None:
            stream = feed_forward(lm, last_token(half), layers)
            continue
        images = None if counts else context_of_rows(inputs.image_context, stream.is_visual, plan.visual)
        stream, decision = finish_and_decide(
            lm, half, layers, outputs.attention, visual_total, plan, sparsity, images, whole=trace
        )
        pruned, recycled = apply(stream, decision, plan, sparsity, noise=(noise or {}).get(plan.layer))
        counts.append(pruned.is_visual.sum(axis=1))
        wanted.append(decision.wanted)
        if trace:
            stages.append(_trace(stream, pruned, decision, recycled))
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


def run_layers(
    lm: CausalLM, stream: TokenStream, layers: range, *, implementation: Implementation
) -> tuple[TokenStream, LayerOutputs]:
    """Runs `layers` on the stream, causally, but for the last one's feed-forward: `feed_forward` runs that on the
    tokens that somebody reads."""
    hidden, table = stream.hidden, lm.rotary(stream.position_ids)
    bias = None if stream.size is None else jnp.log(stream.size)

    def attend(q, k, v):
        return causal_attention(q, k, v, stream.length, implementation=implementation, key_bias=bias), (q, k, v)

    keys, values, q = [], [], None
    for index in layers:
        layer = lm.language_model.layers[index]
        hidden, (q, k, v) = layer.attend(hidden, table, attend)
        hidden = hidden if index == layers[-1] else layer.feed_forward(hidden)
        keys.append(k)
        values.append(v)
    attention = scored_by(lm, q, keys[-1], stream) if q is not None else None
    return stream._replace(hidden=hidden), LayerOutputs(keys, values, attention)


def feed_forward(lm: CausalLM, stream: TokenStream, layers: range) -> TokenStream:
    """The feed-forward of the last of `layers`, which `run_layers` leaves out and which is two thirds to four fifths of
    a layer's work. No layers: the stream as it is."""
    if not layers:
        return stream
    return stream._replace(hidden=lm.language_model.layers[layers[-1]].feed_forward(stream.hidden))


def finish_and_decide(
    lm: CausalLM,
    half: TokenStream,
    layers: range,
    attention: Attention | None,
    visual_total: Int[Array, " B"],
    plan: StagePlan,
    sparsity: SparsityConfig,
    images: ImageContext | None = None,
    *,
    whole: bool = False,
) -> tuple[TokenStream, Decision]:
    """The stream behind `layers`, from `half`, which `run_layers` gave; and what the stage there decides.

    Where the method decides without hidden states, the decision comes first and the feed-forward runs on the tokens
    that `apply` will look at; hidden states of the others are 0. With `whole` it always runs on all.
    """
    if whole or sparsity.reads_hidden or not plan.skips:
        stream = feed_forward(lm, half, layers)
        return stream, decide(stream, attention, visual_total, plan, sparsity, images, ahead_of(lm, stream, plan.layer))
    decision = decide(half, attention, visual_total, plan, sparsity, images)
    is_needed = needed(half, decision, plan)
    slots, _ = slots_of(is_needed, plan.needed)
    few = half._replace(hidden=jnp.take_along_axis(half.hidden, slots[..., None], axis=1))
    return half._replace(hidden=to_slots(feed_forward(lm, few, layers).hidden, is_needed)), decision


def ahead_of(lm: CausalLM, stream: TokenStream, layer: int) -> Ahead:
    """What comes after a stage behind `layer`, for scorers that ask. XLA drops what a scorer does not use of it."""
    norm = lm.language_model.norm
    if layer + 1 == lm.config.num_hidden_layers:
        return Ahead(None, norm)
    following = lm.language_model.layers[layer + 1]

    def attention(hidden, position_ids):
        _, (q, k) = following.attend(hidden, lm.rotary(position_ids), lambda q, k, v: (q, (q, k)))
        return scored_by(lm, q, k, stream)

    return Ahead(attention, norm)


def scored_by(lm: CausalLM, q: Float[Array, "B T N H"], k: Float[Array, "B T K H"], stream: TokenStream) -> Attention:
    """A layer's queries and keys with what else scorers want of it; it runs on `stream`."""
    bias = None if stream.size is None else jnp.log(stream.size)
    return Attention(q, k, lm.config.rope_theta, bias, lm.config.scaled_frequencies())


def last_token(stream: TokenStream) -> TokenStream:
    """Each row's last valid token as a stream of its own, of one slot."""

    def last(field: Array) -> Array:
        slot = (stream.length - 1).reshape(-1, *(1,) * (field.ndim - 1))
        return jnp.take_along_axis(field, slot, axis=1)

    only = stream._replace(length=None)
    return jax.tree.map(last, only)._replace(length=jnp.ones_like(stream.length))


def last_logits(lm: CausalLM, stream: TokenStream) -> Float[Array, "B W"]:
    """Logits of each row's last valid token only; the others are never needed."""
    return lm.logits(last_token(stream).hidden)[:, 0]


def segment_state(entered: TokenStream, outputs: LayerOutputs, new_tokens: int) -> DecodeState:
    """The state of a segment's layers alone, with room for `new_tokens`: what entered them is what they keep."""
    layers = len(outputs.k)
    last = last_token(entered).position_ids[:, 0]
    bias = None if entered.size is None else with_room(jnp.log(entered.size), new_tokens)
    cache = KVCache(
        tuple(with_room(k, new_tokens) for k in outputs.k),
        tuple(with_room(v, new_tokens) for v in outputs.v),
        jnp.broadcast_to(entered.length, (layers, *entered.length.shape)),
        (bias,) * layers,
    )
    return DecodeState(cache, jnp.broadcast_to(last + 1, cache.length.shape))


def join(states: Sequence[DecodeState]) -> DecodeState:
    """The states of consecutive segments as one."""
    caches = [state.cache for state in states]
    cache = KVCache(
        tuple(k for cache in caches for k in cache.k),
        tuple(v for cache in caches for v in cache.v),
        jnp.concatenate([cache.length for cache in caches]),
        tuple(bias for cache in caches for bias in cache.bias or ()),
    )
    return DecodeState(cache, jnp.concatenate([state.next_position for state in states]))


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
