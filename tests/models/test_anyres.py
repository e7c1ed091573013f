"""LLaVA-NeXT and LLaVA-OneVision compute what `transformers` computes, from pictures of any size to greedy tokens."""

import json
import shutil
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

import sparsevlm_jax as sv
from sparsevlm_jax import methods
from sparsevlm_jax.checkpoints.sources import convert_checkpoint, load_checkpoint
from sparsevlm_jax.convert import export_hf
from sparsevlm_jax.hf.known_fields import NEXT_PINPOINTS
from sparsevlm_jax.models import abstract_params, config_from_hf, family_of, init_params
from sparsevlm_jax.models.families.family import FAMILIES as REGISTERED
from sparsevlm_jax.processing import PictureSize, PromptError, read_prompt, render
from sparsevlm_jax.processing.tiles import best_canvas, tiled_picture
from sparsevlm_jax.report import visualize
from sparsevlm_jax.report.cost import decoder_flops
from sparsevlm_jax.runtime.batching import visual_bounds
from tests import anyres, tiny
from tests.anyres import SIZES, Theirs, picture
from tests.marks import sampled
from tests.parity import assert_close

QUESTION, NEW_TOKENS = "What is written on the blue sign?", 16


@pytest.fixture(scope="module", params=anyres.FAMILIES)
def theirs(request, tmp_path_factory) -> Theirs:
    return anyres.FAMILIES[request.param](tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def vlm(theirs) -> sv.VLM:
    return sv.load(theirs.folder)


@pytest.mark.parametrize(
    ("size", "tokens"),
    [((480, 640), 2340), ((640, 480), 2352), ((336, 336), 1176), ((672, 672), 2928), ((899, 1024), 2634)],
)
def test_token_counts_of_a_llava_next_as_published(size, tokens):
    canvas = best_canvas(size, NEXT_PINPOINTS)
    assert len(tiled_picture(size, canvas, tile=336, patch=14).source) == tokens


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pixels_and_tokens_of_a_picture(theirs, vlm, size):
    image = picture(*size)
    ours, pixels = vlm.processor([QUESTION], [[image]]), theirs.pixels([image])
    tiles = ours.pixel_values["tiles"]
    np.testing.assert_array_equal(tiles, pixels["pixel_values"][0, : len(tiles)].numpy())
    assert not pixels["pixel_values"][0, len(tiles) :].any()
    with torch.no_grad():
        packed = torch.cat(theirs.model.model.get_image_features(**pixels).pooler_output).numpy()
    encode = family_of(vlm.config).encode
    tokens = encode(vlm.params, ours.pixel_values, config=vlm.config, implementation="xla").tokens
    assert_close(tokens[: len(packed)], packed, relative=1e-4)
    assert ours.rows[0].visual_count == len(packed) == len(ours.layout.cell)


def test_ids_of_a_llava_next_are_those_of_its_processor(tmp_path):
    theirs = anyres.llava_next(tmp_path)
    processor: Any = transformers.AutoProcessor.from_pretrained(tmp_path)
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    vlm = sv.load(theirs.folder)
    for size in SIZES:
        ids = processor(text=text, images=picture(*size), return_tensors="np")["input_ids"][0]
        np.testing.assert_array_equal(vlm.processor([QUESTION], [[picture(*size)]]).input_ids[0], ids)


PROMPTS = [QUESTION, "how many <image> <image> dogs?", "where?", "a red car"]
IMAGES = [[picture(30, 40)], [picture(100, 20, 1), picture(33, 33, 2)], [], [picture(157, 191, 3)]]


@torch.no_grad()
def test_greedy_tokens_alone_and_in_a_ragged_batch(theirs, vlm):
    together = sv.generate(vlm, PROMPTS, IMAGES, sparsity=None, max_new_tokens=NEW_TOKENS)
    for prompt, images, answer in zip(PROMPTS, IMAGES, together, strict=True):
        ours = vlm.processor([prompt], [images])
        inputs = theirs.inputs(ours.input_ids[0], images)
        whole = theirs.model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        expected = whole[0, inputs["input_ids"].shape[1] :].numpy()
        np.testing.assert_array_equal(answer.tokens[: len(expected)], expected)
        alone = sv.generate(vlm, prompt, images, sparsity=None, max_new_tokens=NEW_TOKENS)
        np.testing.assert_array_equal(alone.tokens, answer.tokens)


@torch.no_grad()
def test_logits(theirs, vlm):
    for prompt, images in zip(PROMPTS, IMAGES, strict=True):
        run = sv.vlm.Run(vlm, [prompt], [images], None, 1)
        ours = run.prefill().logits[0]
        theirs_ = theirs.model(**theirs.inputs(run.inputs.input_ids[0], images)).logits[0, -1].numpy()
        assert_close(ours, theirs_, relative=2e-5)


IN_THE_TOWER = {name for name in methods.METHODS if getattr(methods.create(name), "merging", None)}


def refused(vlm: sv.VLM, sparsity: Any) -> bool:
    """Whether a method wants what the tower does not have; then it says so."""
    if not (sparsity and "class_token" in sparsity.needs) or vlm.config.vision.class_tokens:
        return False
    with pytest.raises(ValueError, match="needs the class token"):
        sv.generate(vlm, QUESTION, IMAGES[0], sparsity=sparsity)
    return True


@pytest.mark.parametrize(
    "name", sampled(sorted(methods.METHODS), {"sparsevlm"}, slow={"uniform", "dart", "fastv", "visionzip", "tome"})
)
def test_every_method_answers_a_ragged_batch_as_its_rows(vlm, name):
    sparsity = methods.create(name, "1/3")
    if refused(vlm, sparsity):
        return
    prompts, images_of_rows = PROMPTS, IMAGES
    if name in IN_THE_TOWER and vlm.config.most_tiles:  # the last picture is scaled down
        with pytest.raises(ValueError, match="so large a picture are scaled down"):
            sv.generate(vlm, QUESTION, IMAGES[3], sparsity=sparsity)
        prompts, images_of_rows = PROMPTS[:3], IMAGES[:3]
    together = sv.generate(vlm, prompts, images_of_rows, sparsity=sparsity, max_new_tokens=4)
    for prompt, images, answer in zip(prompts, images_of_rows, together, strict=True):
        alone = sv.generate(vlm, prompt, images, sparsity=sparsity, max_new_tokens=4)
        assert alone.tokens.tolist() == answer.tokens.tolist()
        assert alone.report.visual_tokens == answer.report.visual_tokens and alone.report.flops == answer.report.flops
        assert not any(alone.report.overflow)
        if images and name != "dense":
            third = vlm.processor([prompt], [images]).rows[0].visual_count / 3
            after = alone.report.mean_after_layers
            assert third * 0.7 < after <= third + 1.5 if name in IN_THE_TOWER else abs(after - third) < 1.5


@pytest.mark.parametrize(
    "name", sampled(sorted(set(methods.METHODS) - {"dense"}), (), slow={"sparsevlm", "visionzip", "tome"})
)
def test_a_method_that_keeps_all_is_dense(vlm, name):
    sparsity = methods.create(name, "1/1")
    assert sparsity is not None
    if refused(vlm, sparsity):
        return
    prompts, images = (PROMPTS[:3], IMAGES[:3]) if name in IN_THE_TOWER else (PROMPTS, IMAGES)
    dense = sv.vlm.Run(vlm, prompts, images, None, 1).prefill().logits
    kept = sv.vlm.Run(vlm, prompts, images, sparsity, 1).prefill().logits
    assert_close(kept, dense, relative=2e-5)


def test_a_number_of_tokens_is_no_budget_for_a_method_in_the_tower(vlm):
    with pytest.raises(ValueError, match=r"sees pictures of this model in tiles.*expected a share .*, got 20 tokens"):
        sv.generate(vlm, QUESTION, IMAGES[0], sparsity=methods.create("resize", 20))


def test_pictures_of_one_rung_run_one_program(vlm):
    """Numbers, not shapes, say where tokens are."""
    shapes: dict = {}
    for size in product(range(30, 300, 30), repeat=2):
        cut = vlm.config.cut(size)[1]
        same = (cut.picture.tiles, cut.is_scaled, visual_bounds(len(cut.source)))
        shapes.setdefault(same, {})[len(cut.source)] = size
    size_of = max(shapes.values(), key=len)
    runs = [
        sv.vlm.Run(vlm, [QUESTION], [[picture(*size)]], sv.SparsityConfig.sparsevlm("1/3"), 1)
        for size in list(size_of.values())[:3]
    ]
    assert len(runs) == 3 and len({run.batch.bucket for run in runs}) == 1
    for run in runs:
        run.prefill()
    assert not any(run.compile_ms for run in runs[1:])


@pytest.mark.slow
def test_reports_count_the_tiles_and_separators_that_ran(vlm):
    one, four = (sv.generate(vlm, QUESTION, picture(*size), sparsity="1/3", max_new_tokens=1) for size in SIZES[2:4])
    assert one.report.visual_tokens[0] == vlm.processor([QUESTION], [[picture(*SIZES[2])]]).rows[0].visual_count
    for output, size in ((one, SIZES[2]), (four, SIZES[3])):
        cut, report, config = vlm.config.cut(size)[1], output.report, vlm.config
        tower = family_of(config).encoder_flops(config, [PictureSize(len(cut.source), cut.picture.tiles)], None)
        rows = [len(cut.source) + report.text_tokens] * config.text.num_hidden_layers
        assert report.flops_dense == tower + decoder_flops(rows, config.text) and cut.picture.tiles > 3
        alone = family_of(config).encoder_flops(config, [PictureSize(len(cut.source))], None)
        assert tower == alone * cut.picture.tiles


@pytest.mark.slow
@pytest.mark.parametrize("names", ["A", "B", "C", "D"])
@pytest.mark.parametrize("family", anyres.FAMILIES)
def test_every_layout_is_read_and_exported_bit_by_bit(family, names, tmp_path):
    theirs = anyres.FAMILIES[family](tmp_path / "hf", names=names)
    loaded = load_checkpoint(theirs.folder)
    export_hf(loaded.params, loaded.config, tmp_path / "out")
    again = load_checkpoint(tmp_path / "out")
    assert again.config == loaded.config
    jax.tree.map(np.testing.assert_array_equal, again.params, loaded.params)
    model, told = tiny.load_in_transformers(tmp_path / "out", type(theirs.model))
    assert not told["missing_keys"] and not told["unexpected_keys"]
    for name, tensor in theirs.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


@pytest.mark.slow
def test_a_llava_next_in_the_original_layout(tmp_path):
    """The tower inside it, canvases as (width, height), no `<image>` among the tokens."""
    theirs = anyres.llava_next(tmp_path / "hf")
    folder = tmp_path / "original"
    folder.mkdir()
    state = tiny.layout(theirs.model.state_dict(), "original")
    assert "model.image_newline" in state
    tiny.write_shards(folder, state)
    vision = {"model_type": "clip_vision_model"} | theirs.model.config.vision_config.to_dict()
    config = tiny.original_config(theirs.model) | {
        "image_aspect_ratio": "anyres",
        "mm_patch_merge_type": "spatial_unpad",
        "image_grid_pinpoints": [[56, 28], [28, 56], [56, 56], [28, 84], [84, 28]],
        "vision_config": vision,
    }
    (folder / "config.json").write_text(json.dumps(config))
    tiny.tiny_tokenizer(marks=False).save_pretrained(folder)
    ours, hf = sv.load(folder), sv.load(theirs.folder)
    assert ours.config.image_grid_pinpoints == hf.config.image_grid_pinpoints
    jax.tree.map(np.testing.assert_array_equal, ours.params, hf.params)
    image = picture(157, 191)
    np.testing.assert_array_equal(
        ours.processor([QUESTION], [[image]]).pixel_values["tiles"],
        hf.processor([QUESTION], [[image]]).pixel_values["tiles"],
    )
    answers = [sv.generate(vlm, QUESTION, image, sparsity=None, max_new_tokens=2).report for vlm in (ours, hf)]
    assert answers[0].visual_tokens == answers[1].visual_tokens


@pytest.mark.slow
def test_bfloat16_is_as_near_as_torchs_own(theirs, vlm):
    half = sv.load(theirs.folder, dtype="bfloat16")
    image = picture(157, 191)
    exact = np.asarray(sv.vlm.Run(vlm, [QUESTION], [[image]], None, 1).prefill().logits[0])
    run = sv.vlm.Run(half, [QUESTION], [[image]], None, 1)
    ours = np.asarray(run.prefill().logits[0], np.float32)
    inputs = {
        name: value.bfloat16() if value.is_floating_point() else value
        for name, value in theirs.inputs(run.inputs.input_ids[0], [image]).items()
    }
    with torch.no_grad():
        other = theirs.model.bfloat16()(**inputs).logits[0, -1].float().numpy()
    theirs.model.float()
    assert np.linalg.norm(ours - exact) < 1.5 * np.linalg.norm(other - exact)


@pytest.mark.parametrize("size", ["next 7b", "next 13b", "onevision 0.5b"])
def test_the_published_sizes(size):
    """Shapes alone: no memory."""
    text = {
        "next 7b": {"model_type": "mistral", "vocab_size": 32064, "rope_theta": 1e6, "max_position_embeddings": 32768},
        "next 13b": {
            "hidden_size": 5120,
            "intermediate_size": 13824,
            "num_hidden_layers": 40,
            "num_attention_heads": 40,
        },
        "onevision 0.5b": {
            "model_type": "qwen2",
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "vocab_size": 152000,
            "tie_word_embeddings": True,
        },
    }[size]
    kind = "llava_onevision" if "onevision" in size else "llava_next"
    config = config_from_hf({"model_type": kind, "text_config": text})
    with torch.device("meta"):
        hf = transformers.AutoConfig.for_model(kind, text_config=text)
        theirs = transformers.AutoModelForImageTextToText.from_config(hf)
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(abstract_params(config, jnp.bfloat16)))
    assert count == sum(parameter.numel() for parameter in theirs.parameters())
    canvas, cut = config.cut((480, 640))
    tiles = 1 + canvas[0] * canvas[1] // config.image_size**2
    pixels = {
        "tiles": jax.ShapeDtypeStruct((tiles, 3, config.image_size, config.image_size), jnp.bfloat16),
        "source": jax.ShapeDtypeStruct(cut.source.shape, jnp.int32),
    }
    tokens = jax.eval_shape(
        lambda params, pixels: family_of(config).encode(params, pixels, config=config, implementation="xla").tokens,
        abstract_params(config, jnp.bfloat16),
        pixels,
    )
    assert tokens.shape == (len(cut.source), config.text.hidden_size)


