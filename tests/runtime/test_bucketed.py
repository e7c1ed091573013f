"""Budgets that depend on the image: bucketed segments compute what one padded program computes, in shorter buffers."""

import dataclasses

import numpy as np
import pytest

import sparsevlm_jax as sv
from sparsevlm_jax.runtime import bucketed
from sparsevlm_jax.runtime.bucketed import ladder
from sparsevlm_jax.runtime.run import Run
from sparsevlm_jax.sparsify import RankScale, SparsityConfig
from tests.marks import sampled

pytestmark = pytest.mark.slow

PICTURES = [np.random.default_rng(seed).integers(0, 256, (60, 80, 3), np.uint8) for seed in (0, 1)]
PROMPTS = ["What is written on the blue sign?", "how many dogs?", "a red car <image> and a bicycle <image> where?"]
IMAGES = [PICTURES[0], None, PICTURES]
METHODS = {
    "v1.0": SparsityConfig(budget=RankScale(0.8), layers=(1, 2), name="v1.0"),
    "stable rank": SparsityConfig(budget=RankScale(4.0, 1.0, measure="stable"), layers=(1,), name="stable"),
    "paper": SparsityConfig.paper(0.8),
    "bounded": SparsityConfig(budget=RankScale(0.8, capacity=12), layers=(1, 2), recycle=None, name="bounded"),
}


@pytest.fixture(scope="module")
def vlm(tiny_checkpoint):
    return sv.load(tiny_checkpoint)


def prefill(vlm, method, adaptive):
    return Run(vlm, PROMPTS, IMAGES, dataclasses.replace(method, adaptive=adaptive), 4).prefill()


@pytest.mark.parametrize("name", sampled(METHODS, ("paper", "bounded")))
def test_bucketed_equals_padded(vlm, name):
    padded, short = (prefill(vlm, METHODS[name], adaptive) for adaptive in ("padded", "bucketed"))
    np.testing.assert_allclose(short.logits, padded.logits, atol=1e-5 * float(np.abs(padded.logits).max()))
    for ours, theirs in (
        (short.visual_count, padded.visual_count),
        (short.wanted, padded.wanted),
        (short.state.cache.length, padded.state.cache.length),
        (short.state.next_position, padded.state.next_position),
    ):
        np.testing.assert_array_equal(ours, theirs)
    assert short.state.cache.nbytes < padded.state.cache.nbytes


def test_rows_do_not_feel_their_neighbours(vlm):
    method = METHODS["v1.0"]
    together = sv.generate(vlm, PROMPTS, IMAGES, sparsity=method, max_new_tokens=4)
    for prompt, image, row in zip(PROMPTS, IMAGES, together, strict=True):
        alone = sv.generate(vlm, prompt, image, sparsity=method, max_new_tokens=4)
        assert list(alone.tokens) == list(row.tokens)
        assert alone.report.visual_tokens == row.report.visual_tokens


def test_the_same_sizes_compile_once(vlm):
    prefill(vlm, METHODS["v1.0"], "bucketed")
    before = bucketed._first.size, bucketed._next.size
    prefill(vlm, METHODS["v1.0"], "bucketed")
    assert (bucketed._first.size, bucketed._next.size) == before


def test_a_capacity_clamps_and_the_overflow_is_reported(vlm):
    method = SparsityConfig(budget=RankScale(100.0, capacity=5), layers=(1,), adaptive="padded", name="clamped")
    with pytest.warns(UserWarning, match="overflow"):
        out = sv.generate(vlm, PROMPTS[0], PICTURES[0], sparsity=method, max_new_tokens=1)
    assert out.report.overflow == (10,)  # 15 of 16 wanted, 5 held
    assert out.report.visual_tokens[2] == 5 + 1  # 11 dropped: 4 candidates, 1 cluster


def test_the_ladder_is_short_and_never_wastes_more_than_a_third():
    sizes = {ladder(tokens, 2880) for tokens in range(1, 2881)}
    assert len(sizes) < 20
    for tokens in range(8, 2881):
        assert tokens <= ladder(tokens, 2880) <= max(8, tokens * 3 // 2)
    assert ladder(5, 3) == 3
