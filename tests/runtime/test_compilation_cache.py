"""Programs kept on disk: fetched without tracing, bounded, and never in the way of an answer."""

import errno
import os
import shutil
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache as jax_cache

from sparsevlm_jax.runtime import compilation_cache, decode, executables
from sparsevlm_jax.runtime.compilation_cache import CacheWarning, enable_compilation_cache
from sparsevlm_jax.runtime.programs import Program, Programs
from sparsevlm_jax.sparsify import SparsityConfig
from sparsevlm_jax.sparsify.select import TopK

LOGITS = jnp.asarray(np.random.default_rng(0).normal(size=(3, 50)), jnp.float32)
SAMPLING = decode.sampling(3, 1.0, 5, 0.9, 0)
ARGUMENTS = (LOGITS, SAMPLING, np.int32(2))
EXPECTED = decode.choose(LOGITS, SAMPLING, 2)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Programs are kept here, as after `enable_compilation_cache`, which is JAX's setting and outlives a test."""
    monkeypatch.setattr(compilation_cache, "_executables", tmp_path)
    monkeypatch.setattr(compilation_cache, "_said", set())
    return tmp_path


def choose():
    """What a process that has compiled nothing yet does."""
    return Program(decode.choose, static=(), programs=Programs(lambda: 9))(*ARGUMENTS)[0]


