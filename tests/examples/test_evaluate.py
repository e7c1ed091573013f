"""Scores are counted right, their intervals are Wilson's, and the controls change what they say they change."""

import numpy as np
import pytest

from examples.train_demo import evaluate, tokenizer
from examples.train_demo.evaluate import Score
from sparsevlm_jax.demo.questions import Question, exam


@pytest.mark.parametrize(
    ("score", "interval"),
    [(Score(8, 10), (0.4902, 0.9433)), (Score(0, 20), (0.0, 0.1611)), (Score(950, 1000), (0.9347, 0.9618))],
)
def test_intervals_are_wilsons(score, interval):
    assert score.interval == pytest.approx(interval, abs=1e-4)


def test_tally_counts_by_kind_and_in_all():
    marks = [
        (Question("a", "CAFE", "word by colour"), True),
        (Question("b", "AQUA", "word by colour"), False),
        (Question("c", "2", "count"), True),
    ]
    scores = evaluate.tally(marks)
    assert scores["word by colour"] == Score(1, 2)
    assert scores["count"] == Score(1, 1)
    assert scores["word, never seen in training"] == Score(0, 1)
    assert scores["all"] == Score(2, 3)


def test_the_blank_picture_hides_everything_and_asks_the_same():
    exams = [exam(seed) for seed in range(3)]
    plain, blank = evaluate._batch(exams, "none"), evaluate._batch(exams, "blank picture")
    assert not blank.pixel_values.any()
    np.testing.assert_array_equal(plain.segments.ids, blank.segments.ids)


def test_shuffled_questions_keep_picture_and_answers_and_change_every_question():
    exams = [exam(seed) for seed in range(3)]
    plain, turned = evaluate._batch(exams, "none"), evaluate._batch(exams, "shuffled questions")
    np.testing.assert_array_equal(plain.pixel_values, turned.pixel_values)
    for row, (_, asked) in enumerate(exams):
        for place, question in enumerate(asked):
            before, after = (_due(batch.segments, row, place) for batch in (plain, turned))
            assert before == after == [*tokenizer.encode(question.answer), tokenizer.EOS]
            assert (plain.segments.ids[row, place] != turned.segments.ids[row, place]).any()


def _due(segments, row: int, place: int) -> list[int]:
    return segments.targets[row, place][segments.weights[row, place] > 0].tolist()


def test_the_table_has_a_line_for_every_kind():
    table = evaluate.table(evaluate.tally([(Question("c", "2", "count"), True)]))
    assert "| count | 100.0% | 20.7% to 100.0% | 1 |" in table
