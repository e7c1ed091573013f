"""Opening pictures: whatever a user calls an image becomes an 8-bit RGB picture the right way up, or one clear error.

Colour rules are those of Hugging Face's PIL image processors (transparency is composited onto white), so that pixels
agree with the checkpoints' own training and evaluation; what those leave undefined is settled here: EXIF rotation is
applied, 16-bit grey is scaled to 8 bits instead of clipped, and hostile or broken files are refused by name.
"""

import io
import os
import warnings
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageOps

ImageSource: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | np.ndarray

#: Bitmap formats only: Pillow would run Ghostscript on EPS, and vector or document formats are no photographs.
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "ICO", "TGA")
#: Decoding is refused above this many pixels (537 MB as RGB). It is the size at which Pillow itself refuses.
MAX_PIXELS = 178_956_970


class ImageError(ValueError):
    """A source that is no readable picture. The message names the source and says what is wrong with it."""


def open_image(source: ImageSource) -> Image.Image:
    """Open a picture and return it in mode RGB, upright.

    Args:
        source: a path, the bytes of an image file, a PIL image, or a uint8 array [height, width] or
            [height, width, channels] of 1, 3 or 4 channels. Of an animation the first frame is taken.

    Returns:
        A PIL image in mode RGB.

    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError: the path cannot be opened.
        ImageError: not an image, truncated, too many pixels, or a kind of pixels that has no defined brightness.
        TypeError: `source` is none of the above.
    """
    if isinstance(source, Image.Image):
        return _upright_rgb(source, "the given PIL image")
    if isinstance(source, np.ndarray):
        return _upright_rgb(_from_array(source), "the given array")
    if isinstance(source, bytes | bytearray):
        return _decode(io.BytesIO(source), f"the given {len(source)} bytes")
    if isinstance(source, str | os.PathLike):
        return _open_path(os.fspath(source))
    raise TypeError(f"expected a path, bytes, a PIL image or a uint8 array as image, got {type(source).__name__}")


def _open_path(path: str) -> Image.Image:
    if "://" in path:
        raise ImageError(f"{path}: images are read from disk; download it first")
    if not os.path.exists(path):
        raise FileNotFoundError(f"no such image file: {path}")
    if os.path.isdir(path):
        raise IsADirectoryError(f"expected an image file, got a folder: {path}")
    try:
        data = Path(path).read_bytes()
    except PermissionError as error:
        raise PermissionError(f"not allowed to read the image file: {path}") from error
    return _decode(io.BytesIO(data), path)


def _decode(stream: io.BytesIO, name: str) -> Image.Image:
    if not stream.getbuffer().nbytes:
        raise ImageError(f"{name}: the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata is no reason to stop; size is checked below
            image = Image.open(stream, formats=FORMATS)
            _check_size(image, name)
            image.load()
            return _upright_rgb(image, name)
    except ImageError:
        raise
    except Image.UnidentifiedImageError:
        raise ImageError(f"{name}: not an image in a format that is read ({', '.join(FORMATS)})") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{name}: more than the {MAX_PIXELS} pixels that are read") from None
    except Exception as error:
        # Pillow's decoders meet hostile bytes with any of a dozen exception types: all mean the same to the user.
        raise ImageError(f"{name}: damaged or truncated image ({error})") from error


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(f"{name}: {width} x {height} is more than the {MAX_PIXELS} pixels that are read")


def _from_array(array: np.ndarray) -> Image.Image:
    if array.dtype != np.uint8:
        raise ImageError(f"expected an array of uint8 (0 to 255), got {array.dtype}")
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.size == 0 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (3, 4))):
        raise ImageError(f"expected an array [height, width(, 1, 3 or 4)], got shape {list(array.shape)}")
    return Image.fromarray(array)


def _upright_rgb(image: Image.Image, name: str) -> Image.Image:
    if 0 in image.size:
        raise ImageError(f"{name}: the image has no pixels ({image.width} x {image.height})")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        return _grey16(image).convert("RGB")
    if image.mode in ("I", "F"):
        return _grey32(image, name).convert("RGB")
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _grey16(image: Image.Image) -> Image.Image:
    """Scale 0..65535 to 0..255; Pillow's own conversion would clip, and turn most of the picture white."""
    return Image.fromarray(np.round(np.asarray(image, np.float32) / 257).astype(np.uint8))


def _grey32(image: Image.Image, name: str) -> Image.Image:
    """Older files of 16-bit grey open as 32-bit integers; a wider range, or floats, has no agreed white."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise ImageError(f"{name}: 32-bit grey pixels have no agreed white; save the image with 8 or 16 bits")
    return Image.fromarray(np.round(values / 257).astype(np.uint8))
