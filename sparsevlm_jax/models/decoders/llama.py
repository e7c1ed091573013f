"""The Llama decoder (Touvron et al., arXiv 2302.13971), LLaVA's language model, with grouped-query attention; and those
that differ from it by a field: Mistral (a window), Qwen2 (biases), Qwen3 (norms of queries and keys), Phi-3 (a window;
its fused weights are taken apart by `convert`).

A layer does not know whether it runs in prefill, decode or training: the caller passes `attend`, a function from this
layer's (q, k, v) to the attention's output and whatever the caller wants back (keys to cache, queries to score with).

B batch · T tokens · D model dim · N heads · K kv heads · H head dim · F ffn · W vocabulary
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32, Int

from ...hf.known_fields import LLAMA, MISTRAL, PHI3, QWEN2, QWEN3, ROPE_SPELLINGS
from ...hf.reader import ConfigReader
from ..nn.hf_rope import read_rope
from ..nn.linear import apart, linear, matmul
from ..nn.rope import RopeScaling, Rotary, inverse_frequencies, of_axes, rotary, rotate

Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]

# Vicuna is what some configs call Llama; HF has no class of that name.
_CLASSES = {"llama": LLAMA, "vicuna": LLAMA, "mistral": MISTRAL, "qwen2": QWEN2, "qwen3": QWEN3, "phi3": PHI3}
_KNOWN = {name: {**fields, **ROPE_SPELLINGS} for name, fields in _CLASSES.items()}


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes of the decoder, under HF's names. A query sees itself and the `sliding_window - 1` tokens before it; what
    is computed here is exact for sequences that fit the window, and longer ones are refused (see `runtime.batching`).

    Attributes:
        qkv_bias, o_bias, mlp_bias: biases of these projections (Llama's `attention_bias` is the first two, Qwen2 has
            the first).
        qk_norm: RMS norms of each head's query and key before RoPE (Qwen3).
        rope_axes: the position axis that turns each frequency, where positions have several (M-RoPE); empty: one axis.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    max_position_embeddings: int
    tie_word_embeddings: bool = False
    rope_scaling: RopeScaling | None = None
    sliding_window: int | None = None
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    rope_axes: tuple[int, ...] = ()

    def __post_init__(self):
        if self.rope_axes and len(self.rope_axes) != self.head_dim // 2:
            raise ValueError(
                f"expected an axis for each of {self.head_dim // 2} frequencies, got {len(self.rope_axes)} rope_axes"
            )

    @property
    def position_axes(self) -> int:
        """Numbers that a position is made of."""
        return max(self.rope_axes, default=0) + 1

    def inverse_frequencies(self) -> Float32[np.ndarray, "*A half"]:
        """RoPE's, scaled as the config says; of several position axes a row each."""
        frequencies = inverse_frequencies(self.head_dim, self.rope_theta, self.rope_scaling)
        return of_axes(frequencies, self.rope_axes) if self.rope_axes else frequencies

    @classmethod
    def from_hf(cls, config: dict) -> "LlamaConfig":
        """Reads HF's `text_config` (model types llama, mistral, qwen2, qwen3 and phi3), old and new spellings of RoPE.

        Raises:
            ValueError: naming every field whose value is not implemented here.

        Warns:
            CheckpointWarning: naming fields that no model code reads.
        """
        read = ConfigReader(config, where="text_config", known=cls.known(config))
        result = cls.read(read)
        read.done()
        return result

    @staticmethod
    def known(config: Any) -> Mapping[str, Any]:
        """The fields of the HF class that a `text_config` is of."""
        kind = config.get("model_type") if isinstance(config, dict) else None
        return _KNOWN.get(kind if isinstance(kind, str) else "llama", _KNOWN["llama"])

    @classmethod
    def read(cls, read: ConfigReader) -> "LlamaConfig":
        """`from_hf` for one who reads more than the decoder; complaints stay with the reader."""
        read.only("model_type", *_KNOWN)
        hidden_size, heads = read("hidden_size"), read("num_attention_heads")
        theta, scaling = read_rope(read)
        kind = read.config.get("model_type")
        attention_bias = _flag(read, "attention_bias")
        result = cls(
            vocab_size=read("vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=read("intermediate_size"),
            num_hidden_layers=read("num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=read("num_key_value_heads", null=heads),
            head_dim=read("head_dim", (read.known or {}).get("head_dim"), null=max(1, hidden_size // heads)),
            rms_norm_eps=read("rms_norm_eps"),
            rope_theta=theta,
            max_position_embeddings=read("max_position_embeddings"),
            tie_word_embeddings=read("tie_word_embeddings"),
            rope_scaling=scaling,
            sliding_window=_sliding_window(read),
            qkv_bias=attention_bias or kind == "qwen2",
            o_bias=attention_bias,
            mlp_bias=_flag(read, "mlp_bias"),
            qk_norm=kind == "qwen3",
        )
        layer = "sliding_attention" if result.sliding_window else "full_attention"
        read.only("layer_types", [layer] * result.num_hidden_layers)
        read.divides("num_attention_heads", heads, "num_key_value_heads", result.num_key_value_heads)
        if result.head_dim % 2:
            read.complain("head_dim", result.head_dim, "expected an even number")
        return result

    def to_hf(self) -> dict:
        """The `text_config` that `from_hf` reads back to an equal config, in a spelling that versions 4 and 5 know."""
        own = ("rope_scaling", "sliding_window", "qkv_bias", "o_bias", "mlp_bias", "qk_norm", "rope_axes")
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in own}
        fields = {"hidden_act": "silu", **fields}
        if self.rope_scaling is not None:
            fields["rope_scaling"] = self.rope_scaling.to_hf()
        if self.qk_norm:
            return {"model_type": "qwen3", "attention_bias": self.o_bias, **fields}
        if self.qkv_bias and not self.o_bias:
            return {"model_type": "qwen2", **fields}
        if self.sliding_window is not None:
            return {"model_type": "mistral", **fields, "sliding_window": self.sliding_window}
        return {"model_type": "llama", "attention_bias": self.o_bias, "mlp_bias": self.mlp_bias, **fields}


def _flag(read: ConfigReader, name: str) -> bool:
    """A switch that only some of the classes have; to the others it is a leftover."""
    return name in (read.known or {}) and read(name)


def _sliding_window(read: ConfigReader) -> int | None:
    """Mistral's and Phi-3's; null is none, absent is HF's default. Qwen's counts only where it is switched on, which is
    refused. Llama has none: there the field is a leftover."""
    known = read.known or {}
    if "use_sliding_window" in known:
        read.only("use_sliding_window", False)
        read.seen |= {"sliding_window", "max_window_layers"}
        return None
    if "sliding_window" not in known or read.is_null("sliding_window"):
        return None
    default = known["sliding_window"]
    if default is None and "sliding_window" not in read.config:
        return None
    return read("sliding_window", default or 1)


class LlamaAttention(nnx.Module):
    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs):
        dim, self.head_dim = config.hidden_size, config.head_dim
        query_dim, key_dim = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        self.q_proj = linear(dim, query_dim, use_bias=config.qkv_bias, rngs=rngs)
        self.k_proj = linear(dim, key_dim, use_bias=config.qkv_bias, rngs=rngs)
        self.v_proj = linear(dim, key_dim, use_bias=config.qkv_bias, rngs=rngs)
        self.o_proj = linear(query_dim, dim, use_bias=config.o_bias, rngs=rngs)
        if config.qk_norm:
            self.q_norm, self.k_norm = (rms_norm(config, rngs, width=self.head_dim) for _ in range(2))
        self.qk_norm = config.qk_norm

    def __call__(self, x: Float[Array, "B T D"], table: Rotary, attend: Attend) -> tuple[Float[Array, "B T D"], Any]:
        xs = apart(x, 3) if x.shape[1] > 1 else [x] * 3  # one row reads two kernels at once without joining them
        projections = zip((self.q_proj, self.k_proj, self.v_proj), xs, strict=True)
        q, k, v = (project(own).reshape(*x.shape[:2], -1, self.head_dim) for project, own in projections)
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        out, extra = attend(rotate(q, table), rotate(k, table), v)
        return self.o_proj(out.reshape(*x.shape[:2], -1)), extra


class LlamaMLP(nnx.Module):
    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs):
        dim, ffn = config.hidden_size, config.intermediate_size
        self.gate_proj = linear(dim, ffn, use_bias=config.mlp_bias, rngs=rngs)
        self.up_proj = linear(dim, ffn, use_bias=config.mlp_bias, rngs=rngs)
        self.down_proj = linear(ffn, dim, use_bias=config.mlp_bias, rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x))


