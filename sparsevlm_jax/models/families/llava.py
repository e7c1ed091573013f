"""LLaVA (Liu et al., arXiv 2310.03744) and its kin: a CLIP, a small projector, a Llama that reads its tokens.

`encode` is tower and projector; what they make of a picture the decoder reads as tokens (see `family`).

I images · V visual tokens of one image · D model dim
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ...hf.known_fields import LLAVA, LLAVA_SPELLINGS, LLAVA_VISION, VIPLLAVA, VIPLLAVA_SPELLINGS
from ...hf.reader import ConfigReader
from ...processing import Picture, PictureSize, Processor, square_picture
from ...sparsify.tower import ImageContext, MergedTokens, TowerMerging, TowerReduction
from ..decoders.llama import CausalLM, LlamaConfig
from ..nn.attention import Implementation
from ..nn.linear import linear
from ..nn.params import bind
from ..towers import TOWERS, bind_tower, config_class, module_of
from ..towers.clip import ClipVisionConfig
from ..towers.vision_transformer import ACTIVATIONS, VisionConfig, vision_layer_macs
from .family import Encoded, Family, register

MAX_PROJECTOR_LAYERS = 4
# Fields that no class of HF has, with what absent means: `to_hf` writes any other value, for `from_hf` alone to read.
OWN_FIELDS = {"projector_layers": 2}


@dataclass(frozen=True)
class LlavaParts:
    """The sizes and token ids of a LLaVA or a family of its kind: a tower that sees square tiles (in a LLaVA, whole
    pictures), a projector, a decoder. `vision_feature_layer` indexes the tower's hidden states as HF does (-2: the
    output of the last layer but one); several are concatenated, in their order. "default" drops the class token of
    each, "full" keeps it; a tower that has none (SigLIP) is "full". The image token may lie outside the vocabulary, the
    pad token may not. `projector_hidden_act` is a name of `vision_transformer.ACTIVATIONS`.

    Attributes:
        projector_layers: linear layers of the projector, 1 (LLaVA-1.0) to 4.
        projector_layernorm_eps: of a norm of the features before the projector, which makes it a VipLLaVA; None: there
            is no such norm.

    A family gives the class variables: `kinds`, the fields that configs of its model types may have, with their
    defaults, its own type first; `architectures`, HF's classes of these types; `no_tower` and `no_decoder`, what these
    parts are where a config says nothing of them.
    """

    vision: VisionConfig
    text: LlamaConfig
    image_token_id: int
    vision_feature_layer: int | tuple[int, ...] = -2
    vision_feature_select_strategy: str = "default"
    bos_token_id: int = 1
    eos_token_ids: tuple[int, ...] = (2,)
    pad_token_id: int = 0
    projector_hidden_act: str = "gelu"
    projector_bias: bool = True
    projector_layers: int = 2
    projector_layernorm_eps: float | None = None

    kinds: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "llava": {**LLAVA, **LLAVA_SPELLINGS, **OWN_FIELDS},
        "vipllava": {**VIPLLAVA, **VIPLLAVA_SPELLINGS, **OWN_FIELDS},
    }
    architectures: ClassVar[Mapping[str, str]] = {
        "llava": "LlavaForConditionalGeneration",
        "vipllava": "VipLlavaForConditionalGeneration",
    }
    no_tower: ClassVar[Mapping[str, Any]] = {"model_type": ClipVisionConfig.model_type, **LLAVA_VISION}
    no_decoder: ClassVar[Mapping[str, Any]] = {"model_type": "llama"}

    def __post_init__(self):
        if complaint := _no_class_token(self.vision, self.vision_feature_select_strategy):
            raise ValueError(f"vision_feature_select_strategy = {self.vision_feature_select_strategy!r}, {complaint}")
        if not 0 <= self.pad_token_id < self.text.vocab_size:
            raise ValueError(f"pad_token_id = {self.pad_token_id}, expected one of {self.text.vocab_size} token ids")
        if not 0 < self.projector_layers <= MAX_PROJECTOR_LAYERS:
            raise ValueError(f"projector_layers = {self.projector_layers}, expected 1 to {MAX_PROJECTOR_LAYERS}")
        if self.projector_layernorm_eps is not None:  # HF has no field to say otherwise of such a model
            for name, value in {"vision_feature_select_strategy": "default", "projector_bias": True}.items():
                if getattr(self, name) != value:
                    raise ValueError(f"{name} = {getattr(self, name)!r}, expected {value!r} in a VipLLaVA")

    @property
    def model_type(self) -> str:
        """HF's name for the kind."""
        return next(iter(self.kinds)) if self.projector_layernorm_eps is None else "vipllava"

    @property
    def image_size(self) -> int:
        """Edge of the square that the tower sees, in pixels."""
        return self.vision.image_size

    @property
    def tokens_per_tile(self) -> int:
        """Tokens that the tower makes of what it sees at once."""
        return self.vision.num_patches + self.vision.class_tokens - self.skipped_tokens

    @property
    def skipped_tokens(self) -> int:
        """Tokens of the tower before the first feature: the class token, unless it is kept or there is none."""
        return 0 if self.vision_feature_select_strategy == "full" else self.vision.class_tokens

    @property
    def feature_layers(self) -> tuple[int, ...]:
        """The hidden states of the tower that make the features, counted from 0 (the embeddings)."""
        layer = self.vision_feature_layer
        states = range(self.vision.num_hidden_layers + 1)
        return tuple(states[index] for index in (layer if isinstance(layer, tuple) else (layer,)))

    @property
    def feature_size(self) -> int:
        """Width of the features, the projector's input."""
        return self.vision.hidden_size * len(self.feature_layers)

    @property
    def projector_sizes(self) -> tuple[int, ...]:
        """Widths before, between and after the projector's linear layers."""
        return (self.feature_size, *[self.text.hidden_size] * self.projector_layers)

    @property
    def tower_layers(self) -> int:
        """Layers of the tower that run."""
        return max(self.feature_layers)

    @classmethod
    def from_hf(cls, config: dict, *, where: str = "config.json", inlined: tuple[str, ...] = ()) -> Self:
        """Reads a `config.json` of one of the family's model types, of transformers 4.36 to 5.

        Args:
            where: what messages call the config.
            inlined: nested configs whose fields stand at the top level of the file that messages speak of.

        Raises:
            ValueError: naming every field, nested ones included, whose value is not implemented here.

        Warns:
            CheckpointWarning: naming every field that is none of the model's.
        """
        known = cls._known(config)
        read = ConfigReader(config, where=where, known=known)
        prefix = {name: "" if name in inlined else f"{name}." for name in ("text_config", "vision_config")}
        tables = {
            "text_config": _of_some_kind(config, "text_config", cls.no_decoder),
            "vision_config": _of_some_kind(config, "vision_config", cls.no_tower),
        }
        read.config = {**config, **tables}
        tower, decoder = config_class(tables["vision_config"]), LlamaConfig.known(tables["text_config"])
        text_read = read.nested("text_config", decoder, prefix["text_config"])
        vision_read = read.nested("vision_config", tower.known, prefix["vision_config"])
        text, vision = LlamaConfig.read(text_read), tower.read(vision_read)
        read.only("model_type", *cls.kinds)
        strategy = "default"
        if "vision_feature_select_strategy" in known:
            vision_read.only("model_type", *TOWERS)
            read.only("vision_feature_select_strategy", "default", "full")
            strategy = read("vision_feature_select_strategy")
            if complaint := _no_class_token(vision, strategy):
                read.complain("vision_feature_select_strategy", strategy, complaint)
        else:  # a VipLLaVA, which drops the class token whatever its config says
            vision_read.only("model_type", *(name for name, kind in TOWERS.items() if kind.class_tokens))
        read.seen.add("vocab_size")  # of version 4.36, a copy of the decoder's
        result: dict[str, Any] = dict(
            vision=vision,
            text=replace(text, tie_word_embeddings=read("tie_word_embeddings") or text.tie_word_embeddings),
            image_token_id=token_id(read, "image"),
            vision_feature_layer=_feature_layer(read, vision.num_hidden_layers),
            vision_feature_select_strategy=strategy,
            bos_token_id=(_token_ids("bos", read, text_read, text) or (1,))[0],
            eos_token_ids=_token_ids("eos", read, text_read, text),
            pad_token_id=(_token_ids("pad", read, text_read, text) or (0,))[0],
            projector_hidden_act=read.one_of("projector_hidden_act", ACTIVATIONS),
            projector_bias=_of_class(read, "multimodal_projector_bias", True),
            projector_layers=_projector_layers(read),
            projector_layernorm_eps=_of_class(read, "projector_layernorm_eps", None),
        )
        result |= cls._read_own(read, vision)
        read.done()
        return cls(**result)

    @classmethod
    def _known(cls, config: Any) -> Mapping[str, Any]:
        """The fields of the HF class that a config is of; the family's first where it does not say."""
        kind = config.get("model_type") if isinstance(config, dict) else None
        first = next(iter(cls.kinds))
        return cls.kinds.get(kind if isinstance(kind, str) else first, cls.kinds[first])

    @classmethod
    def _read_own(cls, read: ConfigReader, vision: VisionConfig) -> dict[str, Any]:
        """The fields that a family has beside those of a LLaVA."""
        return {}

    def not_in_hf(self) -> str:
        """A projector of another depth than that of transformers."""
        if self.projector_layers == 2:
            return ""
        layers = self.projector_layers
        return f"projector_layers = {layers} has no Hugging Face form: the projectors of transformers have 2"

    def describe_vision(self) -> str:
        """The tower, and how many tokens a picture becomes."""
        vision = self.vision
        return (
            f"{vision.num_hidden_layers} layers of {vision.hidden_size}, {vision.image_size} pixels in patches of "
            f"{vision.patch_size}: {self.tokens_per_tile} tokens an image"
        )

    def to_hf(self) -> dict:
        """The `config.json` that `from_hf` reads back to an equal config, in the spelling every transformers reads."""
        eos = list(self.eos_token_ids) if len(self.eos_token_ids) != 1 else self.eos_token_ids[0]
        ids = {"bos_token_id": self.bos_token_id, "eos_token_id": eos or None, "pad_token_id": self.pad_token_id}
        layer = self.vision_feature_layer
        layer = list(layer) if isinstance(layer, tuple) else layer
        if self.model_type == "vipllava":
            own: dict = {"vision_feature_layers": layer, "projector_layernorm_eps": self.projector_layernorm_eps}
        else:
            own = {
                "vision_feature_layer": layer,
                "vision_feature_select_strategy": self.vision_feature_select_strategy,
                "multimodal_projector_bias": self.projector_bias,
            }
        own |= {name: getattr(self, name) for name, value in OWN_FIELDS.items() if getattr(self, name) != value}
        return {
            "architectures": [self.architectures[self.model_type]],
            "model_type": self.model_type,
            "image_token_index": self.image_token_id,
            "image_seq_length": self.tokens_per_tile,
            **own,
            "projector_hidden_act": self.projector_hidden_act,
            "tie_word_embeddings": self.text.tie_word_embeddings,
            "pad_token_id": self.pad_token_id,
            "text_config": {**self.text.to_hf(), **ids},
            "vision_config": self.vision.to_hf(),
        }


