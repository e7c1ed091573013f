"""Phase 2 of training: projector and language model on the frozen tower, answers spelled letter by letter.

B batch · P prefix tokens · G segments · Q tokens of a segment · V visual tokens · D model dim
"""

import functools
from collections.abc import Callable, Mapping
from random import Random
from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from sparsevlm_jax.demo import world
from sparsevlm_jax.demo.questions import pick
from sparsevlm_jax.demo.sprites import CAR_COLOURS, COLOURS, SHAPES
from sparsevlm_jax.demo.world import Mix
from sparsevlm_jax.models.decoders.llama import LlamaConfig
from sparsevlm_jax.models.families.family import language_model
from sparsevlm_jax.models.families.llava import LlavaConfig, encode_images, modules
from sparsevlm_jax.models.nn.params import init

from . import packing, pixels, tokenizer, tower
from .packing import PREFIX_IDS, Segments

_LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_WORDS: Final[dict[str, tuple[int, tuple[str, ...]]]] = {
    "letter": (0, tuple(_LETTERS)),
    "index": (0, tuple("12345")),
    "colour": (0, tuple(COLOURS)),
    "shape": (0, SHAPES),
    "car": (0, tuple(f"{colour} car" for colour in CAR_COLOURS)),
    "left": (1, ("", *COLOURS)),
    "right": (2, ("", *COLOURS)),
}
"""For each of the tower's targets the words for its classes, in order; and the third of the embedding by which they
are turned, so that a neighbour's colour is not taken for the sign's own."""


class Batch(NamedTuple):
    pixel_values: Float[np.ndarray, "B 3 height width"]
    segments: Segments


Forward = Callable[[dict, Batch, LlavaConfig], Array]


class Lesson(NamedTuple):
    """What a stretch of training shows: scenes, questions of a picture, weights of their kinds and of first letters."""

    mix: Mix
    questions: int
    kinds: Mapping[str, float]
    first_weight: float


def config(layers: int) -> LlavaConfig:
    """The demo model with a language model of this many layers."""
    text = LlamaConfig(
        vocab_size=len(tokenizer.vocabulary()),
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        rms_norm_eps=1e-6,
        rope_theta=10000.0,
        max_position_embeddings=1024,
    )
    return LlavaConfig(
        vision=tower.CONFIG,
        text=text,
        image_token_id=tokenizer.IMAGE,
        vision_feature_layer=-1,
        bos_token_id=tokenizer.BOS,
        eos_token_ids=(tokenizer.EOS,),
        pad_token_id=tokenizer.PAD,
    )


def new_params(seed: int, layers: int, vision_tower: dict, feature_scale: float) -> dict:
    """A trained tower with a fresh projector and language model.

    Embeddings start at variance one, and the projector's first layer is divided by `feature_scale`, the standard
    deviation of the tower's plain features, so that words and patches enter the language model at one size. The head
    starts as the embeddings' transpose: a layer that copies a word's embedding to the end has said the word. Attention
    starts out matching and copying (see `_matching`).
    """
    whole = config(layers)
    params = {"vision_tower": vision_tower}
    for name, (module, part) in modules(whole).items():
        if name == "multi_modal_projector":
            params[name] = init(module, part, seed)
        elif not name:
            params |= init(module, part, seed + 1)
    table = params["language_model"]["embed_tokens"]
    table["embedding"] = jax.random.normal(jax.random.key(seed), table["embedding"].shape)
    params["lm_head"]["kernel"] = table["embedding"] / table["embedding"].shape[1] ** 0.5
    for layer in params["language_model"]["layers"].values():
        layer["self_attn"] = _matching(layer["self_attn"])
    linear = params["multi_modal_projector"]["linear_1"]
    linear["kernel"] = linear["kernel"] / feature_scale
    return params


def _matching(attention: dict) -> dict:
    """Attention that starts by looking for what is like itself, and copies it: the "mimetic" start of Trockman and
    Kolter (arXiv 2305.09828), with the sign of the copy turned. The word "blue" then looks at blue patches at once."""
    query, value = attention["q_proj"]["kernel"], attention["v_proj"]["kernel"]
    return {**attention, "k_proj": {"kernel": query + 0}, "o_proj": {"kernel": 0.5 * value.T}}


def grow(params: dict, layers: int) -> dict:
    """The same function with more layers: new ones, which add nothing yet, spread between the old.

    Raises:
        ValueError: fewer layers asked for than there are.
    """
    old = params["language_model"]["layers"]
    if layers < len(old):
        raise ValueError(f"expected at least the {len(old)} layers there are, got {layers}")
    fresh = new_params(1, layers, {}, 1.0)["language_model"]["layers"]
    places = {round((index + 0.5) * layers / len(old) - 0.5): layer for index, layer in enumerate(old.values())}
    for index in range(layers):
        fresh[str(index)] = places.get(index) or _silent(fresh[str(index)])
    return {**params, "language_model": {**params["language_model"], "layers": fresh}}


def _silent(layer: dict) -> dict:
    layer["self_attn"]["o_proj"]["kernel"] = jnp.zeros_like(layer["self_attn"]["o_proj"]["kernel"])
    layer["mlp"]["down_proj"]["kernel"] = jnp.zeros_like(layer["mlp"]["down_proj"]["kernel"])
    return layer


