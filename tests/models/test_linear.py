"""Products over the last axis: float32 sums whatever the dtype, and on a CPU the form that its libraries take."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsevlm_jax.models.linear import matmul


def arguments(*leading: int, dtype: str):
    random = np.random.default_rng(sum(leading))
    x, kernel = random.standard_normal((*leading, 96)), random.standard_normal((40, 96))
    return jnp.asarray(x, dtype), jnp.asarray(kernel, dtype)


@pytest.mark.parametrize("leading", [(), (1,), (1, 1), (2, 1), (3, 5)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sums_are_float32(leading, dtype):
    x, kernel = arguments(*leading, dtype=dtype)
    exact = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64).T

    summed = jax.jit(lambda *given: matmul(*given, dtype=jnp.float32))(x, kernel)
    assert summed.shape == exact.shape and summed.dtype == jnp.float32
    assert np.linalg.norm(summed - exact) <= 1e-6 * np.linalg.norm(exact)

    rounded = jax.jit(matmul)(x, kernel)
    assert rounded.dtype == x.dtype
    np.testing.assert_array_equal(rounded, summed.astype(dtype))  # rounded once, at the end


@pytest.mark.parametrize("rows", [1, 3])
def test_gradients_are_exact_up_to_one_rounding(rows):
    x, kernel = arguments(rows, dtype="bfloat16")
    got = jax.grad(lambda *given: matmul(*given, dtype=jnp.float32).sum(), argnums=(0, 1))(x, kernel)
    ones = np.ones((rows, len(kernel)))
    want = ones @ np.asarray(kernel, np.float64), ones.T @ np.asarray(x, np.float64)
    for one, exact in zip(got, want, strict=True):
        assert one.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(one, np.float64), exact, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize(("rows", "multiplied"), [(1, 4), (2, 2), (640, 640)])
def test_a_cpu_multiplies_bfloat16_in_more_than_one_row_and_into_float32(rows, multiplied):
    x, kernel = arguments(rows, dtype="bfloat16")
    program = jax.jit(matmul).trace(x, kernel)
    on_cpu, on_gpu = (program.lower(lowering_platforms=(platform,)).as_text() for platform in ("cpu", "cuda"))
    assert on_cpu.count("dot_general") == on_gpu.count("dot_general") == 1
    assert f"(tensor<{multiplied}x96xbf16>, tensor<40x96xbf16>) -> tensor<{multiplied}x40xf32>" in on_cpu
    assert f"(tensor<{rows}x96xbf16>, tensor<40x96xbf16>) -> tensor<{rows}x40xbf16>" in on_gpu
