"""Phase 1 of training: the vision tower alone, under a linear head that is thrown away.

Trained end to end from nothing, a model of this size reads at chance after 15,000 scenes. So the tower first learns
to say, of every patch, what a language model will need: the letter, its place in the word, the sign's colour and
shape, the neighbours' colours, how many signs there are. The head reads the plain hidden state, without a norm, which
is the feature LLaVA hands to the projector.

I images · P patches · D model dim
"""

from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from sparsevlm_jax.demo import world
from sparsevlm_jax.demo.sprites import CAR_COLOURS, CAR_SIZE, COLOURS, PATCH, SHAPES
from sparsevlm_jax.demo.world import GRID, Mix, Scene, Sign
from sparsevlm_jax.models.nn.params import bind, init
from sparsevlm_jax.models.towers.clip import ClipVisionConfig, ClipVisionModel

from . import pixels

CONFIG: Final = ClipVisionConfig(
    hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4, image_size=168, patch_size=14
)

TARGETS: Final[dict[str, tuple[int, float]]] = {
    "letter": (27, 1.0),
    "colour": (9, 1.0),
    "index": (6, 1.0),
    "remaining": (6, 0.5),
    "shape": (5, 0.5),
    "left": (10, 0.3),
    "right": (10, 0.3),
    "signs": (9, 0.3),
    "car": (7, 0.5),
}
"""What the head says of a patch: number of classes, weight in the loss. Class 0 is "nothing here"."""

_COLOUR: Final = {name: index for index, name in enumerate(COLOURS, start=1)}
_EVERYWHERE: Final = ("letter", "car")
_BACKGROUND_WEIGHT: Final = 0.1


class Batch(NamedTuple):
    pixel_values: Float[np.ndarray, "I 3 height width"]
    labels: dict[str, Int[np.ndarray, "I P"]]


def new_params(seed: int) -> dict:
    """A fresh tower, its positions started from sines and cosines (still learned), and the head."""
    tower = init(ClipVisionModel, CONFIG, seed)
    tower["embeddings"]["position_embedding"]["embedding"] = jnp.asarray(sincos_positions(CONFIG.hidden_size))
    keys = jax.random.split(jax.random.key(seed), len(TARGETS))
    head = {
        name: 0.02 * jax.random.normal(key, (CONFIG.hidden_size, classes))
        for key, (name, (classes, _)) in zip(keys, TARGETS.items(), strict=True)
    }
    return {"vision_tower": tower, "head": head}


def sincos_positions(dim: int, amplitude: float = 0.7) -> Float[np.ndarray, "T D"]:
    """Half the channels for the row, half for the column; zeros for the class token."""
    frequency = 10.0 ** (-np.arange(dim // 4) / (dim // 4) * 1.5)
    row, column = np.divmod(np.arange(GRID * GRID), GRID)
    angles = [place[:, None] * frequency for place in (row, column)]
    table = np.concatenate([wave(angle) for angle in angles for wave in (np.sin, np.cos)], axis=1)
    return np.concatenate([np.zeros((1, dim)), amplitude * table]).astype(np.float32)


def batch(step: int, size: int, mix: Mix) -> Batch:
    """The scenes of a training step: a function of the step alone, so that training resumes exactly."""
    scenes = [world.sample(step * size + index, "train", mix) for index in range(size)]
    labels = [patch_labels(scene) for scene in scenes]
    stacked = {name: np.stack([label[name] for label in labels]) for name in TARGETS}
    return Batch(pixels.normalise([scene.draw() for scene in scenes]), stacked)


def patch_labels(scene: Scene) -> dict[str, Int[np.ndarray, " P"]]:
    """The classes of every patch, row by row."""
    grids = {name: np.zeros((GRID, GRID), np.int32) for name in TARGETS}
    for car in scene.cars:
        left, right = (car.x + 6) // PATCH, (car.x + CAR_SIZE[0] - 6) // PATCH
        grids["car"][(car.y + CAR_SIZE[1] // 2) // PATCH, left : right + 1] = CAR_COLOURS.index(car.colour) + 1
    for sign in scene.signs:
        cells = (sign.row, slice(sign.column, sign.column + len(sign.word)))
        count = len(sign.word)
        grids["letter"][cells] = [ord(letter) - ord("A") + 1 for letter in sign.word]
        grids["index"][cells] = np.arange(1, count + 1)
        grids["remaining"][cells] = np.arange(count, 0, -1)
        grids["colour"][cells] = _COLOUR[sign.colour]
        grids["shape"][cells] = SHAPES.index(sign.shape) + 1
        grids["signs"][cells] = len(scene.signs)
        for name, other in zip(("left", "right"), _beside(scene, sign), strict=True):
            grids[name][cells] = 1 + (_COLOUR[other.colour] if other else 0)
    return {name: grid.reshape(-1) for name, grid in grids.items()}


def _beside(scene: Scene, sign: Sign) -> tuple[Sign | None, Sign | None]:
    """The signs to the left and right in the same row."""
    others = [other for other in scene.signs if other.row == sign.row and other is not sign]
    left = next((other for other in others if other.column < sign.column), None)
    return left, next((other for other in others if other.column > sign.column), None)


def features(tower: dict, pixel_values: Float[Array, "I 3 height width"]) -> Float[Array, "I P D"]:
    """The last hidden state of every patch, class token dropped: LLaVA's feature."""
    module = bind(ClipVisionModel, CONFIG, tower)
    return module.hidden_state(pixel_values, -1, implementation="xla")[:, 1:]


def loss(params: dict, data: Batch) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Weighted cross-entropy of every target, and the share of letter patches where each is right."""
    found = features(params["vision_tower"], jnp.asarray(data.pixel_values))
    on_letter = jnp.asarray(data.labels["letter"]) > 0
    total, right = jnp.float32(0), {}
    for name, (_, weight) in TARGETS.items():
        labels, present = jnp.asarray(data.labels[name]), jnp.asarray(data.labels[name]) > 0
        logits = found @ params["head"][name]
        weights = jnp.where(present, 1.0, _BACKGROUND_WEIGHT if name in _EVERYWHERE else 0.0)
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        total += weight * jnp.sum(entropy * weights) / jnp.sum(weights)
        counted = present if name == "car" else on_letter
        right[name] = jnp.sum((jnp.argmax(logits, -1) == labels) & counted) / jnp.maximum(1, jnp.sum(counted))
    return total, right
