"""How a stage scores image tokens: the protocol, and SparseVLM's own.

B batch · L slots · R raters · V visual tokens · N heads · K kv heads · H head dim
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ..checks import flag, optional, real, settle
from . import scores
from .amount import Amount, Share, number_or_share
from .stream import TokenStream
from .tower import ImageContext


class Attention(NamedTuple):
    """What scoring may want of the layer a stage follows: its queries and keys (RoPE applied), RoPE's base, what the
    layer added to each key's logits, if anything, and RoPE's inverse frequencies (None: those of its base)."""

    q: Float[Array, "B L N H"]
    k: Float[Array, "B L K H"]
    rope_theta: float
    key_bias: Float[Array, "B L"] | None = None
    frequencies: Float[Array | np.ndarray, " half"] | None = None


class StageInputs(NamedTuple):
    """What a stage sees. `visual_slot` and `rater_slot` say where the visual tokens and raters sit in the stream;
    `is_visual` and `is_rater` which entries are real. `attention` is None before the first layer. The first stage, in
    which all visual tokens are present, image by image `visual_step` each, also sees the tower's `images`. Hidden
    states are those behind the layer, unless no part of the method reads them: then its feed-forward is yet to run."""

    stream: TokenStream
    attention: Attention | None
    visual_slot: Int[Array, "B V"]
    is_visual: Bool[Array, "B V"]
    rater_slot: Int[Array, "B R"]
    is_rater: Bool[Array, "B R"]
    visual_step: int = 1
    images: ImageContext | None = None

    @property
    def visual_hidden(self) -> Float[Array, "B V D"]:
        return jnp.take_along_axis(self.stream.hidden, self.visual_slot[..., None], axis=1)

    @property
    def rater_hidden(self) -> Float[Array, "B R D"]:
        return jnp.take_along_axis(self.stream.hidden, self.rater_slot[..., None], axis=1)


class Scores(NamedTuple):
    """`values`: one score per visual token, higher is better. Where attention was looked at: the raters' head-mean map
    onto visual tokens, and the heads that counted (None: all). `features` is what selection and recycling compare
    tokens by (None: their hidden states), `weights` how much each counts when merged (None: as the rest decides)."""

    values: Float[Array, "B V"]
    attention_map: Float[Array, "B R V"] | None = None
    heads: Bool[Array, "B N"] | None = None
    features: Float[Array, "B V F"] | None = None
    weights: Float[Array, "B V"] | None = None


class Scorer(Protocol):
    """Anything that scores, as a frozen value. `needs_attention` is False for those that can act before layer 0. One
    that reads `StageInputs.images` also has `needs_images = True`; it can serve a single stage. One that looks at no
    hidden state says `reads_hidden = False`; see `SparsityConfig.reads_hidden`."""

    @property
    def needs_attention(self) -> bool: ...

    def __call__(self, inputs: StageInputs) -> Scores: ...


@dataclass(frozen=True)
class RaterScore:
    """The attention raters pay (eq. 3), in SparseVLM+ corrected and from few heads.

    Attributes:
        heads: heads that count: None all, an int that many, a `Share` (or a Fraction) that share, at least one;
            those with the most attention on the image (SparseVLM+).
        gravity: divide attention by what RoPE alone makes of the distance (SparseVLM+).
        gravity_floor: keep that divisor at least this far from zero; 0 reproduces the official code.
    """

    heads: Amount | None = None
    gravity: bool = False
    gravity_floor: float = 0.0
    needs_attention = True
    reads_hidden = False

    def __post_init__(self):
        floor = real("a finite number >= 0", lambda floor: floor >= 0)
        settle(self, heads=optional(number_or_share("heads")), gravity=flag, gravity_floor=floor)

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
        stream, layer = inputs.stream, inputs.attention
        assert layer is not None  # the config has refused a stage before layer 0
        q = jnp.take_along_axis(layer.q, inputs.rater_slot[..., None, None], axis=1)
        everywhere = scores.rater_attention(q, layer.k, inputs.rater_slot, stream.length, key_bias=layer.key_bias)
        onto = scores.onto_visual(everywhere, inputs.visual_slot, inputs.is_visual, inputs.is_rater)
        if self.gravity:
            weights = scores.gravity_weights(
                jnp.take_along_axis(stream.position_ids, inputs.rater_slot, axis=1),
                jnp.take_along_axis(stream.position_ids, inputs.visual_slot, axis=1),
                head_dim=layer.q.shape[-1],
                theta=layer.rope_theta,
                frequencies=layer.frequencies,
            )
            onto = scores.correct_gravity(onto, weights, floor=self.gravity_floor)
        count = self.head_count(onto.shape[1])
        heads = None if count is None else scores.priority_heads(onto, count)
        attention_map = scores.mean_over_heads(onto, heads)
        return Scores(scores.score(attention_map, inputs.is_rater), attention_map, heads)
