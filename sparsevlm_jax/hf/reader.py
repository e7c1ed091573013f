"""Reading a HF config dict strictly: what a model would compute otherwise is read or refused by name.

A converter that skips a field it should know runs a different model without a word; one that refuses what no model
reads turns real checkpoints away. So every field is one of four: read; known and at its default; known and without
effect; or a leftover, which is ignored and named in one warning (see `known_fields`).
"""

import warnings
from collections.abc import Collection, Mapping
from typing import Any

from ..errors import CheckpointWarning
from .known_fields import DROPPED, FIXED, INERT, QUANTISED

FLOAT_MAX = 3e38  # what a float32 holds
_FROM_TABLE: Any = object()


class UnsupportedConfig(ValueError):
    """A config asks for something this library does not compute; the message lists every such field."""


class ConfigReader:
    """Reads fields from `config`, remembers which, collects complaints and raises them together in `done()`.

    Args:
        where: what messages call the config.
        known: the fields of its HF class and their defaults. None: there is no such table, and every field that is not
            read is refused unless it is without effect.
        prefix: in front of every name in a message, for nested configs.
    """

    def __init__(self, config: dict, *, where: str, known: Mapping[str, Any] | None = None, prefix: str = ""):
        if not isinstance(config, dict):
            raise UnsupportedConfig(f"{where}: expected a JSON object, got {type(config).__name__}")
        self.config, self.where, self.known, self.prefix = config, where, known, prefix
        self.seen: set[str] = set()
        self.complaints: list[str] = []
        self.leftovers: list[str] = []
        self.children: list[ConfigReader] = []

    def __call__(self, name: str, default: Any = _FROM_TABLE, *, null: Any = None) -> Any:
        """The field's value, of the type of its default.

        Args:
            default: what it is where absent; by default HF's.
            null: what null means; None: the same as absent.
        """
        self.seen.add(name)
        if default is _FROM_TABLE:
            default = (self.known or {})[name]
        value = self.config.get(name, default)
        fallback = default if null is None else null
        return fallback if value is None else self._checked(name, value, fallback)

    def _checked(self, name: str, value: Any, default: Any) -> Any:
        kind = type(default)
        if kind is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < FLOAT_MAX:
            value = float(value)
        if default is not None and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
            return self.complain(name, value, f"expected {kind.__name__}", default)
        is_size = kind is int and name.endswith(("_size", "_layers", "_heads", "_dim", "_window", "_embeddings"))
        if (is_size and not 0 < value < 1 << 31) or (kind is float and not 0 < value < FLOAT_MAX):
            return self.complain(name, value, "expected a positive number", default)
        return value

    def is_null(self, name: str) -> bool:
        """Whether the field stands there and says null."""
        self.seen.add(name)
        return name in self.config and self.config[name] is None

    def only(self, name: str, *allowed: Any) -> None:
        """The field must be absent, null, or one of `allowed`."""
        self.seen.add(name)
        value = self.config.get(name)
        if value is not None and not any(_same(value, choice) for choice in allowed):
            self.complain(name, value, f"implemented: {', '.join(map(repr, allowed)) or 'none'}")

    def one_of(self, name: str, allowed: Collection[str]) -> str:
        """The field's value, which must be one of `allowed`; HF's default where absent or null."""
        default = (self.known or {})[name]
        self.only(name, *allowed)
        value = self.config.get(name)
        return value if isinstance(value, str) and value in allowed else default

    def complain(self, name: str, value: Any, reason: str, default: Any = None) -> Any:
        """Notes that a value cannot be used; gives `default`, to read on with."""
        self.complaints.append(f"{self.prefix}{name} = {_short(value)}, {reason}")
        return default

    def divides(self, whole_name: str, whole: int, part_name: str, part: int) -> None:
        if whole % part:
            name = f"{self.prefix}{part_name}"
            self.complaints.append(f"{self.prefix}{whole_name} = {whole} is not a multiple of {name} = {part}")

    def nested(self, name: str, known: Mapping[str, Any], prefix: str) -> "ConfigReader":
        """A reader of the table in field `name`; what it complains of, this one does."""
        self.seen.add(name)
        value = self.config.get(name)
        if value is not None and not isinstance(value, dict):
            value = self.complain(name, value, "expected a table")
        self.children.append(ConfigReader({} if value is None else value, where=self.where, known=known, prefix=prefix))
        return self.children[-1]

    def done(self) -> None:
        """Checks what has not been read, nested configs included.

        Raises:
            UnsupportedConfig: with every complaint.

        Warns:
            CheckpointWarning: once, naming all leftovers.
        """
        readers = [self, *self.children]
        for reader in readers:
            reader._check_rest()
        complaints = [complaint for reader in readers for complaint in reader.complaints]
        if complaints:
            raise UnsupportedConfig(f"{self.where} is not supported: " + "; ".join(complaints))
        leftovers = [name for reader in readers for name in reader.leftovers]
        if leftovers:
            message = f"{self.where}: ignored, since they are not the model's: {', '.join(leftovers)}"
            warnings.warn(message, CheckpointWarning, stacklevel=3)

    def _check_rest(self) -> None:
        for name in sorted(set(map(str, self.config)) - self.seen):
            value = self.config.get(name)
            if name in QUANTISED and value is not None:
                method = value.get("quant_method") if isinstance(value, dict) else value
                self.complaints.append(f"{self.prefix}{name} of method {method!r}, expected weights not quantised")
            elif name in INERT:
                continue
            elif self.known is None:
                self.complaints.append(f"{self.prefix}{name} = {_short(value)} is not known")
            elif name in self.known or name in FIXED:
                default = self.known.get(name, FIXED.get(name))
                if value is not None and not _same(value, default):
                    self.complain(name, value, f"implemented: {default!r}")
            elif value is None and name in QUANTISED:
                continue
            elif name not in DROPPED or not (value is None or _same(value, DROPPED[name])):
                self.leftovers.append(self.prefix + name)


def _same(value: Any, other: Any) -> bool:
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 200 else f"{shown[:197]}..."
