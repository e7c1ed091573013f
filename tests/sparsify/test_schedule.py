"""Schedules: the official ones exactly, every other budget near its mean and in order."""

import dataclasses
import re
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsevlm_jax.sparsify import (
    Bucket,
    FixedBudget,
    Geometric,
    Geometry,
    KeptTokens,
    Recycle,
    SparsityConfig,
    Tokens,
    default_layers,
    mean_after_layers,
    mean_entering_layers,
    simulate,
)
from sparsevlm_jax.sparsify.config import _plan
from sparsevlm_jax.sparsify.schedule import V15, _between, check_layers, kept_for_mean

LAYERS, DEPTH = (2, 6, 15), 32
OFFICIAL = Geometry(DEPTH, LAYERS, 576)
V15_STAGES = {  # tokens -> (kept, merged) at each stage, mean after layers, mean entering layers
    192: (((300, 9), (200, 4), (110, 3)), 192.03, 206.5),
    128: (((303, 9), (110, 7), (36, 3)), 128.63, 145.4),
    96: (((238, 11), (48, 7), (26, 1)), 96.94, 114.1),
    64: (((66, 16), (30, 2), (17, 1)), 64.81, 82.2),
}
PLUS_STAGES = {
    192: ((300, 200, 118), 192.44, 206.8),
    128: ((238, 108, 60), 128.00, 144.1),
    96: ((246, 54, 28), 96.81, 113.9),
    64: ((66, 34, 20), 64.44, 81.8),
}


def means(config: SparsityConfig, geometry: Geometry = OFFICIAL):
    assert isinstance(config.budget, FixedBudget)
    table = config.budget.table(geometry, config.recycle)
    flow = simulate(table, geometry.row_counts, config.recycle)
    where = geometry.row_counts, geometry.layers, geometry.num_layers
    return flow, mean_after_layers(flow, *where)[-1], mean_entering_layers(flow, *where)[-1]


@pytest.mark.parametrize("tokens", V15_STAGES)
def test_official_budgets_of_v15_come_out_as_they_are(tokens):
    stages, after, entering = V15_STAGES[tokens]
    flow, mean, true_mean = means(SparsityConfig.sparsevlm(tokens))
    assert tuple(zip(flow.kept[:, -1].tolist(), flow.merged[:, -1].tolist(), strict=True)) == stages
    assert mean == pytest.approx(after, abs=5e-3) and true_mean == pytest.approx(entering, abs=6e-2)


@pytest.mark.parametrize("tokens", PLUS_STAGES)
def test_official_budgets_of_sparsevlm_plus_come_out_as_they_are(tokens):
    kept, after, entering = PLUS_STAGES[tokens]
    flow, mean, true_mean = means(SparsityConfig.sparsevlm_plus(tokens))
    assert tuple(flow.kept[:, -1].tolist()) == kept and not flow.merged.any()
    assert mean == pytest.approx(after, abs=5e-3) and true_mean == pytest.approx(entering, abs=6e-2)


def test_without_its_recycling_an_official_budget_is_met_by_keeping_more():
    _, after, _ = means(dataclasses.replace(SparsityConfig.sparsevlm(192), recycle=None))
    assert after == pytest.approx(192, abs=0.5)


def test_candidates_of_the_official_schedules():
    assert means(SparsityConfig.sparsevlm(192))[0].candidates[:, -1].tolist() == [83, 33, 29]
    assert means(SparsityConfig.sparsevlm(64))[0].candidates[:, -1].tolist() == [154, 16, 5]


def means_of(budgets: np.ndarray, geometry: Geometry, recycle: Recycle | None) -> np.ndarray:
    rows = np.full(len(budgets), geometry.visual)
    kept = kept_for_mean(budgets.astype(float), rows, geometry, recycle, V15)
    return mean_after_layers(simulate(kept, rows, recycle), rows, geometry.layers, geometry.num_layers)


def test_every_budget_from_the_floor_up_is_met_and_more_is_never_less():
    budgets = np.arange(38, 577)
    reached = means_of(budgets, OFFICIAL, Recycle())
    assert (np.diff(reached) >= 0).all()
    assert np.abs(reached - budgets).max() < 3
    assert reached[-1] == 576


