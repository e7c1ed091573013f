"""Phi-3's fused matrices are taken apart where their sizes are the config's, and complained of where they are not."""

from pathlib import Path

import numpy as np
import pytest

from sparsevlm_jax.convert import fused, read_params
from sparsevlm_jax.convert.config import read_config
from sparsevlm_jax.convert.tensors import StoredTensor
from sparsevlm_jax.errors import CheckpointError
from sparsevlm_jax.models import LlamaConfig
from tests import tiny
from tests.models.test_variants import random_llava

TEXT = LlamaConfig(64, 8, 12, 1, 4, 2, 6, 1e-5, 1e4, 32)  # width 8, feed-forward 12, 4 heads of 6, 2 of keys
QKV, GATE_UP = "model.layers.0.self_attn.qkv_proj.weight", "model.layers.0.mlp.gate_up_proj.weight"


def stored(array: np.ndarray) -> StoredTensor:
    return StoredTensor(array.shape, array.dtype, Path(), lambda: array)


def test_parts_are_stretches_of_rows_and_views():
    qkv, gate_up = np.arange(48.0 * 8).reshape(48, 8), np.arange(24.0 * 8).reshape(24, 8)
    apart = fused.unfused({QKV: stored(qkv), GATE_UP: stored(gate_up), "other": stored(qkv)}, TEXT)
    layer = "model.layers.0."
    expected = {
        f"{layer}self_attn.q_proj.weight": qkv[:24],
        f"{layer}self_attn.k_proj.weight": qkv[24:36],
        f"{layer}self_attn.v_proj.weight": qkv[36:],
        f"{layer}mlp.gate_proj.weight": gate_up[:12],
        f"{layer}mlp.up_proj.weight": gate_up[12:],
        "other": qkv,
    }
    assert apart.keys() == expected.keys()
    for name, array in expected.items():
        assert apart[name].shape == array.shape and np.array_equal(apart[name].open(), array)
        assert np.shares_memory(apart[name].open(), array)


@pytest.mark.parametrize("shape", [(47, 8), (48,), (48, 8, 1)])
def test_one_of_other_rows_is_left_alone(shape):
    tensor = stored(np.zeros(shape))
    assert fused.unfused({QKV: tensor}, TEXT) == {QKV: tensor}


def test_a_folder_whose_fused_matrix_is_cut_short_is_refused_by_its_name(tmp_path):
    model = random_llava({}, {"model_type": "phi3"}, {})
    folder = tiny.save_llava(tmp_path, model)
    state = tiny.layout(tiny.stored_state(model), "A")
    name = next(name for name in state if name.endswith("qkv_proj.weight"))
    tiny.write_shards(folder, state | {name: state[name][:-1].contiguous()})
    with pytest.raises(CheckpointError, match=f"1 not understood: '{name}'; 3 missing: .*k_proj.*q_proj.*v_proj"):
        read_params(folder, read_config(folder))
