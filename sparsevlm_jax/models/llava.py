"""LLaVA-1.5 (Liu et al., arXiv 2310.03744): CLIP features, a two-layer projector, a Llama that reads them as tokens.

Two pure functions, each a jit boundary of its own so that one encoded image serves many questions:
`encode_images` (tower and projector) and `embed` (ids to embeddings, image tokens filled in). The layers in between
are walked by `sparsevlm_jax.prefill`.

B batch · L tokens · I images · V visual tokens of one image · D model dim
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from ..sparsify.tower import ImageContext, TowerMerging
from .attention import Implementation
from .clip import ClipVisionConfig, ClipVisionModel
from .hf_config import ConfigReader, UnsupportedConfig
from .linear import linear
from .llama import CausalLM, LlamaConfig
from .params import bind


@dataclass(frozen=True)
class LlavaConfig:
    """A LLaVA's sizes and token ids. `vision_feature_layer` indexes the tower's hidden states as HF does (-2: the
    output of the last layer but one); "default" drops the class token, "full" keeps it."""

    vision: ClipVisionConfig
    text: LlamaConfig
    image_token_id: int
    vision_feature_layer: int = -2
    vision_feature_select_strategy: str = "default"
    bos_token_id: int = 1
    eos_token_ids: tuple[int, ...] = (2,)
    pad_token_id: int = 0

    @property
    def tokens_per_image(self) -> int:
        return self.vision.num_patches + (self.vision_feature_select_strategy == "full")

    @property
    def tower_layers(self) -> int:
        """Layers of the tower that run."""
        return range(self.vision.num_hidden_layers + 1)[self.vision_feature_layer]

    @classmethod
    def from_hf(cls, config: dict) -> "LlavaConfig":
        """Reads a llava-hf `config.json`, of transformers 4.36 to 5.

        Raises:
            ValueError: naming every field, nested ones included, whose value is not implemented here.
        """
        read = ConfigReader(config, where="config.json")
        read.only("model_type", "llava")
        text_dict, complaints = read("text_config", {}), []
        tied = config.get("tie_word_embeddings") is True
        text = _nested(LlamaConfig, {**text_dict, **({"tie_word_embeddings": True} if tied else {})}, complaints)
        vision = _nested(ClipVisionConfig, read("vision_config", _CLIP_L_336), complaints)
        image_token_id = read("image_token_index", config.get("image_token_id") or 32000)
        read.seen |= {"image_token_id", "tie_word_embeddings", "vocab_size"}
        layer = read("vision_feature_layer", -2)
        strategy = read("vision_feature_select_strategy", "default")
        read.only("vision_feature_select_strategy", "default", "full")
        read.only("projector_hidden_act", "gelu")
        read.only("multimodal_projector_bias", True)
        if vision and not -vision.num_hidden_layers - 1 <= layer <= vision.num_hidden_layers:
            read.complaints.append(f"vision_feature_layer = {layer}, the tower has {vision.num_hidden_layers} layers")
        if text and not (isinstance(image_token_id, int) and image_token_id >= 0):
            read.complaints.append(f"image_token_index = {image_token_id!r}, expected a token id")
        read.complaints += complaints
        ids = {name: _token_ids(name, config, text_dict, read.complaints) for name in ("bos", "eos", "pad")}
        read.done()
        assert vision is not None and text is not None  # else `done` has raised
        return cls(
            vision=vision,
            text=text,
            image_token_id=image_token_id,
            vision_feature_layer=layer,
            vision_feature_select_strategy=strategy,
            bos_token_id=(ids["bos"] or (1,))[0],
            eos_token_ids=ids["eos"] or (2,),
            pad_token_id=(ids["pad"] or (0,))[0],
        )

    def to_hf(self) -> dict:
        """The `config.json` that `from_hf` reads back to an equal config, in the spelling every transformers reads."""
        eos = list(self.eos_token_ids) if len(self.eos_token_ids) > 1 else self.eos_token_ids[0]
        ids = {"bos_token_id": self.bos_token_id, "eos_token_id": eos, "pad_token_id": self.pad_token_id}
        return {
            "architectures": ["LlavaForConditionalGeneration"],
            "model_type": "llava",
            "image_token_index": self.image_token_id,
            "image_seq_length": self.tokens_per_image,
            "vision_feature_layer": self.vision_feature_layer,
            "vision_feature_select_strategy": self.vision_feature_select_strategy,
            "projector_hidden_act": "gelu",
            "tie_word_embeddings": self.text.tie_word_embeddings,
            "pad_token_id": self.pad_token_id,
            "text_config": {**self.text.to_hf(), **ids},
            "vision_config": self.vision.to_hf(),
        }


# What HF's LlavaConfig assumes where `vision_config` is absent.
_CLIP_L_336 = dict(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    image_size=336,
    patch_size=14,
)


def _nested(kind, config: dict, complaints: list[str]):
    try:
        return kind.from_hf(config)
    except UnsupportedConfig as error:
        complaints.append(str(error))
        return None


def _token_ids(name: str, config: dict, text_config: dict, complaints: list[str]) -> tuple[int, ...]:
    """A special token's ids: `text_config`'s, else the top level's; one id or a list."""
    key = f"{name}_token_id"
    value = text_config.get(key) if text_config.get(key) is not None else config.get(key)
    ids = tuple(value) if isinstance(value, list) else () if value is None else (value,)
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        complaints.append(f"{key} = {value!r}, expected token ids")
        return ()
    return ids


