"""A family that is unlike LLaVA in every way, the one of docs/families.md: one file and one table, and all else works.

Held to a forward pass of its own, row by row and with no batch, bucket, stage or cache.
"""

import dataclasses
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import sparsevlm_jax as sv
from sparsevlm_jax import methods
from sparsevlm_jax.checkpoints import own
from sparsevlm_jax.convert import export_hf
from sparsevlm_jax.convert.tables import TABLES
from sparsevlm_jax.methods.plain import RandomScore
from sparsevlm_jax.models import abstract_params, config_from_hf, init_params
from sparsevlm_jax.models.families.family import FAMILIES, Encoded
from sparsevlm_jax.processing import Shown
from sparsevlm_jax.report import visualize
from sparsevlm_jax.runtime.batching import assemble
from sparsevlm_jax.runtime.prefill import context_of_rows, prefill
from sparsevlm_jax.sparsify import ImageContext, KeptTokens
from tests.marks import sampled
from tests.tiny import random_image, tiny_processor

DOCS = Path(__file__).parents[2] / "docs" / "families.md"
WIDE, HIGH, SQUARE = (
    Image.fromarray(random_image(seed, *size)) for seed, size in enumerate([(20, 60), (61, 33), (9, 9)])
)
QUESTIONS = ["what is written on the blue sign?", "how many people", "<image> stop. <image> where is the car?", "hello"]
IMAGES = [[WIDE], [HIGH], [SQUARE, WIDE], []]
METHODS: dict[str, Any] = {name: methods.create(name, "1/2") for name in methods.METHODS}
IN_THE_TOWER = {name for name, sparsity in METHODS.items() if sparsity and sparsity.merging}


@pytest.fixture(scope="module")
def mosaic() -> Any:
    """The page's code, as a module; what it registers is taken out again."""
    (source,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    module = ModuleType("mosaic")
    exec(compile(source, str(DOCS), "exec"), module.__dict__)
    yield module
    del FAMILIES["mosaic"], TABLES["mosaic"]


@pytest.fixture(scope="module")
def folder(mosaic, tmp_path_factory) -> Path:
    """A checkpoint of it, exported by the library; weights far from uniform attention."""
    config, path = mosaic.dummy(), tmp_path_factory.mktemp("mosaic") / "hf"
    params = init_params(config, seed=3)
    for layer in params["language_model"]["layers"].values():
        for name in ("q_proj", "k_proj"):
            layer["self_attn"][name]["kernel"] = 4 * layer["self_attn"][name]["kernel"]
    export_hf(params, config, path)
    tiny_processor().save_pretrained(path)
    file = path / "processor_config.json"
    table = json.loads(file.read_text())
    table["image_processor"] |= {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}
    file.write_text(json.dumps(table))
    return path


@pytest.fixture(scope="module")
def vlm(folder) -> sv.VLM:
    return sv.load(folder)


def by_hand(vlm: sv.VLM, row: Any, encoded: Encoded, kept: dict[int, list[int]]) -> np.ndarray:
    """Logits of the last token of one row; after the layers of `kept` these tokens of those there are stay, with their
    positions."""
    text, frequencies = vlm.config.text, 1e4 ** -(np.arange(0, 8, 2) / 8)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), vlm.params)
    decoder = params["language_model"]
    tokens, deep = (np.asarray(field, np.float64) for field in (encoded.tokens, encoded.deepstack[0]))
    is_visual = row.visual_index >= 0
    x = np.where(is_visual[:, None], tokens[row.visual_index], decoder["embed_tokens"]["embedding"][row.input_ids])
    added = np.where(is_visual[:, None], deep[row.visual_index], 0)
    angle = row.position_ids[:, list(text.rope_axes)] * frequencies

    def norm(part, x):
        return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + text.rms_norm_eps) * part["scale"]

    def turned(x):
        first, second = x[..., :4], x[..., 4:]
        cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    def keep(stay):
        nonlocal x, angle
        x, angle = x[stay], angle[stay]

    if -1 in kept:
        added = added[kept[-1]]
        keep(kept[-1])
    for index, layer in enumerate(decoder["layers"].values()):
        y, attention = norm(layer["input_layernorm"], x), layer["self_attn"]
        q, k, v = ((y @ attention[f"{name}_proj"]["kernel"].T).reshape(len(y), -1, 8) for name in "qkv")
        q, k = turned(q), turned(k)
        k, v = (np.repeat(each, 2, axis=1) for each in (k, v))
        logits = np.einsum("qnh,knh->nqk", q, k) / np.sqrt(8)
        logits[:, np.triu_indices(len(y), 1)[0], np.triu_indices(len(y), 1)[1]] = -np.inf
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        out = np.einsum("nqk,knh->qnh", weights / weights.sum(axis=-1, keepdims=True), v)
        x = x + out.reshape(len(y), -1) @ attention["o_proj"]["kernel"].T
        y, mlp = norm(layer["post_attention_layernorm"], x), layer["mlp"]
        gate, up = (y @ mlp[f"{name}_proj"]["kernel"].T for name in ("gate", "up"))
        x = x + (gate / (1 + np.exp(-gate)) * up) @ mlp["down_proj"]["kernel"].T
        if index == 0:
            x = x + added
        if index in kept:
            keep(kept[index])
    return norm(decoder["norm"], x[-1]) @ params["lm_head"]["kernel"].T


