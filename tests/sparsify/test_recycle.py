"""Recycling merges the best of the dropped, and loses nothing of them."""

import functools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsevlm_jax.sparsify import Recycle, Selection, recycle

from . import reference

VISUAL, CANDIDATES, CLUSTERS, DIM = 40, 24, 6, 8
RULES = {
    "code": Recycle(Fraction(1, 2), 5),
    "paper": Recycle(Fraction(1, 2), 5, assign="cosine", merge="sum"),
    "cosine mean": Recycle(Fraction(1, 2), 5, assign="cosine"),
}


@functools.partial(jax.jit, static_argnames=("rule",))
def run(hidden, order, kept, visual_count, rule):
    selection = Selection(order, jnp.zeros(order.shape, bool), kept)
    return recycle(hidden, selection, visual_count, rule, candidate_capacity=CANDIDATES, merged_capacity=CLUSTERS)


def random_rows(seeds, visual_counts, scale=1.0):
    """Tokens [B, V, D] and orders [B, V] in which scores rank them; padding holds huge numbers."""
    hidden, order = [], []
    for seed, count in zip(seeds, visual_counts, strict=True):
        rng = np.random.default_rng(seed)
        hidden.append(np.where(np.arange(VISUAL)[:, None] < count, scale * rng.normal(size=(VISUAL, DIM)), 1e30))
        order.append(np.concatenate([rng.permutation(count), np.arange(count, VISUAL)]))
    return np.array(hidden, np.float32), np.array(order, np.int32)


def recycled(hidden, order, kept, visual_counts, rule=RULES["code"]):
    return jax.device_get(run(jnp.array(hidden), jnp.array(order), jnp.array(kept), jnp.array(visual_counts), rule))


drawn = st.integers(0, VISUAL).flatmap(lambda visual: st.tuples(st.just(visual), st.integers(0, visual)))


