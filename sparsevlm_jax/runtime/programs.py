"""Compiled programs, kept by shape, with their compile time known apart from their run time.

`jax.jit` hides compilation inside a call; here it is explicit, so that a report can say what was compiling and what was
computing, and a test can count programs.

`jax.jit` also keeps what it has compiled for ever. On a CPU a program of a small model takes some 15 MB and 300 memory
maps, one of twelve layers a thousand; Linux grants a process 65,530 and kills the one that wants more. So all programs
together are bounded: above `limit()`, or where the process has used up half of its maps, the one that was used least
recently is given back.
"""

import ctypes
import functools
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import jax

from .. import progress
from . import executables
from .compilation_cache import without_jax_cache

#: Programs kept in memory; the environment variable SPARSEVLM_PROGRAMS says another number.
LIMIT = 64
#: Programs that stay however crowded the process is: those of one call, which would else be compiled for every call.
LEAST = 8


class Programs:
    """Compiled programs by key: above `limit()` of them, or above `LEAST` while the process is `crowded()`, the least
    recently used goes. For threads."""

    def __init__(self, limit: Callable[[], int], crowded: Callable[[], bool] = lambda: False):
        self._limit, self._crowded = limit, crowded
        self._kept: OrderedDict[Any, Any] = OrderedDict()
        self._lock, self._compiling = threading.Lock(), threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def order(self) -> list[Any]:
        """Their keys, the least recently used first."""
        with self._lock:
            return list(self._kept)

    def find(self, key: Any) -> Any:
        """The compiled program, or None; it counts as used."""
        with self._lock:
            if key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return self._kept[key]

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        """The compiled program of `key`, made where it is not there: one at a time, whatever the threads."""
        if (found := self.find(key)) is not None:
            return found
        with self._compiling:
            if (found := self.find(key)) is not None:
                return found
            limit = self._limit()
            made = make()
            with self._lock:
                self._kept[key] = made
                before = len(self._kept)
                while len(self._kept) > limit or (len(self._kept) > LEAST and self._crowded()):
                    self._kept.popitem(last=False)
                gone = before - len(self._kept)
            if gone:
                return_free_memory()
            return made

    def clear(self) -> None:
        with self._lock:
            self._kept.clear()


def limit() -> int:
    """How many compiled programs are kept in memory, at least one.

    Raises:
        ValueError: SPARSEVLM_PROGRAMS is not a number above zero.
    """
    text = os.environ.get("SPARSEVLM_PROGRAMS") or str(LIMIT)
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"SPARSEVLM_PROGRAMS must be a whole number >= 1, got {text!r}")
    return int(text)


def crowded() -> bool:
    """Whether more than half of the memory maps that the system grants this process are taken. Not known: no."""
    try:
        granted = int(Path("/proc/sys/vm/max_map_count").read_text())
        taken = Path("/proc/self/maps").read_bytes().count(b"\n")
    except (OSError, ValueError):
        return False
    return taken > granted // 2


def return_free_memory() -> None:
    """Gives what the C heap holds unused back to the system. glibc keeps it for itself: a quarter of what a process has
    that compiled a few dozen programs. Other C libraries have no such call, and nothing happens."""
    with suppress(AttributeError, OSError, TypeError):  # TypeError: there is no C library of the process on Windows
        ctypes.CDLL(None).malloc_trim(0)


PROGRAMS = Programs(limit, crowded)


class Program:
    """A pure function `f(params, *arrays, **static)`, compiled once per shapes and static arguments.

    Args:
        static: names of the static arguments.
        donate: positions of arguments whose buffers the results may reuse.
        programs: where the compiled ones are kept; by default with those of all other functions.
    """

    def __init__(
        self,
        function: Callable,
        *,
        static: tuple[str, ...],
        donate: tuple[int, ...] = (),
        programs: Programs = PROGRAMS,
    ):
        self._function, self._static, self._donate, self._programs = function, static, donate, programs

    @property
    def size(self) -> int:
        """How many of its compiled programs are kept."""
        return sum(key[0] is self for key in self._programs.order())

    def __call__(self, *args: Any, **static: Any) -> tuple[Any, float, float]:
        """The result, ready; milliseconds to run; milliseconds to compile (0 where it was)."""
        compiled, compile_ms = self.compiled(*args, **static)
        start = time.perf_counter()
        result = jax.block_until_ready(compiled(*args))
        return result, (time.perf_counter() - start) * 1e3, compile_ms

    def compiled(self, *args: Any, **static: Any) -> tuple[Callable, float]:
        """The program for such arguments, not run; and the milliseconds it took to compile (0 where it was)."""
        key = (self, *_signature(args), tuple(sorted(static.items())), executables.settings())
        if (found := self._programs.find(key)) is not None:
            return found, 0.0
        start = time.perf_counter()
        compiled = self._programs.get(key, lambda: self._compile(args, static))
        return compiled, (time.perf_counter() - start) * 1e3

    def _compile(self, args: tuple, static: dict[str, Any]) -> Any:
        @functools.wraps(self._function)
        def function(*args, **static):  # JAX's caches hold an executable as long as its function lives: one for each
            return self._function(*args, **static)

        path = executables.path_of(self._function, args, static)
        if path and (found := executables.load(path)):
            return found
        jitted = jax.jit(function, static_argnames=self._static, donate_argnums=self._donate)
        name = getattr(self._function, "__name__", "a program")
        with progress.step(f"compiling {name}"), without_jax_cache() if path else nullcontext():
            compiled = jitted.lower(*args, **static).compile()
        if path:
            executables.save(path, compiled)
        return compiled


def _signature(args: Any) -> tuple:
    leaves, tree = jax.tree.flatten(args)
    return tree, tuple((leaf.shape, leaf.dtype, getattr(leaf, "sharding", None)) for leaf in leaves)
