"""Recycling: the best of what was dropped, clustered and merged into a few tokens (SparseVLM, section 3.3).

Density-peak clustering: a center is dense itself and far from anything denser. Distances come from a Gram matrix, so
the largest buffer is [B, C, C] beside the [B, C, D] candidates.

B batch · V visual tokens · C candidates · M clusters = merged tokens · D model dim
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..checks import choice, flag, fraction, settle, whole
from .scorer import Scores
from .select import Selection

Assign = Literal["euclidean", "cosine"]
Merge = Literal["mean", "sum"]

_HIGHEST = jax.lax.Precision.HIGHEST


@dataclass(frozen=True)
class Recycle:
    """How the dropped are recycled; the defaults are SparseVLM v1.5's code.

    Attributes:
        candidates: share tau of the dropped tokens that are clustered; floor(tau * dropped) + 1 of them.
        cluster_size: candidates per cluster, 1 / theta; candidates // cluster_size + 1 clusters, each one merged token,
            and no more than there are candidates.
        assign: how a candidate joins a center: "euclidean" (the code) or "cosine" (the paper).
        merge: what a cluster becomes: the "mean" of its members (the code) or their "sum" (the paper, eq. 10).
        size_aware: a merged token counts as many as it stands for: members weigh their sizes in the mean, and the log
            of the merged token's size is added to its attention logit in every later layer and in decode (after
            ToMe's proportional attention, arXiv 2210.09461). Needs "mean", and XLA attention: cuDNN takes no bias.
    """

    candidates: Fraction = Fraction(3, 10)
    cluster_size: int = 10
    assign: Assign = "euclidean"
    merge: Merge = "mean"
    size_aware: bool = False
    reads_hidden = False

    def __post_init__(self):
        settle(
            self,
            candidates=fraction("a share between 0 and 1", lambda share: 0 <= share <= 1),
            cluster_size=whole(1),
            assign=choice(Assign),
            merge=choice(Merge),
            size_aware=flag,
        )
        if self.size_aware and self.merge != "mean":
            raise ValueError(f"size-aware recycling merges by the mean, got merge = {self.merge!r}")

    def candidate_count(self, dropped):
        """Of `dropped` tokens (an int or an array); never more than there are, 0 of 0."""
        share = self.candidates
        count = (share.numerator * dropped) // share.denominator + (dropped > 0)
        return count - (count > dropped)

    def merged_count(self, dropped, kept):
        """Clusters, hence merged tokens, that `dropped` tokens leave; how many were `kept` does not matter here."""
        del kept
        candidates = self.candidate_count(dropped)
        count = candidates // self.cluster_size + (dropped > 0)
        return count - (count > candidates)

    def __call__(
        self,
        hidden,
        selection,
        visual_count,
        *,
        candidate_capacity,
        merged_capacity,
        noise=None,
        scores=None,
        size=None,
    ):
        """`recycle` by this rule, whatever the scorer saw."""
        del scores
        return recycle(
            hidden,
            selection,
            visual_count,
            self,
            candidate_capacity=candidate_capacity,
            merged_capacity=merged_capacity,
            noise=noise,
            size=size,
        )


class Rest(Protocol):
    """What becomes of the dropped tokens. `Recycle` is SparseVLM's; anything with these three methods will do.

    The counts are plain arithmetic, on ints and arrays alike, and grow with `dropped` and `kept`. `scores` is all that
    the scorer gave; `size` how many patches each token stands for, for a rest whose `size_aware` is True. One that
    looks at no hidden states but those of the kept tokens and the candidates, the first so many behind the kept in
    `selection.order`, says `reads_hidden = False`; see `SparsityConfig.reads_hidden`.
    """

    def candidate_count(self, dropped: Any) -> Any: ...

    def merged_count(self, dropped: Any, kept: Any) -> Any: ...

    def __call__(
        self,
        hidden: Float[Array, "B V D"],
        selection: Selection,
        visual_count: Int[Array, " B"],
        *,
        candidate_capacity: int,
        merged_capacity: int,
        noise: Float[Array, "B V"] | None = None,
        scores: Scores | None = None,
        size: Float[Array, "B V"] | None = None,
    ) -> "Recycled": ...


class Recycled(NamedTuple):
    """Merged tokens and how they came about. Per candidate, in order of descending score: its visual index, its
    cluster, and the three numbers of density-peak clustering (None from a rest without). Entries past the counts are
    padding.

    `size` is how many tokens each merged one stands for.
    """

    merged: Float[Array, "B M D"]
    merged_count: Int[Array, " B"]
    candidates: Int[Array, "B C"]
    candidate_count: Int[Array, " B"]
    centers: Int[Array, "B M"]  # visual index of each cluster's center, in descending center score
    cluster: Int[Array, "B C"]
    size: Float[Array, "B M"]
    density: Float[Array, "B C"] | None = None
    distance: Float[Array, "B C"] | None = None
    center_score: Float[Array, "B C"] | None = None


def recycle(
    hidden: Float[Array, "B V D"],
    selection: Selection,
    visual_count: Int[Array, " B"],
    rule: Recycle,
    *,
    candidate_capacity: int,
    merged_capacity: int,
    noise: Float[Array, "B V"] | None = None,
    size: Float[Array, "B V"] | None = None,
) -> Recycled:
    """Clusters each row's best dropped tokens and merges every cluster.

    Args:
        hidden: the visual tokens the selection is about; only those of candidates are looked at.
        candidate_capacity, merged_capacity: static bounds of the per-row counts, C and M.
        noise: U(0, 1) per visual token, which the official code draws to break ties of density (times 1e-6). Left out,
            ties go to the higher score, and the result is deterministic.
        size: how many patches each token stands for; given, means are weighted by it and merged tokens get their sums.

    Rows that drop nothing merge nothing. Clustering is in float32; the merged tokens have hidden's dtype.
    """
    dropped = visual_count - selection.count
    candidate_count, merged_count = rule.candidate_count(dropped), rule.merged_count(dropped, selection.count)
    index = jnp.arange(candidate_capacity)
    at = jnp.minimum(selection.count[:, None] + index, hidden.shape[1] - 1)
    candidates = jnp.take_along_axis(selection.order, at, axis=1)
    x = jnp.take_along_axis(hidden, candidates[..., None], axis=1).astype(jnp.float32)
    tie_noise = None if noise is None else jnp.take_along_axis(noise, candidates, axis=1)
    sizes = None if size is None else jnp.take_along_axis(size, candidates, axis=1)

    cluster_row = jax.vmap(lambda *row: _cluster(*row, rule=rule, merged_capacity=merged_capacity))
    clusters = cluster_row(x, index < candidate_count[:, None], merged_count, tie_noise, sizes)
    return Recycled(
        merged=clusters.merged.astype(hidden.dtype),
        merged_count=merged_count,
        candidates=candidates,
        candidate_count=candidate_count,
        centers=jnp.take_along_axis(candidates, clusters.centers, axis=1),
        cluster=clusters.cluster,
        size=clusters.size,
        density=clusters.density,
        distance=clusters.distance,
        center_score=clusters.center_score,
    )


class _Clusters(NamedTuple):
    merged: Float[Array, "M D"]
    centers: Int[Array, " M"]
    cluster: Int[Array, " C"]
    density: Float[Array, " C"]
    distance: Float[Array, " C"]
    center_score: Float[Array, " C"]
    size: Float[Array, " M"]


def _cluster(x, valid, count, noise, size, *, rule: Recycle, merged_capacity: int) -> _Clusters:
    """One row: candidates [C, D] in descending score, `valid` of them real, into `count` clusters."""
    squared = _squared_distances(x, valid) / x.shape[1]
    distances = jnp.sqrt(squared)
    closeness = -_mean_of_smallest(squared, valid, count, merged_capacity)
    density = jnp.exp(closeness)
    if noise is not None:
        density = density + 1e-6 * noise
        closeness = density
    # Compared by exponent where there is no noise: exp() of a large distance is 0 and would tie with everything.
    distance = _distance_to_denser(distances, valid, closeness)
    center_score = jnp.where(valid, distance * density, -jnp.inf)
    centers = jnp.argsort(-center_score, stable=True)[:merged_capacity]
    is_center = jnp.arange(merged_capacity) < count

    to_center = -_cosine(x, x[centers]) if rule.assign == "cosine" else distances[:, centers]
    is_itself = jnp.arange(x.shape[0])[:, None] == centers  # a center joins its own cluster, not an equal one's
    to_center = jnp.where(is_itself, -jnp.inf, to_center)
    cluster = jnp.argmin(jnp.where(is_center, to_center, jnp.inf), axis=1)
    merged, merged_size = _merge(x, valid, cluster, merged_capacity, rule.merge, size)
    return _Clusters(merged, centers, cluster, density, distance, center_score, merged_size)


def _squared_distances(x: Float[Array, "C D"], valid: Bool[Array, " C"]) -> Float[Array, "C C"]:
    """||x_i - x_j||^2 by way of x x^T, about the mean: one outlier channel would otherwise eat the digits."""
    centred = x - jnp.where(valid[:, None], x, 0).sum(axis=0) / jnp.maximum(valid.sum(), 1)
    norm = (centred**2).sum(axis=1)
    squared = norm[:, None] + norm[None] - 2 * jnp.matmul(centred, centred.T, precision=_HIGHEST)
    return jnp.where(jnp.eye(x.shape[0], dtype=bool), 0, jnp.maximum(squared, 0))


def _mean_of_smallest(squared, valid, count, capacity: int) -> Float[Array, " C"]:
    """Mean squared distance to the `count` nearest valid candidates, oneself included."""
    nearest = -jax.lax.top_k(-jnp.where(valid, squared, jnp.inf), min(capacity, squared.shape[0]))[0]
    used = jnp.arange(nearest.shape[1]) < count
    return jnp.where(used, nearest, 0).sum(axis=1) / jnp.maximum(count, 1)


def _distance_to_denser(distances, valid, closeness) -> Float[Array, " C"]:
    """To the nearest denser candidate, for the densest the largest distance. Of equals, the earlier is denser."""
    index = jnp.arange(closeness.shape[0])
    earlier = (closeness[None] == closeness[:, None]) & (index[None] < index[:, None])
    denser = ((closeness[None] > closeness[:, None]) | earlier) & valid
    largest = jnp.max(jnp.where(valid[:, None] & valid, distances, 0))
    return jnp.min(jnp.where(denser, distances, largest), axis=1)


def _cosine(x: Float[Array, "C D"], centers: Float[Array, "M D"]) -> Float[Array, "C M"]:
    def unit(rows):
        return rows / jnp.maximum(jnp.linalg.norm(rows, axis=1, keepdims=True), 1e-12)

    return jnp.matmul(unit(x), unit(centers).T, precision=_HIGHEST)


def _merge(x, valid, cluster, capacity: int, how: str, size) -> tuple[Float[Array, "M D"], Float[Array, " M"]]:
    member = ((cluster[:, None] == jnp.arange(capacity)) & valid[:, None]).astype(x.dtype)
    if size is not None:
        member = member * size[:, None]
    total = jnp.matmul(member.T, jnp.where(valid[:, None], x, 0), precision=_HIGHEST)
    count = member.sum(axis=0)
    return total / (count[:, None] + 1e-6) if how == "mean" else total, count
