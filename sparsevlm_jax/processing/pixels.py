"""A picture becomes the numbers a vision tower expects: CLIP preprocessing in numpy and Pillow, without torch.

Step by step that of Hugging Face's `CLIPImageProcessorPil` and `LlavaImageProcessorPil`, to which the tests hold it:
(pad to a square) -> resize the shortest edge -> crop the centre -> rescale -> normalise. llava-hf checkpoints crop;
the original LLaVA pads with the mean colour first (`image_aspect_ratio: pad`), so nothing of the picture is lost.

Dims: C colour channels (3), H height, W width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from ..models.hf_config import ConfigReader
from .images import ImageError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
#: A thinner strip would be enlarged without bound by "resize the shortest edge" and hardly be seen after the crop.
MAX_ASPECT = 200
#: Larger edges than any vision tower sees are taken for a damaged config.
MAX_EDGE = 4096

#: The image processors implemented, up to the suffixes "Fast" and "Pil", which change backends and not the recipe.
PROCESSORS = ("CLIPImageProcessor", "CLIPFeatureExtractor", "LlavaImageProcessor")
_STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")
# Written by some version of transformers, and without effect on the pixels.
_HARMLESS = {
    *("processor_class", "data_format", "input_data_format", "return_tensors", "device", "disable_grouping"),
    *("default_to_square", "_valid_processor_keys"),
}


@dataclass(frozen=True)
class PixelConfig:
    """What happens to a picture before the vision tower. Field names follow `preprocessor_config.json`.

    Sizes are in pixels, (height, width). Where `size` is given, the picture is resized to it, whatever its shape;
    else its shortest edge is resized to `shortest_edge`.
    """

    crop_size: tuple[int, int]
    shortest_edge: int
    size: tuple[int, int] | None = None
    resample: int = 3
    rescale_factor: float = 1 / 255
    image_mean: tuple[float, ...] = CLIP_MEAN
    image_std: tuple[float, ...] = CLIP_STD
    do_pad: bool = False

    @classmethod
    def square(cls, edge: int, **fields: Any) -> "PixelConfig":
        """CLIP's own preprocessing for a tower that sees `edge` x `edge` pixels."""
        return cls(crop_size=(edge, edge), shortest_edge=edge, **fields)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "PixelConfig":
        """Read `preprocessor_config.json`, or `processor_config.json` with its nested `image_processor`.

        Raises:
            ValueError: naming every field whose value is not implemented.
        """
        read = ConfigReader(config.get("image_processor", config), where="the image processor's config")
        read.seen |= _HARMLESS
        for step in _STEPS:
            read.only(step, True)
        for key in ("image_processor_type", "feature_extractor_type"):
            read.only(key, *(name + suffix for name in PROCESSORS for suffix in ("", "Fast", "Pil")))
        read.only("resample", *map(int, Image.Resampling))
        shortest_edge, size = _edges("size", read)
        square, crop_size = _edges("crop_size", read)
        fields = cls(
            crop_size=crop_size or (square, square),
            shortest_edge=shortest_edge,
            size=size,
            resample=read("resample", 3),
            rescale_factor=read("rescale_factor", 1 / 255),
            image_mean=_three("image_mean", CLIP_MEAN, read),
            image_std=_three("image_std", CLIP_STD, read),
            do_pad=read("do_pad", False),
        )
        read.done()
        return fields

    def restore(self, pixel_values: Float[np.ndarray, "I C H W"]) -> UInt8[np.ndarray, "I H W C"]:
        """Pixel values back into pictures: what the model saw, to show to people."""
        pixels = pixel_values.transpose(0, 2, 3, 1) * np.asarray(self.image_std, np.float32) + np.asarray(
            self.image_mean, np.float32
        )
        return np.clip(np.rint(pixels / self.rescale_factor), 0, 255).astype(np.uint8)

    def to_hf(self) -> dict[str, Any]:
        """The `preprocessor_config.json` that `from_hf` reads back to an equal config."""
        size = {"shortest_edge": self.shortest_edge} if self.size is None else _height_width(self.size)
        return {
            "image_processor_type": "LlavaImageProcessor" if self.do_pad else "CLIPImageProcessor",
            "size": size,
            "crop_size": _height_width(self.crop_size),
            "resample": self.resample,
            "rescale_factor": self.rescale_factor,
            "image_mean": list(self.image_mean),
            "image_std": list(self.image_std),
            **dict.fromkeys(_STEPS, True),
            **({"do_pad": True} if self.do_pad else {}),
        }


