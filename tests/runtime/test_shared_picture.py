"""Several questions about one picture: it is read and encoded once, and each answer is as if asked alone."""

import numpy as np
import pytest

import sparsevlm_jax as sv
from sparsevlm_jax.processing import Processor
from sparsevlm_jax.runtime import run as module
from sparsevlm_jax.sparsify import SparsityConfig
from tests.tiny import random_image

pytestmark = pytest.mark.slow

QUESTIONS = ["what is written on the blue sign?", "how many dogs?", "a red car"]


@pytest.fixture(scope="module")
def vlm(tiny_checkpoint):
    return sv.load(tiny_checkpoint)


@pytest.fixture
def encoded(monkeypatch) -> list[int]:
    """How many images each call to the tower was given."""
    counts, encode = [], module._encode
    monkeypatch.setattr(
        module,
        "_encode",
        lambda params, pixels, **rest: [counts.append(len(pixels)), encode(params, pixels, **rest)][1],
    )
    return counts


@pytest.mark.parametrize("method", ["sparsevlm", "visionzip"])  # the second also reads the tower's own attention
def test_one_picture_is_every_questions_and_is_encoded_once(vlm, encoded, method):
    picture = random_image()
    outs = sv.generate(vlm, QUESTIONS, picture, sparsity=method, max_new_tokens=6)
    assert encoded == [1]
    for question, out in zip(QUESTIONS, outs, strict=True):
        alone = sv.generate(vlm, question, picture, sparsity=method, max_new_tokens=6)
        np.testing.assert_array_equal(out.tokens, alone.tokens)
        assert out.report.visual_tokens == alone.report.visual_tokens


def test_a_picture_is_encoded_once_wherever_it_is_given_again(vlm, encoded):
    first, second = random_image(0), random_image(1)
    images = [first, [second, first], None]
    outs = sv.generate(vlm, QUESTIONS, images, max_new_tokens=6)
    copies = [first.copy(), [second.copy(), first.copy()], None]
    apart = sv.generate(vlm, QUESTIONS, copies, max_new_tokens=6)
    assert encoded == [2, 4] or encoded == [2, 3]  # three pictures are padded to the next shape
    for out, other in zip(outs, apart, strict=True):
        np.testing.assert_array_equal(out.tokens, other.tokens)


def test_a_trace_has_a_picture_for_each_mark(vlm):
    picture = random_image()
    trace = sv.trace_prefill(
        vlm, "is <image> the same as <image>?", [picture, picture], sparsity=SparsityConfig.sparsevlm("1/2")
    )
    assert len(trace.images) == 2 and np.array_equal(trace.images[0], trace.images[1])


def test_a_file_is_opened_once(vlm, tmp_path, monkeypatch):
    from PIL import Image

    Image.fromarray(random_image()).save(tmp_path / "street.png")
    opened, read = [], Processor.encode_images
    monkeypatch.setattr(Processor, "encode_images", lambda self, images: (opened.extend(images), read(self, images))[1])
    sv.generate(vlm, QUESTIONS, tmp_path / "street.png", max_new_tokens=2)
    assert opened == [tmp_path / "street.png"]
