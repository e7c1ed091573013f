"""Compaction moves survivors forward in order, and puts merged tokens behind the last kept visual one."""

import jax
import jax.numpy as jnp
from hypothesis import given
from hypothesis import strategies as st

from sparsevlm_jax.sparsify import TokenStream, compact, slots_of, to_slots

compact_jit = jax.jit(compact, static_argnames=("capacity", "positions"))


def stream_of(rows: list[str]) -> TokenStream:
    """A stream drawn as text: p prompt, V visual, q question, r rater, . padding; hidden states count from 10."""
    hidden = 10.0 + jnp.arange(len(rows[0]))
    return TokenStream(
        hidden=jnp.tile(hidden[None, :, None], (len(rows), 1, 1)),
        position_ids=jnp.tile(100 + jnp.arange(len(rows[0])), (len(rows), 1)),
        is_visual=jnp.array([[token == "V" for token in row] for row in rows]),
        is_rater=jnp.array([[token == "r" for token in row] for row in rows]),
        length=jnp.array([len(row.rstrip(".")) for row in rows]),
    )


def drawn(stream: TokenStream) -> list[str]:
    """The stream as text again, t for plain text."""
    rows = []
    for visual, rater, length in zip(stream.is_visual, stream.is_rater, stream.length, strict=True):
        names = ["V" if v else "r" if r else "t" for v, r in zip(visual, rater, strict=True)]
        rows.append("".join(name if i < int(length) else "." for i, name in enumerate(names)))
    return rows


def compacted(row: str, keep: str, merged: int, capacity: int, positions="repack") -> TokenStream:
    """`merged` merged tokens, of hidden states -1, -2, ... and positions 51, 52, ..., of two there is room for."""
    out = compact_jit(
        stream_of([row]),
        jnp.array([[mark == "1" for mark in keep]]),
        jnp.array([[[-1.0], [-2.0]]]),
        jnp.array([[51, 52]]),
        jnp.array([merged]),
        capacity=capacity,
        positions=positions,
    )
    return jax.device_get(out)


def test_survivors_move_forward_and_merged_tokens_follow_the_last_kept_visual_one():
    out = compacted("ppVVVVqr..", keep="1101101100", merged=1, capacity=8)
    assert drawn(out) == ["ttVVVtr."]
    assert out.hidden[0, :, 0].tolist() == [10, 11, 13, 14, -1, 16, 17, 0]
    assert out.position_ids[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 0]


def test_kept_positions_stay_and_a_merged_token_takes_the_one_it_is_given():
    out = compacted("ppVVVVqr..", keep="1101101100", merged=2, capacity=9, positions="keep")
    assert out.hidden[0, :, 0].tolist() == [10, 11, 13, 14, -1, -2, 16, 17, 0]
    assert out.position_ids[0].tolist() == [100, 101, 103, 104, 51, 52, 106, 107, 0]


def test_with_no_visual_token_kept_merged_ones_stand_where_the_last_was():
    out = compacted("pVVqq", keep="10011", merged=2, capacity=5)
    assert out.hidden[0, :, 0].tolist() == [10, -1, -2, 13, 14]
    assert drawn(out) == ["tVVtt"]


def test_merged_tokens_of_several_images_stand_before_the_question():
    out = compacted("VVqVVq", keep="101101", merged=1, capacity=5)
    assert out.hidden[0, :, 0].tolist() == [10, 12, 13, -1, 15]


def test_a_row_without_image_passes_as_it_is():
    out = compacted("pqr...", keep="111000", merged=0, capacity=4)
    assert drawn(out) == ["ttr."]
    assert out.hidden[0, :, 0].tolist() == [10, 11, 12, 0]


def test_padding_that_is_marked_as_kept_is_still_padding():
    assert int(compacted("VVq..", keep="11111", merged=0, capacity=5).length[0]) == 3


@given(
    row=st.text("pVqr", max_size=9),
    keep=st.lists(st.booleans(), min_size=9, max_size=9),
    merged=st.integers(0, 2),
    positions=st.sampled_from(["repack", "keep"]),
)
def test_compact_is_list_surgery(row, keep, merged, positions):
    merged = merged if "V" in row else 0
    tokens = [(10.0 + i, 100 + i, token == "V", token == "r") for i, token in enumerate(row)]
    visual = [i for i, token in enumerate(row) if token == "V"]
    anchor = max([i for i in visual if keep[i]] or visual, default=-1)
    expected = []
    for i, token in enumerate(tokens):
        expected += [token] if keep[i] else []
        expected += [(-1.0, 51, True, False), (-2.0, 52, True, False)][:merged] if i == anchor else []
    if positions == "repack":
        expected = [(hidden, i, visual, rater) for i, (hidden, _, visual, rater) in enumerate(expected)]

    marks = "".join("01"[kept] for kept in keep)
    out = compacted(row.ljust(9, "."), marks, merged, capacity=11, positions=positions)
    got = zip(out.hidden[0, :, 0], out.position_ids[0], out.is_visual[0], out.is_rater[0], strict=True)
    rows = [tuple(value.item() for value in token) for token in got]
    assert rows == expected + [(0.0, 0, False, False)] * (11 - len(expected))
    assert int(out.length[0]) == len(expected)


def test_slots_of_lists_the_true_slots_in_order_then_fills():
    slots, valid = slots_of(jnp.array([[0, 1, 0, 1, 1], [0, 0, 0, 0, 1]], bool), 4)
    assert slots.tolist() == [[1, 3, 4, 0], [4, 0, 0, 0]]
    assert valid.astype(int).tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]


def test_slots_of_takes_no_more_than_there_is_room_for():
    slots, valid = slots_of(jnp.array([[1, 1, 1]], bool), 2)
    assert (slots.tolist(), valid.tolist()) == ([[0, 1]], [[True, True]])


def test_to_slots_is_the_way_back():
    mask = jnp.array([[0, 1, 0, 1, 1], [0, 0, 0, 0, 1]], bool)
    assert to_slots(jnp.array([[7, 8, 9], [5, 6, 6]]), mask).tolist() == [[0, 7, 0, 8, 9], [0, 0, 0, 0, 5]]
    assert to_slots(jnp.array([[[1.0, 2.0]]]), jnp.array([[0, 1]], bool)).tolist() == [[[0, 0], [1, 2]]]


def test_values_that_are_too_few_leave_the_last_slots_empty():
    assert to_slots(jnp.array([[True]]), jnp.array([[1, 1]], bool)).tolist() == [[True, False]]
