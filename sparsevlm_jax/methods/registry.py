"""The table of methods: a name, and a function that makes its `SparsityConfig` for a number or share of tokens.

    @method
    def my_method(tokens: Amount = 192) -> SparsityConfig:
        \"""One line for `sparsevlm methods`.\"""

registers "my-method". Nothing else in the library knows a method by its name.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ..checks import refusal
from ..sparsify import Amount, SparsityConfig

Factory = TypeVar("Factory", bound=Callable[..., SparsityConfig | None])

METHODS: dict[str, Callable[..., SparsityConfig | None]] = {}


def method(factory: Factory) -> Factory:
    """Enters `factory` into `METHODS`, under its own name with hyphens."""
    METHODS[factory.__name__.replace("_", "-")] = factory
    return factory


def create(name: str, tokens: Amount = 192, **chosen: Any) -> SparsityConfig | None:
    """The method called `name` at a budget of `tokens`, with options of its own; None is dense.

    Raises:
        ValueError: no method has that name, or it has no such option, or the budget or an option is out of range.
    """
    for option in chosen.keys() - options(name).keys():
        raise _no_such_option(name, option)
    return METHODS[name](tokens, **chosen)


def options(name: str) -> dict[str, Any]:
    """The options of a method, and their defaults.

    Raises:
        ValueError: no method has that name.
    """
    if not isinstance(name, str) or name not in METHODS:
        raise refusal("method", f"one of {', '.join(sorted(METHODS))}", name)
    parameters = inspect.signature(METHODS[name]).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}


def parse_options(name: str, texts: Sequence[str]) -> dict[str, Any]:
    """Options of a method written as "layer=3", each of the type of its default.

    Raises:
        ValueError: no method has that name, it has no such option, or the value is none.
    """
    defaults, chosen = options(name), {}
    for text in texts:
        option, _, value = text.partition("=")
        option = option.strip().replace("-", "_")
        if option not in defaults:
            raise _no_such_option(name, option)
        chosen[option] = _parse(option, value.strip(), type(defaults[option]))
    return chosen


def _parse(option: str, text: str, kind: type) -> Any:
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    try:
        return words[text.lower()] if kind is bool else kind(text[:50])
    except (KeyError, ValueError, ZeroDivisionError):
        raise ValueError(f"expected {option}=a {kind.__name__}, got {text[:50]!r}") from None


def _no_such_option(name: str, option: str) -> ValueError:
    there_are = ", ".join(f"{name}={default}" for name, default in options(name).items())
    return ValueError(f"the method {name!r} has no option {option[:50]!r}; it has {there_are or 'none'}")


def summary(name: str) -> str:
    """The first line of a method's docstring."""
    return (METHODS[name].__doc__ or "").strip().partition("\n")[0]