@dataclass(frozen=True)
class LlavaConfig(LlavaParts):
    """A LLaVA's sizes and token ids: see `LlavaParts`. A picture is one tile."""

    @property
    def tokens_per_image(self) -> int:
        return self.tokens_per_tile

    @property
    def picture(self) -> Picture:
        """Where the tokens of a picture are: rows of patches, after the class token where it is kept."""
        first, vision = self.vision.class_tokens - self.skipped_tokens, self.vision
        return square_picture(vision.patches_per_side, first=first, extent=vision.extent)


def _of_some_kind(config: Any, name: str, absent: Mapping[str, Any]) -> Any:
    """The table of a part, of the kind that it says it is or else of the family's; `absent` where there is none."""
    value = config.get(name) if isinstance(config, dict) else None
    if value is None:
        return dict(absent)
    if isinstance(value, dict) and value.get("model_type") is None:
        return {**value, "model_type": absent["model_type"]}
    return value


def _of_class(read: ConfigReader, name: str, otherwise: Any) -> Any:
    """A field that only some of the classes have; to the others it is a leftover."""
    return read(name) if name in (read.known or {}) else otherwise


def _projector_layers(read: ConfigReader) -> int:
    layers = read("projector_layers")
    if layers > MAX_PROJECTOR_LAYERS:
        return read.complain("projector_layers", layers, f"expected 1 to {MAX_PROJECTOR_LAYERS}", 2)
    return layers


