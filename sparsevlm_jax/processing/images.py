"""Opening pictures: whatever a user calls an image becomes an 8-bit RGB picture the right way up, or one clear error.

Colour rules are those of Hugging Face's PIL image processors (transparency is composited onto white), so that pixels
agree with the checkpoints' own training and evaluation; what those leave undefined is settled here: EXIF rotation is
applied, 16-bit grey is scaled to 8 bits instead of clipped, transparent keys of PNGs count at every bit depth, and
hostile or broken files are refused by name.

Memory: a picture of `MAX_PIXELS` takes 3 bytes a pixel, 4 while it is decoded. JPEGs above that are decoded at a half,
quarter or eighth of their size, which the format does on the way; all others are decoded exactly.
"""

import io
import os
import warnings
from typing import BinaryIO, Final, TypeAlias

import jax
import numpy as np
from PIL import Image, ImageFile, ImageOps

from .image_bytes import MAX_BYTES, ImageError, from_address, from_stream
from .shown import cut

ImageSource: TypeAlias = str | os.PathLike[str] | bytes | BinaryIO | Image.Image | np.ndarray | jax.Array

#: Bitmap formats only: Pillow would run Ghostscript on EPS, and vector or document formats are no photographs.
FORMATS: Final = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "ICO", "TGA")
#: Decoding is refused above this many pixels (192 MB as RGB), unless told otherwise.
MAX_PIXELS: Final = 64_000_000
#: A JPEG is not decoded to a shorter edge than this: resizing to what a vision tower sees must always be downwards.
SHORTEST_REDUCED: Final = 1024
_STRIP: Final = 256  # rows that are composited at a time
_ORIENTATION: Final = 0x0112
_GREY_LEVELS: Final = {"L;2": 85, "L;4": 17}  # a PNG's 2- and 4-bit samples become 8 bits by this factor

__all__ = ["FORMATS", "MAX_BYTES", "MAX_PIXELS", "ImageError", "ImageSource", "open_image"]


