"""Programs kept on disk: fetched without tracing, bounded, and never in the way of an answer."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from sparsevlm_jax import compilation_cache, decode, executables
from sparsevlm_jax.compilation_cache import CacheWarning
from sparsevlm_jax.programs import Program, Programs
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


SCRIPT = """
import sys, numpy as np, jax
import sparsevlm_jax
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
print(sparsevlm_jax.enable_compilation_cache(*sys.argv[1:]))
from sparsevlm_jax import decode
from sparsevlm_jax.programs import Program
print(Program(decode.choose, static=())(np.eye(3, 9, 4, np.float32), None, np.int32(0))[0])
"""


def process(*arguments: object, **environment: str) -> tuple[list[str], list[str]]:
    """Lines on stdout, and the warnings, of a process of its own."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_COMP", "XDG"))}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, arguments)],
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
    assert {file.parent.name for file in files} == {"sparsevlm-jax", "executables"}
    for file in files:
        file.write_bytes(b"nonsense")
    out, said = process(XDG_CACHE_HOME=str(tmp_path))
    assert out[-1] == "[4 5 6]" and len(said) == 1 and "CacheWarning: the compilation cache" in said[0]


@pytest.mark.slow
def test_what_jax_fetched_is_not_saved_again(tmp_path):
    """XLA's CPU backend writes a program that it has read without some of its functions."""
    folder = tmp_path / "sparsevlm-jax"
    assert process(XDG_CACHE_HOME=str(tmp_path)) == ([str(folder), "[4 5 6]"], [])
    for file in (folder / "executables").iterdir():
        file.unlink()
    for _ in range(2):
        assert process(XDG_CACHE_HOME=str(tmp_path)) == ([str(folder), "[4 5 6]"], [])
        assert list((folder / "executables").iterdir()) == []


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
