"""Training resumes exactly, learns what it should and leaves alone what it should; growth changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.train_demo import language, tokenizer, tower, train
from examples.train_demo.curriculum import ALL, STAGES, Stage
from examples.train_demo.language import Lesson
from sparsevlm_jax.demo.world import Mix
from tests.marks import sampled

pytestmark = pytest.mark.slow

LESSON = Lesson(Mix(signs=(1, 2)), 2, ALL, 3.0)
TOWER = Stage("tower", 0, 4, LESSON, batch=2, warm_up=1, trains="tower")
ALIGN = Stage("align", 1, 4, LESSON, batch=2, warm_up=1, trains="projector")
READ = Stage("read", 1, 4, LESSON, batch=2, warm_up=1, decay=2)


def same(one, other) -> bool:
    return all(jax.tree.leaves(jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), one, other)))


@pytest.fixture(scope="module")
def fresh_tower():
    return tower.new_params(0)


@pytest.mark.parametrize("stage", sampled([TOWER, ALIGN, READ], ["read"], name=lambda stage: stage.name))
def test_a_run_that_was_stopped_ends_where_an_uninterrupted_one_does(stage, fresh_tower, tmp_path):
    def job():
        return train.task(stage, jax.tree.map(jnp.copy, fresh_tower), 0)

    whole = train.run_stage(stage, job(), tmp_path / "whole")
    first = train.run_stage(stage, job(), tmp_path / "pieces", stop_after=0.0)
    assert int(first.step) == 1
    second = train.run_stage(stage, job(), tmp_path / "pieces")
    assert int(second.step) == int(whole.step) == 4
    assert same(second, whole)


def test_stages_follow_one_another_and_a_finished_run_is_only_read(tmp_path):
    stages = (TOWER._replace(steps=2), READ._replace(steps=2))
    params = train.run(tmp_path, stages=stages)
    assert set(params) >= {"vision_tower", "multi_modal_projector", "language_model", "lm_head"}
    assert same(params["vision_tower"], train.trained(tmp_path, stages[:1])["vision_tower"])
    again = train.run(tmp_path, stages=stages)
    assert same(again["language_model"], params["language_model"])


def test_scenes_drawn_in_processes_are_the_same(fresh_tower, tmp_path):
    def job():
        return train.task(READ, jax.tree.map(jnp.copy, fresh_tower), 0)

    here = train.run_stage(READ, job(), tmp_path / "here")
    assert same(train.run_stage(READ, job(), tmp_path / "there", workers=1), here)


def test_unit_norm_changes_no_answer_but_the_size_of_embeddings(fresh_tower):
    params = language.new_params(0, 2, fresh_tower["vision_tower"], 1.0)
    data, config = language.batch(0, 1, LESSON), language.config(2)
    scaled = language.unit_norm(params)
    norms = jnp.linalg.norm(scaled["language_model"]["embed_tokens"]["embedding"], axis=-1)
    assert float(norms.mean()) == pytest.approx(1, abs=1e-5)
    before, after = (language.logits(each, data, config) for each in (params, scaled))
    np.testing.assert_allclose(after, before, atol=1e-4 * float(jnp.abs(before).max()))
    assert same(language.unit_norm(scaled)["lm_head"], params["lm_head"])


def test_a_patch_is_called_by_the_words_for_what_is_on_it():
    """A red car is red and a car; a neighbour's colour is there, but not as the sign's own."""
    table = jnp.eye(len(tokenizer.vocabulary()))
    labels = {name: np.zeros((1, 3), np.int32) for name in tower.TARGETS}
    labels["car"][0, 0] = 1
    labels["letter"][0, 1], labels["colour"][0, 1], labels["left"][0, 1] = 1, 2, 2
    called = language.described(labels, table)[0]

    def word(text: str) -> jax.Array:
        return table[jnp.array(tokenizer.encode(text))].sum(0)

    np.testing.assert_array_equal(called[0], word("red car") / 2)
    turned = jnp.roll(word("red"), table.shape[1] // 3)
    np.testing.assert_array_equal(called[1], (word("A") + word("blue") + turned) / 2)
    np.testing.assert_array_equal(called[2], word("street"))


def test_growing_changes_no_answer(fresh_tower):
    params = language.new_params(0, 2, fresh_tower["vision_tower"], 1.0)
    data = language.batch(0, 1, LESSON)
    before = language.logits(params, data, language.config(2))
    after = language.logits(language.grow(params, 5), data, language.config(5))
    np.testing.assert_allclose(after, before, atol=1e-5)
    with pytest.raises(ValueError, match="at least the 2 layers there are, got 1"):
        language.grow(params, 1)


def test_the_tower_stays_as_it_is_unless_a_stage_trains_the_whole(fresh_tower):
    assert set(train.task(READ, fresh_tower, 0).frozen) == {"vision_tower"}
    assert not train.task(READ._replace(trains="all"), fresh_tower, 0).frozen


def test_the_learning_rate_rises_holds_and_falls():
    stage = Stage("a", 1, 100, LESSON, rate=1e-3, warm_up=10, decay=50)
    rate = train.schedule(stage)
    assert rate(0) == 0 and rate(10) == rate(50) == pytest.approx(1e-3)
    assert rate(75) == pytest.approx(1e-3 * (1 + 1 / 30) / 2) and rate(100) == pytest.approx(1e-3 / 30)


def test_a_step_draws_scenes_of_its_own():
    seen = [language.batch(step, 2, LESSON).pixel_values.tobytes() for step in (0, 1, 0)]
    assert seen[0] == seen[2] != seen[1]


def test_patch_labels_spell_the_signs():
    scene = tower.world.sample(3, "train", Mix(signs=(4, 4)))
    labels = tower.patch_labels(scene)
    letters = labels["letter"].reshape(12, 12)
    for sign in scene.signs:
        cells = letters[sign.row, sign.column : sign.column + len(sign.word)]
        assert "".join(chr(ord("A") + code - 1) for code in cells) == sign.word
    assert (letters > 0).sum() == sum(len(sign.word) for sign in scene.signs)


def test_the_stages_of_the_bundled_model_end_in_a_model_with_room_for_three_pruning_stages():
    assert STAGES[-1].layers == 12
    assert all(stage.warm_up + stage.decay <= stage.steps for stage in STAGES)
