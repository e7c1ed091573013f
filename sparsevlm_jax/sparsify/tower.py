"""What the vision tower tells a method, and a method that acts inside it.

I images · B batch · V visual tokens · T tokens of the tower (class token included) · N heads · H head dim · D model dim
"""

from typing import NamedTuple, Protocol

from jaxtyping import Array, Float, Int


class ImageContext(NamedTuple):
    """What the vision tower knows of each visual token, for methods that ask: the attention of the class token (mean
    over heads) and the keys in the last layer that runs; and, where the tower has merged tokens, how many patches each
    stands for (0: merged into another one). Per image [I, V, ...], or gathered per row [B, V, ...]."""

    cls_attention: Float[Array, "B V"] | None = None
    keys: Float[Array, "B V N H"] | None = None
    size: Float[Array, "B V"] | None = None


class MergedTokens(NamedTuple):
    """Tokens of a tower that merges: how many of the first each stands for, and whose place each has."""

    hidden: Float[Array, "I T D"]
    size: Float[Array, "I T"]
    origin: Int[Array, "I T"]


class TowerMerging(Protocol):
    """A method that merges tokens inside the tower, between attention and MLP of each layer, as a frozen value."""

    def schedule(self, tokens: int, layers: int, visual: int) -> tuple[int, ...]:
        """Tokens leaving each of the `layers` that run, of `tokens` that enter; `visual` of these are the image's."""
        ...

    def merge(self, tokens: MergedTokens, keys: Float[Array, "I T N H"], count: int) -> MergedTokens:
        """`tokens`, the class token first, merged into `count`; the class token stays what and where it is."""
        ...
