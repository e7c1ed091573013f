"""A dtype is one that models compute in, or is refused at the border with those that are."""

import jax.numpy as jnp
import numpy as np
import pytest

import sparsevlm_jax as sv
from sparsevlm_jax.checkpoints.sources import convert_checkpoint
from sparsevlm_jax.models.nn.dtypes import compute_dtype, stored_dtype


@pytest.mark.parametrize("dtype", ["bfloat16", jnp.bfloat16, jnp.dtype("bfloat16"), np.zeros(0, jnp.bfloat16).dtype])
def test_a_dtype_is_taken_in_every_form_that_jax_takes(dtype):
    assert compute_dtype(dtype, "cpu") == stored_dtype(dtype) == jnp.bfloat16


def test_the_default_is_float32_on_a_cpu_and_bfloat16_elsewhere():
    assert compute_dtype(None, "cpu") == jnp.float32
    assert compute_dtype(None, "gpu") == jnp.bfloat16


def test_float16_is_for_other_devices_than_cpus_and_for_files():
    assert compute_dtype("float16", "gpu") == stored_dtype("float16") == jnp.float16
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16 on cpu, got .*float16"):
        sv.load(dtype="float16")


@pytest.mark.parametrize("dtype", ["int8", "float64", float, "fp16", "", 8, [], object])
def test_another_is_refused_before_anything_is_read(dtype, tmp_path):
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, float16, got "):
        sv.load(tmp_path / "nothing there", dtype=dtype)
    (tmp_path / "source").mkdir()
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, float16, got "):
        convert_checkpoint(tmp_path / "source", tmp_path / "target", dtype=dtype)