def _no_class_token(vision: VisionConfig, strategy: str) -> str:
    """What is wrong with a strategy that drops a token which the tower does not have; else nothing."""
    return "" if vision.class_tokens or strategy == "full" else 'this tower has no class token to drop, expected "full"'


def token_id(read: ConfigReader, kind: str) -> int:
    """`image_token_index`, say, or the newer name for it, which counts where both are given."""
    names = (f"{kind}_token_id", f"{kind}_token_index")
    read.seen |= set(names)
    given = {name: read.config[name] for name in names if read.config.get(name) is not None}
    name, value = next(iter(given.items()), (names[1], (read.known or {})[names[1]]))
    if type(value) is not int or not 0 <= value < 1 << 31:
        return read.complain(name, value, "expected a token id", 0)
    return value


def _feature_layer(read: ConfigReader, layers: int) -> int | tuple[int, ...]:
    """One index or a list of them; a list of one is that one."""
    known = read.known or {}
    names = [name for name in ("vision_feature_layers", "vision_feature_layer") if name in known]
    read.seen |= set(names)
    name = next((name for name in names if read.config.get(name) is not None), "vision_feature_layer")
    value = known[name] if read.config.get(name) is None else read.config[name]
    indices = list(value) if isinstance(value, list | tuple) else [value]
    if not indices or not all(type(index) is int and -layers - 1 <= index <= layers for index in indices):
        return read.complain(
            name, value, f"expected one or more of {-layers - 1} to {layers}: the tower has {layers} layers", 0
        )
    return indices[0] if len(indices) == 1 else tuple(indices)