def test_a_trace_shows_the_whole_picture_and_its_tiles(vlm, tmp_path):
    image = picture(157, 191)
    trace = sv.trace_prefill(vlm, QUESTION, image, sparsity="1/3")
    whole, tiles = trace.images
    assert whole.shape[1] == vlm.config.image_size and tiles.shape[1] > whole.shape[1]
    for shown in trace.images:  # in the shape of the original
        assert shown.shape[1] / shown.shape[0] == pytest.approx(191 / 157, rel=0.1)
    assert set(trace.image) == {0, 1}
    again = sv.load_trace(sv.save_trace(tmp_path / "anyres", trace))
    visualize.visualize(again).savefig(tmp_path / "anyres.png")


def test_one_of_several_pictures_of_a_llava_onevision_is_seen_whole(tmp_path):
    vlm = sv.load(anyres.llava_onevision(tmp_path).folder)
    image, other = picture(100, 20), picture(33, 33, 1)
    inputs = vlm.processor(["a?", "<image> <image> b?"], [[image], [image, other]])
    assert inputs.image_of_mark == (0, 1, 2) and inputs.layout.tiles == (5, 1, 1)
    assert [row.visual_count for row in inputs.rows] == [len(vlm.config.cut((100, 20))[1].source), 2 * 17]
    trace = sv.trace_prefill(vlm, "<image> <image> b?", [image, other], sparsity="1/2")
    assert [shown.shape for shown in trace.images] == [(30, 30, 3)] * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_grid_pinpoints": [[100, 336]]}, r"image_grid_pinpoints = .*expected multiples of image_size = 336"),
        ({"image_grid_pinpoints": "(1x1),(6x6)"}, r"image_grid_pinpoints = .*expected a list of \[height, width\]"),
        ({"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy = 'full', expected \"default\""),
        ({"use_image_newline_parameter": False}, "use_image_newline_parameter = False, implemented: True"),
    ],
)
def test_what_a_llava_next_cannot_be_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        config_from_hf({"model_type": "llava_next", **change})
    assert config_from_hf({"model_type": "llava_next"}).image_grid_pinpoints == NEXT_PINPOINTS


