"""Reads the config of a PyTorch checkpoint folder: Hugging Face's form, or the original LLaVA's put into that form.

The original code (haotian-liu/LLaVA) keeps the language model's fields at the top level, adds its own under `mm_*`, and
names the vision tower instead of describing it. Its image token is -200 and lies outside the vocabulary; here it gets
the first id after the vocabulary, as in the llava-hf conversions.
"""

from pathlib import Path
from typing import Any

from sparsevlm_jax.checkpoints.jsonfile import read_json
from sparsevlm_jax.errors import CheckpointError
from sparsevlm_jax.hf.known_fields import LLAVA_VISION
from sparsevlm_jax.models import LlavaConfig, UnsupportedConfig, config_from_hf
from sparsevlm_jax.models.families.llava import MAX_PROJECTOR_LAYERS
from sparsevlm_jax.models.families.llava_next import LlavaNextConfig
from sparsevlm_jax.processing.tiles import original_pinpoints

from .kinds import ORIGINAL_TYPES, is_original, is_original_next, read_model_json

CLIP_L_336 = {"model_type": "clip_vision_model", **LLAVA_VISION}
KNOWN_TOWERS = {  # by the end of a hub id, or of somebody's path to a copy
    "clip-vit-large-patch14": CLIP_L_336 | {"image_size": 224},
    "clip-vit-large-patch14-336": CLIP_L_336,
}
_PROJECTOR_LAYERS = {"linear": 1} | {f"mlp{layers}x_gelu": layers for layers in range(1, MAX_PROJECTOR_LAYERS + 1)}

# Fields of the original config with the values that mean a LLaVA as implemented here.
_IMPLEMENTED = {
    "mm_projector_type": tuple(_PROJECTOR_LAYERS),
    "mm_resampler_type": (None,),
    "mm_use_im_start_end": (None, False),
    "mm_use_im_patch_token": (None, False),
    "mm_vision_select_feature": (None, "patch", "cls_patch"),
    "tune_mm_vision_resampler": (None, False),
    "s2": (None, False),
    "sep_image_conv_front": (None, False),
}
_OF_15 = {"mm_patch_merge_type": (None, "flat"), "image_aspect_ratio": (None, "pad", "square")}
_OF_NEXT = {"mm_patch_merge_type": ("spatial_unpad",), "image_aspect_ratio": ("anyres",)}
# Fields that say how it was trained, that only other settings make count, or that are read elsewhere.
_NOT_FOR_TEXT = frozenset(
    """model_type vision_config mm_hidden_size mm_vision_tower vision_tower mm_vision_select_layer use_mm_proj
    pretrain_mm_mlp_adapter freeze_mm_mlp_adapter tune_mm_mlp_adapter mm_projector_lr freeze_mm_vision_resampler
    unfreeze_mm_vision_tower mm_vision_tower_lr max_sequence_length mm_tunable_parts tune_entire_model
    vision_tower_pretrained video tokenizer_padding_side tokenizer_model_max_length image_grid_pinpoints
    image_crop_resolution image_split_resolution mm_newline_position mm_spatial_pool_mode s2_scales""".split()
)


def read_config(folder: str | Path, *, vision_tower: str | Path | None = None, without: tuple[str, ...] = ()) -> Any:
    """The config of a checkpoint folder in either form.

    Args:
        folder: holds `config.json`.
        vision_tower: the CLIP folder of an original checkpoint that has no tower of its own.
        without: parts that will not be loaded; without "vision_tower" an original config need not describe it, and a
            placeholder of the right output width stands in.

    Raises:
        CheckpointError: `config.json` is missing or not JSON, or says too little about the vision tower.
        ValueError: naming every field whose value is not implemented, or the kind of model that it is instead.

    Warns:
        CheckpointWarning: once, naming every field that is none of the model's.
    """
    path = Path(folder) / "config.json"
    config = read_model_json(folder)
    if not is_original(config):
        return config_from_hf(config, where=str(path))
    vision_config = _vision_config(path, config, vision_tower, without)
    config = original_to_hf(config, vision_config=vision_config, where=path)
    kind = LlavaNextConfig if config["model_type"] == "llava_next" else LlavaConfig
    return kind.from_hf(config, where=str(path), inlined=("text_config",))