@pytest.mark.parametrize(("depth", "visual"), [(40, 576), (24, 576), (32, 2880), (12, 100), (4, 16)])
def test_other_depths_and_sizes_are_met_in_order_too(depth, visual):
    geometry = Geometry(depth, default_layers(depth), visual)
    floor = visual * geometry.layers[0] / depth
    budgets = np.linspace(floor, visual, 97)[1:]
    reached = means_of(budgets, geometry, Recycle())
    assert (np.diff(reached) >= 0).all()
    coarsest = 4 * (1 + 0.1 * visual / 10)  # merged tokens come and go with the dropped, in whole numbers
    assert np.abs(reached - budgets)[len(budgets) // 4 :].max() < coarsest


def test_a_share_is_the_same_share_of_rows_with_more_images():
    geometry = Geometry(DEPTH, LAYERS, 3 * 576)
    flow = simulate(Tokens.parse("1/3").table(geometry, Recycle()), geometry.row_counts, Recycle())
    after = mean_after_layers(flow, geometry.row_counts, LAYERS, DEPTH)
    np.testing.assert_allclose(after[::576], geometry.row_counts[::576] / 3, atol=1)
    assert after[0] == 0


def test_a_row_that_may_keep_everything_does():
    geometry = Geometry(DEPTH, LAYERS, 2 * 576)
    assert Tokens.parse(600).table(geometry, Recycle())[:, 576].tolist() == [576, 576, 576]


def test_a_budget_below_the_floor_is_an_error_that_names_the_floor():
    with pytest.raises(ValueError, match=re.escape("35 visual tokens is below the floor of 36: the first 2 of 32")):
        SparsityConfig.sparsevlm(35).check(32, 576)
    SparsityConfig.sparsevlm(36).check(32, 576)
    SparsityConfig.sparsevlm(35).check(32, 0)


@pytest.mark.parametrize(
    ("depth", "layers"),
    [(32, (2, 6, 15)), (40, (3, 8, 19)), (24, (2, 5, 11)), (12, (1, 2, 6)), (4, (1, 2, 3))],
)
def test_default_layers_are_at_the_same_fractions_of_the_depth(depth, layers):
    assert default_layers(depth) == layers


def test_too_shallow_a_model_is_an_error():
    with pytest.raises(ValueError, match="3 pruning layers need a model of more than 3 layers, got 3"):
        default_layers(3)


@pytest.mark.parametrize("layers", [(6, 2), (2, 2), (0, 32), (-2, 3)])
def test_layers_out_of_order_or_range_are_errors(layers):
    with pytest.raises(ValueError, match=re.escape(str(layers))):
        check_layers(layers, 32)


def test_a_stage_that_scores_by_attention_cannot_stand_before_layer_0():
    with pytest.raises(ValueError, match="none before layer 0"):
        SparsityConfig.kept(10, layers=(-1,)).pruning_layers(4)


@given(
    kept=st.lists(st.integers(0, 60), min_size=1, max_size=4),
    rows=st.lists(st.integers(0, 80), min_size=1, max_size=5),
    rest=st.sampled_from([None, Recycle(), Recycle(cluster_size=1), Recycle(cluster_size=3)]),
)
def test_no_stage_leaves_more_than_enters_it(kept, rows, rest):
    wanted, rows = np.tile(np.array(kept)[:, None], len(rows)), np.array(rows)
    flow = simulate(wanted, rows, rest)
    assert (flow.leaving <= flow.entering).all()
    assert (flow.merged <= flow.candidates).all() and (flow.candidates <= flow.entering - flow.kept).all()
    np.testing.assert_array_equal(flow.entering[1:], flow.leaving[:-1])


@given(
    tokens=st.sampled_from(
        [Tokens.parse("1/3"), Tokens.parse("2/3"), KeptTokens((30, 20, 10)), KeptTokens((9, 40, 1))]
    ),
    images=st.integers(1, 3),
    text=st.integers(1, 40),
)
def test_static_shapes_hold_every_row(tokens, images, text):
    config = dataclasses.replace(SparsityConfig.sparsevlm(), budget=tokens)
    bucket = Bucket(text=text, visual=50 * images)
    plans = config.plan(12, bucket)
    rows = config.geometry(12, bucket).row_counts
    flow = simulate(np.array([plan.table for plan in plans]), rows, config.recycle)
    for stage, plan in enumerate(plans):
        assert (flow.entering[stage] <= plan.visual).all() and (flow.leaving[stage] <= plan.leaving).all()
        assert (flow.candidates[stage] <= plan.candidates).all() and (flow.merged[stage] <= plan.merged).all()
        assert plan.capacity == text + plan.leaving


def test_a_batch_without_images_has_no_stages():
    assert SparsityConfig.sparsevlm().plan(32, Bucket(text=32, visual=0)) == ()


def test_a_geometric_schedule_keeps_the_same_share_at_every_stage():
    np.testing.assert_allclose(Geometric().shares(np.array([0.5, 0.25]), (1, 2, 3), 8)[:, 0], [0.5, 0.25, 0.125])


@pytest.mark.parametrize("x", [-1.0, 0.0, 0.1, 0.25, 0.6, 0.75, 2.0])
def test_many_functions_are_interpolated_as_numpy_does_one(x):
    knots, rows = np.array([0.0, 0.25, 0.75]), np.random.default_rng(0).random((3, 20))
    np.testing.assert_array_equal(_between(x, knots, rows), [np.interp(x, knots, row) for row in rows.T])


def test_rows_of_any_count_are_planned_fast_and_once():
    """16,384 visual tokens, a row of each number of them."""
    config, bucket = SparsityConfig.sparsevlm("1/3"), Bucket(text=64, visual=16384)
    _plan.cache_clear()
    start = time.process_time()
    plans = config.plan(32, bucket)
    assert time.process_time() - start < 2  # 0.2 s, and 5 where each row was interpolated alone
    assert config.plan(32, bucket) is plans


@pytest.mark.parametrize(("depth", "share"), [(3, "1/3"), (28, "1/28"), (7, "1/7")])
def test_a_share_that_is_the_floor_itself_is_met(depth, share):
    """Whatever the number of tokens: in floats the two differ in their last place for a third of them."""
    for visual in range(1, 300):
        Tokens.parse(share).check(Geometry(depth, (1,), visual, visual))
