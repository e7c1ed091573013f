"""The table of methods: a name, and a function that makes its `SparsityConfig` for a number or share of tokens.

    @method
    def my_method(tokens: Amount = 192) -> SparsityConfig:
        \"""One line for `sparsevlm methods`.\"""

registers "my-method". Nothing else in the library knows a method by its name.
"""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from ..checks import refusal
from ..sparsify import Amount, SparsityConfig

Factory = TypeVar("Factory", bound=Callable[..., SparsityConfig | None])

METHODS: dict[str, Callable[..., SparsityConfig | None]] = {}


def method(factory: Factory) -> Factory:
    """Enters `factory` into `METHODS`, under its own name with hyphens."""
    METHODS[factory.__name__.replace("_", "-")] = factory
    return factory


def create(name: str, tokens: Amount = 192, **options: Any) -> SparsityConfig | None:
    """The method called `name` at a budget of `tokens`, with options of its own (see `options_of`); None is dense.

    Raises:
        ValueError: no method has that name, the budget is none, or an option is not the method's or out of its range.
    """
    if not isinstance(name, str) or name not in METHODS:
        raise refusal("method", f"one of {', '.join(sorted(METHODS))}", name)
    known = options_of(name)
    for option in options:
        if option not in known:
            raise ValueError(f"{name} has no option {option!r}; it has {', '.join(known) or 'none'}")
    return METHODS[name](tokens, **options)


def options_of(name: str) -> dict[str, Any]:
    """The options of a method besides its budget, and their defaults."""
    parameters = inspect.signature(METHODS[name]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def summary(name: str) -> str:
    """The first line of a method's docstring."""
    return (METHODS[name].__doc__ or "").strip().partition("\n")[0]
