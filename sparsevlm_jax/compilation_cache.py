"""Compiled programs kept on disk, so that a second process need not compile: one line, off unless asked.

    sparsevlm_jax.enable_compilation_cache()

Two things are kept. JAX's own cache saves compiling, of every jitted function in the process; it wants each function
traced and lowered first, which for a model takes seconds. So this library's programs are kept once more, under what
they are made from (see `executables`), and then neither is needed.

The folder is trusted as JAX trusts its own: what lies in it is run. Keep it where nobody else can write.
"""

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

#: Bytes that JAX's cache may take, and this library's programs: beyond, what was used least recently is deleted.
MAX_BYTES = 2 * 1024**3

_JAX = re.compile(r"Error (reading|writing) persistent compilation cache entry")
_said: set[str] = set()
_executables: Path | None = None


class CacheWarning(UserWarning):
    """Programs cannot be kept or fetched, and are compiled instead. Answers do not change."""


def enable_compilation_cache(path: str | os.PathLike[str] | None = None) -> Path | None:
    """Keeps compiled programs between processes; call it before the first program is compiled.

    It is JAX's global setting (`jax_compilation_cache_dir`), for whatever else the process compiles too. A folder that
    is configured already, by JAX_COMPILATION_CACHE_DIR or in `jax.config`, is used instead of `path` and its settings
    are left alone; an empty JAX_COMPILATION_CACHE_DIR turns this function off. To clear the cache, delete the folder.

    Args:
        path: the folder; None is `sparsevlm-jax` in $XDG_CACHE_HOME or ~/.cache. Twice `MAX_BYTES` is all it takes.

    Returns:
        The folder, or None where nothing is kept.

    Warns:
        CacheWarning: the folder cannot be written; the process goes on without.
    """
    global _executables
    configured = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    if os.environ.get("JAX_COMPILATION_CACHE_DIR") == "" or configured == "":
        return None
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "sparsevlm-jax"
    folder = Path(configured or path or default).expanduser().absolute()
    if configured and "://" in str(configured):  # a bucket, which JAX reads and this library does not
        return Path(configured)
    try:
        (folder / "executables").mkdir(mode=0o700, parents=True, exist_ok=True)
        _probe(folder)
    except OSError as error:
        jax.config.update("jax_enable_compilation_cache", False)  # it would say so again for every program
        warn(f"cannot keep compiled programs in {folder}: {error.strerror}")
        return None
    if not configured:
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)
    _executables = folder / "executables"
    return folder


def executables_folder() -> Path | None:
    """Where this library's programs are kept; None: nowhere."""
    return _executables


def warn(sentence: str) -> None:
    """A `CacheWarning`, once a process."""
    if sentence not in _said:
        _said.add(sentence)
        warnings.warn(sentence, CacheWarning, stacklevel=3)


def warn_damaged() -> None:
    """The one sentence about entries that cannot be read or replaced, JAX's or this library's."""
    folder = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    warn(f"the compilation cache {folder} is damaged: what it lacks is compiled; delete the folder to mend it")


@contextmanager
def one_sentence() -> Iterator[None]:
    """What JAX says of its cache in here, a jitted function's name and an exception each time, becomes one sentence."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        if _JAX.match(str(warning.message)):
            warn_damaged()
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def _probe(folder: Path) -> None:
    """Writes and removes a file: permissions alone do not say whether one can."""
    file = folder / f".probe-{os.getpid()}"
    file.write_bytes(b"")
    file.unlink()
