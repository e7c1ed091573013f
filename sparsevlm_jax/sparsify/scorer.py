"""How a stage scores image tokens: the protocol, and SparseVLM's own.

B batch · L slots · T tokens · R raters · V visual tokens · N heads · K kv heads · H head dim · D model dim
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ..checks import choice, flag, optional, real, settle
from . import scores
from .amount import Amount, Share, number_or_share
from .needs import Need, Sizes
from .stream import TokenStream, at_slots
from .tower import ImageContext


class Attention(NamedTuple):
    """What scoring may want of the layer a stage follows: its queries and keys (RoPE applied), RoPE's inverse
    frequencies (of several position axes a row each), and what the layer added to each key's logits, if anything."""

    q: Float[Array, "B L N H"]
    k: Float[Array, "B L K H"]
    frequencies: Float[Array | np.ndarray, "*A half"]
    key_bias: Float[Array, "B L"] | None = None


class Ahead(NamedTuple):
    """What comes after a stage in the decoder, as functions of hidden states: `attention` gives the next layer's
    queries and keys of tokens at the given positions (None after the last layer), `norm` is the final norm."""

    attention: Callable[[Float[Array, "B T D"], Int[Array, "B T"]], Attention] | None
    norm: Callable[[Float[Array, "B T D"]], Float[Array, "B T D"]]


class StageInputs(NamedTuple):
    """What a stage sees. `visual_slot` and `rater_slot` say where the visual tokens and raters sit in the stream;
    `is_visual` and `is_rater` which entries are real. `attention` is None before the first layer. The first stage, in
    which all visual tokens are present, also sees what is known of the `images`. `ahead` is for scorers that ask what
    the rest of the decoder makes of hidden states. A part that does not need "hidden" gets a stream without (None)."""

    stream: TokenStream
    attention: Attention | None
    visual_slot: Int[Array, "B V"]
    is_visual: Bool[Array, "B V"]
    rater_slot: Int[Array, "B R"]
    is_rater: Bool[Array, "B R"]
    images: ImageContext | None = None
    ahead: Ahead | None = None

    @property
    def hidden(self) -> Float[Array, "B L D"]:
        """The stream's hidden states.

        Raises:
            ValueError: a part asks whose `needs` do not name "hidden".
        """
        if self.stream.hidden is None:
            raise ValueError("a part of a method reads hidden states, and its `needs` do not name 'hidden'")
        return self.stream.hidden

    @property
    def visual_hidden(self) -> Float[Array, "B V D"]:
        return at_slots(self.hidden, self.visual_slot)

    @property
    def rater_hidden(self) -> Float[Array, "B R D"]:
        return at_slots(self.hidden, self.rater_slot)

    def known_images(self) -> ImageContext:
        """`images`.

        Raises:
            ValueError: whoever runs the stage has not passed them.
        """
        if self.images is None:
            raise ValueError("this method looks at what is known of the images: pass `images` to `decide`")
        return self.images

    def decoder_ahead(self) -> Ahead:
        """`ahead`.

        Raises:
            ValueError: whoever runs the stage has not passed it.
        """
        if self.ahead is None:
            raise ValueError("this method scores by what comes after the stage: pass `ahead` to `decide`")
        return self.ahead


class Scores(NamedTuple):
    """`values`: one score per visual token, higher is better. Where attention was looked at: the raters' head-mean map
    onto visual tokens, and the heads that counted (None: all). `features` is what selection and recycling compare
    tokens by (None: their hidden states). `order` is the turn at which each token comes among those of its row that
    are left (None: as they stand)."""

    values: Float[Array, "B V"]
    attention_map: Float[Array, "B R V"] | None = None
    heads: Bool[Array, "B N"] | None = None
    features: Float[Array, "B V F"] | None = None
    order: Int[Array, "B V"] | None = None


class Scorer(Protocol):
    """Anything that scores, as a frozen value."""

    @property
    def needs(self) -> frozenset[Need]: ...

    def __call__(self, inputs: StageInputs) -> Scores: ...

    def cost(self, sizes: Sizes) -> int:
        """Multiply-accumulates of the scores of one row."""
        ...


@dataclass(frozen=True)
class RaterScore:
    """The attention raters pay (eq. 3), in SparseVLM+ corrected and from few heads.

    Attributes:
        layer: whose queries and keys: of "this" layer, which the stage follows, or of the "next", made of this one's
            output (PyramidDrop).
        heads: heads that count: None all, an int that many, a `Share` (or a Fraction) that share, at least one;
            those with the most attention on the image (SparseVLM+).
        gravity: divide attention by what RoPE alone makes of the distance (SparseVLM+).
        gravity_floor: keep that divisor at least this far from zero; 0 reproduces the official code.
    """

    heads: Amount | None = None
    gravity: bool = False
    gravity_floor: float = 0.0
    layer: Literal["this", "next"] = "this"

    def __post_init__(self):
        floor = real("a finite number >= 0", lambda floor: floor >= 0)
        layer = choice(Literal["this", "next"])
        settle(self, heads=optional(number_or_share("heads")), gravity=flag, gravity_floor=floor, layer=layer)

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"raters", "attention"} if self.layer == "this" else {"raters", "next_layer", "hidden"})

    def cost(self, sizes: Sizes) -> int:
        """The paper's L_t L_v, and the projections of the next layer where these are looked at."""
        attended = sizes.text * sizes.visual
        if self.layer == "this":
            return attended
        keys = (sizes.text + sizes.visual) * sizes.key_width
        return attended + sizes.dim * (sizes.text * sizes.query_width + keys)

    def head_count(self, heads: int) -> int | None:
        """Of a layer's `heads`; None for all of them.

        Raises:
            ValueError: if more heads are asked for than there are.
        """
        if isinstance(self.heads, int):
            if self.heads > heads:
                raise ValueError(f"expected at most {heads} scoring heads, got {self.heads}")
            return self.heads
        return self.heads.of(heads) if isinstance(self.heads, Share) else None

    def __call__(self, inputs: StageInputs) -> Scores:
        stream = inputs.stream
        q, layer = self._attention(inputs)
        everywhere = scores.rater_attention(q, layer.k, inputs.rater_slot, stream.length, key_bias=layer.key_bias)
        onto = scores.onto_visual(everywhere, inputs.visual_slot, inputs.is_visual, inputs.is_rater)
        if self.gravity:
            weights = scores.gravity_weights(
                at_slots(stream.position_ids, inputs.rater_slot),
                at_slots(stream.position_ids, inputs.visual_slot),
                layer.frequencies,
            )
            onto = scores.correct_gravity(onto, weights, floor=self.gravity_floor)
        count = self.head_count(onto.shape[1])
        heads = None if count is None else scores.priority_heads(onto, count)
        attention_map = scores.mean_over_heads(onto, heads)
        return Scores(scores.score(attention_map, inputs.is_rater), attention_map, heads)

    def _attention(self, inputs: StageInputs) -> tuple[Float[Array, "B R N H"], Attention]:
        """The raters' queries, and the layer that they are of."""
        if self.layer == "this":
            layer = inputs.attention
            assert layer is not None  # the config has refused a stage before layer 0
            return at_slots(layer.q, inputs.rater_slot), layer
        project = inputs.decoder_ahead().attention
        assert project is not None  # the config has refused a stage after the last layer
        stream = inputs.stream
        position = at_slots(stream.position_ids, inputs.rater_slot)
        return project(inputs.rater_hidden, position).q, project(inputs.hidden, stream.position_ids)
