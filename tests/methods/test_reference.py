"""Every method keeps the tokens that its paper, re-computed in plain NumPy, keeps."""

import numpy as np
import pytest

from . import reference
from .world import IMAGES, make_world, planned, pruned, run_stage

TOKENS = 10
KEEPS = {
    "fastv": reference.by_last_token,
    "pyramiddrop": reference.by_next_layer,
    "divprune": reference.divprune,
    "cdpruner": reference.cdpruner,
    "dart": reference.dart,
    "uniform": reference.uniform,
    "tome": reference.in_the_tower,
    "visionzip": reference.in_the_tower,
    "prumerge-plus": reference.in_the_tower,
    "sparsevlm-diverse": reference.sparsevlm_diverse,
    "sparsevlm-simple": lambda row, count: reference.top(reference.by_raters(row), count),
    "sparsevlm-sized": lambda row, count: reference.top(reference.by_raters(row), count),
}


def compare_kept(decision, row: int, expected: list[int], visual: int):
    kept = np.flatnonzero(np.asarray(decision.selection.is_kept[row]))
    assert kept.tolist() == sorted(expected)
    order = np.asarray(decision.selection.order[row])
    assert sorted(order[: len(kept)].tolist()) == kept.tolist(), "the first of the order are the kept ones"
    assert sorted(order.tolist()) == list(range(len(order))) and set(order[:visual]) == set(range(visual))


def rows_with_images(world):
    return [(b, row) for b, row in enumerate(reference.rows_of(world)) if IMAGES[b]]


def visual_tokens(stream, row: int) -> np.ndarray:
    return np.asarray(stream.hidden[row], np.float64)[np.asarray(stream.is_visual[row])]


@pytest.mark.parametrize("name", sorted(KEEPS))
def test_the_tokens_of_the_paper_are_kept(name):
    config = pruned(name, TOKENS)
    world = make_world(config)
    plan, decision, left, recycled = run_stage(world, config)
    for b, row in rows_with_images(world):
        count = int(decision.selection.count[b])
        assert count == planned(world, plan, b) < len(row.visual)
        expected = KEEPS[name](row, count)
        compare_kept(decision, b, expected, len(row.visual))
        if recycled is None:
            as_read = expected if config.merging else sorted(expected)
            np.testing.assert_allclose(visual_tokens(left, b), row.visual[as_read], rtol=1e-6)


def test_random_is_a_choice_of_the_seed_alone():
    kept = {}
    for seed in (0, 0, 1):
        config = pruned("random", TOKENS, seed=seed)
        _, decision, _, _ = run_stage(make_world(config, seed=7 * seed), config)
        again = np.asarray(decision.selection.is_kept)
        assert again.sum(axis=1).tolist() == [TOKENS, TOKENS, 0]
        assert seed not in kept or np.array_equal(kept[seed], again)
        kept[seed] = again
    assert not np.array_equal(kept[0], kept[1])


def test_fastv_counts_its_layer_from_one_as_the_paper_does():
    assert pruned("fastv", 192).pruning_layers(32) == (1,)
    assert pruned("fastv", 192, layer=3).pruning_layers(32) == (2,)


@pytest.mark.parametrize("depth", [4, 12, 16, 24, 32, 40, 48, 80])
def test_pyramiddrop_prunes_after_each_quarter_of_the_layers(depth):
    run = [layer + 1 for layer in pruned("pyramiddrop", 192).pruning_layers(depth)]
    assert run == [depth // 4, depth // 2, 3 * depth // 4]
