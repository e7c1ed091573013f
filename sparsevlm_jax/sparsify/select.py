"""Selection: the highest scores stay, ties go to the lower index.

B batch · V visual tokens
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .needs import Need, Sizes, needing


class Selection(NamedTuple):
    """`order`: visual tokens from the highest score to the lowest, padding last; the first `count` of it are kept, and
    the best of the dropped follow directly. `is_kept` is the same as a mask in the original order."""

    order: Int[Array, "B V"]
    is_kept: Bool[Array, "B V"]
    count: Int[Array, " B"]


def select(scores: Float[Array, "B V"], is_valid: Bool[Array, "B V"], count: Int[Array, " B"]) -> Selection:
    """The `count[b]` best of each row's valid tokens; all of them where `count` is larger.

    A stable sort, not `lax.top_k`, which ranks +0.0 above -0.0 and NaN above everything. NaN scores rank last.
    """
    usable = is_valid & ~jnp.isnan(scores)
    # Two keys in one: valid tokens with NaN scores still come before padding.
    key = jnp.where(usable, -scores, jnp.inf)
    order = jnp.argsort(jnp.where(is_valid, key, jnp.nan), axis=1, stable=True)  # NaN sorts behind +inf
    return keep_first(order, is_valid, count)


def keep_first(order: Int[Array, "B V"], is_valid: Bool[Array, "B V"], count: Int[Array, " B"]) -> Selection:
    """The `count[b]` first of each row's `order`, which has padding last; all valid tokens where `count` is larger."""
    count = jnp.minimum(count, is_valid.sum(axis=1))
    rows, rank = jnp.arange(order.shape[0])[:, None], jnp.arange(order.shape[1])
    is_kept = jnp.zeros_like(is_valid).at[rows, order].set(rank < count[:, None], unique_indices=True)
    return Selection(order, is_kept, count)


class Selector(Protocol):
    """How scores become a selection, as a frozen value. `features` are the scorer's; else the tokens themselves for one
    that needs "hidden", and None for others. `capacity` bounds `count`, so a greedy selector needs that many steps."""

    @property
    def needs(self) -> frozenset[Need]: ...

    def __call__(
        self,
        scores: Float[Array, "B V"],
        features: Float[Array, "B V F"] | None,
        is_valid: Bool[Array, "B V"],
        count: Int[Array, " B"],
        *,
        capacity: int,
    ) -> Selection: ...

    def cost(self, sizes: Sizes) -> int:
        """Multiply-accumulates of the selection in one row."""
        ...


@dataclass(frozen=True)
class TopK:
    """The highest scores."""

    needs = needing()

    def __call__(self, scores, features, is_valid, count, *, capacity):
        return select(scores, is_valid, count)

    def cost(self, sizes: Sizes) -> int:
        return 0
