"""Merging inside the tower: against plain NumPy, and the true price of it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsevlm_jax.methods.tome import PerImage, TokenMerging, merge_pairs
from sparsevlm_jax.models.families import llava
from sparsevlm_jax.processing import PictureSize
from sparsevlm_jax.sparsify import MergedTokens

from . import reference
from .test_model import CONFIG, encode, model

__all__ = ["model"]


def merged_by_hand(x, metric, size, count):
    """Section 3 of the paper, pair by pair: what is left of A, then B."""
    a, b = range(0, len(x), 2), range(1, len(x), 2)
    pairs = {i: max(b, key=lambda j, i=i: (reference.cosine(metric[i], metric[j]), -j)) for i in a if i != 0}
    closest = sorted(pairs, key=lambda i: (-reference.cosine(metric[i], metric[pairs[i]]), i))[: len(x) - count]
    groups = {i: [i] for i in [*a, *b] if i not in closest}
    for i in closest:
        groups[pairs[i]].append(i)
    mean = [(size[g][:, None] * x[g]).sum(axis=0) / size[g].sum() for g in groups.values()]
    return np.array(mean), np.array([size[g].sum() for g in groups.values()]), np.array(list(groups))


@pytest.mark.parametrize(("tokens", "count"), [(9, 8), (9, 5), (10, 7), (2, 2)])
def test_the_most_similar_pairs_of_the_two_halves_merge(tokens, count):
    rng = np.random.default_rng(tokens)
    x, metric = rng.normal(size=(2, tokens, 5)), rng.normal(size=(2, tokens, 4))
    size = rng.integers(1, 4, (2, tokens)).astype(float)
    origin = np.cumsum(rng.integers(1, 3, (2, tokens)), axis=1)
    ours = merge_pairs(MergedTokens(jnp.asarray(x), jnp.asarray(size), jnp.asarray(origin)), jnp.asarray(metric), count)
    for image in range(2):
        hidden, sizes, places = merged_by_hand(x[image], metric[image], size[image], count)
        np.testing.assert_allclose(ours.hidden[image], hidden, rtol=1e-5, atol=1e-6)
        assert ours.size[image].tolist() == sizes.tolist() and sizes.sum() == size[image].sum()
        assert ours.origin[image].tolist() == origin[image][places].tolist() and places[0] == 0


def tower_by_hand(tree, pixels, counts):
    """CLIP with proportional attention and merging, one picture, in float64: what is left, its sizes and places."""
    tree = tree["vision_tower"]
    linear = lambda p, x: x @ np.float64(p["kernel"]).T + np.float64(p["bias"])  # noqa: E731

    def norm(p, x):
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + CONFIG.vision.layer_norm_eps)
        return scaled * np.float64(p["scale"]) + np.float64(p["bias"])

    p, heads, embeddings = CONFIG.vision.patch_size, CONFIG.vision.num_attention_heads, tree["embeddings"]
    cells = [(r, c) for r in range(0, pixels.shape[1], p) for c in range(0, pixels.shape[2], p)]
    patches = np.array([pixels[:, r : r + p, c : c + p].reshape(-1) for r, c in cells])
    kernel = np.float64(embeddings["patch_embedding"]["kernel"])
    x = np.concatenate([[embeddings["class_embedding"]], patches @ kernel.T])
    x = norm(tree["pre_layrnorm"], x + np.float64(embeddings["position_embedding"]["embedding"]))
    size, origin = np.ones(len(x)), np.arange(len(x))
    for index, count in enumerate(counts):
        layer = tree["encoder"]["layers"][str(index)]
        y = norm(layer["layer_norm1"], x)
        q, k, v = (
            linear(layer["self_attn"][f"{n}_proj"], y).reshape(len(x), heads, -1).transpose(1, 0, 2) for n in "qkv"
        )
        weights = np.exp(q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[2])) * size
        out = (weights / weights.sum(axis=2, keepdims=True)) @ v
        x = x + linear(layer["self_attn"]["out_proj"], out.transpose(1, 0, 2).reshape(len(x), -1))
        x, size, places = merged_by_hand(x, k.mean(axis=0), size, count)
        origin = origin[places]
        hidden = linear(layer["mlp"]["fc1"], norm(layer["layer_norm2"], x))
        x = x + linear(layer["mlp"]["fc2"], hidden / (1 + np.exp(-1.702 * hidden)))
    return x[1:], size[1:], origin[1:] - 1


def by_image(encoded: Any) -> Any:
    """What was packed, image by image."""
    return jax.tree.map(lambda field: field.reshape(-1, 16, *field.shape[1:]), encoded)


def test_the_whole_tower_is_the_papers(model):
    pixels = np.random.default_rng(3).normal(size=(2, 3, 28, 28))
    merging = TokenMerging(PerImage(5))
    counts = merging.schedule(17, 3, 16, class_tokens=1)
    assert counts == (13, 9, 6)
    images = by_image(encode(model, jnp.asarray(pixels, jnp.float32), False, merging))
    assert images.context.size.sum(axis=1).tolist() == [16, 16], "every patch is in one token"
    for image in range(2):
        _, size, places = tower_by_hand(model, pixels[image], counts)
        filled = np.flatnonzero(np.asarray(images.context.size[image]))
        assert filled.tolist() == sorted(places)
        np.testing.assert_array_equal(images.context.size[image][places], size)
        assert images.context.order[image][places].tolist() == list(range(len(places)))
        assert not images.tokens[image][np.asarray(images.context.size[image]) == 0].any()


def test_features_of_the_tower_are_the_papers(model):
    pixels = np.random.default_rng(4).normal(size=(1, 3, 28, 28))
    merging = TokenMerging(PerImage(5))
    images = by_image(encode(model, jnp.asarray(pixels, jnp.float32), False, merging))
    features, _, places = tower_by_hand(model, pixels[0], merging.schedule(17, 3, 16, class_tokens=1))
    expected = llava.project(model, jnp.asarray(features, jnp.float32), config=CONFIG)
    np.testing.assert_allclose(images.tokens[0][places], expected, atol=2e-5)


@pytest.mark.parametrize("left", [1, 2, 9, 64, 192, 288, 575, 576])
def test_the_schedule_ends_where_the_budget_says_and_takes_as_many_in_every_layer(left):
    counts = TokenMerging(PerImage(left)).schedule(577, 23, 576, class_tokens=1)
    merged = -np.diff([577, *counts])
    assert counts[-1] == left + 1 and len(counts) == 23
    full = [m for m, entering in zip(merged, [577, *counts], strict=False) if m < (entering - 1) // 2]
    assert len(set(full[:-1])) <= 2 or left < 64, "the same r, but for the last layers"


def test_a_tower_that_cannot_merge_that_far_says_how_far():
    with pytest.raises(
        ValueError, match="2 layers and 16 tokens can merge down to 4 tokens of an image, the budget is 3"
    ):
        TokenMerging(PerImage(3)).schedule(17, 2, 16, class_tokens=1)
    assert TokenMerging(PerImage(4)).schedule(17, 2, 16, class_tokens=1) == (9, 5)


def test_flops_of_a_merging_tower_are_counted_layer_by_layer():
    merging = TokenMerging(PerImage(5))
    vision, d, m, width = CONFIG.vision, 32, 48, CONFIG.text.hidden_size
    macs = 16 * 3 * vision.patch_size**2 * d + 5 * (d * width + width * width)
    for entering, leaving in ((17, 13), (13, 9), (9, 6)):
        macs += 4 * entering * d * d + 2 * entering**2 * d + 2 * leaving * d * m
        macs += (entering // 2) * (entering - entering // 2) * vision.head_dim
    dense = llava.encoder_flops(CONFIG, [PictureSize(16)] * 3)
    assert llava.encoder_flops(CONFIG, [PictureSize(16)] * 3, merging) == 2 * 3 * macs < dense
    assert llava.encoder_flops(CONFIG, [PictureSize(16)] * 3, TokenMerging(PerImage(16))) == dense
