"""How many visual tokens each stage keeps: a number, a schedule, or the rank of the raters' attention.

A budget is fixed or adaptive. A fixed one is a table, made on the host: how many tokens each stage keeps of a row with
so many. An adaptive one depends on the picture: on the host it bounds the counts, so that shapes are static, and inside
jit it gives each row's own.

B batch · R raters · V visual tokens
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..checks import LARGEST, choice, each, optional, part, real, settle, whole
from .amount import Amount, Share, number_or_share, parse_amount
from .needs import Need, Sizes, needing
from .rank import Measure, attention_rank
from .recycle import Recycler
from .schedule import V15, Bucket, Curve, Geometry, kept_for_mean, simulate


class CountInputs(NamedTuple):
    """What a count may depend on: how many visual tokens there are, the raters' attention onto them (None: the scorer
    gives none), and their scores."""

    visual_count: Int[Array, " B"]
    rater_count: Int[Array, " B"]
    attention_map: Float[Array, "B R V"] | None
    values: Float[Array, "B V"] | None = None


@runtime_checkable
class FixedBudget(Protocol):
    """Known before the picture is seen."""

    def table(self, geometry: Geometry, recycle: Recycler | None) -> np.ndarray:
        """Kept tokens, [stages, rows of geometry]."""
        ...

    def check(self, geometry: Geometry) -> None:
        """Raises ValueError if a row of `geometry.visual` tokens cannot be brought down to the budget."""
        ...

    def number(self, images: int) -> int | None:
        """How many tokens it asks of a row with so many images; None where that is no number."""
        ...


@runtime_checkable
class AdaptiveBudget(Protocol):
    """Known when a stage has scored."""

    @property
    def needs(self) -> frozenset[Need]: ...

    def bound(self, visual: int, bucket: Bucket) -> int:
        """The most tokens a stage keeps of `visual`."""
        ...

    def count(self, inputs: CountInputs) -> Int[Array, " B"]:
        """Tokens to keep."""
        ...

    def number(self, images: int) -> int | None:
        """As in `FixedBudget`."""
        ...

    def cost(self, sizes: Sizes) -> int:
        """Multiply-accumulates of the count."""
        ...


Budget: TypeAlias = FixedBudget | AdaptiveBudget


@dataclass(frozen=True)
class Tokens:
    """A mean number of visual tokens or a `Share` of them, in the paper's count; see `schedule`. Made of whatever
    `parse_amount` takes."""

    amount: Amount
    curve: Curve = V15

    def __post_init__(self):
        settle(self, amount=number_or_share("tokens"), curve=part("a Curve", "shares", "exact"))

    @classmethod
    def parse(cls, value: Amount, curve: Curve = V15) -> "Tokens":
        """192, "192", "1/3", 0.25 or "25%".

        Raises:
            ValueError: unless it is a positive number of tokens or a share in (0, 1].
        """
        return cls(parse_amount(value), curve)

    def number(self, images: int) -> int | None:
        """How many tokens it asks of a row; None for a share."""
        return self.amount if isinstance(self.amount, int) else None

    def table(self, geometry: Geometry, recycle: Recycler | None) -> np.ndarray:
        rows = geometry.row_counts
        target = rows * float(self.amount) if isinstance(self.amount, Share) else np.full(len(rows), self.amount)
        return kept_for_mean(target.astype(float), rows, geometry, recycle, self.curve)

    def check(self, geometry: Geometry) -> None:
        """What the layers before the first stage see cannot be met. A token or two more, those that each stage keeps at
        least, can be missed: then the least mean there is comes out, and the report says it."""
        target = geometry.visual * self.amount.value if isinstance(self.amount, Share) else Fraction(self.amount)
        floor = Fraction(geometry.visual * max(geometry.layers[0], 0), geometry.num_layers)
        if geometry.visual and target < floor:
            raise ValueError(
                f"a budget of {float(target):g} visual tokens is below the floor of {float(floor):g}: the first "
                f"{geometry.layers[0]} of {geometry.num_layers} layers see all {geometry.visual}"
            )


@dataclass(frozen=True)
class PerImage:
    """The same number of tokens, or share of the tokens, of every image, whatever the prompt holds besides: as many as
    the vision tower has left, which scores the others 0."""

    amount: Amount
    needs = needing("tower")

    def __post_init__(self):
        settle(self, amount=number_or_share("tokens"))

    @classmethod
    def parse(cls, tokens: "TokenBudget") -> "PerImage":
        """Of an amount; or of `KeptTokens` of one stage, which is the same.

        Raises:
            ValueError: unless it is a number of tokens, a share, or one of these kept in a single stage.
        """
        if not isinstance(tokens, KeptTokens):
            return cls(parse_amount(tokens))
        if len(tokens.kept) != 1:
            raise ValueError(
                f"tokens are chosen once, in the tower: expected one number of kept tokens, got {tokens.kept}"
            )
        return cls(tokens.kept[0])

    def number(self, images: int) -> int | None:
        """How many tokens it asks of a row; None for a share."""
        return self.amount * images if isinstance(self.amount, int) else None

    def of(self, visual: int) -> int:
        """Of an image with `visual` tokens: a share is rounded, a number bounded by what there is; at least 1."""
        if isinstance(self.amount, Share):
            return self.amount.of(visual)
        return min(int(self.amount), visual)

    def bound(self, visual: int, bucket: Bucket) -> int:
        if bucket.images == 1:
            return self.of(visual)
        if isinstance(self.amount, Share):  # each image's part is rounded, or is one token: less than one more
            return min(visual, math.floor(self.amount.value * visual) + bucket.images)
        return min(visual, int(self.amount) * bucket.images)

    def most(self, visual: Int[Array, " B"], images: Int[Array, " B"], capacity: int) -> Int[Array, " B"]:
        """`bound` of rows of `visual` tokens, at most `capacity`, of so many images; of a share."""
        assert isinstance(self.amount, Share)
        value, counts = self.amount.value, range(capacity + 1)
        of_one, whole = (jnp.array([count(n) for n in counts]) for count in (self.of, lambda n: math.floor(value * n)))
        return jnp.where(images > 1, jnp.minimum(whole[visual] + images, visual), of_one[visual])

    def count(self, inputs: CountInputs) -> Int[Array, " B"]:
        assert inputs.values is not None
        return (inputs.values > 0).sum(axis=1)

    def cost(self, sizes: Sizes) -> int:
        return 0


@dataclass(frozen=True)
class KeptTokens:
    """Tokens kept at each stage, for each stage a number or a `Share` of the prompt's visual tokens.

    Attributes:
        kept: as many entries as there are stages; what is recycled comes on top.
        least_dropped: of the tokens that enter a stage; the official code drops at least one.
    """

    kept: tuple[Amount, ...]
    least_dropped: int = 1

    def __post_init__(self):
        settle(self, kept=each(_kept, at_least=1), least_dropped=whole(0))

    @classmethod
    def parse(cls, kept: "Amount | Sequence[Amount]") -> "KeptTokens":
        """192, "192", (300, 200, 110), "300,200,110", "1/2,1/4,1/8"; where that is more than there is, all stay.

        Raises:
            ValueError: unless each is a number of tokens or a share in (0, 1].
        """
        entries = kept.split(",") if isinstance(kept, str) else kept
        entries = tuple(entries) if isinstance(entries, Sequence) else (entries,)
        return cls(entries, least_dropped=0)

    def number(self, images: int) -> int | None:
        """How many tokens its first stage keeps; None for a share."""
        return self.kept[0] if isinstance(self.kept[0], int) else None

    def check(self, geometry: Geometry) -> None:
        """Any number can be kept."""

    def table(self, geometry: Geometry, recycle: Recycler | None) -> np.ndarray:
        if len(self.kept) != len(geometry.layers):
            raise ValueError(
                f"expected one number of kept tokens for each of the pruning layers {geometry.layers}, got {self.kept}"
            )
        rows, counts = geometry.row_counts, []
        for stage, amount in enumerate(self.kept):
            now = simulate(np.array(counts).reshape(stage, -1), rows, recycle).leaving[-1] if counts else rows
            wanted = [amount.of(row) for row in rows.tolist()] if isinstance(amount, Share) else int(amount)
            counts.append(np.clip(wanted, 0, np.maximum(now - self.least_dropped, 0)))
        return np.array(counts)


def _kept(name: str, value: Amount) -> int | Share:
    """A number of tokens, none among them, or a share of them."""
    return whole(0)(name, value) if isinstance(value, int | np.integer) else number_or_share("kept tokens")(name, value)


#: What methods take as `tokens`.
TokenBudget: TypeAlias = Amount | KeptTokens


def parse_budget(tokens: TokenBudget, curve: Curve = V15) -> Tokens | KeptTokens:
    """`KeptTokens` as they are; of an amount, the mean over layers, with what the stages keep on `curve`.

    Raises:
        ValueError: unless it is a number of tokens, a share, or `KeptTokens`.
    """
    return tokens if isinstance(tokens, KeptTokens) else Tokens.parse(tokens, curve)


_RATIO = real("a number between -1e6 and 1e6", lambda ratio: abs(ratio) <= 1e6)


class _ByRank:
    """What budgets share that count by the rank of the raters' attention."""

    capacity: int | None
    needs = needing("raters")

    def number(self, images: int) -> None:
        """The picture decides."""

    def bound(self, visual: int, bucket: Bucket) -> int:
        return visual if self.capacity is None else min(visual, self.capacity)

    def cost(self, sizes: Sizes) -> int:
        """The paper's L_t L_v min(L_t, L_v)."""
        return sizes.text * sizes.visual * min(sizes.text, sizes.visual)

    def attention_map(self, inputs: CountInputs) -> Float[Array, "B R V"]:
        """The raters' attention.

        Raises:
            ValueError: the method's scorer gives none.
        """
        if inputs.attention_map is None:
            raise ValueError(f"{self} counts by the raters' attention, which this method's scorer does not give")
        return inputs.attention_map


