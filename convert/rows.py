"""Names of stored tensors and of parameters, paired once in a table of rows and looked up from either side.

A row pairs two templates: `layers.#.{input|post_attention}_layernorm.weight` is stored, and
`layers.#.{input|post_attention}_layernorm.scale` is the parameter. `#` stands for a number and braces for one of the
words in them; both templates have the same of these, in the same order. Rows name tensors inside a part (a tower, a
decoder) and know nothing of where it stands; a family's table puts each part behind its prefixes.
"""

import functools
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

_HOLE = r"(#|\{[^}]*\})"


class Transform(NamedTuple):
    """How a stored array becomes a parameter, and back again; each gives a view."""

    read: Callable[[np.ndarray], np.ndarray]
    write: Callable[[np.ndarray], np.ndarray]


def _same(array: np.ndarray) -> np.ndarray:
    return array


AS_IS = Transform(_same, _same)


class Row(NamedTuple):
    """One tensor, or many alike: its name on disk, its name as a parameter, and how the array changes between them.

    `absent` makes what stands in for a parameter that a checkpoint may lack, from its shape and dtype.
    """

    stored: str
    parameter: str
    transform: Transform = AS_IS
    absent: Callable[..., np.ndarray] | None = None


def linear(stored: str, parameter: str | None = None, transform: Transform = AS_IS) -> tuple[Row, Row]:
    """The two rows of a linear layer at one path, or at two: its weight is the kernel."""
    parameter = stored if parameter is None else parameter
    return Row(f"{stored}.weight", f"{parameter}.kernel", transform), Row(f"{stored}.bias", f"{parameter}.bias")


def layer_norm(path: str) -> tuple[Row, Row]:
    return rms_norm(path), Row(f"{path}.bias", f"{path}.bias")


def rms_norm(path: str) -> Row:
    return Row(f"{path}.weight", f"{path}.scale")


def embedding(path: str) -> Row:
    return Row(f"{path}.weight", f"{path}.embedding")


class Names(NamedTuple):
    """The tensors inside a part, and patterns of those that belong to it and are not read."""

    rows: tuple[Row, ...]
    ignored: tuple[str, ...] = ()


class Part(NamedTuple):
    """A part in its place.

    Attributes:
        names: its tensors.
        prefixes: what may stand before their stored names; the first is what export writes.
        parameters: what stands before their parameters' names.
    """

    names: Names
    prefixes: tuple[str, ...]
    parameters: str


class Entry(NamedTuple):
    """One tensor by both of its names, and what its row says."""

    stored: str
    parameter: str
    transform: Transform
    absent: Callable[..., np.ndarray] | None


class Table(NamedTuple):
    """The names of a family's checkpoints.

    Attributes:
        parts: where several name a parameter, export takes the first.
        ignored_beside: patterns of whole names that belong to none of the parts and are not read.
        layouts: (layout, pattern of a name that tells of it); the first that is found is the one.
    """

    parts: tuple[Part, ...]
    ignored_beside: tuple[str, ...] = ()
    layouts: tuple[tuple[str, str], ...] = ()

    @property
    def ignored(self) -> tuple[str, ...]:
        """Patterns of every whole name that is not read."""
        inside = [_any_of(part.prefixes) + pattern for part in self.parts for pattern in part.names.ignored]
        return (*inside, *self.ignored_beside)

    def by_stored(self, name: str) -> Entry | None:
        """The tensor that is stored under a name, in any spelling; None if no row knows it."""
        for part, row, stored, _ in _compiled(self):
            if match := stored.fullmatch(name):
                return Entry(name, part.parameters + _fill(row.parameter, match), row.transform, row.absent)
        return None

    def by_parameter(self, name: str) -> Entry | None:
        """The tensor that becomes a parameter, under the name that export writes; None if no row knows it."""
        for part, row, _, parameter in _compiled(self):
            if match := parameter.fullmatch(name):
                return Entry(part.prefixes[0] + _fill(row.stored, match), name, row.transform, row.absent)
        return None

    def layout_of(self, names: Iterable[str]) -> str:
        """Which of the layouts a checkpoint of these names has, or "unknown"."""
        listed = list(names)
        return next((layout for layout, told in self.layouts if any(re.fullmatch(told, n) for n in listed)), "unknown")


@functools.cache
def _compiled(table: Table) -> list[tuple[Part, Row, re.Pattern, re.Pattern]]:
    """Every row with the patterns of its whole names: (part, row, stored, parameter)."""
    return [
        (
            part,
            row,
            re.compile(_any_of(part.prefixes) + _pattern(row.stored)),
            re.compile(re.escape(part.parameters) + _pattern(row.parameter)),
        )
        for part in table.parts
        for row in part.names.rows
    ]


def _any_of(words: Iterable[str]) -> str:
    return f"(?:{'|'.join(map(re.escape, words))})"


def _pattern(template: str) -> str:
    """A template as a pattern with one group for each of its holes."""
    pieces = re.split(_HOLE, template)
    pieces[::2] = map(re.escape, pieces[::2])
    pieces[1::2] = ["([0-9]+)" if hole == "#" else f"({_any_of(hole[1:-1].split('|'))})" for hole in pieces[1::2]]
    return "".join(pieces)


def _fill(template: str, match: re.Match) -> str:
    """A template with its holes filled as those of the other one were."""
    pieces = re.split(_HOLE, template)
    pieces[1::2] = match.groups()
    return "".join(pieces)


def shape_after(change: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that half of a transform gives, found on an array of the first shape that owns no memory."""
    if not shape or 0 in shape:
        return shape
    return change(np.broadcast_to(np.zeros((), np.int8), shape)).shape
