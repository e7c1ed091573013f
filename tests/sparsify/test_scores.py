"""Scores are the attention raters pay, computed for their rows alone."""

from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest

from sparsevlm_jax.models.nn.rope import inverse_frequencies, of_axes
from sparsevlm_jax.sparsify import (
    RaterScore,
    correct_gravity,
    gravity_weights,
    mean_over_heads,
    onto_visual,
    priority_heads,
    rater_attention,
    score,
)

from . import reference


def random_attention(seed: int = 0, *, raters=3, length=12, kv_heads=4, heads=4, head_dim=8):
    rng = np.random.default_rng(seed)
    q = rng.normal(size=(raters, heads, head_dim)).astype(np.float32)
    return q, rng.normal(size=(length, kv_heads, head_dim)).astype(np.float32)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_rater_attention_is_the_raters_rows_of_causal_attention(kv_heads):
    q, k = random_attention(kv_heads=kv_heads)
    slots, length = np.array([7, 9, 10]), 11
    rows = rater_attention(jnp.array(q[None]), jnp.array(k[None]), jnp.array([slots]), jnp.array([length]))[0]
    np.testing.assert_allclose(rows, reference.attention(q, k, slots, length), rtol=1e-5, atol=1e-8)
    for row, slot in enumerate(slots):
        assert not rows[:, row, slot + 1 :].any()
    np.testing.assert_allclose(rows.sum(axis=-1), 1, rtol=1e-6)


def test_padding_behind_the_length_changes_nothing():
    q, k = random_attention()
    slots, length = jnp.array([[7, 8, 9]]), jnp.array([10])
    short = rater_attention(jnp.array(q[None]), jnp.array(k[None, :10]), slots, length)
    k[10:] = 1e4
    long = rater_attention(jnp.array(q[None]), jnp.array(k[None]), slots, length)
    np.testing.assert_array_equal(long[..., :10], short)


def scored(k, q, visual_slot, rater_slot):
    attention = rater_attention(jnp.array(q[None]), jnp.array(k[None]), jnp.array([rater_slot]), jnp.array([len(k)]))
    real = jnp.ones((1, len(visual_slot)), bool), jnp.ones((1, len(rater_slot)), bool)
    return np.asarray(score(mean_over_heads(onto_visual(attention, jnp.array([visual_slot]), *real)), real[1])[0])


def test_permuting_visual_tokens_permutes_their_scores():
    q, k = random_attention(1)
    order = np.array([3, 0, 4, 1, 2])
    permuted = k.copy()
    permuted[2:7] = k[2:7][order]
    slots, raters = np.arange(2, 7), [9, 10, 11]
    np.testing.assert_allclose(scored(permuted, q, slots, raters), scored(k, q, slots, raters)[order], rtol=1e-6)


def test_score_is_the_mean_over_raters_and_heads():
    q, k = random_attention(2)
    slots, raters = np.arange(2, 7), np.array([9, 10, 11])
    expected = reference.attention(q, k, raters, len(k))[:, :, 2:7].mean(axis=(0, 1))
    np.testing.assert_allclose(scored(k, q, slots, raters), expected, rtol=1e-5)


def test_padded_raters_and_padded_visual_tokens_count_nothing():
    attention = jnp.ones((1, 2, 3, 6))
    is_visual, is_rater = jnp.array([[True, True, False]]), jnp.array([[True, False, False]])
    onto = onto_visual(attention, jnp.array([[1, 2, 0]]), is_visual, is_rater)
    assert onto[0, 0].tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert score(mean_over_heads(onto), is_rater).tolist() == [[1, 1, 0]]


def test_a_row_without_raters_scores_zero_not_nan():
    assert score(jnp.zeros((1, 2, 3)), jnp.zeros((1, 2), bool)).tolist() == [[0, 0, 0]]


def test_gravity_weight_is_the_sum_of_cosines_of_the_distance():
    rater, visual, head_dim, theta = np.array([40, 51]), np.array([3, 17, 30]), 16, 1e4
    frequency = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    distance = (rater[:, None] - visual)[..., None] * frequency
    expected = 2 / np.sqrt(head_dim) * np.cos(distance).sum(axis=-1)
    weights = gravity_weights(jnp.array([rater]), jnp.array([visual]), frequency.astype(np.float32))
    np.testing.assert_allclose(weights[0], expected, rtol=1e-4, atol=1e-5)


