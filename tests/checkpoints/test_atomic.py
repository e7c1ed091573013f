"""A folder appears whole or not at all, whatever fails on the way."""

import errno
import os
import stat
import subprocess
import sys

import pytest

from sparsevlm_jax.checkpoints.atomic import new_folder
from sparsevlm_jax.errors import CheckpointError


def write(target, content="new", **options):
    with new_folder(target, **options) as work:
        (work / "part").mkdir()
        (work / "part" / "file").write_text(content)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def replaceable(folder):
    return (folder / "part").is_dir()


def test_it_appears_with_all_its_parents_and_the_usual_rights(tmp_path):
    write(tmp_path / "a" / "b" / "model")
    assert (tmp_path / "a" / "b" / "model" / "part" / "file").read_text() == "new"
    (tmp_path / "plain").mkdir()
    assert stat.S_IMODE((tmp_path / "a" / "b" / "model").stat().st_mode) == stat.S_IMODE(
        (tmp_path / "plain").stat().st_mode
    )


def test_an_empty_folder_may_be_the_target(tmp_path):
    (tmp_path / "model").mkdir()
    write(tmp_path / "model")
    assert names(tmp_path) == ["model"]


def test_an_error_inside_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), new_folder(tmp_path / "model") as work:
        (work / "file").write_text("half")
        raise KeyError
    assert names(tmp_path) == []


def test_an_error_inside_leaves_none_of_the_parents_that_were_made(tmp_path):
    (tmp_path / "old").mkdir()
    with pytest.raises(KeyError), new_folder(tmp_path / "old" / "new" / "newer" / "model"):
        raise KeyError
    assert names(tmp_path) == ["old"] and names(tmp_path / "old") == []


def test_what_exists_is_kept_unless_asked(tmp_path):
    write(tmp_path / "model", "old")
    with pytest.raises(CheckpointError, match="model already exists"):
        write(tmp_path / "model")
    assert (tmp_path / "model" / "part" / "file").read_text() == "old"


def test_what_came_to_exist_meanwhile_is_kept_too(tmp_path):
    with pytest.raises(CheckpointError, match="model already exists"), new_folder(tmp_path / "model"):
        write(tmp_path / "model", "theirs")
    assert (tmp_path / "model" / "part" / "file").read_text() == "theirs" and names(tmp_path) == ["model"]


def test_overwriting_replaces_the_whole_folder(tmp_path):
    write(tmp_path / "model", "old")
    (tmp_path / "model" / "stale").write_text("")
    write(tmp_path / "model", overwrite=True, replaceable=replaceable)
    assert names(tmp_path / "model") == ["part"] and names(tmp_path) == ["model"]
    assert (tmp_path / "model" / "part" / "file").read_text() == "new"


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_only_a_checkpoint_is_overwritten(tmp_path, kind):
    target = tmp_path / "thesis"
    if kind == "folder":
        target.mkdir()
        (target / "chapter1").write_text("years of work")
    else:
        target.write_text("years of work")
    with pytest.raises(CheckpointError, match="thesis exists and is not a checkpoint: it is not overwritten"):
        write(target, overwrite=True, replaceable=replaceable)
    assert "years of work" in (target if kind == "file" else target / "chapter1").read_text()


@pytest.mark.parametrize("call", ["rename", "fsync", "chmod"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_failing_disk_is_one_sentence_and_leaves_the_old_state(tmp_path, monkeypatch, call, code):
    write(tmp_path / "model", "old")

    def fail(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(CheckpointError, match=f"^cannot write .*model: {os.strerror(code)}$"):
        write(tmp_path / "model", overwrite=True, replaceable=replaceable)
    monkeypatch.undo()
    assert (tmp_path / "model" / "part" / "file").read_text() == "old" and names(tmp_path) == ["model"]


def test_a_parent_that_is_a_file_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="^cannot write .*model: "):
        write(tmp_path / "file" / "model")


def test_links_that_lead_nowhere_are_one_sentence(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(CheckpointError, match="a/model: Too many levels of symbolic links$"):
        write(tmp_path / "a" / "model")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_place_is_one_sentence(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(CheckpointError, match="^cannot write .*model: Permission denied$"):
        write(tmp_path / "model")


def test_a_replacement_killed_between_its_two_renames_is_undone(tmp_path, monkeypatch):
    write(tmp_path / "model", "old")
    rename = os.rename

    def die_at_the_second(source, target):
        if ".partial-" in str(source):
            raise KeyboardInterrupt  # as good as a kill: no handler of OSError sees it
        rename(source, target)

    monkeypatch.setattr(os, "rename", die_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "model", overwrite=True, replaceable=replaceable)
    monkeypatch.undo()
    assert not (tmp_path / "model").exists()
    with pytest.raises(CheckpointError, match="already exists"):
        write(tmp_path / "model")
    assert (tmp_path / "model" / "part" / "file").read_text() == "old" and names(tmp_path) == ["model"]


@pytest.mark.parametrize("name", ["[model]*", "model.partial-1", "a b"])
def test_leftovers_are_found_whatever_the_name(tmp_path, name):
    write(tmp_path / name, "old")
    (tmp_path / f".{name}.partial-dead").mkdir()
    (tmp_path / name).rename(tmp_path / f".{name}.replaced-dead")
    with pytest.raises(CheckpointError, match="already exists"):
        write(tmp_path / name)
    assert names(tmp_path) == [name]


HOLD = """
import sys, time
from sparsevlm_jax.checkpoints.atomic import new_folder
with new_folder(sys.argv[1]) as work:
    (work / "file").write_text("theirs")
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_leftovers_of_the_dead_are_swept_and_the_living_are_left_alone(tmp_path):
    target = tmp_path / "model"
    (tmp_path / ".model.partial-dead").mkdir()
    command = [sys.executable, "-c", HOLD, str(target)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "ready\n"
        (theirs,) = tmp_path.iterdir()  # the dead one is gone
        write(target)
        assert names(tmp_path) == [theirs.name, "model"]
        other.kill()
    write(target, overwrite=True, replaceable=replaceable)
    assert names(tmp_path) == ["model"]