def test_canvases_of_preprocessing_and_model_must_be_the_same(theirs, tmp_path):

    folder = shutil.copytree(theirs.folder, tmp_path / "other")
    file = next(
        path for name in ("preprocessor_config.json", "processor_config.json") if (path := folder / name).exists()
    )
    file.write_text(file.read_text().replace("28", "56").replace("30", "60"))
    with pytest.raises(ValueError, match="expected|image_grid_pinpoints are|the vision tower sees"):
        sv.load(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llava_next", "llava_onevision"])
def test_the_smallest_configs_run(name):
    config = REGISTERED[name].dummy()
    params = init_params(config)
    assert config_from_hf(config.to_hf()) == config
    canvas, cut = config.cut((40, 40))
    edge = config.image_size
    pixels = {
        "tiles": jnp.zeros((canvas[0] * canvas[1] // edge**2 + 1, 3, edge, edge)),
        "source": jnp.asarray(cut.source),
    }
    if cut.is_scaled:
        pixels["weight"] = jnp.asarray(cut.weight)
    tokens = family_of(config).encode(params, pixels, config=config, implementation="xla").tokens
    assert tokens.shape == (len(cut.source), config.text.hidden_size)


def test_an_original_llava_next_of_mistral_is_asked_as_its_code_asks(tmp_path):
    theirs = anyres.llava_next(tmp_path / "hf", decoder="mistral")
    folder = tmp_path / "original"
    folder.mkdir()
    tiny.write_shards(folder, tiny.layout(theirs.model.state_dict(), "original"))
    config = tiny.original_config(theirs.model) | {
        "model_type": "llava_mistral",
        "image_aspect_ratio": "anyres",
        "mm_patch_merge_type": "spatial_unpad",
        "image_grid_pinpoints": [[56, 28], [28, 56], [56, 56], [28, 84], [84, 28]],
        "vision_config": {"model_type": "clip_vision_model"} | theirs.model.config.vision_config.to_dict(),
    }
    (folder / "config.json").write_text(json.dumps(config))
    tiny.tiny_tokenizer(marks=False).save_pretrained(folder)
    processor = sv.load(folder).processor
    chat = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a sign?"}]},
        {"role": "assistant", "content": "stop"},
        {"role": "user", "content": "where?"},
    ]
    text = render(read_prompt(chat, [picture(30, 40)]), processor.tokenizer, processor.template)
    assert text == "[INST] <image>\na sign? [/INST] stop </s>[INST] where? [/INST]"
    convert_checkpoint(folder, tmp_path / "own")
    again = sv.load(tmp_path / "own").processor
    assert (again.template, again.pixels) == (processor.template, processor.pixels)


def test_a_video_is_refused_by_name(tmp_path):
    vlm = sv.load(anyres.llava_onevision(tmp_path).folder)
    with pytest.raises(PromptError, match="videos are not implemented"):
        sv.generate(vlm, "<video> what?")


def test_tokens_of_a_picture_that_is_not_given_are_not_guessed(vlm):
    with pytest.raises(ValueError, match="depends on its size: give those of the marks"):
        vlm.processor.encode("<image> what?")
