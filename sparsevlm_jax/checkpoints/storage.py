"""Orbax as this library calls it: any path is right, memory is bounded, and what fails is one error and nothing else.

Where a read or a write fails, Orbax closes its event loop on whatever else runs in it. Those leftovers complain when
they end or are collected, in hundreds of lines, of what is raised as well: here, while nobody listens.
"""

import gc
import logging
import os
import re
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import CoroutineType
from typing import Any

from .. import progress
from ..errors import CheckpointError
from .trees import flatten


def write_tree(path: Path, params: dict, target: str | Path) -> None:
    """Writes the parameters into a folder that does not exist yet; errors name `target`.

    Raises:
        CheckpointError: it cannot be written.
    """
    from orbax.checkpoint import v1 as ocp  # a second of import that only conversion needs

    context = ocp.Context()  # limits what is copied at a time, which is everything otherwise
    largest = max(leaf.nbytes for leaf in flatten(params).values())
    context.memory.write_concurrent_bytes = context.memory.transfer_concurrent_bytes = 2 * largest
    with without_foreign_reports():
        try:
            with context, progress.step(f"writing {target}"), _readable_path(path.parent) as parent:
                ocp.save(str(parent / path.name), params)
                return
        except Exception as error:  # the storage layer raises many kinds
            reason = _reason(error)
        _collect_leftovers()
        raise CheckpointError(f"cannot write {target}: {reason}")


def read_tree(path: Path, abstract: dict) -> dict:
    """The arrays that `abstract` describes, from a folder that `write_tree` wrote.

    Raises:
        CheckpointError: it cannot be read, or holds something else.
    """
    from orbax.checkpoint import v1 as ocp

    with without_foreign_reports():
        try:
            with progress.step("reading weights"), _readable_path(path) as readable:
                return ocp.load(str(readable), abstract)
        except Exception as error:
            reason = _reason(error)
        _collect_leftovers()
        raise CheckpointError(f"cannot read {path}: {reason}")


@contextmanager
def _readable_path(folder: Path) -> Iterator[Path]:
    """The folder under a path that the storage layer reads right: absolute, and without the characters that it takes
    for a pattern (`[`), another separator (`\\`) or an address (`:`)."""
    folder = folder.absolute()
    if re.fullmatch(r"[^*?\[\]\\:\ud800-\udfff]*", folder.relative_to(folder.anchor).as_posix(), re.DOTALL):
        yield folder
        return
    with tempfile.TemporaryDirectory() as place:
        link = Path(place) / "folder"
        link.symlink_to(folder, target_is_directory=True)
        yield link


_quiet, _quiet_users, _quiet_lock = ExitStack(), 0, threading.Lock()


@contextmanager
def without_foreign_reports() -> Iterator[None]:
    """Keeps Orbax and its threads from reporting what is raised as well.

    What is silenced belongs to the process: the first thread that comes silences it, the last that goes gives it back.
    """
    global _quiet_users
    with _quiet_lock:
        if _quiet_users == 0:
            _quiet.enter_context(_silence())
        _quiet_users += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_users -= 1
            if _quiet_users == 0:
                _quiet.close()


@contextmanager
def _silence() -> Iterator[None]:
    logs, hook = [logging.getLogger(name) for name in ("absl", "asyncio")], sys.unraisablehook
    levels = [log.level for log in logs]

    def without_leftovers(report: Any) -> None:
        if not isinstance(report.object, CoroutineType) and str(report.exc_value) != "Event loop is closed":
            hook(report)

    for log in logs:
        log.setLevel(logging.CRITICAL + 1)
    sys.unraisablehook = without_leftovers
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
        sys.unraisablehook = hook


def _collect_leftovers() -> None:
    """Collects what a failure left unfinished, once the storage layer's threads let go of it."""
    for _ in range(40):
        gc.collect()
        if not any(_is_leftover(thing) for thing in gc.get_objects()):
            return
        time.sleep(0.05)


def _is_leftover(thing: object) -> bool:
    # not `isinstance`, which asks every object of the process for its class, deprecated ones too
    return type(thing) is CoroutineType and "orbax" in Path(thing.cr_code.co_filename).parts


def _reason(error: Exception) -> str:
    """What the operating system said, where it is in the text of the storage layer; else the first line of that."""
    text = str(error).strip()
    code = re.search(r"os_error_code='([0-9]+)'", text)
    if code:
        return os.strerror(int(code[1]))
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (text.splitlines() or [type(error).__name__])[0][:500]
