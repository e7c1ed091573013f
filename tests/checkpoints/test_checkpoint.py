"""This library's own checkpoints: bit-equal, whole or absent, and refused where they are damaged."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsevlm_jax.checkpoints.own import MARKER, PARAMS, is_converted, processor_files, restore, save
from sparsevlm_jax.checkpoints.trees import flatten, nest
from sparsevlm_jax.errors import CheckpointError, CheckpointWarning
from sparsevlm_jax.models import LlavaConfig, init_params
from sparsevlm_jax.processing import VICUNA_V1
from tests import kill_conversion
from tests.convert.fuzz import CONFIG


@pytest.fixture(scope="module")
def config():
    return LlavaConfig.from_hf(CONFIG)


@pytest.fixture(scope="module")
def params(config):
    return init_params(config)


def assert_same(params, reference):
    params, reference = flatten(params), flatten(reference)
    assert params.keys() == reference.keys()
    for name in reference:
        np.testing.assert_array_equal(params[name], reference[name], err_msg=name, strict=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "mixed"])
def test_what_is_saved_comes_back_bit_equal(tmp_path, params, config, dtype):
    kinds = ["float16", "float32", "bfloat16"] if dtype == "mixed" else [dtype]
    leaves = {name: leaf.astype(kinds[i % len(kinds)]) for i, (name, leaf) in enumerate(flatten(params).items())}
    save(tmp_path / "model", nest(leaves), config)
    restored_config, restored = restore(tmp_path / "model")
    assert restored_config == config
    assert_same(restored, nest(leaves))


def test_it_is_cast_and_sharded_as_asked(tmp_path, params, config):
    save(tmp_path / "model", params, config)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("model",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("model"))
    _, restored = restore(tmp_path / "model", dtype=jnp.bfloat16, sharding=sharding)
    assert all(leaf.sharding == sharding for leaf in jax.tree.leaves(restored))
    assert_same(restored, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params))


SHARDED = """
import sys, jax, numpy as np
from sparsevlm_jax.checkpoints.own import restore
from sparsevlm_jax.checkpoints.trees import flatten
mesh = jax.sharding.Mesh(np.array(jax.devices()), ("model",))
split, whole = (jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes)) for axes in (("model",), ()))
_, params = restore(sys.argv[1])
tree = jax.tree.map(lambda leaf: split if leaf.shape[0] % 4 == 0 else whole, params)
_, sharded = restore(sys.argv[1], sharding=tree)
a, b = flatten(params), flatten(sharded)
assert all(np.array_equal(a[name], b[name]) and b[name].sharding == flatten(tree)[name] for name in a)
assert any(leaf.addressable_shards[3].data.shape != leaf.shape for leaf in b.values())
print(len(jax.devices()))
"""


def test_four_devices_each_take_their_part(tmp_path, params, config):
    save(tmp_path / "model", params, config)
    environment = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    command = [sys.executable, "-c", SHARDED, str(tmp_path / "model")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.stdout == "4\n", result.stderr


def test_processor_files_go_along(tmp_path, params, config):
    (tmp_path / "tokenizer.json").write_text("the tokenizer")
    (tmp_path / "model.safetensors").write_text("not a processor file")
    save(tmp_path / "model", params, config, processor_files_from=tmp_path)
    assert (tmp_path / "model" / "tokenizer.json").read_text() == "the tokenizer"
    assert not (tmp_path / "model" / "model.safetensors").exists()


@pytest.mark.parametrize(("own", "kept"), [({}, VICUNA_V1), ({"chat_template": "{# its own #}"}, "{# its own #}")])
def test_an_original_folders_template_goes_along_even_from_its_tokenizers_config(tmp_path, config, own, kept):
    (tmp_path / "config.json").write_text(json.dumps({"mm_vision_tower": "openai/clip"}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(own))
    assert processor_files(tmp_path, config)["chat_template.jinja"].decode() == kept


def test_a_dtype_in_which_no_weights_are_kept_is_refused(tmp_path, params, config):
    save(tmp_path / "model", params, config)
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, float16, got 'int8'"):
        restore(tmp_path / "model", dtype="int8")


def test_an_existing_checkpoint_is_replaced_only_when_asked(tmp_path, params, config):
    save(tmp_path / "model", params, config)
    doubled = jax.tree.map(lambda leaf: 2 * leaf, params)
    with pytest.raises(CheckpointError, match="already exists"):
        save(tmp_path / "model", doubled, config)
    assert_same(restore(tmp_path / "model")[1], params)
    save(tmp_path / "model", doubled, config, overwrite=True)
    assert_same(restore(tmp_path / "model")[1], doubled)


def test_wrong_parameters_are_all_named_and_nothing_is_written(tmp_path, params, config):
    leaves = flatten(params)
    leaves["new"] = leaves.pop("lm_head.kernel")
    leaves["language_model.norm.scale"] = jnp.ones(3, jnp.int32)
    with pytest.raises(CheckpointError) as error:
        save(tmp_path / "model", nest(leaves), config)
    for complaint in (
        "lm_head.kernel is missing",
        "'new' is not a parameter",
        "has dtype int32",
        "shape (3,), expected",
    ):
        assert complaint in str(error.value)
    assert not any(tmp_path.iterdir())


def test_nan_is_remembered_and_warned_of_at_every_load(tmp_path, params, config):
    leaves = flatten(params)
    leaves["language_model.norm.scale"] = leaves["language_model.norm.scale"].at[0].set(jnp.nan)
    save(tmp_path / "model", nest(leaves), config)
    with pytest.warns(CheckpointWarning, match=r"weights hold NaN or infinity: language_model\.norm\.scale$"):
        restore(tmp_path / "model")


class TestDamage:
    @pytest.fixture
    def folder(self, tmp_path, params, config):
        save(tmp_path / "model", params, config)
        return tmp_path / "model"

    def assert_refused(self, folder, message):
        with pytest.raises(CheckpointError, match=message):
            restore(folder)

    def change(self, path: Path, **fields):
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    @pytest.mark.slow
    def test_a_file_cut_short_or_gone_is_refused_or_was_not_needed(self, folder, params):
        """Never a folder that loads but differs: some of Orbax's files say nothing about the values."""
        refused = []
        for path in [path for path in (folder / PARAMS).rglob("*") if path.is_file()]:
            content = path.read_bytes()
            for damaged in (content[: len(content) // 2], None):
                path.unlink() if damaged is None else path.write_bytes(damaged)
                try:
                    assert_same(restore(folder)[1], params)
                except CheckpointError as error:
                    assert str(error).startswith(f"cannot read {folder / PARAMS}")
                    refused.append(path)
            path.write_bytes(content)
        assert max((folder / PARAMS).rglob("*"), key=lambda path: path.stat().st_size) in refused

    def test_a_newer_version_is_refused(self, folder):
        self.change(folder / MARKER, version=3)
        self.assert_refused(folder, "the version is 3, this library reads 2")

    def test_another_format_is_refused(self, folder):
        self.change(folder / MARKER, format="other")
        self.assert_refused(folder, "the format is 'other', expected 'sparsevlm-jax'")

    def test_a_config_of_another_model_is_refused(self, folder):
        table = json.loads((folder / "config.json").read_text())
        table["text_config"]["intermediate_size"] = 32
        (folder / "config.json").write_text(json.dumps(table))
        self.assert_refused(folder, r"mlp\.up_proj\.kernel has shape \(16, 16\), expected \(32, 16\)")

    def test_parameters_that_are_gone_are_one_error(self, folder):
        (folder / PARAMS).rename(folder / "elsewhere")
        self.assert_refused(folder, f"cannot read .*{PARAMS}")

    def test_without_its_marker_it_is_no_checkpoint(self, folder):
        (folder / MARKER).unlink()
        assert not is_converted(folder)


LIMITED = """
import gc, resource, signal, sys
from orbax.checkpoint import v1
import sparsevlm_jax.convert
from sparsevlm_jax.errors import CheckpointError
from sparsevlm_jax.checkpoints.sources import convert_checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    convert_checkpoint(sys.argv[1], sys.argv[2])
except CheckpointError as error:
    print(error)
gc.collect()
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limit on file sizes here")
@pytest.mark.parametrize("limit", [100, 5_000, 100_000])
def test_a_disk_that_takes_no_more_is_one_sentence_and_leaves_nothing(tiny_checkpoint, tmp_path, limit):
    # -B: or Python would save its own compiled modules cut short
    command = [sys.executable, "-B", "-c", LIMITED, str(tiny_checkpoint), str(tmp_path / "model"), str(limit)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env={"JAX_PLATFORMS": "cpu"})
    assert result.stderr == "", result.stderr[-2000:]
    assert result.stdout.startswith(f"cannot write {tmp_path / 'model'}: ") and result.stdout.count("\n") == 1
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(kill_conversion.os, "fork"), reason="no fork here")
def test_a_conversion_killed_at_20_moments_leaves_the_old_state_or_the_new(tmp_path):
    found = kill_conversion.run(tmp_path, count=20, seed=0)
    assert set(found) <= {"nothing", "old", "new"} and found.total() == 20
    assert found["new"] < 20  # some were killed in time
