"""Pixel values equal those of Hugging Face's PIL image processors, for every shape and mode of picture."""

import json

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil, LlavaImageProcessorPil

from sparsevlm_jax.processing import ImageError, PixelConfig, center_crop, open_image, preprocess

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
        ({"do_resize": False}, "do_resize = False"),
        ({"do_normalize": False}, "do_normalize = False"),
        ({"image_processor_type": "SiglipImageProcessor"}, "image_processor_type = 'SiglipImageProcessor'"),
        ({"image_grid_pinpoints": [[1, 2]]}, "image_grid_pinpoints"),
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
    with pytest.raises(ValueError, match=r"do_resize.*resample.*frobnicate"):
        PixelConfig.from_hf({"do_resize": False, "resample": 17, "frobnicate": 1})


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
