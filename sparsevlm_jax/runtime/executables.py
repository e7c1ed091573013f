"""Executables on disk under what they are made from: source, versions, settings, machine, static arguments, shapes.

JAX's own cache has the lowered program as its key, so every process traces and lowers each model again before it can
look. This key is known before, and what is left is XLA's reading of the executable. Only what it can describe whole is
kept: functions and configs of this library, arrays on one default device.

The source is the one on disk: a function of this library that is replaced in memory (monkeypatched) goes unnoticed, so
do that with the cache off.

A file is the SHA-256 of the rest, then what `jax.experimental.serialize_executable` gives.
"""

import dataclasses
import functools
import hashlib
import math
import os
import pickle
import platform
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from importlib.metadata import version
from operator import itemgetter
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import serialize_executable

from .. import _imported
from ..errors import cut
from .compilation_cache import MAX_BYTES, executables_folder, warn

_PACKAGE = __name__.partition(".")[0]
_DIGEST = 32


class _Unknown(Exception):
    """Something whose meaning its description does not tell."""


def path_of(function: Callable, args: tuple, static: dict[str, Any]) -> Path | None:
    """The file of a program; None where nothing is kept, or the program is not of the kind that is."""
    folder = executables_folder()
    if folder is None or not _is_ours(function):
        return None
    try:
        parts = [function.__module__, function.__qualname__, _describe(tuple(sorted(static.items()))), _arguments(args)]
        text = "\n".join([*parts, _sources(), _machine(), _flags(), str(settings())])
    except _Unknown:
        return None
    return folder / f"{function.__name__}-{hashlib.sha256(text.encode()).hexdigest()[:40]}"


def load(path: Path) -> Any:
    """The compiled program, or None; a damaged file is one warning, and goes."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if hashlib.sha256(content[_DIGEST:]).digest() != content[:_DIGEST]:
        with suppress(OSError):
            path.unlink()
        warn(f"the compilation cache {path.parent} is damaged: what it lacks is compiled; delete the folder to mend it")
        return None
    try:
        device = jax.devices()[0]
        payload, ins, outs = pickle.loads(content[_DIGEST:])
        where = dict(backend=device.client, execution_devices=[device])
        compiled = serialize_executable.deserialize_and_load(payload, ins, outs, **where)
    except Exception as error:  # XLA's own reasons, memory among them: compiling may still do, and replaces the file
        warn(f"cannot fetch a program from {path.parent}, and compile it: {cut(str(error) or type(error).__name__)}")
        return None
    with suppress(OSError):  # another's file, or another process has deleted it
        os.utime(path)
    return compiled


def save(path: Path, compiled: Any) -> None:
    """Keeps a program, whole or not at all, and deletes the least recently used beyond `MAX_BYTES`."""
    try:
        content = pickle.dumps(serialize_executable.serialize(compiled))
    except (ValueError, NotImplementedError, RuntimeError):
        return  # not every backend can
    work = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        work.write_bytes(hashlib.sha256(content).digest() + content)
        os.replace(work, path)
    except OSError as error:
        warn(f"cannot keep compiled programs in {path.parent}: {error.strerror}")
        with suppress(OSError):
            work.unlink()
    _prune(path.parent)


def _prune(folder: Path) -> None:
    """Deletes the least recently used files beyond `MAX_BYTES`; other processes may do so at the same time."""
    files = []
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(OSError):
                files.append((entry.stat(), entry.path))
    total = 0
    for stat, file in sorted(files, key=lambda pair: -pair[0].st_mtime):
        total += stat.st_size
        if total > MAX_BYTES:
            with suppress(OSError):
                os.unlink(file)


def _is_ours(thing: Any) -> bool:
    return thing.__module__.partition(".")[0] == _PACKAGE


def _describe(value: Any) -> str:
    """All that a static argument says, to the last field.

    Raises:
        _Unknown: it is no plain value and no dataclass of this library: a user's own score, for example, whose code may
            change while its fields do not.
    """
    kind = type(value)
    if value is None or kind in (bool, int, float, str, Fraction, range) or isinstance(value, np.dtype):
        return f"{kind.__name__} {value!r}"
    if kind in (tuple, list) or (isinstance(value, tuple) and _is_ours(kind)):
        return f"{kind.__qualname__}({', '.join(map(_describe, value))})"
    if dataclasses.is_dataclass(value) and _is_ours(kind):
        fields = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
        return f"{kind.__module__}.{kind.__qualname__}({', '.join(map(_describe, fields))})"
    raise _Unknown(kind)


def _arguments(args: tuple) -> str:
    leaves, tree = jax.tree.flatten(args)
    return "\n".join([str(tree), *map(_array, leaves)])


def _array(leaf: Any) -> str:
    if isinstance(leaf, jax.Array):
        if leaf.sharding != jax.sharding.SingleDeviceSharding(jax.devices()[0]):
            raise _Unknown(leaf.sharding)
    elif not isinstance(leaf, (np.ndarray, np.generic)):
        raise _Unknown(type(leaf))
    return f"{leaf.shape} {leaf.dtype} {getattr(leaf, 'weak_type', False)}"


@functools.cache
def _sources() -> str:
    """This library's code, whatever its version says, and the versions of what it is compiled with.

    Raises:
        _Unknown: the code has changed on disk since it was imported.
    """
    files = sorted(Path(__file__).parents[1].rglob("*.py"))
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + file.read_bytes())
    changed = (max(stat.st_mtime, stat.st_ctime) for stat in map(Path.stat, files))
    if max(changed, default=math.inf) > _imported:
        raise _Unknown("source")
    return " ".join([digest.hexdigest(), *map(version, ("jax", "jaxlib", "flax", "numpy")), platform.python_version()])


@functools.cache
def _machine() -> str:
    device = jax.devices()[0]
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if device.platform == "cpu" and cpu.exists() else []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return f"{platform.machine()} {device.platform} {device.device_kind} {device.client.platform_version} {features}"


_settings_of = itemgetter(*(name for name in jax.config.values if "cache" not in name))


def settings() -> tuple:
    """JAX's settings as they now are in this thread: they change programs from outside of their arguments."""
    return _settings_of(jax.config.values)


def _flags() -> str:
    return str(sorted(pair for pair in os.environ.items() if pair[0].startswith(("XLA_", "LIBTPU_"))))
