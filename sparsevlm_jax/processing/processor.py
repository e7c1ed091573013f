"""The processor of a LLaVA checkpoint: prompts and pictures in, token ids and pixel values out, and ids back into text.

Ids equal those of Hugging Face's `LlavaProcessor` and pixels those of its PIL image processor. Nothing
here needs torch, and a plain tokenizer no `transformers`. Nothing is padded: rows have their own lengths.

Dims: I images of all rows together, H height, W width.
"""

import dataclasses
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int32

from ..errors import short
from ..models.families.llava import LlavaConfig
from .files import read_pixel_config, read_template
from .generation_config import read_generation_config
from .images import MAX_PIXELS, ImageSource, open_image
from .pixels import PixelConfig, preprocess
from .prompts import IMAGE_MARK, LLAVA_1_5, Prompt, PromptError, read_prompt, read_raw, render
from .tokenizer import TextTokenizer, read_tokenizer


class ProcessedInputs(NamedTuple):
    """A batch before padding. Row i owns the next `images_per_row[i]` of the marks.

    `input_ids`: one int32 array per row, each image mark expanded to `tokens_per_image` times the image token's id.
    `image_of_mark`: which of the images each mark shows; an object that was given for several marks is one image.
    """

    input_ids: list[Int32[np.ndarray, " L"]]
    pixel_values: Float[np.ndarray, "I 3 H W"]
    images_per_row: tuple[int, ...]
    image_of_mark: tuple[int, ...]


