"""Pictures come from a saved trace alone, and show what it says."""

import numpy as np
import pytest

from sparsevlm_jax.processing import square_picture
from sparsevlm_jax.report import visualize
from sparsevlm_jax.report.trace import SparsityTrace, StageRecord, save_trace

GREY, SIZE = 120, 4  # a grey picture of 2 x 2 patches, 4 pixels each


def trace(**fields) -> SparsityTrace:
    """Four patches; patch 3 stays, 0 and 1 become one merged token, 2 is dropped."""
    stage = StageRecord(
        layer=2,
        origin=np.arange(4),
        scores=np.array([0.2, 0.1, 0.05, 0.65]),
        kept=np.array([3]),
        candidates=np.array([0, 1]),
        cluster=np.array([0, 0]),
        centers=np.array([0]),
        position_ids=np.arange(4),
    )
    second = stage._replace(
        layer=3,
        origin=np.array([3, -1]),
        scores=np.array([0.9, 0.1]),
        kept=np.array([1]),
        candidates=np.zeros(0, int),
        cluster=np.zeros(0, int),
        centers=np.zeros(0, int),
    )
    report = {"paper_macs": 1, "paper_macs_dense": 2, "mean_after_layers": 2.5, "mean_entering_layers": 3.0}
    whole = SparsityTrace(
        method="sparsevlm",
        prompt="What is written on the blue sign?",
        tokens=("<s>", "▁What", "▁blue", "<0x3F>"),
        is_rater=np.array([False, False, True, False]),
        relevance=np.array([0, 0.2, 0.7, 0.1]),
        images=(np.full((2 * SIZE, 2 * SIZE, 3), GREY, np.uint8),),
        image=np.zeros(4, int),
        box=square_picture(2).box,
        visual_tokens=np.array([4, 4, 4, 2]),
        stages=(stage, second),
        report=report,
    )
    return whole._replace(**fields)


def patch(picture: np.ndarray, index: int) -> np.ndarray:
    row, column = divmod(index, 2)
    return picture[row * SIZE : (row + 1) * SIZE, column * SIZE : (column + 1) * SIZE]


def test_kept_patches_stay_dropped_ones_fade_and_recycled_ones_are_tinted():
    picture = visualize.kept_picture(trace(), 0)
    np.testing.assert_allclose(patch(picture, 3), GREY / 255)
    assert patch(picture, 2).min() > 0.85  # nearly white
    tinted = patch(picture, 0)
    np.testing.assert_allclose(tinted, patch(picture, 1))
    assert np.ptp(tinted.mean(axis=(0, 1))) > 0.1  # a colour, not a grey


def test_a_merged_token_kept_later_shows_all_its_patches():
    picture = visualize.kept_picture(trace(), 1)
    for index in (0, 1):
        np.testing.assert_allclose(patch(picture, index), GREY / 255)
    assert patch(picture, 3).min() > 0.85


def test_scores_stand_on_the_patches_they_belong_to():
    for stage, expected in ((0, [0.2, 0.1, 0.05, 0.65]), (1, [0.1, 0.1, np.nan, 0.9])):
        scores = visualize.score_map(trace(), stage)
        for index, score in enumerate(expected):
            np.testing.assert_array_equal(patch(scores, index), np.full((SIZE, SIZE), score))


def test_images_of_any_size_stand_side_by_side_and_a_separator_is_nowhere():
    high, wide = np.full((3 * SIZE, SIZE, 3), 30, np.uint8), np.full((SIZE, 2 * SIZE, 3), 60, np.uint8)
    box = np.array([[0, 0, 1 / 3, 1], [1 / 3, 0, 2 / 3, 1], [0, 0, 0, 0], [0, 0.5, 1, 1]])
    picture = visualize.kept_picture(trace(images=(high, wide), image=np.array([0, 0, 1, 1]), box=box), 0)
    assert picture.shape == (3 * SIZE, 3 * SIZE, 3)
    np.testing.assert_allclose(picture[:SIZE, 2 * SIZE :], 60 / 255)  # kept
    assert picture[:SIZE, SIZE : 2 * SIZE].min() > 0.8 and picture[SIZE:, SIZE:].min() == 1
    assert np.ptp(picture[: 2 * SIZE, :SIZE].mean(axis=(0, 1))) > 0.1  # recycled


def test_tokens_are_shown_as_words():
    assert [visualize.readable(token) for token in trace().tokens] == ["", "What", "blue", "?"]


def test_figures_are_saved_as_png_and_svg_and_as_nothing_else(tmp_path):
    visualize.save(visualize.visualize(trace()), tmp_path / "one.png")
    both = visualize.compare([trace(), trace(prompt="Is there a car?")], ["STOP", "no"])
    visualize.save(both, tmp_path / "two.svg")
    assert (tmp_path / "two.svg").read_text().startswith("<?xml")
    assert (tmp_path / "one.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match=r"\.png or \.svg"):
        visualize.save(visualize.visualize(trace()), tmp_path / "one.jpg")


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="had no image"):
        visualize.visualize(trace(stages=()))
    with pytest.raises(ValueError, match="different pictures"):
        visualize.compare([trace(), trace(images=(np.zeros((8, 8, 3), np.uint8),))])


def test_the_command_draws_saved_traces(tmp_path, capsys):
    from sparsevlm_jax.cli import main

    path = save_trace(tmp_path / "blue", trace())
    assert main(["visualize", str(path), "--output", str(tmp_path / "blue.png")]) == 0
    assert (tmp_path / "blue.png").stat().st_size > 10_000
    assert main(["visualize", str(tmp_path / "none.npz")]) == 2
    assert "none.npz" in capsys.readouterr().err
