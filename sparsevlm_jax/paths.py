"""Paths as users give them."""

import os
from pathlib import Path

from .errors import CheckpointError


def local_path(name: str | os.PathLike[str]) -> Path:
    """A path with its `~` expanded; the user of a `~user` that nobody is stays as it stands.

    Raises:
        CheckpointError: it is no path.
    """
    if not isinstance(name, str | os.PathLike) or not isinstance(os.fspath(name), str):
        raise CheckpointError(f"expected a path, got {type(name).__name__}")
    if "\0" in os.fspath(name):
        raise CheckpointError(f"a path cannot hold a null character: {os.fspath(name)!r}")
    return Path(os.path.expanduser(name))
