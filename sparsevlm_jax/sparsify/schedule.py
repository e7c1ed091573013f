"""Budgets that are known before the image is seen: kept tokens per stage, for any number of tokens, layers and stages.

All of this runs on the host, on plain integers; its results are static shapes and small constant tables.

The paper's count. "192 tokens" means: after each layer, count the visual tokens left (a pruning layer counts as already
pruned, merged tokens count too); the mean over layers is 192. The number that really *enters* a layer is larger.

For SparseVLM v1.5 at 192 of 576 tokens, 32 layers, pruning after 2, 6 and 15:

    layers        0 1 | 2 3 4 5 | 6 ... 14 | 15 ... 31
    tokens after  576 |   309   |    204   |    113       mean 192.03
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..checks import each, entries_of, real, refusal, settle, whole
from .recycle import Recycler

_ANCHOR_TOKENS, _ANCHOR_LAYERS, _ANCHOR_DEPTH = 576, (2, 6, 15), 32


class Curve(Protocol):
    """A family of schedules with one parameter, the nominal budget in [0, 1]: more of it keeps more at every stage."""

    def shares(self, nominal: np.ndarray, layers: Sequence[int], num_layers: int) -> np.ndarray:
        """Share of the prompt's visual tokens kept at each stage, [stages, rows], for nominal budgets [rows]."""
        ...

    def exact(self, amount: np.ndarray, rows: np.ndarray, layers: Sequence[int], num_layers: int) -> np.ndarray:
        """Rows, as a mask, for which the nominal budget itself is meant and no nearer mean is to be searched."""
        ...


def _schedule(name: str, value: Any) -> tuple[int, tuple[int, ...]]:
    """A nominal budget and the tokens kept after each of the anchored layers."""
    expected = f"a number of tokens and the {len(_ANCHOR_LAYERS)} that are kept"
    entries = entries_of(value)
    if entries is None or len(entries) != 2:
        raise refusal(name, expected, value)
    tokens, kept = whole(1)(name, entries[0]), each(whole(0))(name, entries[1])
    if len(kept) != len(_ANCHOR_LAYERS):
        raise refusal(name, expected, value)
    return tokens, kept


@dataclass(frozen=True)
class Anchors:
    """The line through the official schedules on 576 visual tokens: nominal tokens -> kept after layers 2, 6, 15 of 32.

    Between and beyond them, and for other layers, shares are interpolated over the nominal budget and over the depth.
    """

    schedules: tuple[tuple[int, tuple[int, ...]], ...]

    def __post_init__(self):
        settle(self, schedules=each(_schedule))

    def shares(self, nominal: np.ndarray, layers: Sequence[int], num_layers: int) -> np.ndarray:
        budgets = [0.0, *(tokens / _ANCHOR_TOKENS for tokens, _ in self.schedules), 1.0]
        stages = range(len(_ANCHOR_LAYERS))
        table = [[0.0, *(kept[stage] / _ANCHOR_TOKENS for _, kept in self.schedules), 1.0] for stage in stages]
        shares = np.stack([np.interp(nominal, budgets, column) for column in table])
        knots = np.array(_ANCHOR_LAYERS) / _ANCHOR_DEPTH
        at = [_between(layer / num_layers, knots, shares) for layer in layers]
        return np.array(at).reshape(len(at), -1)

    def exact(self, amount: np.ndarray, rows: np.ndarray, layers: Sequence[int], num_layers: int) -> np.ndarray:
        official = (num_layers, tuple(layers)) == (_ANCHOR_DEPTH, _ANCHOR_LAYERS)
        return (rows == _ANCHOR_TOKENS) & np.isin(amount, [tokens for tokens, _ in self.schedules]) & official


