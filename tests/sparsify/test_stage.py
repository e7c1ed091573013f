"""A stage: what it decides for a row depends on nothing but that row, and it never builds an L x L map."""

import dataclasses
import functools
import math
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsevlm_jax.models.nn.rope import inverse_frequencies
from sparsevlm_jax.sparsify import (
    Attention,
    Bucket,
    KeptTokens,
    RankScale,
    Recycle,
    Scores,
    Selection,
    SparsityConfig,
    StagePlan,
    Tokens,
    TokenStream,
    apply,
    decide,
    recycle,
    select,
)
from sparsevlm_jax.sparsify.stage import Decision, reordered
from tests.jaxprs import shapes_within

HEADS, KV_HEADS, HEAD_DIM, DIM, STEP = 4, 2, 8, 16, 10
V15 = SparsityConfig(budget=KeptTokens((7,)), layers=(0,))
PLUS = dataclasses.replace(SparsityConfig.sparsevlm_plus(), budget=KeptTokens((7,)), layers=(0,))
RANK = SparsityConfig(budget=RankScale(1.5), layers=(0,))
PAPER = dataclasses.replace(SparsityConfig.paper(0.5), layers=(0,))
METHODS = {"v1.5": V15, "SparseVLM+": PLUS, "rank": RANK, "paper": PAPER}


@functools.partial(jax.jit, static_argnames=("config", "plan"))
def run(stream, attention, *, config: SparsityConfig, plan: StagePlan):
    attention = Attention(attention[0], attention[1], inverse_frequencies(HEAD_DIM, 1e4))
    decision = decide(stream, attention, stream.is_visual.sum(axis=1), plan, config)
    return decision, *apply(stream, decision, plan, config)


def stage(rows, config, *, text=8, images=2, dtype: Any = jnp.float32) -> Any:
    """Rows of `random_row`, padded to a bucket, through one stage; NumPy arrays, which slice without compiling."""
    bucket = Bucket(text, images * STEP)
    (plan,) = config.plan(2, bucket)

    def padded(name):
        fill = rows[0][name].dtype.type(0 if rows[0][name].dtype == bool else 3)  # padding is not zeros
        out = np.full((len(rows), bucket.capacity, *rows[0][name].shape[1:]), fill)
        for buffer, row in zip(out, rows, strict=True):
            buffer[: len(row[name])] = row[name]
        return jnp.array(out)

    length = jnp.array([len(row["hidden"]) for row in rows])
    positions = jnp.broadcast_to(jnp.arange(bucket.capacity), (len(rows), bucket.capacity))
    hidden = padded("hidden").astype(dtype)
    stream = TokenStream(hidden, positions, padded("is_visual"), padded("is_rater"), length)
    out = run(stream, (padded("q").astype(dtype), padded("k").astype(dtype)), config=config, plan=plan)
    return jax.device_get(out)


def random_row(seed: int, images: int = 1, before: int = 2, question: int = 4, raters: int = 3) -> dict:
    rng = np.random.default_rng(seed)
    length = before + images * STEP + question
    slot = np.arange(length)
    return dict(
        hidden=rng.normal(size=(length, DIM)).astype(np.float32),
        q=2 * rng.normal(size=(length, HEADS, HEAD_DIM)).astype(np.float32),
        k=2 * rng.normal(size=(length, KV_HEADS, HEAD_DIM)).astype(np.float32),
        is_visual=(slot >= before) & (slot < before + images * STEP),
        is_rater=(slot >= length - raters) & (images > 0),
    )


