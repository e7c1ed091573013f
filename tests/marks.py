"""Which of many alike cases every run tries."""

from collections.abc import Container, Iterable
from typing import Any

import pytest


def sampled(values: Iterable[Any], always: Container[str], *, slow: Container[str] = (), name: Any = str) -> list[Any]:
    """Parameters: those called as in `always` run in every run, as in `slow` in all but quick ones, the others where
    `-m exhaustive` asks for them."""

    def marks(called: str) -> tuple[pytest.MarkDecorator, ...]:
        if called in always:
            return ()
        return (pytest.mark.slow,) if called in slow else (pytest.mark.slow, pytest.mark.exhaustive)

    return [pytest.param(value, id=name(value), marks=marks(name(value))) for value in values]


def quick(values: Iterable[Any], chosen: Container[str], *, name: Any = str) -> list[Any]:
    """Parameters: those called as in `chosen` run in quick runs too, the others are slow."""
    slow = pytest.mark.slow
    return [pytest.param(value, id=name(value), marks=() if name(value) in chosen else slow) for value in values]
