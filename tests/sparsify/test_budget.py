"""Budgets say how many tokens stay, exactly."""

from decimal import Decimal
from fractions import Fraction
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsevlm_jax.sparsify import (
    Bucket,
    Geometry,
    KeptTokens,
    PerImage,
    RankDeficit,
    RankScale,
    Recycle,
    Share,
    Tokens,
)
from sparsevlm_jax.sparsify.budget import CountInputs


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        (192, 192),
        ("192", 192),
        (" 64 ", 64),
        (np.int64(64), 64),
        (1, 1),
        ("1", 1),
        ("1/3", Share(Fraction(1, 3))),
        (Fraction(1, 3), Share(Fraction(1, 3))),
        (Share(Fraction(1, 3)), Share(Fraction(1, 3))),
        (0.25, Share(Fraction(1, 4))),
        (np.float32(0.25), Share(Fraction(1, 4))),
        ("0.25", Share(Fraction(1, 4))),
        ("25%", Share(Fraction(1, 4))),
        (0.1, Share(Fraction(1, 10))),
        ("100%", Share(Fraction(1))),
        ("1.0", Share(Fraction(1))),
        (1.0, Share(Fraction(1))),
    ],
)
def test_a_budget_is_a_number_of_tokens_or_a_share(text, amount):
    parsed = Tokens.parse(text).amount
    assert parsed == amount and type(parsed) is type(amount) and Tokens(text).amount == parsed


@pytest.mark.parametrize(
    "text",
    [
        *(0, -3, "0", "3/2", 1.5, "150%", "0%", True, "many", "", "1/0", None, "nan", 1e400, "192.0", 2**31, 10**5000),
        *("1e99999999", "1e-99999999", "9" * 10**6, Decimal("1e99999999"), [192], np.array([192])),
    ],
    ids=lambda value: str(type(value)),
)
def test_anything_else_is_refused_by_name_and_at_once(text):
    with pytest.raises(ValueError, match="^tokens must be a number of tokens .* got") as caught:
        Tokens.parse(text)
    assert len(str(caught.value)) < 400


def kept(budget: KeptTokens, *layers: int, visual: int = 40, images: int = 1, recycle: Recycle | None = None) -> list:
    """What each stage keeps of rows with no image, one, ... of `visual` tokens."""
    return budget.table(Geometry(32, layers, visual * images), recycle)[:, ::visual].tolist()


def test_kept_tokens_drop_at_least_one_token_a_stage_and_none_of_nothing():
    assert kept(KeptTokens((100, 5)), 1, 3) == [[0, 39], [0, 5]]
    assert kept(KeptTokens((100, 100, 100)), 1, 3, 5) == [[0, 39], [0, 38], [0, 37]]


def test_kept_tokens_count_merged_ones_when_they_clamp():
    # 40 -> 39 + 1 merged -> 39 + 1 merged: nothing is gained, as in the official code.
    assert kept(KeptTokens((100, 100)), 1, 3, recycle=Recycle()) == [[0, 39], [0, 39]]


def test_kept_tokens_are_for_each_row_whatever_its_images():
    assert kept(KeptTokens((50,)), 1, images=2) == [[0, 39, 50]]


def test_kept_tokens_need_one_number_a_stage():
    with pytest.raises(ValueError, match=r"pruning layers \(1, 3\), got \(5,\)"):
        kept(KeptTokens((5,)), 1, 3)
    wrong: Any = {(): "list of at least 1", (-1,): "whole number >= 0", (2.5,): "number of kept tokens .* or a share"}
    for tokens, expected in wrong.items():
        with pytest.raises(ValueError, match=f"kept.* must be a {expected}"):
            KeptTokens(tokens)


def test_kept_tokens_are_numbers_or_shares_of_the_prompts_and_may_be_all():
    parsed = [KeptTokens.parse(tokens) for tokens in ("1/2, 1/4,0.125", (Fraction(1, 2), 0.25, Share(Fraction(1, 8))))]
    assert parsed[0] == parsed[1] and parsed[0].number(1) is None
    assert kept(parsed[0], 7, 15, 23, visual=576, images=2) == [
        [0, 288, 576],
        [0, 144, 288],
        [0, 72, 144],
    ]
    assert kept(KeptTokens.parse("576"), 1, visual=576) == [[0, 576]]
    assert kept(KeptTokens((576,)), 1, visual=576) == [[0, 575]]
    assert KeptTokens.parse(192) == KeptTokens.parse("192") == KeptTokens.parse([192])


