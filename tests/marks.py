"""Which of many alike cases every run tries."""

from collections.abc import Container, Iterable
from typing import Any

import pytest


def sampled(values: Iterable[Any], always: Container[str], *, name: Any = str) -> list[Any]:
    """Parameters: those called as in `always` run in every run, the others where `-m exhaustive` asks for them."""
    others = (pytest.mark.slow, pytest.mark.exhaustive)
    return [pytest.param(value, id=name(value), marks=() if name(value) in always else others) for value in values]
