"""Shared by all tests: how many examples property tests draw, and one tiny checkpoint for the whole session."""

import os
from pathlib import Path

import hypothesis
import pytest

# Tests compile far more than they compute: half the time goes with LLVM's optimisations. Before JAX is imported.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")

# The same examples in every run: a red test stays red, and shapes that are compiled once stay compiled.
hypothesis.settings.register_profile("repository", max_examples=25, derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("repository")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """A llava-hf folder of a random 4-layer model with tokenizer and processor; read it, do not write to it."""
    from tests.tiny import save_tiny_checkpoint  # torch, which most tests do not need

    return save_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "llava")


@pytest.fixture(autouse=True, scope="session")
def _no_compilation_cache():
    """Where the user keeps compiled programs is none of a test's business; JAX has read its own setting by now."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", "")
        yield


@pytest.fixture(autouse=True, scope="module")
def _forget_programs():
    """Compiled programs are kept as long as JAX knows them: gigabytes, over a whole run."""
    yield
    import jax

    from sparsevlm_jax.runtime.programs import PROGRAMS

    PROGRAMS.clear()
    jax.clear_caches()
