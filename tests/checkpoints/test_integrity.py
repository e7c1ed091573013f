"""A converted folder knows the hash of each of its files: `verify_checkpoint` sees whatever changed."""

import json
import shutil

import pytest

from sparsevlm_jax.checkpoints.integrity import seal
from sparsevlm_jax.checkpoints.own import MARKER, PARAMS
from sparsevlm_jax.checkpoints.sources import convert_checkpoint, inspect_checkpoint, load_checkpoint, verify_checkpoint
from sparsevlm_jax.convert import write_random_checkpoint
from sparsevlm_jax.errors import CheckpointError
from tests.convert.fuzz import CONFIG


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "model"
    write_random_checkpoint(folder, CONFIG, max_shard_bytes=20_000)
    return folder


@pytest.fixture(scope="module")
def converted(source):
    convert_checkpoint(source, source.with_name("converted"))
    return source.with_name("converted")


@pytest.fixture
def folder(converted, tmp_path):
    return shutil.copytree(converted, tmp_path / "model")


def files(folder):
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def change_marker(folder, **fields):
    """As a hand would that knows how the file is made."""
    table = json.loads((folder / MARKER).read_text()) | fields
    table = {name: value for name, value in table.items() if value is not None and name != "seal"}
    sealed = {"seal": seal(table)} if "files" in table else {}
    (folder / MARKER).write_text(json.dumps(table | sealed))


def test_an_untouched_folder_is_as_it_was_written(folder):
    others = [path for path in files(folder) if path.name != MARKER]
    (folder / "README.md").write_text("Nothing that is read.")
    found = verify_checkpoint(folder)
    assert (found.files, found.bytes) == (len(others), sum(path.stat().st_size for path in others))
    assert found.summary == f"{folder}: {found.files} files, {found.bytes:,} bytes, are as they were written"


def test_one_bit_in_any_file_is_seen(folder):
    for path in files(folder):
        content = path.read_bytes()
        bits = bytearray(content or b"\0")
        bits[len(bits) // 2] ^= 1
        path.write_bytes(bits)
        with pytest.raises(CheckpointError, match=path.name):
            verify_checkpoint(folder)
        path.write_bytes(content)
    assert verify_checkpoint(folder)


def test_all_that_is_wrong_is_named_together(folder):
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").unlink()
    (folder / PARAMS / "state" / "d" / "new").write_text("")
    (folder / "special_tokens_map.json").write_text("{}")
    with pytest.raises(CheckpointError) as error:
        verify_checkpoint(folder)
    assert str(error.value).startswith(f"{folder} is not as it was written: config.json has 2 bytes, expected ")
    assert "tokenizer.json cannot be read (No such file or directory)" in str(error.value)
    assert "params/state/d/new was added; special_tokens_map.json was added" in str(error.value)


@pytest.mark.parametrize("action", [load_checkpoint, inspect_checkpoint, verify_checkpoint])
def test_a_changed_list_of_parameters_is_refused_at_once(folder, action):
    text = (folder / MARKER).read_text()
    (folder / MARKER).write_text(text.replace('"float16"', '"float32"', 1))
    with pytest.raises(CheckpointError, match=f"{MARKER} has changed since it was written$"):
        action(folder)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b", "", "a//b", "a\0b"])
def test_a_list_of_files_cannot_reach_outside_the_folder(folder, name):
    change_marker(folder, files={name: [0, "0" * 64]})
    with pytest.raises(CheckpointError, match=r"files is not a table of \[size, sha256\]"):
        verify_checkpoint(folder)


def test_a_folder_from_before_hashes_loads_and_has_nothing_to_verify(folder):
    change_marker(folder, files=None)
    assert load_checkpoint(folder).params
    found = verify_checkpoint(folder)
    assert found.files == 0 and found.summary.startswith(f"{folder} was written before hashes were recorded: ")


class TestOtherPeoplesFolders:
    def test_they_hold_no_hashes_and_that_is_said(self, source):
        found = verify_checkpoint(source)
        assert found.files == 0
        assert found.summary.startswith(f"{source} holds no hashes: ")
        assert "a value changed inside one would not be seen" in found.summary

    def test_what_shows_without_reading_is_checked(self, source, tmp_path):
        folder = shutil.copytree(source, tmp_path / "model")
        first = min(folder.glob("*.safetensors"))
        (folder / "tokenizer.json").unlink()
        with pytest.raises(CheckpointError, match=r"has no tokenizer\.json"):
            verify_checkpoint(folder)
        first.write_bytes(first.read_bytes()[:-1])
        with pytest.raises(CheckpointError, match=f"{first.name} is truncated"):
            verify_checkpoint(folder)
        first.unlink()
        with pytest.raises(CheckpointError, match=f"names shards that are not there: {first.name}"):
            verify_checkpoint(folder)
