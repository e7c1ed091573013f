"""Tells what a folder is: of the original code or not, and each kind that cannot be read by its name, with what is
supported instead."""

from pathlib import Path

from sparsevlm_jax.checkpoints.jsonfile import read_json
from sparsevlm_jax.errors import CheckpointError
from sparsevlm_jax.hf.known_fields import QUANTISED
from sparsevlm_jax.models import UnsupportedConfig
from sparsevlm_jax.models.families.family import FAMILIES
from sparsevlm_jax.processing import PROCESSOR_FILES

from .files import has_weights

ORIGINAL_TYPES = {"llava": "llama", "llava_llama": "llama", "llava_mistral": "mistral"}  # -> the decoder's

# Families that are not registered, by model_type, for the message alone.
_FAMILIES = {
    "blip-2": "BLIP-2",
    "gemma3": "Gemma 3",
    "idefics3": "Idefics3 and SmolVLM",
    "instructblip": "InstructBLIP",
    "internvl": "InternVL",
    "internvl_chat": "InternVL, in its own code's layout",
    "llava_next_video": "LLaVA-NeXT-Video",
    "llava_qwen": "LLaVA with Qwen2, in the original code's layout",
    "minicpmv": "MiniCPM-V",
    "mistral3": "Mistral Small 3",
    "mobilevlm": "MobileVLM",
    "mllama": "Llama 3.2 Vision",
    "paligemma": "PaliGemma",
    "phi3_v": "Phi-3-vision",
    "pixtral": "Pixtral",
    "qwen2_5_vl": "Qwen2.5-VL",
    "qwen2_vl": "Qwen2-VL",
    "qwen3_5": "Qwen3.5",
    "qwen3_vl": "Qwen3-VL",
    "qwen3_vl_moe": "Qwen3-VL, mixture of experts",
    "smolvlm": "SmolVLM",
    "video_llava": "Video-LLaVA",
}
_TOWERS = ("clip", "clip_vision_model", "siglip", "siglip_vision_model", "siglip2", "siglip2_vision_model", "dinov2")
_DECODERS = ("gemma2", "llama", "mistral", "phi3", "qwen2", "qwen3")


def read_model_json(folder: str | Path) -> dict:
    """The table in `config.json` of a folder that holds a model of a registered family, in its own layout or, of a
    LLaVA, in that of the original code.

    Raises:
        CheckpointError: the folder is an adapter, or has no `config.json`, or that is no JSON table.
        UnsupportedConfig: it is of another family, a part of a model, or quantised.
    """
    folder = Path(folder)
    path = folder / "config.json"
    if (folder / "adapter_config.json").is_file() and not has_weights(folder):
        raise CheckpointError(_adapter(folder))
    if not path.is_file():
        raise CheckpointError(_without_config(folder))
    config = read_json(path)
    kind = _unsupported(config)
    if kind is not None:
        raise UnsupportedConfig(f"{path}: {kind}; supported: {supported()}")
    return config


def supported() -> str:
    """What can be read, in words."""
    return "; ".join(family.about for family in FAMILIES.values())


def is_original(config: dict) -> bool:
    """Whether a config is of the original code; both forms have been seen with model_type "llava"."""
    return "text_config" not in config and any(str(name).startswith("mm_") for name in config)


def _adapter(folder: Path) -> str:
    config = read_json(folder / "adapter_config.json")
    kind, base = str(config.get("peft_type", "PEFT")).replace("LORA", "LoRA"), config.get("base_model_name_or_path")
    return (
        f"{folder} is a {kind} adapter for {base!r}, not a whole model: merge it into that model first (peft's "
        f"merge_and_unload, then save_pretrained)"
    )


def _without_config(folder: Path) -> str:
    if has_weights(folder):
        return f"{folder} holds weights, but no config.json that says of which model"
    files = [name for name in PROCESSOR_FILES if (folder / name).is_file()]
    if files:
        return f"{folder} holds tokenizer and processor files alone ({', '.join(files)}): there is no config.json in it"
    return f"{folder} is not the folder of a checkpoint: there is no config.json in it"


def _unsupported(config: dict) -> str | None:
    """What a config is of, unless it is supported."""
    kind = config.get("model_type")
    if not isinstance(kind, str):
        return f"model_type {kind!r} says no kind of model"
    if kind in _TOWERS:
        return f"this is a vision tower (model_type {kind!r}), a part of a model"
    if kind in _DECODERS and not is_original(config):
        return f"this is a language model without vision (model_type {kind!r}), a part of a model"
    is_registered = any(family.matches(config) for family in FAMILIES.values())
    if not (is_registered or (is_original(config) and kind in ORIGINAL_TYPES)):
        name = f" ({_FAMILIES[kind]})" if kind in _FAMILIES else ""
        return f"model_type {kind!r}{name} is not supported"
    for field in QUANTISED:
        if config.get(field) is not None:
            value = config[field]
            method = value.get("quant_method") if isinstance(value, dict) else value
            return f"its weights are quantised ({field} of method {method!r}), expected float32, bfloat16 or float16"
    return None


def is_original_next(config: dict) -> bool:
    """Whether an original config is of a LLaVA-NeXT: that differs from LLaVA-1.5 by how pictures are cut and joined."""
    signs = {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial"}
    return any(str(config.get(name, "")).startswith(value) for name, value in signs.items())
