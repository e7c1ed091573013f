"""Small random LLaVA-NeXTs and LLaVA-OneVisions as `transformers` writes them: model, processor, folder."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor

from tests import tiny
from tests.models.test_interleave import SPECIAL, TEMPLATE, tokenizer
from tests.parity import shake

WIDTH = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
TOWER = {"patch_size": 7, **WIDTH}
TEXT = {"num_key_value_heads": 2, "max_position_embeddings": 4096, **WIDTH}
#: (height, width): wide, high, square, several tiles' worth, strips of which no patch of a tile is left.
SIZES = ((30, 40), (40, 30), (33, 33), (100, 20), (20, 100), (157, 191), (300, 7), (3, 200))


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8))


class Theirs(NamedTuple):
    """A model of `transformers`, its image processor, and the folder that it was written to."""

    model: Any
    images: Any
    folder: Path

    def pixels(self, images: list[Image.Image]) -> dict[str, Tensor]:
        """What the model is given of the pictures of one prompt."""
        together = [images] if self.model.config.model_type == "llava_onevision" else images
        return dict(self.images.preprocess(together, return_tensors="pt"))

    def inputs(self, ids: np.ndarray, images: list[Image.Image]) -> dict[str, Tensor]:
        batch = torch.from_numpy(ids.astype(np.int64))[None]
        pixels = self.pixels(images) if images else {}
        return {"input_ids": batch, "attention_mask": torch.ones_like(batch), **pixels}


def llava_next(folder: Path, *, decoder: str = "llama", names: str = "A") -> Theirs:
    """Tiles of 28 pixels in patches of 7, up to four of them or three in a row."""
    edge, canvases = 28, [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]
    config = transformers.LlavaNextConfig(
        vision_config={"model_type": "clip_vision_model", "image_size": edge, **TOWER},
        text_config={"model_type": decoder, "vocab_size": tiny.VOCAB, **TEXT},
        image_token_index=tiny.IMAGE_ID,
        image_seq_length=16,
        image_grid_pinpoints=canvases,
    )
    config.pad_token_id, config.eos_token_id = tiny.PAD_ID, 2
    images = transformers.LlavaNextImageProcessorPil(
        size={"shortest_edge": edge}, crop_size={"height": edge, "width": edge}, image_grid_pinpoints=canvases
    )
    model = _written(folder, transformers.LlavaNextForConditionalGeneration(config), names)
    transformers.LlavaNextProcessor(
        image_processor=images,
        tokenizer=tiny.tiny_tokenizer(),
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tiny.CHAT_TEMPLATE,
    ).save_pretrained(folder)
    return Theirs(model, images, folder)


def llava_onevision(folder: Path, *, names: str = "A") -> Theirs:
    """Tiles of 30 pixels in patches of 7, up to sixteen, whose patches are scaled down to those of four. Its processor
    wants torchvision, so its parts are written one by one."""
    edge, words = 30, tokenizer()
    words.add_special_tokens({"additional_special_tokens": [*SPECIAL, "<video>"]})
    ids = {name: words.convert_tokens_to_ids(name) for name in [*SPECIAL, "<video>"]}
    canvases = [[edge * rows, edge * columns] for rows in range(1, 5) for columns in range(1, 5)]
    config = transformers.LlavaOnevisionConfig(
        vision_config={"model_type": "siglip_vision_model", "image_size": edge, "vision_use_head": False, **TOWER},
        text_config={"model_type": "qwen2", "vocab_size": 300, **TEXT},
        image_token_index=ids["<image>"],
        video_token_index=ids["<video>"],
        image_grid_pinpoints=canvases,
        vision_aspect_ratio="anyres_max_4",
    )
    config.pad_token_id, config.eos_token_id = ids["<|endoftext|>"], ids["<|im_end|>"]
    images = transformers.LlavaOnevisionImageProcessorPil(
        size={"height": edge, "width": edge}, image_grid_pinpoints=canvases
    )
    model = _written(folder, transformers.LlavaOnevisionForConditionalGeneration(config), names)
    words.save_pretrained(folder)
    images.save_pretrained(folder)
    table = {
        "vision_aspect_ratio": "anyres_max_4",
        "num_image_tokens": 16,
        "processor_class": "LlavaOnevisionProcessor",
    }
    (folder / "processor_config.json").write_text(json.dumps(table))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return Theirs(model, images, folder)


def _written(folder: Path, model: Any, names: str) -> Any:
    torch.manual_seed(0)
    model.eval().init_weights()
    tiny.save_llava(folder, shake(model, 1), names=names)
    return model


FAMILIES = {"llava_next": llava_next, "llava_onevision": llava_onevision}
