"""The table of methods: a name, and a function that makes its `SparsityConfig` for a number or share of tokens.

    @method
    def my_method(tokens: Amount = 192) -> SparsityConfig:
        \"""One line for `sparsevlm methods`.\"""

registers "my-method". Nothing else in the library knows a method by its name.
"""

from collections.abc import Callable
from fractions import Fraction
from typing import TypeAlias, TypeVar

from ..sparsify import SparsityConfig

Amount: TypeAlias = int | float | str | Fraction
Factory = TypeVar("Factory", bound=Callable[..., SparsityConfig | None])

METHODS: dict[str, Callable[..., SparsityConfig | None]] = {}


def method(factory: Factory) -> Factory:
    """Enters `factory` into `METHODS`, under its own name with hyphens."""
    METHODS[factory.__name__.replace("_", "-")] = factory
    return factory


def create(name: str, tokens: Amount = 192) -> SparsityConfig | None:
    """The method called `name` at a budget of `tokens`; None is dense.

    Raises:
        ValueError: no method has that name, or the budget is none.
    """
    if name not in METHODS:
        raise ValueError(f"no method is called {name!r}; there are {', '.join(sorted(METHODS))}")
    return METHODS[name](tokens)


def summary(name: str) -> str:
    """The first line of a method's docstring."""
    return (METHODS[name].__doc__ or "").strip().partition("\n")[0]
