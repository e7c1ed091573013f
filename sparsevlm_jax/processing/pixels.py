"""A picture becomes the numbers a vision tower expects: CLIP's and SigLIP's preprocessing in numpy, without torch.

Step by step that of Hugging Face's PIL image processors (`PilBackend`), to which the tests hold it: (pad to a square)
-> resize -> crop the centre -> rescale -> normalise, each of which a checkpoint may leave out. llava-hf checkpoints
crop; the original LLaVA pads with the mean colour first (`image_aspect_ratio: pad`), so nothing of the picture is lost.

Dims: C colour channels (3), H height, W width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeGuard

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from ..hf.known_fields import NEXT_PINPOINTS, ONEVISION_PINPOINTS
from ..hf.reader import ConfigReader
from .images import MAX_PIXELS, ImageError
from .tiles import read_pinpoints

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
#: A thinner strip would be enlarged without bound by "resize the shortest edge" and hardly be seen after the crop.
MAX_ASPECT = 200
#: Larger edges than any vision tower sees are taken for a damaged config.
MAX_EDGE = 4096

#: The image processors implemented, up to the suffixes "Fast" and "Pil", which change backends and not the recipe, and
#: what each does where its config does not say. Only LLaVA's pads to a square: the others' `do_pad` fills up batches.
#: Those with pinpoints are of families that cut pictures into tiles; what is said here is done to each tile.
PROCESSORS: Final[dict[str, dict[str, Any]]] = {
    "LlavaNextImageProcessor": {"pinpoints": NEXT_PINPOINTS},
    "LlavaOnevisionImageProcessor": {"pinpoints": ONEVISION_PINPOINTS, "size": (384, 384), "crops": False},
    "CLIPImageProcessor": {},
    "CLIPFeatureExtractor": {},
    "LlavaImageProcessor": {"pads": True},
    "SiglipImageProcessor": {"mean": (0.5,) * 3, "std": (0.5,) * 3, "size": (224, 224), "crops": False},
}
_SUFFIXES: Final = ("", "Fast", "Pil")
# Written by some version of transformers, and without effect on the pixels of an RGB picture.
_HARMLESS = {
    *("processor_class", "data_format", "input_data_format", "return_tensors", "device", "disable_grouping"),
    *("_valid_processor_keys", "do_convert_rgb", "image_seq_length", "auto_map", "use_fast", "backend", "do_pad"),
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
    do_resize: bool = True
    do_center_crop: bool = True
    do_rescale: bool = True
    do_normalize: bool = True
    image_grid_pinpoints: tuple[tuple[int, int], ...] | None = None

    @property
    def output_size(self) -> tuple[int, int]:
        """(height, width) of the pixel values, whatever the picture's."""
        if self.do_center_crop:
            return self.crop_size
        if self.do_resize and self.size is not None:
            return self.size
        raise ValueError("without a crop, and without a resize to height and width, pictures keep sizes of their own")

    @classmethod
    def square(cls, edge: int, **fields: Any) -> "PixelConfig":
        """CLIP's own preprocessing for a tower that sees `edge` x `edge` pixels."""
        return cls(crop_size=(edge, edge), shortest_edge=edge, **fields)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "PixelConfig":
        """Read `preprocessor_config.json`, or `processor_config.json` with its nested `image_processor`.

        Raises:
            ValueError: naming every field whose value is not implemented.

        Warns:
            CheckpointWarning: fields that no implemented image processor has; they are ignored.
        """
        read = ConfigReader(config.get("image_processor", config), where="the image processor's config", known={})
        read.seen |= _HARMLESS
        kind = _kind(read)
        read.only("resample", *map(int, Image.Resampling))
        read.only("pad_size")
        shortest_edge, size = _edges("size", read, kind.get("size", 224), square=read("default_to_square", False))
        square, crop_size = _edges("crop_size", read, (224, 224), square=True)
        fields = cls(
            crop_size=crop_size or (square, square),
            shortest_edge=shortest_edge,
            size=size,
            resample=_resample(read),
            rescale_factor=read("rescale_factor", 1 / 255),
            image_mean=_three("image_mean", kind.get("mean", CLIP_MEAN), read),
            image_std=_three("image_std", kind.get("std", CLIP_STD), read),
            do_pad=read("do_pad", False) if kind.get("pads") else False,
            do_resize=read("do_resize", True),
            do_center_crop=read("do_center_crop", kind.get("crops", True)),
            do_rescale=read("do_rescale", True),
            do_normalize=read("do_normalize", True),
            image_grid_pinpoints=_pinpoints(read, kind.get("pinpoints")),
        )
        if not fields.do_center_crop and not (fields.do_resize and size):
            beside = f"size = {shortest_edge}" if fields.do_resize else "do_resize = False"
            read.complain("do_center_crop", False, f"with {beside}: pictures would keep sizes of their own")
        if fields.do_center_crop and not kind.get("crops", True) and read.config.get("crop_size") is None:
            read.complain("do_center_crop", True, "expected a crop_size beside it")
        read.done()
        return fields

    def restore(self, pixel_values: Float[np.ndarray, "I C H W"]) -> UInt8[np.ndarray, "I H W C"]:
        """Pixel values back into pictures: what the model saw, to show to people."""
        pixels = pixel_values.transpose(0, 2, 3, 1)
        if self.do_normalize:
            pixels = pixels * np.asarray(self.image_std, np.float32) + np.asarray(self.image_mean, np.float32)
        if self.do_rescale:
            pixels = pixels / self.rescale_factor
        return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)

    def to_hf(self) -> dict[str, Any]:
        """The `preprocessor_config.json` that `from_hf` reads back to an equal config."""
        size = {"shortest_edge": self.shortest_edge} if self.size is None else _height_width(self.size)
        kind, own = "LlavaImageProcessor" if self.do_pad else "CLIPImageProcessor", {}
        if self.image_grid_pinpoints is not None:
            kind, own = "LlavaNextImageProcessor", {"image_grid_pinpoints": list(map(list, self.image_grid_pinpoints))}
        return {
            "image_processor_type": kind,
            "size": size,
            "crop_size": _height_width(self.crop_size),
            "resample": self.resample,
            "rescale_factor": self.rescale_factor,
            "image_mean": list(self.image_mean),
            "image_std": list(self.image_std),
            "do_resize": self.do_resize,
            "do_center_crop": self.do_center_crop,
            "do_rescale": self.do_rescale,
            "do_normalize": self.do_normalize,
            "do_convert_rgb": True,
            **({"do_pad": True} if self.do_pad else {}),
            **own,
        }


