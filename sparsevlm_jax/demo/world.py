"""A drawn world: streets with coloured signs that bear words, among windows and cars.

A `Scene` says what is in a picture; `scene.draw()` paints it. Both follow from a split and a seed alone. A sign's
letters sit one to a patch (14 pixels apart), the whole sign shifted by a few pixels off the patch grid, so a word of
five letters fills five of the 144 patches and different questions need different patches.

Splits share no seed, and no combination of word, colour and place: a hash of the three gives every combination to
exactly one split. Half the signs of training bear random letters; words of `UNSEEN_WORDS` appear in no training scene.
"""

import zlib
from dataclasses import dataclass, replace
from random import Random
from typing import Final, Literal

from PIL import Image

from . import sprites, street
from .sprites import CAR_COLOURS, COLOURS, PATCH, SHAPES
from .words import SEEN_WORDS, UNSEEN_WORDS

Split = Literal["train", "validation", "test"]

SIZE: Final = 168
GRID: Final = SIZE // PATCH
"""Patches along each side."""

_BUCKETS: Final[dict[Split, tuple[int, ...]]] = {"train": (2, 3, 4, 5, 6, 7, 8, 9), "validation": (1,), "test": (0,)}
_LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_KNOWN: Final = frozenset(SEEN_WORDS) | frozenset(UNSEEN_WORDS)
_ROWS: Final = range(1, 9)
_ROAD_Y: Final = 138
_TRIES: Final = 100