def _token_ids(name: str, read: ConfigReader, text_read: ConfigReader, text: LlamaConfig) -> tuple[int, ...]:
    """A special token's ids: the top level's, else the decoder's, else HF's default for it; one id or a list.

    An id outside the vocabulary is none (-1 is a common way to say so).
    """
    key = f"{name}_token_id"
    read.seen.add(key)
    value = read.config.get(key)
    if value is None:
        value = text_read.config.get(key, (text_read.known or {})[key])
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(token) is int for token in ids):
        read.complain(key, value, "expected token ids")
        return ()
    return tuple(token for token in ids if 0 <= token < text.vocab_size)


class Projector(nnx.Module):
    """Linear layers with an activation in between (the exact GELU, unless the config says otherwise), from the
    features' width to the language model's: one in LLaVA-1.0, two in 1.5. VipLLaVA normalises the features first."""

    def __init__(self, config: LlavaParts, *, rngs: nnx.Rngs):
        sizes, self.layers, eps = config.projector_sizes, config.projector_layers, config.projector_layernorm_eps
        if eps is not None:
            self.projector_layernorm = nnx.LayerNorm(sizes[0], epsilon=eps, use_fast_variance=False, rngs=rngs)
        self.normalises = eps is not None
        for i, (before, after) in enumerate(pairwise(sizes), start=1):
            setattr(self, f"linear_{i}", linear(before, after, use_bias=config.projector_bias, rngs=rngs))
        self.activation = ACTIVATIONS[config.projector_hidden_act]

    def __call__(self, features: Float[Array, "... Dv"]) -> Float[Array, "... D"]:
        x = self.projector_layernorm(features) if self.normalises else features
        for i in range(1, self.layers + 1):
            x = getattr(self, f"linear_{i}")(x if i == 1 else self.activation(x))
        return x


def modules(config: LlavaParts) -> dict:
    """The parts of the model and their configs, by the name their parameters have at the top of the tree.

    The language model's part, "", spreads over two top-level names, `language_model` and `lm_head`.
    """
    return {
        "vision_tower": (module_of(config.vision), config.vision),
        "multi_modal_projector": (Projector, config),
        "": (CausalLM, config.text),
    }


def vision_features(
    params: dict, pixel_values: Float[Array, "I 3 height width"], *, config: LlavaParts, implementation: Implementation
) -> Float[Array, "I V Dv"]:
    """The tower's features as LLaVA selects them: hidden states side by side, class token dropped or kept."""
    return _features_and_attention(params, pixel_values, config, implementation)[0]