def preprocess(image: Image.Image, config: PixelConfig) -> Float[np.ndarray, "C H W"]:
    """Pixel values of one RGB picture, float32, channels first, [3, *config.output_size].

    Raises:
        ImageError: the picture is more than `MAX_ASPECT` times longer than wide.

    Reference: `CLIPImageProcessorPil`, `SiglipImageProcessorPil` and `LlavaImageProcessorPil` of transformers 5.
    """
    width, height = image.size
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageError(f"expected an image at most {MAX_ASPECT} times longer than wide, got {width} x {height}")
    if config.do_pad:
        image = _padded_and_resized(image, config)
    elif config.do_resize:
        image = image.resize(_target_size(image.size, config), resample=Image.Resampling(config.resample))
    pixels = np.moveaxis(np.asarray(image), -1, 0)
    if config.do_center_crop:
        pixels = center_crop(pixels, config.crop_size)
    if config.do_rescale:  # in float64, as Hugging Face does
        pixels = (pixels.astype(np.float64) * config.rescale_factor).astype(np.float32)
    pixels = pixels.astype(np.float32)
    if not config.do_normalize:
        return pixels
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (config.image_mean, config.image_std))
    return (pixels - mean) / std


def pad_to_square(image: Image.Image, mean: tuple[float, ...] = CLIP_MEAN) -> Image.Image:
    """Centre the picture on a square of the mean colour, as the original LLaVA does (`expand2square`)."""
    edge = max(image.size)
    square = Image.new("RGB", (edge, edge), _colour(mean))
    square.paste(image, ((edge - image.width) // 2, (edge - image.height) // 2))
    return square


def _padded_and_resized(image: Image.Image, config: PixelConfig) -> Image.Image:
    """The padded square, resized. Where it would be huge (a long strip), one direction after the other, so that it is
    never held whole: Pillow resizes rows first, each alone, and gets the same pixels."""
    edge = max(image.size)
    target, resample = _target_size((edge, edge), config), Image.Resampling(config.resample)
    if edge * edge <= MAX_PIXELS or not config.do_resize:
        square = pad_to_square(image, config.image_mean)
        return square.resize(target, resample=resample) if config.do_resize else square
    left, top = (edge - image.width) // 2, (edge - image.height) // 2
    narrow = Image.new("RGB", (target[0], edge), _colour(config.image_mean))
    rows = max(1, MAX_PIXELS // 16 // edge)
    for start in range(0, image.height, rows):
        count = min(rows, image.height - start)
        strip = Image.new("RGB", (edge, count), _colour(config.image_mean))
        strip.paste(image.crop((0, start, image.width, start + count)), (left, 0))
        narrow.paste(strip.resize((target[0], count), resample=resample), (0, top + start))
    return narrow.resize(target, resample=resample)


def center_crop(pixels: UInt8[np.ndarray, "C H W"], size: tuple[int, int]) -> UInt8[np.ndarray, "C H2 W2"]:
    """Cut (height, width) out of the middle; where the picture is smaller, black is put around it."""
    room = [max(0, want - have) for want, have in zip(size, pixels.shape[1:], strict=True)]
    # An odd remainder of padding goes above and to the left, but an odd remainder of crop below and to the right.
    pixels = np.pad(pixels, [(0, 0), *((-(-extra // 2), extra // 2) for extra in room)])
    top, left = ((have - want) // 2 for want, have in zip(size, pixels.shape[1:], strict=True))
    return pixels[:, top : top + size[0], left : left + size[1]]


def _target_size(size: tuple[int, int], config: PixelConfig) -> tuple[int, int]:
    """(width, height) to resize to. The longer edge is truncated, not rounded, as in torchvision."""
    if config.size is not None:
        return config.size[1], config.size[0]
    longest = int(config.shortest_edge * max(size) / min(size))
    return (config.shortest_edge, longest) if size[0] <= size[1] else (longest, config.shortest_edge)


def _colour(mean: tuple[float, ...]) -> tuple[int, int, int]:
    """The mean as a colour of 8 bits; like Hugging Face's array of bytes, it wraps around."""
    red, green, blue = (int(value * 255) % 256 for value in mean)
    return red, green, blue


def _kind(read: ConfigReader) -> dict[str, Any]:
    """What the image processor of this name does where its config does not say."""
    kind: dict[str, Any] = {}
    for key in ("feature_extractor_type", "image_processor_type"):  # the newer name counts
        read.only(key, *(name + suffix for name in PROCESSORS for suffix in _SUFFIXES))
        name = read.config.get(key)
        if isinstance(name, str):
            kind = next((kind for known, kind in PROCESSORS.items() if name.startswith(known)), kind)
    return kind


def _pinpoints(read: ConfigReader, default: tuple[tuple[int, int], ...] | None) -> tuple[tuple[int, int], ...] | None:
    """Of a kind that has them by default."""
    if default is None:
        return None
    read.only("aspect_ratio_setting", "anyres")
    read.seen.add("image_grid_pinpoints")
    value = read.config.get("image_grid_pinpoints")
    pinpoints = default if value is None else read_pinpoints(value)
    return pinpoints or read.complain("image_grid_pinpoints", value, "expected a list of [height, width]", default)


def _resample(read: ConfigReader) -> int:
    value = read.config.get("resample")
    return 3 if value is None else value


def _height_width(size: tuple[int, int]) -> dict[str, int]:
    return {"height": size[0], "width": size[1]}


def _edges(
    name: str, read: ConfigReader, default: int | tuple[int, int], *, square: bool
) -> tuple[int, tuple[int, int] | None]:
    """A size as (one edge, None) or (0, (height, width)): transformers writes a number, a pair or an object of edges.

    square: a lone number is the edge of a square, not the shortest edge.
    """
    read.seen.add(name)
    value: Any = read.config.get(name)
    if value is None:
        value, square = default, False
    if isinstance(value, dict):
        keys = set(value)
        value = value["shortest_edge"] if keys == {"shortest_edge"} else value
        value = (value["height"], value["width"]) if keys == {"height", "width"} else value
    elif _is_edge(value) and square:
        value = (value, value)
    if isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_edge, value)):
        return 0, (value[0], value[1])
    if _is_edge(value):
        return value, None
    read.complain(name, read.config.get(name), f"implemented: 1 to {MAX_EDGE} pixels, one edge or height and width")
    return 1, None


def _is_edge(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_EDGE


def _three(name: str, default: tuple[float, ...], read: ConfigReader) -> tuple[float, ...]:
    """Three numbers, one for each colour, or one for all; a deviation is not 0."""
    read.seen.add(name)
    given: Any = read.config.get(name)
    values = default if given is None else [given] * 3 if _is_number(given) else given
    usable = isinstance(values, list | tuple) and len(values) == 3 and all(map(_is_number, values))
    if not usable or (name == "image_std" and not all(value > 0 for value in values)):
        return read.complain(name, given, f"expected 3 {'positive ' * (name == 'image_std')}numbers", default)
    return tuple(map(float, values))


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30
