"""Every answer is the one a careful reader of the scene's description gives, worked out here another way."""

from random import Random

import pytest

from sparsevlm_jax.demo import questions, world
from sparsevlm_jax.demo.questions import KINDS, ONE_CAR, Question
from sparsevlm_jax.demo.world import Mix, Scene

SCENES = [world.sample(seed, "test") for seed in range(200)]


def answer(scene: Scene, text: str) -> str:
    """Reads the question word by word; geometry is judged in pixels, not by the layout's rows."""
    words = text.rstrip("?").split()
    match words:
        case ["What", "is", "written", "on", "the", name, "sign"]:
            return one({sign.word for sign in scene.signs if name in (sign.colour, sign.shape)})
        case ["What", "colour", "is", "the", "sign", "that", "says", word]:
            return one({sign.colour for sign in scene.signs if sign.word == word})
        case ["What", "colour", "is", "the", "car"]:
            assert len(scene.cars) == 1
            return scene.cars[0].colour
        case ["What", "colour", "is", "the", shape, "sign"]:
            return one({sign.colour for sign in scene.signs if sign.shape == shape})
        case ["How", "many", "signs", "are", "there"]:
            return str(len(scene.signs))
        case ["Is", "there", "a", colour, "car"]:
            return "yes" if any(car.colour == colour for car in scene.cars) else "no"
        case ["Which", "sign", "is", side, "of", "the", colour, "one"]:
            return one({other.colour for other in beside(scene, side, colour)})
    raise AssertionError(f"no such question: {text}")


def one(found: set[str]) -> str:
    assert len(found) == 1, "the question has no single right answer"
    return found.pop()


def beside(scene: Scene, side: str, colour: str):
    left, top, right, bottom = next(sign.box for sign in scene.signs if sign.colour == colour)
    for other in scene.signs:
        level = other.box[1] < bottom and top < other.box[3]
        if level and (other.box[2] <= left if side == "left" else other.box[0] >= right):
            yield other


@pytest.mark.parametrize("kind", (*KINDS, ONE_CAR))
def test_answers_are_right(kind):
    asked = [(scene, question) for scene in SCENES for question in questions.about(scene) if question.kind == kind]
    assert len(asked) > 50
    assert all(question.answer == answer(scene, question.text) for scene, question in asked)


def test_one_picture_gives_questions_with_different_answers():
    assert all(len({question.answer for question in questions.about(scene)}) >= 4 for scene in SCENES)


def test_pick_repeats_no_question_and_keeps_to_the_kinds_it_is_given():
    weights = {"word by colour": 1.0, "count": 1.0}
    for seed, scene in enumerate(SCENES):
        picked = questions.pick(scene, Random(seed), 8, weights)
        assert len(set(picked)) == len(picked) == min(8, len(scene.signs) + 1)
        assert {question.kind for question in picked} <= set(weights)


def test_yes_is_as_frequent_as_no():
    scenes = [world.sample(seed, "train", Mix(signs=(1, 1))) for seed in range(2000)]
    scenes = [scene for scene in scenes if scene.cars]
    picked = [questions.pick(scene, Random(seed), 1, {"car": 1.0})[0] for seed, scene in enumerate(scenes)]
    yes = sum(question.answer == "yes" for question in picked) / len(picked)
    assert 0.46 < yes < 0.54


def test_a_question_is_a_plain_value():
    assert Question("How many signs are there?", "2", "count") in questions.about(
        next(scene for scene in SCENES if len(scene.signs) == 2)
    )