def _features_and_attention(
    params: dict, pixel_values: Array, config: LlavaParts, implementation: Implementation
) -> tuple[Float[Array, "I V Dv"], tuple[Array, Array] | None]:
    """The features, and the queries and keys of the deepest layer that ran."""
    tower = bind_tower(config.vision, params["vision_tower"])
    states, attention = tower.with_attention(pixel_values, config.feature_layers, implementation=implementation)
    return jnp.concatenate([state[:, config.skipped_tokens :] for state in states], axis=-1), attention


def cls_attention(q: Float[Array, "I T N H"], k: Float[Array, "I T N H"]) -> Float[Array, "I T"]:
    """The class token's attention in one layer, mean over heads; float32."""
    logits = jnp.einsum("INH,ITNH->INT", q[:, 0], k, preferred_element_type=jnp.float32)
    return jax.nn.softmax(logits / math.sqrt(q.shape[-1]), axis=-1).mean(axis=1)


def project(params: dict, features: Float[Array, "I V Dv"], *, config: LlavaParts) -> Float[Array, "I V D"]:
    """Features of the tower to embeddings of the language model."""
    return bind(Projector, config, params["multi_modal_projector"])(features)


def encode_images(
    params: dict, pixel_values: Float[Array, "I 3 height width"], *, config: LlavaParts, implementation: Implementation
) -> Float[Array, "I V D"]:
    """Pixels (normalised, HF's layout) to visual embeddings."""
    features = vision_features(params, pixel_values, config=config, implementation=implementation)
    return project(params, features, config=config)


def _packed(features: Float[Array, "I V D"], context: ImageContext | None = None) -> Encoded:
    """Picture after picture."""
    tokens, context = jax.tree.map(lambda field: field.reshape(-1, *field.shape[2:]), (features, context))
    return Encoded(tokens, context)


def encode(
    params: dict,
    pixel_values: Float[Array, "I 3 height width"],
    *,
    config: LlavaParts,
    implementation: Implementation,
    context: bool = False,
    merging: TowerMerging | TowerReduction | None = None,
) -> Encoded:
    """`encode_images`, packed, and what methods want that look into the tower, or act in it or between it and the
    projector.

    Args:
        context: give the class token's attention, where there is one, and the keys of the layer that the features come
            from, the deepest one if they come from several.
        merging: merge tokens inside the tower or after it, before the projector. Each token that is left has the place
            of a patch, the other places are 0, and so is their `context.size`; `context.order` is the method's. Inside,
            the tower attends by XLA, whatever the `implementation`.

    Raises:
        ValueError: `context` of a tower none of whose layers runs; `merging` that needs a class token where there is
            none, further than the layers can, or where features come from several layers, which would hold different
            numbers of tokens.
    """
    if merging is not None:
        return _encode_merged(params, pixel_values, config, implementation, merging)
    if not context:
        features = encode_images(params, pixel_values, config=config, implementation=implementation)
        return _packed(features)
    features, attention = _features_and_attention(params, pixel_values, config, implementation)
    if attention is None:
        raise ValueError(f"no layer runs before vision_feature_layer = {config.vision_feature_layer}: no attention")
    q, k = attention
    first = config.skipped_tokens
    attended = cls_attention(q, k)[:, first:] if config.vision.class_tokens else None
    seen = ImageContext(cls_attention=attended, keys=k[:, first:])
    return _packed(project(params, features, config=config), seen)


def _encode_merged(
    params: dict,
    pixel_values: Array,
    config: LlavaParts,
    implementation: Implementation,
    merging: TowerMerging | TowerReduction,
) -> Encoded:
    if len(config.feature_layers) > 1:
        raise ValueError(f"merging in the tower needs one vision_feature_layer, got {config.vision_feature_layer}")
    if not config.vision.class_tokens and "class_token" in merging.needs:
        raise ValueError(
            f"this method needs the class token of the vision tower, and a {config.vision.model_type} has none; those "
            "that choose in the language model or by the features (sparsevlm, fastv, divprune, ...) do without"
        )
    tower = bind_tower(config.vision, params["vision_tower"])
    first = config.skipped_tokens
    visual = config.tokens_per_tile
    if not isinstance(merging, TowerReduction):
        counts = merge_schedule(config, merging)
        tokens = tower.merged(pixel_values, config.tower_layers, merging=merging, counts=counts)
        tokens = MergedTokens(*(field[:, first:] for field in tokens))
    elif (count := merging.count(visual)) < config.vision.num_patches:
        tokens = merging.reduce(tower.output(pixel_values, config.tower_layers, implementation=implementation), count)
    else:  # every patch stays, and what else there is as far as it may
        hidden = tower.hidden_state(pixel_values, config.tower_layers, implementation=implementation)[:, -count:]
        origin = jnp.broadcast_to(jnp.arange(first + visual - count, first + visual), hidden.shape[:2])
        tokens = MergedTokens(hidden, jnp.ones(hidden.shape[:2]), origin)
    features = project(params, tokens.hidden, config=config)
    images, place = jnp.arange(features.shape[0])[:, None], tokens.origin - first
    empty = jnp.zeros((features.shape[0], visual))
    size = empty.at[images, place].set(tokens.size, unique_indices=True)
    order = empty.astype(jnp.int32).at[images, place].set(jnp.arange(features.shape[1]), unique_indices=True)
    spread = jnp.zeros((*empty.shape, features.shape[-1]), features.dtype)
    spread = spread.at[images, place].set(features, unique_indices=True)
    return _packed(spread, ImageContext(size=size, order=order))


