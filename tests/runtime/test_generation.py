"""generate and stream: programs are reused, draws belong to their row, pieces make the whole, reports add up."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sparsevlm_jax as sv
from sparsevlm_jax import vlm as answers
from sparsevlm_jax.runtime import run as host
from sparsevlm_jax.runtime.decode import Sampling, restrict
from tests.tiny import random_image

PROMPTS = ["What is written on the blue sign?", "how many dogs?", "a red car <image> and a bicycle <image> where?"]
IMAGES = [random_image(0), None, [random_image(1), random_image(2)]]
HALF = sv.SparsityConfig.sparsevlm("1/2")
SAMPLED: dict[str, Any] = dict(sparsity=HALF, max_new_tokens=6, temperature=1.0)


@pytest.fixture(scope="module")
def vlm(tiny_checkpoint):
    return sv.load(tiny_checkpoint)


def programs() -> tuple[int, int, int]:
    return host._encode.size, host._prefill.size, answers._decode.size


def test_a_second_prompt_in_the_bucket_compiles_nothing(vlm):
    first = sv.generate(vlm, PROMPTS[0], IMAGES[0], sparsity=HALF, max_new_tokens=6)
    before = programs()
    second = sv.generate(vlm, "how many people are in the picture?", random_image(3), sparsity=HALF, max_new_tokens=9)
    assert programs() == before
    assert first.report.timing.compile_ms >= 0 and second.report.timing.compile_ms == 0


@pytest.mark.slow
def test_another_budget_is_another_prefill(vlm):
    sv.generate(vlm, PROMPTS[0], IMAGES[0], sparsity=HALF, max_new_tokens=6)
    before = programs()
    sv.generate(vlm, PROMPTS[0], IMAGES[0], sparsity=sv.SparsityConfig.sparsevlm("2/3"), max_new_tokens=6)
    assert (programs()[0], programs()[1]) == (before[0], before[1] + 1)


@pytest.mark.slow
def test_a_batch_is_its_prompts_one_by_one(vlm):
    together = sv.generate(vlm, PROMPTS, IMAGES, sparsity=HALF, max_new_tokens=6)
    for prompt, image, row in zip(PROMPTS, IMAGES, together, strict=True):
        alone = sv.generate(vlm, prompt, image, sparsity=HALF, max_new_tokens=6)
        assert (alone.text, alone.tokens.tolist()) == (row.text, row.tokens.tolist())
        assert alone.report.visual_tokens == row.report.visual_tokens


@pytest.mark.slow
def test_draws_of_a_row_do_not_depend_on_the_batch(vlm):
    together = sv.generate(vlm, PROMPTS, IMAGES, seed=[1, 2, 3], **SAMPLED)
    for seed, prompt, image, row in zip([1, 2, 3], PROMPTS, IMAGES, together, strict=True):
        assert sv.generate(vlm, prompt, image, seed=seed, **SAMPLED).tokens.tolist() == row.tokens.tolist()


def test_a_seed_says_what_is_drawn(vlm):
    one, again, other = (sv.generate(vlm, PROMPTS[0], IMAGES[0], seed=seed, **SAMPLED).tokens for seed in (5, 5, 6))
    assert one.tolist() == again.tolist() != other.tolist()


def test_the_coldest_draw_is_the_greedy_one(vlm):
    greedy = sv.generate(vlm, PROMPTS[0], IMAGES[0], sparsity=HALF, max_new_tokens=6)
    colder: Any = (dict(temperature=1e-6), dict(temperature=1.0, top_k=1), dict(temperature=1.0, top_p=1e-9))
    for options in colder:
        drawn = sv.generate(vlm, PROMPTS[0], IMAGES[0], sparsity=HALF, max_new_tokens=6, **options)
        assert drawn.tokens.tolist() == greedy.tokens.tolist()


restrict_jit = jax.jit(restrict)


@given(
    seed=st.integers(0, 999),
    temperature=st.sampled_from([0.1, 0.7, 1.0, 3.0]),
    top_k=st.integers(0, 14),
    top_p=st.floats(2**-7, 1, width=32),
)
def test_restrict_keeps_the_nucleus_of_the_most_likely(seed, temperature, top_k, top_p):
    logits = np.random.default_rng(seed).normal(size=(2, 12)).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), 2)
    sampling = Sampling(keys, jnp.float32(temperature), jnp.int32(top_k), jnp.float32(top_p))
    out = np.asarray(restrict_jit(logits, sampling))
    for row, got in zip(logits.astype(np.float64) / temperature, out, strict=True):
        ranked = np.argsort(-row)[: top_k or None]
        probability = np.exp(row[ranked] - row[ranked[0]])
        before = np.cumsum(probability / probability.sum()) - probability / probability.sum()
        if np.abs(before - top_p).min() < 1e-5:
            continue  # which side of the edge a token is on is rounding
        kept = ranked[(before < top_p) | (np.arange(len(ranked)) == 0)]
        assert sorted(np.flatnonzero(np.isfinite(got))) == sorted(kept)
        np.testing.assert_allclose(got[kept], row[kept] - row.max(), rtol=1e-5, atol=1e-6)


def test_equally_likely_tokens_go_by_id():
    sampling = Sampling(jax.random.split(jax.random.key(0), 1), jnp.float32(1), jnp.int32(2), jnp.float32(1))
    assert np.isfinite(restrict(jnp.zeros((1, 5)), sampling))[0].tolist() == [True, True, False, False, False]


@pytest.mark.parametrize(
    ("options", "pieces_at_least"),
    [({}, 1), ({"temperature": 1.0, "seed": 3, "top_k": 50, "top_p": 0.9}, 2)],  # greedy is half a character, here
)
def test_streamed_pieces_make_the_text_that_generate_returns(vlm, options, pieces_at_least):
    options = options | dict(sparsity=HALF, max_new_tokens=12)
    pieces = list(sv.stream(vlm, PROMPTS[0], IMAGES[0], **options))
    assert "".join(pieces) == sv.generate(vlm, PROMPTS[0], IMAGES[0], **options).text
    assert len(pieces) >= pieces_at_least and all(pieces)


def test_the_report_counts_what_entered_the_layers(vlm):
    text = sv.generate(vlm, PROMPTS[2], IMAGES[2], sparsity=HALF, max_new_tokens=1).report
    assert text.visual_tokens[0] == 32 and text.visual_tokens[-1] < 32
    assert len(text.visual_tokens) == 4 and list(text.visual_tokens) == sorted(text.visual_tokens, reverse=True)
    assert text.mean_entering_layers == sum(text.visual_tokens) / 4 > text.mean_after_layers
    assert text.mean_after_layers == pytest.approx(16, abs=2)
    assert text.overflow == (0, 0, 0)
    assert text.flops < text.flops_dense and text.paper_macs < text.paper_macs_dense
    width = 2 * 4 * 16 * 4  # keys and values, heads, head dim, bytes
    assert text.kv_bytes == sum(v + text.text_tokens for v in text.visual_tokens) * width
    assert text.kv_bytes_dense == 4 * (32 + text.text_tokens) * width
    dense = sv.generate(vlm, PROMPTS[2], IMAGES[2], sparsity=None, max_new_tokens=1).report
    assert (dense.flops, dense.kv_bytes, dense.method) == (text.flops_dense, text.kv_bytes_dense, "dense")
    assert dense.mean_after_layers == dense.mean_entering_layers == 32


def test_a_report_is_json(vlm):
    report = sv.generate(vlm, PROMPTS[1], sparsity=HALF, max_new_tokens=1).report
    read = json.loads(json.dumps(report.to_dict()))
    assert read["visual_tokens"] == [0, 0, 0, 0] and read["timing"]["encode_ms"] is None
    assert read["timing"]["decode_ms_per_token"] is None