def _between(x: float, knots: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """`np.interp` at one `x` for many functions at once: `rows` has their values, a row for each knot."""
    after = int(np.searchsorted(knots, x, side="right"))
    if after in (0, len(knots)):
        return rows[max(after - 1, 0)]
    low, high = rows[after - 1], rows[after]
    return (high - low) / (knots[after] - knots[after - 1]) * (x - knots[after - 1]) + low


@dataclass(frozen=True)
class Geometric:
    """Every stage keeps the same share of what the stage before left (PyramidDrop); with one stage, just that share."""

    def shares(self, nominal: np.ndarray, layers: Sequence[int], num_layers: int) -> np.ndarray:
        return nominal ** np.arange(1, len(layers) + 1)[:, None]

    def exact(self, amount: np.ndarray, rows: np.ndarray, layers: Sequence[int], num_layers: int) -> np.ndarray:
        return np.zeros(len(rows), bool)


@dataclass(frozen=True)
class Shrinking:
    """The first stage keeps the nominal share; every later one keeps `later` of what the stage before left."""

    later: float = 0.5

    def __post_init__(self):
        settle(self, later=real("a share above 0 and at most 1", lambda later: 0 < later <= 1))

    def shares(self, nominal: np.ndarray, layers: Sequence[int], num_layers: int) -> np.ndarray:
        return nominal * self.later ** np.arange(len(layers))[:, None]

    def exact(self, amount: np.ndarray, rows: np.ndarray, layers: Sequence[int], num_layers: int) -> np.ndarray:
        return np.zeros(len(rows), bool)


V15 = Anchors(((64, (66, 30, 17)), (96, (238, 48, 26)), (128, (303, 110, 36)), (192, (300, 200, 110))))
PLUS = Anchors(((64, (66, 34, 20)), (96, (246, 54, 28)), (128, (238, 108, 60)), (192, (300, 200, 118))))


@dataclass(frozen=True)
class Bucket:
    """Static shape of a batch.

    Attributes:
        text: the most non-visual tokens in a row.
        visual: the most visual tokens in a row.
        images: the most pictures in a row.
        fewest: the fewest visual tokens in a row that has any. The nearer it is to `visual`, the closer a fixed budget
            bounds what its stages keep: a row with few tokens keeps all of them in every layer.
    """

    text: int
    visual: int
    images: int = 1
    fewest: int = 1

    @property
    def capacity(self) -> int:
        return self.text + self.visual


@dataclass(frozen=True)
class Geometry:
    """What a schedule is made for: tables have an entry for rows without visual tokens, and one for rows of `fewest` to
    `visual`.

    Attributes:
        num_layers: decoder layers.
        layers: the layers after which tokens are pruned, increasing; -1 is before the first.
        visual: the largest number of visual tokens of a row.
        fewest: the smallest one that is not 0.
    """

    num_layers: int
    layers: tuple[int, ...]
    visual: int
    fewest: int = 1

    @property
    def row_counts(self) -> np.ndarray:
        return np.concatenate([[0], np.arange(self.fewest, self.visual + 1)])


class Flow(NamedTuple):
    """What happens to rows of given sizes at each stage; arrays [stages, rows]."""

    entering: np.ndarray
    kept: np.ndarray
    candidates: np.ndarray
    merged: np.ndarray

    @property
    def leaving(self) -> np.ndarray:
        return self.kept + self.merged


def of_32(*layers: int) -> tuple[Fraction, ...]:
    """Layers of a 32-layer model, as fractions of the depth."""
    return tuple(Fraction(layer, 32) for layer in layers)


def default_layers(
    num_layers: int, fractions: Sequence[Fraction] = of_32(2, 6, 15), *, before: bool = False
) -> tuple[int, ...]:
    """Pruning layers at the given fractions of the depth, rounded half up, at least 1, strictly increasing; a negative
    fraction is before the first layer, -1. With `before`, those in front of these layers.

    Raises:
        ValueError: if the model has too few layers for that many stages.
    """
    layers: list[int] = []
    for fraction in fractions:
        after = max(math.floor(fraction * num_layers + Fraction(1, 2)), 1, layers[-1] + 1 if layers else 1)
        layers.append(-1 if fraction < 0 else after)
    if layers and layers[-1] >= num_layers:
        raise ValueError(
            f"{len(layers)} pruning layers need a model of more than {layers[-1]} layers, got {num_layers}"
        )
    return tuple(max(layer - before, -1) for layer in layers)


def check_layers(layers: Sequence[int], num_layers: int) -> None:
    """Raises ValueError unless `layers` are increasing layer indices of a model with `num_layers`."""
    if list(layers) != sorted(set(layers)):
        raise ValueError(f"pruning layers must be increasing and distinct, got {tuple(layers)}")
    if layers and not (layers[0] >= -1 and layers[-1] < num_layers):
        raise ValueError(
            f"pruning layers must be within -1 (before the first) and {num_layers - 1}, got {tuple(layers)}"
        )


def simulate(wanted: np.ndarray, rows: np.ndarray, recycle: Recycler | None) -> Flow:
    """The stages a row goes through when `wanted` [stages, rows] tokens are kept (at most what is there)."""
    entering, kept, candidates, merged = [], [], [], []
    now = rows
    for stage in wanted:
        entering.append(now)
        kept.append(np.minimum(stage, now))
        dropped = now - kept[-1]
        candidates.append(recycle.candidate_count(dropped) if recycle else np.zeros_like(now))
        merged.append(recycle.merged_count(dropped, kept[-1]) if recycle else np.zeros_like(now))
        now = kept[-1] + merged[-1]
    shape = (len(wanted), len(rows))
    return Flow(*(np.array(field, int).reshape(shape) for field in (entering, kept, candidates, merged)))


def mean_after_layers(flow: Flow, rows: np.ndarray, layers: Sequence[int], num_layers: int) -> np.ndarray:
    """The paper's count of each row: mean over layers of the visual tokens left after the layer."""
    starts = [max(layer, 0) for layer in layers]  # a stage before layer 0 acts on all layers, as one behind it does
    total = rows * (starts[0] if starts else num_layers)
    for leaving, start, end in zip(flow.leaving, starts, [*starts[1:], num_layers], strict=True):
        total = total + leaving * (end - start)
    return total / num_layers


def mean_entering_layers(flow: Flow, rows: np.ndarray, layers: Sequence[int], num_layers: int) -> np.ndarray:
    """What layers really work on: mean over layers of the visual tokens entering the layer."""
    first = layers[0] + 1 if layers else num_layers
    total = rows * first
    for leaving, start, end in zip(flow.leaving, layers, [*layers[1:], num_layers - 1], strict=True):
        total = total + leaving * (end - start)
    return total / num_layers


def kept_for_mean(
    target: np.ndarray, rows: np.ndarray, geometry: Geometry, recycle: Recycler | None, curve: Curve
) -> np.ndarray:
    """Kept tokens per stage and row, [stages, rows], whose mean (the paper's count) is nearest to `target`.

    Searched along `curve`; the official schedules come out as they are. A row that may keep everything does. Every
    stage keeps at least one token.
    """
    layers, depth = geometry.layers, geometry.num_layers

    def kept_at(nominal):
        return np.maximum(np.floor(curve.shares(nominal, layers, depth) * rows + 0.5).astype(int), 1)

    def mean_at(nominal):
        return mean_after_layers(simulate(kept_at(nominal), rows, recycle), rows, layers, depth)

    low, high = np.zeros(len(rows)), np.ones(len(rows))
    for _ in range(40):
        middle = (low + high) / 2
        below = mean_at(middle) <= target
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    nearest = np.where(target - mean_at(low) <= mean_at(high) - target, low, high)
    nominal = target / np.maximum(rows, 1)
    # An official schedule stands for its name only with its own recycler: their means are less than a token off.
    exact = curve.exact(target, rows, layers, depth) & (np.abs(mean_at(nominal) - target) < 1)
    nearest = np.where(exact, nominal, nearest)
    return np.where(target >= rows, rows, kept_at(nearest))
