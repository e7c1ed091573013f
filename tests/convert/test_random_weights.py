"""Random checkpoints are whole Hugging Face folders: they load here and in transformers, and spell every text."""

import jax
import numpy as np
import pytest
import transformers

from sparsevlm_jax.checkpoints.trees import flatten
from sparsevlm_jax.convert import read_config, read_params, write_random_checkpoint
from tests import tiny
from tests.convert.fuzz import CONFIG


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("random") / "model"
    write_random_checkpoint(folder, CONFIG, dtype="bfloat16")
    return folder


def test_transformers_loads_it(folder):
    model, info = tiny.load_in_transformers(folder)
    assert not any(info.values()), info
    assert str(model.dtype) == "torch.bfloat16"


def test_the_same_seed_gives_the_same_weights_whatever_the_shards(tmp_path, folder):
    write_random_checkpoint(tmp_path / "same", CONFIG, dtype="bfloat16", max_shard_bytes=20_000)
    write_random_checkpoint(tmp_path / "other", CONFIG, dtype="bfloat16", seed=1)
    first, same, other = (
        flatten(read_params(path, read_config(path))) for path in (folder, tmp_path / "same", tmp_path / "other")
    )
    assert (tmp_path / "same" / "model.safetensors.index.json").exists()
    assert all(np.array_equal(first[name], same[name]) for name in first)
    assert not any(np.array_equal(first[name], other[name]) for name in first if name.endswith("kernel"))


def test_every_text_survives_its_tokenizer(folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = "USER: <image>\nWhat does “Straße 北京” mean?\t\0 ASSISTANT:"
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == 1 and ids.count(260) == 1
    assert tokenizer.decode(ids[1:]) == text


def test_nothing_overflows_half_precision(folder):
    assert all(float(abs(leaf).max()) < 8 for leaf in jax.tree.leaves(read_params(folder, read_config(folder))))


def test_a_vocabulary_too_small_for_bytes_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected an image_token_index of at least 259, got 100"):
        write_random_checkpoint(tmp_path / "x", CONFIG | {"image_token_index": 100})
