"""Decoding: one pure `decode_step`, used by the jitted loop and by the stream.

B batch · L layers · W vocabulary · N new tokens
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..models.families.family import ModelConfig, language_model
from ..models.nn.attention import Implementation, decode_attention
from ..models.nn.cache import append
from ..models.nn.rope import Rotary
from .segment import DecodeState


class Sampling(NamedTuple):
    """How the next token is drawn. Each row has its own key, so its tokens do not depend on the batch it is in.

    temperature divides the logits; top_k keeps that many of the most likely tokens (0: all); top_p keeps the fewest
    that together reach that probability (1: all).
    """

    key: Array  # [B] PRNG keys
    temperature: Float[Array, ""]
    top_k: Int[Array, ""]
    top_p: Float[Array, ""]


def sampling(
    rows: int, temperature: float, top_k: int, top_p: float, seed: int | Sequence[int], *, padding: int = 0
) -> Sampling | None:
    """How `rows`, and so many of `padding`, draw; None at temperature 0. Options in the ranges that `generate` names.

    Temperatures below 1e-30 and above 1e30 draw what their limits draw, the most likely token and all alike, and are
    taken as these: float32 holds them and their reciprocals.

    Raises:
        ValueError: neither one seed nor one for each row.
    """
    seeds = [seed] * rows if isinstance(seed, int) else list(seed)
    if len(seeds) != rows:
        raise ValueError(f"expected one seed or one for each of {rows} rows, got {len(seeds)}")
    if temperature == 0:
        return None
    keys = jnp.stack([jax.random.key(s) for s in [*seeds, *[0] * padding]])
    return Sampling(keys, jnp.float32(min(max(temperature, 1e-30), 1e30)), jnp.int32(top_k), jnp.float32(top_p))


class Generated(NamedTuple):
    """Tokens of each row up to and including its end-of-sequence token, then padding; how many are real."""

    tokens: Int[Array, "B N"]
    count: Int[Array, " B"]


def decode_step(
    params: dict,
    state: DecodeState,
    token: Int[Array, " B"],
    *,
    config: ModelConfig,
    implementation: Implementation,
) -> tuple[Float[Array, "B W"], DecodeState]:
    """Logits that follow `token`, and the state with it appended. Each layer's cache must have a free slot.

    A row attends to the keys of its own length plus the one it writes, so rows of any length share a batch; each layer
    rotates by its own next position.
    """
    lm = language_model(params, config)
    cache, hidden = state.cache, lm.language_model.embed(token[:, None])
    tables = lm.rotary(state.next_position[..., None].reshape(-1, 1))
    keys, values = [], []
    for index, layer in enumerate(lm.language_model.layers):
        length, rows = cache.length[index], slice(index * token.shape[0], (index + 1) * token.shape[0])

        def attend(q, k, v, index=index, length=length):
            k = append(cache.k[index], k, length)
            v = append(cache.v[index], v, length)
            bias = cache.bias[index] if cache.bias else None
            return decode_attention(q, k, v, length + 1, implementation=implementation, key_bias=bias), (k, v)

        hidden, (k, v) = layer(hidden, Rotary(tables.cos[rows], tables.sin[rows]), attend)
        keys.append(k)
        values.append(v)
    cache = cache._replace(k=tuple(keys), v=tuple(values), length=cache.length + 1)
    return lm.logits(hidden)[:, 0], DecodeState(cache, state.next_position + 1)


def generate(
    params: dict,
    logits: Float[Array, "B W"],
    state: DecodeState,
    max_new_tokens: Int[Array, ""],
    sampling: Sampling | None = None,
    rows: Int[Array, ""] | int | None = None,
    *,
    config: ModelConfig,
    implementation: Implementation,
    buffer: int,
) -> tuple[Generated, DecodeState]:
    """Tokens from prefill's logits on, until every row has ended or `max_new_tokens` are there, and the state behind
    the last but one (returned so that a donated cache is updated in place).

    Args:
        max_new_tokens: traced, so that another limit does not compile again; 1 to `buffer`.
        sampling: None is greedy.
        rows: traced; the rows behind that many are padding, and nobody waits for them to end. None: all are real.
        buffer: static width of the result, N, and at most the caches' free slots plus one.
    """

    def unfinished(carry):
        step, _, _, _, done = carry
        return (step < max_new_tokens) & ~done.all()

    def advance(carry):
        step, state, token, tokens, done = carry
        logits, state = decode_step(params, state, token, config=config, implementation=implementation)
        token = jnp.where(done, config.pad_token_id, choose(logits, sampling, step))
        tokens = jax.lax.dynamic_update_slice(tokens, token[:, None], (0, step))
        return step + 1, state, token, tokens, done | is_end(token, config)

    batch = logits.shape[0]
    first = choose(logits, sampling, 0)
    tokens = jnp.full((batch, buffer), config.pad_token_id, jnp.int32).at[:, 0].set(first)
    done = is_end(first, config) if rows is None else is_end(first, config) | (jnp.arange(batch) >= rows)
    carry = (jnp.int32(1), state, first, tokens, done)
    step, state, _, tokens, _ = jax.lax.while_loop(unfinished, advance, carry)
    return Generated(tokens, count_tokens(tokens, step, config)), state


def count_tokens(tokens: Int[Array, "B N"], steps: Int[Array, ""], config: ModelConfig) -> Int[Array, " B"]:
    """Real tokens of each row: those up to its first end-of-sequence, at most `steps`."""
    ended = is_end(tokens, config) & (jnp.arange(tokens.shape[1]) < steps)
    return jnp.where(ended.any(axis=1), jnp.argmax(ended, axis=1) + 1, steps)


def is_end(token: Int[Array, "*n"], config: ModelConfig) -> Bool[Array, "*n"]:
    return jnp.isin(token, jnp.asarray(config.eos_token_ids, jnp.int32))


def choose(logits: Float[Array, "B W"], sampling: Sampling | None, step: Int[Array, ""] | int) -> Int[Array, " B"]:
    """The next token of each row: the most likely one (lowest id of equals), or a draw."""
    if sampling is None:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    keys = jax.vmap(lambda key: jax.random.fold_in(key, step))(sampling.key)
    return jax.vmap(jax.random.categorical)(keys, restrict(logits, sampling)).astype(jnp.int32)


def restrict(logits: Float[Array, "B W"], sampling: Sampling) -> Float[Array, "B W"]:
    """Logits over temperature, the largest 0; -inf outside top-k and, of what that leaves, outside top-p."""
    order = jnp.argsort(-logits, axis=-1, stable=True)
    ranked = jnp.take_along_axis(logits, order, axis=-1)
    ranked = (ranked - ranked[:, :1]) / sampling.temperature  # the difference first: it cannot overflow to inf - inf
    rank = jnp.arange(logits.shape[-1])
    ranked = jnp.where((sampling.top_k > 0) & (rank >= sampling.top_k), -jnp.inf, ranked)
    probability = jax.nn.softmax(ranked, axis=-1)
    before = jnp.cumsum(probability, axis=-1) - probability
    ranked = jnp.where((before < sampling.top_p) | (rank == 0), ranked, -jnp.inf)
    rows = jnp.arange(logits.shape[0])[:, None]
    return jnp.zeros_like(logits).at[rows, order].set(ranked, unique_indices=True)