def inputs_of_ranks(ranks, visual: int) -> CountInputs:
    """One row per rank: a map with that many equal singular values."""
    raters = max(*ranks, 1)
    maps = np.stack([np.eye(raters, visual) * (np.arange(raters) < r)[:, None] for r in ranks])
    full = np.full(len(ranks), visual), np.full(len(ranks), raters)
    return CountInputs(jnp.array(full[0]), jnp.array(full[1]), jnp.array(maps, jnp.float32))


@pytest.mark.parametrize(("scale", "bias"), [(13.5, 0), (9, 6), (0.8, 0), (0.29, 0), (1, -3), (0.1, 0.7)])
def test_rank_scale_truncates_as_python_does(scale, bias):
    ranks = list(range(25))
    counts = RankScale(scale, bias).count(inputs_of_ranks(ranks, visual=60))
    assert counts.tolist() == [min(max(int(r * scale + bias), 0), 59) for r in ranks]


def test_rank_scale_is_exact_where_float32_is_not():
    assert int(100 * 0.29) == 28 and int(np.float32(100) * np.float32(0.29)) == 29
    assert RankScale(0.29, 0).count(inputs_of_ranks([100], visual=120)).tolist() == [28]


def test_full_rank_keeps_everything_otherwise_at_least_one_token_goes():
    assert RankScale(13.5, 0).count(inputs_of_ranks([6, 5], visual=6)).tolist() == [6, 5]


def test_rank_deficit_drops_a_share_of_what_the_rank_leaves():
    counts = RankDeficit(0.5).count(inputs_of_ranks([0, 3, 10], visual=10))
    assert counts.tolist() == [5, 7, 10]
    assert RankDeficit(0.0).count(inputs_of_ranks([3], visual=10)).tolist() == [10]
    with pytest.raises(ValueError, match="scale must be a share between 0 and 1.* got 1.5"):
        RankDeficit(1.5)


def test_smooth_ranks_count_too():
    inputs = inputs_of_ranks([4, 6], visual=20)
    assert RankScale(2.5, 1, measure="stable").count(inputs).tolist() == [11, 16]
    assert RankDeficit(0.5, measure="stable").count(inputs).tolist() == [12, 13]


def test_capacity_bounds_what_a_stage_keeps():
    bucket = Bucket(9, 20)
    assert [RankScale(capacity=capacity).bound(20, bucket) for capacity in (7, 70, None)] == [7, 20, 20]


def test_a_budget_for_each_image_is_bounded_by_their_number():
    bucket = Bucket(9, 90, images=3)
    assert [PerImage(20).bound(90, bucket), PerImage(40).bound(90, bucket)] == [60, 90]
    assert PerImage(Share(Fraction(1, 3))).bound(576, Bucket(9, 576)) == 192


@given(
    share=st.fractions(Fraction(1, 200), 1, max_denominator=200),
    images=st.lists(st.integers(1, 120), min_size=1, max_size=5),
)
def test_no_images_are_more_than_a_share_of_each_is_bounded_by(share, images):
    budget = PerImage(Share(share))
    assert sum(map(budget.of, images)) <= budget.bound(sum(images), Bucket(9, sum(images), images=len(images)))


def test_a_budget_for_each_image_counts_what_the_tower_has_left():
    inputs = CountInputs(jnp.array([4]), jnp.array([1]), None, jnp.array([[2.0, 0.0, 1.0, 0.0]]))
    assert PerImage(2).count(inputs).tolist() == [2]


def test_a_rank_needs_the_raters_attention():
    with pytest.raises(ValueError, match=r"RankScale.* counts by the raters' attention, which .* does not give"):
        RankScale().count(CountInputs(jnp.array([4]), jnp.array([1]), None))
