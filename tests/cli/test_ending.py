"""However a command ends, it says at most one line on stderr, and its exit code tells which way it was."""

import errno
import logging
import os
import subprocess
import sys
import threading
import warnings

import pytest

from sparsevlm_jax.cli import ending
from sparsevlm_jax.errors import CheckpointWarning


def ended(capsys, run) -> tuple[int, str]:
    code = ending.guarded(run)
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == bool(err)
    return code, err


def raising(error: BaseException):
    def run():
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two\nlines"), "sparsevlm: error: two lines\n"),
        (FileNotFoundError(errno.ENOENT, "No such file", "x.png"), "sparsevlm: error: x.png: No such file\n"),
        (OSError(errno.ENOSPC, "No space left on device"), "sparsevlm: error: No space left on device\n"),
        (OSError("no reason"), "sparsevlm: error: no reason\n"),
        (ValueError(), "sparsevlm: error: ValueError\n"),
        (MemoryError("40 GB"), "sparsevlm: error: not enough memory (40 GB)\n"),
        (RuntimeError("RESOURCE_EXHAUSTED: 3 GB"), "sparsevlm: error: not enough memory (RESOURCE_EXHAUSTED: 3 GB)\n"),
        (RecursionError("too deep"), "sparsevlm: error: something is nested too deeply (too deep)\n"),
        (KeyError("k"), "sparsevlm: error: unexpected KeyError: 'k' (SPARSEVLM_TRACEBACK=1 shows where)\n"),
    ],
)
def test_every_error_is_one_line_and_exit_code_2(capsys, error, line):
    assert ended(capsys, raising(error)) == (2, line)


def test_a_huge_message_keeps_its_beginning_and_its_end(capsys):
    code, err = ended(capsys, raising(ValueError("begin" + " x" * 10**6)))
    assert code == 2 and err.startswith("sparsevlm: error: begin x") and len(err) < 2100


def test_an_interrupt_says_nothing(capsys):
    assert ended(capsys, raising(KeyboardInterrupt())) == (130, "")


def test_own_warnings_are_one_line_and_others_are_not_shown(capsys):
    def run():
        warnings.simplefilter("always")
        warnings.warn("weights\nhold NaN", CheckpointWarning, stacklevel=1)
        warnings.warn("use another function", DeprecationWarning, stacklevel=1)
        logging.getLogger("some.library").error("a log line")

    assert ended(capsys, run) == (0, "sparsevlm: warning: weights hold NaN\n")


class Fragile:
    def __del__(self):
        raise RuntimeError("torn down in the wrong order")


def test_what_fails_in_other_threads_and_in_deletion_is_not_told(capsys):
    def run():
        fragile = Fragile()
        thread = threading.Thread(target=raising(RuntimeError("a writer without a disk")))
        thread.start()
        thread.join()
        raise ValueError(f"no space left ({type(fragile).__name__})")  # the error holds this frame, and so the object

    assert ended(capsys, run) == (2, "sparsevlm: error: no space left (Fragile)\n")


def test_logging_is_as_before_afterwards(capsys):
    before = logging.root.manager.disable
    ended(capsys, raising(ValueError()))
    assert logging.root.manager.disable == before


def shell(script: str) -> tuple[int, str, str]:
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": "", "PYTHONUNBUFFERED": ""}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, env=environment)
    return done.returncode, done.stdout, done.stderr


SPARSEVLM = f"{sys.executable} -m sparsevlm_jax"


@pytest.mark.parametrize("command", ["methods", "--help", "methods --json"])
def test_a_full_standard_output_is_one_line(command):
    if not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full here")
    code, _, err = shell(f"{SPARSEVLM} {command} > /dev/full")
    assert (code, err) == (2, "sparsevlm: error: standard output: No space left on device\n")


@pytest.mark.parametrize("command", ["methods", "--help"])
def test_a_reader_that_has_gone_is_no_error(command):
    # stdout is a pipe whose reading end is closed before the command starts
    script = f"exec {{end}}> >(exec true); sleep 0.3; {SPARSEVLM} {command} >&$end"
    assert shell(script) == (141, "", "")


def test_closed_standard_streams_are_no_error():
    assert shell(f"{SPARSEVLM} --version >&- 2>&- <&-") == (0, "", "")


def test_bytes_that_are_no_text_are_shown_with_escapes():
    code, out, err = shell(f"{SPARSEVLM} info $'/absent/\\xff\\xfe'")
    assert (code, out) == (2, "") and err.count("\n") == 1 and "\\udcff" in err


def test_a_long_argument_is_not_repeated(capsys):
    from sparsevlm_jax.cli import main

    with pytest.raises(SystemExit):
        main(["generate", "--prompt", "?", "--seed", "9" * 100_000])
    assert len(capsys.readouterr().err) < 3000