class Projector(nnx.Module):
    """Linear, exact GELU, linear: from the tower's width to the language model's."""

    def __init__(self, config: LlavaConfig, *, rngs: nnx.Rngs):
        self.linear_1 = linear(config.vision.hidden_size, config.text.hidden_size, rngs=rngs)
        self.linear_2 = linear(config.text.hidden_size, config.text.hidden_size, rngs=rngs)

    def __call__(self, features: Float[Array, "... Dv"]) -> Float[Array, "... D"]:
        return self.linear_2(jax.nn.gelu(self.linear_1(features), approximate=False))


def modules(config: LlavaConfig) -> dict:
    """The parts of the model and their configs, by the name their parameters have at the top of the tree.

    The language model's part, "", spreads over two top-level names, `language_model` and `lm_head`.
    """
    return {
        "vision_tower": (ClipVisionModel, config.vision),
        "multi_modal_projector": (Projector, config),
        "": (CausalLM, config.text),
    }


def vision_features(
    params: dict, pixel_values: Float[Array, "I 3 height width"], *, config: LlavaConfig, implementation: Implementation
) -> Float[Array, "I V Dv"]:
    """The tower's features as LLaVA selects them: one hidden state, class token dropped or kept."""
    tower = bind(ClipVisionModel, config.vision, params["vision_tower"])
    hidden = tower.hidden_state(pixel_values, config.vision_feature_layer, implementation=implementation)
    return hidden if config.vision_feature_select_strategy == "full" else hidden[:, 1:]


def cls_attention(q: Float[Array, "I T N H"], k: Float[Array, "I T N H"]) -> Float[Array, "I T"]:
    """The class token's attention in one layer, mean over heads; float32."""
    logits = jnp.einsum("INH,ITNH->INT", q[:, 0], k, preferred_element_type=jnp.float32)
    return jax.nn.softmax(logits / math.sqrt(q.shape[-1]), axis=-1).mean(axis=1)


def project(params: dict, features: Float[Array, "I V Dv"], *, config: LlavaConfig) -> Float[Array, "I V D"]:
    """Features of the tower to embeddings of the language model."""
    return bind(Projector, config, params["multi_modal_projector"])(features)


