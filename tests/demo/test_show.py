"""The demo asks three questions of a street nobody has seen, and tells answers and savings as they are."""

import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from sparsevlm_jax.demo import CHECKPOINT, show, world
from sparsevlm_jax.report.cost import Timing
from sparsevlm_jax.vlm import Output

pytestmark = pytest.mark.slow


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
    ((dense, sparse),) = re.findall(r"entering a layer, mean +([\d.]+) +([\d.]+)", text)
    assert "truth" in text and dense == "144.0" and float(sparse) < 100
    assert f"so more enter one: {sparse}." in text and "on average 7" in text  # half of 144 are left after a layer


def test_times_are_medians_of_warm_runs_in_turn(demo, monkeypatch):
    """One slow run moves neither column, and what slows the machine for a while slows both."""
    report, asked = demo[0].asked[0].dense_report, []
    dense, sparse = [900.0, 10, 11, 800, 12, 13], [700.0, 4, 5, 600, 6, 7]  # first runs come first
    times = [time for pair in zip(dense, sparse, strict=True) for time in pair]

    def generate(*_, sparsity, **__):
        ms = times[len(asked)]
        asked.append(sparsity is None)
        return [Output("", np.array([1]), replace(report, timing=Timing(ms, 2 * ms, None, 0.0)))] * 3

    monkeypatch.setattr(show, "generate", generate)
    monkeypatch.setattr(show, "load", lambda _: None)
    one = show.run_demo(seed=1).asked[0]
    assert asked == [True, False] * 6
    assert one.dense_report.timing == Timing(12, 24, None, 0.0)
    assert one.sparse_report.timing == Timing(6, 12, None, 0.0)


def test_a_file_that_is_there_is_left_alone(tmp_path):
    picture, again = show.scene_and_questions(1)[0].draw(), tmp_path / "again.png"
    show.save(picture, again)
    before = again.read_bytes()
    show.save(picture, again)  # the same picture: as before
    assert again.read_bytes() == before
    again.write_bytes(b"a photograph")
    with pytest.raises(ValueError, match="again.png is there already and is another picture"):
        show.save(picture, again)
    assert again.read_bytes() == b"a photograph"
    with pytest.raises(ValueError, match="ending in .png"):
        show.save(picture, tmp_path / "street.txt")


def test_the_bundled_model_reads_the_sign(demo):
    word = demo[0].asked[0]
    assert word.dense == word.question.answer


def test_the_bundled_checkpoint_is_there():
    assert (CHECKPOINT / "config.json").is_file()
