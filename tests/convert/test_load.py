"""Loading: the same model under every layout, sharding and file format gives the same parameters, bit for bit."""

import json
import tracemalloc

import jax
import numpy as np
import pytest
import safetensors.torch
import torch

from sparsevlm_jax.checkpoints.sources import load_checkpoint, verify_checkpoint
from sparsevlm_jax.checkpoints.trees import flatten
from sparsevlm_jax.convert import read_config, read_params, write_random_checkpoint
from sparsevlm_jax.errors import CheckpointError, CheckpointWarning
from sparsevlm_jax.models import abstract_params
from tests import tiny


@pytest.fixture(scope="module")
def model():
    return tiny.tiny_llava()


def load(folder, **options):
    return flatten(read_params(folder, read_config(folder), **options))


def expected(model) -> dict[str, np.ndarray]:
    """The parameters by an independent route: rename by suffix, turn by number of axes."""
    params = {}
    for name, tensor in model.state_dict().items():
        path, leaf = name.removeprefix("model.").rsplit(".", 1)
        array = tensor.numpy()
        if leaf == "weight":
            leaf = (
                "embedding"
                if "embed_tokens" in path or "position" in path
                else "scale"
                if array.ndim == 1
                else "kernel"
            )
        if leaf == "kernel":
            array = array.reshape(array.shape[0], -1)
        params[f"{path}.{leaf}"] = array
    return params


def assert_same(params, reference):
    assert params.keys() == reference.keys()
    for name in reference:
        np.testing.assert_array_equal(params[name], reference[name], err_msg=name, strict=True)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("names", ["A", "B", "C", "D"])
def test_every_layout_gives_the_same_parameters(tmp_path, model, names, shards, kind):
    tiny.save_llava(tmp_path, model, names=names, shards=shards, kind=kind)
    assert_same(load(tmp_path), expected(model))