@dataclass(frozen=True)
class Sign:
    """A sign; `row` and `column` are the patch of its first letter, `shift` its pixels off the grid."""

    word: str
    colour: str
    shape: str
    row: int
    column: int
    shift: tuple[int, int]

    @property
    def side(self) -> Literal["left", "right"]:
        return "left" if self.column + len(self.word) / 2 < GRID / 2 else "right"

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Pixels covered: left, top, right, bottom."""
        left, top = self.column * PATCH + self.shift[0], self.row * PATCH + self.shift[1]
        return left - 4, top - 4, left + len(self.word) * PATCH + 4, top + PATCH + 4


@dataclass(frozen=True)
class Car:
    colour: str
    x: int
    y: int
    faces_left: bool


@dataclass(frozen=True)
class Scene:
    """Everything in a picture; `street` seeds the background, which no question is about."""

    signs: tuple[Sign, ...]
    cars: tuple[Car, ...]
    street: int

    def draw(self) -> Image.Image:
        """Paints the scene.

        Returns:
            An RGB picture of 168 x 168 pixels.
        """
        picture = street.draw(Random(self.street), SIZE)
        for car in self.cars:
            body = sprites.car(car.colour, car.faces_left)
            picture.paste(body, (car.x, car.y), body)
        for sign in self.signs:
            _hang(picture, sign)
        return picture


@dataclass(frozen=True)
class Mix:
    """What scenes are made of.

    Attributes:
        signs: fewest and most signs of a scene.
        lengths: fewest and most letters of a word.
        random_words: share of signs that bear random letters.
        unseen_words: share of signs that bear a word that training never shows.
        shift: most pixels a sign is moved off the patch grid, each way.
    """

    signs: tuple[int, int] = (1, 4)
    lengths: tuple[int, int] = (3, 5)
    random_words: float = 0.0
    unseen_words: float = 0.0
    shift: int = 3


MIXES: Final[dict[Split, Mix]] = {
    "train": Mix(random_words=0.5),
    "validation": Mix(),
    "test": Mix(unseen_words=0.25),
}


def split_of(word: str, colour: str, row: int, side: str) -> Split:
    """The one split that may show this word in this colour at this place."""
    bucket = zlib.crc32(f"{word} {colour} {row} {side}".encode()) % 10
    return next(split for split, buckets in _BUCKETS.items() if bucket in buckets)


def sample(seed: int, split: Split = "train", mix: Mix | None = None) -> Scene:
    """The scene of a seed.

    Args:
        seed: any integer; with the split it fixes the scene.
        split: "train", "validation" or "test"; decides which combinations of word, colour and place may appear.
        mix: how many signs, which words; None takes the split's own.

    Raises:
        ValueError: the split's name is unknown.
    """
    if split not in MIXES:
        raise ValueError(f"unknown split {split!r}, expected one of {', '.join(MIXES)}")
    rng = Random(f"{split} {seed}")
    mix = mix or MIXES[split]
    return Scene(_signs(rng, split, mix), _cars(rng), rng.getrandbits(32))


def _signs(rng: Random, split: Split, mix: Mix) -> tuple[Sign, ...]:
    """Signs side by side or one above the other; drawn anew where some place has no word that its split may show."""
    while None in (signs := _try_signs(rng, split, mix)):
        pass
    return tuple(sign for sign in signs if sign)


def _try_signs(rng: Random, split: Split, mix: Mix) -> list[Sign | None]:
    count = rng.randint(*mix.signs)
    pairs = rng.randint(max(0, count - 4), count // 2)
    rows = _spread(rng, count - pairs)
    colours = rng.sample(list(COLOURS), count)
    paired = set(rng.sample(rows, pairs))
    signs: list[Sign | None] = []
    for row in rows:
        for column, letters in _columns(rng, mix.lengths, 2 if row in paired else 1):
            signs.append(_sign(rng, split, mix, row, column, letters, colours.pop()))
    rng.shuffle(signs)
    return signs


def _spread(rng: Random, count: int) -> list[int]:
    """Rows with at least one free row between them."""
    picked = sorted(rng.sample(range(len(_ROWS) - count + 1), count))
    return [_ROWS[row + index] for index, row in enumerate(picked)]


def _columns(rng: Random, lengths: tuple[int, int], signs: int) -> list[tuple[int, int]]:
    """First column and letters of the one or two signs of a row: a free column between and at either end."""
    if signs == 1:
        letters = rng.randint(*lengths)
        return [(rng.randint(1, GRID - 1 - letters), letters)]
    first, second = rng.randint(*lengths), rng.randint(*lengths)
    while first + second > GRID - 3:
        first, second = rng.randint(*lengths), rng.randint(*lengths)
    left = rng.randint(1, GRID - 2 - first - second)
    return [(left, first), (rng.randint(left + first + 1, GRID - 1 - second), second)]


def _sign(rng: Random, split: Split, mix: Mix, row: int, column: int, letters: int, colour: str) -> Sign | None:
    """A sign with a word its split may show here, or None where none is found in `_TRIES` draws."""
    shift = rng.randint(-mix.shift, mix.shift), rng.randint(-mix.shift, mix.shift)
    empty = Sign("?" * letters, colour, rng.choice(SHAPES), row, column, shift)
    kind = rng.random()
    invented, listed = kind < mix.random_words, _BY_LENGTH[kind < mix.random_words + mix.unseen_words]
    for _ in range(_TRIES):
        word = "".join(rng.choices(_LETTERS, k=letters)) if invented else rng.choice(listed[letters])
        if not (invented and word in _KNOWN) and split_of(word, colour, row, empty.side) == split:
            return replace(empty, word=word)
    return None


_BY_LENGTH: Final = tuple(
    {letters: [word for word in words if len(word) == letters] for letters in (3, 4, 5)}
    for words in (SEEN_WORDS, UNSEEN_WORDS)
)


def _cars(rng: Random) -> tuple[Car, ...]:
    count = rng.choice((0, 1, 1, 2, 2, 3))
    slots = sorted(rng.sample(range(3), count))
    return tuple(
        Car(rng.choice(CAR_COLOURS), slot * 54 + rng.randint(2, 12), _ROAD_Y + rng.randint(-2, 8), rng.random() < 0.5)
        for slot in slots
    )


def _hang(picture: Image.Image, sign: Sign) -> None:
    left, top, right, bottom = sign.box
    board = sprites.sign(sign.shape, sign.colour, right - left, bottom - top)
    picture.paste(board, (left, top), board)
    ink = sprites.letter_colour(sign.colour)
    for index, letter in enumerate(sign.word):
        picture.paste(ink, (left + 4 + index * PATCH, top + 4), sprites.glyph(letter))
