"""A pruning stage with made-up contents: three rows of two, one and no images, and what a tower would say of them.

B rows · L slots · V visual tokens · N heads · K kv heads · H head dim · D model dim
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparsevlm_jax import methods
from sparsevlm_jax.methods import TokenBudget
from sparsevlm_jax.models.nn.rope import inverse_frequencies
from sparsevlm_jax.processing import Layout, square_picture
from sparsevlm_jax.sparsify import (
    Ahead,
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
BUCKET = Bucket(text=8, visual=2 * STEP, images=2)
HEADS, KV_HEADS, HEAD_DIM, DIM, TOWER_HEADS, TOWER_DIM = 4, 2, 8, 12, 2, 6
BEFORE, QUESTION, IMAGES = (2, 1, 3), (5, 6, 4), (2, 1, 0)  # of each row: words before the images, after, images


def pruned(name: str, tokens: TokenBudget = 10, **options) -> SparsityConfig:
    """A method that is not dense."""
    config = methods.METHODS[name](tokens, **options)
    assert config is not None
    return config


class World(NamedTuple):
    """`following`: the next layer's query and key projections [D, N H] and [D, K H]."""

    stream: TokenStream
    attention: Attention
    images: ImageContext
    following: tuple[jax.Array, jax.Array]

    def ahead(self) -> Ahead:
        """A next layer without RoPE, and a final norm to unit length whose weights grow from feature to feature."""

        def attention(hidden, position_ids):
            q, k = (jnp.matmul(hidden, weight).reshape(*hidden.shape[:2], -1, HEAD_DIM) for weight in self.following)
            return Attention(q, k, inverse_frequencies(HEAD_DIM, 1e4))

        def norm(hidden):
            length = jnp.linalg.norm(hidden.astype(jnp.float32), axis=-1, keepdims=True)
            return hidden / length * (1 + jnp.arange(hidden.shape[-1]))

        return Ahead(attention, norm)


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
        size, order = np.zeros((rows, 2 * STEP)), np.zeros((rows, 2 * STEP), np.int32)
        for row, images in enumerate(IMAGES):
            for image in range(images):
                kept = rng.choice(STEP, config.merging.budget.of(STEP), replace=False)  # type: ignore[attr-defined]
                size[row, image * STEP + kept] = 1 + rng.integers(0, 3, len(kept))
                order[row, image * STEP + kept] = np.arange(len(kept))
        context = ImageContext(size=jnp.asarray(size, jnp.float32), order=jnp.asarray(order))
    else:
        context = ImageContext(jnp.asarray(cls_attention, jnp.float32), jnp.asarray(keys, dtype))
    layout = Layout.of([square_picture(4)] * 2)
    media, cell = (jnp.broadcast_to(field, (rows, *field.shape)) for field in (layout.media, layout.cell))
    context = context._replace(media=media, cell=cell)
    positions = np.broadcast_to(np.arange(length), is_visual.shape)
    stream = TokenStream(
        jnp.asarray(hidden, dtype),
        jnp.asarray(positions),
        jnp.asarray(is_visual),
        jnp.asarray(is_rater),
        jnp.asarray(lengths),
    )
    q_proj, k_proj = (jnp.asarray(rng.normal(size=(DIM, heads * HEAD_DIM)), dtype) for heads in (HEADS, KV_HEADS))
    attention = Attention(jnp.asarray(q, dtype), jnp.asarray(k, dtype), inverse_frequencies(HEAD_DIM, 1e4))
    return World(stream, attention, context, (q_proj, k_proj))


class StageRun(NamedTuple):
    plan: StagePlan
    decision: Decision
    left: TokenStream
    recycled: Recycled | None


def planned(world: World, plan: StagePlan, row: int) -> int:
    """How many tokens the plan keeps of a row; where the tower chooses, what it has left."""
    if plan.table is not None:
        return plan.table[IMAGES[row] * STEP]
    assert world.images.size is not None
    return int((world.images.size[row, : IMAGES[row] * STEP] > 0).sum())


def run_stage(world: World, config: SparsityConfig) -> StageRun:
    """The first stage of the method on `world`: its plan, decision, the stream that leaves, and what was recycled."""
    return StageRun(config.plan(DEPTH, BUCKET)[0], *_run_stage(world, config))


@functools.partial(jax.jit, static_argnames="config")
def _run_stage(world: World, config: SparsityConfig):
    plan = config.plan(DEPTH, BUCKET)[0]
    attention = None if plan.layer < 0 else world.attention
    total = world.stream.is_visual.sum(axis=1)
    decision = decide(world.stream, attention, total, plan, config, world.images, world.ahead())
    return decision, *apply(world.stream, decision, plan, config)
