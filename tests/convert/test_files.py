"""Which files of a folder are read: those that `transformers` reads. What is missing or doubled is named in one error."""

import json

import pytest
import torch
from safetensors.torch import save_file

from sparsevlm_jax.convert.files import open_weights
from sparsevlm_jax.errors import CheckpointError, CheckpointWarning
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


@pytest.mark.parametrize("place", [SECOND, None])
def test_a_tensor_in_another_shard_than_said_or_not_listed_is_read_with_a_warning(folder, place):
    change_index(folder, a=place)
    with pytest.warns(CheckpointWarning, match=f"does not say where all is: 'a' is in {FIRST}$"):
        assert open_weights(folder).keys() == set("abcd")


def test_a_tensor_the_index_lists_and_no_shard_holds(folder):
    change_index(folder, e=FIRST, f=SECOND)
    assert_refused(folder, f"{INDEX} does not match its shards: {FIRST} lacks 'e'; {SECOND} lacks 'f'")


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("held", [True, False])
def test_what_is_ignored_may_be_anywhere_or_nowhere(folder, listed, held):
    if held:
        for file, names in ((FIRST, "ac"), (SECOND, "bd")):
            save_file({name: torch.ones(2) for name in (*names, "rope.inv_freq")}, folder / file)
    change_index(folder, **{"rope.inv_freq": FIRST if listed else None})
    assert open_weights(folder, ignored=[r".*\.inv_freq"]).keys() == set("abcd")


class TestPrecedence:
    """Safetensors before `.bin`, a whole file before an index: transformers' order. Each form holds another number."""

    FORMS = ("model.safetensors", INDEX, "pytorch_model.bin", "pytorch_model.bin.index.json")

    @pytest.fixture
    def crowded(self, tmp_path):
        for number, form in enumerate(self.FORMS):
            state = {name: torch.full((2,), float(number)) for name in "ab"}
            tiny.write_shards(tmp_path, state, shards=1 + form.endswith(".json"), kind="bin" if "bin" in form else "st")
        return tmp_path

    @pytest.mark.filterwarnings("ignore:.*the first is read, the index and its shards are not:UserWarning")
    def test_the_order(self, crowded):
        for number, form in enumerate(self.FORMS):
            assert {float(tensor.open()[0]) for tensor in open_weights(crowded).values()} == {number}
            (crowded / form).unlink()

    def test_two_sets_of_one_kind_are_told_of(self, crowded):
        with pytest.warns(CheckpointWarning, match=rf"holds model\.safetensors and {INDEX}: the first is read"):
            open_weights(crowded)

    def test_a_second_kind_is_usual(self, crowded):
        (crowded / INDEX).unlink()
        assert open_weights(crowded)


def test_a_tensor_in_two_shards(folder):
    tiny.write_shards(folder, {"a": torch.ones(2), "b": torch.ones(2), "d": torch.ones(2)}, shards=1)
    (folder / "model.safetensors").rename(folder / SECOND)
    assert_refused(folder, f"'a' is in two shards, {FIRST} and {SECOND}")


def test_all_disagreements_are_reported_together(folder):
    save_file({"a": torch.ones(2), "b": torch.ones(2)}, folder / FIRST)
    change_index(folder, e=FIRST)
    assert_refused(folder, "'b' is in two shards.*; .*lacks 'e'")


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
