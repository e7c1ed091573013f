"""Pixel values equal those of Hugging Face's PIL image processors, for every shape and mode of picture."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import CLIPImageProcessorPil, LlavaImageProcessorPil, SiglipImageProcessorPil

from sparsevlm_jax.errors import CheckpointWarning
from sparsevlm_jax.processing import ImageError, PixelConfig, center_crop, open_image, preprocess
from sparsevlm_jax.processing import pixels as pixels_module

RNG = np.random.default_rng(0)
# (width, height): squares, both orientations, odd remainders, one pixel, aspect extremes, smaller and larger
SIZES = [(1, 1), (1, 7), (9, 1), (56, 56), (57, 56), (60, 90), (131, 70), (33, 34), (5, 600), (700, 4), (1999, 1501)]
EDGE = 56


def picture(size, mode="RGB") -> Image.Image:
    width, height = size
    return Image.fromarray(RNG.integers(0, 256, (height, width, 4), np.uint8), "RGBA").convert(mode)


def reference(image: Image.Image, processor) -> np.ndarray:
    return processor(images=[image], return_tensors="np")["pixel_values"][0]


def hf_settings(**changes) -> dict:
    return {"size": {"shortest_edge": EDGE}, "crop_size": {"height": EDGE, "width": EDGE}, **changes}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("processor", [CLIPImageProcessorPil, LlavaImageProcessorPil])
def test_pixels_equal_the_pil_processor(processor, size):
    pads = {"do_pad": True} if processor is LlavaImageProcessorPil else {}
    hf = processor(**hf_settings(**pads))
    config = PixelConfig.from_hf(json.loads(hf.to_json_string()))
    assert config.do_pad == bool(pads)
    ours = preprocess(open_image(picture_ := picture(size)), config)
    assert ours.dtype == np.float32 and ours.shape == (3, EDGE, EDGE)
    np.testing.assert_array_equal(ours, reference(picture_, hf))


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1", "YCbCr"])
def test_modes_of_colour_equal_the_pil_processor(mode):
    hf, image = CLIPImageProcessorPil(**hf_settings()), picture((70, 90), mode)
    np.testing.assert_array_equal(preprocess(open_image(image), PixelConfig.square(EDGE)), reference(image, hf))


@pytest.mark.parametrize(
    "settings",
    [
        {"size": {"height": 40, "width": 72}},
        {"size": {"shortest_edge": 80}},
        {"size": {"shortest_edge": 31}},  # smaller than the crop: black all round
        {"size": {"height": 33, "width": 90}, "crop_size": {"height": 40, "width": 57}},
        {"resample": 2},
        {"rescale_factor": 1 / 127.5},
        {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.6, 0.7]},
    ],
    ids=str,
)
def test_every_setting_that_is_read_has_the_pil_processors_effect(settings):
    hf, image = CLIPImageProcessorPil(**hf_settings(**settings)), picture((75, 91))
    config = PixelConfig.from_hf(json.loads(hf.to_json_string()))
    np.testing.assert_array_equal(preprocess(image.convert("RGB"), config), reference(image.convert("RGB"), hf))


def test_the_real_size_equals_the_pil_processor_too():
    image = picture((640, 480), "RGB")
    hf = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    np.testing.assert_array_equal(preprocess(image, PixelConfig.square(336)), reference(image, hf))


def test_settings_read_alike_in_each_generation_of_config_file():
    expected = PixelConfig.square(336)
    old = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 336, "crop_size": 336, "resample": 3}
    new = {**hf_settings(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}), "do_pad": None}
    assert PixelConfig.from_hf(old) == PixelConfig.from_hf(new) == expected
    assert PixelConfig.from_hf({"image_processor": new, "patch_size": 14}) == expected


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"do_resize": "no"}, "do_resize = 'no'"),
        ({"do_center_crop": False}, "do_center_crop = False, with size = 56: pictures would keep sizes of their own"),
        ({"do_center_crop": False, "do_resize": False}, "do_center_crop = False, with do_resize = False"),
        ({"image_processor_type": "Qwen2VLImageProcessor"}, "image_processor_type = 'Qwen2VLImageProcessor'"),
        (
            {"image_processor_type": "LlavaNextImageProcessor", "image_grid_pinpoints": [[336]]},
            r"image_grid_pinpoints = \[\[336\]\], expected a list of \[height, width\]",
        ),
        ({"pad_size": {"height": 9, "width": 9}}, "pad_size"),
        ({"size": {"shortest_edge": 3, "longest_edge": 4}}, "size = "),
        ({"image_mean": [1, None, 1]}, "image_mean"),
        ({"size": {"longest_edge": 3}}, "size = {'longest_edge': 3}"),
        ({"size": 0}, "size = 0"),
        ({"size": True}, "size = True"),
        ({"crop_size": {"height": 1e9, "width": 3}}, "crop_size"),
        ({"resample": 17}, "resample = 17"),
        ({"image_mean": [1, 2]}, r"image_mean = \[1, 2\]"),
        ({"image_std": [1, 0, 1]}, r"image_std = \[1, 0, 1\]"),
        ({"rescale_factor": "a"}, "rescale_factor = 'a'"),
        ({"image_processor": 3}, "expected a JSON object"),
    ],
    ids=str,
)
def test_a_setting_that_is_not_implemented_is_refused_by_name(change, named):
    with pytest.raises(ValueError, match=named):
        PixelConfig.from_hf(hf_settings(**change))


def test_all_settings_that_are_not_implemented_are_named_at_once():
    with pytest.raises(ValueError, match=r"resample.*do_resize"):
        PixelConfig.from_hf({"do_resize": 3, "resample": 17})


def test_settings_that_no_image_processor_has_are_ignored_with_one_warning():
    with pytest.warns(CheckpointWarning, match=r"ignored.*frobnicate, image_grid_pinpoints") as caught:
        config = PixelConfig.from_hf(hf_settings(frobnicate=1, image_grid_pinpoints=[[1, 2]]))
    assert config == PixelConfig.square(EDGE) and len(caught) == 1


NUMBERS = st.lists(st.floats(0.1, 0.9), min_size=3, max_size=3) | st.floats(0.1, 0.9)
SIZE = st.integers(20, 70)
HEIGHT_WIDTH = st.fixed_dictionaries({"height": SIZE, "width": SIZE})
SHORTEST = st.fixed_dictionaries({"shortest_edge": SIZE})
SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "size": SIZE
        | HEIGHT_WIDTH
        | st.tuples(SIZE, SIZE).map(list)
        | st.builds(lambda edge: {"shortest_edge": edge}, SIZE),
        "crop_size": SIZE | HEIGHT_WIDTH,
        "default_to_square": st.booleans(),
        "do_pad": st.booleans(),
        "do_resize": st.booleans(),
        "do_center_crop": st.booleans(),
        "do_rescale": st.booleans(),
        "do_normalize": st.booleans(),
        "do_convert_rgb": st.booleans(),
        "resample": st.sampled_from([0, 1, 2, 3]),
        "rescale_factor": st.sampled_from([1 / 255, 1 / 127.5, 1.0]),
        "image_mean": NUMBERS | st.just([0.0, 0.0, 0.0]),
        "image_std": NUMBERS,
    },
)
PROCESSORS = {
    kind.__name__.removesuffix("Pil"): kind
    for kind in (CLIPImageProcessorPil, LlavaImageProcessorPil, SiglipImageProcessorPil)
}


@settings(max_examples=150)
@given(st.sampled_from(sorted(PROCESSORS)), SETTINGS, st.sampled_from([(40, 90), (90, 40), (33, 33), (300, 7)]))
def test_any_settings_together_equal_the_pil_processor_or_are_refused(kind, given_settings, size):
    image = picture(size, "RGB")
    try:
        config = PixelConfig.from_hf({"image_processor_type": kind, **given_settings})
    except ValueError as error:  # sizes that depend on the picture
        assert "do_center_crop = False" in str(error) or "expected a crop_size" in str(error)
        return
    ours = preprocess(image, config)
    if config.do_pad and isinstance(given_settings.get("image_mean"), float):
        return  # Hugging Face's fails
    theirs = reference(image, PROCESSORS[kind](**given_settings))
    assert ours.shape == (3, *config.output_size)
    np.testing.assert_array_equal(ours, np.float32(theirs))


@pytest.mark.parametrize("kind", sorted(PROCESSORS))
def test_an_image_processors_own_defaults_are_read(kind):
    image = picture((300, 240), "RGB")
    ours = preprocess(image, PixelConfig.from_hf({"image_processor_type": kind + "Fast"}))
    np.testing.assert_array_equal(ours, reference(image, PROCESSORS[kind]()))


def test_only_the_processor_of_llava_pads_to_a_square():
    for kind, pads in (("CLIPImageProcessor", False), ("SiglipImageProcessor", False), ("LlavaImageProcessor", True)):
        settings = hf_settings(image_processor_type=kind, do_pad=True, size={"height": EDGE, "width": EDGE})
        assert PixelConfig.from_hf(settings).do_pad == pads


@pytest.mark.parametrize(
    "changes",
    [{}, {"do_pad": True}, {"size": (56, 56), "shortest_edge": 0, "do_center_crop": False}, {"do_rescale": False}],
)
def test_a_config_survives_its_file(changes):
    config = dataclasses.replace(PixelConfig.square(EDGE), **changes)
    assert PixelConfig.from_hf(config.to_hf()) == config


@pytest.mark.parametrize("size", [(200, 31), (31, 200), (199, 1)])
@pytest.mark.parametrize("resample", [0, 2, 3])
def test_a_long_strip_is_padded_and_resized_by_parts_to_the_same_pixels(monkeypatch, size, resample):
    image, config = picture(size, "RGB"), PixelConfig.square(EDGE, do_pad=True, resample=resample)
    whole = preprocess(image, config)
    monkeypatch.setattr(pixels_module, "MAX_PIXELS", 16 * 200 * 3)  # three rows at a time
    np.testing.assert_array_equal(preprocess(image, config), whole)


def test_a_crop_larger_than_the_picture_puts_black_around_it():
    picture_ = np.full((3, 1, 2), 9, np.uint8)
    expected = [
        [0, 0, 0, 0, 0],
        [0, 0, 9, 9, 0],
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
    ]
    np.testing.assert_array_equal(center_crop(picture_, (4, 5))[0], np.roll(expected, 1, axis=0))


@pytest.mark.parametrize("size", [(201, 1), (1, 1000)])
def test_a_strip_is_refused_and_its_neighbour_is_not(size):
    with pytest.raises(ImageError, match=f"200 times longer than wide, got {size[0]} x {size[1]}"):
        preprocess(picture(size, "RGB"), PixelConfig.square(EDGE))
    assert preprocess(picture((200, 1), "RGB"), PixelConfig.square(EDGE)).shape == (3, EDGE, EDGE)


def test_pixel_values_restore_to_the_picture_the_model_saw():
    image = picture((EDGE, EDGE))  # neither resized nor cropped
    config = PixelConfig.square(EDGE)
    np.testing.assert_array_equal(config.restore(preprocess(image, config)[None])[0], np.asarray(image))