def forbid_tracing(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("traced")

    monkeypatch.setattr("jax.jit", refuse)


def test_what_one_process_compiled_the_next_one_fetches_without_tracing(folder, monkeypatch):
    np.testing.assert_array_equal(choose(), EXPECTED)
    assert [file.name.partition("-")[0] for file in folder.iterdir()] == ["choose"]
    forbid_tracing(monkeypatch)
    np.testing.assert_array_equal(choose(), EXPECTED)


@pytest.mark.parametrize("damage", [b"", b"x", b"\0" * 5000])
def test_a_damaged_file_is_one_sentence_and_is_mended(folder, monkeypatch, damage):
    choose()
    (file,) = folder.iterdir()
    file.write_bytes(damage)
    with pytest.warns(CacheWarning, match="^the compilation cache .* is damaged") as said:
        np.testing.assert_array_equal(choose(), EXPECTED)
    assert len(said) == 1 and file.stat().st_size > 5000
    forbid_tracing(monkeypatch)
    np.testing.assert_array_equal(choose(), EXPECTED)


def test_a_flipped_bit_is_seen(folder):
    choose()
    (file,) = folder.iterdir()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.warns(CacheWarning, match="damaged"):
        np.testing.assert_array_equal(choose(), EXPECTED)


def test_the_least_recently_used_files_go_beyond_the_bound(folder, monkeypatch):
    for age, name in enumerate(("new", "old", "older")):
        (folder / name).write_bytes(b"x" * 100)
        os.utime(folder / name, (1e9 - age, 1e9 - age))
    monkeypatch.setattr(executables, "MAX_BYTES", 10**6)
    choose()
    assert len(list(folder.iterdir())) == 4
    size = max(file.stat().st_size for file in folder.iterdir())
    monkeypatch.setattr(executables, "MAX_BYTES", size + 150)
    executables._prune(folder)
    assert sorted(file.name for file in folder.iterdir() if len(file.name) < 9) == ["new"]


def path(static: dict, *arrays, function=decode.choose):
    return executables.path_of(function, arrays, static)


def test_another_program_is_another_file(folder, monkeypatch):
    x = np.zeros(3, np.float32)
    one = SparsityConfig.sparsevlm("1/3")
    files = [
        path({"sparsity": one}, x),
        path({"sparsity": SparsityConfig.sparsevlm("1/2")}, x),
        path({"sparsity": None}, x),
        path({"sparsity": one}, x[:2]),
        path({"sparsity": one}, x.astype(np.float16)),
        path({"sparsity": one}, [x]),
        path({"sparsity": one}, x, function=decode.restrict),
        path({"sparsity": one, "buffer": 1}, x),
        path({"sparsity": one, "buffer": True}, x),
        path({"sparsity": one, "buffer": 1.0}, x),
    ]
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    files.append(path({"sparsity": one}, x))
    monkeypatch.setattr(executables, "_sources", lambda: "another version of the code")
    files.append(path({"sparsity": one}, x))
    assert None not in files and len(set(files)) == len(files)
    assert path({"sparsity": one}, x) == path({"sparsity": SparsityConfig.sparsevlm("1/3")}, x)


@dataclass(frozen=True)
class MySelect(TopK):
    """A user's part: its fields do not tell what its code does."""


def test_a_users_own_code_is_not_kept(folder):
    assert path({"select": TopK()}, LOGITS) is not None
    assert path({"select": MySelect()}, LOGITS) is None
    assert path({"score": lambda x: x}, LOGITS) is None
    assert path({}, LOGITS, function=choose) is None


def test_nothing_is_kept_unless_asked():
    assert compilation_cache.executables_folder() is None and path({}, LOGITS) is None


def test_code_that_has_changed_since_it_was_imported_is_not_kept(folder, monkeypatch):
    assert path({}, LOGITS) is not None
    executables._sources.cache_clear()
    monkeypatch.setattr(executables, "_imported", Path(decode.__file__).stat().st_mtime - 1)
    assert path({}, LOGITS) is None


def test_the_warnings_of_other_threads_are_left_alone_while_one_compiles():
    """`warnings.catch_warnings` swaps the filters of the whole process, and whoever leaves last puts back its own."""
    filters, seen = warnings.filters, []

    def spy(x):
        seen.append(warnings.filters is filters)
        return x

    Program(spy, static=(), programs=Programs(lambda: 9))(LOGITS)
    assert seen == [True]


def test_another_owners_file_and_one_that_is_deleted_meanwhile_are_fetched(folder, monkeypatch):
    choose()
    monkeypatch.setattr(os, "utime", refuse_to(PermissionError("not yours")))
    forbid_tracing(monkeypatch)
    np.testing.assert_array_equal(choose(), EXPECTED)
    assert len(list(folder.iterdir())) == 1


def test_a_file_that_the_device_has_no_room_for_stays_and_is_not_called_damaged(folder, monkeypatch):
    choose()
    (file,) = folder.iterdir()
    content = file.read_bytes()
    no_room = refuse_to(RuntimeError("RESOURCE_EXHAUSTED: out of memory"))
    monkeypatch.setattr(executables.serialize_executable, "deserialize_and_load", no_room)
    with pytest.warns(CacheWarning, match="^cannot fetch a program from .*out of memory"):
        assert executables.load(file) is None
    assert file.read_bytes() == content


def test_a_damaged_file_that_cannot_be_deleted_does_not_stop_the_answer(folder, monkeypatch):
    choose()
    (file,) = folder.iterdir()
    file.write_bytes(b"x")
    monkeypatch.setattr(Path, "unlink", refuse_to(PermissionError("not yours")))
    with pytest.warns(CacheWarning, match="damaged"):
        np.testing.assert_array_equal(choose(), EXPECTED)


def test_a_full_disk_leaves_nothing_half_written_and_old_files_go(folder, monkeypatch):
    (folder / "old").write_bytes(b"x" * 100)
    write = Path.write_bytes

    def half(path, content):
        write(path, content[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    monkeypatch.setattr(executables, "MAX_BYTES", 50)
    with pytest.warns(CacheWarning, match="cannot keep compiled programs in .*: No space left on device"):
        np.testing.assert_array_equal(choose(), EXPECTED)
    assert list(folder.iterdir()) == []


def test_files_that_others_delete_meanwhile_do_not_stop_the_pruning(folder, monkeypatch):
    (folder / "old").write_bytes(b"x" * 100)
    (folder / "gone").symlink_to(folder / "nowhere")  # listed, but cannot be looked at
    monkeypatch.setattr(executables, "MAX_BYTES", 50)
    executables._prune(folder)
    assert [file.name for file in folder.iterdir()] == ["gone"]


def refuse_to(error: Exception):
    def refuse(*_, **__):
        raise error

    return refuse


@pytest.fixture
def unset(tmp_path, monkeypatch):
    """As in a process that has no cache yet; JAX's settings are put back."""
    names = ("jax_compilation_cache_dir", "jax_compilation_cache_max_size", "jax_enable_compilation_cache")
    before = {name: getattr(jax.config, name) for name in names}
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setattr(compilation_cache, "_executables", None)
    monkeypatch.setattr(compilation_cache, "_said", set())
    monkeypatch.chdir(tmp_path)
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    jax_cache.reset_cache()


def settings_of_jax() -> tuple[bool, str]:
    return jax.config.values["jax_enable_compilation_cache"], jax.config.values["jax_compilation_cache_dir"]


class Nobody(os.PathLike):
    def __fspath__(self):
        raise TypeError("no path after all")


@pytest.mark.parametrize("wrong", [5, b"x", ["a"], "", "a\0b", "\ud800", Nobody(), "gs://bucket/x", True])
def test_what_is_no_folder_is_refused(unset, tmp_path, wrong):
    with pytest.raises(ValueError, match="^path must be a "):
        enable_compilation_cache(wrong)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", [None, "~nobody-of-that-name/x"])
def test_no_home_is_one_sentence(unset, tmp_path, monkeypatch, path):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", os.fspath)  # as it is without HOME, for a user that nobody knows
    with pytest.warns(CacheWarning, match="^cannot keep compiled programs in ~.*: there is no such home folder"):
        assert enable_compilation_cache(path) is None
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_does_not_stop_the_next_one(unset, tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.warns(CacheWarning, match="cannot keep"):
        assert enable_compilation_cache(tmp_path / "taken") is None
    assert compilation_cache.executables_folder() is None
    assert enable_compilation_cache(tmp_path / "good") == tmp_path / "good"
    assert settings_of_jax() == (True, str(tmp_path / "good"))


def test_a_configured_cache_that_can_only_be_read_stays_on(unset, tmp_path, monkeypatch):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    monkeypatch.setattr(Path, "write_bytes", refuse_to(PermissionError(errno.EACCES, "Permission denied")))
    with pytest.warns(CacheWarning, match="Permission denied"):
        assert enable_compilation_cache() is None
    assert settings_of_jax() == (True, str(tmp_path))


def test_a_bucket_is_jaxs_alone(unset, tmp_path):
    jax.config.update("jax_compilation_cache_dir", "gs://bucket/x")
    assert enable_compilation_cache() is None and compilation_cache.executables_folder() is None
    assert list(tmp_path.iterdir()) == []


SCRIPT = """
import os, pathlib, sys, numpy as np, jax
import sparsevlm_jax
from sparsevlm_jax.runtime import decode
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
do = os.environ.get("SPARSEVLM_TEST", "")
if do != "jax only":
    print(sparsevlm_jax.enable_compilation_cache(*sys.argv[1:]))
    exec(do)
from sparsevlm_jax.runtime.programs import Program
print(Program(decode.choose, static=())(np.eye(3, 9, 4, np.float32), None, np.int32(0))[0])
"""


def process(*arguments: object, **environment: str) -> tuple[list[str], list[str]]:
    """Lines on stdout, and the warnings, of a process of its own."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_COMP", "XDG"))}
    done = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=clean | {"PYTHONPATH": os.pathsep.join(sys.path), **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), [line for line in done.stderr.splitlines() if "Warning" in line]


@pytest.mark.slow
def test_every_file_of_the_cache_may_be_damaged(tmp_path):
    assert process(XDG_CACHE_HOME=str(tmp_path)) == ([str(tmp_path / "sparsevlm-jax"), "[4 5 6]"], [])
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {file.parent.name for file in files} == {"executables"}
    for file in files:
        file.write_bytes(b"nonsense")
    out, said = process(XDG_CACHE_HOME=str(tmp_path))
    assert out[-1] == "[4 5 6]" and len(said) == 1 and "CacheWarning: the compilation cache" in said[0]


@pytest.mark.slow
def test_what_jax_has_in_its_own_cache_is_kept_here_too(tmp_path):
    """Not by way of it: XLA's CPU backend writes a program that it has read without some of its functions."""
    theirs = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
    process(**theirs, SPARSEVLM_TEST="jax only")
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith("jit_choose")]
    for _ in range(2):  # compiled, then fetched
        assert process(**theirs) == ([str(tmp_path), "[4 5 6]"], [])
        assert len(list((tmp_path / "executables").iterdir())) == 1


@pytest.mark.slow
def test_code_that_is_edited_between_its_import_and_its_compilation_is_not_taken_for_the_new(tmp_path):
    package = Path(executables.__file__).parents[1]
    copy = shutil.copytree(package, tmp_path / package.name, ignore=shutil.ignore_patterns("demo", "__pycache__"))
    file = copy / "runtime" / "decode.py"
    edit = f"""
assert decode.__file__ == {str(file)!r}
with open(decode.__file__, "w") as file:
    file.write({file.read_text().replace("argmax", "argmin")!r})
"""
    python = {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]), "XDG_CACHE_HOME": str(tmp_path)}
    first, _ = process(**python, SPARSEVLM_TEST=edit)
    assert "argmin" in file.read_text() and first[-1] == "[4 5 6]"
    again, _ = process(**python)
    assert again[-1] == "[0 0 0]"


@pytest.mark.slow
def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "taken").write_text("a file")
    for arguments, environment in (
        ([tmp_path / "taken"], {}),
        ([], {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "taken")}),
    ):
        out, said = process(*arguments, **environment)
        assert out == ["None", "[4 5 6]"] and len(said) == 1, said
        assert "CacheWarning: cannot keep compiled programs in" in said[0]


@pytest.mark.slow
def test_a_cache_that_is_configured_already_is_left_alone(tmp_path):
    theirs = str(tmp_path / "theirs")
    assert process(tmp_path / "ours", JAX_COMPILATION_CACHE_DIR=theirs)[0][0] == theirs
    assert process(tmp_path / "ours", JAX_COMPILATION_CACHE_DIR="")[0][0] == "None"
    assert not (tmp_path / "ours").exists()
