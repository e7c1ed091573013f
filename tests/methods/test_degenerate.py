"""What no paper speaks of: few tokens, equal tokens, equal scores, nothing to keep, half precision."""

import dataclasses
from fractions import Fraction
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsevlm_jax import methods
from sparsevlm_jax.sparsify import KeptTokens

from .world import BUCKET, DEPTH, DIM, IMAGES, STEP, make_world, planned, pruned, run_stage

PRUNED = sorted(set(methods.METHODS) - {"dense"})
IS_EVEN = ("random", "uniform")
IN_THE_TOWER = [name for name in PRUNED if pruned(name).merging]
PLACES_MATTER = (*IS_EVEN, *IN_THE_TOWER, "sparsevlm-plus")  # so that equal tokens are no tie


def check(world, plan, decision, left):
    """The counts are the plan's, the order names every token once, and nothing but padding is garbage."""
    for row, images in enumerate(IMAGES):
        visual = images * STEP
        order, kept = (np.asarray(x[row]) for x in (decision.selection.order, decision.selection.is_kept))
        assert kept.sum() == decision.selection.count[row] == min(planned(world, plan, row), visual)
        assert sorted(order[:visual]) == list(range(visual)) and set(order[: kept.sum()]) == set(np.flatnonzero(kept))
        assert np.isfinite(np.asarray(left.hidden[row], np.float32)).all()
        text = int(world.stream.length[row]) - visual
        assert int(left.length[row]) - int(left.is_visual[row].sum()) == text, "no word is lost"


@pytest.mark.slow
@pytest.mark.parametrize("name", PRUNED)
def test_equal_tokens_with_equal_scores(name):
    config = pruned(name)
    world = make_world(config, same=True)
    plan, decision, left, _ = run_stage(world, config)
    check(world, plan, decision, left)
    if name not in PLACES_MATTER:
        kept = np.asarray(decision.selection.is_kept[1])
        assert kept[: kept.sum()].all(), "ties go to the lower index"
    hidden = np.asarray(left.hidden)[np.asarray(left.is_visual)]
    np.testing.assert_allclose(hidden, 1.0, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", PRUNED)
def test_half_precision_gives_the_counts_of_single(name):
    config = pruned(name)
    world = make_world(config, dtype=jnp.bfloat16)
    plan, decision, left, _ = run_stage(world, config)
    assert left.hidden.dtype == jnp.bfloat16 and decision.scores.values.dtype == jnp.float32
    check(world, plan, decision, left)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PRUNED if name not in IN_THE_TOWER])
@pytest.mark.parametrize("kept", [0, 1])
def test_one_token_or_none(name, kept):
    config = pruned(name)
    stages = len(config.pruning_layers(DEPTH))
    config = dataclasses.replace(config, budget=KeptTokens((kept,) * stages))
    world = make_world(config)
    plan, decision, left, _ = run_stage(world, config)
    assert plan.table and plan.table[STEP] == plan.table[2 * STEP] == kept
    check(world, plan, decision, left)


@pytest.mark.parametrize("name", PRUNED)
def test_more_than_there_are_is_all_and_a_budget_of_nothing_is_refused(name):
    plan = pruned(name, 10_000).plan(DEPTH, BUCKET)[0]
    assert plan.kept == 2 * STEP and plan.table in (None, tuple(range(2 * STEP + 1)))
    for nothing in (0, "0", 0.0, -1, "0/3"):
        with pytest.raises(ValueError, match="number of tokens"):
            pruned(name, nothing)


@pytest.mark.parametrize("name", [name for name in PRUNED if pruned(name).pruning_layers(DEPTH)[0] > 0])
def test_a_budget_below_what_the_first_layers_see_names_the_floor(name):
    with pytest.raises(ValueError, match=r"below the floor of .* layers see all 32"):
        pruned(name, Fraction(1, 1000)).check(DEPTH, BUCKET.visual)


@pytest.mark.parametrize("name", PRUNED)
def test_the_budget_is_met_in_the_papers_count(name):
    for tokens, share in ((20, Fraction(20, 32)), (10, Fraction(10, 32))):
        plans = pruned(name, share).plan(DEPTH, BUCKET)
        left = [BUCKET.visual, *(plan.leaving for plan in plans)]
        ends = [0, *(max(plan.layer, 0) for plan in plans), DEPTH]
        mean = sum(n * (end - start) for n, (start, end) in zip(left, pairwise(ends), strict=True)) / DEPTH
        # In the tower each image has its part; what is static is a bound, above it by less than a token of each.
        above = BUCKET.images if name in IN_THE_TOWER else 1
        assert -1 <= mean - tokens <= above, (name, mean)
        assert name not in IN_THE_TOWER or 2 * pruned(name, share).budget.of(STEP) == tokens  # type: ignore[union-attr]


def test_dart_with_fewer_words_than_pivots_uses_the_pivots_there_are():
    config = pruned("dart", text_pivots=7)
    world = make_world(config)
    plan, decision, left, _ = run_stage(world, config)
    features = decision.scores.features
    assert features is not None and np.isinf(features[0]).sum(axis=1).tolist() == [2] * 32  # 5 words
    check(world, plan, decision, left)


@pytest.mark.parametrize("name", [name for name in PRUNED if "tower" in pruned(name).needs])
def test_a_method_of_the_tower_says_what_it_misses(name):
    config = pruned(name)
    with pytest.raises(ValueError, match="pass `images`"):
        run_stage(make_world(config)._replace(images=None), config)
    with pytest.raises(ValueError, match="in one stage"):
        dataclasses.replace(config, layers=(-1, 4)).plan(DEPTH, BUCKET)


def test_options_out_of_range_are_refused():
    for name, option in (("fastv", {"layer": 0}), ("dart", {"layer": 0}), ("dart", {"image_pivots": 0})):
        with pytest.raises(ValueError, match=r"got .*0"):
            pruned(name, **option)
    with pytest.raises(ValueError, match="dominant must be a whole number >= 1, got 0"):
        pruned("visionzip", dominant=0)
    with pytest.raises(ValueError, match="power"):
        pruned("sparsevlm-diverse", power=-1.0)
    with pytest.raises(ValueError, match="method must be one of .*divprune.* got 'magic'"):
        methods.create("magic")


def test_a_method_is_a_value():
    for name in PRUNED:
        assert pruned(name) == pruned(name) != pruned(name, 11) and hash(pruned(name)) == hash(pruned(name))
        assert pruned(name).name == name


def test_the_stage_does_not_look_at_padding():
    world = make_world(pruned("cdpruner"))
    loud = world.stream._replace(hidden=jnp.where(jnp.abs(world.stream.hidden) > 100, jnp.nan, world.stream.hidden))
    for name in ("cdpruner", "divprune", "dart"):
        config = pruned(name)
        mine = world._replace(stream=loud._replace(is_rater=make_world(config).stream.is_rater))
        _, decision, left, _ = run_stage(mine, config)
        quiet = run_stage(mine._replace(stream=mine.stream._replace(hidden=world.stream.hidden)), config).decision
        np.testing.assert_array_equal(decision.selection.is_kept, quiet.selection.is_kept)
        assert np.isfinite(np.asarray(left.hidden)).all() and left.hidden.shape[2] == DIM


def test_random_and_uniform_are_no_function_of_the_tokens():
    for name in IS_EVEN:
        config = pruned(name)
        one, other = (run_stage(make_world(config, seed=seed), config).decision for seed in (0, 1))
        assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), one.selection, other.selection))
