"""Raters are the words of the question whose relevance to the image exceeds the mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsevlm_jax.sparsify import question_mask, select_raters

from . import reference

select_raters_jit = jax.jit(select_raters, static_argnames=("question_capacity", "rule"))


def question_of(row: str) -> list[int]:
    """V visual, t text, . padding."""
    visual = jnp.array([[token == "V" for token in row]])
    valid = jnp.array([[token != "." for token in row]])
    return question_mask(visual, valid)[0].astype(int).tolist()


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("tVVtVVtt.", [0, 0, 0, 0, 0, 0, 1, 1, 0]),  # the text behind the last image
        ("tVVtVV...", [0, 0, 0, 1, 0, 0, 0, 0, 0]),  # nothing behind it: what can see an image at all
        ("VVt", [0, 0, 1]),
        ("ttVV.", [0, 0, 0, 0, 0]),  # text that no image comes before
        ("ttt..", [0, 0, 0, 0, 0]),
        ("VV", [0, 0]),
    ],
)
def test_question(row, expected):
    assert question_of(row) == expected


def random_row(seed: int, visual: int, question: int, length: int = 16):
    """Hidden states [L, 8] of [visual | question | padding], and the two masks."""
    rng = np.random.default_rng(seed)
    slot = np.arange(length)
    is_visual, is_question = slot < visual, (slot >= visual) & (slot < visual + question)
    return rng.normal(size=(length, 8)).astype(np.float32), is_visual, is_question


def run(rows, rule="greater", capacity=16):
    hidden, is_visual, is_question = (jnp.array(np.stack(field)) for field in zip(*rows, strict=True))
    return jax.device_get(select_raters_jit(hidden, is_visual, is_question, question_capacity=capacity, rule=rule))


@given(seed=st.integers(0, 999), visual=st.integers(1, 8), question=st.integers(1, 8))
def test_relevance_and_raters_equal_a_float64_recomputation(seed, visual, question):
    row = random_row(seed, visual, question)
    raters = run([row])
    expected = reference.relevance(row[0][row[1]], row[0][row[2]])
    np.testing.assert_allclose(raters.relevance[0][row[2]], expected, rtol=2e-6)
    assert not raters.relevance[0][~row[2]].any()
    chosen = np.asarray(raters.is_rater[0])
    assert not chosen[~row[2]].any()
    if question > 1:
        clear = np.abs(expected - 1 / question) > 1e-6
        assert (chosen[row[2]] == (expected > 1 / question))[clear].all()


def test_neighbours_in_the_batch_and_padding_change_nothing():
    rows = [random_row(0, 8, 5), random_row(1, 1, 8), random_row(2, 0, 6), random_row(3, 7, 0)]
    together = run(rows)
    for b, row in enumerate(rows):
        alone = run([tuple(np.concatenate([field, field[:4] * 0]) for field in row)], capacity=20)
        assert alone.is_rater[0, :16].tolist() == together.is_rater[b].tolist()
        np.testing.assert_allclose(alone.relevance[0, :16], together.relevance[b], rtol=1e-6)


def test_order_of_the_image_tokens_does_not_matter():
    hidden, is_visual, is_question = random_row(4, 8, 6)
    permuted = hidden.copy()
    permuted[:8] = hidden[np.random.default_rng(0).permutation(8)]
    one, other = run([(hidden, is_visual, is_question)]), run([(permuted, is_visual, is_question)])
    np.testing.assert_allclose(one.relevance, other.relevance, rtol=1e-6)
    assert one.is_rater.tolist() == other.is_rater.tolist()


def test_a_single_question_token_is_a_rater_though_it_does_not_exceed_the_mean():
    assert np.flatnonzero(run([random_row(5, 8, 1)]).is_rater[0]).tolist() == [8]


def test_equally_relevant_words_are_all_raters():
    hidden, is_visual, is_question = random_row(6, 8, 4)
    hidden[is_question] = hidden[is_question][:1]
    for rule in ("greater", "greater_equal"):
        assert np.flatnonzero(run([(hidden, is_visual, is_question)], rule).is_rater[0]).tolist() == [8, 9, 10, 11]


def test_a_row_without_image_or_without_question_has_no_rater():
    raters = run([random_row(7, 0, 5), random_row(8, 5, 0)])
    assert not raters.is_rater.any() and not np.isnan(raters.relevance).any()


def test_rules_all_and_last():
    row = random_row(9, 6, 5)
    assert np.flatnonzero(run([row], "all").is_rater[0]).tolist() == [6, 7, 8, 9, 10]
    assert np.flatnonzero(run([row], "last").is_rater[0]).tolist() == [10]


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e18])
def test_relevance_is_finite_in_bfloat16_whatever_the_norms(scale):
    hidden, is_visual, is_question = random_row(10, 8, 5)
    raters = select_raters_jit(
        jnp.array(hidden[None] * scale, jnp.bfloat16), is_visual[None], is_question[None], question_capacity=16
    )
    np.testing.assert_allclose(raters.relevance.sum(), 1, rtol=1e-5)
    assert raters.is_rater.any()
