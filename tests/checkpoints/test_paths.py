"""What a user gives as a path is one, or one error that shows it: by the same rule for every function."""

import pytest

from sparsevlm_jax.arguments import checked
from sparsevlm_jax.checkpoints.paths import LONGEST_PATH, local_path, resolved
from sparsevlm_jax.errors import CheckpointError


@pytest.mark.parametrize("value", [None, 3, b"out", "a\0b", "a\ud800", "x" * (LONGEST_PATH + 1), "é" * LONGEST_PATH])
def test_what_no_file_can_be_called_is_no_path_anywhere(value):
    for read in (local_path, resolved):
        with pytest.raises(CheckpointError, match="^expected a path, got ") as error:
            read(value)
        assert len(str(error.value)) < 250 and "\n" not in str(error.value)
    with pytest.raises(ValueError, match="^path must be a path, got "):
        checked(path=value)


@pytest.mark.parametrize("value", ["x" * LONGEST_PATH, "é", "a\udcffb", "a b"])
def test_every_name_that_a_file_can_have_is_a_path(value):
    assert str(local_path(value)) == str(checked(path=value)) == value
