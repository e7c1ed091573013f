"""What CLIP's and SigLIP's vision transformers share: their config's fields, pre-norm layers, and hidden states of any
depth. Their own files, `clip.py` and `siglip.py`, say how pictures become the tokens that enter.

I images · P patches · T tokens (class token, where there is one, + P) · D model dim · N heads · H head dim
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ...hf.reader import ConfigReader
from ...sparsify.tower import MergedTokens, TowerMerging, TowerOutput
from ..nn.attention import Implementation, full_attention
from ..nn.linear import linear

Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]


def quick_gelu(x):
    """x * sigmoid(1.702 x): CLIP's activation."""
    return x * jax.nn.sigmoid(1.702 * x)


_tanh_gelu = partial(jax.nn.gelu, approximate=True)
# Of feed-forwards and projectors, under the names HF has for them.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "quick_gelu": quick_gelu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_new": _tanh_gelu,
    "gelu_fast": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
}


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of a tower, under HF's names. A kind of tower gives the class variables, and defaults of its own.

    Attributes:
        model_type: HF's name for the kind.
        known: the fields of its HF class, with their defaults.
        class_tokens: tokens before the patches, 1 or 0.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    image_size: int
    patch_size: int
    layer_norm_eps: float
    hidden_act: str

    model_type: ClassVar[str]
    known: ClassVar[Mapping[str, Any]]
    class_tokens: ClassVar[int]

    @property
    def patches_per_side(self) -> int:
        """Whole patches; what is left of the picture at the right and the bottom is not seen."""
        return self.image_size // self.patch_size

    @property
    def extent(self) -> float:
        """The part of the picture's height and width that lies in patches."""
        return self.patches_per_side * self.patch_size / self.image_size

    @property
    def num_patches(self) -> int:
        return self.patches_per_side**2

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def from_hf(cls, config: dict) -> Self:
        """Reads HF's `vision_config`; absent fields take the defaults of the kind's HF class, as HF does.

        Raises:
            ValueError: naming every field whose value is not implemented here.

        Warns:
            CheckpointWarning: once, naming every field that is none of the tower's.
        """
        read = ConfigReader(config, where="vision_config", known=cls.known)
        read.only("model_type", cls.model_type)
        result = cls.read(read)
        read.done()
        return result

    @classmethod
    def read(cls, read: ConfigReader) -> Self:
        """`from_hf` for one who reads more than the tower and knows its kind; complaints stay with the reader."""
        result = cls(
            **{field.name: read(field.name) for field in fields(cls) if field.name != "hidden_act"},
            hidden_act=read.one_of("hidden_act", ACTIVATIONS),
        )
        read.divides("hidden_size", result.hidden_size, "num_attention_heads", result.num_attention_heads)
        if result.patch_size > result.image_size:
            read.complain("patch_size", result.patch_size, f"larger than image_size = {result.image_size}")
        return result

    def to_hf(self) -> dict:
        return {"model_type": self.model_type, **{field.name: getattr(self, field.name) for field in fields(self)}}


def patchify(pixel_values: Float[Array, "I C height width"], size: int) -> Float[Array, "I P pixels"]:
    """Non-overlapping patches in row-major order, each flattened as (channel, row, column); only whole ones."""
    images, channels, height, width = pixel_values.shape
    rows, columns = height // size, width // size
    whole = pixel_values[:, :, : rows * size, : columns * size]
    grid = whole.reshape(images, channels, rows, size, columns, size)
    return grid.transpose(0, 2, 4, 1, 3, 5).reshape(images, -1, channels * size * size)


class Attention(nnx.Module):
    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        self.num_heads, dim = config.num_attention_heads, config.hidden_size
        self.q_proj = linear(dim, dim, rngs=rngs)
        self.k_proj = linear(dim, dim, rngs=rngs)
        self.v_proj = linear(dim, dim, rngs=rngs)
        self.out_proj = linear(dim, dim, rngs=rngs)

    def __call__(self, x: Float[Array, "I T D"], attend: Attend) -> tuple[Float[Array, "I T D"], Any]:
        q, k, v = (
            proj(x).reshape(*x.shape[:2], self.num_heads, -1) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        out, extra = attend(q, k, v)
        return self.out_proj(out.reshape(x.shape)), extra


class MLP(nnx.Module):
    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        self.fc1 = linear(config.hidden_size, config.intermediate_size, rngs=rngs)
        self.fc2 = linear(config.intermediate_size, config.hidden_size, rngs=rngs)
        self.activation = ACTIVATIONS[config.hidden_act]

    def __call__(self, x: Float[Array, "I T D"]) -> Float[Array, "I T D"]:
        return self.fc2(self.activation(self.fc1(x)))


class Layer(nnx.Module):
    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        self.layer_norm1 = layer_norm(config, rngs)
        self.self_attn = Attention(config, rngs=rngs)
        self.layer_norm2 = layer_norm(config, rngs)
        self.mlp = MLP(config, rngs=rngs)

    def attend(self, x: Float[Array, "I T D"], attend: Attend) -> tuple[Float[Array, "I T D"], Any]:
        """The first half; `attend` gives the attention's output and whatever the caller wants back."""
        attended, extra = self.self_attn(self.layer_norm1(x), attend)
        return x + attended, extra

    def feed_forward(self, x: Float[Array, "I T D"]) -> Float[Array, "I T D"]:
        """The second half."""
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nnx.Module):
    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        self.layers = nnx.List([Layer(config, rngs=rngs) for _ in range(config.num_hidden_layers)])


