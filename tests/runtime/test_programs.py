"""Compiled programs: kept by shape, bounded, the least recently used given back to the system."""

import ctypes
import os
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsevlm_jax.runtime import programs
from sparsevlm_jax.runtime.programs import Program, Programs


def mix(x, *, rounds):
    """Something whose program is large enough for its memory maps to be counted."""
    for i in range(rounds):
        x = jnp.sort(jnp.sin(x @ x.T @ x) + i * jnp.cumsum(x, axis=0), axis=0)
    return x


def square(size: int) -> np.ndarray:
    return np.eye(size, dtype=np.float32)


def memory_maps() -> int:
    return len(Path("/proc/self/maps").read_text().splitlines())


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def bounded(limit: int) -> tuple[Programs, Program]:
    kept = Programs(lambda: limit)
    return kept, Program(mix, static=("rounds",), programs=kept)


def test_a_shape_and_static_arguments_are_compiled_once():
    kept, program = bounded(9)
    _, _, first_ms = program(square(3), rounds=1)
    result, _, again_ms = program(square(3), rounds=1)
    assert first_ms > 0 == again_ms and len(kept) == program.size == 1
    np.testing.assert_allclose(result, np.sort(np.sin(square(3)), axis=0), atol=1e-6)
    program(square(3), rounds=2)
    program(square(4), rounds=1)
    assert program.size == 3


def test_the_least_recently_used_program_goes_first():
    kept, program = bounded(3)
    for size in (3, 4, 5, 3, 6):  # 3 is used again before the fourth program comes
        program(square(size), rounds=1)
    assert len(kept) == 3
    assert [program(square(size), rounds=1)[2] for size in (3, 5, 6)] == [0, 0, 0]
    assert program(square(4), rounds=1)[2] > 0


def test_the_bound_is_over_the_programs_of_all_functions():
    kept, one = bounded(2)
    other = Program(mix, static=("rounds",), programs=kept)
    one(square(3), rounds=1)
    other(square(3), rounds=1)
    one(square(4), rounds=1)
    assert (one.size, other.size, len(kept)) == (1, 1, 2)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="memory maps are counted on Linux")
def test_what_is_evicted_gives_its_memory_maps_back():
    _, program = bounded(2)
    program(square(30), rounds=8)
    program(square(31), rounds=8)
    full = memory_maps()
    for size in range(32, 37):
        program(square(size), rounds=8)
    assert memory_maps() < full + 25  # a program of these takes fifty or more


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="memory maps are counted on Linux")
def test_free_memory_goes_back_to_the_system_where_a_program_went_and_only_there(monkeypatch):
    returned = []
    monkeypatch.setattr(programs, "return_free_memory", lambda: returned.append(True))
    _, program = bounded(2)
    for count, size in enumerate((3, 4, 5, 3)):
        program(square(size), rounds=1)
        assert len(returned) == max(0, count - 1)


def test_memory_that_was_freed_is_returned():
    """Small blocks between small ones that stay: glibc keeps them until it is asked."""
    blocks = [ctypes.create_string_buffer(4000) for _ in range(30_000)]
    del blocks[:-1]
    before = resident_mb()
    programs.return_free_memory()
    assert before - resident_mb() > 60


def test_clearing_gives_all_maps_back():
    kept, program = bounded(4)
    program(square(2), rounds=1)
    before = memory_maps()
    for size in range(32, 35):
        program(square(size), rounds=8)
    assert memory_maps() > before + 60
    kept.clear()
    assert len(kept) == 0 and memory_maps() < before + 25


def test_a_crowded_process_gives_programs_back_whatever_the_limit():
    crowd = [False]
    kept = Programs(lambda: 99, lambda: crowd[0])
    for key in range(20):
        kept.get(key, object)
    assert len(kept) == 20
    crowd[0] = True
    kept.get(20, object)
    assert kept.order() == [13, 14, 15, 16, 17, 18, 19, 20]


def test_the_programs_of_one_call_stay_however_crowded():
    kept = Programs(lambda: 9, lambda: True)
    program = Program(mix, static=("rounds",), programs=kept)
    for size in (3, 4, 5):
        program(square(size), rounds=1)
    assert [program(square(size), rounds=1)[2] for size in (3, 4, 5)] == [0, 0, 0]


def third(x):
    return x / jnp.asarray(3, float)


def test_jaxs_settings_are_part_of_what_a_program_is_kept_under():
    program = Program(third, static=(), programs=Programs(lambda: 9))
    one = np.float32(1)
    assert program(one)[0].dtype == np.float32
    with jax.enable_x64(True):
        assert program(one)[0].dtype == np.float64
    assert program(one)[0].dtype == np.float32 and program.size == 2
    with jax.default_matmul_precision("highest"):
        assert program(one)[2] > 0


def test_a_wrong_limit_is_refused_whatever_has_been_compiled(monkeypatch):
    program = Program(mix, static=("rounds",), programs=Programs(programs.limit))
    monkeypatch.setenv("SPARSEVLM_PROGRAMS", "many")
    for _ in range(2):
        with pytest.raises(ValueError, match="SPARSEVLM_PROGRAMS"):
            program(square(3), rounds=1)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="memory maps are counted on Linux")
def test_a_process_is_crowded_where_half_of_its_maps_are_taken(monkeypatch):
    assert not programs.crowded()
    read = Path.read_text
    granted = str(2 * memory_maps() - 50)
    monkeypatch.setattr(Path, "read_text", lambda path: granted if path.name == "max_map_count" else read(path))
    assert programs.crowded()


def test_threads_that_want_one_program_compile_it_once_and_all_get_it():
    kept, program = bounded(2)
    taken: list[float] = []

    def ask(size: int):
        result, _, _ = program(square(size), rounds=1)
        taken.append(float(np.abs(np.asarray(result) - np.sort(np.sin(square(size)), axis=0)).max()))

    threads = [threading.Thread(target=ask, args=(size,)) for size in (3, 4, 5, 3, 4, 5, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 8 and max(taken) < 1e-6 and len(kept) == 2


def test_a_program_is_there_before_it_is_run():
    _, program = bounded(2)
    assert program.compiled(square(3), rounds=1)[1] > 0
    assert program(square(3), rounds=1)[2] == 0


def test_the_environment_says_how_many_are_kept(monkeypatch):
    monkeypatch.delenv("SPARSEVLM_PROGRAMS", raising=False)
    assert programs.limit() == programs.LIMIT
    monkeypatch.setenv("SPARSEVLM_PROGRAMS", "7")
    assert programs.limit() == 7
    for wrong in ("0", "-1", "many", "1.5"):
        monkeypatch.setenv("SPARSEVLM_PROGRAMS", wrong)
        with pytest.raises(ValueError, match=f">= 1, got '{wrong}'"):
            programs.limit()
