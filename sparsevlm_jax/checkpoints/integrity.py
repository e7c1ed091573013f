"""Hashes of a folder's files: recorded when it is written, compared when somebody asks.

They tell a file that has changed since, by whatever cause, from one that has not. They are no signature: whoever can
change a file can change its hash as well.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .. import progress
from ..errors import CheckpointError


class FileHash(NamedTuple):
    size: int
    sha256: str


def hash_files(folder: Path, *, skip: str) -> dict[str, FileHash]:
    """The files of a folder, those of its folders included, but not `skip`: path relative to it, with `/` -> hash.

    Memory is bounded, whatever the files: they are read in pieces.
    """
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {name: _hash(folder / name) for name in progress.count([name for name in names if name != skip], "hashing")}


def compare_files(folder: Path, recorded: Mapping[str, FileHash], *, closed: Iterable[str]) -> None:
    """Compares a folder with what was recorded of it.

    Args:
        closed: files and folders to which nothing may have been added; beside them a README, say, does no harm.

    Raises:
        CheckpointError: naming every file that is missing, has changed or was added.
    """
    problems = []
    for name, expected in progress.count(recorded.items(), "verifying"):
        try:
            found = _hash(folder / name)
        except OSError as error:
            problems.append(f"{name} cannot be read ({error.strerror or error})")
            continue
        if found.size != expected.size:
            problems.append(f"{name} has {found.size} bytes, expected {expected.size}")
        elif found != expected:
            problems.append(f"{name} has changed")
    here = (path for name in closed for path in (folder / name, *(folder / name).rglob("*")) if path.is_file())
    added = sorted({path.relative_to(folder).as_posix() for path in here} - recorded.keys())
    problems += [f"{name} was added" for name in added]
    if problems:
        raise CheckpointError(f"{folder} is not as it was written: {'; '.join(problems)}")


def seal(table: Mapping[str, Any]) -> str:
    """The hash of a JSON table, however it is laid out."""
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()


def read_hashes(table: Any) -> dict[str, FileHash] | None:
    """`{name: [size, sha256]}` as `hash_files` gave it; None if it is none of that kind, or names a file elsewhere."""
    if not isinstance(table, dict) or not all(map(_is_recorded, table.items())):
        return None
    return {name: FileHash(*entry) for name, entry in table.items()}


def _is_recorded(item: tuple[str, Any]) -> bool:
    match item:
        case (name, [int(size), str(digest)]):
            inside = not name.startswith("/") and not {"", ".", ".."} & set(name.split("/")) and name.isprintable()
            return inside and type(size) is int and size >= 0 and re.fullmatch("[0-9a-f]{64}", digest) is not None
    return False


def _hash(path: Path) -> FileHash:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileHash(file.tell(), digest)
