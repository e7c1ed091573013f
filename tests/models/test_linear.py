"""Products over the last axis: float32 sums whatever the dtype, and on a CPU the form that its libraries take."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsevlm_jax.models.nn.linear import apart, matmul


def arguments(*leading: int, dtype: str):
    random = np.random.default_rng(sum(leading))
    x, kernel = random.standard_normal((*leading, 96)), random.standard_normal((40, 96))
    return jnp.asarray(x, dtype), jnp.asarray(kernel, dtype)


@pytest.mark.parametrize("leading", [(), (1,), (1, 1), (2, 1), (3, 5), (2, 100)])
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
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_are_exact_up_to_one_rounding(rows, dtype):
    x, kernel = arguments(rows, dtype=dtype)
    got = jax.grad(lambda *given: matmul(*given, dtype=jnp.float32).sum(), argnums=(0, 1))(x, kernel)
    ones = np.ones((rows, len(kernel)))
    want = ones @ np.asarray(kernel, np.float64), ones.T @ np.asarray(x, np.float64)
    for one, exact in zip(got, want, strict=True):
        assert one.dtype == dtype
        rounding = float(jnp.finfo(dtype).eps) / 2
        np.testing.assert_allclose(np.asarray(one, np.float64), exact, rtol=rounding, atol=2e-6)


@pytest.mark.parametrize(
    ("dtype", "rows", "factors"),
    [
        ("bfloat16", 1, "(tensor<4x96xbf16>, tensor<40x96xbf16>) -> tensor<4x40xf32>"),
        ("bfloat16", 2, "(tensor<2x96xbf16>, tensor<40x96xbf16>) -> tensor<2x40xf32>"),
        ("bfloat16", 640, "(tensor<640x96xbf16>, tensor<40x96xbf16>) -> tensor<640x40xf32>"),
        ("float32", 1, "(tensor<1x96xf32>, tensor<40x96xf32>) -> tensor<1x40xf32>"),
        ("float32", 2, "(tensor<40x96xf32>, tensor<2x96xf32>) -> tensor<40x2xf32>"),
        ("float32", 128, "(tensor<40x96xf32>, tensor<128x96xf32>) -> tensor<40x128xf32>"),
        ("float32", 129, "(tensor<129x96xf32>, tensor<40x96xf32>) -> tensor<129x40xf32>"),
    ],
)
def test_what_a_cpu_multiplies_and_what_a_gpu(dtype, rows, factors):
    program = jax.jit(matmul).trace(*arguments(rows, dtype=dtype))
    on_cpu, on_gpu = (program.lower(lowering_platforms=(platform,)).as_text() for platform in ("cpu", "cuda"))
    assert on_cpu.count("dot_general") == on_gpu.count("dot_general") == 1
    assert factors in on_cpu
    kind = {"bfloat16": "bf16", "float32": "f32"}[dtype]
    assert f"(tensor<{rows}x96x{kind}>, tensor<40x96x{kind}>) -> tensor<{rows}x40x{kind}>" in on_gpu


def test_products_of_one_x_stay_apart_on_a_gpu():
    def three(x, kernels):
        return [matmul(own, kernel) for own, kernel in zip(apart(x, 3), kernels, strict=True)]

    x, kernel = arguments(640, dtype="float32")
    program = jax.jit(three).trace(x, [kernel, kernel * 2, kernel * 3])
    on_cpu, on_gpu = (program.lower(lowering_platforms=(platform,)).as_text() for platform in ("cpu", "cuda"))
    assert on_gpu.count("optimization_barrier") == 2
    assert "optimization_barrier" not in on_cpu
    np.testing.assert_array_equal(three(x, [kernel] * 3)[2], matmul(x, kernel))


@pytest.mark.parametrize("rows", [1, 3, 200])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sides_that_do_not_fit_are_refused(rows, dtype):
    x, kernel = arguments(rows, dtype=dtype)
    with pytest.raises((TypeError, ValueError), match="96"):
        matmul(x, kernel[:, :95])