def unit_norm(params: dict) -> dict:
    """The same function with embeddings of norm one on average, as LLaMA's have, and all that joins them scaled so.

    Norms undo the scale before every layer and before the head. SparseVLM's raters do not: they come from a softmax
    over products of embeddings, which at variance one would leave a single word standing.
    """
    text = params["language_model"]
    scale = 1 / jnp.mean(jnp.linalg.norm(text["embed_tokens"]["embedding"], axis=-1))
    scaled = {"embed_tokens", "o_proj", "down_proj"}

    def rescale(path: tuple, leaf: Array) -> Array:
        return leaf * scale if scaled & {getattr(key, "key", None) for key in path} else leaf

    projector = {**params["multi_modal_projector"]}
    projector["linear_2"] = jax.tree.map(lambda leaf: leaf * scale, projector["linear_2"])
    return {
        **params,
        "multi_modal_projector": projector,
        "language_model": jax.tree_util.tree_map_with_path(rescale, text),
    }


def batch(step: int, size: int, lesson: Lesson) -> Batch:
    """The scenes and questions of a training step, a function of step and lesson alone."""
    scenes, rows = [], []
    for index in range(size):
        seed = step * size + index
        scenes.append(world.sample(seed, "train", lesson.mix))
        rows.append(pick(scenes[-1], Random(f"questions {seed}"), lesson.questions, lesson.kinds))
    segments = packing.pack(rows, lesson.questions, lesson.first_weight, hints=True)
    return Batch(pixels.normalise([scene.draw() for scene in scenes]), segments)


def described(labels: dict[str, Int[np.ndarray, "I P"]], table: Float[Array, "W D"]) -> Float[Array, "I P D"]:
    """What a patch would be called in words: half the sum of the embeddings of the words for what is on it.

    Where there is nothing it is called "street": a norm blows up whatever is small, so nothing must not be zero.
    """
    total = jnp.zeros((*labels["letter"].shape, table.shape[1]))
    for name, (turn, words) in _WORDS.items():
        meant = [jnp.zeros(table.shape[1])]
        meant += [jnp.sum(table[jnp.array(tokenizer.encode(word))], 0) if word else meant[0] for word in words]
        total += jnp.roll(jnp.stack(meant), turn * table.shape[1] // 3, axis=1)[jnp.asarray(labels[name])]
    nothing = (jnp.asarray(labels["letter"]) == 0) & (jnp.asarray(labels["car"]) == 0)
    return jnp.where(nothing[..., None], table[tokenizer.encode("street")[0]], total / 2)


def align_loss(params: dict, data: tower.Batch, whole: LlavaConfig) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Mean squared distance of the projector's patches from the words for what is on them."""
    visual = encode_images(params, jnp.asarray(data.pixel_values), config=whole, implementation="xla")
    wanted = described(data.labels, params["language_model"]["embed_tokens"]["embedding"])
    on_letter = jnp.asarray(data.labels["letter"]) > 0
    error = jnp.mean((visual - wanted) ** 2, axis=-1)
    loss = jnp.sum(error * on_letter) / jnp.sum(on_letter) + jnp.mean(error)
    return loss, {"explained": 1 - jnp.sum(error * on_letter) / jnp.sum(jnp.mean(wanted**2, axis=-1) * on_letter)}


def logits(params: dict, data: Batch, whole: LlavaConfig) -> Float[Array, "B G Q W"]:
    """Next-token logits of every segment."""
    lm = language_model(params, whole)
    table = lm.language_model.embed_tokens
    visual = encode_images(params, jnp.asarray(data.pixel_values), config=whole, implementation="xla")
    batch, segments, width = data.segments.ids.shape
    start = jnp.broadcast_to(table(jnp.array(PREFIX_IDS)), (batch, len(PREFIX_IDS), visual.shape[-1]))
    asked = table(jnp.asarray(data.segments.ids)).reshape(batch, -1, visual.shape[-1])
    prefix = start.shape[1] + visual.shape[1]
    hidden = jnp.concatenate([start, visual, asked], axis=1)
    rotary = lm.rotary(jnp.asarray(packing.position_ids(prefix, segments, width)))
    attention = functools.partial(packing.packed_attention, prefix=prefix, width=width)
    for layer in lm.language_model.layers:
        hidden, _ = layer(hidden, rotary, lambda q, k, v: (attention(q, k, v), None))
    return lm.logits(hidden[:, prefix:].reshape(*data.segments.ids.shape, -1))


def loss(
    params: dict, data: Batch, whole: LlavaConfig, forward: Forward = logits
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Weighted cross-entropy of the answers; and the share of first tokens, tokens and whole answers that are right."""
    scores = forward(params, data, whole)
    targets, weights = jnp.asarray(data.segments.targets), jnp.asarray(data.segments.weights)
    entropy = optax.softmax_cross_entropy_with_integer_labels(scores, targets)
    due = weights > packing.HINT
    wrong = (jnp.argmax(scores, -1) != targets) & due
    first = due & (jnp.cumsum(due, axis=-1) == 1)
    answers = jnp.maximum(1, jnp.sum(jnp.any(due, -1)))
    accuracy = {
        "exact": 1 - jnp.sum(jnp.any(wrong, -1)) / answers,
        "first": 1 - jnp.sum(wrong & first) / answers,
        "token": 1 - jnp.sum(wrong) / jnp.maximum(1, jnp.sum(due)),
    }
    return jnp.sum(entropy * weights) / jnp.sum(weights), accuracy
