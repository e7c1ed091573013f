"""What configs may vary computes what `transformers` computes: towers, features, scaled RoPE, sliding windows."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from sparsevlm_jax.checkpoints.own import restore, save
from sparsevlm_jax.checkpoints.sources import load_checkpoint
from sparsevlm_jax.convert import export_hf
from sparsevlm_jax.errors import CheckpointError
from sparsevlm_jax.hf import known_fields
from sparsevlm_jax.models import LlavaConfig
from sparsevlm_jax.models.families import llava
from sparsevlm_jax.models.families.family import language_model
from sparsevlm_jax.runtime.batching import assemble
from sparsevlm_jax.runtime.prefill import PrefillInputs, start
from sparsevlm_jax.runtime.segment import run_segment
from sparsevlm_jax.sparsify.tower import TowerMerging
from tests.parity import Pair, answer, assert_close, last_logits, one_row, shake, their_logits, torch_inputs
from tests.tiny import layout, original_config, save_llava, stored_state, tiny_config, tiny_llava, write_shards

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
WINDOW = 24
VIPLLAVA = {"model_type": "vipllava", "projector_layernorm_eps": 1.0}  # seen in the logits
WHOLE = {"vision_feature_select_strategy": "full"}
SIGLIP = {"model_type": "siglip_vision_model", "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
# Top-level fields, those of the decoder and those of the tower.
VARIANTS: dict[str, tuple[dict, dict, dict]] = {
    "llama3 rope, exact gelu": (
        {},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, **LLAMA3}},
        {"hidden_act": "gelu"},
    ),
    "linear rope, tanh gelu": (
        {},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}},
        {"hidden_act": "gelu_pytorch_tanh"},
    ),
    "three layers": ({"vision_feature_layer": [-2, 1, 4]}, {}, {}),
    "two layers, whole": ({"vision_feature_layer": [3, 0], **WHOLE}, {}, {}),
    "projector without biases, quick gelu": (
        {"multimodal_projector_bias": False, "projector_hidden_act": "quick_gelu"},
        {},
        {},
    ),
    "qwen2": ({}, {"model_type": "qwen2"}, {}),
    "qwen3, wide heads": ({}, {"model_type": "qwen3", "head_dim": 24, "attention_bias": True}, {}),
    "phi3": ({}, {"model_type": "phi3", "num_attention_heads": 8, "num_key_value_heads": 4}, {}),
    "phi3, window": ({}, {"model_type": "phi3", "sliding_window": 64}, {}),
    "biases everywhere": ({}, {"attention_bias": True, "mlp_bias": True}, {}),
    "siglip, qwen2": ({"vision_feature_layer": -1, **WHOLE}, {"model_type": "qwen2"}, {**SIGLIP, "image_size": 60}),
    "siglip, two layers": ({"vision_feature_layer": [-2, 1], **WHOLE}, {}, {**SIGLIP, "hidden_act": "gelu"}),
    "vipllava": ({**VIPLLAVA, "vision_feature_layer": [-2, 1, 4]}, {}, {}),
    "vipllava, one layer, qwen2": ({**VIPLLAVA, "vision_feature_layer": 3}, {"model_type": "qwen2"}, {}),
    "a list of one layer, mistral": ({"vision_feature_layer": [-2]}, {"model_type": "mistral"}, {}),
}
# The others are marked slow: each of their fields is one line of what is read here.
QUICK = {"three layers", "qwen3, wide heads", "siglip, qwen2", "vipllava"}


def random_llava(top: dict, text: dict, vision: dict) -> Any:
    """A tiny model of `transformers`."""
    table = tiny_config(kv_heads=2).to_dict()
    for part, kind in ("text_config", text.get("model_type")), ("vision_config", vision.get("model_type")):
        if kind:
            known = getattr(known_fields, kind.upper().removesuffix("_MODEL"))
            table[part] = {name: value for name, value in table[part].items() if name in known}
    table |= {"text_config": table["text_config"] | text, "vision_config": table["vision_config"] | vision} | top
    others = known_fields.LLAVA.keys() - getattr(known_fields, table["model_type"].upper()).keys()
    config = transformers.AutoConfig.for_model(**{name: value for name, value in table.items() if name not in others})
    torch.manual_seed(5)
    return shake(transformers.AutoModelForImageTextToText.from_config(config).eval(), 6)


def pair_of(folder: Path, model: Any) -> Pair:
    loaded = load_checkpoint(save_llava(folder / "hf", model))
    return Pair(model, loaded.config, loaded.params)


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, id=name, marks=() if name in QUICK else pytest.mark.slow) for name in VARIANTS],
)
def pair(request, tmp_path_factory) -> Iterator[Pair]:
    yield pair_of(tmp_path_factory.mktemp("variant"), random_llava(*VARIANTS[request.param]))


def test_logits_after_an_image_and_a_question(pair):
    rows = one_row(pair.config, images=1, words=20)
    assert_close(last_logits(pair, rows), their_logits(pair, rows))


@pytest.mark.parametrize("pair", ["vipllava"], indirect=True)
def test_greedy_tokens_of_a_vipllava(pair):
    rows = one_row(pair.config, images=2, words=9)
    with torch.no_grad():
        ids = pair.theirs.generate(**torch_inputs(rows), max_new_tokens=6, do_sample=False, pad_token_id=401)
    new = ids[0, len(rows.input_ids[0]) :].numpy()
    np.testing.assert_array_equal(np.asarray(answer(pair, rows, 6)[1])[: len(new)], new)


# The original code's projectors that `transformers` has no class for, as torch builds them.
PROJECTORS: dict[str, tuple[int, Any]] = {
    "linear": (1, lambda: torch.nn.Linear(64, 64)),
    "mlp1x_gelu": (1, lambda: torch.nn.Sequential(torch.nn.Linear(64, 64))),
    "mlp3x_gelu": (
        3,
        lambda: torch.nn.Sequential(
            torch.nn.Linear(64, 64), torch.nn.GELU(), torch.nn.Linear(64, 64), torch.nn.GELU(), torch.nn.Linear(64, 64)
        ),
    ),
}


@pytest.fixture(scope="module", params=PROJECTORS)
def original(request, tmp_path_factory) -> Pair:
    """A model of one of these projectors, loaded from the original layout."""
    folder = tmp_path_factory.mktemp("original")
    model = tiny_llava()
    torch.manual_seed(7)
    model.model.multi_modal_projector = PROJECTORS[request.param][1]()
    vision = {"model_type": "clip_vision_model"} | model.config.vision_config.to_dict()
    config = original_config(model) | {"mm_projector_type": request.param, "vision_config": vision}
    (folder / "config.json").write_text(json.dumps(config))
    write_shards(folder, layout(model.state_dict(), "original"))
    loaded = load_checkpoint(folder)
    assert loaded.config.projector_layers == PROJECTORS[request.param][0]
    # The original code's image token lies outside the vocabulary; here the tiny model's own stands for it.
    return Pair(model, dataclasses.replace(loaded.config, image_token_id=model.config.image_token_id), loaded.params)


def test_logits_behind_a_projector_of_the_original_code(original):
    rows = one_row(original.config, images=1, words=9)
    assert_close(last_logits(original, rows), their_logits(original, rows))


def test_such_a_model_is_saved_in_this_librarys_form_and_refused_in_another(original, tmp_path):
    save(tmp_path / "own", original.params, original.config)
    config, params = restore(tmp_path / "own")
    assert config == original.config
    jax.tree.map(np.testing.assert_array_equal, params, original.params)
    with pytest.raises(
        CheckpointError, match=rf"projector_layers = {config.projector_layers} has no Hugging Face form"
    ):
        export_hf(params, config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_exported_variant_is_loaded_by_transformers_and_computes_the_same(pair, tmp_path):
    assert LlavaConfig.from_hf(pair.config.to_hf()) == pair.config
    export_hf(pair.params, pair.config, tmp_path / "out")
    loaded: Any = type(pair.theirs).from_pretrained(tmp_path / "out", output_loading_info=True)
    theirs, info = loaded
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    rows = one_row(pair.config, images=1, words=9)
    assert_close(their_logits(pair._replace(theirs=theirs.eval()), rows), their_logits(pair, rows), relative=1e-6)


def test_scoring_sees_the_frequencies_that_the_decoder_turns_by(pair):
    batch = assemble(one_row(pair.config, images=0, words=5), pair.config, new_tokens=1)
    features = jnp.zeros((0, pair.config.tokens_per_image, pair.config.text.hidden_size))
    inputs = PrefillInputs.of(
        jnp.asarray(batch.input_ids), jnp.asarray(batch.length), features, pair.config.image_token_id
    )
    lm = language_model(pair.params, pair.config)
    stream, _ = start(lm, inputs, sparsity=None, bucket=batch.bucket)
    attention = run_segment(lm, stream, range(1), None, implementation="xla").attention
    assert attention is not None
    expected = pair.theirs.model.language_model.rotary_emb.inv_freq.numpy()
    np.testing.assert_allclose(np.asarray(attention.frequencies), expected, rtol=8e-7)


@pytest.mark.parametrize("pair", ["three layers"], indirect=True)
def test_features_of_several_layers_come_with_the_attention_of_the_deepest(pair):
    pixels = jnp.asarray(one_row(pair.config, images=1, words=2).pixel_values)
    static: dict[str, Any] = dict(implementation="xla", context=True)
    several = llava.encode(pair.params, pixels, config=pair.config, **static).context
    deepest = dataclasses.replace(pair.config, vision_feature_layer=4)
    projector = pair.params["multi_modal_projector"]
    narrow = {"kernel": jnp.zeros((64, 64)), "bias": jnp.zeros(64)}  # where the features go does not matter here
    params = {**pair.params, "multi_modal_projector": {**projector, "linear_1": narrow}}
    one = llava.encode(params, pixels, config=deepest, **static).context
    assert several is not None and one is not None
    np.testing.assert_array_equal(several.cls_attention, one.cls_attention)
    np.testing.assert_array_equal(several.keys, one.keys)


@pytest.mark.parametrize("pair", ["three layers"], indirect=True)
def test_tokens_are_not_merged_in_a_tower_whose_layers_are_read_side_by_side(pair):
    pixels = jnp.asarray(one_row(pair.config, images=1, words=2).pixel_values)
    with pytest.raises(ValueError, match=r"needs one vision_feature_layer, got \(-2, 1, 4\)"):
        merging: Any = TowerMerging
        llava.encode(pair.params, pixels, config=pair.config, implementation="xla", merging=merging)


def test_a_tower_without_its_unused_last_norm_loads(tmp_path):
    model = random_llava({}, {}, {})
    whole = pair_of(tmp_path, model)
    state = {name: tensor for name, tensor in stored_state(model).items() if "post_layernorm" not in name}
    folder = tmp_path / "without"
    folder.mkdir()
    model.config.save_pretrained(folder)
    write_shards(folder, layout(state, "A"))
    loaded = load_checkpoint(folder)
    rows = one_row(loaded.config, images=1, words=7)
    assert_close(last_logits(Pair(model, loaded.config, loaded.params), rows), their_logits(whole, rows))
    norm = loaded.params["vision_tower"]["post_layernorm"]
    assert (norm["scale"] == 1).all() and (norm["bias"] == 0).all()


@pytest.fixture(scope="module")
def windowed(tmp_path_factory) -> Pair:
    model = random_llava({}, {"model_type": "mistral", "sliding_window": WINDOW}, {})
    return pair_of(tmp_path_factory.mktemp("window"), model)


def test_a_prompt_as_long_as_the_window_is_exact(windowed):
    rows = one_row(windowed.config, images=0, words=WINDOW)
    assert windowed.config.text.sliding_window == WINDOW
    assert_close(last_logits(windowed, rows), their_logits(windowed, rows))


def test_an_answer_whose_last_token_read_fills_the_window_is_exact(windowed):
    rows = one_row(windowed.config, images=0, words=WINDOW - 3)
    with torch.no_grad():
        ids = windowed.theirs.generate(**torch_inputs(rows), max_new_tokens=4, do_sample=False, pad_token_id=401)
    new = ids[0, WINDOW - 3 :].numpy()
    np.testing.assert_array_equal(np.asarray(answer(windowed, rows, 4)[1])[: len(new)], new)


@pytest.mark.parametrize("words, new_tokens", [(WINDOW + 1, 1), (WINDOW - 3, 5), (WINDOW, 2)])
def test_what_the_window_would_cut_is_refused_with_both_numbers(windowed, words, new_tokens):
    message = f"the prompt has {words} tokens and {new_tokens} more may follow, but .* over a window of {WINDOW}"
    with pytest.raises(ValueError, match=message):
        assemble(one_row(windowed.config, images=0, words=words), windowed.config, new_tokens=new_tokens)


def test_one_token_past_the_window_transformers_computes_something_else(windowed):
    """So the border stands where it must: without a window, the longer prompt would have other logits."""
    rows = one_row(windowed.config, images=0, words=WINDOW + 1)
    full = dataclasses.replace(windowed.config.text, sliding_window=None)
    ours = last_logits(windowed._replace(config=dataclasses.replace(windowed.config, text=full)), rows)
    theirs = their_logits(windowed, rows)
    assert np.abs(ours - theirs).max() > 1e-3 * np.abs(theirs).max()


@pytest.mark.parametrize("token", [-1, 448, 32000])
def test_a_token_that_has_no_embedding_is_refused(windowed, token):
    rows = one_row(windowed.config, images=1, words=3)
    rows.input_ids[0][-1] = token
    with pytest.raises(ValueError, match=f"row 0: token id {token} is not among the model's 448 embeddings"):
        assemble(rows, windowed.config, new_tokens=1)
