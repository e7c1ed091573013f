"""Compiled programs kept on disk, so that a second process need not compile: one line, off unless asked.

    sparsevlm_jax.enable_compilation_cache()

This library's programs are kept under what they are made from (see `executables`). JAX's own cache, whose key is the
lowered program and takes a model's tracing and lowering to know, keeps in that folder whatever else is compiled.

The folder is trusted as JAX trusts its own: what lies in it is run. Keep it where nobody else can write.
"""

import errno
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache as jax_cache

#: Bytes that JAX's cache may take, and this library's programs: beyond, what was used least recently is deleted.
MAX_BYTES = 2 * 1024**3

_said: set[str] = set()
_executables: Path | None = None
_without_jax = threading.Lock()


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
        The folder, or None where this library keeps nothing: in a bucket (`gs://`) that JAX is configured to use, too.

    Raises:
        ValueError: `path` is no path, or not on this machine.

    Warns:
        CacheWarning: the folder cannot be written; the process goes on without.
    """
    global _executables
    path = None if path is None else _local(path)
    configured = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    if os.environ.get("JAX_COMPILATION_CACHE_DIR") == "" or configured == "" or "://" in str(configured):
        return None
    folder = Path(configured or path or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "sparsevlm-jax")
    try:
        folder = _writable(folder)
    except (OSError, ValueError) as error:
        if configured:  # JAX would say so again for every program
            warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")
        warn(f"cannot keep compiled programs in {folder}: {getattr(error, 'strerror', error)}")
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


@contextmanager
def without_jax_cache() -> Iterator[None]:
    """JAX compiles anew in here, in all threads: what it has fetched, XLA's CPU backend writes without some functions,
    which shows when it is run."""
    with _without_jax:
        before = jax.config.jax_enable_compilation_cache  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_enable_compilation_cache", False)
        jax_cache.reset_cache()  # JAX looks at the setting once
        try:
            yield
        finally:
            jax.config.update("jax_enable_compilation_cache", before)
            jax_cache.reset_cache()


def _local(path: str | os.PathLike[str]) -> Path:
    from ..arguments import checked  # much that a command without `path` need not import

    folder = checked(path=path)
    if "://" in os.fspath(path):
        raise ValueError(f"path must be a folder of this machine, got {os.fspath(path)!r}")
    return folder


def _writable(folder: Path) -> Path:
    """The folder in full, which is there and can be written: permissions alone do not say whether one can.

    Raises:
        OSError, ValueError: it is not.
    """
    folder = Path(os.path.expanduser(folder))
    if str(folder).startswith("~"):
        raise OSError(errno.ENOENT, "there is no such home folder")
    folder = folder.absolute()
    (folder / "executables").mkdir(mode=0o700, parents=True, exist_ok=True)
    probe = folder / f".probe-{os.getpid()}"
    probe.write_bytes(b"")
    probe.unlink()
    return folder