def test_gravity_follows_the_frequencies_of_a_decoder_that_scales_them():
    rater, visual = np.array([40, 51]), np.array([3, 17, 30])
    frequencies = np.array([1.0, 0.2, 0.01], np.float32)
    expected = 2 / np.sqrt(6) * np.cos((rater[:, None, None] - visual[:, None]) * frequencies).sum(axis=-1)
    positions = jnp.array([rater]), jnp.array([visual])
    weights = gravity_weights(*positions, frequencies)
    np.testing.assert_allclose(weights[0], expected, rtol=1e-5, atol=1e-6)


def test_gravity_of_several_position_axes_sums_what_each_turns():
    rng = np.random.default_rng(0)
    rater, visual = rng.integers(0, 90, (1, 2, 3)), rng.integers(0, 90, (1, 5, 3))
    frequency, axes = inverse_frequencies(12, 1e4), (0, 2, 1, 1, 2, 0)
    distance = (rater[:, :, None] - visual[:, None])[..., list(axes)] * frequency
    expected = 2 / np.sqrt(12) * np.cos(distance).sum(axis=-1)
    weights = gravity_weights(jnp.asarray(rater), jnp.asarray(visual), of_axes(frequency, axes))
    np.testing.assert_allclose(weights, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("head_dim", "first_negative"), [(128, 1707), (64, 725)])
def test_gravity_weights_change_sign_at_a_known_distance(head_dim, first_negative):
    frequencies = inverse_frequencies(head_dim, 1e4)
    weights = gravity_weights(jnp.arange(1800)[None], jnp.zeros((1, 1), int), frequencies)[0, :, 0]
    assert int(jnp.argmax(weights < 0)) == first_negative
    if head_dim == 128:
        assert weights[:801].min() > 1.12


def test_gravity_floor_keeps_the_divisor_away_from_zero_and_its_sign():
    corrected = correct_gravity(jnp.ones((1, 1, 1, 3)), jnp.array([[[1e-6, -1e-6, 2.0]]]), floor=0.5)
    assert corrected[0, 0, 0].tolist() == [2, -2, 0.5]
    assert correct_gravity(jnp.ones((1, 1, 1, 1)), jnp.array([[[-0.25]]])).item() == -4


def test_priority_heads_pay_most_attention_and_ties_go_to_the_lower_head():
    totals = jnp.array([[1.0, 3.0, 2.0, 3.0, 2.0]])
    attention = totals[..., None, None] * jnp.ones((1, 5, 2, 3))
    assert priority_heads(attention, 3)[0].astype(int).tolist() == [0, 1, 1, 1, 0]


def test_each_row_has_its_own_priority_heads_and_is_averaged_over_them():
    attention = jnp.array([[4.0, 1.0, 2.0], [1.0, 6.0, 4.0]])[..., None, None] * jnp.ones((2, 3, 1, 1))
    heads = priority_heads(attention, 2)
    assert heads.astype(int).tolist() == [[1, 0, 1], [0, 1, 1]]
    assert mean_over_heads(attention, heads)[:, 0, 0].tolist() == [3, 5]


@pytest.mark.parametrize(
    ("heads", "of", "count"),
    [
        (None, 32, None),
        (14, 32, 14),
        (Fraction(14, 32), 32, 14),
        (Fraction(14, 32), 40, 18),  # 17.5, rounded half up
        (Fraction(14, 32), 1, 1),
        (Fraction(1, 100), 32, 1),
    ],
)
def test_head_count(heads, of, count):
    assert RaterScore(heads=heads).head_count(of) == count


def test_more_heads_than_there_are_is_an_error():
    with pytest.raises(ValueError, match="at most 12 scoring heads, got 14"):
        RaterScore(heads=14).head_count(12)
    with pytest.raises(ValueError, match="heads must be a number of heads .* got 0"):
        RaterScore(heads=0)