rows_drawn = st.builds(
    random_row,
    st.integers(0, 999),
    st.integers(0, 2),
    before=st.integers(0, 3),
    question=st.integers(1, 5),
    raters=st.just(1),
)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
@given(rows=st.tuples(rows_drawn, rows_drawn, rows_drawn))
def test_a_row_is_pruned_as_if_it_were_alone(name, rows):
    config = METHODS[name]
    decision, pruned, _ = stage(rows, config)
    for b, row in enumerate(rows):
        alone, left, _ = stage([row], config, text=12)
        visual = int(alone.visual_count[0])
        kept = np.asarray(alone.selection.is_kept[0, :visual])
        assert np.asarray(decision.selection.is_kept[b, :visual]).tolist() == kept.tolist()
        assert not decision.selection.is_kept[b, visual:].any()
        length = int(left.length[0])
        assert int(pruned.length[b]) == length
        np.testing.assert_allclose(pruned.hidden[b, :length], left.hidden[0, :length], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(pruned.position_ids[b, :length], left.position_ids[0, :length])
        assert not pruned.hidden[b, length:].any()
        text = ~row["is_visual"]
        np.testing.assert_array_equal(
            pruned.hidden[b, :length][~np.asarray(pruned.is_visual[b, :length])], row["hidden"][text]
        )


@given(row=rows_drawn, seed=st.integers(0, 999))
def test_permuting_visual_tokens_permutes_the_kept_ones(row, seed):
    visual = np.flatnonzero(row["is_visual"])
    order = np.random.default_rng(seed).permutation(len(visual))
    permuted = {name: array.copy() for name, array in row.items()}
    for name in ("hidden", "q", "k"):
        permuted[name][visual] = row[name][visual[order]]
    config = dataclasses.replace(V15, recycle=None)
    kept, moved = (np.asarray(stage([each], config)[0].selection.is_kept[0, : len(visual)]) for each in (row, permuted))
    assert moved.tolist() == kept[order].tolist()
    assert kept.sum() == min(7, max(len(visual) - 1, 0))


def test_a_static_capacity_clamps_what_is_kept_and_says_what_was_wanted():
    config = dataclasses.replace(RANK, budget=RankScale(100.0, capacity=4))
    decision, pruned, recycled = stage([random_row(0, images=2), random_row(1, images=0)], config)
    assert decision.wanted.tolist() == [19, 0]
    assert decision.selection.count.tolist() == [4, 0]
    assert pruned.is_visual.sum(axis=1).tolist() == [4 + int(recycled.merged_count[0]), 0]


def test_with_kept_positions_a_merged_token_stands_at_its_centers():
    config = dataclasses.replace(V15, positions="keep")
    row = random_row(3, images=2)
    decision, pruned, recycled = stage([row], config)
    merged = 2 + 7 + np.arange(int(recycled.merged_count[0]))  # behind 2 words and 7 kept tokens
    centers = decision.visual_slot[0][recycled.centers[0, : len(merged)]]
    assert pruned.position_ids[0, merged].tolist() == centers.tolist()
    assert pruned.is_visual[0, merged].all()


def identical(row):
    for name in ("hidden", "q", "k"):
        row[name][:] = row[name][:1]
    return row


def scaled(row, factor):
    return {name: array * np.float32(factor) if array.dtype == np.float32 else array for name, array in row.items()}


EXTREMES = {
    "identical tokens": [identical(random_row(0))],
    "all scores equal": [random_row(1) | {"q": np.zeros((16, HEADS, HEAD_DIM), np.float32)}],
    "no rater": [random_row(2, raters=0)],
    "huge norms": [scaled(random_row(3), 1e15)],
    "tiny norms": [scaled(random_row(4), 1e-30)],
    "no image": [random_row(5, images=0)],
    "no word before": [random_row(6, before=0, question=1, raters=1)],
}


@pytest.mark.parametrize("extreme", EXTREMES)
@pytest.mark.parametrize("name", METHODS)
def test_stages_are_finite_in_bfloat16_at_the_extremes(name, extreme):
    decision, pruned, _ = stage(EXTREMES[extreme], METHODS[name], dtype=jnp.bfloat16)
    assert pruned.hidden.dtype == jnp.bfloat16
    for array in (pruned.hidden, decision.scores.values, decision.scores.attention_map):
        assert np.isfinite(np.asarray(array, np.float32)).all()
    assert int(pruned.length[0]) <= len(EXTREMES[extreme][0]["hidden"])


def test_of_equal_scores_the_first_tokens_stay():
    decision, _, _ = stage([identical(random_row(0))], dataclasses.replace(V15, recycle=None))
    assert decision.selection.is_kept[0].astype(int).tolist() == [1] * 7 + [0] * 13


def test_a_single_visual_token_is_dropped_and_recycled_or_kept_but_never_nan():
    row = random_row(7)
    row["is_visual"] = np.arange(16) == 2
    bucket = Bucket(20, 1)
    (plan,) = V15.plan(2, bucket)
    fields = {key: jnp.array(value[None]) for key, value in row.items()}
    stream = TokenStream(
        fields["hidden"], jnp.arange(16)[None], fields["is_visual"], fields["is_rater"], jnp.array([16])
    )
    decision, pruned, _ = run(stream, (fields["q"], fields["k"]), config=V15, plan=plan)
    assert decision.selection.count.tolist() == [0]
    np.testing.assert_allclose(pruned.hidden[0, :16], row["hidden"], rtol=2e-6)  # merged with itself, in its place


def array(*shape, dtype: Any = jnp.float32) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)


