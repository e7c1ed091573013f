"""Which dtypes a model computes in and is kept in: checked at the border."""

from typing import Any

import jax
import jax.numpy as jnp

from ...checks import refusal

FLOATS = ("float32", "bfloat16", "float16")


def float_dtype(name: str, value: Any, allowed: tuple[str, ...] = FLOATS, where: str = "") -> jnp.dtype:
    """One of `allowed`, however it is written.

    Raises:
        ValueError: it is none of them.
    """
    try:
        found = jnp.dtype(value).name
    except Exception:  # NumPy meets what it is given with half a dozen kinds of errors
        found = ""
    if found not in allowed:
        raise refusal(name, f"one of {', '.join(allowed)}{where}", value)
    return jnp.dtype(found)


def stored_dtype(dtype: jax.typing.DTypeLike | None) -> jnp.dtype | None:
    """What weights shall be kept in; None is as they are.

    Raises:
        ValueError: another dtype than those of `FLOATS`.
    """
    return None if dtype is None else float_dtype("dtype", dtype)


def compute_dtype(dtype: jax.typing.DTypeLike | None, platform: str) -> jnp.dtype:
    """What weights and activations shall be of; None is float32 on a CPU and bfloat16 elsewhere.

    Raises:
        ValueError: another dtype than float32, bfloat16 and, except on a CPU (XLA lacks some of its products), float16.
    """
    if dtype is None:
        return jnp.dtype(jnp.float32 if platform == "cpu" else jnp.bfloat16)
    return float_dtype("dtype", dtype, FLOATS[:2] if platform == "cpu" else FLOATS, f" on {platform}")
