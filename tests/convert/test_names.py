"""Names of published checkpoints: every one is understood, and together they fill the model."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from sparsevlm_jax.checkpoints.trees import flatten
from sparsevlm_jax.convert.names import Group, assign
from sparsevlm_jax.convert.tables import LLAVA
from sparsevlm_jax.convert.tensors import StoredTensor
from sparsevlm_jax.errors import CheckpointError
from sparsevlm_jax.models import LlavaConfig, abstract_params

REAL = os.environ.get("SPARSEVLM_REAL")
LLAVA_7B = {"model_type": "llava", "text_config": {"model_type": "llama", "vocab_size": 32064}}


@pytest.mark.skipif(REAL is None, reason="SPARSEVLM_REAL does not name the folder of published small files")
@pytest.mark.parametrize(
    "folder, layout", [("llava-1.5-7b-hf", "A"), ("mm-det-llava-1.5-7b-rfrd", "original")], ids=["hub", "original"]
)
def test_a_published_index_names_every_parameter_once(folder, layout):
    index = json.loads((Path(REAL or "") / folder / "model.safetensors.index.json").read_text())
    names = index["weight_map"]
    targets = flatten(abstract_params(LlavaConfig.from_hf(LLAVA_7B), "float16"))
    entries = [LLAVA.by_stored(name) for name in names]
    assert sorted(entry.parameter for entry in entries if entry) == sorted(targets)
    assert all(entries) and LLAVA.layout_of(names) == layout


@pytest.mark.parametrize(
    "name, kind",
    [
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", "LoRA weights"),
        ("language_model.model.layers.0.mlp.up_proj.lora_B.default.weight", "LoRA weights"),
        ("model.layers.0.self_attn.q_proj.qweight", "quantised weights"),
        ("language_model.model.layers.0.mlp.up_proj.SCB", "quantised weights"),
        ("module.language_model.model.norm.weight", "weights inside a wrapper"),
        ("_orig_mod.language_model.model.norm.weight", "weights inside a compiled module"),
        ("_fsdp_wrapped_module.model.norm.weight", "shards of FSDP"),
    ],
)
def test_weights_that_are_no_model_are_refused_by_their_kind(name, kind):
    tensor = StoredTensor((2,), np.dtype(np.float32), Path(), lambda: np.zeros(2, np.float32))
    with pytest.raises(CheckpointError, match=f"^somewhere holds {kind}"):
        assign([Group({name: tensor}, LLAVA)], {"language_model.norm.scale": (2,)}, origin="somewhere")


def test_hundreds_of_wrong_names_are_counted_and_some_are_listed():
    tensor = StoredTensor((2,), np.dtype(np.float32), Path(), lambda: np.zeros(2, np.float32))
    with pytest.raises(CheckpointError, match=r"700 not understood: 'x\.0', .* and 660 more") as error:
        assign([Group({f"x.{i}": tensor for i in range(700)}, LLAVA)], {}, origin="somewhere")
    assert len(str(error.value)) < 1000
