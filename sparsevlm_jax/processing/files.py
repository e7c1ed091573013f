"""The processor files of a checkpoint folder, where each generation of transformers has put them.

Tokenizer: `tokenizer.json` or `tokenizer.model`. Pixels: `preprocessor_config.json`, since transformers 5 a part of
`processor_config.json`. Chat template: `chat_template.jinja`, before that `chat_template.json`, else the tokenizer's.
An original LLaVA folder (its `config.json` names a `mm_vision_tower`) has a tokenizer only.
"""

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError
from ..jsonfile import read_json
from ..models.llava import LlavaConfig
from .pixels import PixelConfig
from .prompts import IMAGE_MARK, LLAVA_1_5, VICUNA_V1

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: The files of a checkpoint folder that are read here, `config.json` apart.
PROCESSOR_FILES = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "chat_template.json", "preprocessor_config.json", "processor_config.json"),
    "generation_config.json",
)


def read_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a checkpoint folder; it is never looked for anywhere else.

    Raises:
        CheckpointError: the folder has none, or it cannot be read.
    """
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise CheckpointError(f"{folder} has no tokenizer.json or tokenizer.model")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of old config files, which no user can change
            return _auto_tokenizer().from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers and its Rust core raise whatever a damaged file leads to
        raise CheckpointError(f"the tokenizer in {folder} cannot be read: {_first_line(error)}") from error


def read_pixel_config(folder: Path, config: LlavaConfig) -> PixelConfig:
    """Preprocessing as the folder's files say; an original LLaVA folder has none, and pads to a square.

    Raises:
        CheckpointError: no file says.
        ValueError: a setting that is not implemented, by name.
    """
    processor = _optional_json(folder / "processor_config.json")
    if processor.get("image_token", IMAGE_MARK) != IMAGE_MARK:
        raise ValueError(f"image_token = {processor['image_token']!r} is not implemented, only {IMAGE_MARK!r}")
    if "image_processor" in processor:
        return PixelConfig.from_hf(processor)
    if (folder / "preprocessor_config.json").is_file():
        return PixelConfig.from_hf(read_json(folder / "preprocessor_config.json"))
    original = _optional_json(folder / "config.json")
    if "mm_vision_tower" in original:
        return PixelConfig.square(config.vision.image_size, do_pad=original.get("image_aspect_ratio") == "pad")
    raise CheckpointError(
        f"{folder} has no preprocessor_config.json, and no processor_config.json with image_processor"
    )


def read_template(folder: Path, tokenizer: "PreTrainedTokenizerBase") -> str:
    """The folder's chat template, wherever its version of transformers put it; else LLaVA's own.

    Raises:
        CheckpointError: `chat_template.json` cannot be read or holds no template.
    """
    if not (folder / "chat_template.jinja").is_file() and (folder / "chat_template.json").is_file():
        template: Any = read_json(folder / "chat_template.json").get("chat_template")
        if not isinstance(template, str):
            raise CheckpointError(f"{folder / 'chat_template.json'} holds no chat_template")
        return template
    template = tokenizer.chat_template
    template = template.get("default") if isinstance(template, dict) else template
    original = "mm_vision_tower" in _optional_json(folder / "config.json")
    return template or (VICUNA_V1 if original else LLAVA_1_5)


def read_eos(folder: Path, config: LlavaConfig) -> tuple[int, ...]:
    """Ids that end an answer: `generation_config.json`'s, else the model config's."""
    value: Any = _optional_json(folder / "generation_config.json").get("eos_token_id")
    ids = tuple(value) if isinstance(value, list) else (value,)
    return ids if ids and all(type(token) is int for token in ids) else config.eos_token_ids


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _auto_tokenizer() -> Any:
    """`transformers.AutoTokenizer`, imported late and without its advice to install PyTorch."""
    quiet = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
    before = os.environ.get(quiet)
    os.environ[quiet] = "1"
    try:
        from transformers import AutoTokenizer
    finally:
        if before is None:
            del os.environ[quiet]
        else:
            os.environ[quiet] = before
    return AutoTokenizer


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