@given(seed=st.integers(0, 999), counts=drawn, rule=st.sampled_from(sorted(RULES)), scale=st.sampled_from([0.3, 1, 15]))
def test_clusters_and_merged_tokens_equal_a_float64_recomputation(seed, counts, rule, scale):
    # At scale 15 every density underflows to 0 in float32, and in float64 not: the order is still right.
    (visual, kept), rule = counts, RULES[rule]
    hidden, order = random_rows([seed], [visual], scale)
    out = recycled(hidden, order, [kept], [visual], rule)
    size, clusters = int(out.candidate_count[0]), int(out.merged_count[0])
    assert size == ((visual - kept) // 2 + 1 if visual > kept else 0)
    assert clusters == (min(size // 5 + 1, size) if visual > kept else 0)
    assert out.candidates[0, :size].tolist() == order[0, kept : kept + size].tolist()
    if size == 0 or scale > 1:
        assert np.isfinite(np.asarray(out.merged)).all()
        return
    expected = reference.merge(hidden[0, order[0, kept : kept + size]], clusters, assign=rule.assign, how=rule.merge)
    assert out.centers[0, :clusters].tolist() == order[0, kept : kept + size][expected["centers"]].tolist()
    assert out.cluster[0, :size].tolist() == expected["cluster"].tolist()
    np.testing.assert_allclose(out.merged[0, :clusters], expected["merged"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(out.center_score[0, :size], expected["center_score"], rtol=1e-4)


@given(seed=st.integers(0, 999), counts=drawn)
def test_sums_conserve_the_sum_of_the_candidates_and_means_do_by_sizes(seed, counts):
    visual, kept = counts
    hidden, order = random_rows([seed], [visual])
    summed, mean = (recycled(hidden, order, [kept], [visual], RULES[name]) for name in ("paper", "cosine mean"))
    size, clusters = int(mean.candidate_count[0]), int(mean.merged_count[0])
    total = hidden[0, np.asarray(mean.candidates[0, :size])].sum(axis=0)
    sizes = np.bincount(np.asarray(mean.cluster[0, :size]), minlength=CLUSTERS)[:clusters]
    assert sizes.sum() == size and (sizes > 0).all()
    np.testing.assert_allclose(summed.merged[0, :clusters].sum(axis=0), total, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose((mean.merged[0, :clusters] * sizes[:, None]).sum(axis=0), total, rtol=1e-5, atol=2e-5)


def test_neighbours_in_the_batch_change_nothing():
    visual, kept = [40, 12, 1, 0, 30], [3, 4, 0, 0, 30]
    hidden, order = random_rows(range(5), visual)
    together = recycled(hidden, order, kept, visual)
    assert together.merged_count.tolist() == [4, 2, 1, 0, 0]
    for b in range(5):
        one = slice(b, b + 1)
        alone = recycled(hidden[one], order[one], kept[one], visual[one])
        size, clusters = int(alone.candidate_count[0]), int(alone.merged_count[0])
        assert (size, clusters) == (int(together.candidate_count[b]), int(together.merged_count[b]))
        np.testing.assert_array_equal(alone.cluster[0, :size], together.cluster[b, :size])
        np.testing.assert_array_equal(alone.centers[0, :clusters], together.centers[b, :clusters])
        np.testing.assert_allclose(alone.merged[0, :clusters], together.merged[b, :clusters], rtol=1e-6)


def test_the_same_input_gives_the_same_bits():
    hidden, order = random_rows([0], [40])
    one, other = (recycled(hidden, order, [2], [40]) for _ in range(2))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def test_renumbering_the_tokens_changes_no_merged_token():
    hidden, order = random_rows([1], [40])
    new = np.random.default_rng(2).permutation(40)  # token i moves to new[i]
    moved = np.zeros_like(hidden)
    moved[0, new] = hidden[0]
    one, other = recycled(hidden, order, [2], [40]), recycled(moved, new[order], [2], [40])
    np.testing.assert_array_equal(one.merged, other.merged)
    assert new[np.asarray(one.centers)].tolist() == other.centers.tolist()


def test_identical_tokens_merge_into_themselves():
    hidden, order = random_rows([3], [40])
    hidden[:] = hidden[:, :1]
    out = recycled(hidden, order, [0], [40])
    clusters = int(out.merged_count[0])
    sizes = np.bincount(np.asarray(out.cluster[0, : int(out.candidate_count[0])]), minlength=clusters)
    assert sizes.tolist() == [21 - 4, 1, 1, 1, 1]  # all at distance 0: every token joins the first center
    np.testing.assert_allclose(out.merged[0, :clusters], np.tile(hidden[0, :1], (clusters, 1)), rtol=2e-6)


PAIR = np.array([[9.0, 0], [0.1, 0], [0, 0], [5, 5], [-7, 1], [3, -8]], np.float32)  # tokens 1 and 2 are closest


def two_clusters(noise):
    """PAIR in two clusters: of the closest pair, both have exactly the same density, and the highest."""
    cluster = jax.jit(recycle, static_argnames=("rule", "candidate_capacity", "merged_capacity"))
    selection = Selection(jnp.arange(6)[None], jnp.zeros((1, 6), bool), jnp.array([0]))
    sizes = dict(rule=Recycle(Fraction(1), 5), candidate_capacity=6, merged_capacity=2)
    return jax.device_get(cluster(jnp.array(PAIR[None]), selection, jnp.array([6]), noise=noise, **sizes))


def test_of_a_closest_pair_the_higher_scored_one_counts_as_denser():
    out = two_clusters(noise=None)
    assert out.density[0, 1] == out.density[0, 2] == out.density[0].max()
    assert out.distance[0, 1] == out.distance[0].max()  # the earlier of the two is the densest
    np.testing.assert_allclose(out.distance[0, 2], 0.1 / np.sqrt(2), rtol=1e-4)  # the later one is next to it


def test_noise_breaks_the_tie_the_other_way():
    out = two_clusters(noise=jnp.array([[0.0, 0.1, 0.9, 0, 0, 0]]))
    assert out.distance[0, 2] == out.distance[0].max() and out.distance[0, 1] < 0.1


def test_one_huge_channel_does_not_eat_the_digits_of_the_others():
    hidden, order = random_rows([4], [40])
    plain = recycled(hidden, order, [0], [40])
    hidden[..., 0] += 300 - hidden[..., 0]
    level = hidden.copy()
    level[..., 0] = 0
    outlier, without = recycled(hidden, order, [0], [40]), recycled(level, order, [0], [40])
    np.testing.assert_allclose(outlier.density, without.density, rtol=1e-6)
    assert not np.allclose(plain.density, without.density, rtol=1e-3)


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1.0, 1e4])
def test_merged_tokens_are_finite_in_bfloat16_at_any_norm(scale):
    hidden, order = random_rows([5, 6], [40, 1], scale)
    out = recycled(jnp.array(hidden, jnp.bfloat16), order, [1, 0], [40, 1])
    assert out.merged.dtype == jnp.bfloat16
    for row, clusters in zip(out.merged, out.merged_count, strict=True):
        assert np.isfinite(np.asarray(row[: int(clusters)], np.float32)).all()
    np.testing.assert_allclose(out.merged[1, 0], jnp.array(hidden[1, 0], jnp.bfloat16), rtol=1e-2)


def test_counts_are_those_of_the_official_code():
    rule = Recycle()
    dropped = np.arange(1, 5000)
    np.testing.assert_array_equal(rule.candidate_count(dropped), (0.3 * dropped).astype(int) + 1)
    np.testing.assert_array_equal(rule.merged_count(dropped, 0), rule.candidate_count(dropped) // 10 + 1)
    assert (rule.candidate_count(0), rule.merged_count(0, 5)) == (0, 0)


@pytest.mark.parametrize("share", [Fraction(0), Fraction(1, 7), Fraction(1)])
@pytest.mark.parametrize("cluster_size", [1, 2, 10])
def test_there_are_never_more_clusters_than_candidates_nor_candidates_than_dropped(share, cluster_size):
    rule, dropped = Recycle(share, cluster_size), np.arange(200)
    candidates, clusters = rule.candidate_count(dropped), rule.merged_count(dropped, 0)
    assert (clusters <= candidates).all() and (candidates <= dropped).all()
    assert (clusters[1:] > 0).all() and clusters[0] == 0
    assert (np.diff(clusters) >= 0).all()


def test_impossible_rules_are_refused():
    with pytest.raises(ValueError, match="candidates must be a share between 0 and 1, got Fraction.2"):
        Recycle(candidates=Fraction(2))
    with pytest.raises(ValueError, match="cluster_size must be a whole number >= 1, got 0"):
        Recycle(cluster_size=0)
