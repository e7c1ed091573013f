"""Names of published checkpoints: every one is understood, and together they fill the model."""

import json
import os
from pathlib import Path

import pytest

from sparsevlm_jax.convert.names import LLAVA, layout_of, lookup
from sparsevlm_jax.models import LlavaConfig, abstract_params
from sparsevlm_jax.trees import flatten

REAL = os.environ.get("SPARSEVLM_REAL")
LLAVA_7B = {
    "model_type": "llava",
    "image_token_index": 32000,
    "text_config": {"model_type": "llama", "vocab_size": 32064},
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
    },
}


@pytest.mark.skipif(REAL is None, reason="SPARSEVLM_REAL does not name the folder of published small files")
@pytest.mark.parametrize(
    "folder, layout", [("llava-1.5-7b-hf", "A"), ("mm-det-llava-1.5-7b-rfrd", "original")], ids=["hub", "original"]
)
def test_a_published_index_names_every_parameter_once(folder, layout):
    index = json.loads((Path(REAL or "") / folder / "model.safetensors.index.json").read_text())
    names = index["weight_map"]
    targets = flatten(abstract_params(LlavaConfig.from_hf(LLAVA_7B), "float16"))
    assert sorted(str(lookup(LLAVA, name)[0]) for name in names) == sorted(targets)
    assert layout_of(names) == layout
