"""Compiled programs, kept by shape, with their compile time known apart from their run time.

`jax.jit` hides compilation inside a call; here it is explicit, so that a report can say what was compiling and what was
computing, and a test can count programs.
"""

import time
from collections.abc import Callable
from typing import Any

import jax

from . import progress


class Program:
    """A pure function `f(params, *arrays, **static)`, compiled once per shapes and static arguments.

    Args:
        donate: positions of arguments whose buffers the results may reuse.
    """

    def __init__(self, function: Callable, *, static: tuple[str, ...], donate: tuple[int, ...] = ()):
        self._name = getattr(function, "__name__", "a program")
        self._jitted = jax.jit(function, static_argnames=static, donate_argnums=donate)
        self._compiled: dict[Any, Any] = {}

    @property
    def size(self) -> int:
        """How many programs have been compiled."""
        return len(self._compiled)

    def __call__(self, *args: Any, **static: Any) -> tuple[Any, float, float]:
        """The result, ready; milliseconds to run; milliseconds to compile (0 where it was)."""
        key = (jax.tree.structure(args), tuple(map(_signature, jax.tree.leaves(args))), tuple(sorted(static.items())))
        compile_ms = 0.0
        if key not in self._compiled:
            start = time.perf_counter()
            with progress.step(f"compiling {self._name}"):
                self._compiled[key] = self._jitted.lower(*args, **static).compile()
            compile_ms = (time.perf_counter() - start) * 1e3
        start = time.perf_counter()
        result = jax.block_until_ready(self._compiled[key](*args))
        return result, (time.perf_counter() - start) * 1e3, compile_ms


def _signature(leaf: Any) -> tuple:
    return leaf.shape, leaf.dtype, getattr(leaf, "sharding", None)
