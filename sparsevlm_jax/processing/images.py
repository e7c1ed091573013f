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
import struct
import warnings
from typing import Any, BinaryIO, Final, TypeAlias

import jax
import numpy as np
from PIL import Image, ImageFile, ImageOps

from ..errors import cut, short
from .image_bytes import MAX_BYTES, ImageError, from_address, from_stream

ImageSource: TypeAlias = str | os.PathLike[str] | bytes | BinaryIO | Image.Image | np.ndarray | jax.Array

#: Bitmap formats only: Pillow would run Ghostscript on EPS, and vector or document formats are no photographs.
FORMATS: Final = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "ICO", "TGA")
#: Decoding is refused above this many pixels (192 MB as RGB), unless told otherwise.
MAX_PIXELS: Final = 64_000_000
#: A JPEG is not decoded to a shorter edge than this: resizing to what a vision tower sees must always be downwards.
SHORTEST_REDUCED: Final = 1024
_JPEGS: Final = ("JPEG", "MPO")  # phones write several JPEGs into one file; the first counts
_STRIP: Final = 256  # rows that are composited at a time
_ORIENTATION: Final = 0x0112
_GREY_LEVELS: Final = {"L;2": 85, "L;4": 17}  # a PNG's 2- and 4-bit samples become 8 bits by this factor

__all__ = ["FORMATS", "MAX_BYTES", "MAX_PIXELS", "ImageError", "ImageSource", "open_image"]


def open_image(source: ImageSource, *, allow_http: bool = False, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open a picture and return it in mode RGB, upright.

    Args:
        source: a path; a `file:`, `data:` or, where allowed, http(s) URL; the bytes of an image file; a file open for
            bytes; a PIL image; or a uint8 array, of numpy or JAX, [height, width] or [height, width, channels] of 1, 3
            or 4 channels. Of an animation the first frame is taken. A PIL image stays as it is; one that was loaded has
            forgotten its file's bit depth, so that a transparent key of 2, 4 or 16 bits is taken for one of 8.
        allow_http: fetch pictures from the network.
        max_pixels: more are refused, in arrays and PIL images as in files; a JPEG is reduced to fit, if it can be.

    Returns:
        A PIL image in mode RGB; the given one where nothing had to be done.

    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError: the path cannot be opened.
        ImageError: none of the above, not an image, truncated, too many pixels or bytes, no regular file, or a kind of
            pixels that has no defined brightness.
    """
    if isinstance(source, Image.Image):
        return _given(source, max_pixels)
    if isinstance(source, np.ndarray | jax.Array):
        return _upright_rgb(_from_array(source, max_pixels), "the given array")
    if isinstance(source, bytes | bytearray | memoryview):
        if len(source) > MAX_BYTES:
            raise ImageError(f"the given {len(source)} bytes are more than the {MAX_BYTES} that are read")
        return _decode(io.BytesIO(source), f"the given {len(source)} bytes", max_pixels)
    stream, name = _opened(source, allow_http)
    with stream:
        return _decode(stream, name, max_pixels)


def _opened(source: ImageSource, allow_http: bool) -> tuple[BinaryIO, str]:
    """A path, URL or open file, as a stream and its name."""
    try:
        address = os.fsdecode(source) if isinstance(source, str | os.PathLike) else None
        reads = address is None and callable(getattr(source, "read", None))
    except Exception:  # __fspath__ and __getattr__ are foreign code
        address, reads = None, False
    if address is None and not reads:
        raise ImageError(
            f"expected a path, bytes, an open file, a PIL image or a uint8 array as image, got {short(source)}"
        )
    return from_stream(source) if address is None else from_address(address, allow_http=allow_http)


def _given(image: Image.Image, max_pixels: int) -> Image.Image:
    name = "the given PIL image"
    _check_size(image, name, max_pixels)
    try:
        if isinstance(image, ImageFile.ImageFile) and _scaled_key(image) is not None:
            return _decode(_file_of(image), name, max_pixels)
        image.load()
        return _upright_rgb(image, name)
    except ImageError:
        raise
    except Exception as error:  # closed, or opened from a file that is damaged or gone
        raise ImageError(f"{name} cannot be read ({cut(str(error))})") from error


def _file_of(image: ImageFile.ImageFile) -> BinaryIO:
    """The file of a picture that is not loaded yet, copied: the picture is the caller's."""
    file: Any = image.fp
    place = file.tell()
    file.seek(0)
    copied = io.BytesIO(file.read())
    file.seek(place)
    return copied


def _decode(stream: BinaryIO, name: str, max_pixels: int) -> Image.Image:
    if not stream.seek(0, io.SEEK_END):
        raise ImageError(f"{name}: the file is empty")
    stream.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata is no reason to stop; size is checked below
            image = _identified(stream)
            _reduce(image, max_pixels)
            _check_size(image, name, max_pixels)
            key = _scaled_key(image)
            if key is not None:
                image.info["transparency"] = key
            image.load()
            return _upright_rgb(image, name)
    except ImageError:
        raise
    except Image.UnidentifiedImageError:
        raise ImageError(f"{name}: not an image in a format that is read ({', '.join(FORMATS)})") from None
    except Image.DecompressionBombError:  # some formats have Pillow's bound inside
        limit = min(max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or max_pixels))
        raise ImageError(f"{name}: more than the {limit} pixels that are read") from None
    except Exception as error:
        # Pillow's decoders meet hostile bytes with any of a dozen exception types: all mean the same to the user.
        raise ImageError(f"{name}: damaged or truncated image ({cut(str(error))})") from error