class LlamaLayer(nnx.Module):
    """Pre-norm attention and SwiGLU, each with its residual: two halves, since what follows the second may want fewer
    tokens than the first."""

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs):
        self.input_layernorm = rms_norm(config, rngs)
        self.self_attn = LlamaAttention(config, rngs=rngs)
        self.post_attention_layernorm = rms_norm(config, rngs)
        self.mlp = LlamaMLP(config, rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"], table: Rotary, attend: Attend) -> tuple[Float[Array, "B T D"], Any]:
        x, extra = self.attend(x, table, attend)
        return self.feed_forward(x), extra

    def attend(self, x: Float[Array, "B T D"], table: Rotary, attend: Attend) -> tuple[Float[Array, "B T D"], Any]:
        """The first half; `attend` gives the attention's output and whatever the caller wants back."""
        attended, extra = self.self_attn(self.input_layernorm(x), table, attend)
        return x + attended, extra

    def feed_forward(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """The second half."""
        return x + self.mlp(self.post_attention_layernorm(x))


class LlamaModel(nnx.Module):
    """Embeddings, layers and final norm; the caller walks the layers, since what happens between them is the point."""

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs):
        self.embed_tokens = nnx.Embed(config.vocab_size, config.hidden_size, rngs=rngs)
        self.layers = nnx.List([LlamaLayer(config, rngs=rngs) for _ in range(config.num_hidden_layers)])
        self.norm = rms_norm(config, rngs)

    def embed(self, ids: Int[Array, "*n"]) -> Float[Array, "*n D"]:
        """Embeddings in the table's dtype. Calling `nnx.Embed` gives the dtype it was built with, float32, and all that
        follows would be computed in it."""
        return jnp.take(self.embed_tokens.embedding[...], ids, axis=0)


class CausalLM(nnx.Module):
    """The decoder with its head; with tied embeddings the head is the embedding table."""

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.language_model = LlamaModel(config, rngs=rngs)
        if not config.tie_word_embeddings:
            self.lm_head = linear(config.hidden_size, config.vocab_size, use_bias=False, rngs=rngs)

    def rotary(self, position_ids: Int[Array, "B T *A"]) -> Rotary:
        return rotary(position_ids, self.config.inverse_frequencies())

    def logits(self, hidden: Float[Array, "... D"]) -> Float[Array, "... W"]:
        """Final norm and head, in float32: greedy ties in bfloat16 are common."""
        hidden = self.language_model.norm(hidden)
        tied = self.config.tie_word_embeddings
        weight = self.language_model.embed_tokens.embedding if tied else self.lm_head.kernel
        return matmul(hidden, weight[...], dtype=jnp.float32)


def rms_norm(config: LlamaConfig, rngs: nnx.Rngs, *, width: int | None = None) -> nnx.RMSNorm:
    """Over the last axis, of the hidden size unless `width` says another. Statistics in float32 whatever the dtype
    (Flax's default)."""
    return nnx.RMSNorm(width or config.hidden_size, epsilon=config.rms_norm_eps, rngs=rngs)
