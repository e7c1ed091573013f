"""Whatever a user can hand over wrongly ends in one error of this library: from Python, and from the command line."""

import io
import struct
import traceback
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sparsevlm_jax as sv
from sparsevlm_jax import SparsityConfig, cli
from tests.tiny import random_image

PACKAGE = Path(sv.__file__).parent
PHOTO = random_image()


@pytest.fixture(scope="module")
def vlm(tiny_checkpoint) -> sv.VLM:
    return sv.load(tiny_checkpoint)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A folder with one good photograph and many bad ones."""
    folder = tmp_path_factory.mktemp("files")
    Image.fromarray(PHOTO).save(folder / "photo.png")
    (folder / "words.png").write_text("words")
    (folder / "empty.png").write_bytes(b"")
    (folder / "cut.png").write_bytes((folder / "photo.png").read_bytes()[:2000])
    (folder / "bomb.png").write_bytes(bomb(50_000, 50_000))
    (folder / "folder.png").mkdir()
    Image.fromarray(random_image(0, 2, 900)).save(folder / "strip.png")
    return folder


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims a huge picture."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def assert_refused(vlm: sv.VLM, message: str, **arguments: Any) -> None:
    """An error of ours, with that message, raised in our own code and not inside numpy, Pillow or JAX."""
    with pytest.raises((ValueError, OSError), match=message) as caught:
        sv.generate(vlm, **{"prompt": "What is it?", "max_new_tokens": 2, **arguments})
    origin = traceback.extract_tb(caught.value.__traceback__)[-1].filename
    assert Path(origin).is_relative_to(PACKAGE), origin


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.png", "no such image file: .*absent.png"),
        ("words.png", "words.png: not an image"),
        ("empty.png", "empty.png: the file is empty"),
        ("cut.png", "cut.png: damaged or truncated"),
        ("bomb.png", "bomb.png: .*pixels that are read"),
        ("folder.png", "got a folder: .*folder.png"),
        ("strip.png", "200 times longer than wide, got 900 x 2"),
    ],
)
def test_a_file_that_is_no_picture_is_refused_by_name(vlm, files, tiny_checkpoint, capsys, name, message):
    assert_refused(vlm, message, image=files / name)
    line = ["generate", "--model", str(tiny_checkpoint), "--prompt", "What is it?", "--image", str(files / name)]
    assert cli.main(line) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("sparsevlm: error: ") and err.count("\n") == 1


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_pictures_of_every_kind_and_of_one_pixel_are_answered(vlm, mode):
    for size in ((1, 1), (90, 60)):
        assert sv.generate(vlm, "What is it?", Image.new(mode, size), max_new_tokens=2).tokens.size


def test_a_photograph_held_sideways_is_answered_as_if_upright(vlm):
    exif = Image.Exif()
    exif[0x0112] = 8
    buffer = io.BytesIO()
    Image.fromarray(np.rot90(PHOTO, -1)).save(buffer, "PNG", exif=exif)
    sideways, upright = (sv.generate(vlm, "What is it?", image) for image in (buffer.getvalue(), PHOTO))
    np.testing.assert_array_equal(sideways.tokens, upright.tokens)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": ""}, "no words"),
        ({"prompt": " \n", "image": PHOTO}, "no words"),
        ({"prompt": "<image>", "image": PHOTO}, "no words"),
        ({"prompt": "What is <image>?"}, "1 <image> mark, got 0 images"),
        ({"prompt": "What is <image>?", "image": [PHOTO, PHOTO]}, "1 <image> mark, got 2 images"),
        ({"prompt": "<image> or <image>?", "image": PHOTO}, "2 <image> marks, got 1 images"),
        ({"prompt": []}, "at least one prompt"),
        ({"prompt": [{"role": "assistant", "content": "Yes."}]}, "last message to be the user's"),
        ({"prompt": ["a", "b"], "image": [PHOTO]}, "for each of 2 prompts, got 1 entries"),
        ({"prompt": ["a", "b"], "image": PHOTO}, "for each of 2 prompts, got one ndarray"),
        ({"prompt": ["What?", ""]}, "no words"),
        ({"prompt": "word " * 5000}, r"the prompt has \d+ tokens .* only 4096 positions"),
        ({"max_new_tokens": 5000}, r"the prompt has \d+ tokens and 5000 more .* only 4096 positions"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number >= 1, got 0"),
        ({"max_new_tokens": 2.5}, "max_new_tokens must be a whole number >= 1, got 2.5"),
        ({"temperature": -1.0}, "temperature must be 0 or more, got -1.0"),
        ({"temperature": float("nan")}, "temperature must be 0 or more, got nan"),
        ({"top_k": -1}, "top_k must be 0"),
        ({"top_p": 0.0}, "top_p must be above 0"),
        ({"top_p": 1.5}, "top_p must be above 0"),
        ({"prompt": ["a", "b"], "seed": [1, 2, 3]}, "one for each of 2 rows, got 3"),
        ({"image": np.zeros((4, 4, 3), np.float32)}, "array of uint8"),
        ({"image": np.zeros((0, 4, 3), np.uint8)}, r"got shape \[0, 4, 3\]"),
        ({"image": "https://example.org/cat.png"}, "download it first"),
    ],
    ids=str,
)
def test_a_question_that_cannot_be_answered_is_refused(vlm, arguments, message):
    assert_refused(vlm, message, **arguments)


@pytest.mark.parametrize("tokens", [0, -1, "0", "0/3", "4/3", 1.5, "150%", "many", "", None, True, float("nan"), "1/0"])
def test_a_budget_that_is_no_number_or_share_is_refused(tokens):
    with pytest.raises(ValueError, match="token"):
        SparsityConfig.sparsevlm(tokens=tokens)


@pytest.mark.parametrize("tokens", [1, 2, 17, 577, 10**6])
def test_a_budget_of_too_few_or_too_many_tokens_is_refused_or_met(vlm, tokens):
    """Of 16 image tokens: no more than there are, and no fewer than the layers before the first stage see anyway."""
    try:
        out = sv.generate(vlm, "What is it?", PHOTO, sparsity=SparsityConfig.sparsevlm(tokens=tokens), max_new_tokens=2)
    except ValueError as error:
        assert str(tokens) in str(error)
    else:
        assert out.report.mean_after_layers <= max(tokens, 16)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--tokens", "0"), "at least 1 token"),
        (("--tokens", "4/3"), "a share between 0 and 1"),
        (("--tokens", "many"), "expected a number of tokens (192) or a share"),
        (("--max-new-tokens", "0"), "max_new_tokens must be a whole number >= 1"),
        (("--max-new-tokens", "9999"), "only 4096 positions"),
        (("--temperature", "-1"), "temperature must be 0 or more"),
        (("--top-p", "2"), "top_p must be above 0"),
        (("--top-k", "-3"), "top_k must be 0"),
        (("--prompt", " "), "no words"),
        (("--prompt", "a <image> and an <image>?"), "2 <image> marks, got 1 images"),
        (("--stream", "--prompt", ""), "no words"),
        (("--json", "--prompt", ""), "no words"),
        (("--model", "nowhere"), "nowhere"),
    ],
    ids=str,
)
def test_the_command_line_refuses_in_one_line(files, tiny_checkpoint, capsys, option, message):
    common = [
        "generate",
        "--model",
        str(tiny_checkpoint),
        "--prompt",
        "What is it?",
        "--image",
        str(files / "photo.png"),
    ]
    assert cli.main([*common, *option]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("sparsevlm: error: ") and err.count("\n") == 1 and message in err
