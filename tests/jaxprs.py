"""What a function would build, without running it: the shapes of every intermediate array of its jaxpr."""

from collections.abc import Callable, Iterator
from typing import Any

import jax


def shapes_within(function: Callable, *args: Any) -> list[tuple[int, ...]]:
    """Shapes of all intermediate and returned arrays, those of loops, branches and nested jits included."""
    return list(_shapes(jax.make_jaxpr(function)(*args).jaxpr))


def products_within(function: Callable, *args: Any) -> list[tuple[Any, Any]]:
    """Shape and dtype of both operands of every matrix product."""
    equations = _equations(jax.make_jaxpr(function)(*args).jaxpr)
    return [tuple(each.aval for each in one.invars) for one in equations if one.primitive.name == "dot_general"]


def _shapes(jaxpr: Any) -> Iterator[tuple[int, ...]]:
    for equation in _equations(jaxpr):
        yield from (variable.aval.shape for variable in equation.outvars)


def _equations(jaxpr: Any) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        yield equation
        for inner in _jaxprs_in(list(equation.params.values())):
            yield from _equations(inner)


def _jaxprs_in(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _jaxprs_in(item)
    elif hasattr(value, "eqns"):
        yield value
    elif hasattr(value, "jaxpr"):
        yield from _jaxprs_in(value.jaxpr)
