"""SigLIP's vision transformer (Zhai et al., arXiv 2303.15343), as LLaVA uses it: patch features, no pooling.

It has no class token, so methods that ask for its attention do not run on it; the attention-pooling head that a
checkpoint may hold is not read.

I images · P patches · D model dim
"""

from dataclasses import dataclass
from typing import Self

from flax import nnx
from jaxtyping import Array, Float

from ...hf.known_fields import SIGLIP_VISION
from ...hf.reader import ConfigReader
from ..nn.linear import linear
from .vision_transformer import VisionConfig, VisionTransformer, patchify


@dataclass(frozen=True)
class SiglipVisionConfig(VisionConfig):
    """A SigLIP tower's sizes; see `VisionConfig`.

    SiglipVisionConfig(1152, 4304, 26, 16, image_size=384, patch_size=14).num_patches  # 27 * 27, 6 pixels over
    """

    layer_norm_eps: float = 1e-6
    hidden_act: str = "gelu_pytorch_tanh"

    model_type = "siglip_vision_model"
    known = SIGLIP_VISION
    class_tokens = 0

    @classmethod
    def read(cls, read: ConfigReader) -> Self:
        read.seen.add("vision_use_head")  # whether there is one or not, no patch passes through it
        return super().read(read)

    def to_hf(self) -> dict:
        return {**super().to_hf(), "vision_use_head": False}


class SiglipEmbeddings(nnx.Module):
    def __init__(self, config: SiglipVisionConfig, *, rngs: nnx.Rngs):
        self.patch_size = config.patch_size
        init = nnx.initializers.normal(0.02)
        self.patch_embedding = linear(3 * config.patch_size**2, config.hidden_size, rngs=rngs)
        self.position_embedding = nnx.Embed(config.num_patches, config.hidden_size, embedding_init=init, rngs=rngs)

    def __call__(self, pixel_values: Float[Array, "I 3 height width"]) -> Float[Array, "I P D"]:
        patches = self.patch_embedding(patchify(pixel_values, self.patch_size))
        return patches + self.position_embedding.embedding[...]


class SiglipVisionModel(VisionTransformer):
    """The tower: patches with their positions, and nothing before the layers."""

    def __init__(self, config: SiglipVisionConfig, *, rngs: nnx.Rngs):
        self.embeddings = SiglipEmbeddings(config, rngs=rngs)
        super().__init__(config, rngs=rngs)

    def embed(self, pixel_values: Float[Array, "I 3 height width"]) -> Float[Array, "I P D"]:
        dtype = self.embeddings.position_embedding.embedding[...].dtype
        return self.embeddings(pixel_values.astype(dtype))
