"""Phase 2 of training: projector and language model on the frozen tower, answers spelled letter by letter.

B batch · P prefix tokens · G segments · Q tokens of a segment · V visual tokens · D model dim
"""

from random import Random
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from ..models.llama import LlamaConfig
from ..models.llava import LlavaConfig, encode_images, language_model, modules
from ..models.params import init
from . import packing, pixels, tokenizer, tower, world
from .packing import PREFIX_IDS, Segments
from .questions import pick
from .world import Mix


class Batch(NamedTuple):
    pixel_values: Float[np.ndarray, "B 3 height width"]
    segments: Segments


class Lesson(NamedTuple):
    """What a stretch of training shows: scenes, questions of a picture, weights of their kinds and of first letters."""

    mix: Mix
    questions: int
    kinds: dict[str, float]
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
        rms_norm_eps=1e-5,
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
    deviation of the tower's plain features, so that words and patches enter the language model at one size.
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
    linear = params["multi_modal_projector"]["linear_1"]
    linear["kernel"] = linear["kernel"] / feature_scale
    return params


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


def batch(step: int, size: int, lesson: Lesson) -> Batch:
    """The scenes and questions of a training step, a function of step and lesson alone."""
    scenes, rows = [], []
    for index in range(size):
        seed = step * size + index
        scenes.append(world.sample(seed, "train", lesson.mix))
        rows.append(pick(scenes[-1], Random(f"questions {seed}"), lesson.questions, lesson.kinds))
    segments = packing.pack(rows, lesson.questions, lesson.first_weight)
    return Batch(pixels.normalise([scene.draw() for scene in scenes]), segments)


def logits(params: dict, data: Batch, whole: LlavaConfig) -> Float[Array, "B G Q W"]:
    """Next-token logits of every segment."""
    lm = language_model(params, whole)
    table = lm.language_model.embed_tokens
    visual = encode_images(params, jnp.asarray(data.pixel_values), config=whole, implementation="xla")
    batch, segments = data.segments.ids.shape[:2]
    start = jnp.broadcast_to(table(jnp.array(PREFIX_IDS)), (batch, len(PREFIX_IDS), visual.shape[-1]))
    asked = table(jnp.asarray(data.segments.ids)).reshape(batch, -1, visual.shape[-1])
    prefix = start.shape[1] + visual.shape[1]
    hidden = jnp.concatenate([start, visual, asked], axis=1)
    rotary = lm.rotary(jnp.asarray(packing.position_ids(prefix, segments)))
    for layer in lm.language_model.layers:
        hidden, _ = layer(hidden, rotary, lambda q, k, v: (packing.packed_attention(q, k, v, prefix=prefix), None))
    return lm.logits(hidden[:, prefix:].reshape(*data.segments.ids.shape, -1))


def loss(params: dict, data: Batch, whole: LlavaConfig) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Weighted cross-entropy of the answers; and the share of first tokens, tokens and whole answers that are right."""
    scores = logits(params, data, whole)
    targets, weights = jnp.asarray(data.segments.targets), jnp.asarray(data.segments.weights)
    entropy = optax.softmax_cross_entropy_with_integer_labels(scores, targets)
    due = weights > 0
    wrong = (jnp.argmax(scores, -1) != targets) & due
    first = due & (jnp.cumsum(due, axis=-1) == 1)
    answers = jnp.maximum(1, jnp.sum(jnp.any(due, -1)))
    accuracy = {
        "exact": 1 - jnp.sum(jnp.any(wrong, -1)) / answers,
        "first": 1 - jnp.sum(wrong & first) / answers,
        "token": 1 - jnp.sum(wrong) / jnp.maximum(1, jnp.sum(due)),
    }
    return jnp.sum(entropy * weights) / jnp.sum(weights), accuracy
