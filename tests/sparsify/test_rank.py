"""Ranks are those of each row's true map, whatever buffer it sits in."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from sparsevlm_jax.sparsify import attention_rank

EPS = np.finfo(np.float32).eps


def rank(maps, sizes, measure: Any = "numerical"):
    """Maps of different sizes in one padded buffer."""
    raters, visual = (max(extent) for extent in zip(*sizes, strict=True))
    buffer = np.zeros((len(maps), raters, visual), np.float32)
    for row, matrix in zip(buffer, maps, strict=True):
        row[: matrix.shape[0], : matrix.shape[1]] = matrix
    true = [matrix.shape for matrix in maps]
    counts = (jnp.array([shape[axis] for shape in true]) for axis in (0, 1))
    return np.asarray(attention_rank(jnp.array(buffer), *counts, measure=measure))


def test_numerical_rank_is_numpys_row_by_row():
    rng = np.random.default_rng(0)
    maps = [
        (rng.random((raters, r)) @ rng.random((r, visual))).astype(np.float32)
        for raters, visual, r in [(5, 12, 3), (7, 4, 4), (6, 9, 6), (3, 12, 1)]
    ]
    expected = [np.linalg.matrix_rank(matrix) for matrix in maps]
    assert rank(maps, [(7, 12)]).tolist() == expected == [3, 4, 6, 1]


def two_by(columns: int, second: float) -> np.ndarray:
    """A map of singular values 1 and `second`."""
    matrix = np.zeros((2, columns), np.float32)
    matrix[0, 0], matrix[1, 1] = 1, second
    return matrix


def test_tolerance_follows_the_true_width_not_the_padded_one():
    between = 4e-6
    assert 10 * EPS < between < 100 * EPS  # so the two widths disagree about it
    narrow, wide = two_by(10, between), two_by(100, between)
    assert np.linalg.matrix_rank(narrow) == 2 and np.linalg.matrix_rank(wide) == 1
    assert rank([narrow, wide], [(2, 100)]).tolist() == [2, 1]


def test_tolerance_follows_the_number_of_raters_where_that_is_larger():
    between = 4e-6
    tall = two_by(10, between).T.repeat(1, axis=0)
    assert rank([tall, np.pad(tall, ((0, 90), (0, 0)))], [(100, 2)]).tolist() == [2, 1]


def test_stable_rank_and_entropy_rank_are_their_definitions():
    rng = np.random.default_rng(1)
    maps = [rng.random((4, 9)), rng.random((3, 5))]
    singular = [np.linalg.svd(matrix, compute_uv=False) for matrix in maps]
    shares = [s / s.sum() for s in singular]
    stable, entropy = rank(maps, [(6, 11)], "stable"), rank(maps, [(6, 11)], "entropy")
    np.testing.assert_allclose(stable, [(s**2).sum() / s[0] ** 2 for s in singular], rtol=1e-5)
    np.testing.assert_allclose(entropy, [np.exp(-(p * np.log(p)).sum()) for p in shares], rtol=1e-4)


@pytest.mark.parametrize("measure", ["numerical", "stable", "entropy"])
def test_measures_agree_where_all_singular_values_are_equal_and_on_nothing(measure):
    np.testing.assert_allclose(rank([0.25 * np.eye(3, 5), np.zeros((3, 5))], [(3, 5)], measure), [3, 0], atol=1e-5)
