"""The Llama decoder (Touvron et al., arXiv 2302.13971), with grouped-query attention: LLaVA's language model.

A layer does not know whether it runs in prefill, decode or training: the caller passes `attend`, a function from this
layer's (q, k, v) to the attention's output and whatever the caller wants back (keys to cache, queries to score with).

B batch · T tokens · D model dim · N heads · K kv heads · H head dim · F ffn · W vocabulary
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from .hf_config import ConfigReader
from .linear import linear, matmul
from .rope import Rotary, rotary, rotate

Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]

# What HF's config classes assume where a checkpoint's `text_config` is silent (llava-hf's are mostly silent).
_LLAMA_DEFAULTS = dict(intermediate_size=11008, num_key_value_heads=None, max_position_embeddings=2048)
_HF_DEFAULTS = {
    "llama": _LLAMA_DEFAULTS,
    "vicuna": _LLAMA_DEFAULTS,
    "mistral": dict(intermediate_size=14336, num_key_value_heads=8, max_position_embeddings=131072),
}


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes of the decoder, under HF's names."""

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

    @classmethod
    def from_hf(cls, config: dict) -> "LlamaConfig":
        """Reads HF's `text_config` (model types llama and mistral), old and new spellings of RoPE.

        Raises:
            ValueError: naming every field whose value is not implemented here.
        """
        read = ConfigReader(config, where="text_config")
        read.only("model_type", *_HF_DEFAULTS)
        kind = config.get("model_type") or "llama"
        defaults = _HF_DEFAULTS.get(kind, _LLAMA_DEFAULTS) if isinstance(kind, str) else _LLAMA_DEFAULTS
        hidden_size, heads = read("hidden_size", 4096), read("num_attention_heads", 32)
        kv_heads = read("num_key_value_heads", defaults["num_key_value_heads"] or heads)
        result = cls(
            vocab_size=read("vocab_size", 32000),
            hidden_size=hidden_size,
            intermediate_size=read("intermediate_size", defaults["intermediate_size"]),
            num_hidden_layers=read("num_hidden_layers", 32),
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=read("head_dim", max(1, hidden_size // heads)),
            rms_norm_eps=read("rms_norm_eps", 1e-6),
            rope_theta=_rope_theta(read),
            max_position_embeddings=read("max_position_embeddings", defaults["max_position_embeddings"]),
            tie_word_embeddings=read("tie_word_embeddings", False),
        )
        read.only("hidden_act", "silu")
        read.only("attention_bias", False)
        read.only("mlp_bias", False)
        read.only("attention_dropout", 0.0)
        read.only("rope_scaling")
        read.only("sliding_window")
        read.only("layer_types", ["full_attention"] * result.num_hidden_layers)
        read.divides("num_attention_heads", heads, "num_key_value_heads", kv_heads)
        if result.head_dim % 2:
            read.complaints.append(f"head_dim = {result.head_dim}, expected an even number")
        read.done()
        return result

    def to_hf(self) -> dict:
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {"model_type": "llama", "hidden_act": "silu", "attention_bias": False, **fields}


def _rope_theta(read: ConfigReader) -> float:
    """`rope_theta` at top level (transformers 4) or inside `rope_parameters` (5); scaled variants are refused."""
    theta = read("rope_theta", 10000.0)
    parameters = read("rope_parameters", {})
    if parameters.get("rope_type", "default") != "default" or set(parameters) - {"rope_type", "rope_theta"}:
        read.complaints.append(f"rope_parameters = {parameters!r}, implemented: rope_type 'default'")
    value = parameters.get("rope_theta", theta)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        read.complaints.append(f"rope_theta = {value!r}, expected a positive number")
        return theta
    return float(value)


class LlamaAttention(nnx.Module):
    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs):
        dim, self.head_dim = config.hidden_size, config.head_dim
        query_dim, key_dim = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        self.q_proj = linear(dim, query_dim, use_bias=False, rngs=rngs)
        self.k_proj = linear(dim, key_dim, use_bias=False, rngs=rngs)
        self.v_proj = linear(dim, key_dim, use_bias=False, rngs=rngs)
        self.o_proj = linear(query_dim, dim, use_bias=False, rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"], table: Rotary, attend: Attend) -> tuple[Float[Array, "B T D"], Any]:
        q, k, v = (proj(x).reshape(*x.shape[:2], -1, self.head_dim) for proj in (self.q_proj, self.k_proj, self.v_proj))
        out, extra = attend(rotate(q, table), rotate(k, table), v)
        return self.o_proj(out.reshape(*x.shape[:2], -1)), extra


class LlamaMLP(nnx.Module):
    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs):
        dim, ffn = config.hidden_size, config.intermediate_size
        self.gate_proj = linear(dim, ffn, use_bias=False, rngs=rngs)
        self.up_proj = linear(dim, ffn, use_bias=False, rngs=rngs)
        self.down_proj = linear(ffn, dim, use_bias=False, rngs=rngs)

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

    def rotary(self, position_ids: Int[Array, "B T"]) -> Rotary:
        return rotary(position_ids, head_dim=self.config.head_dim, theta=self.config.rope_theta)

    def logits(self, hidden: Float[Array, "... D"]) -> Float[Array, "... W"]:
        """Final norm and head, in float32: greedy ties in bfloat16 are common."""
        hidden = self.language_model.norm(hidden)
        tied = self.config.tie_word_embeddings
        weight = self.language_model.embed_tokens.embedding if tied else self.lm_head.kernel
        return matmul(hidden, weight[...], dtype=jnp.float32)


def rms_norm(config: LlamaConfig, rngs: nnx.Rngs) -> nnx.RMSNorm:
    """Statistics in float32 whatever the dtype (Flax's default)."""
    return nnx.RMSNorm(config.hidden_size, epsilon=config.rms_norm_eps, rngs=rngs)
