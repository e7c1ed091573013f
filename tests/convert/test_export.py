"""Export is the inverse of loading: the files come back bit for bit, under the names every transformers loads."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from sparsevlm_jax.checkpoints.trees import flatten, nest
from sparsevlm_jax.convert import export_hf, read_config, read_params
from sparsevlm_jax.errors import CheckpointError, CheckpointWarning
from tests import tiny


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny.save_tiny_checkpoint(tmp_path_factory.mktemp("source"))


def loaded(folder):
    config = read_config(folder)
    return read_params(folder, config), config


def files(folder):
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sizes", [{}, {"kv_heads": 2}, {"tied": True}], ids=["plain", "gqa", "tied"])
def test_hugging_face_to_here_and_back_is_bit_equal(tmp_path, sizes, dtype):
    tiny.save_llava(tmp_path / "hf", tiny.tiny_llava(**sizes).to(dtype))
    export_hf(*loaded(tmp_path / "hf"), tmp_path / "back")
    before, after = (safetensors.torch.load_file(tmp_path / name / "model.safetensors") for name in ("hf", "back"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == dtype and torch.equal(after[name], tensor), name


def test_transformers_loads_it_without_a_missing_or_unexpected_key(tmp_path, source):
    export_hf(*loaded(source), tmp_path / "back", max_shard_bytes=200_000, processor_files_from=source)
    model, info = tiny.load_in_transformers(tmp_path / "back")
    assert not any(info.values()), info
    reference = tiny.tiny_llava().state_dict()
    assert all(torch.equal(tensor, reference[name]) for name, tensor in model.state_dict().items())
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "back")
    texts, images = ["USER: <image>\nwhat? ASSISTANT:"], [tiny.random_image()]
    expected = tiny.tiny_processor()(text=texts, images=images, return_tensors="np")
    got = processor(text=texts, images=images, return_tensors="np")
    for name in expected:
        np.testing.assert_array_equal(got[name], expected[name], err_msg=name)


def test_shards_stay_under_their_size_and_match_their_index(tmp_path, source):
    params, config = loaded(source)
    export_hf(params, config, tmp_path / "back", dtype=jnp.float16, max_shard_bytes=80_000)
    index = json.loads((tmp_path / "back" / "model.safetensors.index.json").read_text())
    shards = sorted((tmp_path / "back").glob("*.safetensors"))
    assert len(shards) > 5 and {path.name for path in shards} == set(index["weight_map"].values())
    assert 70_000 < max(path.stat().st_size for path in shards) <= 80_000
    assert index["metadata"]["total_size"] == 2 * sum(leaf.size for leaf in flatten(params).values())
    back, _ = loaded(tmp_path / "back")
    for name, leaf in flatten(params).items():
        np.testing.assert_array_equal(flatten(back)[name], np.asarray(leaf, np.float16), err_msg=name)


def test_the_config_comes_back_equal(tmp_path, source):
    params, config = loaded(source)
    export_hf(params, config, tmp_path / "back")
    assert read_config(tmp_path / "back") == config


def test_tokenizer_and_processor_files_go_along(tmp_path, source):
    export_hf(*loaded(source), tmp_path / "back", processor_files_from=source)
    assert files(tmp_path / "back") == files(source)


def test_parameters_of_another_model_are_refused_by_name(tmp_path, source):
    params, config = loaded(source)
    leaves = flatten(params)
    leaves["new.kernel"] = leaves.pop("lm_head.kernel")
    leaves["language_model.norm.scale"] = jnp.ones(63)
    with pytest.raises(CheckpointError) as error:
        export_hf(nest(leaves), config, tmp_path / "back")
    for complaint in (
        "lm_head.kernel is missing",
        "'new.kernel' is not a parameter of the model",
        "language_model.norm.scale has shape (63,), expected (64,)",
    ):
        assert complaint in str(error.value)
    assert not any(tmp_path.iterdir())


def test_an_overflow_of_half_precision_is_warned_of(tmp_path, source):
    params, config = loaded(source)
    params = nest(flatten(params) | {"language_model.norm.scale": jnp.full(64, 1e6)})
    with pytest.warns(CheckpointWarning, match=r"1 weights hold NaN or infinity: language_model\.norm\.scale"):
        export_hf(params, config, tmp_path / "back", dtype=jnp.float16)
