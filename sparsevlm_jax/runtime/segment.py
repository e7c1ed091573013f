"""One segment: layers that run on the same tokens, and, unless it is the last one, what the stage behind them decides.

A layer is two halves, attention and feed-forward. The keys and values that a cache needs come from the first; the
second, the larger (two thirds to four fifths of a layer's work), runs on the tokens that somebody reads. At the end of
the last segment that is one, and before a stage whose method decides without hidden states those that stay and those
that are recycled.

B batch · L slots · S cache slots · N heads · K kv heads · H head dim · D model dim · W vocabulary
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..models.decoders.llama import CausalLM
from ..models.nn.attention import Implementation, causal_attention
from ..models.nn.cache import KVCache, with_room
from ..sparsify import (
    Ahead,
    Attention,
    Decision,
    ImageContext,
    SparsityConfig,
    StagePlan,
    TokenStream,
    at_slots,
    decide,
    needed,
    slots_of,
    to_slots,
)


class DecodeState(NamedTuple):
    """What decoding continues from: the cache, and the position of each layer's next token, [layers, B] (layers differ
    where a stage has repacked positions)."""

    cache: KVCache
    next_position: Int[Array, "L B"]


class Stage(NamedTuple):
    """The stage behind a segment: its static plan, the method, the visual tokens of each row's prompt before any
    pruning, and what is known of each of them, for methods that ask."""

    plan: StagePlan
    sparsity: SparsityConfig
    visual_total: Int[Array, " B"]
    images: ImageContext | None = None


class Segment(NamedTuple):
    """A segment has run. `stream` has passed its layers: hidden states of tokens that neither the stage nor `apply`
    looks at are 0, and behind the last segment each row's last token is all there is (`whole`: neither). `state` is of
    these layers alone, `attention` of the last of them (None without layers: a stage before layer 0)."""

    stream: TokenStream
    state: DecodeState
    decision: Decision | None
    attention: Attention | None


def run_segment(
    lm: CausalLM,
    entered: TokenStream,
    layers: range,
    stage: Stage | None,
    *,
    implementation: Implementation,
    new_tokens: int = 0,
    whole: bool = False,
) -> Segment:
    """Runs `layers` on the stream, causally, and decides what the stage behind them keeps.

    Args:
        stage: None behind the last segment.
        new_tokens: room in the cache behind what entered.
        whole: run every token through every feed-forward, whether it is read or not: for traces and training.
    """
    half, keys, values, attention = _attend(lm, entered, layers, implementation)
    state = _state(entered, keys, values, new_tokens)
    if stage is None:
        stream = _feed_forward(lm, half if whole else last_token(half), layers)
        return Segment(stream, state, None, attention)
    plan, sparsity, visual_total, images = stage
    if whole or "hidden" in sparsity.needs or not plan.skips:
        stream = _feed_forward(lm, half, layers)
        ahead = ahead_of(lm, stream, plan.layer)
        decision = decide(stream, attention, visual_total, plan, sparsity, images, ahead)
        return Segment(stream, state, decision, attention)
    decision = decide(half, attention, visual_total, plan, sparsity, images)
    is_needed = needed(half, decision, plan)
    slots, _ = slots_of(is_needed, plan.needed)
    hidden, deepstack = jax.tree.map(lambda field: at_slots(field, slots), (half.hidden, half.deepstack))
    few = _feed_forward(lm, half._replace(hidden=hidden, deepstack=deepstack), layers)
    stream = half._replace(hidden=to_slots(few.hidden, is_needed), deepstack=_added(half.deepstack, layers[-1]))
    return Segment(stream, state, decision, attention)


def _attend(
    lm: CausalLM, stream: TokenStream, layers: range, implementation: Implementation
) -> tuple[TokenStream, list[Array], list[Array], Attention | None]:
    """`layers` but for the last one's feed-forward; keys and values layer by layer; the last layer's attention."""
    hidden, table = stream.hidden, lm.rotary(stream.position_ids)
    bias = None if stream.size is None else jnp.log(stream.size)

    def attend(q, k, v):
        return causal_attention(q, k, v, stream.length, implementation=implementation, key_bias=bias), (q, k, v)

    keys, values, q = [], [], None
    for index in layers:
        layer = lm.language_model.layers[index]
        hidden, (q, k, v) = layer.attend(hidden, table, attend)
        stream = stream._replace(hidden=hidden)
        if index != layers[-1]:
            stream = _feed_forward(lm, stream, range(index, index + 1))
        hidden = stream.hidden
        keys.append(k)
        values.append(v)
    attention = _scored_by(lm, q, keys[-1], stream) if q is not None else None
    return stream, keys, values, attention


def _feed_forward(lm: CausalLM, stream: TokenStream, layers: range) -> TokenStream:
    """The feed-forward of the last of `layers`, and what deepstack adds after it. No layers: the stream as it is."""
    if not layers:
        return stream
    index = layers[-1]
    hidden = lm.language_model.layers[index].feed_forward(stream.hidden)
    added = stream.deepstack[index] if index < len(stream.deepstack) else None
    hidden = hidden if added is None else hidden + added
    return stream._replace(hidden=hidden, deepstack=_added(stream.deepstack, index))


def _added(deepstack: tuple, index: int) -> tuple:
    """`deepstack` once that of layer `index` has been added."""
    return tuple(None if at == index else field for at, field in enumerate(deepstack))


def ahead_of(lm: CausalLM, stream: TokenStream, layer: int) -> Ahead:
    """What comes after a stage behind `layer`, for scorers that ask. XLA drops what a scorer does not use of it."""
    norm = lm.language_model.norm
    if layer + 1 == lm.config.num_hidden_layers:
        return Ahead(None, norm)
    following = lm.language_model.layers[layer + 1]

    def attention(hidden, position_ids):
        _, (q, k) = following.attend(hidden, lm.rotary(position_ids), lambda q, k, v: (q, (q, k)))
        return _scored_by(lm, q, k, stream)

    return Ahead(attention, norm)


def _scored_by(lm: CausalLM, q: Float[Array, "B T N H"], k: Float[Array, "B T K H"], stream: TokenStream) -> Attention:
    """A layer's queries and keys with what else scorers want of it; it runs on `stream`."""
    bias = None if stream.size is None else jnp.log(stream.size)
    return Attention(q, k, lm.config.inverse_frequencies(), bias)


def last_token(stream: TokenStream) -> TokenStream:
    """Each row's last valid token as a stream of its own, of one slot."""

    slot = (stream.length - 1)[:, None]
    only = jax.tree.map(lambda field: at_slots(field, slot), stream._replace(length=None, next_position=None))
    return only._replace(length=jnp.ones_like(stream.length), next_position=stream.next_position)


def last_logits(lm: CausalLM, stream: TokenStream) -> Float[Array, "B W"]:
    """Logits of each row's last valid token only; the others are never needed."""
    return lm.logits(last_token(stream).hidden)[:, 0]


def _state(entered: TokenStream, keys: Sequence[Array], values: Sequence[Array], new_tokens: int) -> DecodeState:
    """The state of a segment's layers alone, with room for `new_tokens`: what entered them is what they keep."""
    layers = len(keys)
    assert entered.next_position is not None  # `start` gives it
    bias = None if entered.size is None else with_room(jnp.log(entered.size), new_tokens)
    cache = KVCache(
        tuple(with_room(k, new_tokens) for k in keys),
        tuple(with_room(v, new_tokens) for v in values),
        jnp.broadcast_to(entered.length, (layers, *entered.length.shape)),
        (bias,) * layers,
    )
    return DecodeState(cache, jnp.broadcast_to(entered.next_position, cache.length.shape))


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
