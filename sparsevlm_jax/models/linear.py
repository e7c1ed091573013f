"""Linear layers whose kernel is stored (out, in): PyTorch's layout, so that checkpoints load as they lie on disk.

It is also the layout that XLA's CPU backend multiplies fastest, at few rows above all: each output is then a product
of two contiguous rows.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

# Rows that a single one is multiplied as: two and eight are slower.
_COPIES = 4


def linear(in_features: int, out_features: int, *, use_bias: bool = True, rngs: nnx.Rngs) -> nnx.Einsum:
    """`x @ kernel.T + bias` over the last axis of x; kernel [out_features, in_features], LeCun-normal."""
    return nnx.Einsum(
        "...i,oi->...o",
        (out_features, in_features),
        (out_features,) if use_bias else None,
        kernel_init=nnx.initializers.lecun_normal(in_axis=-1, out_axis=-2),
        einsum_op=_einsum,
        rngs=rngs,
    )


def matmul(
    x: Float[Array, "... in"], kernel: Float[Array, "out in"], *, dtype: jax.typing.DTypeLike | None = None
) -> Float[Array, "... out"]:
    """`x @ kernel.T`, summed in float32; the result in `dtype`, by default that of `x`."""
    anywhere, on_cpu = (partial(product, dtype=dtype or x.dtype) for product in (_product, _bfloat16_on_cpu))
    if x.dtype != jnp.bfloat16:
        return anywhere(x, kernel)
    return jax.lax.platform_dependent(x, kernel, cpu=on_cpu, default=anywhere)


def _product(x: Array, kernel: Array, *, dtype: jax.typing.DTypeLike) -> Array:
    return jnp.einsum("...i,oi->...o", x, kernel, preferred_element_type=dtype)


def _bfloat16_on_cpu(x: Array, kernel: Array, *, dtype: jax.typing.DTypeLike) -> Array:
    """XLA hands a bfloat16 product to YNNPACK, and so to the cores' bfloat16 instructions, where the result is float32
    and there is more than one row; its own loops take ten times as long for a few rows. One row is therefore copied."""
    rows = x.reshape(-1, x.shape[-1])
    if rows.shape[0] == 1:
        rows = jnp.broadcast_to(rows, (_COPIES, rows.shape[1]))
    out = _product(rows, kernel, dtype=jnp.float32).astype(dtype)
    return out[: math.prod(x.shape[:-1])].reshape(*x.shape[:-1], -1)


def _einsum(_: str, x: Array, kernel: Array, **_options: Any) -> Array:
    return matmul(x, kernel)
