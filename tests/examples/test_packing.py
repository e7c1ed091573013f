"""Packed questions are answered exactly as if each had been asked alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.train_demo import language, packing, tokenizer, tower
from examples.train_demo.packing import PREFIX_IDS, SEGMENT
from sparsevlm_jax.demo.questions import ONE_CAR, Question
from sparsevlm_jax.demo.world import Mix
from sparsevlm_jax.models.families.llava import encode_images
from sparsevlm_jax.runtime.prefill import PrefillInputs, prefill
from sparsevlm_jax.sparsify import Bucket

pytestmark = pytest.mark.slow

CONFIG = language.config(2)
LESSON = language.Lesson(Mix(signs=(3, 4)), 3, {"word by colour": 1.0, "car": 1.0}, 3.0)


@pytest.fixture(scope="module")
def params():
    return language.new_params(0, 2, tower.new_params(0)["vision_tower"], 1.0)


def test_packed_logits_are_those_of_each_question_alone(params):
    data = language.batch(0, 2, LESSON)
    packed = jax.jit(language.logits, static_argnums=2)(params, data, CONFIG)
    features = encode_images(params, jnp.asarray(data.pixel_values), config=CONFIG, implementation="xla")
    visual = CONFIG.tokens_per_image
    for row in range(2):
        for place in range(3):
            own = data.segments.ids[row, place]
            used = int((own != tokenizer.PAD).sum())
            ids = np.array([[*PREFIX_IDS, *[tokenizer.IMAGE] * visual, *own[:used]]], np.int32)
            alone = prefill(
                params,
                PrefillInputs.of(jnp.asarray(ids), jnp.array([ids.shape[1]]), features[row : row + 1], tokenizer.IMAGE),
                config=CONFIG,
                sparsity=None,
                bucket=Bucket(ids.shape[1] - visual, visual),
                implementation="xla",
            )
            np.testing.assert_allclose(packed[row, place, used - 1], alone.logits[0], atol=2e-5)


def test_the_mask_is_the_one_drawn_in_the_module(params):
    """Which keys each query sees, found by asking: which outputs move with which values."""
    prefix, segments = 3, 2
    tokens = prefix + segments * SEGMENT
    q, k, v = jax.random.normal(jax.random.key(0), (3, 1, tokens, 1, 4))
    outputs = functools.partial(packing.packed_attention, prefix=prefix)
    slope = jax.jacobian(outputs, argnums=2)(q, k, v)[0, :, 0, 0, 0, :, 0, 0]
    place = np.arange(tokens)
    segment = np.where(place < prefix, -1, (place - prefix) // SEGMENT)
    expected = (place <= place[:, None]) & ((segment == -1) | (segment == segment[:, None]))
    np.testing.assert_array_equal(np.asarray(slope > 0), expected)


def test_only_answers_are_learned_and_their_first_token_most():
    packed = packing.pack([[Question("How many signs are there?", "3", "count")]], 2, first_weight=3.0)
    asked = tokenizer.encode("How many signs are there? ASSISTANT:")
    three = tokenizer.encode("3")
    np.testing.assert_array_equal(packed.ids[0, 0, : len(asked) + 1], [*asked, *three])
    assert packed.weights[0, 0].nonzero()[0].tolist() == [len(asked) - 1, len(asked)]
    assert packed.weights[0, 0, len(asked) - 1 : len(asked) + 1].tolist() == [3.0, 1.0]
    assert packed.targets[0, 0, len(asked) - 1 : len(asked) + 1].tolist() == [*three, tokenizer.EOS]
    assert not packed.weights[0, 1].any()


def test_hints_ask_for_the_first_answer_token_where_the_question_names_its_thing():
    asked = {
        Question("What is written on the blue sign?", "CAFE", "word by colour"): "blue",
        Question("What colour is the sign that says CAFE?", "red", "colour by word"): "CAFE",
        Question("Is there a red car?", "yes", "car"): "red car",
        Question("What colour is the car?", "red", ONE_CAR): "car",
    }
    for question, name in asked.items():
        packed = packing.pack([[question]], 1, hints=True)
        hinted = (packed.weights[0, 0] > 0) & (packed.weights[0, 0] < 1)
        assert packed.ids[0, 0, hinted].tolist() == list(tokenizer.encode(name))
        assert set(packed.targets[0, 0, hinted]) == {tokenizer.encode(question.answer)[0]}
        assert packed.weights[0, 0, hinted].sum() == pytest.approx(packing.HINT)


def test_a_picture_with_too_many_questions_is_refused():
    question = Question("How many signs are there?", "3", "count")
    with pytest.raises(ValueError, match="expected at most 1 questions of a picture, got 2"):
        packing.pack([[question, question]], 1)
