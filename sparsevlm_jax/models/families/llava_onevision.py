"""LLaVA-OneVision (Li et al., arXiv 2408.03326): a LLaVA-NeXT with SigLIP and Qwen2, whose pictures may have very many
tiles and whose several pictures have none.

Where a picture's tiles have more patches than nine have, their projected features are scaled down, bilinearly. One of
several pictures of a prompt is padded to a square and seen whole, one separator after it. Videos are not implemented.
"""

import dataclasses
import re
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from ...hf.known_fields import LLAVA_ONEVISION, ONEVISION_PINPOINTS, ONEVISION_SPELLINGS, ONEVISION_VISION
from ...hf.reader import ConfigReader
from ...processing import PromptError, Shown, preprocess
from ...processing.tiles import Cut, Size, whole_picture
from ..decoders.llama import LlamaConfig
from ..towers.siglip import SiglipVisionConfig
from ..towers.vision_transformer import VisionConfig
from . import llava
from .family import Family, register
from .llava import OWN_FIELDS, token_id
from .llava_next import LlavaNextConfig, LlavaNextProcessor, encode, modules

_ASPECT_RATIO = re.compile(r"anyres_max_([1-9]\d{0,3})")


@dataclass(frozen=True, kw_only=True)
class LlavaOnevisionConfig(LlavaNextConfig):
    """The sizes of a LLaVA-OneVision.

    Attributes:
        vision_aspect_ratio: "anyres_max_9": of more than nine tiles, the tokens are scaled down to about as many.
        video_token_id: stands for a video in prompts; videos are not implemented.
    """

    image_grid_pinpoints: tuple[Size, ...] = ONEVISION_PINPOINTS
    vision_feature_layer: int | tuple[int, ...] = -1
    vision_feature_select_strategy: str = "full"
    vision_aspect_ratio: str = "anyres_max_9"
    video_token_id: int = LLAVA_ONEVISION["video_token_index"]

    kinds: ClassVar = {"llava_onevision": {**LLAVA_ONEVISION, **ONEVISION_SPELLINGS, **OWN_FIELDS}}
    no_tower: ClassVar = ONEVISION_VISION
    no_decoder: ClassVar = {"model_type": "qwen2"}
    architectures: ClassVar = {"llava_onevision": "LlavaOnevisionForConditionalGeneration"}

    def __post_init__(self):
        super().__post_init__()
        if not _ASPECT_RATIO.fullmatch(self.vision_aspect_ratio):
            raise ValueError(f"vision_aspect_ratio = {self.vision_aspect_ratio!r}, expected one like 'anyres_max_9'")

    @property
    def most_tiles(self) -> int:
        match = _ASPECT_RATIO.fullmatch(self.vision_aspect_ratio)
        assert match is not None
        return int(match[1])

    def whole(self) -> Cut:
        """A picture that is not cut."""
        return whole_picture(self.vision.patches_per_side, extent=self.vision.extent)

    @classmethod
    def _read_own(cls, read: ConfigReader, vision: VisionConfig) -> dict[str, Any]:
        ratio = read("vision_aspect_ratio")
        if not _ASPECT_RATIO.fullmatch(ratio):
            ratio = read.complain("vision_aspect_ratio", ratio, "expected one like 'anyres_max_9'", "anyres_max_9")
        own = {"vision_aspect_ratio": ratio, "video_token_id": token_id(read, "video")}
        return super()._read_own(read, vision) | own

    def to_hf(self) -> dict:
        """The `config.json` that `from_hf` reads back to an equal config."""
        own = {"vision_aspect_ratio": self.vision_aspect_ratio, "video_token_index": self.video_token_id}
        return {**super().to_hf(), **own}


class LlavaOnevisionProcessor(LlavaNextProcessor):
    """Prompts and pictures into inputs, equal to Hugging Face's `LlavaOnevisionProcessor` with its PIL image processor;
    `pixel_values` are those of `LlavaNextProcessor`."""

    config: LlavaOnevisionConfig
    alone_matters = True

    def cut(self, shown: Shown) -> tuple[list[Float[np.ndarray, "3 H W"]], Cut]:
        if shown.is_alone:
            return super().cut(shown)
        padded = preprocess(self.open(shown.image), dataclasses.replace(self.pixels, do_pad=True))
        return [padded], self.config.whole()

    def _tokenize(self, text: str) -> list[int]:
        ids = super()._tokenize(text)
        if self.config.video_token_id in ids:
            raise PromptError("the prompt has a mark for a video (<video>), and videos are not implemented")
        return ids


def dummy() -> LlavaOnevisionConfig:
    """Up to nine tiles of three patches by three and a pixel over, with about as many tokens as two have at most."""
    vision = SiglipVisionConfig(32, 64, 2, 2, image_size=13, patch_size=4)
    text = LlamaConfig(
        448, 32, 64, 4, 4, 2, 8, rms_norm_eps=1e-5, rope_theta=1e4, max_position_embeddings=1024, qkv_bias=True
    )
    canvases = tuple((13 * rows, 13 * columns) for rows in range(1, 4) for columns in range(1, 4))
    return LlavaOnevisionConfig(
        vision=vision,
        text=text,
        image_token_id=400,
        image_grid_pinpoints=canvases,
        vision_aspect_ratio="anyres_max_2",
        video_token_id=402,
    )


register(
    Family(
        name="llava_onevision",
        config=LlavaOnevisionConfig,
        matches=lambda table: table.get("model_type") == "llava_onevision",
        modules=modules,
        encode=encode,
        encoder_flops=llava.encoder_flops,
        processor=LlavaOnevisionProcessor,
        about="LLaVA-OneVision, as transformers saves it (model_type 'llava_onevision')",
        dummy=dummy,
    )
)
