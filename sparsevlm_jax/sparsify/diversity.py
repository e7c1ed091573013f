"""Greedy selection that looks at the tokens themselves: keep those that repeat nothing that is kept.

One token a step, `capacity` steps whatever the rows' counts; the first `count` of a row are what a shorter run would
have chosen. Similarities are one Gram matrix [B, V, V]; a step then looks at vectors of V (and, for determinants, at
the rows chosen so far).

B batch · V visual tokens · K capacity · F features
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..checks import flag, real, settle
from .needs import Sizes, needing
from .select import Selection, keep_first, select

_FAR = 1e9  # more than any distance of two cells, squared
_EXHAUSTED = 1e-6  # what is left of a token's squared volume when the chosen ones span it, in float32


def cosine_similarity(features: Float[Array, "B V F"], others: Float[Array, "B W F"]) -> Float[Array, "B V W"]:
    """Cosines, float32; 0 for a zero vector."""

    def unit(x):
        x = x.astype(jnp.float32)
        return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)

    return jnp.einsum("BVF,BWF->BVW", unit(features), unit(others), precision=jax.lax.Precision.HIGHEST)


def greedy(
    gain: Callable[[Int[Array, ""], Any], Float[Array, "B V"]],
    update: Callable[[Int[Array, ""], Any, Int[Array, " B"]], Any],
    state: Any,
    is_valid: Bool[Array, "B V"],
    *,
    capacity: int,
) -> Int[Array, "B V"]:
    """The step at which each token was chosen, V for those that never were.

    Args:
        gain: step, state -> what each token would add; the free valid token with the largest is chosen, the lower index
            of equals.
        update: step, state, chosen token of each row -> next state. A row with no token left gets 0, and its state does
            not matter any more.
    """
    never, rows = is_valid.shape[1], jnp.arange(is_valid.shape[0])

    def choose(step, carry):
        turn, state = carry
        value = jnp.where(is_valid & (turn == never), gain(step, state), -jnp.inf)
        chosen = jnp.argmax(value, axis=1)
        is_left = jnp.take_along_axis(value, chosen[:, None], axis=1)[:, 0] > -jnp.inf
        return turn.at[rows, chosen].min(jnp.where(is_left, step, never)), update(step, state, chosen)

    turn = jnp.full(is_valid.shape, never)
    return jax.lax.fori_loop(0, capacity, choose, (turn, state))[0]


def in_turn(
    turn: Int[Array, "B V"], scores: Float[Array, "B V"], is_valid: Bool[Array, "B V"], count: Int[Array, " B"]
) -> Selection:
    """A row's `count` first tokens in the order `greedy` chose them, then the others from the highest score to the
    lowest: those that it chose for the sake of rows with a larger count among them."""
    by_score = select(scores, is_valid, count).order
    turn = jnp.where(turn < count[:, None], turn, turn.shape[1])
    turn = jnp.where(is_valid, turn, turn.shape[1] + 1)
    by_turn = jnp.argsort(jnp.take_along_axis(turn, by_score, axis=1), axis=1, stable=True)
    return keep_first(jnp.take_along_axis(by_score, by_turn, axis=1), is_valid, count)


@dataclass(frozen=True)
class MaxMin:
    """Max-min diversity: each next token is the one whose nearest chosen token is farthest, by cosine; the first is the
    one whose nearest neighbour is farthest. Scores do not matter but for the order of what is dropped."""

    needs = needing("hidden")

    def cost(self, sizes: Sizes) -> int:
        return sizes.visual**2 * sizes.dim

    def __call__(self, scores, features, is_valid, count, *, capacity):
        similarity = cosine_similarity(features, features)
        others = is_valid[:, None] & ~jnp.eye(is_valid.shape[1], dtype=bool)
        closest = jnp.where(others, similarity, -jnp.inf).max(axis=2)
        # A single token has no neighbour: the lowest cosine stands for it, so that it can be chosen.
        closest = jnp.maximum(closest, -1.0)

        def gain(step, closest):
            return -closest

        def update(step, closest, chosen):
            to_chosen = jnp.take_along_axis(similarity, chosen[:, None, None], axis=1)[:, 0]
            return jnp.where(step == 0, to_chosen, jnp.maximum(closest, to_chosen))

        turn = greedy(gain, update, closest, is_valid, capacity=capacity)
        return in_turn(turn, scores, is_valid, count)


@dataclass(frozen=True)
class Spread:
    """Evenly over each picture: every next token of a picture is the farthest from those chosen of it, the first the
    one nearest to its centre; pictures take turns, tiles and frames as pictures of their own. Features are what
    `CellPlaces` gives. Tokens without a place come last, by score.

    Of nine tokens in a square the turns are

        1 5 2
        6 0 7
        3 8 4
    """

    needs = needing()

    def cost(self, sizes: Sizes) -> int:
        return 0  # differences of places: no product of hidden states

    def __call__(self, scores, features, is_valid, count, *, capacity):
        if features is None:
            raise ValueError("Spread goes by the places that a scorer gives as features, such as CellPlaces: got none")
        view, place = features[..., :3], features[..., 3:]
        is_placed = is_valid & (view[..., 1] >= 0)
        together = (view[:, :, None] == view[:, None]).all(axis=-1) & is_placed[:, None]
        number = jnp.maximum(together.sum(axis=2), 1)[..., None]
        centre = jnp.einsum("BVW,BWP->BVP", together, place, precision=jax.lax.Precision.HIGHEST) / number
        # What a token would add: before its picture's first turn the nearer to the centre the more, then its distance.
        worth = -((place - centre) ** 2).sum(axis=-1)
        is_free, turns = is_placed, jnp.zeros(is_valid.shape, jnp.int32)

        def gain(step, state):
            worth, turns, is_free = state
            fewest = jnp.where(is_free, turns, is_valid.shape[1]).min(axis=1, keepdims=True)
            return jnp.where(is_free & (turns == fewest), worth, -_FAR)

        def update(step, state, chosen):
            worth, turns, is_free = state
            own = jnp.take_along_axis(together, chosen[:, None, None], axis=1)[:, 0]
            distance = ((place - jnp.take_along_axis(place, chosen[:, None, None], axis=1)) ** 2).sum(axis=-1)
            nearer = jnp.where(turns == 0, distance, jnp.minimum(worth, distance))
            is_other = jnp.arange(is_free.shape[1]) != chosen[:, None]
            return jnp.where(own, nearer, worth), turns + own, is_free & is_other

        turn = greedy(gain, update, (worth, turns, is_free), is_placed, capacity=capacity)
        return in_turn(turn, scores, is_valid, count)


@dataclass(frozen=True)
class Determinantal:
    """Relevance and diversity in one: the subset S whose kernel has the largest determinant, greedily (the MAP of a
    determinantal point process; the fast update is Chen et al.'s, arXiv 1709.05135).

        L_ij = q_i ((1 - ridge) cos(x_i, x_j) + ridge [i = j]) q_j        log det L_S = sum 2 log q_i + log det S_S

    Attributes:
        power: q = (score / largest score) ** power: 0 is diversity alone, a large one scores alone.
        centred: take cosines about the mean of the row's tokens. Hidden states share a large common part, beside which
            their differences are invisible.
        ridge: how much of a token no other one can stand for: with 0 a duplicate has no worth, whatever its score.

    Where the chosen tokens span all that is left, the rest follows by score.
    """

    power: float = 1.0
    centred: bool = False
    ridge: float = 0.0
    needs = needing("hidden")

    def __post_init__(self):
        settle(
            self,
            power=real("a number from 0 to 100", lambda power: 0 <= power <= 100),
            centred=flag,
            ridge=real("a share between 0 and 1", lambda ridge: 0 <= ridge <= 1),
        )

    def __call__(self, scores, features, is_valid, count, *, capacity):
        quality = self._quality(scores, is_valid)
        similarity = self._similarity(features, is_valid)
        volume = quality**2
        floor = _EXHAUSTED * volume

        def gain(step, state):
            left, _ = state
            # Below all volumes, which are positive: tokens that the chosen ones span, by quality.
            return jnp.where(left > floor, left, quality - 2)

        def update(step, state, chosen):
            left, rows = state
            at = chosen[:, None]
            kernel = quality * jnp.take_along_axis(quality, at, axis=1)
            kernel = kernel * jnp.take_along_axis(similarity, at[..., None], axis=1)[:, 0]
            onto = jnp.take_along_axis(rows, at[:, None], axis=2)[..., 0]
            fresh = jnp.take_along_axis(left, at, axis=1)
            residual = kernel - jnp.einsum("BK,BKV->BV", onto, rows, precision=jax.lax.Precision.HIGHEST)
            usable = fresh > jnp.take_along_axis(floor, at, axis=1)
            row = jnp.where(usable, residual / jnp.sqrt(jnp.where(usable, fresh, 1)), 0)
            return left - row**2, rows.at[:, step].set(row)

        rows = jnp.zeros((is_valid.shape[0], max(capacity, 1), is_valid.shape[1]))
        turn = greedy(gain, update, (volume, rows), is_valid, capacity=capacity)
        return in_turn(turn, scores, is_valid, count)

    def cost(self, sizes: Sizes) -> int:
        return sizes.visual**2 * sizes.dim + sizes.visual * sizes.kept**2

    def _quality(self, scores, is_valid) -> Float[Array, "B V"]:
        scores = jnp.maximum(jnp.where(is_valid & ~jnp.isnan(scores), scores.astype(jnp.float32), 0), 0)
        largest = scores.max(axis=1, keepdims=True)
        return jnp.where(largest > 0, scores / jnp.where(largest > 0, largest, 1), 1) ** self.power

    def _similarity(self, features, is_valid) -> Float[Array, "B V V"]:
        features = jnp.where(is_valid[..., None], features.astype(jnp.float32), 0)
        if self.centred:
            mean = features.sum(axis=1, keepdims=True) / jnp.maximum(is_valid.sum(axis=1), 1)[:, None, None]
            features = features - mean
        identity = jnp.eye(is_valid.shape[1])
        similarity = jnp.where(identity > 0, 1, cosine_similarity(features, features))
        return (1 - self.ridge) * similarity + self.ridge * identity
