"""Which dtypes a model computes in and is stored in: checked once, at the border."""

import jax
import jax.numpy as jnp
import numpy as np

FLOATS = ("float32", "bfloat16", "float16")


def compute_dtype(dtype: jax.typing.DTypeLike | None, platform: str) -> np.dtype:
    """What weights and activations shall be of; None is float32 on a CPU and bfloat16 elsewhere.

    Raises:
        ValueError: another dtype than float32, bfloat16 and, except on a CPU (XLA lacks some of its products), float16.
    """
    if dtype is None:
        return jnp.dtype(jnp.float32 if platform == "cpu" else jnp.bfloat16)
    allowed = [name for name in FLOATS if name != "float16" or platform != "cpu"]
    return _checked(dtype, allowed, f"a model computes on {platform} in")


def stored_dtype(dtype: jax.typing.DTypeLike) -> np.dtype:
    """What weights shall be saved in.

    Raises:
        ValueError: another dtype than float32, bfloat16 and float16.
    """
    return _checked(dtype, FLOATS, "weights are saved in")


def _checked(dtype: jax.typing.DTypeLike, allowed: list[str] | tuple[str, ...], what: str) -> np.dtype:
    try:
        name = jnp.dtype(dtype).name
    except (TypeError, ValueError):
        name = ""
    if name not in allowed:
        raise ValueError(f"dtype {dtype!r}: {what} {', '.join(allowed[:-1])} or {allowed[-1]}")
    return jnp.dtype(name)
