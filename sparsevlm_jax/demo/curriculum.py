"""The course that made the bundled model: its stages, in order, and what each of them shows.

Few signs come before many, and the first letter of an answer, the one that takes choosing a sign, weighs more.
"""

from typing import Final, NamedTuple

from .language import Lesson
from .world import Mix


class Stage(NamedTuple):
    """A stretch of training with an optimiser of its own.

    Attributes:
        layers: of the language model; None trains the tower.
        steps: optimiser steps of `batch` scenes.
        rate: highest learning rate, reached after `warm_up` steps and kept until the last `decay` steps.
        whole: the tower is trained along with the rest.
    """

    name: str
    layers: int | None
    steps: int
    lesson: Lesson
    rate: float = 1e-3
    batch: int = 16
    warm_up: int = 100
    decay: int = 0
    whole: bool = False


READING: Final = {"word by colour": 4.0, "colour by word": 0.5, "car": 0.3, "count": 0.3}
ALL: Final = {
    "word by colour": 4.0,
    "word by shape": 1.5,
    "colour by word": 1.5,
    "colour by shape": 1.0,
    "count": 0.7,
    "car": 0.7,
    "beside": 1.5,
}


def _tower(name: str, steps: int, shift: int, **schedule: float) -> Stage:
    lesson = Lesson(Mix(signs=(3, 8), random_words=0.7, shift=shift), 0, {}, 1.0)
    return Stage(name, None, steps, lesson, rate=1.2e-3, **schedule)


STAGES: Final = (
    _tower("tower-aligned", 312, shift=1),
    _tower("tower-near", 338, shift=2),
    _tower("tower", 1950, shift=3, decay=1800),
    Stage("one-or-two", 6, 1000, Lesson(Mix(signs=(1, 2), lengths=(3, 4), random_words=0.5, shift=2), 6, READING, 3.0)),
    Stage("more", 6, 4000, Lesson(Mix(signs=(2, 4), random_words=0.5), 8, ALL, 3.0)),
    Stage("deep", 12, 8000, Lesson(Mix(signs=(1, 4), random_words=0.5), 8, ALL, 2.0), 8e-4, decay=6000),
)
