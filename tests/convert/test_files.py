"""Index files must agree with their shards on every tensor; what does not is one error that names it."""

import json

import pytest
import torch

from sparsevlm_jax.convert.files import open_weights
from sparsevlm_jax.errors import CheckpointError
from tests import tiny

INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def folder(tmp_path):
    tiny.write_shards(tmp_path, {name: torch.ones(2) for name in "abcd"}, shards=2)  # a, c and b, d
    return tmp_path


def change_index(folder, **changes):
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] = {k: v for k, v in (index["weight_map"] | changes).items() if v is not None}
    (folder / INDEX).write_text(json.dumps(index))


def assert_refused(folder, message):
    with pytest.raises(CheckpointError, match=message):
        open_weights(folder)


def test_shards_are_joined(folder):
    tensors = open_weights(folder)
    assert {name: tensor.file.name for name, tensor in tensors.items()} == {
        "a": FIRST,
        "c": FIRST,
        "b": SECOND,
        "d": SECOND,
    }


def test_metadata_is_optional(folder):
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps({"weight_map": index["weight_map"]}))
    assert open_weights(folder).keys() == set("abcd")


def test_a_tensor_in_another_shard_than_said(folder):
    change_index(folder, a=SECOND)
    assert_refused(folder, f"{SECOND} lacks 'a', which the index places there")


def test_a_tensor_the_index_does_not_list(folder):
    change_index(folder, a=None)
    assert_refused(folder, f"{FIRST} holds 'a', which the index does not list")


def test_a_tensor_in_two_shards(folder):
    tiny.write_shards(folder, {"a": torch.ones(2), "b": torch.ones(2), "d": torch.ones(2)}, shards=1)
    (folder / "model.safetensors").rename(folder / SECOND)
    assert_refused(folder, f"'a' is in two shards, {FIRST} and {SECOND}")


def test_all_disagreements_are_reported_together(folder):
    change_index(folder, a=SECOND, d=None)
    assert_refused(folder, "lacks 'a'.*; .*holds 'd'")


def test_a_missing_shard(folder):
    (folder / SECOND).unlink()
    assert_refused(folder, f"{INDEX} names shards that are not there: {SECOND}")


def test_a_truncated_shard(folder):
    content = (folder / SECOND).read_bytes()
    (folder / SECOND).write_bytes(content[:-1])
    assert_refused(folder, f"{SECOND} is truncated: its header describes 16 bytes of data, the file has 15")


@pytest.mark.parametrize(
    "place", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "a\\b.bin", "x.txt", "", 3, None]
)
def test_an_index_cannot_reach_outside_its_folder(folder, place):
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["a"] = place
    (folder / INDEX).write_text(json.dumps(index))
    assert_refused(folder, "expected the name of a file in that folder")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": []}', "\udcff"])
def test_an_index_that_is_none(folder, content):
    (folder / INDEX).write_text(content, errors="surrogateescape")
    assert_refused(folder, INDEX)


def test_a_folder_without_weights(tmp_path):
    assert_refused(tmp_path, r"holds no weights: expected one of model\.safetensors, pytorch_model\.bin")