def open_image(source: ImageSource, *, allow_http: bool = False, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open a picture and return it in mode RGB, upright.

    Args:
        source: a path; a `file:`, `data:` or, where allowed, http(s) URL; the bytes of an image file; a file open for
            bytes; a PIL image; or a uint8 array, of numpy or JAX, [height, width] or [height, width, channels] of 1, 3
            or 4 channels. Of an animation the first frame is taken.
        allow_http: fetch pictures from the network.
        max_pixels: more are refused.

    Returns:
        A PIL image in mode RGB; the given one where nothing had to be done.

    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError: the path cannot be opened.
        ImageError: not an image, truncated, too many pixels or bytes, no regular file, or a kind of pixels that has no
            defined brightness.
        TypeError: `source` is none of the above.
    """
    if isinstance(source, Image.Image):
        return _given(source, max_pixels)
    if isinstance(source, np.ndarray | jax.Array):
        return _upright_rgb(_from_array(source), "the given array")
    if isinstance(source, bytes | bytearray | memoryview):
        if len(source) > MAX_BYTES:
            raise ImageError(f"the given {len(source)} bytes are more than the {MAX_BYTES} that are read")
        return _decode(io.BytesIO(source), f"the given {len(source)} bytes", max_pixels)
    if isinstance(source, str | os.PathLike):
        stream, name = from_address(os.fsdecode(source), allow_http=allow_http)
    elif callable(getattr(source, "read", None)):
        stream, name = from_stream(source)
    else:
        raise TypeError(
            f"expected a path, bytes, an open file, a PIL image or a uint8 array as image, got {type(source).__name__}"
        )
    with stream:
        return _decode(stream, name, max_pixels)


def _given(image: Image.Image, max_pixels: int) -> Image.Image:
    name = "the given PIL image"
    _check_size(image, name, max_pixels)
    try:
        image.load()
        return _upright_rgb(image, name)
    except ImageError:
        raise
    except Exception as error:  # closed, or opened from a file that is damaged or gone
        raise ImageError(f"{name} cannot be read ({cut(str(error))})") from error


def _decode(stream: BinaryIO, name: str, max_pixels: int) -> Image.Image:
    if not stream.seek(0, io.SEEK_END):
        raise ImageError(f"{name}: the file is empty")
    stream.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata is no reason to stop; size is checked below
            image = Image.open(stream, formats=FORMATS)
            _reduce(image, max_pixels)
            _check_size(image, name, max_pixels)
            _scale_key(image)
            image.load()
            return _upright_rgb(image, name)
    except ImageError:
        raise
    except Image.UnidentifiedImageError:
        raise ImageError(f"{name}: not an image in a format that is read ({', '.join(FORMATS)})") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{name}: more than the {max_pixels} pixels that are read") from None
    except Exception as error:
        # Pillow's decoders meet hostile bytes with any of a dozen exception types: all mean the same to the user.
        raise ImageError(f"{name}: damaged or truncated image ({cut(str(error))})") from error


def _check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(
            f"{name}: {width} x {height} is {width * height} pixels, more than the {max_pixels} pixels that are read"
        )


def _reduce(image: ImageFile.ImageFile, max_pixels: int) -> None:
    """Has a JPEG of too many pixels decoded at the largest of a half, a quarter or an eighth that is small enough."""
    width, height = image.size
    for scale in (2, 4, 8):
        if image.format != "JPEG" or image.width * image.height <= max_pixels:
            return
        if min(width, height) // scale >= SHORTEST_REDUCED:
            image.draft(None, (width // scale, height // scale))  # pyright: ignore[reportArgumentType]


def _scale_key(image: ImageFile.ImageFile) -> None:
    """A PNG's transparent key has the file's bit depth: brings it to that of the pixels, which Pillow does not."""
    key, raw = image.info.get("transparency"), image.tile[0].args if image.format == "PNG" and image.tile else None
    if isinstance(key, int) and raw in _GREY_LEVELS:
        image.info["transparency"] = key * _GREY_LEVELS[raw]
    elif isinstance(key, tuple) and raw == "RGB;16B":
        image.info["transparency"] = tuple(level >> 8 for level in key)


def _from_array(array: np.ndarray | jax.Array) -> Image.Image:
    if array.dtype != np.uint8:
        raise ImageError(f"expected an array of uint8 (0 to 255), got {array.dtype}")
    array = np.asarray(array)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.size == 0 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (3, 4))):
        raise ImageError(f"expected an array [height, width(, 1, 3 or 4)], got shape {list(array.shape)}")
    return Image.fromarray(array)


def _upright_rgb(image: Image.Image, name: str) -> Image.Image:
    if 0 in image.size:
        raise ImageError(f"{name}: the image has no pixels ({image.width} x {image.height})")
    if image.getexif().get(_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        return _grey16(image)
    if image.mode in ("I", "F"):
        return _grey32(image, name).convert("RGB")
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        return _on_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """Composites a picture with transparency onto white, by strips: whole, it would be held four times."""
    whole = Image.new("RGB", image.size)
    for top in range(0, image.height, _STRIP):
        strip = image.crop((0, top, image.width, min(top + _STRIP, image.height))).convert("RGBA")
        white = Image.new("RGBA", strip.size, (255, 255, 255, 255))
        whole.paste(Image.alpha_composite(white, strip).convert("RGB"), (0, top))
    return whole


def _grey16(image: Image.Image) -> Image.Image:
    """Scale 0..65535 to 0..255; Pillow's own conversion would clip, and turn most of the picture white."""
    values = np.asarray(image)
    grey = np.empty(values.shape, np.uint8)
    for top in range(0, len(values), _STRIP):
        grey[top : top + _STRIP] = np.round(values[top : top + _STRIP].astype(np.float32) / 257)
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey[values == key] = 255  # transparent, on white
    return Image.fromarray(grey).convert("RGB")


def _grey32(image: Image.Image, name: str) -> Image.Image:
    """Older files of 16-bit grey open as 32-bit integers; a wider range, or floats, has no agreed white."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise ImageError(f"{name}: 32-bit grey pixels have no agreed white; save the image with 8 or 16 bits")
    return Image.fromarray(np.round(values / 257).astype(np.uint8))
