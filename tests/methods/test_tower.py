"""VisionZip and PruMerge+ between the tower and the projector: re-computed with loops, at sizes nobody has recorded."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsevlm_jax import methods
from sparsevlm_jax.methods.plain import cells
from sparsevlm_jax.models import init_params
from sparsevlm_jax.models.families import llava
from sparsevlm_jax.models.nn.params import bind
from sparsevlm_jax.models.towers.clip import ClipVisionModel
from sparsevlm_jax.sparsify import SparsityConfig, TowerOutput, TowerReduction
from tests.marks import quick

from .reference import cosine, top
from .test_model import CONFIG, encode, model

__all__ = ["model"]

PATCHES, IMAGES = 16, 2
NAMES = ("visionzip", "prumerge-plus")


def reducing(name: str, count: int) -> tuple[SparsityConfig, TowerReduction]:
    config = methods.create(name, count)
    assert config and isinstance(config.merging, TowerReduction)
    return config, config.merging


@pytest.fixture(scope="module")
def tower() -> TowerOutput:
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=(IMAGES, *shape)), jnp.float32)  # noqa: E731
    tokens = PATCHES + 1
    return TowerOutput(draw(tokens, 12), draw(tokens, 2, 6), draw(tokens, 2, 6), 3 * draw(12), draw(tokens, 12))


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def visionzip(hidden, q, k, count: int) -> tuple[list[np.ndarray], list[int]]:
    """Tokens, and the patches (from 1) that the dominant and the contextual ones stand at."""
    attention = np.mean([softmax(k[:, head] @ q[0, head] / np.sqrt(q.shape[2])) for head in range(2)], axis=0)
    contextual = int(np.floor(count * 10 / 64 + 0.5))
    dominant = sorted(1 + i for i in top(attention[1:], count - contextual - 1))
    rest = [i for i in range(1, PATCHES + 1) if i not in dominant]
    targets = rest[:: max(len(rest) // contextual, 1)][:contextual] if contextual else []
    groups: dict[int, list[int]] = {target: [] for target in targets}
    for i in rest:
        if i not in targets and targets:
            groups[max(targets, key=lambda t, i=i: cosine(k[i].mean(axis=0), k[t].mean(axis=0)))].append(i)
    merged = [hidden[t] + (hidden[group].mean(axis=0) if group else 0) for t, group in groups.items()]
    return [hidden[0], *hidden[dominant], *merged], dominant + targets


def prumerge_plus(hidden, query, keys, count: int) -> tuple[list[np.ndarray], list[int]]:
    """Tokens, and the patches (from 1) that all but the last stand at."""
    attention = softmax(keys @ query / np.sqrt(len(query)))[1:]
    low, high = np.percentile(attention, [25, 75])
    order = [i for i in top(attention, PATCHES) if attention[i] > high + 1.5 * (high - low)][: count - 1]
    wanted = count - 1 - len(order)
    grids = [[i for i in range(PATCHES) if i not in order]]  # all of them, the last one too
    grids += [[i for i in range(0, PATCHES - 1, n) if i not in order] for n in range(2, PATCHES + 1)]
    least = min(len(grid) for grid in grids if len(grid) >= wanted)
    published = max(PATCHES // max(3 * len(order), 1), 1)
    fitting = [n for n, grid in enumerate(grids, 1) if len(grid) == least]
    grid = grids[min(fitting, key=lambda n: (abs(n - published), n)) - 1]
    kept = order + [grid[i * len(grid) // wanted] for i in range(wanted)]
    tokens = []
    for i in kept:
        near = top([-np.inf if i == j else cosine(keys[1 + i], keys[1 + j]) for j in range(PATCHES)], PATCHES)
        near = near[: min(32, PATCHES - 1)]
        tokens.append(hidden[1 + i] + attention[near] @ hidden[1:][near])
    dropped = [i for i in range(PATCHES) if i not in kept]
    return [*tokens, attention[dropped] @ hidden[1:][dropped]], [1 + i for i in kept]


@functools.partial(jax.jit, static_argnames=("merging", "count"))
def reduce(tower: TowerOutput, merging: TowerReduction, count: int):
    return merging.reduce(tower, count)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", range(1, PATCHES))
def test_every_count_gives_the_tokens_that_loops_give(name, count, tower):
    tokens = reduce(tower, reducing(name, count)[1], count)
    for image in range(IMAGES):
        hidden, q, k, query, keys = (np.asarray(field[image], np.float64) for field in tower)
        if name == "visionzip":
            expected, places = visionzip(hidden, q, k, count)
            stand = tokens.origin[image, 1:].tolist()
        else:
            expected, places = prumerge_plus(hidden, query, keys, count)
            stand = tokens.origin[image, :-1].tolist()
        np.testing.assert_allclose(tokens.hidden[image], expected, rtol=1e-5, atol=1e-5)
        assert stand == places
        everywhere = tokens.origin[image].tolist()
        assert len(set(everywhere)) == count and set(everywhere) <= set(range(1, PATCHES + 1)), "a place for each"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", quick([1, 5, 10, PATCHES - 1], {"5"}))
def test_tokens_merge_before_the_projector_which_is_not_linear(model, name, count):
    pixels = jnp.asarray(np.random.default_rng(5).normal(size=(IMAGES, 3, 28, 28)), jnp.float32)
    _, merging = reducing(name, count)
    packed = encode(model, pixels, False, merging)
    images = jax.tree.map(lambda field: field.reshape(IMAGES, PATCHES, *field.shape[1:]), packed)
    clip = bind(ClipVisionModel, CONFIG.vision, model["vision_tower"])
    seen = clip.output(pixels, CONFIG.tower_layers, implementation="xla")
    before = merging.reduce(seen, count)
    project = functools.partial(llava.project, model, config=CONFIG)
    rows = jnp.arange(IMAGES)[:, None]
    np.testing.assert_allclose(images.tokens[rows, before.origin - 1], project(before.hidden), atol=2e-5)
    assert jnp.count_nonzero(images.context.size, axis=1).tolist() == [count] * IMAGES
    assert images.context.order[rows, before.origin - 1].tolist() == [list(range(count))] * IMAGES
    after = merging.reduce(seen._replace(hidden=project(seen.hidden)), count).hidden
    off = jnp.abs(after - project(before.hidden)).max()
    assert (off > 1e-2) == bool((before.size > 1).any() or name == "prumerge-plus"), "a sum of projections is another"


def test_prumerge_asks_the_layer_after_the_features_and_visionzip_the_one_before(model):
    pixels = jnp.asarray(np.random.default_rng(6).normal(size=(IMAGES, 3, 28, 28)), jnp.float32)
    changed = jax.tree.map(lambda leaf: leaf, model)
    layers = changed["vision_tower"]["encoder"]["layers"]
    assert CONFIG.tower_layers == len(layers) - 1, "the last layer gives no features"
    projection = layers[str(len(layers) - 1)]["self_attn"]["k_proj"]
    projection["kernel"] = -projection["kernel"]
    for name in NAMES:
        _, merging = reducing(name, 6)
        one, other = (encode(params, pixels, False, merging).tokens for params in (model, changed))
        assert bool((one == other).all()) == (name == "visionzip")


def test_resize_averages_over_cells_of_equal_height():
    for side, count in ((24, 64), (24, 192), (24, 128), (24, 1), (24, 575), (24, 552), (4, 7), (3, 8)):
        areas, place = cells(side, count)
        assert areas.shape == (count, side * side) and sorted(set(place.tolist())) == place.tolist()
        np.testing.assert_allclose(areas.sum(axis=0), 1, rtol=1e-12)
        _, merging = reducing("resize", count)
        hidden = jnp.asarray(np.random.default_rng(count).normal(size=(1, side * side + 1, 3)), jnp.float32)
        nothing = jnp.zeros((1, side * side + 1, 1, 1))
        tokens = merging.reduce(TowerOutput(hidden, nothing, nothing, nothing[:, 0, 0], nothing[..., 0]), count)
        whole = jnp.einsum("IT,ITD->D", tokens.size, tokens.hidden)
        np.testing.assert_allclose(whole, hidden[0, 1:].sum(axis=0), rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(tokens.size.sum(), side * side, rtol=1e-6)
    blocks = np.kron(np.arange(64).reshape(8, 8), np.ones((3, 3))).reshape(-1)
    np.testing.assert_allclose(cells(24, 64)[0], blocks == np.arange(64)[:, None], atol=1e-12)
    assert cells(24, 64)[1][:9].tolist() == [25, 28, 31, 34, 37, 40, 43, 46, 97]


@pytest.mark.parametrize(("count", "contextual"), [(1, 10), (2, 100), (3, 1000)])
def test_a_visionzip_of_few_tokens_keeps_a_dominant_one(tower, count, contextual):
    config = methods.create("visionzip", count, dominant=1, contextual=contextual)
    assert config and isinstance(config.merging, TowerReduction)
    tokens = config.merging.reduce(tower, count)
    assert tokens.hidden.shape[1] == count and bool(jnp.isfinite(tokens.hidden).all())


@pytest.mark.parametrize("name", ["visionzip", "prumerge-plus", "resize"])
def test_beside_a_class_token_that_is_kept_the_count_is_exact(name):
    config = dataclasses.replace(llava.dummy(), vision_feature_select_strategy="full")
    params, pixels = init_params(config), jnp.ones((1, 3, config.image_size, config.image_size))
    for count in (PATCHES - 1, PATCHES, PATCHES + 1):
        _, merging = reducing(name, count)
        seen = llava.encode(params, pixels, config=config, implementation="xla", merging=merging).context
        assert seen is not None and seen.size is not None
        assert (seen.size > 0).sum() == count == llava.tokens_left(config, merging)
