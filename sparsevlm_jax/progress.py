"""What the library is busy with, for whoever watches: one line on a terminal, wiped away when it is done.

    with progress.step("compiling prefill"):
        ...
    for name in progress.count(names, "reading weights"):
        ...

Nothing is shown unless somebody asks with `shown`, as the command line does: from Python the library is silent.
"""

import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, TypeVar

T = TypeVar("T")

_WIPE = "\r\x1b[K"


@contextmanager
def shown(stream: TextIO) -> Iterator[None]:
    """Shows on `stream`, a terminal, what goes on inside the block."""
    global _line
    before, _line = _line, _Line(stream)
    try:
        yield
    finally:
        _line.write(_WIPE)
        _line = before


@contextmanager
def step(what: str) -> Iterator[None]:
    """Says that `what` is being done inside the block; of nested steps the innermost is shown."""
    line = _line
    if line is None:
        yield
        return
    line.steps.append(what)
    line.draw()
    try:
        yield
    finally:
        line.steps.pop()
        line.draw()


def count(items: Iterable[T], what: str, total: int | None = None) -> Iterable[T]:
    """`items`, with a bar that tells how many of `total` are done (default: of as many as there are)."""
    if _line is None:
        return items
    return _bar(_line, items, what, len(items) if total is None and isinstance(items, Collection) else total)


@contextmanager
def hidden() -> Iterator[None]:
    """Wipes the line away inside the block, where something else is printed."""
    line = _line
    if line is None:
        yield
        return
    line.write(_WIPE)
    line.covered += 1
    try:
        yield
    finally:
        line.covered -= 1
        line.draw()


class _Line:
    """The steps under way on one terminal, and how many things that are drawn over them."""

    def __init__(self, stream: TextIO):
        self.stream = stream
        self.steps: list[str] = []
        self.covered = 0

    def draw(self) -> None:
        if self.covered:
            return
        text = f"{self.steps[-1]} ..." if self.steps else ""
        self.write(_WIPE + text[: shutil.get_terminal_size().columns - 1])

    def write(self, text: str) -> None:
        with suppress(OSError, ValueError):  # a terminal that has gone is no reason to stop
            self.stream.write(text)
            self.stream.flush()


_line: _Line | None = None


def _bar(line: _Line, items: Iterable[T], what: str, total: int | None) -> Iterator[T]:
    from tqdm import tqdm

    bar: Callable[..., Any] = tqdm
    with hidden():
        yield from bar(items, what, total, file=line.stream, leave=False, dynamic_ncols=True)
