"""Progress is one line on a terminal, gone when the work is done; without somebody watching there is none."""

import io

import pytest

from sparsevlm_jax import progress


def screen(written: str) -> str:
    """What a terminal's line shows after these characters."""
    return written.replace("\x1b[K", "\r").rpartition("\r")[2]


def test_nothing_is_written_unless_somebody_watches(capsys):
    with progress.step("loading"):
        assert list(progress.count([1, 2], "reading")) == [1, 2]
    assert capsys.readouterr() == ("", "")


def test_the_innermost_step_is_shown_and_the_line_is_empty_at_the_end():
    terminal = io.StringIO()
    with progress.shown(terminal):
        with progress.step("answering"):
            assert screen(terminal.getvalue()) == "answering ..."
            with progress.step("compiling"):
                assert screen(terminal.getvalue()) == "compiling ..."
            assert screen(terminal.getvalue()) == "answering ..."
        assert screen(terminal.getvalue()) == ""
    assert "\n" not in terminal.getvalue()


def test_a_count_has_a_bar_that_is_wiped_away():
    terminal = io.StringIO()
    with progress.shown(terminal), progress.step("converting"):
        assert list(progress.count("abc", "reading weights")) == ["a", "b", "c"]
        assert screen(terminal.getvalue()) == "converting ..."
    assert "reading weights" in terminal.getvalue() and "/3" in terminal.getvalue()
    assert screen(terminal.getvalue()) == "" and "\n" not in terminal.getvalue()


def test_what_is_printed_meanwhile_is_not_wiped_away():
    terminal = io.StringIO()
    with progress.shown(terminal), progress.step("answering"):
        with progress.hidden():
            assert screen(terminal.getvalue()) == ""
            with progress.step("compiling"):
                assert screen(terminal.getvalue()) == ""
        assert screen(terminal.getvalue()) == "answering ..."


def test_an_error_leaves_an_empty_line():
    terminal = io.StringIO()
    with pytest.raises(ValueError, match="broken"), progress.shown(terminal), progress.step("loading"):
        raise ValueError("broken")
    assert screen(terminal.getvalue()) == ""


def test_a_terminal_that_has_gone_stops_nothing():
    terminal = io.StringIO()
    terminal.close()
    with progress.shown(terminal), progress.step("loading"):
        pass
