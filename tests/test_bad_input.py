"""Whatever a user can hand over wrongly ends in one error of this library: from Python, and from the command line."""

import io
import re
import struct
import traceback
import zlib
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import sparsevlm_jax as sv
from sparsevlm_jax import SparsityConfig, arguments, cli, methods
from sparsevlm_jax.runtime import decode
from sparsevlm_jax.sparsify import Tokens
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


def assert_refused(vlm: sv.VLM, message: str, /, **arguments: Any) -> None:
    """An error of ours, with that message, raised in our own code and not inside numpy, Pillow or JAX."""
    with pytest.raises((ValueError, OSError), match=message) as caught:
        given: dict[str, Any] = {"vlm": vlm, "prompt": "What is it?", "max_new_tokens": 2, **arguments}
        sv.generate(**given)
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
        ({"prompt": ["What?", ""]}, "no words"),
        ({"prompt": "word " * 5000}, r"the prompt has \d+ tokens .* only 4096 positions"),
        ({"max_new_tokens": 5000}, r"the prompt has \d+ tokens and 5000 more .* only 4096 positions"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number >= 1, got 0"),
        ({"max_new_tokens": 2.5}, "max_new_tokens must be a whole number >= 1, got 2.5"),
        ({"temperature": -1.0}, "temperature must be a finite number >= 0, got -1.0"),
        ({"temperature": float("nan")}, "temperature must be a finite number >= 0, got nan"),
        ({"temperature": 10**400}, "temperature must be a finite number >= 0, got a whole number of 1329 bits"),
        ({"temperature": "0.5"}, "temperature must be a finite number >= 0, got '0.5'"),
        ({"temperature": np.zeros(2)}, "temperature must be a finite number >= 0, got an array"),
        ({"top_k": -1}, "top_k must be a whole number >= 0"),
        ({"top_k": 2.5}, "top_k must be a whole number >= 0, got 2.5"),
        ({"top_k": True}, "top_k must be a whole number >= 0, got True"),
        ({"top_p": 0.0}, "top_p must be a number above 0"),
        ({"top_p": 1.5}, "top_p must be a number above 0"),
        ({"seed": 2**32}, "seed must be a whole number <= 4294967295, got 4294967296"),
        ({"seed": -1}, "seed must be a whole number >= 0, got -1"),
        ({"seed": 1.0}, "seed must be a whole number >= 0, got 1.0"),
        ({"seed": []}, "seed must be a list of at least 1"),
        ({"sparsity": "magic"}, "sparsity must be a SparsityConfig, .*fastv.* got 'magic'"),
        ({"sparsity": 0}, "sparsity must be a number of tokens"),
        ({"sparsity": SparsityConfig}, "sparsity must be a SparsityConfig"),
        ({"sparsity": np.ones(3)}, "sparsity must be a SparsityConfig"),
        ({"vlm": None}, "vlm must be a model that `load` gave, got None"),
        ({"vlm": sv.VLM}, "vlm must be a model that `load` gave"),
        ({"prompt": None}, "prompt must be a text, chat messages, or a list of either, got None"),
        ({"prompt": {"role": "user", "content": "a"}}, "prompt must be a text"),
        ({"prompt": (p for p in "ab")}, "prompt must be a text"),
        ({"prompt": {"a", "b"}}, "prompt must be a text"),
        ({"prompt": b"what?"}, "prompt must be a text"),
        ({"prompt": ["a", "b"], "seed": [1, 2, 3]}, "one for each of 2 rows, got 3"),
        ({"image": np.zeros((4, 4, 3), np.float32)}, "array of uint8"),
        ({"image": np.zeros((0, 4, 3), np.uint8)}, r"got shape \[0, 4, 3\]"),
        ({"image": "https://example.org/cat.png"}, "download it first"),
    ],
    ids=lambda given: given if isinstance(given, str) else None,  # parallel workers must agree on names
)
def test_a_question_that_cannot_be_answered_is_refused(vlm, arguments, message):
    assert_refused(vlm, message, **arguments)


