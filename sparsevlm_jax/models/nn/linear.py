"""Linear layers whose kernel is stored (out, in): PyTorch's layout, so that checkpoints load as they lie on disk.

It is also the layout that XLA's CPU backend multiplies fastest, at few rows above all: each output is then a product
of two contiguous rows.
"""

import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

# Rows of bfloat16 that a single one is multiplied as: two and eight are slower.
_COPIES = 4
# Rows of float32 up to which the kernel comes first: 2.5 times as fast for four, 1.15 for 128, slower from 256 on.
_FEW_ROWS = 128


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


@partial(jax.jit, static_argnames="dtype", inline=True)  # traced once a shape, not once a layer
def matmul(
    x: Float[Array, "... in"], kernel: Float[Array, "out in"], *, dtype: jax.typing.DTypeLike | None = None
) -> Float[Array, "... out"]:
    """`x @ kernel.T`, summed in float32 and rounded once, to `dtype` (by default that of `x`).

    Args:
        x: [..., in], at least one axis.
        kernel: [out, in], of the dtype of `x`.

    Returns:
        [..., out].

    Raises:
        TypeError, ValueError: the last axes differ.
    """
    rows = x.reshape(-1, x.shape[-1])
    anywhere, on_cpu = (partial(product, dtype=dtype or x.dtype) for product in (_product, _product_on_cpu))
    out = jax.lax.platform_dependent(rows, kernel, cpu=on_cpu, default=anywhere)
    return out.reshape(*x.shape[:-1], -1)


def _product(x: Float[Array, "rows in"], kernel: Float[Array, "out in"], *, dtype: jax.typing.DTypeLike) -> Array:
    return jnp.einsum("ri,oi->ro", x, kernel, preferred_element_type=dtype)


def _product_on_cpu(
    x: Float[Array, "rows in"], kernel: Float[Array, "out in"], *, dtype: jax.typing.DTypeLike
) -> Array:
    """The same in the form that XLA's CPU backend multiplies fastest.

    - bfloat16 goes to YNNPACK, and so to the cores' bfloat16 instructions, where the result is float32 and there is
      more than one row; XLA's own loops take ten times as long for a few rows. One row is therefore copied.
    - float32 has its second factor packed anew for every product, which for a few rows takes longer than to multiply:
      then the second is `x`.
    """
    rows = x.shape[0]
    if x.dtype == jnp.bfloat16:
        x = jnp.broadcast_to(x, (_COPIES, x.shape[1])) if rows == 1 else x
        return _product(x, kernel, dtype=jnp.float32)[:rows].astype(dtype)
    if x.dtype == jnp.float32 and 1 < rows <= _FEW_ROWS:
        turned = jax.lax.dot_general(kernel, x, (((1,), (1,)), ((), ())))
        return jax.lax.optimization_barrier(turned).T  # without it XLA turns the product back
    return _product(x, kernel, dtype=dtype)


def apart(x: Float[Array, "*n"], count: int) -> list[Float[Array, "*n"]]:
    """`x`, `count` times, each of which XLA takes for another array.

    On a GPU, XLA runs two products of one `x` as a single one over both kernels, which it joins first where there are
    many rows, anew in every call: 64 MB in each layer of a 7B, a tenth of its prefill. On a CPU it does not.
    """
    barrier = partial(jax.lax.platform_dependent, cpu=lambda x: x, default=jax.lax.optimization_barrier)
    return list(itertools.accumulate([x] * count, lambda previous, _: barrier(previous)))


def _einsum(_: str, x: Array, kernel: Array, **_options: Any) -> Array:
    return matmul(x, kernel)