def run(vlm: sv.VLM, rows: list[int], sparsity: Any, **options: Any) -> Any:
    """Prefill of some of QUESTIONS in one batch, with its trace; the processed rows; the encoded pictures."""
    processed = vlm.processor([QUESTIONS[row] for row in rows], [IMAGES[row] for row in rows])
    batch = assemble(processed, vlm.config, new_tokens=1)
    static: dict[str, Any] = dict(config=vlm.config, implementation="xla")
    encoded = Encoded(jnp.zeros((0, vlm.config.text.hidden_size)))
    if processed.image_of_mark:
        encoded = FAMILIES["mosaic"].encode(vlm.params, batch.pixel_values, **static)
        layout, spare = processed.layout, len(encoded.tokens) - len(processed.layout.media)
        media, cell = np.pad(layout.media, (0, spare)), np.pad(layout.cell, ((0, spare), (0, 0)))
        encoded = encoded._replace(context=ImageContext(media=jnp.asarray(media), cell=jnp.asarray(cell)))
    call = jax.jit(prefill, static_argnames=("config", "sparsity", "bucket", "implementation", "trace"))
    inputs = batch.inputs(encoded)
    return (
        call(vlm.params, inputs, sparsity=sparsity, bucket=batch.bucket, trace=True, **static),
        processed,
        encoded,
        inputs,
    )


def test_dense_logits_of_a_ragged_batch_are_those_of_a_pass_by_hand(vlm):
    result, processed, encoded, _ = run(vlm, [0, 1, 2, 3], None)
    counts = [row.visual_count for row in processed.rows]
    assert counts[0] != counts[1] and counts[2] > counts[0] and counts[3] == 0, (
        "pictures of another number of tokens each"
    )
    for index, row in enumerate(processed.rows):
        assert row.position_ids.shape == (len(row.input_ids), 3)
        np.testing.assert_allclose(result.logits[index], by_hand(vlm, row, encoded, {}), atol=2e-4)
        assert result.state.next_position[:, index].tolist() == [row.position_ids[-1].max() + 1] * 4
    separators = processed.layout.cell[:, 0] < 0
    assert len(set(processed.rows[0].input_ids[processed.rows[0].visual_index >= 0])) == 2 and separators.any()