LONG = Bucket(text=64, visual=1152)


def shapes_of_a_stage(config, plant=lambda stream: stream):
    """Shapes within decide and apply on two rows of 1,216 tokens."""
    config = dataclasses.replace(config, layers=(0,))
    (plan,) = config.plan(2, LONG)
    length = LONG.capacity

    def both(stream, q, k):
        stream = plant(stream)
        attention = Attention(q, k, inverse_frequencies(q.shape[-1], 1e4))
        decision = decide(stream, attention, stream.is_visual.sum(axis=1), plan, config)
        return apply(stream, decision, plan, config)

    flags = array(2, length, dtype=bool)
    position_ids, lengths = array(2, length, dtype=jnp.int32), array(2, dtype=jnp.int32)
    stream = TokenStream(array(2, length, 64), position_ids, flags, flags, lengths)
    return shapes_within(both, stream, array(2, length, 4, 16), array(2, length, 4, 16))


@pytest.mark.parametrize("name", METHODS)
def test_scoring_and_pruning_build_nothing_the_size_of_an_attention_map(name):
    config = METHODS[name]
    if isinstance(config.budget, KeptTokens):
        config = dataclasses.replace(config, budget=Tokens.parse("1/3"))
    assert max(math.prod(shape) for shape in shapes_of_a_stage(config)) < LONG.capacity**2


def planted_in_a_loop(stream):
    def body(_, hidden):
        attention = jnp.einsum("BTD,BSD->BTS", hidden, hidden)
        return jnp.einsum("BTS,BSD->BTD", attention, hidden)

    return stream._replace(hidden=jax.lax.fori_loop(0, 2, body, stream.hidden))


def test_that_check_would_see_a_map_planted_in_a_loop():
    shapes = shapes_of_a_stage(V15, planted_in_a_loop)
    assert (2, LONG.capacity, LONG.capacity) in shapes


def test_recycling_2000_tokens_of_width_4096_needs_no_difference_of_every_pair():
    every = Recycle(candidates=Fraction(1), cluster_size=10)
    selection = Selection(array(1, 2000, dtype=jnp.int32), array(1, 2000, dtype=bool), array(1, dtype=jnp.int32))
    cluster = functools.partial(recycle, rule=every, candidate_capacity=2000, merged_capacity=201)
    shapes = shapes_within(cluster, array(1, 2000, 4096), selection, array(1, dtype=jnp.int32))
    assert max(math.prod(shape) for shape in shapes) == 2000 * 4096


def test_tokens_that_change_places_take_their_sizes_along():
    stream = TokenStream(
        hidden=jnp.arange(6.0).reshape(1, 6, 1),
        position_ids=jnp.arange(6)[None],
        is_visual=jnp.array([[False, True, True, True, False, False]]),
        is_rater=jnp.zeros((1, 6), bool),
        length=jnp.array([6]),
        next_position=jnp.array([6]),
        size=jnp.array([[1.0, 10, 20, 30, 1, 1]]),
    )
    selection = select(jnp.ones((1, 3)), jnp.ones((1, 3), bool), jnp.array([3]))
    decision = Decision(
        scores=Scores(jnp.ones((1, 3)), order=jnp.array([[2, 1, 0]])),
        selection=selection,
        visual_slot=jnp.array([[1, 2, 3]]),
        visual_count=jnp.array([3]),
        rater_slot=jnp.array([[4]]),
        rater_count=jnp.array([1]),
        wanted=jnp.array([3]),
    )
    changed = reordered(stream, decision)
    assert changed.hidden[0, :, 0].tolist() == [0, 3, 2, 1, 4, 5]
    assert changed.size is not None and changed.size[0].tolist() == [1, 30, 20, 10, 1, 1]
