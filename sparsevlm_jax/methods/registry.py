"""The table of methods: a name, and a function that makes its `SparsityConfig` for a number or share of tokens.

    @method
    def my_method(tokens: TokenBudget = 192) -> SparsityConfig:
        \"""One line for `sparsevlm methods`.\"""

registers "my-method". Nothing else in the library knows a method by its name.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from ..checks import refusal
from ..sparsify import KeptTokens, SparsityConfig, TokenBudget

Factory = TypeVar("Factory", bound=Callable[..., SparsityConfig | None])

METHODS: dict[str, Callable[..., SparsityConfig | None]] = {}

# Options that say how many tokens are kept, in place of `tokens`.
_BUDGETS = ("kept", "ratios")


def method(factory: Factory) -> Factory:
    """Enters `factory` into `METHODS`, under its own name with hyphens."""
    METHODS[factory.__name__.replace("_", "-")] = factory
    return factory


def create(name: str, tokens: TokenBudget | None = None, **chosen: Any) -> SparsityConfig | None:
    """The method called `name` at a budget of `tokens`, with options of its own; None is dense.

        create("fastv", 192, layer=3)
        create("fastv", kept=192, positions="repack")

    Args:
        tokens: by default 192; see `sparsify.Tokens`.
        chosen: options; every method but "dense" has these two beside its own:
            kept: in place of `tokens`, the tokens kept at each stage, as many papers count: 192, (300, 200, 110) or
                shares ("1/2", "1/4", "1/8").
            positions: "keep" or "repack"; see `SparsityConfig`.

    Raises:
        ValueError: no method has that name, or it has no such option, or the budget or an option is out of range, or
            both `tokens` and an option say how many tokens are kept.
    """
    known = options(name)
    for option in chosen.keys() - known.keys():
        raise _no_such_option(name, option)
    given = _budget_among({"tokens": tokens, **chosen})
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} all say how many tokens are kept: give one of them")
    kept, positions = chosen.pop("kept", None), chosen.pop("positions", None)
    budget = tokens if kept is None else KeptTokens.parse(kept)
    config = METHODS[name](**chosen) if budget is None else METHODS[name](budget, **chosen)
    return config if config is None or positions is None else dataclasses.replace(config, positions=positions)


def says_budget(chosen: Mapping[str, Any]) -> bool:
    """Whether options say how many tokens are kept, so that `tokens` must be left out."""
    return bool(_budget_among(chosen))


def _budget_among(chosen: Mapping[str, Any]) -> list[str]:
    return [option for option in ("tokens", *_BUDGETS) if chosen.get(option) is not None]


def options(name: str) -> dict[str, Any]:
    """The options of a method, and their defaults.

    Raises:
        ValueError: no method has that name.
    """
    if not isinstance(name, str) or name not in METHODS:
        raise refusal("method", f"one of {', '.join(sorted(METHODS))}", name)
    parameters = inspect.signature(METHODS[name]).parameters.values()
    own = {parameter.name: parameter.default for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
    config = METHODS[name]()
    return own if config is None else {**own, "kept": None, "positions": config.positions}


def parse_options(name: str, texts: Sequence[str]) -> dict[str, Any]:
    """Options of a method written as "layer=3", each of the type of its default; lists as "kept=300,200,110".

    Raises:
        ValueError: no method has that name, it has no such option, or the value is none.
    """
    defaults, chosen = options(name), {}
    for text in texts:
        option, _, value = text.partition("=")
        option = option.strip().replace("-", "_")
        if option not in defaults:
            raise _no_such_option(name, option)
        default = defaults[option]
        chosen[option] = _parse(option, value.strip(), str if default is None else type(default))
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