@pytest.mark.parametrize("name", ["fastv", "sparsevlm-plus", "divprune", "uniform"])
def test_pruned_logits_are_those_of_a_pass_by_hand(vlm, name):
    """After layer 0 the deepstack feature has been added to all; before it, the kept tokens take theirs along."""
    sparsity = dataclasses.replace(METHODS[name], positions="keep")
    result, processed, encoded, _ = run(vlm, [0, 1, 2, 3], sparsity)
    layers = sparsity.pruning_layers(vlm.config.text.num_hidden_layers)
    for index, row in enumerate(processed.rows):
        is_visual, kept = row.visual_index >= 0, {}
        for layer, stage in zip(layers, result.trace.stages, strict=True):
            decided = np.asarray(stage.decision.selection.is_kept[index, : is_visual.sum()])
            stay = ~is_visual
            stay[np.flatnonzero(is_visual)] = decided
            kept[layer] = np.flatnonzero(stay).tolist()
            is_visual = is_visual[stay]
        assert is_visual.sum() < row.visual_count or not row.visual_count
        np.testing.assert_allclose(result.logits[index], by_hand(vlm, row, encoded, kept), atol=2e-4)


@pytest.mark.parametrize(
    "name", sampled(sorted(methods.METHODS), {"uniform", "visionzip"}, slow={"dart", "sparsevlm-plus"})
)
def test_every_method_answers_a_batch_as_its_rows_or_says_why_not(vlm, name):
    sparsity = methods.create(name, "1/2", **({} if name == "dense" else {"positions": "keep"}))
    if name in IN_THE_TOWER:
        with pytest.raises(ValueError, match="this family's towers merge nothing"):
            sv.generate(vlm, QUESTIONS[0], WIDE, sparsity=sparsity)
        return
    together = sv.generate(vlm, QUESTIONS, IMAGES, sparsity=sparsity, max_new_tokens=4)
    for question, images, both in zip(QUESTIONS, IMAGES, together, strict=True):
        alone = sv.generate(vlm, question, images, sparsity=sparsity, max_new_tokens=4)
        assert alone.tokens.tolist() == both.tokens.tolist() and alone.report.flops == both.report.flops
        there = sum(
            len(picture.cell) for picture in vlm.processor.prepare([Shown(image, False) for image in images]).pictures
        )
        assert name == "dense" or not images or min(alone.report.visual_tokens) < there
    streamed = "".join(sv.stream(vlm, QUESTIONS[0], WIDE, sparsity=sparsity, max_new_tokens=4))
    assert streamed == together[0].text


@pytest.mark.slow
@pytest.mark.parametrize("amount", ["1/2", 11])
def test_budgets_hold_for_any_number_of_tokens(vlm, amount):
    for image in (WIDE, HIGH, SQUARE):
        report = sv.generate(vlm, "what?", image, sparsity=methods.create("fastv", amount), max_new_tokens=1).report
        total = report.visual_tokens[0]
        assert report.mean_after_layers == pytest.approx(total / 2 if amount == "1/2" else min(11, total), abs=1)


def test_positions_of_several_axes_are_not_renumbered(vlm):
    with pytest.raises(ValueError, match=r"sparsevlm numbers positions anew, .* have 3 axes.*positions='keep'"):
        sv.generate(vlm, "what?", WIDE, sparsity="sparsevlm")


