"""A number of things, or a share of them: two types, so that one token and all tokens are never the same value.

Python has 1 == Fraction(1), with equal hashes; a program that was compiled for the one would answer for the other.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

import numpy as np

from ..checks import LARGEST, Check, exact, fraction, refusal, settle


@dataclass(frozen=True, repr=False)
class Share:
    """A part of a whole, above 0 and at most 1; no share equals a number. Made of a Fraction, a float, or a text."""

    value: Fraction

    def __post_init__(self):
        settle(self, value=fraction("a share above 0 and at most 1", lambda share: 0 < share <= 1))

    def __repr__(self) -> str:
        return f"Share({str(self.value)!r})"

    def __float__(self) -> float:
        return float(self.value)

    def of(self, whole: int) -> int:
        """That share of `whole`, rounded half up, at least 1."""
        top, bottom = self.value.numerator, self.value.denominator
        return max(1, (2 * top * whole + bottom) // (2 * bottom))


#: What is read as a number or a share of things; kept as an int or a `Share`.
Amount: TypeAlias = int | float | str | Fraction | Share


def number_or_share(things: str) -> Check:
    """An int >= 1, or a `Share`: of a float, a Fraction, or a text that is more than digits."""
    expected = f"a number of {things} (14) or a share of them ('1/3', 0.25, '25%')"

    def check(name: str, value: Amount) -> int | Share:
        if isinstance(value, Share):
            return value
        amount = exact(value)
        is_number = isinstance(value, int | np.integer) or (
            isinstance(value, str) and re.fullmatch(r"\s*\d+\s*", value)
        )
        if amount is None or not 0 < amount <= (LARGEST if is_number else 1):
            raise refusal(name, expected, value)
        return int(amount) if is_number else Share(amount)

    return check


def parse_amount(value: Amount, *, name: str = "tokens") -> int | Share:
    """A budget: a number of tokens (192, "192") or a share of them ("1/3", 0.25, "25%", Fraction(1, 3)).

    Raises:
        ValueError: unless it is at least 1 token or a share in (0, 1].
    """
    return number_or_share("tokens")(name, value)
