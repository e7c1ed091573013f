"""What the parts of a method say of themselves: what they look at (`needs`) and what they cost (`cost`).

Each scorer, selector, budget, recycler and tower method names its needs, and nobody looks further: what no part asks
for is not computed, and hidden states are withheld from a part that has not asked for them.
"""

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

Need = Literal["raters", "attention", "next_layer", "hidden", "tower", "cells", "sizes", "class_token"]
"""raters: the question's words that rate. attention: queries and keys of the layer that the stage follows; there is
none before layer 0. next_layer: those of the layer after it; there is none after the last. hidden: hidden states of
every visual token, as the layer leaves them; where no part asks, its feed-forward waits for the decision and leaves out
what is dropped. tower: what the vision tower knows of each token, and cells: where each sits in its picture; of these
the first stage knows alone. sizes: how many patches each token stands for, in every later layer's attention; that is a
bias, so XLA computes it. class_token: the vision tower's."""


class Sizes(NamedTuple):
    """What one row's stage costs by: words that rate; visual tokens that enter, are kept, are candidates for recycling,
    and are merged ones; the width of hidden states, of all queries and of all keys."""

    text: int
    visual: int
    kept: int
    candidates: int
    merged: int
    dim: int
    query_width: int
    key_width: int


def needing(*needs: Need) -> frozenset[Need]:
    """These needs: `needs = needing("raters", "hidden")` in a part's class."""
    return frozenset(needs)


def needs_of(parts: Iterable[Any]) -> frozenset[Need]:
    """All that the parts need; None is no part."""
    return frozenset().union(*(part.needs for part in parts if part is not None))
