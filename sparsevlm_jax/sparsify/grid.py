"""Where an image's tokens sit: rows of a square grid, and an order that covers it evenly from its first token on."""

import functools
import math

import numpy as np
from jaxtyping import Float, Int


def grid_positions(tokens: int) -> Float[np.ndarray, "V 2"]:
    """Row and column of each token of one image, in raster order.

    A square number of tokens is a square grid; one more is a class token, put at the centre, and the grid behind it;
    anything else is one row.
    """
    for class_tokens in (0, 1):
        side = math.isqrt(tokens - class_tokens)
        if side * side == tokens - class_tokens:
            grid = np.stack(np.divmod(np.arange(side * side), side), axis=1)
            return np.concatenate([np.full((class_tokens, 2), (side - 1) / 2), grid])
    return np.stack([np.zeros(tokens), np.arange(tokens)], axis=1)


@functools.lru_cache(maxsize=16)
def spread_rank(tokens: int) -> Int[np.ndarray, " V"]:
    """The turn at which each token of one image comes when every next one is the farthest from those before.

    The first is the one nearest to the centre; ties go to the lower index. Of 9 tokens in a square:

        1 5 2
        6 0 7
        3 8 4
    """
    position = grid_positions(tokens)
    first = int(np.argmin(((position - position.mean(axis=0)) ** 2).sum(axis=1)))
    rank, nearest, chosen = np.zeros(tokens, np.int32), np.full(tokens, np.inf), first
    for turn in range(tokens):
        rank[chosen] = turn
        nearest = np.minimum(nearest, ((position - position[chosen]) ** 2).sum(axis=1))
        nearest[chosen] = -1  # also where another token shares the place
        chosen = int(np.argmax(nearest))
    return rank
