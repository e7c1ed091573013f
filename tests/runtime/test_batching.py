"""Shapes come from short ladders, and what pads a batch changes nothing and costs no step."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparsevlm_jax as sv
from sparsevlm_jax import vlm as host
from sparsevlm_jax.runtime.batching import new_tokens_bucket, rung, text_bucket
from sparsevlm_jax.runtime.run import Run
from tests.tiny import random_image

PROMPTS = ["how many dogs?", "What is written on the blue sign?", "a red car <image> <image>?", "where?", "who?"]
IMAGES = [random_image(0), None, [random_image(1), random_image(2)], random_image(3), random_image(4)]
HALF = sv.SparsityConfig.sparsevlm("1/2")


@pytest.fixture(scope="module")
def vlm(tiny_checkpoint):
    return sv.load(tiny_checkpoint)


@pytest.mark.parametrize(
    ("ladder", "rungs"),
    [
        (rung, [1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80]),
        (text_bucket, [*range(32, 513, 32), *range(576, 1025, 64), *range(1152, 2049, 128)]),
        (new_tokens_bucket, [64, 128, 192, 256, 320, 384, 448, 512, 640, 768, 896, 1024, 1280]),
    ],
)
def test_a_ladder_holds_what_it_pads_and_has_few_rungs(ladder, rungs):
    assert sorted({ladder(count) for count in range(1, rungs[-1] + 1)}) == rungs
    for count in range(1, rungs[-1] + 1):
        assert ladder(count) == min(size for size in rungs if size >= count)


def test_padding_is_at_most_a_fifth_of_a_batch_and_a_ninth_of_a_long_text():
    assert max((rung(n) - n) / rung(n) for n in range(1, 5000)) < 1 / 5
    assert max((text_bucket(n) - n) / text_bucket(n) for n in range(257, 5000)) < 1 / 9
    assert max((new_tokens_bucket(n) - n) / new_tokens_bucket(n) for n in range(257, 5000)) < 1 / 5


def test_no_images_are_padded_to_none():
    assert rung(0) == 0


@pytest.mark.slow
def test_rows_of_padding_change_no_answer_and_no_report(vlm):
    options: Any = dict(sparsity=HALF, max_new_tokens=6)
    five = Run(vlm, PROMPTS, IMAGES, HALF, 6)
    assert (five.rows, len(five.batch.length), len(five.batch.pixel_values)) == (5, 6, 6)
    together = sv.generate(vlm, PROMPTS, IMAGES, **options)
    assert len(together) == 5
    for prompt, image, row in zip(PROMPTS, IMAGES, together, strict=True):
        alone = sv.generate(vlm, prompt, image, **options)
        assert (alone.text, alone.tokens.tolist()) == (row.text, row.tokens.tolist())
        if image is not None:  # a row without images has no stages alone, and empty ones beside others
            assert alone.report.to_dict() | {"timing": None} == row.report.to_dict() | {"timing": None}


@pytest.mark.slow
def test_draws_do_not_depend_on_padding(vlm):
    options: Any = dict(sparsity=HALF, max_new_tokens=6, temperature=1.0)
    together = sv.generate(vlm, PROMPTS, IMAGES, seed=[1, 2, 3, 4, 5], **options)
    last = sv.generate(vlm, PROMPTS[-1], IMAGES[-1], seed=5, **options)
    assert last.tokens.tolist() == together[-1].tokens.tolist()


@pytest.mark.parametrize(("rows", "steps"), [(1, 0), (2, 3), (None, 3)])
def test_decoding_does_not_wait_for_padding(vlm, rows, steps):
    prefilled = Run(vlm, PROMPTS[:2], None, None, 4).prefill()
    ends, goes_on = vlm.config.eos_token_ids[0], 5
    logits = jax.nn.one_hot(np.array([ends, goes_on]), prefilled.logits.shape[1])
    start = np.asarray(prefilled.state.next_position)
    rows = None if rows is None else jnp.int32(rows)
    (generated, state), _, _ = host._decode(
        vlm.params,
        logits,
        prefilled.state,
        jnp.int32(4),
        None,
        rows,
        config=vlm.config,
        implementation=vlm.implementation,
        buffer=64,
    )
    assert generated.count[0] == 1
    np.testing.assert_array_equal(np.asarray(state.next_position) - start, steps)