class Processor:
    """Turns prompts and images into model inputs, and generated ids into text.

    Args:
        tokenizer: a Hugging Face tokenizer.
        config: the model's, which fixes the image token's id, tokens per image and the tower's image size.
        pixels: preprocessing of pictures.
        template: Jinja chat template.
        eos_token_ids: ids that end an answer; default: the model config's.
        allow_http: fetch pictures that are given as http(s) addresses.
        max_pixels: of a picture; more are refused, but for a JPEG that can be decoded at a smaller size.

    Raises:
        ValueError: tokenizer, preprocessing and model do not belong together.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        config: LlavaConfig,
        *,
        pixels: PixelConfig,
        template: str = LLAVA_1_5,
        eos_token_ids: tuple[int, ...] | None = None,
        allow_http: bool = False,
        max_pixels: int = MAX_PIXELS,
    ):
        self.tokenizer, self.config, self.pixels, self.template = tokenizer, config, pixels, template
        self.allow_http, self.max_pixels = allow_http, max_pixels
        self.eos_token_ids = config.eos_token_ids if eos_token_ids is None else eos_token_ids
        edge = config.vision.image_size
        if pixels.output_size != (edge, edge):
            raise ValueError(f"the vision tower sees {edge} x {edge} pixels, preprocessing gives {pixels.output_size}")
        self._knows_mark = IMAGE_MARK in tokenizer.get_vocab()
        mark_id = tokenizer.convert_tokens_to_ids(IMAGE_MARK)
        if self._knows_mark and mark_id != config.image_token_id:
            raise ValueError(f"{IMAGE_MARK} is token {mark_id} to the tokenizer, {config.image_token_id} to the model")

    @classmethod
    def from_folder(
        cls,
        folder: str | os.PathLike[str],
        config: LlavaConfig,
        *,
        pad_to_square: bool | None = None,
        allow_http: bool = False,
        max_pixels: int = MAX_PIXELS,
    ) -> "Processor":
        """Read the processor files of a checkpoint folder (`files.PROCESSOR_FILES`), of any transformers since 4.36.

        Args:
            pad_to_square: True pads pictures to a square as the original LLaVA does, False crops them as llava-hf
                does; None does what the checkpoint says.
            allow_http, max_pixels: as above.

        Raises:
            CheckpointError: a file is missing or cannot be read.
            ValueError: a setting that is not implemented, by name.
        """
        folder = Path(folder)
        pixels = read_pixel_config(folder, config)
        if pad_to_square is not None:
            pixels = dataclasses.replace(pixels, do_pad=pad_to_square)
        tokenizer = read_tokenizer(folder)
        return cls(
            tokenizer,
            config,
            pixels=pixels,
            template=read_template(folder),
            eos_token_ids=read_generation_config(folder, config.eos_token_ids),
            allow_http=allow_http,
            max_pixels=max_pixels,
        )

    def __repr__(self) -> str:
        kind, (height, width) = type(self.tokenizer).__name__, self.pixels.output_size
        return f"Processor({kind} of {len(self.tokenizer)} tokens, images of {height} x {width} pixels)"

    def __call__(
        self, prompts: Sequence[Prompt], images: Sequence[Sequence[ImageSource]] | None = None, *, raw: bool = False
    ) -> ProcessedInputs:
        """Process a batch.

        Args:
            prompts: per row a question, or chat messages in the HF form (`prompts.read_prompt` has the details).
            images: per row its images, in the order of their `<image>` marks; where a row has no mark, they go first.
            raw: the prompts are the whole text, template words included (`USER: <image>\\n... ASSISTANT:`).

        Raises:
            PromptError: a prompt without words, or marks that are not as many as the images.
            ImageError, OSError: a picture that cannot be read.
        """
        if not isinstance(prompts, list | tuple):
            given = "one text" if isinstance(prompts, str) else short(prompts)
            raise PromptError(f"expected a list of prompts and as many lists of images, got {given}")
        images = [()] * len(prompts) if images is None else images
        if not isinstance(images, list | tuple) or not all(isinstance(row, list | tuple) for row in images):
            raise PromptError(f"expected a list of images for each prompt, got {short(images)}")
        if len(prompts) != len(images):
            raise PromptError(
                f"expected a list of prompts and as many lists of images, got {len(prompts)} prompts and {len(images)}"
            )
        rows = [self._read_row(prompt, row, raw) for prompt, row in zip(prompts, images, strict=True)]
        of_marks = [image for _, row in rows for image in row]
        distinct = {id(image): image for image in of_marks}
        return ProcessedInputs(
            input_ids=[self.encode(text) for text, _ in rows],
            pixel_values=self.encode_images(list(distinct.values())),
            images_per_row=tuple(len(row) for _, row in rows),
            image_of_mark=tuple(list(distinct).index(id(image)) for image in of_marks),
        )

    def encode(self, text: str) -> Int32[np.ndarray, " L"]:
        """Token ids of a rendered prompt, each image mark expanded.

        A BOS is there if the tokenizer adds one or the text begins with it, and never for both reasons: so does the
        chat template of Hugging Face's processors.
        """
        array = np.array(self._tokenize(text), np.int32)
        return np.repeat(array, np.where(array == self.config.image_token_id, self.config.tokens_per_image, 1))

    def encode_images(self, images: Sequence[ImageSource]) -> Float[np.ndarray, "I 3 H W"]:
        """Pixel values of images, [I, 3, H, W] float32; of none, an array with I = 0."""
        pixels = np.empty((len(images), 3, *self.pixels.output_size), np.float32)
        for row, image in zip(pixels, images, strict=True):
            opened = open_image(image, allow_http=self.allow_http, max_pixels=self.max_pixels)
            row[:] = preprocess(opened, self.pixels)
        return pixels

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """Text of generated ids; ids no tokenizer knows (image placeholders, padding rows) are left out."""
        known = [int(token) for token in ids if 0 <= int(token) < len(self.tokenizer)]
        return str(self.tokenizer.decode(known, skip_special_tokens=skip_special_tokens))

    def decode_settled(self, ids: Sequence[int]) -> str:
        """The part of `decode(ids)` that no later id can change, for streaming.

        A tokenizer that spells rare characters in byte tokens decodes a run of them as a whole, and into nothing but
        replacement characters where it is no UTF-8: such a run waits for its end, and half a character for its rest.
        """
        end, silent = len(ids), set(self.tokenizer.all_special_ids)  # these vanish, and may part a run of bytes
        while end and (ids[end - 1] in silent or _is_byte(self.tokenizer.convert_ids_to_tokens(int(ids[end - 1])))):
            end -= 1
        return self.decode(ids[:end]).rstrip("\N{REPLACEMENT CHARACTER}")

    def _read_row(self, prompt: Prompt, images: Sequence[ImageSource], raw: bool) -> tuple[str, Sequence[ImageSource]]:
        if raw:
            return read_raw(prompt, images), images
        conversation = read_prompt(prompt, images)
        return render(conversation, self.tokenizer, self.template), conversation.images

    def _tokenize(self, text: str) -> list[int]:
        bos = self.tokenizer.special_tokens_map.get("bos_token")
        add = bos is None or not text.startswith(bos)
        if self._knows_mark:
            return list(self._ids(text, add))
        # A tokenizer from before llava-hf does not know the mark: its chunks are tokenised apart, as the original does.
        first, *others = text.split(IMAGE_MARK)
        ids = list(self._ids(first, add))
        for chunk in others:
            ids += [self.config.image_token_id, *self._ids(chunk, False)]
        return ids

    def _ids(self, text: str, add_special_tokens: bool) -> list[int]:
        return self.tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)["input_ids"]


def _is_byte(token: object) -> bool:
    return isinstance(token, str) and re.fullmatch("<0x[0-9A-F]{2}>", token) is not None
