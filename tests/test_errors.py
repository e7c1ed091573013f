"""A message shows a value on one line and in few characters, whatever the value is."""

import numpy as np
import pytest

from sparsevlm_jax.errors import SHOWN, short


class Hostile:
    def __repr__(self):
        raise RuntimeError("no repr")


class Wordy:
    def __repr__(self):
        return "words\n" * 10_000


class Unreadable(list):
    def __repr__(self):
        raise RuntimeError("no repr")


RECURSIVE: list = []
RECURSIVE.append(RECURSIVE)


@pytest.mark.parametrize("value", [192, 0.25, "1/3", None, True, b"bytes", ["a", 1], {"role": "user"}, (), "\ud800"])
def test_a_small_value_is_shown_as_python_writes_it(value):
    assert short(value) == repr(value)


@pytest.mark.parametrize(
    ("value", "start"),
    [
        ("data:image/png;base64," + "A" * 10**6, "'data:image/png;base64,AAA"),
        (b"\x89PNG" * 10**6, "4000000 bytes: b'\\x89PNG"),
        (10**100_000, "a whole number of 332193 bits"),
        (np.zeros((4, 5), np.float32), "an array of float32, shape [4, 5]"),
        ([["word"] * 1000] * 1000, "[['word', 'word'"),
        (dict.fromkeys(range(1000), "word" * 100), "{0: 'wordword"),
        (Wordy(), "words words"),
        (Hostile(), "<Hostile"),
        (Unreadable(), "<Unreadable"),
        ([Hostile()], "[<Hostile"),
        (RECURSIVE, "[[["),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_large_or_hostile_value_is_shown_in_part(value, start):
    text = short(value)
    assert text.startswith(start) and len(text) <= SHOWN and "\n" not in text
