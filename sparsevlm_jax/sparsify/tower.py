"""What the vision tower tells a method, and methods that act inside it or between it and the projector.

I images · B batch · V visual tokens · T tokens of the tower (class token included) · N heads · H head dim · D model dim
"""

from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Float, Int

from .needs import Need


class ImageContext(NamedTuple):
    """What is known of each visual token beside its embedding, for methods that ask.

    Of the vision tower: the attention of the class token (mean over heads) and the keys in the last layer that runs;
    where the tower has merged tokens, how many patches each stands for (0: merged into another one), and the turn at
    which each comes in the method's order. Of the processor: the number of the picture it is of, and its cell (grid,
    time, row, column); -1 in all four for a token that has no place in the picture, such as a separator.

    Packed over all pictures [V, ...], or gathered per row [B, V, ...].
    """

    cls_attention: Float[Array, "*B V"] | None = None
    keys: Float[Array, "*B V N H"] | None = None
    size: Float[Array, "*B V"] | None = None
    order: Int[Array, "*B V"] | None = None
    media: Int[Array, "*B V"] | None = None
    cell: Int[Array, "*B V 4"] | None = None


class MergedTokens(NamedTuple):
    """Tokens of a tower that merges, in the method's order: how many of the first each stands for, and whose place each
    has."""

    hidden: Float[Array, "I T D"]
    size: Float[Array, "I T"]
    origin: Int[Array, "I T"]


class TowerMerging(Protocol):
    """A method that merges tokens inside the tower, between attention and MLP of each layer, as a frozen value."""

    @property
    def needs(self) -> frozenset[Need]: ...

    def schedule(self, tokens: int, layers: int, visual: int, *, class_tokens: int) -> tuple[int, ...]:
        """Tokens leaving each of the `layers` that run, of `tokens` that enter; `visual` of these are the image's."""
        ...

    def merge(
        self, tokens: MergedTokens, keys: Float[Array, "I T N H"], count: int, *, class_tokens: int
    ) -> MergedTokens:
        """`tokens`, the class token first where there is one, merged into `count`; the class token stays what and where
        it is."""
        ...

    def cost(self, tokens: int, count: int, head_dim: int) -> int:
        """Multiply-accumulates of merging `tokens` into `count`, keys `head_dim` wide."""
        ...


class TowerOutput(NamedTuple):
    """What a tower says of its tokens, the class token, where there is one, first: the hidden states that the projector
    would see; queries and keys of the layer that gave them; over the full width, the class token's query and all keys
    of the layer after it, or of the same one where it is the last."""

    hidden: Float[Array, "I T D"]
    q: Float[Array, "I T N H"]
    k: Float[Array, "I T N H"]
    cls_query: Float[Array, "I D"] | None
    full_keys: Float[Array, "I T D"]

    @property
    def first_patch(self) -> int:
        """The number of the first patch: 1 after a class token, else 0."""
        return 0 if self.cls_query is None else 1


@runtime_checkable
class TowerReduction(Protocol):
    """A method that chooses and merges tokens between the tower and the projector, as a frozen value. One that needs a
    class token is not given towers that have none."""

    @property
    def needs(self) -> frozenset[Need]: ...

    def count(self, visual: int) -> int:
        """Tokens that an image of `visual` becomes."""
        ...

    def reduce(self, tower: TowerOutput, count: int) -> MergedTokens:
        """The patches of `tower`, and its class token, as `count` tokens, fewer than the patches. The place of each is
        that of a patch, numbered as in `tower` from `first_patch` on, and no two have the same."""
        ...

    def cost(self, patches: int, count: int, dim: int, head_dim: int, *, class_tokens: int) -> int:
        """Multiply-accumulates of making `count` tokens of `patches`, and of a class token where there is one, `dim`
        wide, of heads `head_dim` wide."""
        ...
