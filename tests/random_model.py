"""A random LLaVA of three layers, made without torch, and batches of random rows for it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparsevlm_jax.models import ClipVisionConfig, LlamaConfig, LlavaConfig, init_params
from sparsevlm_jax.runtime.prefill import PrefillInputs
from sparsevlm_jax.sparsify import Bucket

IMAGE_ID, VOCAB = 90, 97
CONFIG = LlavaConfig(
    vision=ClipVisionConfig(16, 16, 1, 2, image_size=16, patch_size=4),  # 16 tokens an image
    text=LlamaConfig(VOCAB, 32, 48, 3, 4, 2, 8, rms_norm_eps=1e-5, rope_theta=1e4, max_position_embeddings=512),
    image_token_id=IMAGE_ID,
)
STEP = CONFIG.tokens_per_image


class Row(NamedTuple):
    """A prompt: words before its images, images, words of the question."""

    seed: int
    before: int
    images: int
    question: int

    @property
    def ids(self) -> np.ndarray:
        words = np.random.default_rng(self.seed).integers(3, IMAGE_ID, self.before + self.question)
        visual = np.full(self.images * STEP, IMAGE_ID)
        return np.concatenate([words[: self.before], visual, words[self.before :]]).astype(np.int32)

    @property
    def features(self) -> np.ndarray:
        rng = np.random.default_rng(1000 + self.seed)
        return rng.normal(size=(self.images, STEP, CONFIG.text.hidden_size)).astype(np.float32)


def random_params() -> dict:
    """Random weights, queries and keys enlarged: attention far from uniform, scores far from tied."""
    params = init_params(CONFIG, seed=0)
    for layer in params["language_model"]["layers"].values():
        for name in ("q_proj", "k_proj"):
            layer["self_attn"][name]["kernel"] = 3 * layer["self_attn"][name]["kernel"]
    return jax.device_put(params)


def batch(rows, bucket: Bucket, *, images: int = 6) -> PrefillInputs:
    """Rows padded to `bucket`, features to `images`; the padding looks like images, and must not be taken for any."""
    ids = np.full((len(rows), bucket.capacity), IMAGE_ID, np.int32)
    for buffer, row in zip(ids, rows, strict=True):
        buffer[: len(row.ids)] = row.ids
    features = np.full((images, STEP, CONFIG.text.hidden_size), 1e3, np.float32)
    given = np.concatenate([row.features for row in rows])
    features[: len(given)] = given
    return PrefillInputs.of(jnp.array(ids), jnp.array([len(row.ids) for row in rows]), jnp.array(features), IMAGE_ID)