class VisionTransformer(nnx.Module):
    """A tower without its start. `hidden_state(pixels, i)` is HF's `hidden_states[i]`; layers past i are not run."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        self.class_tokens = config.class_tokens
        self.encoder = Encoder(config, rngs=rngs)
        self.post_layernorm = layer_norm(config, rngs)  # kept for export; no LLaVA feature passes through it

    def embed(self, pixel_values: Float[Array, "I 3 height width"]) -> Float[Array, "I T D"]:
        """What enters the first layer."""
        raise NotImplementedError

    def hidden_state(
        self, pixel_values: Float[Array, "I 3 height width"], index: int, *, implementation: Implementation
    ) -> Float[Array, "I T D"]:
        """Hidden state `index` of the L + 1 there are (0 = embeddings, -1 = last layer's output, no post-norm)."""
        index = range(len(self.encoder.layers) + 1)[index]
        return self.with_attention(pixel_values, (index,), implementation=implementation)[0][0]

    def with_attention(
        self, pixel_values: Float[Array, "I 3 height width"], indices: Sequence[int], *, implementation: Implementation
    ) -> tuple[list[Float[Array, "I T D"]], tuple[Array, Array] | None]:
        """The hidden states of `indices`, which count from 0, and the queries and keys [I, T, N, H] of the deepest
        layer that ran; None where none did."""

        def attend(q, k, v):
            return full_attention(q, k, v, implementation=implementation), (q, k)

        states, queries_keys = [self.embed(pixel_values)], None
        for layer in self.running(max(indices)):
            x, queries_keys = layer.attend(states[-1], attend)
            states.append(layer.feed_forward(x))
        return [states[index] for index in indices], queries_keys

    def output(
        self, pixel_values: Float[Array, "I 3 height width"], index: int, *, implementation: Implementation
    ) -> TowerOutput:
        """Hidden state `index`, counted from 0, with the queries and keys of the layers before and after it.

        Raises:
            ValueError: no layer runs before it.
        """
        (hidden,), attention = self.with_attention(pixel_values, (index,), implementation=implementation)
        if attention is None:
            raise ValueError("no layer of the tower runs before the features: no attention")
        cls_query, full_keys = (array.reshape(hidden.shape) for array in attention)
        if index < len(self.encoder.layers):
            layer = self.encoder.layers[index]
            normed = layer.layer_norm1(hidden)
            cls_query, full_keys = layer.self_attn.q_proj(normed), layer.self_attn.k_proj(normed)
        cls_query = cls_query[:, 0] if self.class_tokens else None
        return TowerOutput(hidden, *attention, cls_query, full_keys)

    def merged(
        self,
        pixel_values: Float[Array, "I 3 height width"],
        index: int,
        *,
        merging: TowerMerging,
        counts: tuple[int, ...],
    ) -> MergedTokens:
        """Hidden state `index` of a tower that merges down to `counts` tokens, layer by layer.

        Attention is proportional: a token counts as many times as it stands for. That is a bias, so XLA computes it.
        """
        x = self.embed(pixel_values)
        images, first, _ = x.shape
        tokens = MergedTokens(x, jnp.ones((images, first)), jnp.broadcast_to(jnp.arange(first), (images, first)))
        for layer, count in zip(self.running(index), counts, strict=True):
            bias = jnp.log(tokens.size) if tokens.size.shape[1] < first else None

            def attend(q, k, v, bias=bias):
                return full_attention(q, k, v, implementation="xla", key_bias=bias), k

            x, keys = layer.attend(tokens.hidden, attend)
            tokens = merging.merge(tokens._replace(hidden=x), keys, count, class_tokens=self.class_tokens)
            tokens = tokens._replace(hidden=layer.feed_forward(tokens.hidden))
        return tokens

    def running(self, index: int) -> list[Layer]:
        """The layers before hidden state `index`."""
        return list(self.encoder.layers)[: range(len(self.encoder.layers) + 1)[index]]


def vision_layer_macs(config: VisionConfig, entering: int, leaving: int) -> int:
    """Multiply-accumulates of a layer: attention over `entering` tokens, of which `leaving` pass the MLP."""
    d, m = config.hidden_size, config.intermediate_size
    return 4 * entering * d * d + 2 * entering * entering * d + 2 * leaving * d * m


def layer_norm(config: VisionConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Two-pass variance: the one-pass form loses digits on CLIP's large outlier channels."""
    return nnx.LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps, use_fast_variance=False, rngs=rngs)
