"""CLIP's vision transformer (Radford et al., arXiv 2103.00020), as LLaVA uses it: patch features, no pooling.

I images · P patches · T tokens (1 class token + P) · D model dim · N heads · H head dim
"""

from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ...hf.known_fields import CLIP_VISION
from ..nn.linear import linear
from .vision_transformer import VisionConfig, VisionTransformer, layer_norm, patchify


@dataclass(frozen=True)
class ClipVisionConfig(VisionConfig):
    """A CLIP tower's sizes; see `VisionConfig`.

    ClipVisionConfig(1024, 4096, 24, 16, image_size=336, patch_size=14).num_patches  # 576
    """

    layer_norm_eps: float = 1e-5
    hidden_act: str = "quick_gelu"

    model_type = "clip_vision_model"
    known = CLIP_VISION
    class_tokens = 1

    def to_hf(self) -> dict:
        return {**super().to_hf(), "projection_dim": self.hidden_size}


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


class ClipVisionModel(VisionTransformer):
    """The tower: a class token before the patches, and a norm before the layers."""

    def __init__(self, config: ClipVisionConfig, *, rngs: nnx.Rngs):
        self.embeddings = ClipEmbeddings(config, rngs=rngs)
        self.pre_layrnorm = layer_norm(config, rngs)  # sic: the checkpoints' spelling
        super().__init__(config, rngs=rngs)

    def embed(self, pixel_values: Float[Array, "I 3 height width"]) -> Float[Array, "I T D"]:
        dtype = self.embeddings.class_embedding[...].dtype
        return self.pre_layrnorm(self.embeddings(pixel_values.astype(dtype)))
