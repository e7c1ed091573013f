"""The vision towers there are, by HF's `model_type`; `tests/models/test_variants.py` holds each to `transformers`."""

from typing import Any

from ..nn.params import bind
from .clip import ClipVisionConfig, ClipVisionModel
from .siglip import SiglipVisionConfig, SiglipVisionModel
from .vision_transformer import VisionConfig, VisionTransformer

MODULES: dict[type[VisionConfig], type[VisionTransformer]] = {
    ClipVisionConfig: ClipVisionModel,
    SiglipVisionConfig: SiglipVisionModel,
}
TOWERS: dict[str, type[VisionConfig]] = {config.model_type: config for config in MODULES}


def config_class(vision_config: Any) -> type[VisionConfig]:
    """The kind of tower that a `vision_config` is of; CLIP where it does not say, and for what is no kind at all."""
    kind = vision_config.get("model_type") if isinstance(vision_config, dict) else None
    return TOWERS.get(kind, ClipVisionConfig) if isinstance(kind, str) else ClipVisionConfig


def module_of(config: VisionConfig) -> type[VisionTransformer]:
    """The module of a tower's config; build or bind it with that config."""
    return MODULES[type(config)]


def bind_tower(config: VisionConfig, params: dict) -> Any:
    """The tower around its parameters; inside jit, as `bind`."""
    return bind(module_of(config), config, params)
