"""Costs are the published ones where the paper gives them, and both means are told apart."""

from typing import Any

import pytest

from sparsevlm_jax import methods
from sparsevlm_jax.models import LlavaConfig
from sparsevlm_jax.models.families import llava
from sparsevlm_jax.processing import PictureSize
from sparsevlm_jax.report import cost as accounting
from sparsevlm_jax.sparsify import Sizes, SparsityConfig

LAYERS, DEPTH, WORDS = (2, 6, 15), 32, 118
CONFIG = LlavaConfig.from_hf(
    {
        "model_type": "llava",
        "text_config": {"model_type": "llama", "vocab_size": 32064},
        "image_token_index": 32000,
    }
)  # LLaVA-1.5-7B
V15 = {192: (309, 204, 113), 128: (312, 117, 39), 96: (249, 55, 27), 64: (82, 32, 18)}  # leaving each stage
PLUS = {576: (576, 576, 576), 192: (300, 200, 118), 128: (238, 108, 60), 64: (66, 34, 20)}


def entering(leaving):
    return accounting.tokens_entering(576, LAYERS, leaving, DEPTH)


def test_tokens_entering_a_layer_fall_behind_each_pruning_layer():
    assert entering(V15[192]) == (576,) * 3 + (309,) * 4 + (204,) * 9 + (113,) * 16


@pytest.mark.parametrize(("tokens", "after", "true"), [(192, 192.03, 206.5), (128, 128.63, 145.4), (64, 64.81, 82.2)])
def test_the_papers_mean_and_the_true_one(tokens, after, true):
    counts = entering(V15[tokens])
    assert accounting.mean_after_layers(counts, V15[tokens][-1]) == pytest.approx(after, abs=6e-3)
    assert sum(counts) / DEPTH == pytest.approx(true, abs=6e-2)


@pytest.mark.parametrize(("tokens", "tera"), [(576, 4.62), (192, 2.135), (128, 1.721), (64, 1.311)])
def test_multiply_accumulates_are_the_papers_tflops(tokens, tera):
    macs = accounting.paper_macs([count + WORDS for count in entering(PLUS[tokens])], CONFIG.text)
    assert macs / 1e12 == pytest.approx(tera, abs=6e-3)


def test_cache_bytes_are_the_papers():
    assert accounting.kv_bytes([576] * 32, CONFIG.text, 2) / 1e6 == pytest.approx(302.0, abs=0.5)
    assert accounting.kv_bytes([192] * 32, CONFIG.text, 2) / 1e6 == pytest.approx(100.8, abs=0.5)


def test_exact_flops_are_two_per_multiply_accumulate_plus_the_head_less_what_nobody_reads():
    tokens = [700] * 32
    text = CONFIG.text
    head = 2 * text.hidden_size * text.vocab_size
    not_read = 2 * 699 * 3 * text.hidden_size * text.intermediate_size  # the last layer's feed-forward, but one token's
    assert accounting.decoder_flops(tokens, text) == 2 * accounting.paper_macs(tokens, text) + head - not_read


def test_feed_forwards_count_the_tokens_that_are_read():
    text, ffn = CONFIG.text, 2 * 3 * CONFIG.text.hidden_size * CONFIG.text.intermediate_size
    every = accounting.decoder_flops([700] * 32, text)
    assert accounting.decoder_flops([700] * 32, text, {2: 300, 6: 0}) == every - (400 + 700) * ffn


def test_encoder_flops_follow_the_layers_that_run():
    # CLIP ViT-L/14-336: 23 of its 24 layers on 577 tokens, 577 * (12 * 1024^2 + 2 * 577 * 1024) each; then a projector.
    layers = 23 * 577 * (12 * 1024**2 + 2 * 577 * 1024)
    patches, projector = 576 * 588 * 1024, 576 * (1024 * 4096 + 4096**2)
    assert llava.encoder_flops(CONFIG, [PictureSize(576)]) == 2 * (layers + patches + projector)
    assert llava.encoder_flops(CONFIG, []) == 0


SIZES = Sizes(text=30, visual=576, kept=300, candidates=83, merged=9, dim=4096, query_width=4096, key_width=1024)


def test_stage_costs_are_the_papers_formulas():
    cost = accounting.stage_cost(2, SparsityConfig.sparsevlm_v1(), SIZES, first=True)
    assert cost.raters == 2 * 30 * 576 * 4096
    assert cost.score == 30 * 576
    assert cost.count == 30 * 576 * 30
    assert cost.recycle == 83 * (3 * 83 - 1) * 2 * 4096 + 83 + 4096 * (83 - 9)
    assert cost.total == cost.raters + cost.score + cost.count + cost.recycle
    later = accounting.stage_cost(6, SparsityConfig.sparsevlm_plus(192), SIZES, first=False)
    assert (later.raters, later.count, later.recycle) == (0, 0, 0)


def test_every_part_of_a_method_counts():
    costs: dict[str, Any] = {}
    for name in methods.METHODS:
        sparsity = methods.create(name, "1/3")
        costs[name] = sparsity and accounting.stage_cost(2, sparsity, SIZES, first=True)
    assert costs["divprune"].select == 576**2 * 4096 and costs["cdpruner"].score == 30 * 576 * 4096
    projections = 4096 * (30 * 4096 + (30 + 576) * 1024)  # of the next layer
    assert costs["pyramiddrop"].score == costs["sparsevlm"].score + projections
    assert costs["sparsevlm-diverse"].recycle == costs["sparsevlm"].recycle > 0
    dense = llava.encoder_flops(CONFIG, [PictureSize(576)])
    created = {name: methods.create(name, 64) for name in ("visionzip", "prumerge-plus", "resize")}
    merging: dict[str, Any] = {name: sparsity and sparsity.merging for name, sparsity in created.items()}
    fewer = dict.fromkeys(merging, dense - 2 * (576 - 64) * (1024 * 4096 + 4096**2))
    for name, each in merging.items():
        cost = 2 * each.cost(576, 64, 1024, 64, class_tokens=1)
        assert llava.encoder_flops(CONFIG, [PictureSize(576)], each) == fewer[name] + cost
