"""Whatever a user calls an image opens upright and in RGB, or is refused by name."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from sparsevlm_jax.processing import ImageError, open_image
from sparsevlm_jax.processing import images as images_module

RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (6, 9, 3), np.uint8)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(source) -> np.ndarray:
    image = open_image(source)
    assert image.mode == "RGB"
    return np.asarray(image)


def test_every_kind_of_source_gives_the_same_picture(tmp_path):
    path, png = tmp_path / "photo.png", encoded(Image.fromarray(PHOTO), "PNG")
    path.write_bytes(png)
    for source in (path, str(path), png, Image.fromarray(PHOTO), PHOTO):
        np.testing.assert_array_equal(pixels(source), PHOTO)


@pytest.mark.parametrize("shape", [(6, 9), (6, 9, 1)])
def test_a_grey_array_is_repeated_into_three_channels(shape):
    grey = PHOTO[..., 0]
    np.testing.assert_array_equal(pixels(grey.reshape(shape)), np.repeat(grey[..., None], 3, axis=-1))


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P with one clear colour"])
def test_what_is_transparent_becomes_white(kind):
    if kind == "P with one clear colour":
        image = Image.new("P", (2, 1), 0)
        image.putpalette([10, 20, 30, 40, 50, 60])
        image.putpixel((1, 0), 1)
        source, opaque = encoded(image, "PNG", transparency=0), (40, 50, 60)
    else:
        image = Image.new(kind, (2, 1), (0,) * len(kind))
        image.putpixel((1, 0), (7,) * (len(kind) - 1) + (255,))
        source, opaque = encoded(image, "PNG"), (7, 7, 7)
    np.testing.assert_array_equal(pixels(source)[0], [(255, 255, 255), opaque])


def test_a_palette_without_transparency_gives_its_colours():
    image = Image.new("P", (1, 1), 1)
    image.putpalette([0, 0, 0, 40, 50, 60])
    np.testing.assert_array_equal(pixels(encoded(image, "PNG")), [[(40, 50, 60)]])


def test_cmyk_is_converted():
    jpeg = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)  # no cyan, full magenta and yellow
    assert np.abs(pixels(jpeg).astype(int) - (255, 0, 0)).max() <= 2  # red, up to JPEG's rounding


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_sixteen_bit_grey_is_scaled_and_not_clipped(dtype):
    grey = np.array([[0, 257, 32768, 65535]], dtype)
    expected = np.array([0, 1, 128, 255])  # 32768 / 257 = 127.5 rounds to even
    np.testing.assert_array_equal(pixels(Image.fromarray(grey))[0], np.repeat(expected[:, None], 3, axis=1))
    if dtype == np.uint16:
        np.testing.assert_array_equal(pixels(encoded(Image.fromarray(grey), "PNG"))[0, :, 0], expected)


def test_a_photograph_held_sideways_is_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the scene is at the right edge of the stored picture
    upright = pixels(encoded(Image.fromarray(PHOTO), "PNG", exif=exif))
    np.testing.assert_array_equal(upright, np.rot90(PHOTO, -1))


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "P", "CMYK", "YCbCr", "HSV", "I;16"])
def test_a_picture_of_one_pixel_opens(mode):
    assert open_image(Image.new(mode, (1, 1))).size == (1, 1)


def test_of_an_animation_the_first_frame_is_taken():
    frames = [Image.new("RGB", (3, 2), colour) for colour in ("red", "blue")]
    gif = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(pixels(gif)[0, 0], (255, 0, 0))


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such image file: .*absent\.png"):
        open_image(tmp_path / "absent.png")
    with pytest.raises(IsADirectoryError, match=r"expected an image file, got a folder"):
        open_image(tmp_path)


def test_an_address_is_not_fetched():
    with pytest.raises(ImageError, match="download it first"):
        open_image("https://example.org/cat.png")


def test_a_file_that_is_no_image_is_named(tmp_path):
    path = tmp_path / "notes.png"
    path.write_text("words")
    with pytest.raises(ImageError, match=r"notes\.png: not an image in a format that is read"):
        open_image(path)
    path.write_bytes(b"")
    with pytest.raises(ImageError, match=r"notes\.png: the file is empty"):
        open_image(path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_a_file_cut_anywhere_gives_only_this_librarys_error(kind):
    whole = encoded(Image.fromarray(RNG.integers(0, 256, (40, 40, 3), np.uint8)), kind)
    refused = 0
    for length in range(0, len(whole) - 1, max(1, len(whole) // 60)):
        try:
            open_image(whole[:length])
        except ImageError:
            refused += 1
    assert refused > 50


def test_flipped_bytes_give_a_picture_or_this_librarys_error():
    whole = np.frombuffer(encoded(Image.fromarray(PHOTO), "PNG"), np.uint8)
    for seed in range(200):
        rng = np.random.default_rng(seed)
        damaged = whole.copy()
        damaged[rng.integers(0, len(whole), 3)] = rng.integers(0, 256, 3)
        try:
            assert open_image(damaged.tobytes()).mode == "RGB"
        except ImageError as error:
            assert "bytes" in str(error)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing: a decompression bomb's first bytes."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(20_000, 10_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(size):
    with pytest.raises(ImageError, match=f"{images_module.MAX_PIXELS} pixels that are read"):
        open_image(png_header(*size))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), "expected an array of uint8 .*, got float32"),
        (np.zeros((3, 5, 6), np.uint8), r"got shape \[3, 5, 6\]"),
        (np.zeros((1, 4, 4, 3), np.uint8), r"got shape \[1, 4, 4, 3\]"),
        (np.zeros((0, 4, 3), np.uint8), r"got shape \[0, 4, 3\]"),
    ],
)
def test_an_array_that_is_no_picture_is_refused(array, message):
    with pytest.raises(ImageError, match=message):
        open_image(array)


@pytest.mark.parametrize("image", [Image.new("F", (2, 2)), Image.new("I", (2, 2), 70_000), Image.new("I", (2, 2), -1)])
def test_grey_without_an_agreed_white_is_refused(image):
    with pytest.raises(ImageError, match="32-bit grey"):
        open_image(image)


def test_a_picture_without_pixels_is_refused():
    with pytest.raises(ImageError, match="no pixels"):
        open_image(Image.new("RGB", (0, 5)))


def test_anything_else_is_no_picture():
    with pytest.raises(ImageError, match="got None"):
        open_image(None)  # pyright: ignore[reportArgumentType]


def test_encapsulated_postscript_never_reaches_an_interpreter():
    with pytest.raises(ImageError, match="not an image"):
        open_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
