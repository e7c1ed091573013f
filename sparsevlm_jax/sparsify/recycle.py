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
from .needs import Need, Sizes
from .scorer import Scores
from .select import Selection
from .stream import at_slots

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

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"sizes"} if self.size_aware else ())

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

    def __call__(self, inputs: "RecycleInputs") -> "Recycled":
        """`recycle` by this rule, whatever the scorer saw."""
        return recycle(
            inputs.hidden,
            inputs.selection,
            inputs.visual_count,
            self,
            candidate_capacity=inputs.candidate_capacity,
            merged_capacity=inputs.merged_capacity,
            noise=inputs.noise,
            size=inputs.size,
        )

    def cost(self, sizes: Sizes) -> int:
        """The paper's clustering, L_r (3 L_r - 1) 2 D + L_r, and merging, D (L_r - C)."""
        candidates = sizes.candidates
        if not candidates:
            return 0
        cluster = candidates * (3 * candidates - 1) * 2 * sizes.dim + candidates
        return cluster + sizes.dim * (candidates - sizes.merged)


class RecycleInputs(NamedTuple):
    """What a recycler sees: the visual tokens that entered the stage, which of them stay, and the static bounds of the
    tokens that it clusters and makes.

    `hidden` of dropped tokens that are no candidates, the first so many after the kept in `selection.order`, is 0 for a
    recycler that does not need "hidden". `scores` is all that the scorer gave, `size` how many patches each token
    stands for (None: one), `noise` the random numbers of the official clustering (see `recycle`).
    """

    hidden: Float[Array, "B V D"]
    selection: Selection
    visual_count: Int[Array, " B"]
    candidate_capacity: int
    merged_capacity: int
    scores: Scores
    size: Float[Array, "B V"] | None = None
    noise: Float[Array, "B V"] | None = None


class Recycler(Protocol):
    """What becomes of the dropped tokens, as a frozen value. `Recycle` is SparseVLM's.

    The counts are plain arithmetic, on ints and arrays alike, and grow with `dropped` and `kept`.
    """

    @property
    def needs(self) -> frozenset[Need]: ...

    def candidate_count(self, dropped: Any) -> Any: ...

    def merged_count(self, dropped: Any, kept: Any) -> Any: ...

    def __call__(self, inputs: RecycleInputs) -> "Recycled": ...

    def cost(self, sizes: Sizes) -> int:
        """Multiply-accumulates of one row."""
        ...


class Recycled(NamedTuple):
    """Merged tokens and how they came about. Per candidate, in order of descending score: its visual index, its
    cluster, and the three numbers of density-peak clustering (None from a rest without). Entries past the counts are
    padding.

    `size` is how many tokens each merged one stands for, `weights` how much of each candidate it is.
    """

    merged: Float[Array, "B M D"]
    merged_count: Int[Array, " B"]
    candidates: Int[Array, "B C"]
    candidate_count: Int[Array, " B"]
    centers: Int[Array, "B M"]  # visual index of each cluster's center, in descending center score
    cluster: Int[Array, "B C"]
    size: Float[Array, "B M"]
    weights: Float[Array, "B M C"]
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
    x = at_slots(hidden, candidates).astype(jnp.float32)
    tie_noise = None if noise is None else at_slots(noise, candidates)
    sizes = None if size is None else at_slots(size, candidates)

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
        weights=clusters.weights,
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
    weights: Float[Array, "M C"]


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
    merged, merged_size, weights = _merge(x, valid, cluster, merged_capacity, rule.merge, size)
    return _Clusters(merged, centers, cluster, density, distance, center_score, merged_size, weights)


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


def _merge(
    x, valid, cluster, capacity: int, how: str, size
) -> tuple[Float[Array, "M D"], Float[Array, " M"], Float[Array, "M C"]]:
    """The clusters as one token each, how many each stands for, and its members' weights."""
    member = ((cluster[:, None] == jnp.arange(capacity)) & valid[:, None]).astype(x.dtype)
    if size is not None:
        member = member * size[:, None]
    total = jnp.matmul(member.T, jnp.where(valid[:, None], x, 0), precision=_HIGHEST)
    count = member.sum(axis=0)
    if how == "sum":
        return total, count, member.T
    return total / (count[:, None] + 1e-6), count, member.T / (count[:, None] + 1e-6)
