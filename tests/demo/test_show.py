"""The demo asks three questions of a street nobody has seen, and tells answers and savings as they are."""

import pytest
from PIL import Image

from sparsevlm_jax.demo import CHECKPOINT, show, world


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    path = tmp_path_factory.mktemp("demo") / "street.png"
    return show.run_demo(seed=1, tokens="1/2", save_to=path), path


def test_it_asks_three_kinds_of_question_about_one_held_out_scene(demo):
    scene, questions = show.scene_and_questions(1)
    assert [question.kind for question in questions] == ["word by colour", "colour by word", "car"]
    assert [asked.question for asked in demo[0].asked] == questions
    assert all(world.split_of(sign.word, sign.colour, sign.row, sign.side) == "test" for sign in scene.signs)


def test_it_saves_the_picture_it_asked_about(demo):
    result, path = demo
    with Image.open(path) as saved:
        assert saved.size == (840, 840)
    assert result.picture.size == (world.SIZE, world.SIZE)


def test_pruned_runs_cost_less_and_say_so(demo):
    for asked in demo[0].asked:
        assert asked.sparse_report.mean_entering_layers < asked.dense_report.mean_entering_layers == 144
        assert asked.sparse_report.flops < asked.dense_report.flops
    text = "\n".join(show.lines(demo[0]))
    assert "truth" in text and "144.0 ->" in text


def test_the_bundled_model_reads_the_sign(demo):
    word = demo[0].asked[0]
    assert word.dense == word.question.answer


def test_the_bundled_checkpoint_is_there():
    assert (CHECKPOINT / "config.json").is_file()
