"""Linear layers whose kernel is stored (out, in): PyTorch's layout, so that checkpoints load as they lie on disk.

It is also the layout that XLA's CPU backend multiplies fastest, at few rows above all: each output is then a product
of two contiguous rows. In bfloat16 one row, a decode step, runs many times as fast as with (in, out).
"""

from flax import nnx


def linear(in_features: int, out_features: int, *, use_bias: bool = True, rngs: nnx.Rngs) -> nnx.Einsum:
    """`x @ kernel.T + bias` over the last axis of x; kernel [out_features, in_features], LeCun-normal."""
    return nnx.Einsum(
        "...i,oi->...o",
        (out_features, in_features),
        (out_features,) if use_bias else None,
        kernel_init=nnx.initializers.lecun_normal(in_axis=-1, out_axis=-2),
        rngs=rngs,
    )
