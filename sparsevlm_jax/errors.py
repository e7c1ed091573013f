"""The errors and warnings this library names, apart from plain ValueError; and how a message shows a value."""

import reprlib
from typing import Any


class CheckpointError(ValueError):
    """A folder, file or hub id that cannot be read or written as a checkpoint; the message names it."""


class CheckpointWarning(UserWarning):
    """A checkpoint that can be used, but that holds something its owner should know of (NaN weights, say)."""


#: The most characters of a value that an error message shows.
SHOWN = 200


class _Short(reprlib.Repr):
    """`reprlib` with longer texts, and for what it would spell out in full before it shortens."""

    def __init__(self):
        super().__init__()
        self.maxstring = self.maxother = 120
        self.maxlevel = 3

    def repr_int(self, x: int, level: int) -> str:
        if x.bit_length() <= 256:
            return repr(x)
        return f"a whole number of {x.bit_length()} bits"  # Python refuses to write out a long one

    def repr_bytes(self, x: bytes, level: int) -> str:
        return repr(x) if len(x) <= 40 else f"{len(x)} {type(x).__name__}: {bytes(x[:20])!r}..."

    def repr_ndarray(self, x: Any, level: int) -> str:
        return f"an array of {x.dtype}, shape {list(x.shape)}"

    repr_bytearray = repr_bytes
    repr_ArrayImpl = repr_ndarray  # JAX's


def short(value: object) -> str:
    """A value as error messages show it: its repr on one line, of at most `SHOWN` characters, whatever it is."""
    try:
        text = " ".join(_Short().repr(value).split())
    except Exception:  # a repr is foreign code
        text = f"<{type(value).__name__}>"
    return cut(text)


def cut(text: str) -> str:
    """A text, cut at `SHOWN` characters."""
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
