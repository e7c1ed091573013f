"""What a chat template may use up: sizes are checked before an operation, and charged to a meter after it.

What an operation takes may not be larger than `LARGEST` written out, all that one rendering makes may not exceed
`TOTAL`, and it has `SECONDS` of processor time. So nothing has to be stopped from outside, by a thread or a process.

Sizes are characters; a place in a list or table counts as `PLACE` of them.
"""

import re
import time
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, Sequence, Set, ValuesView
from contextvars import ContextVar
from typing import Any, Final

from jinja2.runtime import LoopContext
from jinja2.utils import Namespace

#: Anything an operation takes, written out: a million characters are more tokens than any model has positions.
LARGEST: Final = 1_000_000
#: All that one rendering makes.
TOTAL: Final = 16_000_000
#: Processor time of one rendering; real templates take milliseconds.
SECONDS: Final = 2.0
PLACE: Final = 8
#: A width, an indent, a precision.
WIDEST: Final = 1000
#: Bits of a whole number.
BITS: Final = 20_000


class TooCostly(Exception):
    """A template that asks for more than the limits above."""


class Meter:
    """What one rendering, or one compilation, has used."""

    def __init__(self):
        self.room, self.deadline = TOTAL, time.thread_time() + SECONDS

    def spend(self, size: int) -> None:
        self.room -= size
        if self.room < 0:
            raise TooCostly(f"it makes more than {TOTAL} characters of text")
        if time.thread_time() > self.deadline:
            raise TooCostly(f"it takes more than {SECONDS:g} seconds")


_METER: ContextVar[Meter] = ContextVar("meter")


def metered(function: Callable[[], Any]) -> Any:
    """Calls `function` with a fresh meter."""
    token = _METER.set(Meter())
    try:
        return function()
    finally:
        _METER.reset(token)


def spend(size: int) -> None:
    _METER.get().spend(size)


def check_size(*values: Any) -> int:
    """The size of values written out, however often they hold the same thing.

    Raises:
        TooCostly: it is above `LARGEST`.
    """
    size, stack = 0, list(values)
    while stack:
        value = stack.pop()
        if isinstance(value, str):
            size += len(value)
        elif isinstance(value, int):
            size += value.bit_length() // 3 + 1
        elif isinstance(value, Namespace):
            stack.append(object.__getattribute__(value, "_Namespace__attrs"))
            size += PLACE
        else:
            size += _places(value, stack)
        if size > LARGEST:
            raise TooCostly(f"it handles more than {LARGEST} characters at once")
    return size


def _places(value: Any, stack: list[Any]) -> int:
    """The size of a container without what it holds, which goes on the stack."""
    if isinstance(value, Mapping):
        stack += [*value.keys(), *value.values()]
        return PLACE + 2 * PLACE * len(value)
    if isinstance(value, Sequence | Set | KeysView | ValuesView | ItemsView):
        if len(value) <= LARGEST // PLACE:
            stack.extend(value)
        return PLACE + PLACE * len(value)
    return PLACE


def made(value: Any) -> Any:
    """Charges for a result: its own places, since what it holds has been charged for."""
    if isinstance(value, str):
        spend(len(value))
    elif isinstance(value, int):
        check_size(value)
    elif isinstance(value, Sequence | Mapping | Set):
        spend(PLACE * len(value))
    else:
        spend(PLACE)
    return value


def check_width(*values: Any) -> None:
    for value in values:
        if isinstance(value, int | float) and abs(value) > WIDEST:
            raise TooCostly(f"it asks for a width of {value}, at most {WIDEST}")


def check_spread(text: str, pieces: int, filler: Any) -> None:
    """A text that gets `pieces` fillers put in."""
    if len(text) + pieces * len(str(filler)) > LARGEST:
        raise TooCostly(f"it handles more than {LARGEST} characters at once")


def check_percent(text: str, values: Any) -> None:
    """`text % values`: widths are in the text, unless a star takes them from the values."""
    if re.search(r"%[^a-zA-Z%]*\*", text):
        raise TooCostly("it takes a width from a value")
    widths = sum(int(digits[:9]) for digits in re.findall(r"\d+", text))
    check_spread("", 1 + text.count("%"), "0" * min(widths, LARGEST))
    if text.count("%") * check_size(values) > LARGEST:
        raise TooCostly(f"it handles more than {LARGEST} characters at once")


def check_join(values: Any, separator: Any = "", *_: Any) -> None:
    if isinstance(values, Sequence):
        check_spread("", len(values), separator)


def check_replace(text: Any, old: Any, new: Any, *_: Any) -> None:
    check_spread(str(text), str(text).count(str(old)), new)


def check_indent(text: Any, width: Any = 4, *_: Any, **__: Any) -> None:
    check_width(width)
    check_spread(str(text), str(text).count("\n") + 1, width if isinstance(width, str) else " " * int(width))


def check_sum(_: Any, attribute: Any = None, start: Any = 0) -> None:
    if not isinstance(start, int | float):
        raise TooCostly("it adds up something else than numbers")


#: What a filter or a method of texts may be given, where its result can be far larger than that.
BOUNDS: Final[dict[str, Callable[..., None]]] = {
    "center": lambda text, *widths, **named: check_width(*widths[:1], *named.values()),
    "ljust": lambda text, width, *_: check_width(width),
    "rjust": lambda text, width, *_: check_width(width),
    "zfill": lambda text, width: check_width(width),
    "round": lambda number, *options, **named: check_width(*options, *named.values()),
    "format": lambda text, *values, **named: check_percent(str(text), (values, named)),
    "replace": check_replace,
    "indent": check_indent,
    "sum": check_sum,
}


def check_attribute(names: Sequence[Any]) -> None:
    if any(isinstance(name, str) and len(name) > 200 for name in names):
        raise TooCostly("it names an attribute of more than 200 characters")


def drawn(value: Any) -> Any:
    if not isinstance(value, Iterator) or isinstance(value, LoopContext):
        return value
    drawn = []
    for item in value:
        spend(PLACE)
        drawn.append(item)
    return drawn


def check_product(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        check_bits(left.bit_length() + right.bit_length())
    for value, times in ((left, right), (right, left)):
        if isinstance(value, str | list | tuple) and isinstance(times, int) and times * check_size(value) > LARGEST:
            raise TooCostly(f"it handles more than {LARGEST} characters at once")


def check_bits(bits: int) -> None:
    if bits > BITS:
        raise TooCostly(f"it computes a number of {bits} bits")
