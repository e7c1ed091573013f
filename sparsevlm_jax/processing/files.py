"""The processor files of a checkpoint folder, where each generation of transformers has put them.

Tokenizer: `tokenizer.json` or `tokenizer.model` (see `tokenizer`). Pixels: `preprocessor_config.json`, since
transformers 5 a part of `processor_config.json`. Chat template: see `templates`. What ends an answer, and how the
checkpoint's makers decode: `generation_config.json` (see `generation_config`). An original LLaVA folder (its
`config.json` names a `mm_vision_tower`) has a tokenizer only.
"""

from pathlib import Path

from ..checkpoints.jsonfile import optional_json, read_json
from ..errors import CheckpointError
from .pixels import PixelConfig
from .prompts import IMAGE_MARK, LLAVA_1_5, MISTRAL_INSTRUCT, VICUNA_V1
from .templates import check_template, find_template
from .tiles import original_pinpoints, read_pinpoints

#: The files of a checkpoint folder that are read here, `config.json` apart.
PROCESSOR_FILES = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "chat_template.json", "preprocessor_config.json", "processor_config.json"),
    "generation_config.json",
)


def read_pixel_config(folder: Path, image_size: int) -> PixelConfig:
    """Preprocessing as the folder's files say; an original LLaVA folder has none, and pads to a square of `image_size`
    pixels, or cuts into tiles of that size.

    Raises:
        CheckpointError: no file says.
        ValueError: a setting that is not implemented, by name.
    """
    processor = optional_json(folder / "processor_config.json")
    if processor.get("image_token", IMAGE_MARK) != IMAGE_MARK:
        raise ValueError(f"image_token = {processor['image_token']!r} is not implemented, only {IMAGE_MARK!r}")
    if "image_processor" in processor:
        return PixelConfig.from_hf(processor)
    if (folder / "preprocessor_config.json").is_file():
        return PixelConfig.from_hf(read_json(folder / "preprocessor_config.json"))
    original = optional_json(folder / "config.json")
    if "mm_vision_tower" in original:
        if original.get("image_aspect_ratio") == "anyres":
            pinpoints = read_pinpoints(original_pinpoints(original.get("image_grid_pinpoints")))
            return PixelConfig.square(image_size, image_grid_pinpoints=pinpoints)
        return PixelConfig.square(image_size, do_pad=original.get("image_aspect_ratio") == "pad")
    raise CheckpointError(
        f"{folder} has no preprocessor_config.json, and no processor_config.json with image_processor"
    )


def read_template(folder: Path) -> str:
    """The folder's chat template, wherever its version of transformers put it; else LLaVA's own.

    Raises:
        CheckpointError: a file that should hold a template holds none, or no Jinja.
    """
    template = find_template(folder, optional_json(folder / "tokenizer_config.json").get("chat_template"))
    if template is None:
        config = optional_json(folder / "config.json")
        if "mm_vision_tower" not in config:
            return LLAVA_1_5
        is_mistral = config.get("model_type") == "llava_mistral" and config.get("image_aspect_ratio") == "anyres"
        return MISTRAL_INSTRUCT if is_mistral else VICUNA_V1
    check_template(template, folder)
    return template
