"""A pruning stage with made-up contents: three rows of two, one and no images, and what a tower would say of them.

B rows · L slots · V visual tokens · N heads · K kv heads · H head dim · D model dim
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparsevlm_jax import methods
from sparsevlm_jax.methods import Amount
from sparsevlm_jax.sparsify import (
    Attention,
    Bucket,
    Decision,
    ImageContext,
    Recycled,
    SparsityConfig,
    StagePlan,
    TokenStream,
    apply,
    decide,
)

STEP, DEPTH = 16, 32  # tokens of one image, a 4 x 4 grid; layers
BUCKET = Bucket(text=8, visual=2 * STEP, visual_step=STEP)
HEADS, KV_HEADS, HEAD_DIM, DIM, TOWER_HEADS, TOWER_DIM = 4, 2, 8, 12, 2, 6
BEFORE, QUESTION, IMAGES = (2, 1, 3), (5, 6, 4), (2, 1, 0)  # of each row: words before the images, after, images


def pruned(name: str, tokens: Amount = 10, **options) -> SparsityConfig:
    """A method that is not dense."""
    config = methods.METHODS[name](tokens, **options)
    assert config is not None
    return config


class World(NamedTuple):
    stream: TokenStream
    attention: Attention
    images: ImageContext


def make_world(config: SparsityConfig, *, seed: int = 0, dtype=jnp.float32, same: bool = False) -> World:
    """Rows whose raters are the config's; `same` makes all visual tokens of a row, and all attention, equal."""
    rng = np.random.default_rng(seed)
    rows, length = len(IMAGES), BUCKET.capacity
    hidden = rng.normal(size=(rows, length, DIM))
    q, k = rng.normal(size=(rows, length, HEADS, HEAD_DIM)), rng.normal(size=(rows, length, KV_HEADS, HEAD_DIM))
    cls_attention = rng.exponential(size=(rows, 2 * STEP)) ** 2
    keys = rng.normal(size=(rows, 2 * STEP, TOWER_HEADS, TOWER_DIM))
    is_visual, is_rater, lengths = np.zeros((rows, length), bool), np.zeros((rows, length), bool), []
    for row, (before, question, images) in enumerate(zip(BEFORE, QUESTION, IMAGES, strict=True)):
        end = before + images * STEP
        is_visual[row, before:end] = True
        asked = {"last": [question - 1], "all": range(question)}.get(config.raters, [0, 2])
        is_rater[row, [end + token for token in asked]] = True
        lengths.append(end + question)
        hidden[row, lengths[-1] :] = 1e3  # padding that must not matter
    if same:
        hidden[is_visual], q[:], k[:], cls_attention[:], keys[:] = 1.0, 0.0, 1.0, 0.5, 1.0
    if config.merging is not None:  # what a tower that merges would have left
        size = np.zeros((rows, 2 * STEP))
        for row, images in enumerate(IMAGES):
            for image in range(images):
                kept = rng.choice(STEP, config.merging.budget.of(STEP), replace=False)  # type: ignore[attr-defined]
                size[row, image * STEP + kept] = 1 + rng.integers(0, 3, len(kept))
        context = ImageContext(size=jnp.asarray(size, jnp.float32))
    else:
        context = ImageContext(jnp.asarray(cls_attention, jnp.float32), jnp.asarray(keys, dtype))
    positions = np.broadcast_to(np.arange(length), is_visual.shape)
    stream = TokenStream(
        jnp.asarray(hidden, dtype),
        jnp.asarray(positions),
        jnp.asarray(is_visual),
        jnp.asarray(is_rater),
        jnp.asarray(lengths),
    )
    return World(stream, Attention(jnp.asarray(q, dtype), jnp.asarray(k, dtype), 1e4), context)


class StageRun(NamedTuple):
    plan: StagePlan
    decision: Decision
    left: TokenStream
    recycled: Recycled | None


def run_stage(world: World, config: SparsityConfig) -> StageRun:
    """The first stage of the method on `world`: its plan, decision, the stream that leaves, and what was recycled."""
    return StageRun(config.plan(DEPTH, BUCKET)[0], *_run_stage(world, config))


@functools.partial(jax.jit, static_argnames="config")
def _run_stage(world: World, config: SparsityConfig):
    plan = config.plan(DEPTH, BUCKET)[0]
    attention = None if plan.layer < 0 else world.attention
    decision = decide(world.stream, attention, world.stream.is_visual.sum(axis=1), plan, config, world.images)
    return decision, *apply(world.stream, decision, plan, config)