def preprocess(image: Image.Image, config: PixelConfig) -> Float[np.ndarray, "C H W"]:
    """Pixel values of one RGB picture, float32, channels first, [3, *config.crop_size].

    Raises:
        ImageError: the picture is more than `MAX_ASPECT` times longer than wide.

    Reference: `CLIPImageProcessorPil`, and `LlavaImageProcessorPil(do_pad=True)`, of transformers 5.
    """
    width, height = image.size
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageError(f"expected an image at most {MAX_ASPECT} times longer than wide, got {width} x {height}")
    if config.do_pad:
        image = pad_to_square(image, config.image_mean)
    image = image.resize(_target_size(image, config), resample=Image.Resampling(config.resample))
    pixels = center_crop(np.moveaxis(np.asarray(image), -1, 0), config.crop_size)
    scaled = (pixels.astype(np.float64) * config.rescale_factor).astype(np.float32)
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (config.image_mean, config.image_std))
    return (scaled - mean) / std


def pad_to_square(image: Image.Image, mean: tuple[float, ...] = CLIP_MEAN) -> Image.Image:
    """Centre the picture on a square of the mean colour, as the original LLaVA does (`expand2square`)."""
    edge = max(image.size)
    square = Image.new("RGB", (edge, edge), tuple(int(value * 255) for value in mean))
    square.paste(image, ((edge - image.width) // 2, (edge - image.height) // 2))
    return square


def center_crop(pixels: UInt8[np.ndarray, "C H W"], size: tuple[int, int]) -> UInt8[np.ndarray, "C H2 W2"]:
    """Cut (height, width) out of the middle; where the picture is smaller, black is put around it."""
    room = [max(0, want - have) for want, have in zip(size, pixels.shape[1:], strict=True)]
    # An odd remainder of padding goes above and to the left, but an odd remainder of crop below and to the right.
    pixels = np.pad(pixels, [(0, 0), *((-(-extra // 2), extra // 2) for extra in room)])
    top, left = ((have - want) // 2 for want, have in zip(size, pixels.shape[1:], strict=True))
    return pixels[:, top : top + size[0], left : left + size[1]]


def _target_size(image: Image.Image, config: PixelConfig) -> tuple[int, int]:
    """(width, height) to resize to. The longer edge is truncated, not rounded, as in torchvision."""
    if config.size is not None:
        return config.size[1], config.size[0]
    longest = int(config.shortest_edge * max(image.size) / min(image.size))
    return (config.shortest_edge, longest) if image.width <= image.height else (longest, config.shortest_edge)


def _height_width(size: tuple[int, int]) -> dict[str, int]:
    return {"height": size[0], "width": size[1]}


def _edges(name: str, read: ConfigReader) -> tuple[int, tuple[int, int] | None]:
    """A size as (one edge, None) or (0, (height, width)): transformers writes a number or an object of edges."""
    read.seen.add(name)
    value: Any = read.config.get(name)
    if value is None:
        value = 224  # CLIP's own default
    if isinstance(value, dict) and set(value) == {"shortest_edge"}:
        value = value["shortest_edge"]
    if isinstance(value, dict) and set(value) == {"height", "width"} and all(map(_is_edge, value.values())):
        return 0, (value["height"], value["width"])
    if _is_edge(value):
        return value, None
    read.complaints.append(f"{name} = {value!r}, implemented: 1 to {MAX_EDGE} pixels, one edge or height and width")
    return 1, None


def _is_edge(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_EDGE


def _three(name: str, default: tuple[float, ...], read: ConfigReader) -> tuple[float, ...]:
    values = read(name, list(default))
    if len(values) != 3 or not all(isinstance(v, int | float) and 0 < v < float("inf") for v in values):
        read.complaints.append(f"{name} = {values!r}, expected 3 positive numbers")
        return default
    return tuple(map(float, values))
