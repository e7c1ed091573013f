"""How a command ends: with an exit code, and at most one line on stderr, whatever was typed and whatever broke.

    0    done
    2    an error: one line says which
    130  interrupted (Ctrl-C)
    141  whoever read the output has gone (`| head -1`)

SPARSEVLM_TRACEBACK=1 shows tracebacks, and what other libraries log.
"""

import atexit
import io
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .. import progress

_PACKAGE = Path(__file__).parents[1]
_LONGEST = 2000  # letters of one line


def guarded(run: Callable[[], None]) -> int:
    """Runs a command; returns the exit code. SystemExit (of argparse) passes through."""
    # Until the error itself is forgotten: what hung on it may complain while it goes.
    with _open_streams(), _only_our_words():
        return _run(run)


def _run(run: Callable[[], None]) -> int:
    try:
        try:
            run()
        finally:
            _flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 141
    except Exception as error:
        if _wants_tracebacks():
            raise
        tell(f"error: {_sentence(error)}")
        return 2
    return 0


def tell(line: str) -> None:
    """One line on stderr, under the command's name."""
    with progress.hidden(), suppress(OSError):
        print(f"sparsevlm: {one_line(line)}", file=sys.stderr)


def one_line(text: str) -> str:
    """`text` without line breaks, its middle left out where it is very long."""
    text = " ".join(text.split()).encode(errors="backslashreplace").decode()  # names of files may hold anything
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 200]} ... {text[-190:]}"


def _wants_tracebacks() -> bool:
    return os.environ.get("SPARSEVLM_TRACEBACK") == "1"


def _sentence(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        return f"{os.fsdecode(error.filename)}: {error.strerror}" if _is_path(error.filename) else error.strerror
    if isinstance(error, RecursionError):
        return f"something is nested too deeply ({text})"
    if isinstance(error, (ValueError, OSError)):
        return text
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:  # the latter is what JAX says
        return f"not enough memory ({text})"
    return f"unexpected {type(error).__name__}: {text} (SPARSEVLM_TRACEBACK=1 shows where)"


def _is_path(name: object) -> bool:
    return isinstance(name, (str, bytes, os.PathLike)) and bool(name)


def _flush() -> None:
    """Writes what has been printed while an error can still be told; Python itself would do so after all is said."""
    try:
        sys.stdout.flush()
    except OSError as error:
        with suppress(OSError, io.UnsupportedOperation):  # it would be flushed once more at exit, and fail once more
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise
        raise OSError(error.errno, error.strerror, "standard output") from error


@contextmanager
def _open_streams() -> Iterator[None]:
    """Streams that whoever started us has closed lead nowhere: argparse of Python 3.11.2 writes without asking."""
    closed = [name for name in ("stdout", "stderr") if getattr(sys, name) is None]
    with open(os.devnull, "w") as nowhere:
        for name in closed:
            setattr(sys, name, nowhere)
        try:
            yield
        finally:
            for name in closed:
                setattr(sys, name, None)


@contextmanager
def _only_our_words() -> Iterator[None]:
    """Warnings of this library become one line each; other libraries' warnings and log lines are not shown."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    if _wants_tracebacks():
        yield
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # XLA's own log, which no Python setting reaches
    logs, hooks = logging.root.manager.disable, (sys.unraisablehook, threading.excepthook)
    _hush()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            yield
    finally:
        logging.disable(logs)
        sys.unraisablehook, threading.excepthook = hooks
        atexit.register(_hush)  # a failed writer's threads and coroutines are torn down after us


def _hush() -> None:
    """No log lines, and no tracebacks of threads and of objects that fail while they are deleted."""
    logging.disable(logging.CRITICAL)
    sys.unraisablehook = threading.excepthook = lambda _: None


def _show_warning(message: Warning | str, category: type[Warning], filename: str, *_: object) -> None:
    is_ours = category.__module__.partition(".")[0] == __name__.partition(".")[0]
    if is_ours or Path(filename).is_relative_to(_PACKAGE):
        tell(f"warning: {message}")
