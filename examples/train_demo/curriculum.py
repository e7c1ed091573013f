"""The course that made the bundled model: its stages, in order, and what each of them shows.

Few signs come before many, and the first letter of an answer, the one that takes choosing a sign, weighs more.
"""

from typing import Final, Literal, NamedTuple

from sparsevlm_jax.demo.questions import ONE_CAR
from sparsevlm_jax.demo.world import Mix

from .language import Lesson


class Stage(NamedTuple):
    """A stretch of training with an optimiser of its own.

    Attributes:
        layers: of the language model, which grows where a stage has more than the one before.
        steps: optimiser steps of `batch` scenes.
        rate: highest learning rate, reached after `warm_up` steps and kept until the last `decay` steps.
        tokens: the budget of image tokens while pruning is on; None trains dense.
        trains: "tower" under its throw-away head; "projector" towards the words for what is on a patch; "language",
            projector and language model on a frozen tower; "all" of the model.
    """

    name: str
    layers: int
    steps: int
    lesson: Lesson
    rate: float = 1e-3
    batch: int = 16
    warm_up: int = 100
    decay: int = 0
    tokens: str | None = None
    trains: Literal["tower", "projector", "language", "all"] = "language"


NAMED: Final = {"word by colour": 1.0, "word by shape": 1.0}
READING: Final = {"word by colour": 4.0, "word by shape": 1.0, "colour by word": 0.5, "car": 0.2, "count": 0.1}
ALL: Final = {
    "word by colour": 4.0,
    "word by shape": 1.5,
    "colour by word": 1.5,
    "colour by shape": 1.5,
    "count": 0.5,
    "car": 1.0,
    "beside": 1.5,
}
ALL_FAIR: Final = {**ALL, "car": 3.0, "colour by word": 2.0}
SLOW: Final = {**ALL, "word by colour": 2.5, "word by shape": 1.0, "car": 4.0, "colour by word": 4.0, "beside": 2.5}
"""Those that are learned last, more often."""
CARS: Final = {**ALL, "word by colour": 1.0, "word by shape": 0.5, "car": 4.0, ONE_CAR: 20.0, "beside": 6.0}
LAST: Final = {**ALL, "word by colour": 2.0, "car": 6.0, ONE_CAR: 4.0, "colour by word": 1.0, "beside": 6.0}


def _tower(name: str, steps: int, shift: int, decay: int = 0) -> Stage:
    lesson = Lesson(Mix(signs=(3, 8), random_words=0.7, shift=shift), 0, {}, 1.0)
    return Stage(name, 0, steps, lesson, 1.2e-3, decay=decay, trains="tower")


STAGES: Final = (
    _tower("tower-aligned", 312, shift=1),
    _tower("tower-near", 338, shift=2),
    _tower("tower", 1950, shift=3, decay=1800),
    Stage(
        "words-for-patches",
        6,
        1500,
        Lesson(Mix(signs=(3, 8), random_words=0.7), 0, {}, 1.0),
        2e-3,
        decay=1200,
        trains="projector",
    ),
    Stage("one", 6, 600, Lesson(Mix(signs=(1, 1), random_words=0.5), 2, NAMED, 3.0), batch=8),
    Stage("few", 6, 600, Lesson(Mix(signs=(1, 3), random_words=0.5), 6, READING, 3.0), batch=8),
    Stage("more", 6, 3250, Lesson(Mix(signs=(2, 4), random_words=0.5), 8, ALL, 3.0), batch=8),
    Stage("deep", 12, 2500, Lesson(Mix(signs=(1, 4), random_words=0.5), 8, ALL_FAIR, 2.0), batch=8),
    Stage("rest", 12, 2500, Lesson(Mix(signs=(1, 4), random_words=0.5), 8, SLOW, 2.0), batch=8, decay=2000),
    Stage("cars", 12, 700, Lesson(Mix(signs=(1, 3), random_words=0.5), 8, CARS, 2.0), batch=8),
    Stage("last", 12, 1700, Lesson(Mix(signs=(1, 4), random_words=0.5), 8, LAST, 2.0), batch=8, decay=1300),
)

PRUNED: Final = Stage("pruned", 12, 400, Lesson(Mix(random_words=0.5), 4, ALL, 2.0), 1e-4, 4, 50, 350, "1/3")
"""An extra stage, not part of the bundled model: training with pruning on."""
