"""What was given, as an error message repeats it: never more than a line of it."""

import reprlib
from typing import Any, Final

#: Characters of a value in a message.
LONGEST: Final = 160

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 100


def shown(value: Any) -> str:
    """The value's repr, shortened in its middle and at its end."""
    return cut(_REPR.repr(value))


def cut(text: str) -> str:
    """A text, cut at `LONGEST` characters."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
