"""Questions about a scene, each with one right answer that follows from the scene alone."""

from collections import Counter
from collections.abc import Iterator, Mapping
from random import Random
from typing import Final, NamedTuple

from .sprites import CAR_COLOURS, SHAPES
from .world import Scene, Sign, Split, sample

KINDS: Final = ("word by colour", "word by shape", "colour by word", "colour by shape", "count", "car", "beside")
"""What is named in the question, and what is asked for."""

ONE_CAR: Final = "colour of the car"
"""A kind asked in training alone: it teaches where cars are, which "yes" and "no" hardly do."""


EXAM_QUESTIONS: Final = 8
"""Most questions that an exam asks about a scene."""

_EXAM_WEIGHTS: Final[dict[str, float]] = dict(zip(KINDS, (4.0, 1.0, 1.5, 1.0, 1.0, 1.5, 1.5), strict=True))


class Question(NamedTuple):
    text: str
    answer: str
    kind: str


def about(scene: Scene) -> list[Question]:
    """Every question that has one right answer in this scene (of cars that are not there, each colour)."""
    found = [*_words(scene), *_colours(scene), *_beside(scene)]
    if len(scene.cars) == 1:
        found.append(Question("What colour is the car?", scene.cars[0].colour, ONE_CAR))
    found.append(Question("How many signs are there?", str(len(scene.signs)), "count"))
    parked = {car.colour for car in scene.cars}
    found += [
        Question(f"Is there a {colour} car?", "yes" if colour in parked else "no", "car") for colour in CAR_COLOURS
    ]
    return found


def pick(scene: Scene, rng: Random, count: int, weights: Mapping[str, float]) -> list[Question]:
    """Draws questions without repeating one, a kind by its weight and then any of that kind; "yes" as often as "no".

    Fewer than `count` come back where a scene has no more.
    """
    pool: dict[str, list[Question]] = {}
    for question in about(scene):
        if weights.get(question.kind):
            pool.setdefault(question.kind, []).append(question)
    picked: list[Question] = []
    while pool and len(picked) < count:
        kind = rng.choices(list(pool), [weights[kind] for kind in pool])[0]
        picked.append(_take(pool[kind], rng, fair=kind == "car"))
        if not pool[kind]:
            del pool[kind]
    return picked


def exam(seed: int, split: Split = "test") -> tuple[Scene, list[Question]]:
    """The scene of a seed and the questions about it by which the model is judged, fewer where it has no more."""
    scene = sample(seed, split)
    return scene, pick(scene, Random(f"exam {split} {seed}"), EXAM_QUESTIONS, _EXAM_WEIGHTS)


def _take(questions: list[Question], rng: Random, *, fair: bool) -> Question:
    answers = sorted({question.answer for question in questions})
    wanted = rng.choice(answers) if fair else None
    fitting = [index for index, question in enumerate(questions) if wanted in (None, question.answer)]
    return questions.pop(rng.choice(fitting))


def _words(scene: Scene) -> Iterator[Question]:
    for sign in scene.signs:
        yield Question(f"What is written on the {sign.colour} sign?", sign.word, "word by colour")
    for sign in _alone_in_shape(scene):
        yield Question(f"What is written on the {sign.shape} sign?", sign.word, "word by shape")


def _colours(scene: Scene) -> Iterator[Question]:
    words = Counter(sign.word for sign in scene.signs)
    for sign in scene.signs:
        if words[sign.word] == 1:
            yield Question(f"What colour is the sign that says {sign.word}?", sign.colour, "colour by word")
    for sign in _alone_in_shape(scene):
        yield Question(f"What colour is the {sign.shape} sign?", sign.colour, "colour by shape")


def _beside(scene: Scene) -> Iterator[Question]:
    """Signs in one row hang side by side, two at most, so "left of" names one sign."""
    for sign in scene.signs:
        for other in scene.signs:
            if other is not sign and other.row == sign.row:
                side = "left" if other.column < sign.column else "right"
                yield Question(f"Which sign is {side} of the {sign.colour} one?", other.colour, "beside")


def _alone_in_shape(scene: Scene) -> Iterator[Sign]:
    for shape in SHAPES:
        signs = [sign for sign in scene.signs if sign.shape == shape]
        if len(signs) == 1:
            yield signs[0]