def merge_schedule(config: LlavaParts, merging: TowerMerging) -> tuple[int, ...]:
    """Tokens that leave each layer of the tower that runs."""
    tokens = config.vision.num_patches + config.vision.class_tokens
    return merging.schedule(
        tokens, config.tower_layers, config.tokens_per_tile, class_tokens=config.vision.class_tokens
    )


def tokens_left(config: LlavaParts, merging: TowerMerging | TowerReduction) -> int:
    """Visual tokens that a method makes of those of a tile."""
    if isinstance(merging, TowerReduction):
        return merging.count(config.tokens_per_tile)
    return merge_schedule(config, merging)[-1] - config.skipped_tokens


def encoder_flops(
    config: LlavaParts, pictures: Sequence[PictureSize], merging: TowerMerging | TowerReduction | None = None
) -> int:
    """Exact matmul FLOPs of the layers of the tower that run, and of the projector, for all tiles of `pictures`; with
    `merging`, over the tokens that are left, the merging included."""
    vision = config.vision
    entering = n = vision.num_patches + vision.class_tokens
    visual = config.tokens_per_tile
    counts, extra = (n,) * config.tower_layers, 0
    if merging and not isinstance(merging, TowerReduction):
        counts = merge_schedule(config, merging)
        extra = sum(
            merging.cost(before, after, vision.head_dim) for before, after in zip((n, *counts), counts, strict=False)
        )
    tower = vision.num_patches * 3 * vision.patch_size**2 * vision.hidden_size
    for leaving in counts:
        tower += vision_layer_macs(vision, n, leaving)
        n = leaving
    projected = visual - (entering - n)
    if isinstance(merging, TowerReduction):
        projected = tokens_left(config, merging)
        if projected < vision.num_patches:
            sizes = (vision.num_patches, projected, vision.hidden_size, vision.head_dim)
            extra = merging.cost(*sizes, class_tokens=vision.class_tokens)
    projector = projected * sum(before * after for before, after in pairwise(config.projector_sizes))
    return 2 * sum(picture.tiles for picture in pictures) * (tower + projector + extra)


def dummy() -> LlavaConfig:
    """Four patches by four, a tower of two layers, a decoder of four: for tests and examples."""
    vision = ClipVisionConfig(32, 64, 2, 2, image_size=16, patch_size=4)
    text = LlamaConfig(448, 32, 64, 4, 4, 2, 8, rms_norm_eps=1e-5, rope_theta=1e4, max_position_embeddings=1024)
    return LlavaConfig(vision=vision, text=text, image_token_id=400)


def _is_llava(table: Mapping[str, Any]) -> bool:
    """HF's form; the original code's, also of model_type "llava", is put into it first."""
    return table.get("model_type") in tuple(LlavaConfig.kinds)  # which may be of any type


register(
    Family(
        name="llava",
        config=LlavaConfig,
        matches=_is_llava,
        modules=modules,
        encode=encode,
        encoder_flops=encoder_flops,
        processor=Processor,
        about=(
            "LLaVA with a decoder like Llama and a CLIP or SigLIP tower, as transformers saves it (model_type 'llava' "
            "or 'vipllava') or as the original code does (1.0 and 1.5)"
        ),
        dummy=dummy,
    )
)
