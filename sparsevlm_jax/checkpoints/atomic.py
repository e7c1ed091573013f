"""Folders that appear under their name only when they are whole.

The work is done in a hidden sibling, `.NAME.partial-XXXX`, which is renamed at the end. A process killed at any moment
leaves either the old state or the new one under NAME; the sibling it may leave behind is swept by the next attempt. A
lock on the sibling, which dies with its process, tells a dead attempt from a running one.
"""

import glob
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import CheckpointError
from .paths import resolved

try:
    import fcntl
except ImportError:  # no such locks on Windows: siblings are never swept there
    fcntl = None


@contextmanager
def new_folder(
    target: str | Path, *, overwrite: bool = False, replaceable: Callable[[Path], bool] = lambda _: False
) -> Iterator[Path]:
    """Yields an empty folder to fill; it becomes `target` when the block ends without an exception.

    Args:
        target: must not exist yet, or be an empty folder, unless `overwrite`.
        overwrite: replace what is there, provided that `replaceable(target)`, so that a mistyped path does not cost
            somebody their home.

    Raises:
        CheckpointError: the target exists, or cannot be written (full disk, read-only place): one sentence each.
    """
    target, work = resolved(target), None
    made: list[Path] = []
    try:
        made = [folder for folder in target.parents if not folder.exists()]
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target)
        _check_free(target, overwrite, replaceable)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
        with _locked(work):
            yield work
            _sync(work)
            _check_free(target, overwrite, replaceable)  # somebody may have been faster
            _put_in_place(work, target)
    except BaseException as error:
        if work is not None:
            _remove(work)
        for folder in made:
            with suppress(OSError):  # somebody may use it by now
                folder.rmdir()
        if isinstance(error, OSError):
            raise _cannot_write(target, error) from error
        raise


def check_target(target: str | Path, *, overwrite: bool, replaceable: Callable[[Path], bool]) -> None:
    """What `new_folder` says of its arguments, before the work that it takes to fill the folder.

    Raises:
        CheckpointError: as there, as far as it shows by a file that is made and deleted at once.
    """
    target = resolved(target)
    try:
        _check_free(target, overwrite, replaceable)
        with tempfile.TemporaryFile(dir=next(folder for folder in target.parents if folder.exists())):
            pass
    except OSError as error:
        raise _cannot_write(target, error) from error


def _cannot_write(target: str | Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"cannot write {target}: {error.strerror or error}")


def _check_free(target: Path, overwrite: bool, replaceable: Callable[[Path], bool]) -> None:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not overwrite:
        raise CheckpointError(f"{target} already exists: choose another place, or ask to overwrite it")
    if not (target.is_dir() and replaceable(target)):
        raise CheckpointError(f"{target} exists and is not a checkpoint: it is not overwritten")


def _put_in_place(work: Path, target: Path) -> None:
    """Renames; a folder that is replaced steps aside first, and `_sweep` brings it back if no more happened."""
    os.chmod(work, 0o777 & ~_umask())  # mkdtemp makes it private
    aside = None
    if target.exists() and any(target.iterdir()):
        aside = target.with_name(f".{target.name}.replaced-{work.name.rpartition('-')[2]}")
        os.rename(target, aside)
    os.rename(work, target)
    _sync_folder(target.parent)
    if aside is not None:
        shutil.rmtree(aside, ignore_errors=True)


def _remove(work: Path) -> None:
    """Deletes the folder of an attempt that failed, and again if its threads, not all dead yet, bring it back."""
    quiet = 0
    for _ in range(100):
        quiet = 0 if work.exists() else quiet + 1
        if quiet == 10:
            return
        shutil.rmtree(work, ignore_errors=True)
        time.sleep(0.05)


def _sweep(target: Path) -> None:
    """Clears what killed attempts left beside the target."""
    name = glob.escape(target.name)
    for aside in target.parent.glob(f".{name}.replaced-*"):
        if target.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            os.rename(aside, target)
    for work in target.parent.glob(f".{name}.partial-*"):
        with suppress(OSError), _locked(work):
            shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds the folder's lock; OSError if another process does, or if there are no locks here."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _sync(folder: Path) -> None:
    """Forces all files to the disk before the rename does, so that a power failure cannot leave a torn checkpoint."""
    for root, _, files in os.walk(folder):
        for file in files:
            descriptor = os.open(os.path.join(root, file), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        _sync_folder(Path(root))


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