def _identified(stream: BinaryIO) -> ImageFile.ImageFile:
    """As `Image.open`, whose bound on pixels is a setting of the whole process: it would come before reducing, and
    before `max_pixels`."""
    Image.init()
    prefix = stream.read(16)
    for name in FORMATS:
        factory, accept = Image.OPEN.get(name, (None, None))
        if factory is None or (accept and accept(prefix) is not True):
            continue
        stream.seek(0)
        try:
            return factory(stream, "")
        except (SyntaxError, IndexError, TypeError, struct.error):  # by which Pillow says "of another format"
            continue
    raise Image.UnidentifiedImageError


def _check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    _check_pixels(image.width, image.height, name, max_pixels)


def _check_pixels(width: int, height: int, name: str, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageError(
            f"{name}: {width} x {height} is {width * height} pixels, more than the {max_pixels} pixels that are read"
        )


def _reduce(image: ImageFile.ImageFile, max_pixels: int) -> None:
    """Has a JPEG of too many pixels decoded at the largest of a half, a quarter or an eighth that is small enough."""
    if image.format not in _JPEGS or image.width * image.height <= max_pixels:
        return
    for scale in (2, 4, 8):
        width, height = -(-image.width // scale), -(-image.height // scale)
        if min(width, height) >= SHORTEST_REDUCED and width * height <= max_pixels:
            image.draft(None, (image.width // scale, image.height // scale))  # pyright: ignore[reportArgumentType]
            return


def _scaled_key(image: ImageFile.ImageFile) -> int | tuple[int, ...] | None:
    """A PNG's transparent key has the file's bit depth: that of the pixels, to which Pillow does not bring it; None
    where nothing is to do."""
    key, raw = image.info.get("transparency"), image.tile[0].args if image.format == "PNG" and image.tile else None
    if isinstance(key, int) and raw in _GREY_LEVELS:
        return key * _GREY_LEVELS[raw]
    if isinstance(key, tuple) and raw == "RGB;16B":
        return tuple(level >> 8 for level in key)
    return None


def _from_array(array: np.ndarray | jax.Array, max_pixels: int) -> Image.Image:
    if array.dtype != np.uint8:
        raise ImageError(f"expected an array of uint8 (0 to 255), got {array.dtype}")
    if array.size == 0 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (1, 3, 4))):
        raise ImageError(f"expected an array [height, width(, 1, 3 or 4)], got shape {list(array.shape)}")
    _check_pixels(array.shape[1], array.shape[0], "the given array", max_pixels)
    values = np.asarray(array)
    return Image.fromarray(values[..., 0] if array.shape[2:] == (1,) else values)


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
