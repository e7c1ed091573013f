"""CLIP's vision transformer (Radford et al., arXiv 2103.00020), as LLaVA uses it: patch features, no pooling.

I images · P patches · T tokens (1 class token + P) · D model dim · N heads · H head dim
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ..sparsify.tower import MergedTokens, TowerMerging, TowerOutput
from .attention import Implementation, full_attention
from .hf_config import ConfigReader
from .known_fields import CLIP_VISION
from .linear import linear

Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]


def quick_gelu(x):
    """x * sigmoid(1.702 x): CLIP's activation."""
    return x * jax.nn.sigmoid(1.702 * x)


_tanh_gelu = partial(jax.nn.gelu, approximate=True)
# Of the tower's feed-forward, under the names HF has for them.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "quick_gelu": quick_gelu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_new": _tanh_gelu,
    "gelu_fast": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
}


@dataclass(frozen=True)
class ClipVisionConfig:
    """Sizes of the tower, under HF's names."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    image_size: int
    patch_size: int
    layer_norm_eps: float = 1e-5
    hidden_act: str = "quick_gelu"

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def from_hf(cls, config: dict) -> "ClipVisionConfig":
        """Reads HF's `vision_config`; absent fields take CLIPVisionConfig's defaults, as HF does (ViT-B/32).

        Raises:
            ValueError: naming every field whose value is not implemented here.

        Warns:
            CheckpointWarning: once, naming every field that is none of the tower's.
        """
        read = ConfigReader(config, where="vision_config", known=CLIP_VISION)
        result = cls.read(read)
        read.done()
        return result

    @classmethod
    def read(cls, read: ConfigReader) -> "ClipVisionConfig":
        """`from_hf` for one who reads more than the tower; complaints stay with the reader."""
        read.only("model_type", "clip_vision_model")
        result = cls(
            **{name: read(name) for name in cls.__dataclass_fields__ if name != "hidden_act"},
            hidden_act=read.one_of("hidden_act", ACTIVATIONS),
        )
        read.divides("hidden_size", result.hidden_size, "num_attention_heads", result.num_attention_heads)
        read.divides("image_size", result.image_size, "patch_size", result.patch_size)
        return result

    def to_hf(self) -> dict:
        return {
            "model_type": "clip_vision_model",
            "projection_dim": self.hidden_size,
            **{name: getattr(self, name) for name in self.__dataclass_fields__},
        }


class ClipEmbeddings(nnx.Module):
    def __init__(self, config: ClipVisionConfig, *, rngs: nnx.Rngs):
        self.patch_size = config.patch_size
        init = nnx.initializers.normal(0.02)
        self.class_embedding = nnx.Param(init(rngs.params(), (config.hidden_size,)))
        self.patch_embedding = linear(3 * config.patch_size**2, config.hidden_size, use_bias=False, rngs=rngs)
        self.position_embedding = nnx.Embed(config.num_patches + 1, config.hidden_size, embedding_init=init, rngs=rngs)

    def __call__(self, pixel_values: Float[Array, "I 3 height width"]) -> Float[Array, "I T D"]:
        patches = self.patch_embedding(patchify(pixel_values, self.patch_size))
        cls = jnp.broadcast_to(self.class_embedding[...], (patches.shape[0], 1, patches.shape[-1]))
        return jnp.concatenate([cls, patches], axis=1) + self.position_embedding.embedding[...]


def patchify(pixel_values: Float[Array, "I C height width"], size: int) -> Float[Array, "I P pixels"]:
    """Non-overlapping patches in row-major order, each flattened as (channel, row, column)."""
    images, channels, height, width = pixel_values.shape
    grid = pixel_values.reshape(images, channels, height // size, size, width // size, size)
    return grid.transpose(0, 2, 4, 1, 3, 5).reshape(images, -1, channels * size * size)


class ClipAttention(nnx.Module):
    def __init__(self, config: ClipVisionConfig, *, rngs: nnx.Rngs):
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


class ClipMLP(nnx.Module):
    def __init__(self, config: ClipVisionConfig, *, rngs: nnx.Rngs):
        self.fc1 = linear(config.hidden_size, config.intermediate_size, rngs=rngs)
        self.fc2 = linear(config.intermediate_size, config.hidden_size, rngs=rngs)
        self.activation = ACTIVATIONS[config.hidden_act]

    def __call__(self, x: Float[Array, "I T D"]) -> Float[Array, "I T D"]:
        return self.fc2(self.activation(self.fc1(x)))


class ClipLayer(nnx.Module):
    def __init__(self, config: ClipVisionConfig, *, rngs: nnx.Rngs):
        self.layer_norm1 = layer_norm(config, rngs)
        self.self_attn = ClipAttention(config, rngs=rngs)
        self.layer_norm2 = layer_norm(config, rngs)
        self.mlp = ClipMLP(config, rngs=rngs)

    def attend(self, x: Float[Array, "I T D"], attend: Attend) -> tuple[Float[Array, "I T D"], Any]:
        """The first half; `attend` gives the attention's output and whatever the caller wants back."""
        attended, extra = self.self_attn(self.layer_norm1(x), attend)
        return x + attended, extra

    def feed_forward(self, x: Float[Array, "I T D"]) -> Float[Array, "I T D"]:
        """The second half."""
        return x + self.mlp(self.layer_norm2(x))


class ClipEncoder(nnx.Module):
    def __init__(self, config: ClipVisionConfig, *, rngs: nnx.Rngs):
        self.layers = nnx.List([ClipLayer(config, rngs=rngs) for _ in range(config.num_hidden_layers)])


class ClipVisionModel(nnx.Module):
    """The tower. `hidden_state(pixels, i)` is HF's `hidden_states[i]`; layers past i are not run."""

    def __init__(self, config: ClipVisionConfig, *, rngs: nnx.Rngs):
        self.embeddings = ClipEmbeddings(config, rngs=rngs)
        self.pre_layrnorm = layer_norm(config, rngs)  # sic: the checkpoints' spelling
        self.encoder = ClipEncoder(config, rngs=rngs)
        self.post_layernorm = layer_norm(config, rngs)  # kept for export; no LLaVA feature passes through it

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
        return TowerOutput(hidden, *attention, cls_query[:, 0], full_keys)

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
            tokens = merging.merge(tokens._replace(hidden=x), keys, count)
            tokens = tokens._replace(hidden=layer.feed_forward(tokens.hidden))
        return tokens

    def embed(self, pixel_values: Float[Array, "I 3 height width"]) -> Float[Array, "I T D"]:
        dtype = self.embeddings.class_embedding[...].dtype
        return self.pre_layrnorm(self.embeddings(pixel_values.astype(dtype)))

    def running(self, index: int) -> list[ClipLayer]:
        """The layers before hidden state `index`."""
        return list(self.encoder.layers)[: range(len(self.encoder.layers) + 1)[index]]


def layer_norm(config: ClipVisionConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Two-pass variance: the one-pass form loses digits on CLIP's large outlier channels."""
    return nnx.LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps, use_fast_variance=False, rngs=rngs)
