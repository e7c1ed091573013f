"""Damaged folders give this library's own errors, in one line; `python -m tests.convert.fuzz` tries many more."""

import collections

import pytest

from tests.convert import fuzz

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return fuzz.make_folders(tmp_path_factory.mktemp("good"))


def test_300_damaged_folders_give_only_our_own_errors(folders, tmp_path):
    outcomes = collections.Counter(fuzz.attempt(folders, tmp_path / "bad", seed) for seed in range(300))
    assert set(outcomes) == {"CheckpointError", "UnsupportedConfig", "loaded"}
    assert outcomes["CheckpointError"] > 150


@pytest.mark.parametrize("name", ["single", "sharded", "bin", "original", "converted"])
def test_the_undamaged_folder_loads(folders, name):
    assert fuzz.load_checkpoint(folders[name]).config.text.hidden_size == 16