def test_recycled_tokens_take_deepstack_by_their_weights(vlm):
    """Before layer 0, so that the feature is still to come: a merged token gets the mean of its members'."""
    sparsity = methods.create("sparsevlm", "1/2", positions="keep")
    assert sparsity is not None
    early = dataclasses.replace(sparsity, budget=KeptTokens((6,)), layers=(-1,), score=RandomScore())
    result, processed, encoded, _ = run(vlm, [0], early)
    stage = result.trace.stages[0]
    recycled, row = stage.recycled, processed.rows[0]
    own_tokens = row.visual_index[row.visual_index >= 0]
    members = own_tokens[np.asarray(recycled.candidates[0])]
    count = int(recycled.candidate_count[0])
    weights = np.asarray(recycled.weights[0, 0, :count])
    assert count > 1 and weights.sum() == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(recycled.merged[0, 0], weights @ np.asarray(encoded.tokens)[members[:count]], atol=1e-5)
    # By hand: the merged token as one more visual token, at its center's position and with the mean of the features.
    center = int(np.flatnonzero(own_tokens == own_tokens[int(recycled.centers[0, 0])])[0])
    kept = np.flatnonzero(np.asarray(stage.decision.selection.is_kept[0]))
    slots = np.flatnonzero(row.visual_index >= 0)
    extended = encoded._replace(
        tokens=jnp.concatenate([encoded.tokens, recycled.merged[0, :1]]),
        deepstack=(jnp.concatenate([encoded.deepstack[0], weights[None] @ encoded.deepstack[0][members[:count]]]),),
    )
    before, after = slots[kept[kept >= 0]], np.arange(slots[-1] + 1, len(row.input_ids))
    order = np.concatenate([np.arange(slots[0]), before, [slots[center]], after])
    changed = row._replace(
        input_ids=row.input_ids[order], visual_index=row.visual_index[order], position_ids=row.position_ids[order]
    )
    changed.visual_index[slots[0] + len(before)] = len(encoded.tokens)
    np.testing.assert_allclose(result.logits[0], by_hand(vlm, changed, extended, {}), atol=2e-4)


def test_the_rows_know_which_picture_each_token_is_of_as_they_show_them(vlm):
    _, processed, _, inputs = run(vlm, [2], None)
    rows = context_of_rows(inputs, processed.rows[0].visual_count)
    assert rows is not None and rows.media is not None and rows.cell is not None
    counts = [len(processed.layout.rows_of(image)) for image in range(2)]
    assert rows.media[0].tolist() == [0] * counts[0] + [1] * counts[1]
    np.testing.assert_array_equal(rows.cell[0], processed.layout.cell)


def test_a_trace_and_its_pictures_show_images_of_their_own_sizes(vlm, tmp_path):
    trace = sv.trace_prefill(vlm, QUESTIONS[2], IMAGES[2], sparsity=methods.create("sparsevlm-plus", "1/2"))
    assert [image.shape for image in trace.images] == [(24, 24, 3), (8, 24, 3)]
    again = sv.load_trace(sv.save_trace(tmp_path / "mosaic", trace))
    assert all(map(np.array_equal, again.images, trace.images)) and np.array_equal(again.box, trace.box)
    figure = visualize.visualize(again)
    figure.savefig(tmp_path / "mosaic.png")
    shown = visualize.kept_picture(again, len(again.stages) - 1)
    assert shown.shape == (24, 48, 3) and np.isnan(visualize.score_map(again, 0)[8:, 24:]).all()


@pytest.mark.slow
def test_a_question_about_one_picture_twice_encodes_it_once(vlm):
    processed = vlm.processor(["<image> or <image> is it?"], [[HIGH, HIGH]])
    assert processed.image_of_mark == (0, 0) and len(processed.layout.media) * 2 == processed.rows[0].visual_count
    even = methods.create("uniform", "1/2", positions="keep")
    out = sv.generate(vlm, "<image> or <image> is it?", [HIGH, HIGH], sparsity=even, max_new_tokens=2)
    assert out.report.visual_tokens[0] == processed.rows[0].visual_count // 2


def test_its_checkpoints_are_converted_saved_and_read_back(mosaic, vlm, folder, tmp_path):
    assert config_from_hf(json.loads((folder / "config.json").read_text())) == mosaic.dummy()
    own.save(tmp_path / "own", vlm.params, vlm.config, processor_files_from=folder)
    again = sv.load(tmp_path / "own")
    assert again.config == vlm.config
    for ours, theirs in zip(jax.tree.leaves(again.params), jax.tree.leaves(vlm.params), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert "up to 42 tokens an image" in vlm.config.describe_vision() and "varying tokens an image" in repr(vlm)
    missing = abstract_params(mosaic.dummy(), jnp.float32)
    assert set(missing) == {"towers", "language_model", "lm_head"}