@dataclass(frozen=True)
class RankScale(_ByRank):
    """Keep int(rank * scale + bias), at least one token fewer than there are; all of them where the attention has full
    rank, rank = V (SparseVLM v1.0; with scale 1, bias 0 its video branch).

    `capacity` bounds what a stage keeps, so that later layers are short: a larger count is clamped, and the overflow
    reported. None bounds nothing.
    """

    scale: float = 13.5
    bias: float = 0.0
    measure: Measure = "numerical"
    capacity: int | None = None

    def __post_init__(self):
        settle(self, scale=_RATIO, bias=_RATIO, measure=choice(Measure), capacity=optional(whole(0)))

    def count(self, inputs: CountInputs) -> Int[Array, " B"]:
        attention = self.attention_map(inputs)
        rank = attention_rank(attention, inputs.rater_count, inputs.visual_count, measure=self.measure)
        count = jnp.clip(self._scaled(rank, attention.shape), 0, jnp.maximum(inputs.visual_count - 1, 0))
        return jnp.where(rank == inputs.visual_count, inputs.visual_count, count)

    def _scaled(self, rank: Float[Array, " B"], shape: tuple[int, ...]) -> Int[Array, " B"]:
        """A whole rank goes through a table made on the host: 100 * 0.29 truncates to 28, in float32 to 29."""
        if self.measure != "numerical":
            return jnp.floor(rank * self.scale + self.bias).astype(jnp.int32)
        table = [math.trunc(min(r * self.scale + self.bias, LARGEST)) for r in range(min(shape[1:]) + 1)]
        return jnp.asarray(table, jnp.int32)[rank.astype(jnp.int32)]


@dataclass(frozen=True)
class RankDeficit(_ByRank):
    """The paper's eq. 7: N = int(lambda * (V - rank)) tokens are dropped; with N = 0 the stage is skipped."""

    scale: float
    measure: Measure = "numerical"
    capacity: int | None = None

    def __post_init__(self):
        scale = real("a share between 0 and 1, the paper's lambda", lambda scale: 0 <= scale <= 1)
        settle(self, scale=scale, measure=choice(Measure), capacity=optional(whole(0)))

    def count(self, inputs: CountInputs) -> Int[Array, " B"]:
        attention = self.attention_map(inputs)
        rank = attention_rank(attention, inputs.rater_count, inputs.visual_count, measure=self.measure)
        if self.measure != "numerical":
            return inputs.visual_count - jnp.floor(self.scale * (inputs.visual_count - rank)).astype(jnp.int32)
        dropped = [math.trunc(self.scale * deficit) for deficit in range(attention.shape[2] + 1)]
        deficit = jnp.maximum(inputs.visual_count - rank.astype(jnp.int32), 0)
        return inputs.visual_count - jnp.asarray(dropped, jnp.int32)[deficit]
