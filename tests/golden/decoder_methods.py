"""Recordings of methods that act in the decoder or before it: FastV, PyramidDrop, DART, DivPrune, CDPruner."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sparsevlm_jax import methods
from sparsevlm_jax.models.decoders.llama import CausalLM, LlamaConfig
from sparsevlm_jax.models.nn.rope import inverse_frequencies
from sparsevlm_jax.runtime.segment import ahead_of
from sparsevlm_jax.sparsify import (
    Ahead,
    Attention,
    Bucket,
    Need,
    Scores,
    Sizes,
    SparsityConfig,
    StageInputs,
    TokenStream,
    apply,
    decide,
    question_mask,
    select_raters,
)

from .tower_methods import Recording, differences

AHEAD = Ahead(None, lambda hidden: hidden)  # recorded hidden states have passed the norm


def method(name: str, **options: Any) -> SparsityConfig:
    config = methods.create(name, **options)
    assert config is not None
    return config


def streamed(hidden: np.ndarray, first: int, visual: int, config: SparsityConfig) -> TokenStream:
    """One row: text, `visual` tokens from slot `first` on, and the question, with the method's raters."""
    slot = np.arange(len(hidden))[None]
    is_visual = jnp.asarray((slot >= first) & (slot < first + visual))
    rows = jnp.asarray(hidden, jnp.float32)[None]
    question = question_mask(is_visual, jnp.ones_like(is_visual))
    raters = select_raters(rows, is_visual, question, question_capacity=len(hidden) - visual, rule=config.raters)
    return TokenStream(rows, jnp.asarray(slot), is_visual, raters.is_rater, jnp.array([len(hidden)]))


def stage(
    config: SparsityConfig, stream: TokenStream, attention: Attention | None, ahead: Ahead = AHEAD, *, depth: int = 4
) -> np.ndarray:
    """What the method's first stage leaves of `stream`, whose hidden states' first feature is the token's number: the
    numbers and positions of all tokens."""
    visual = int(stream.is_visual.sum())
    plan = config.plan(depth, Bucket(text=stream.length.item() - visual, visual=visual))[0]
    decision = decide(stream, attention, jnp.array([visual]), plan, config, ahead=ahead)
    numbered = stream._replace(hidden=jnp.arange(stream.hidden.shape[1], dtype=jnp.float32)[None, :, None])
    left, _ = apply(numbered, decision, plan, config)
    count = int(left.length[0])
    return np.stack([np.asarray(left.hidden[0, :count, 0], np.int64), np.asarray(left.position_ids[0, :count])])


def fastv(recording: Recording) -> list[str]:
    k, q_last = recording["k"], recording["q_last"]
    first, visual = int(recording["image_start"]), int(recording["image_length"])
    config = method("fastv", kept=int(recording["attention_rank"]))
    stream = streamed(np.zeros((len(k), 1)), first, visual, config)
    q = np.zeros_like(k)
    q[-1] = q_last
    left = stage(
        config, stream, Attention(jnp.asarray(q)[None], jnp.asarray(k)[None], inverse_frequencies(k.shape[-1], 1e4))
    )
    return differences({"keep_indexs": left[0], "position_ids": left[1]}, recording)


def pyramiddrop(recording: Recording) -> list[str]:
    """The recorded projections in the second of a decoder's layers; the stage stands before it."""
    hidden, heads = recording["hidden"], int(recording["num_heads"])
    first, visual = int(recording["image_start"]), int(recording["image_tokens"])
    width, depth = hidden.shape[1], 4
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=width,
        intermediate_size=8,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=width // heads,
        rms_norm_eps=float(recording["rms_eps"]),
        rope_theta=float(recording["rope_theta"]),
        max_position_embeddings=4096,
    )
    lm = CausalLM(config, rngs=nnx.Rngs(0))
    sparsity = method("pyramiddrop", ratios=(float(recording["ratios"][1] / recording["ratios"][0]), 0.1, 0.1))
    layer = sparsity.pruning_layers(depth)[0] + 1
    following = lm.language_model.layers[layer]
    assert following.input_layernorm.scale is not None
    following.input_layernorm.scale.set_value(jnp.asarray(recording["input_layernorm"]))
    following.self_attn.q_proj.kernel.set_value(jnp.asarray(recording["q_proj"]))
    following.self_attn.k_proj.kernel.set_value(jnp.asarray(recording["k_proj"]))
    stream = streamed(hidden, first, visual, sparsity)
    left = stage(sparsity, stream, None, ahead_of(lm, stream, layer - 1), depth=depth)
    found = [] if layer == 1 else [f"a decoder of 4 layers is pruned before layer {layer}"]
    return found + differences({"keep_indexs": left[0], "position_ids": left[1]}, recording)