def original_to_hf(config: dict, *, vision_config: dict, where: str | Path = "config.json") -> dict:
    """The original LLaVA's config in the form `LlavaConfig.from_hf` or `LlavaNextConfig.from_hf` reads.

    Raises:
        UnsupportedConfig: naming every field whose value means another model than a LLaVA as implemented here.
    """
    config = {"mm_projector_type": "linear", **config}  # absent from those of LLaVA-1.0
    is_next = is_original_next(config)
    implemented = _IMPLEMENTED | (_OF_NEXT if is_next else _OF_15)
    complaints = [
        f"{name} = {config.get(name)!r}, implemented: {', '.join(map(repr, allowed))}"
        for name, allowed in implemented.items()
        if not any(config.get(name) == value and type(config.get(name)) is type(value) for value in allowed)
    ]
    known = implemented.keys() | _NOT_FOR_TEXT
    complaints += [
        f"{name} = {value!r} is not known"
        for name, value in config.items()
        if name[:3] == "mm_" and name not in known and value not in (None, False)
    ]
    if config.get("mm_hidden_size", vision_config.get("hidden_size")) != vision_config.get("hidden_size"):
        complaints.append(
            f"mm_hidden_size = {config['mm_hidden_size']!r}, the vision tower has {vision_config.get('hidden_size')!r}"
        )
    if complaints:
        raise UnsupportedConfig(f"{where} is not supported: {'; '.join(complaints)}")
    decoder = ORIGINAL_TYPES.get(config.get("model_type", "llava"), "llama")
    strategy = "full" if config.get("mm_vision_select_feature") == "cls_patch" else "default"
    return {
        "model_type": "llava_next" if is_next else "llava",
        **({"image_grid_pinpoints": original_pinpoints(config.get("image_grid_pinpoints"))} if is_next else {}),
        "image_token_index": config.get("vocab_size", 32000),
        "vision_feature_layer": config.get("mm_vision_select_layer", -2),
        "vision_feature_select_strategy": strategy,
        "projector_layers": _PROJECTOR_LAYERS[config["mm_projector_type"]],
        "text_config": {"model_type": decoder} | {k: v for k, v in config.items() if k not in known},
        "vision_config": vision_config,
    }


def _vision_config(path: Path, config: dict, vision_tower: str | Path | None, without: tuple[str, ...]) -> dict:
    """What describes the tower: its own folder, the config itself, a file beside it, or a well-known name."""
    name = config.get("mm_vision_tower")
    if vision_tower is not None:
        return clip_vision_config(read_json(Path(vision_tower) / "config.json"))
    if isinstance(config.get("vision_config"), dict):
        return clip_vision_config(config)
    if (path.parent / "vision_config.json").is_file():
        return clip_vision_config(read_json(path.parent / "vision_config.json"))
    if "vision_tower" in without:
        return CLIP_L_336 | {"hidden_size": config.get("mm_hidden_size", 1024), "num_attention_heads": 1}
    if isinstance(name, str) and Path(name).name in KNOWN_TOWERS:
        return KNOWN_TOWERS[Path(name).name]
    raise CheckpointError(
        f"{path} names the vision tower {name!r} but does not describe it: give the tower's own folder as vision_tower"
    )


def clip_vision_config(config: dict) -> dict:
    """The vision half of a CLIP config: of a full `CLIPModel`, or of a tower alone."""
    nested = config.get("vision_config")
    return nested if isinstance(nested, dict) else {k: v for k, v in config.items() if k != "vision_config"}
