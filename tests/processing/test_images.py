"""Whatever a user calls an image opens upright and in RGB, or is refused by name."""

import io
import struct
import subprocess
import sys
import zlib

import jax.numpy as jnp
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


def png(depth: int, kind: int, samples: bytes, width: int, *, key: bytes | None = None, height: int = 1) -> bytes:
    """A PNG of one row (or, of a size it only claims): `kind` is 0 grey, 2 RGB, 3 palette; `key` is its tRNS chunk."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    transparent = b"" if key is None else chunk(b"tRNS", key)
    data = chunk(b"IDAT", zlib.compress(b"\0" + samples))
    return b"\x89PNG\r\n\x1a\n" + header + transparent + data + chunk(b"IEND", b"")


WHITE = (255,) * 3
# name -> (depth, kind, samples, transparent key), and the pixels; the key's pixel is white
KEYED = {
    "1-bit grey, black": (1, 0, [0b01000000], [0], [WHITE, WHITE]),
    "1-bit grey, white": (1, 0, [0b01000000], [1], [(0,) * 3, WHITE]),
    "2-bit grey": (2, 0, [0b00011011], [1], [(0,) * 3, WHITE, (170,) * 3, WHITE]),
    "4-bit grey": (4, 0, [0x05], [5], [(0,) * 3, WHITE]),
    "8-bit grey": (8, 0, [0, 7], [0], [WHITE, (7,) * 3]),
    "16-bit grey, black": (16, 0, [0, 0, 10, 10], [0], [WHITE, (10,) * 3]),
    "16-bit grey": (16, 0, [156, 64, 156, 65], [40_000], [WHITE, (156,) * 3]),
    "8-bit RGB": (8, 2, [1, 2, 3, 4, 5, 6], [1, 2, 3], [WHITE, (4, 5, 6)]),
    "16-bit RGB": (16, 2, [1, 0, 2, 0, 3, 0, 1, 0, 2, 0, 4, 0], [256, 512, 768], [WHITE, (1, 2, 4)]),
    "16-bit RGB, low": (16, 2, [0, 1, 0, 2, 0, 3, 1, 0, 2, 0, 3, 0], [1, 2, 3], [WHITE, (1, 2, 3)]),
}


@pytest.mark.parametrize(("depth", "kind", "samples", "key", "expected"), KEYED.values(), ids=KEYED.keys())
def test_the_transparent_key_of_a_png_is_white_at_every_depth(depth, kind, samples, key, expected):
    data = png(depth, kind, bytes(samples), len(expected), key=struct.pack(f">{len(key)}H", *key))
    for source in (data, Image.open(io.BytesIO(data))):
        np.testing.assert_array_equal(pixels(source)[0], expected)


def test_transparency_is_composited_by_strips_as_it_is_whole(monkeypatch):
    image = Image.fromarray(RNG.integers(0, 256, (50, 9, 4), np.uint8), "RGBA")
    whole = pixels(image)
    monkeypatch.setattr(images_module, "_STRIP", 7)
    np.testing.assert_array_equal(pixels(image), whole)
    np.testing.assert_array_equal(pixels(encoded(image, "PNG")), whole)


@pytest.mark.parametrize("size", [(12_000, 12_000), (64_001, 1000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(size):
    with pytest.raises(ImageError, match=f"{images_module.MAX_PIXELS} pixels that are read"):
        open_image(png(8, 2, b"", size[0], height=size[1]))


def test_the_bound_names_both_numbers_and_can_be_moved():
    with pytest.raises(ImageError, match="9 x 6 is 54 pixels, more than the 53 pixels that are read"):
        open_image(encoded(Image.fromarray(PHOTO), "PNG"), max_pixels=53)
    with pytest.raises(ImageError, match="the given PIL image: 9 x 6 is 54 pixels"):
        open_image(Image.fromarray(PHOTO), max_pixels=53)
    assert open_image(encoded(Image.fromarray(PHOTO), "PNG"), max_pixels=54).size == (9, 6)


def test_a_jpeg_of_too_many_pixels_is_decoded_at_reduced_size_and_an_ordinary_one_exactly():
    smooth = np.linspace(0, 255, 2400 * 3600).reshape(2400, 3600).astype(np.uint8)
    jpeg = encoded(Image.fromarray(smooth), "JPEG")
    assert open_image(jpeg).size == (3600, 2400)
    reduced = open_image(jpeg, max_pixels=2_200_000)
    assert reduced.size == (1800, 1200)
    exact = Image.open(io.BytesIO(jpeg)).convert("RGB").resize(reduced.size, Image.Resampling.BOX)
    assert np.abs(np.asarray(reduced, int) - np.asarray(exact, int)).mean() < 1
    with pytest.raises(ImageError, match="more than the 1000000 pixels"):  # a quarter would be 600 pixels high
        open_image(jpeg, max_pixels=1_000_000)


@pytest.mark.parametrize(
    ("kind", "max_pixels", "scale"), [("JPEG", 5_000_000, 4), ("JPEG", 1_200_000, 8), ("MPO", 5_000_000, 4)]
)
def test_a_jpeg_is_reduced_to_a_quarter_or_an_eighth_where_a_half_is_too_much(kind, max_pixels, scale):
    several = {"save_all": True, "append_images": [Image.new("L", (8, 8))]} if kind == "MPO" else {}
    jpeg = encoded(Image.new("L", (8200, 8193)), kind, **several)
    assert open_image(jpeg, max_pixels=max_pixels).size == (8200 // scale, -(-8193 // scale))


def test_pillows_own_bound_comes_before_neither_reducing_nor_ours(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    jpeg = encoded(Image.new("L", (2400, 2400)), "JPEG")
    assert open_image(jpeg, max_pixels=5_000_000).size == (1200, 1200)
    assert open_image(jpeg).size == open_image(encoded(Image.new("L", (2400, 2400)), "PNG")).size == (2400, 2400)
    webp = encoded(Image.new("L", (2400, 2400)), "WEBP")  # has the bound inside
    with pytest.raises(ImageError, match="more than the 2000000 pixels that are read"):
        open_image(webp)


def test_an_array_has_the_bound_of_a_file():
    for array in (np.zeros((6, 9, 3), np.uint8), np.zeros((6, 9, 1), np.uint8), jnp.zeros((6, 9), jnp.uint8)):
        with pytest.raises(ImageError, match="the given array: 9 x 6 is 54 pixels, more than the 53 pixels"):
            open_image(array, max_pixels=53)
        assert open_image(array, max_pixels=54).size == (9, 6)


@pytest.mark.parametrize("name", ["2-bit grey", "16-bit RGB"])
def test_a_picture_of_the_caller_stays_as_it_is_and_opens_alike_again(name):
    depth, kind, samples, key, expected = KEYED[name]
    data = png(depth, kind, bytes(samples), len(expected), key=struct.pack(f">{len(key)}H", *key))
    image = Image.open(io.BytesIO(data))
    before = dict(image.info)
    for _ in range(2):
        np.testing.assert_array_equal(pixels(image)[0], expected)
    assert image.info == before
    image.load()


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "bytes_per_pixel"), [("RGB", 4.5), ("RGBA", 8), ("L", 5.5), ("I;16", 7.5)])
def test_the_largest_picture_takes_a_few_bytes_a_pixel(tmp_path, mode, bytes_per_pixel):
    path = tmp_path / "large.png"
    Image.new(mode, (8000, 8000)).save(path, compress_level=1)
    script = (
        "import resource, sys; from sparsevlm_jax.processing import open_image, PixelConfig, preprocess\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "before = peak(); image = open_image(sys.argv[1])\n"
        "preprocess(image, PixelConfig.square(336)); print((peak() - before) / 64e6)"
    )
    out = subprocess.run([sys.executable, "-c", script, path], check=True, capture_output=True, text=True).stdout
    assert float(out) < bytes_per_pixel


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
