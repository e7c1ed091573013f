"""Every method keeps the tokens that its paper, re-computed in plain NumPy, keeps; and merges what that merges."""

import numpy as np
import pytest

from . import reference
from .world import BEFORE, IMAGES, make_world, pruned, run_stage

TOKENS = 10
KEEPS = {
    "fastv": reference.by_last_token,
    "pyramiddrop": reference.by_last_token,
    "divprune": reference.divprune,
    "cdpruner": reference.cdpruner,
    "dart": reference.dart,
    "uniform": reference.uniform,
    "tome": reference.tome,
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
        assert plan.table and count == plan.table[IMAGES[b]] < len(row.visual)
        expected = KEEPS[name](row, count)
        compare_kept(decision, b, expected, len(row.visual))
        if recycled is None:
            np.testing.assert_allclose(visual_tokens(left, b), row.visual[sorted(expected)], rtol=1e-6)


def test_visionzip_keeps_the_dominant_and_merges_the_others_into_contextual_tokens():
    config = pruned("visionzip", TOKENS)
    world = make_world(config)
    plan, decision, left, recycled = run_stage(world, config)
    assert recycled and plan.table and plan.table[1] == 8 and plan.merged == 2  # 8 + 2 is 10
    for b, row in rows_with_images(world):
        dominant, contextual = reference.visionzip(row, int(decision.selection.count[b]))
        compare_kept(decision, b, dominant, len(row.visual))
        assert int(recycled.merged_count[b]) == len(contextual)
        assert float(recycled.size[b].sum()) == len(row.visual) - len(dominant), "every dropped token is merged once"
        expected = np.concatenate([row.visual[sorted(dominant)], contextual])
        np.testing.assert_allclose(visual_tokens(left, b), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("neighbours", [3, 32])
def test_prumerge_plus_keeps_outliers_then_a_grid_and_merges_neighbours_into_them(neighbours):
    config = pruned("prumerge-plus", TOKENS, neighbours=neighbours)
    world = make_world(config)
    _, decision, left, _ = run_stage(world, config)
    for b, row in rows_with_images(world):
        kept, becomes = reference.prumerge_plus(row, int(decision.selection.count[b]), neighbours)
        compare_kept(decision, b, kept, len(row.visual))
        expected = np.array([becomes[i] for i in sorted(kept)])
        np.testing.assert_allclose(visual_tokens(left, b), expected, rtol=1e-5, atol=1e-6)
        text = np.asarray(left.hidden[b])[np.asarray(~left.is_visual[b])][: BEFORE[b]]
        np.testing.assert_array_equal(text, np.asarray(world.stream.hidden[b, : BEFORE[b]]))


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
    assert pruned("pyramiddrop", 192).pruning_layers(32) == (7, 15, 23)
