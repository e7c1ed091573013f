"""A family's table names every parameter of its models, and says the same from both sides."""

import re

import numpy as np
import pytest

from sparsevlm_jax.checkpoints.trees import flatten
from sparsevlm_jax.convert.export import export_tensor
from sparsevlm_jax.convert.rows import Table, shape_after
from sparsevlm_jax.convert.tables import CLIP, LLAVA, table_of
from sparsevlm_jax.errors import CheckpointError
from sparsevlm_jax.models import LlavaConfig, abstract_params

WIDTH = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 11}
TEXT, VISION = {"vocab_size": 40, "num_key_value_heads": 1, **WIDTH}, {"image_size": 28, "patch_size": 14, **WIDTH}
SIGLIP = {"vision_feature_select_strategy": "full", "vision_config": {"model_type": "siglip_vision_model", **VISION}}
# Top-level fields, and those of the decoder.
MODELS: dict[str, tuple[dict, dict]] = {
    "clip, llama": ({}, {}),
    "tied": ({}, {"tie_word_embeddings": True}),
    "siglip": (SIGLIP, {}),
    "qwen2": ({}, {"model_type": "qwen2"}),
    "qwen3": ({}, {"model_type": "qwen3", "attention_bias": True}),
    "biases everywhere": ({}, {"attention_bias": True, "mlp_bias": True}),
    "vipllava": ({"model_type": "vipllava", "vision_feature_layers": [-2, 1]}, {}),
    "four layers in the projector": ({"projector_layers": 4}, {}),
    "no biases in the projector": ({"multimodal_projector_bias": False}, {}),
}


@pytest.fixture(params=MODELS, ids=str)
def model(request) -> tuple[Table, dict[str, tuple[int, ...]]]:
    """The table of a model, and its parameters' shapes."""
    top, text = MODELS[request.param]
    config = LlavaConfig.from_hf(
        {"model_type": "llava", "text_config": {**TEXT, **text}, "vision_config": VISION, **top}
    )
    return table_of(config), {k: leaf.shape for k, leaf in flatten(abstract_params(config, "float32")).items()}


def test_every_parameter_is_found_again_under_the_name_that_it_is_written_by(model):
    table, shapes = model
    written = [table.by_parameter(name) for name in shapes]
    assert all(entry and table.by_stored(entry.stored) == entry for entry in written)
    assert len({entry.stored for entry in written if entry}) == len(shapes)


def test_every_spelling_of_a_part_is_read_as_the_same_parameter(model):
    table, shapes = model
    for name in shapes:
        entry = table.by_parameter(name)
        part = next(part for part in table.parts if entry and entry.stored.startswith(part.prefixes[0]))
        for prefix in part.prefixes:
            spelled = entry and table.by_stored(prefix + entry.stored.removeprefix(part.prefixes[0]))
            assert spelled and spelled.parameter == name


def test_an_array_written_and_read_is_the_same(model):
    table, shapes = model
    for name, shape in shapes.items():
        entry = table.by_parameter(name)
        assert entry is not None
        array = np.arange(np.prod(shape)).reshape(shape)
        stored = entry.transform.write(array)
        assert stored.shape == shape_after(entry.transform.write, shape)
        np.testing.assert_array_equal(entry.transform.read(stored), array, strict=True)


@pytest.mark.parametrize("table", [LLAVA, CLIP], ids=["llava", "clip"])
def test_both_names_of_a_row_have_the_same_holes_and_no_tensor_is_named_twice(table):
    def holes(template):
        return re.findall(r"#|\{.*?\}", template)

    for part in table.parts:
        rows = part.names.rows
        assert all(holes(row.stored) == holes(row.parameter) for row in rows)
        assert len({row.stored for row in rows}) == len(rows)


def test_nothing_that_is_read_is_ignored(model):
    table, shapes = model
    written = [entry.stored for entry in map(table.by_parameter, shapes) if entry]
    assert not [name for name in written for pattern in table.ignored if re.fullmatch(pattern, name)]


def test_a_parameter_without_a_row_has_no_name_to_be_written_by():
    with pytest.raises(CheckpointError, match=r"the parameter 'audio_tower\.kernel' has no name"):
        export_tensor(LLAVA, "audio_tower.kernel", (2, 2), np.dtype(np.float32), lambda: np.zeros((2, 2), np.float32))
