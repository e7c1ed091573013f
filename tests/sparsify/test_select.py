"""Selection keeps the highest scores, ties to the lower index."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsevlm_jax.sparsify import Determinantal, MaxMin, Spread, TopK, select

VISUAL = 9
select_jit = jax.jit(select)
row = st.lists(st.sampled_from([-1.5, -0.0, 0.0, 0.25, 2.0]), min_size=VISUAL, max_size=VISUAL)
mask = st.lists(st.booleans(), min_size=VISUAL, max_size=VISUAL)


@given(scores=st.tuples(row, row), valid=st.tuples(mask, mask), count=st.tuples(*[st.integers(0, VISUAL + 2)] * 2))
def test_the_best_valid_tokens_stay_as_many_as_asked_for(scores, valid, count):
    chosen = jax.device_get(select_jit(jnp.array(scores), jnp.array(valid), jnp.array(count)))
    for b in range(2):
        ranked = sorted((i for i in range(VISUAL) if valid[b][i]), key=lambda i: (-scores[b][i], i))
        kept = min(count[b], len(ranked))
        assert int(chosen.count[b]) == kept
        assert chosen.order[b, : len(ranked)].tolist() == ranked
        assert sorted(chosen.order[b].tolist()) == list(range(VISUAL))
        assert np.flatnonzero(chosen.is_kept[b]).tolist() == sorted(ranked[:kept])


def kept(scores, count, valid=None):
    valid = [True] * len(scores) if valid is None else valid
    return select(jnp.array([scores]), jnp.array([valid]), jnp.array([count])).is_kept[0].astype(int).tolist()


def test_equal_scores_keep_the_first():
    assert kept([1.0, 1.0, 1.0, 1.0], 2) == [1, 1, 0, 0]


def test_minus_zero_ties_with_plus_zero():
    assert kept([-0.0, 0.0, -0.0], 1) == [1, 0, 0]


def test_nan_ranks_below_everything_but_padding():
    nan = float("nan")
    assert kept([nan, -1e38, 1.0], 2) == [0, 1, 1]
    assert kept([5.0, nan, 1.0], 2, valid=[False, True, True]) == [0, 1, 1]


def test_top_k_is_select_and_looks_at_no_features():
    scores, valid, count = jnp.array([[3.0, 1.0, 2.0]]), jnp.ones((1, 3), bool), jnp.array([2])
    features = jnp.full((1, 3, 4), jnp.nan)
    for ours, plain in zip(
        TopK()(scores, features, valid, count, capacity=2), select(scores, valid, count), strict=True
    ):
        assert ours.tolist() == plain.tolist()


@pytest.mark.parametrize(
    "selector", [Determinantal(), Determinantal(centred=True, ridge=0.1), MaxMin(), Spread()], ids=str
)
def test_the_order_of_what_is_dropped_does_not_depend_on_rows_with_a_larger_count(selector):
    """Recycling takes the best of them: a row would be recycled otherwise in a batch than alone."""
    rng = np.random.default_rng(0)
    scores, features = rng.random((2, 20), np.float32), rng.standard_normal((2, 20, 6), np.float32)
    valid = jnp.arange(20) < jnp.array([[20], [13]])
    for count in ([4, 9], [9, 4]):
        both = selector(jnp.array(scores), jnp.array(features), valid, jnp.array(count), capacity=9)
        for row, own in enumerate(count):
            rows = slice(row, row + 1)
            alone = selector(
                jnp.array(scores[rows]), jnp.array(features[rows]), valid[rows], jnp.array([own]), capacity=own
            )
            np.testing.assert_array_equal(both.order[row], alone.order[0])
            np.testing.assert_array_equal(both.is_kept[row], alone.is_kept[0])