def dart(recording: Recording) -> list[str]:
    """Both ports. That which visits pivots in the order of a set is given this order."""
    hidden, keys = recording["hidden"], np.moveaxis(recording["keys"], 0, 1)
    first, visual = int(recording["image_start"]), int(recording["image_length"])
    pivots = dict(image_pivots=int(recording["pivot_image"]), text_pivots=int(recording["pivot_text"]))
    attention = Attention(jnp.asarray(keys)[None], jnp.asarray(keys)[None], inverse_frequencies(keys.shape[-1], 1e4))
    exact = method("dart", kept=int(recording["angelslim_keep"]), **pivots)
    stream = streamed(hidden, first, visual, exact)

    def images_tokens(left: np.ndarray) -> np.ndarray:
        return left[0][(left[0] >= first) & (left[0] < first + visual)]

    found = differences({"angelslim_retained": images_tokens(stage(exact, stream, attention))}, recording)
    by_norm, visited = recording["pivots_by_norm"], recording["pivots_as_visited"]
    budget = int((1 - float(recording["reduction_ratio"])) * visual)
    published = method("dart", kept=budget, count="published", **pivots)
    given = InGivenOrder(published.score, tuple(int(np.flatnonzero(by_norm == pivot)[0]) for pivot in visited))
    left = stage(replace(published, score=given), stream, attention)
    return found + differences({"retained": images_tokens(left)}, recording)


def divprune(recording: Recording) -> list[str]:
    config = method("divprune", kept=int(recording["count"]))
    order = chosen(config, np.zeros(len(recording["features"])), recording["features"], int(recording["count"]))
    return differences({"order": order}, recording)


def cdpruner(recording: Recording) -> list[str]:
    config = method("cdpruner", kept=int(recording["count"]))
    order = chosen(config, recording["relevance"], recording["features"], int(recording["count"]))
    return differences({"indices": np.sort(order)}, recording)


def chosen(config: SparsityConfig, scores: np.ndarray, features: np.ndarray, count: int) -> np.ndarray:
    """The `count` that the method's selector chooses, in the order of choice."""
    rows = (jnp.asarray(scores, jnp.float32)[None], jnp.asarray(features, jnp.float32)[None])
    is_valid = jnp.ones(rows[0].shape, bool)
    selection = jax.jit(config.select, static_argnames="capacity")(*rows, is_valid, jnp.array([count]), capacity=count)
    return np.asarray(selection.order[0, :count])


@dataclass(frozen=True)
class InGivenOrder:
    """A scorer whose features, the similarities to pivots, stand in another order."""

    score: Any
    order: tuple[int, ...]

    @property
    def needs(self) -> frozenset[Need]:
        return self.score.needs

    def cost(self, sizes: Sizes) -> int:
        return self.score.cost(sizes)

    def __call__(self, inputs: StageInputs) -> Scores:
        scores = self.score(inputs)
        return scores._replace(features=scores.features[..., jnp.array(self.order)])


CHECKS: dict[str, Callable[[Recording], list[str]]] = {
    "fastv": fastv,
    "pyramiddrop": pyramiddrop,
    "dart": dart,
    "divprune": divprune,
    "cdpruner": cdpruner,
}
