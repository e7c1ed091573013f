"""What an argument must be, and the one form in which it is kept.

A check takes an argument's name and its value. It returns the value in one form (a Python int for NumPy's, a tuple for
a list), so that values that are equal are equal in type too and one compiled program can serve both; or it refuses:

    top_k must be a whole number >= 0, got 2.5
"""

import re
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any, get_args

import numpy as np

from .errors import short

Check = Callable[[str, Any], Any]

#: The largest number of anything: what an int32 holds.
LARGEST = 2**31 - 1
#: The largest seed: JAX cuts a larger one to 32 bits, and draws what another seed draws.
LARGEST_SEED = 2**32 - 1

#: Half of a surrogate pair: no character, and nothing that a file or a tokenizer takes.
HALF_OF_A_PAIR = re.compile("[\ud800-\udfff]")

_NUMBER = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d{1,3})?|[+-]?\d+/\d+)(%?)", re.ASCII | re.IGNORECASE)
_LONGEST_NUMBER = 100  # characters


def refusal(name: str, expected: str, value: object) -> ValueError:
    """The error of a value that is not as expected."""
    return ValueError(f"{name} must be {expected}, got {short(value)}")


def settle(value: Any, /, **checks: Check) -> None:
    """Checks the fields of a frozen dataclass, from its `__post_init__`, and keeps each in its one form."""
    for name, check in checks.items():
        object.__setattr__(value, name, check(name, getattr(value, name)))


def whole(low: int, high: int = LARGEST) -> Check:
    """An int from `low` to `high`, Python's or NumPy's; no bool, and no float however round."""

    def check(name: str, value: Any) -> int:
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < low:
            raise refusal(name, f"a whole number >= {low}", value)
        if value > high:
            raise refusal(name, f"a whole number <= {high}", value)
        return int(value)

    return check


def real(expected: str, holds: Callable[[float], bool]) -> Check:
    """A finite number for which `holds`, as a float."""

    def check(name: str, value: Any) -> float:
        number = _float(value)
        if number is None or not np.isfinite(number) or not holds(number):
            raise refusal(name, expected, value)
        return number + 0.0  # -0.0 is 0.0

    return check


def fraction(expected: str, holds: Callable[[Fraction], bool]) -> Check:
    """What `exact` reads and `holds` for, as a Fraction."""

    def check(name: str, value: Any) -> Fraction:
        number = exact(value)
        if number is None or not holds(number):
            raise refusal(name, expected, value)
        return number

    return check


def flag(name: str, value: Any) -> bool:
    """True or False, Python's or NumPy's."""
    if not isinstance(value, bool | np.bool_):
        raise refusal(name, "True or False", value)
    return bool(value)


def text(name: str, value: Any) -> str:
    """A string that can be written to a file: no half of a surrogate pair."""
    if not isinstance(value, str) or HALF_OF_A_PAIR.search(value):
        raise refusal(name, "a text", value)
    return str(value)


def choice(options: Any) -> Check:
    """One of the strings of a `Literal`."""
    names = get_args(options)

    def check(name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in names:
            raise refusal(name, " or ".join(map(repr, names)), value)
        return str(value)

    return check


def optional(check: Check) -> Check:
    """None, or what `check` takes."""

    def or_none(name: str, value: Any) -> Any:
        return None if value is None else check(name, value)

    return or_none


def each(check: Check, *, at_least: int = 0) -> Check:
    """A list or tuple of what `check` takes, as a tuple."""

    def of_all(name: str, value: Any) -> tuple:
        entries = entries_of(value)
        if entries is None or len(entries) < at_least:
            raise refusal(name, "a list" if not at_least else f"a list of at least {at_least}", value)
        return tuple(check(f"{name}[{index}]", entry) for index, entry in enumerate(entries))

    return of_all


def entries_of(value: Any) -> list | None:
    """What is in a list or tuple; None of anything else."""
    try:
        return list(value) if isinstance(value, list | tuple) else None
    except Exception:  # a list's class can be foreign code
        return None


def part(kind: str, *attributes: str) -> Check:
    """A value with these attributes that can be a static argument of a program; a class is none."""

    def check(name: str, value: Any) -> Any:
        having(f"{kind} (with {', '.join(attributes)})", *attributes)(name, value)
        try:
            hash(value)
        except Exception:  # __hash__ is foreign code
            raise refusal(name, f"{kind} that can be hashed (a frozen dataclass, say)", value) from None
        return value

    return check


def having(expected: str, *attributes: str) -> Check:
    """A value with these attributes; a class is none."""

    def check(name: str, value: Any) -> Any:
        try:
            has_all = not isinstance(value, type) and all(hasattr(value, attribute) for attribute in attributes)
        except Exception:  # __getattr__ is foreign code
            has_all = False
        if not has_all:
            raise refusal(name, expected, value)
        return value

    return check


def instance(kind: type, expected: str) -> Check:
    """An instance of that class."""

    def check(name: str, value: Any) -> Any:
        if not isinstance(value, kind):
            raise refusal(name, expected, value)
        return value

    return check


def exact(value: Any) -> Fraction | None:
    """A number, or a text such as "1/3", "0.25" or "25%", exactly (a float by the digits it prints: 0.1 is 1/10); None
    for anything else."""
    if isinstance(value, Fraction):
        return Fraction(value)
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return Fraction(int(value))
    if not isinstance(value, str | float | np.floating | Decimal):
        return None
    written = str(value).strip() if not isinstance(value, str) or len(value) <= _LONGEST_NUMBER else ""
    match = _NUMBER.fullmatch(written)
    try:
        return Fraction(match[1]) / (100 if match[2] else 1) if match else None
    except ZeroDivisionError:
        return None


def _float(value: Any) -> float | None:
    if not isinstance(value, int | float | np.integer | np.floating | Fraction) or isinstance(value, bool):
        return None
    try:
        return float(value)
    except OverflowError:
        return None
