"""Paths as users give them."""

import errno
import os
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, short

LONGEST_PATH = 4096  # bytes, as Linux has it


def as_path(value: Any) -> Path | None:
    """A value as the path it writes; None if no file can have that name."""
    if not isinstance(value, str | os.PathLike):
        return None
    try:
        written = os.fsencode(value)
    except Exception:  # __fspath__ is foreign code, and not every text can be encoded
        return None
    return Path(os.fsdecode(written)) if b"\0" not in written and len(written) <= LONGEST_PATH else None


def local_path(name: str | os.PathLike[str]) -> Path:
    """A path with its `~` expanded; the user of a `~user` that nobody is stays as it stands.

    Raises:
        CheckpointError: it is no path.
    """
    path = as_path(name)
    if path is None:
        raise CheckpointError(f"expected a path, got {short(name)}")
    return Path(os.path.expanduser(path))


def resolved(name: str | os.PathLike[str]) -> Path:
    """The same, absolute and with all links followed.

    Raises:
        CheckpointError: it is no path, or its links lead nowhere.
    """
    path = local_path(name)
    try:
        return path.resolve()
    except RuntimeError:  # what Python before 3.13 makes of a loop
        reason = os.strerror(errno.ELOOP)
    except OSError as error:
        reason = error.strerror or str(error)
    raise CheckpointError(f"cannot follow {path}: {reason}")