def encode_images(
    params: dict, pixel_values: Float[Array, "I 3 height width"], *, config: LlavaConfig, implementation: Implementation
) -> Float[Array, "I V D"]:
    """Pixels (normalised, HF's layout) to visual embeddings."""
    features = vision_features(params, pixel_values, config=config, implementation=implementation)
    return project(params, features, config=config)


class EncodedImages(NamedTuple):
    """Visual embeddings, and what the tower says of each token where a method asked."""

    features: Float[Array, "I V D"]
    context: ImageContext | None


def encode(
    params: dict,
    pixel_values: Float[Array, "I 3 height width"],
    *,
    config: LlavaConfig,
    implementation: Implementation,
    context: bool = False,
    merging: TowerMerging | None = None,
) -> EncodedImages:
    """`encode_images` for methods that look into the tower or act in it.

    Args:
        context: give the class token's attention and the keys of the layer that the features come from.
        merging: merge tokens inside the tower. Each merged token has the place of one of its patches, the other places
            are 0, and so is their `context.size`. The tower then attends by XLA, whatever the `implementation`.

    Raises:
        ValueError: `context` of a tower none of whose layers runs; `merging` further than the layers can.
    """
    if merging is not None:
        return _encode_merged(params, pixel_values, config, merging)
    if not context:
        features = encode_images(params, pixel_values, config=config, implementation=implementation)
        return EncodedImages(features, None)
    tower = bind(ClipVisionModel, config.vision, params["vision_tower"])
    hidden, attention = tower.with_attention(pixel_values, config.vision_feature_layer, implementation=implementation)
    if attention is None:
        raise ValueError(f"no layer runs before vision_feature_layer = {config.vision_feature_layer}: no attention")
    q, k = attention
    first = 0 if config.vision_feature_select_strategy == "full" else 1
    seen = ImageContext(cls_attention=cls_attention(q, k)[:, first:], keys=k[:, first:])
    return EncodedImages(project(params, hidden[:, first:], config=config), seen)


def _encode_merged(params: dict, pixel_values: Array, config: LlavaConfig, merging: TowerMerging) -> EncodedImages:
    tower = bind(ClipVisionModel, config.vision, params["vision_tower"])
    first = 0 if config.vision_feature_select_strategy == "full" else 1
    counts = merging.schedule(config.vision.num_patches + 1, config.tower_layers, config.tokens_per_image)
    tokens = tower.merged(pixel_values, config.vision_feature_layer, merging=merging, counts=counts)
    features = project(params, tokens.hidden[:, first:], config=config)
    place, images = tokens.origin[:, first:] - first, jnp.arange(features.shape[0])[:, None]
    empty = jnp.zeros((features.shape[0], config.tokens_per_image))
    size = empty.at[images, place].set(tokens.size[:, first:], unique_indices=True)
    spread = jnp.zeros((*empty.shape, features.shape[-1]), features.dtype)
    return EncodedImages(spread.at[images, place].set(features, unique_indices=True), ImageContext(size=size))


def language_model(params: dict, config: LlavaConfig) -> CausalLM:
    return bind(CausalLM, config.text, {k: params[k] for k in ("language_model", "lm_head") if k in params})


def embed(
    lm: CausalLM,
    input_ids: Int[Array, "B L"],
    is_visual: Bool[Array, "B L"],
    image_features: Float[Array, "I V D"],
) -> Float[Array, "B L D"]:
    """Token embeddings with the image tokens replaced, in row-major order, by the rows of `image_features`.

    The caller has checked that there are as many image tokens as features; spare images at the end are not read.
    """
    hidden = lm.language_model.embed(jnp.where(is_visual, 0, input_ids))
    if image_features.size == 0:
        return hidden
    order = jnp.cumsum(is_visual.reshape(-1)).reshape(is_visual.shape) - 1
    rows = image_features.reshape(-1, image_features.shape[-1]).astype(hidden.dtype)
    return jnp.where(is_visual[..., None], rows[jnp.clip(order, 0, rows.shape[0] - 1)], hidden)