@pytest.mark.parametrize("sizes", [{"kv_heads": 2}, {"tied": True}], ids=["gqa", "tied"])
def test_the_tree_is_the_one_the_models_ask_for(tmp_path, sizes):
    tiny.save_llava(tmp_path, tiny.tiny_llava(**sizes))
    config = read_config(tmp_path)
    params = read_params(tmp_path, config)
    assert jax.tree.map(lambda leaf: leaf.shape, params) == jax.tree.map(
        lambda leaf: leaf.shape, abstract_params(config, "float32")
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_kept_and_can_be_widened(tmp_path, dtype):
    model = tiny.tiny_llava().to(dtype)
    tiny.save_llava(tmp_path, model)
    kept, widened = load(tmp_path), load(tmp_path, dtype="float32")
    reference = expected(tiny.tiny_llava().to(dtype).float())
    assert {str(array.dtype) for array in kept.values()} == {str(dtype).removeprefix("torch.")}
    assert_same(widened, reference)
    assert_same({name: np.asarray(array, np.float32) for name, array in kept.items()}, reference)


def test_parameters_are_sharded_as_asked(tmp_path, model):
    tiny.save_llava(tmp_path, model)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("model",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("model"))
    params = load(tmp_path, sharding=sharding)
    assert all(array.sharding == sharding for array in params.values())
    assert_same(params, expected(model))


def test_buffers_of_old_versions_are_left_alone(tmp_path, model):
    tiny.save_llava(tmp_path, model)
    state = safetensors.torch.load_file(tmp_path / "model.safetensors")
    state["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    state["vision_tower.vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    tiny.write_shards(tmp_path, state)
    assert_same(load(tmp_path), expected(model))


def test_every_wrong_tensor_is_named_in_one_error(tmp_path, model):
    tiny.save_llava(tmp_path, model)
    state = safetensors.torch.load_file(tmp_path / "model.safetensors")
    state["language_model.model.layers.0.self_attn.q_proj.lora_A"] = torch.ones(4, 4)
    state["model.language_model.norm.weight"] = torch.ones(64)
    state["multi_modal_projector.linear_1.bias"] = torch.ones(63)
    state["multi_modal_projector.linear_2.bias"] = torch.ones(64, dtype=torch.int32)
    del state["language_model.lm_head.weight"]
    tiny.write_shards(tmp_path, state)
    with pytest.raises(CheckpointError) as error:
        load(tmp_path)
    message = str(error.value)
    assert "1 not understood: 'language_model.model.layers.0.self_attn.q_proj.lora_A'" in message
    assert "1 missing: lm_head.kernel" in message
    assert "1 given twice: 'language_model.model.norm.weight' and 'model.language_model.norm.weight'" in message
    assert "'multi_modal_projector.linear_1.bias' (expected (64,) once it is" in message and "got (63,))" in message
    assert "'multi_modal_projector.linear_2.bias' (expected floating point, got int32)" in message


def test_a_tied_head_saved_beside_its_embedding_must_equal_it(tmp_path):
    model = tiny.tiny_llava(tied=True)
    tiny.save_llava(tmp_path, model)
    state = safetensors.torch.load_file(tmp_path / "model.safetensors")
    embedding = state["language_model.model.embed_tokens.weight"]
    tiny.write_shards(tmp_path, state | {"language_model.lm_head.weight": embedding.clone()})
    assert "lm_head.kernel" not in load(tmp_path)
    tiny.write_shards(tmp_path, state | {"language_model.lm_head.weight": embedding + 1})
    with pytest.raises(CheckpointError, match="ties the embeddings, but the head differs from them"):
        load(tmp_path)


def test_a_tied_head_saved_alone_is_the_embedding(tmp_path):
    model = tiny.tiny_llava(tied=True)
    tiny.save_llava(tmp_path, model)
    state = safetensors.torch.load_file(tmp_path / "model.safetensors")
    state["language_model.lm_head.weight"] = state.pop("language_model.model.embed_tokens.weight")
    tiny.write_shards(tmp_path, state)
    theirs, told = tiny.load_in_transformers(tmp_path)
    assert not told["missing_keys"]
    assert_same(load(tmp_path), {k: v for k, v in expected(theirs).items() if k != "lm_head.kernel"})


def test_a_head_that_differs_from_tied_embeddings_stays_apart_as_in_transformers(tmp_path):
    model = tiny.tiny_llava(tied=True)
    tiny.save_llava(tmp_path, model)
    state = safetensors.torch.load_file(tmp_path / "model.safetensors")
    head = state["language_model.model.embed_tokens.weight"] + 1
    tiny.write_shards(tmp_path, state | {"language_model.lm_head.weight": head})
    theirs, _ = tiny.load_in_transformers(tmp_path)
    with pytest.warns(CheckpointWarning, match="ties the head to the embeddings, but the weights of both differ"):
        config, params, _ = load_checkpoint(tmp_path)
    assert not config.text.tie_word_embeddings
    assert_same(flatten(params), expected(theirs))
    tiny.tiny_processor().save_pretrained(tmp_path)
    with pytest.warns(CheckpointWarning, match="ties the head"):
        assert verify_checkpoint(tmp_path).folder == tmp_path


def test_nan_and_infinity_are_warned_of_by_name(tmp_path):
    model = tiny.tiny_llava()
    with torch.no_grad():
        model.model.language_model.norm.weight[3] = torch.nan
        model.model.multi_modal_projector.linear_1.bias[0] = -torch.inf
    tiny.save_llava(tmp_path, model)
    with pytest.warns(CheckpointWarning, match="2 weights hold NaN or infinity") as caught:
        load(tmp_path)
    assert "language_model.norm.scale" in str(caught[0].message)
    assert "multi_modal_projector.linear_1.bias" in str(caught[0].message)


def test_an_overflowing_cast_is_warned_of(tmp_path):
    model = tiny.tiny_llava()
    with torch.no_grad():
        model.lm_head.weight[0, 0] = 1e6
    tiny.save_llava(tmp_path, model)
    with pytest.warns(CheckpointWarning, match=r"1 weights .*: lm_head\.kernel"):
        load(tmp_path, dtype="float16")


class TestOriginalLayout:
    """haotian-liu/LLaVA: its own config and names, and (version 1.5) CLIP in a folder of its own."""

    @pytest.mark.parametrize("kind", ["safetensors", "bin"])
    def test_with_the_tower_inside(self, tmp_path, model, kind):
        vision = model.config.vision_config.to_dict()
        self.save(tmp_path, model, kind=kind, config={"vision_config": {"model_type": "clip_vision_model"} | vision})
        assert_same(load(tmp_path), expected(model))

    @pytest.mark.parametrize("whole_clip", [True, False])
    def test_with_clip_in_its_own_folder(self, tmp_path, model, whole_clip):
        original, clip = tmp_path / "llava", tmp_path / "clip"
        self.save(original, model, shards=2, kind="bin", drop="model.vision_tower.")
        self.save_clip(clip, model, whole=whole_clip)
        config = read_config(original, vision_tower=clip)
        params = read_params(original, config, vision_tower=clip)
        assert_same(flatten(params), expected(model))

    @pytest.mark.parametrize("described", ["by its own config", "by a folder given"])
    def test_a_tower_inside_goes_before_the_path_that_the_config_names(self, tmp_path, model, described):
        vision = {"model_type": "clip_vision_model"} | model.config.vision_config.to_dict()
        path = {"mm_vision_tower": "/home/somebody/clip-vit-large-patch14-336"}
        other = tmp_path / "other"
        self.save_clip(other, tiny.tiny_llava(seed=1), whole=False)
        if described == "by its own config":
            self.save(tmp_path, model, config=path | {"vision_config": vision})
            assert_same(flatten(load_checkpoint(tmp_path).params), expected(model))
        else:
            self.save(tmp_path, model, config=path)
            with pytest.warns(CheckpointWarning, match="a vision tower inside: the weights of .*other are not read"):
                loaded = load_checkpoint(tmp_path, vision_tower=other)
            assert_same(flatten(loaded.params), expected(model))

    def test_a_tower_at_a_relative_path(self, tmp_path, model, monkeypatch):
        self.save(tmp_path / "llava", model, config={"mm_vision_tower": "towers/clip"}, drop="model.vision_tower.")
        (tmp_path / "towers").mkdir()
        self.save_clip(tmp_path / "towers" / "clip", model, whole=True)
        monkeypatch.chdir(tmp_path)
        assert_same(flatten(load_checkpoint("llava").params), expected(model))

    def test_a_known_tower_is_known_at_any_path(self, tmp_path, model):
        self.save(
            tmp_path, model, config={"mm_vision_tower": "/data/clip-vit-large-patch14-336", "mm_hidden_size": 1024}
        )
        config = read_config(tmp_path)
        assert (config.vision.image_size, config.vision.hidden_size) == (336, 1024)

    def test_without_its_tower(self, tmp_path, model):
        self.save(tmp_path, model, drop="model.vision_tower.")
        config = read_config(tmp_path, without=("vision_tower",))
        params = flatten(read_params(tmp_path, config, without=("vision_tower",)))
        rest = {name: array for name, array in expected(model).items() if not name.startswith("vision_tower.")}
        assert_same(params, rest)

    def test_a_tower_it_does_not_describe_is_asked_for(self, tmp_path, model):
        self.save(tmp_path, model, config={"mm_vision_tower": "someone/else"})
        with pytest.raises(CheckpointError, match="names the vision tower 'someone/else' but does not describe it"):
            read_config(tmp_path)

    def save(self, folder, model, *, config=None, drop="none", **options):
        folder.mkdir(exist_ok=True)
        state = tiny.layout(model.state_dict(), "original")
        state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
        tiny.write_shards(folder, {k: v for k, v in state.items() if not k.startswith(drop)}, **options)
        (folder / "config.json").write_text(json.dumps(tiny.original_config(model) | (config or {})))

    def save_clip(self, folder, model, *, whole: bool):
        folder.mkdir()
        tower = model.model.vision_tower.state_dict()
        state = {f"vision_model.{k}": v for k, v in tower.items()}
        config = model.config.vision_config.to_dict()
        if whole:
            state |= {"text_model.final_layer_norm.weight": torch.ones(4), "logit_scale": torch.ones(())}
            state |= {"visual_projection.weight": torch.ones(4, 4), "text_projection.weight": torch.ones(4, 4)}
            state |= {"vision_model.embeddings.position_ids": torch.arange(17)}
            config = {"model_type": "clip", "vision_config": config, "text_config": {}}
        tiny.write_shards(folder, state, kind="bin")
        (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_the_host_holds_one_tensor_beside_the_parameters(tmp_path, dtype):
    """numpy's allocations are traced; those that became parameters are still there at the end, the rest is above."""
    wide = {"hidden_size": 128, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 6}
    text, vision = {"vocab_size": 8192, **wide}, {"image_size": 28, "patch_size": 14, **wide}
    write_random_checkpoint(
        tmp_path / "model",
        {"model_type": "llava", "image_token_index": 300, "text_config": text, "vision_config": vision},
        max_shard_bytes=3_000_000,
    )
    config = read_config(tmp_path / "model")
    read_params(tmp_path / "model", config, dtype=dtype)  # compiles, imports and caches what there is
    tracemalloc.start()
    params = read_params(tmp_path / "model", config, dtype=dtype)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    sizes = [leaf.nbytes for leaf in jax.tree.leaves(params)]
    assert peak < sum(sizes) + 1.25 * max(sizes)
    assert sum(sizes) > 2.5 * max(sizes)  # else the bound would say nothing