@pytest.mark.parametrize("tokens", [0, -1, "0", "0/3", "4/3", 1.5, "150%", "many", "", None, True, float("nan"), "1/0"])
def test_a_budget_that_is_no_number_or_share_is_refused(tokens):
    with pytest.raises(ValueError, match="token"):
        SparsityConfig.sparsevlm(tokens=tokens)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: SparsityConfig(budget=cast(Any, 3)),
            "budget must be a FixedBudget (with table, check, number) or an AdaptiveBudget (with ",
        ),
        (
            lambda: SparsityConfig(budget=Tokens(8), score=cast(Any, 3)),
            "score must be a Scorer (with needs, ",
        ),
        (lambda: SparsityConfig(budget=Tokens(8), select=cast(Any, 3)), "select must be a Selector (with "),
        (
            lambda: SparsityConfig(budget=Tokens(8), recycle=cast(Any, 3)),
            "recycle must be a Recycler (with needs, candidate_count",
        ),
        (
            lambda: SparsityConfig(budget=Tokens(8), merging=cast(Any, 3)),
            "merging must be a TowerMerging (with schedule, merge) or a TowerReduction (with needs, count, reduce",
        ),
        (lambda: Tokens(8, curve=cast(Any, 3)), "curve must be a Curve (with shares, exact)"),
    ],
    ids=["budget", "score", "select", "recycle", "merging", "curve"],
)
def test_a_part_of_another_class_is_refused_by_the_name_of_its_own(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


@pytest.mark.parametrize("tokens", [1, 3])
def test_a_budget_of_fewer_tokens_than_the_first_layers_see_anyway_is_refused(vlm, tokens):
    """The first of 4 layers sees all 16 image tokens: 4 on average."""
    with pytest.raises(ValueError, match=f"a budget of {tokens} visual tokens is below the floor of 4"):
        sv.generate(vlm, "What is it?", PHOTO, sparsity=SparsityConfig.sparsevlm(tokens=tokens))


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [8, 12])
def test_a_budget_that_can_be_met_is_met(vlm, tokens):
    out = sv.generate(vlm, "What is it?", PHOTO, sparsity=SparsityConfig.sparsevlm(tokens=tokens), max_new_tokens=2)
    assert tokens - 0.5 < out.report.mean_after_layers <= tokens


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sparsevlm", "fastv", "tome"])
def test_a_budget_above_what_there_is_prunes_nothing_and_says_so_once(vlm, method):
    config = methods.create(method, 17)
    options: Any = dict(sparsity=config, max_new_tokens=2)
    with pytest.warns(UserWarning, match="17 visual tokens is more than the 16 that a prompt has") as said:
        outs = sv.generate(vlm, ["What is it?", "Where?", "No picture?"], [PHOTO, PHOTO, None], **options)
    assert len(said) == 1 and said[0].filename == __file__
    assert outs[0].report.visual_tokens == (16,) * 4
    sv.generate(vlm, "No picture?", **options)  # nothing to prune, nothing to say: warnings are errors here


@pytest.mark.parametrize("sparsity", ["1/2", 8, "8", "50%", 0.5, np.int64(8), "fastv", "dense", None])
def test_sparsity_is_a_config_an_amount_or_a_methods_name(sparsity):
    eight, half = SparsityConfig.sparsevlm(8), SparsityConfig.sparsevlm("1/2")
    meant = {"fastv": methods.create("fastv", "1/3"), "dense": None, None: None, 8: eight, "8": eight}
    assert arguments.checked(sparsity=sparsity) == meant.get(sparsity, half)


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-40, 1e-38, 1e-30])
def test_at_a_temperature_near_0_the_most_likely_token_is_drawn(vlm, temperature):
    drawn, greedy = (sv.generate(vlm, "What is it?", PHOTO, max_new_tokens=8, temperature=t) for t in (temperature, 0))
    np.testing.assert_array_equal(drawn.tokens, greedy.tokens)


def test_a_temperature_without_bound_draws_all_tokens_alike():
    logits = jnp.array([[50.0, 0.0, -50.0, -jnp.inf]])
    for temperature in (1e38, 1e39, 1e300):
        sampling = decode.sampling(1, temperature, 0, 1.0, 0)
        assert sampling is not None
        assert jax.nn.softmax(decode.restrict(logits, sampling))[0] == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])


def test_numpys_numbers_are_numbers(vlm):
    def draw(n: Any, x: Any) -> Any:
        options = dict(max_new_tokens=n(4), temperature=x(1), top_k=n(5), top_p=x(1), seed=n(7))
        return sv.generate(vlm, "What is it?", PHOTO, **options)

    np.testing.assert_array_equal(draw(int, float).tokens, draw(np.int64, np.float32).tokens)
    assert arguments.checked(seed=np.array([1, 2])) == arguments.checked(seed=[1, np.uint32(2)]) == (1, 2)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--tokens", "0"), "tokens must be a number of tokens"),
        (("--tokens", "4/3"), "or a share of them"),
        (("--tokens", "many"), "got 'many'"),
        (("--max-new-tokens", "0"), "max_new_tokens must be a whole number >= 1"),
        (("--max-new-tokens", "9999"), "only 4096 positions"),
        (("--temperature", "-1"), "temperature must be a finite number >= 0"),
        (("--top-p", "2"), "top_p must be a number above 0"),
        (("--top-k", "-3"), "top_k must be a whole number >= 0"),
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
