"""A photo, and a command line that runs inside the test."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from sparsevlm_jax import cli
from tests.tiny import random_image

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def photo(tmp_path) -> Path:
    Image.fromarray(random_image()).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def run(capsys) -> Run:
    """Runs a command; returns exit code, standard output and standard error."""

    def run(*argv: object) -> tuple[int, str, str]:
        code = cli.main([str(argument) for argument in argv])
        return code, *capsys.readouterr()

    return run
