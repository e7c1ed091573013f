"""Executables on disk under what they are made from: source, versions, settings, machine, static arguments, shapes.

JAX's own cache has the lowered program as its key, so every process traces and lowers each model again before it can
look: seconds, where fetching takes tenths. This key is known before. Only what it can describe whole is kept: functions
and configs of this library, arrays on one default device.

A file is the SHA-256 of the rest, then what `jax.experimental.serialize_executable` gives.
"""

import dataclasses
import functools
import hashlib
import os
import pickle
import platform
from collections.abc import Callable
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import serialize_executable

from .compilation_cache import MAX_BYTES, executables_folder, warn, warn_damaged

_PACKAGE = __name__.partition(".")[0]
_DIGEST = 32


_fetched_by_jax = 0


def _listen(event: str, **_: Any) -> None:
    global _fetched_by_jax
    _fetched_by_jax += event == "/jax/compilation_cache/cache_hits"


jax.monitoring.register_event_listener(_listen)


class _Unknown(Exception):
    """Something whose meaning its description does not tell."""


def path_of(function: Callable, args: tuple, static: dict[str, Any]) -> Path | None:
    """The file of a program; None where nothing is kept, or the program is not of the kind that is."""
    folder = executables_folder()
    if folder is None or not _is_ours(function):
        return None
    try:
        parts = [function.__module__, function.__qualname__, _describe(tuple(sorted(static.items()))), _arguments(args)]
    except _Unknown:
        return None
    text = "\n".join([*parts, _sources(), _machine(), _settings()])
    return folder / f"{function.__name__}-{hashlib.sha256(text.encode()).hexdigest()[:40]}"


def load(path: Path) -> Any:
    """The compiled program, or None; a damaged file is one warning, and goes."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    try:
        if hashlib.sha256(content[_DIGEST:]).digest() != content[:_DIGEST]:
            raise ValueError("the digest is another")
        device = jax.devices()[0]
        payload, ins, outs = pickle.loads(content[_DIGEST:])
        where = dict(backend=device.client, execution_devices=[device])
        compiled = serialize_executable.deserialize_and_load(payload, ins, outs, **where)
        os.utime(path)
    except Exception:  # damaged bytes, or an XLA that thinks otherwise of its own: whatever it is, compiling helps
        path.unlink(missing_ok=True)
        warn_damaged()
        return None
    return compiled


def fetched_by_jax() -> int:
    """How many programs JAX has taken from its own cache. Such a one must not be saved: XLA's CPU backend writes a
    program that it has read without some of its functions, which shows when it runs."""
    return _fetched_by_jax


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
        _prune(path.parent)
    except OSError as error:
        warn(f"cannot keep compiled programs in {path.parent}: {error.strerror}")


def _prune(folder: Path) -> None:
    files = sorted(((file.stat(), file) for file in folder.iterdir()), key=lambda pair: -pair[0].st_mtime)
    total = 0
    for stat, file in files:
        total += stat.st_size
        if total > MAX_BYTES:
            file.unlink(missing_ok=True)


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
    """This library's code, whatever its version says, and the versions of what it is compiled with."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(file.name.encode() + file.read_bytes())
    return " ".join([digest.hexdigest(), *map(version, ("jax", "jaxlib", "flax", "numpy")), platform.python_version()])


@functools.cache
def _machine() -> str:
    device = jax.devices()[0]
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if device.platform == "cpu" and cpu.exists() else []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return f"{platform.machine()} {device.platform} {device.device_kind} {device.client.platform_version} {features}"


def _settings() -> str:
    """Whatever may change a program from outside of its arguments."""
    flags = {name: value for name, value in os.environ.items() if name.startswith(("XLA_", "LIBTPU_"))}
    config = {name: value for name, value in jax.config.values.items() if "cache" not in name}
    return f"{sorted(flags.items())} {sorted((name, str(value)) for name, value in config.items())}"
